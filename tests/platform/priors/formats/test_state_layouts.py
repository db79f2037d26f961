"""Checkpoints of rsl_rl, rl_games, skrl, Tianshou and plain perceptrons against their sources' own formulas.

Each case writes a file with the names and the statistics of its framework, and computes mean and standard deviation as
the framework's source does. (The frameworks need other versions of our libraries than ours, so they are no dependency.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from tests.platform import own_tasks
from torch import Tensor, nn
from torch.distributions import Categorical, Normal

from rpg_algorithms.policies.bundle import load_bundle
from rpg_algorithms.policies.numpy_policy import NumpyPolicy
from rpg_platform.export import onnx_model
from rpg_platform.priors.formats import state_dict
from rpg_platform.priors.imported import ImportOptions, PriorImportError
from rpg_platform.priors.sources import import_prior, read_source

D, A, STATES = 5, 3, 1_000
OPEN = Box(-np.inf, np.inf, (A,), np.float32)  # the usual space of Isaac Lab's environments
BOUNDED = Box(np.array([-2.0, 0.0, -1.0], np.float32), np.array([2.0, 1.0, 1.0], np.float32))
HALF, MIDDLE = (torch.tensor(x) for x in ((BOUNDED.high - BOUNDED.low) / 2, (BOUNDED.high + BOUNDED.low) / 2))
OPTIONS = ImportOptions(observation_space=Box(-np.inf, np.inf, (D,), np.float32), action_space=OPEN)
MEAN, VAR = torch.linspace(-1.0, 1.0, D).double(), torch.linspace(0.1, 4.0, D).double()
Forward = Callable[[Tensor], tuple[Tensor, Tensor]]  # observations to (mean, std), or to (logits, logits)


def mlp(*sizes: int, activation: type[nn.Module] = nn.ELU, ends: bool = True) -> nn.Sequential:
    """A perceptron; with an activation behind its last layer too where it does not end there."""
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), activation()]
    made = nn.Sequential(*(layers[:-1] if ends else layers))
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made


def under(prefix: str, module: nn.Module | Mapping[str, Any]) -> dict[str, Any]:
    state = module.state_dict() if isinstance(module, nn.Module) else module
    return {f"{prefix}{name}": value for name, value in state.items()}


def rsl_rl_statistics() -> dict[str, Tensor]:
    mean, var = MEAN.float()[None], VAR.float()[None]
    return {"_mean": mean, "_var": var, "_std": var.sqrt(), "count": torch.tensor(9)}


def rsl_rl_normalised(obs: Tensor) -> Tensor:
    """EmpiricalNormalization."""
    return (obs - MEAN.float()) / (VAR.float().sqrt() + 1e-2)


def rl_games_normalised(obs: Tensor) -> Tensor:
    """RunningMeanStd."""
    return ((obs - MEAN.float()) / torch.sqrt(VAR.float() + 1e-5)).clamp(-5.0, 5.0)


def skrl_normalised(obs: Tensor) -> Tensor:
    """RunningStandardScaler."""
    return ((obs - MEAN.float()) / (torch.sqrt(VAR.float()) + 1e-8)).clamp(-5.0, 5.0)


@dataclass
class Made:
    """What a case writes, what it computes, and with which options it is read."""

    content: Any
    forward: Forward
    options: ImportOptions = OPTIONS
    scaled: bool = False  # the source samples in -1 to 1; its environment gets the bounds


def rsl_rl(stored: str, norm: str = "") -> Made:
    actor, parameter = mlp(D, 16, 8, A), torch.tensor([0.5, 1.0, 2.0])
    new = stored.startswith("distribution") or norm == "obs_normalizer"
    policy = under("mlp." if new else "actor.", actor) | {stored: parameter.log() if "log" in stored else parameter}
    content = {"model_state_dict": policy | under("critic.", mlp(D, 16, 1)), "optimizer_state_dict": {"state": {}}}
    if new:
        content = {"actor_state_dict": policy, "critic_state_dict": under("mlp.", mlp(D, 16, 1))}
    if norm == "obs_norm_state_dict":
        content |= {norm: rsl_rl_statistics(), f"privileged_{norm}": rsl_rl_statistics()}
    elif norm:
        policy |= under(f"{norm}.", rsl_rl_statistics())
        content["actor_state_dict" if new else "model_state_dict"] = policy
    seen = rsl_rl_normalised if norm else lambda obs: obs
    return Made(content | {"iter": 7, "infos": None}, lambda obs: (actor(seen(obs)), parameter.expand(len(obs), A)))


def rsl_rl_state_dependent(kind: str) -> Made:
    actor = mlp(D, 16, 8, 2 * A)

    def forward(obs: Tensor) -> tuple[Tensor, Tensor]:
        mean, second = actor(obs).unflatten(-1, (2, A)).unbind(-2)
        return mean, second.exp() if kind == "log_std" else second.clamp(1e-6, 1e6)

    options = replace(OPTIONS, second_output=kind)  # type: ignore[arg-type]
    return Made({"model_state_dict": under("actor.", actor) | under("critic.", mlp(D, 1))}, forward, options)


def rl_games(fixed: bool, norm: str, sigma: str = "log_std", prefix: str = "") -> Made:
    body, mu, head = mlp(D, 16, 8, ends=False), nn.Linear(8, A), nn.Linear(8, A)
    free = torch.tensor([0.2, 0.5, 1.5])
    model = under("a2c_network.actor_mlp.", body) | under("a2c_network.mu.", mu)
    model |= under("a2c_network.value.", nn.Linear(8, 1))
    model |= {"a2c_network.sigma": free} if fixed else under("a2c_network.sigma.", head)
    statistics = {"running_mean": MEAN, "running_var": VAR, "count": torch.tensor(9.0).double()}
    value = under("value_mean_std.", {"running_mean": torch.ones(1), "running_var": torch.ones(1)})
    beside = {}
    if norm == "old":
        beside = {"running_mean_std": statistics, "reward_mean_std": {"running_mean": torch.ones(1)}}
    else:
        model |= under("running_mean_std.", statistics) | value
    content = {"model": under(prefix, model), "epoch": 3, "frame": 99, "optimizer": {}, "scaler": {}, **beside}

    def forward(obs: Tensor) -> tuple[Tensor, Tensor]:
        features = body(rl_games_normalised(obs))
        found = free.expand(len(obs), A) if fixed else head(features)
        return mu(features), found if sigma == "std" else found.exp()

    options = replace(OPTIONS, action_space=BOUNDED, second_output=None if sigma == "log_std" else "std")
    return Made(content, forward, options, scaled=True)


def rl_games_discrete() -> Made:
    body, logits = mlp(D, 16, 8, ends=False), nn.Linear(8, A)
    model = under("a2c_network.actor_mlp.", body) | under("a2c_network.logits.", logits)
    return Made({"model": model}, lambda obs: (logits(body(obs)),) * 2, replace(OPTIONS, action_space=Discrete(A)))


def skrl(shared: bool, preprocessor: str) -> Made:
    body, last, free = mlp(D, 16, 8, ends=False), nn.Linear(8, A), torch.tensor([-0.5, 0.5, 3.0])
    net = under("net_container.", body)
    net |= under("policy_layer.", last) if shared else under("net_container.4.", last)
    policy = net | {"log_std_parameter": free} | (under("value_layer.", nn.Linear(8, 1)) if shared else {})
    statistics = {"running_mean": MEAN, "running_variance": VAR, "current_count": torch.tensor(9.0)}
    content = {"policy": policy, "value": policy, "optimizer": {"state": {}}, preprocessor: statistics}
    content["value_preprocessor"] = {"running_mean": torch.ones(1), "running_variance": torch.ones(1)}
    if preprocessor == "observation_preprocessor":  # of an asymmetric critic's states
        content["state_preprocessor"] = {name: torch.ones(7) for name in statistics}

    def forward(obs: Tensor) -> tuple[Tensor, Tensor]:
        return last(body(skrl_normalised(obs))), free.clamp(-20.0, 2.0).exp().expand(len(obs), A)

    return Made(content, forward)


class RunningMeanStd:
    """Tianshou's, which is pickled beside the weights."""

    def __init__(self) -> None:
        self.mean, self.var, self.count = MEAN.numpy(), VAR.numpy(), 9
        self.eps, self.clip_max = float(np.finfo(np.float32).eps), 2.0


def tianshou(conditioned: bool, within: str = "", squashed: bool = False) -> Made:
    body, mu, sigma = mlp(D, 16, 8, activation=nn.ReLU, ends=False), nn.Linear(8, A), nn.Linear(8, A)
    free = torch.tensor([[-0.5], [0.25], [1.0]])
    actor = under("preprocess.model.model.", body) | under("mu.model.0.", mu)
    actor |= under("sigma.model.0.", sigma) if conditioned else {"sigma_param": free}
    policy = under(f"{within}actor.", actor) | under("critic.last.model.0.", nn.Linear(8, 1))
    if squashed:
        policy |= under("critic_old.last.model.0.", nn.Linear(8, 1)) | under("critic2_old.", nn.Linear(8, 1))
    content = (
        policy if squashed else {"model": policy | under("_actor_critic.actor.", actor), "obs_rms": RunningMeanStd()}
    )

    def forward(obs: Tensor) -> tuple[Tensor, Tensor]:
        eps = float(np.finfo(np.float32).eps)
        normalised = ((obs - MEAN) / torch.sqrt(VAR + eps)).clamp(-2.0, 2.0).float()
        features = body(obs if squashed else normalised)
        std = sigma(features).clamp(-20.0, 2.0).exp() if conditioned else free.view(1, A).expand(len(obs), A).exp()
        return mu(features), std

    return Made(content, forward, replace(OPTIONS, action_space=BOUNDED), scaled=not squashed)


def tianshou_discrete() -> Made:
    body, last = mlp(D, 16, 8, activation=nn.ReLU, ends=False), nn.Linear(8, A)
    content = under("actor.preprocess.model.model.", body) | under("actor.last.model.0.", last)
    return Made(content, lambda obs: (last(body(obs)),) * 2, replace(OPTIONS, action_space=Discrete(A)))


def perceptron(prefix: str, wrapper: str, **beside: Tensor) -> Made:
    net = mlp(D, 16, A, activation=nn.Tanh)
    content: dict[str, Any] = under(prefix, net) | beside | under("critic.", mlp(D, 16, 1))
    std = beside["log_std"].exp() if beside else torch.full((A,), 0.25)
    options = replace(OPTIONS, activation="tanh", std=None if beside else 0.25)
    return Made({wrapper: content} if wrapper else content, lambda obs: (net(obs), std.expand(len(obs), A)), options)


def perceptron_discrete(prefix: str) -> Made:
    net = mlp(D, 16, A, activation=nn.ReLU)
    options = replace(OPTIONS, activation="relu", action_space=Discrete(A))
    return Made(under(prefix, net), lambda obs: (net(obs),) * 2, options)


def cleanrl_wrapped() -> Made:
    net, free = mlp(D, 16, A, activation=nn.Tanh), torch.tensor([[-0.5, 0.0, 0.5]])
    state = under("module.", under("actor_mean.", net) | {"actor_logstd": free} | under("critic.", mlp(D, 1)))
    content = {"model_state_dict": state, "optimizer_state_dict": {}, "global_step": 5, "args": {"seed": 1}}
    return Made(content, lambda obs: (net(obs), free.exp().expand(len(obs), A)))


def cleanrl_shared() -> Made:
    network, actor = mlp(D, 16, 8, activation=nn.ReLU, ends=False), nn.Linear(8, A)
    content = under("network.", network) | under("actor.", actor) | under("critic.", nn.Linear(8, 1))
    return Made(content, lambda obs: (actor(network(obs)),) * 2, replace(OPTIONS, action_space=Discrete(A)))


CASES: dict[str, tuple[str, Callable[[], Made]]] = {
    "rsl_rl": ("rsl_rl", lambda: rsl_rl("std")),
    "rsl_rl log": ("rsl_rl", lambda: rsl_rl("log_std", "obs_norm_state_dict")),
    "rsl_rl 3": ("rsl_rl", lambda: rsl_rl("std", "actor_obs_normalizer")),
    "rsl_rl 4": ("rsl_rl", lambda: rsl_rl("log_std", "obs_normalizer")),
    "rsl_rl 5": ("rsl_rl", lambda: rsl_rl("distribution.std_param", "obs_normalizer")),
    "rsl_rl 5 log": ("rsl_rl", lambda: rsl_rl("distribution.log_std_param")),
    "rsl_rl of the state": ("rsl_rl", lambda: rsl_rl_state_dependent("std")),
    "rsl_rl of the state, log": ("rsl_rl", lambda: rsl_rl_state_dependent("log_std")),
    "rl_games": ("rl_games", lambda: rl_games(True, "new")),
    "rl_games old, compiled": ("rl_games", lambda: rl_games(False, "old", prefix="_orig_mod.")),
    "rl_games continuous_a2c": ("rl_games", lambda: rl_games(True, "new", "std")),
    "rl_games discrete": ("rl_games", rl_games_discrete),
    "skrl shared": ("skrl", lambda: skrl(True, "state_preprocessor")),
    "skrl 2": ("skrl", lambda: skrl(False, "observation_preprocessor")),
    "Tianshou": ("tianshou/ppo", lambda: tianshou(False)),
    "Tianshou 2, of the state": ("tianshou/ppo", lambda: tianshou(True, "policy.")),
    "Tianshou's SAC": ("tianshou/sac", lambda: tianshou(True, squashed=True)),
    "Tianshou discrete": ("tianshou/discrete", tianshou_discrete),
    "CleanRL in a checkpoint": ("cleanrl/ppo", cleanrl_wrapped),
    "CleanRL's shared network": ("cleanrl/ppo", cleanrl_shared),
    "a bare Sequential": ("perceptron", lambda: perceptron("", "")),
    "a bare Sequential in a checkpoint": ("perceptron", lambda: perceptron("", "policy_state_dict")),
    "actor without a log std": ("perceptron", lambda: perceptron("actor.", "")),
    "policy with a log std": ("perceptron", lambda: perceptron("policy.net.", "", log_std=torch.tensor([-1.0]))),
    "bare logits": ("perceptron", lambda: perceptron_discrete("")),
    "CleanRL's ppo with relu": ("cleanrl/ppo", lambda: perceptron_discrete("actor.")),
}


@pytest.mark.parametrize("case", CASES)
def test_log_probabilities_are_the_sources(case: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    named, make = CASES[case]
    made = make()
    torch.save(made.content, tmp_path / "policy.pt")
    imported = state_dict.read(tmp_path / "policy.pt", made.options)
    assert imported.format == named
    obs = 3.0 * torch.randn(STATES, D)
    with torch.no_grad():
        mean, std = made.forward(obs)
        if isinstance(made.options.action_space, Discrete):
            source = Categorical(logits=mean)
            action = source.sample()
            expected = source.log_prob(action)
        else:
            action = Normal(mean, std).sample()
            expected = Normal(mean, std).log_prob(action).sum(-1)
            if made.scaled:  # the density of the environment's action
                action, expected = action * HALF + MIDDLE, expected - HALF.log().sum()
            elif imported.network.spec.distribution == "squashed_gaussian":
                expected = expected - torch.log(1 - torch.tanh(action.double()) ** 2).sum(-1)
        ours = imported.network.distribution(obs).log_prob(action)
    inside = torch.ones(STATES, dtype=torch.bool)
    if imported.network.spec.distribution == "squashed_gaussian":  # where the source's logarithm has digits left
        inside = (action.abs() < 5.0).all(-1)
    assert int(inside.sum()) > 100
    torch.testing.assert_close(ours[inside].double(), expected[inside].double(), rtol=1e-5, atol=1e-5)
    if isinstance(made.options.action_space, Box):
        mode = NumpyPolicy(imported.network)
        received = mode.to_env(mode.mode(mode.outputs(obs.numpy())))
        wanted = mean * HALF + MIDDLE if made.scaled else mean
        if imported.network.spec.distribution == "squashed_gaussian":
            wanted = torch.tanh(mean) * HALF + MIDDLE
        space = made.options.action_space
        np.testing.assert_allclose(received, np.clip(wanted.numpy(), space.low, space.high), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_a_guessed_activation_is_named_and_the_users_decides(case: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    named, make = CASES[case]
    made = make()
    torch.save(made.content, tmp_path / "policy.pt")
    silent = replace(made.options, activation=None)
    if named == "perceptron":  # of no framework, so there is no default to name
        with pytest.raises(PriorImportError, match=r"say which activation its hidden layers have.*--activation relu"):
            state_dict.read(tmp_path / "policy.pt", silent)
    else:
        imported = state_dict.read(tmp_path / "policy.pt", silent)
        guess = imported.facts["activation"]
        assert any(f"{guess} is taken, the default of" in note for note in imported.notes)
    told = state_dict.read(tmp_path / "policy.pt", replace(made.options, activation="silu"))
    assert told.facts["activation"] == "silu"
    assert not any("is taken, the default of" in note for note in told.notes)


def test_tianshous_td3_acts_as_tianshou_maps_it(tmp_path: Path) -> None:
    body, last = mlp(D, 16, 8, activation=nn.ReLU, ends=False), nn.Linear(8, A)
    content = under("actor.preprocess.model.model.", body) | under("actor.last.model.0.", last)
    content |= {f"actor_old.{name}": value for name, value in content.items()} | under("critic_old.", nn.Linear(2, 1))
    torch.save(content, tmp_path / "policy.pth")
    options = replace(OPTIONS, action_space=BOUNDED)
    with pytest.raises(PriorImportError, match=r"what standard deviation before tanh it acts with.*--std 0.1"):
        state_dict.read(tmp_path / "policy.pth", options)
    policy = NumpyPolicy(state_dict.read(tmp_path / "policy.pth", replace(options, std=0.1)).network)
    obs = torch.randn(STATES, D)
    with torch.no_grad():
        wanted = torch.tanh(last(body(obs))) * HALF + MIDDLE
    np.testing.assert_allclose(policy.to_env(policy.mode(policy.outputs(obs.numpy()))), wanted.numpy(), atol=1e-5)


def perceptron_state(outputs: int = A) -> dict[str, Any]:
    return dict(mlp(D, 8, outputs).state_dict())


REFUSED: dict[str, tuple[Callable[[], Any], dict[str, Any], str]] = {
    "all that is missing, at once": (
        lambda: under("actor.", perceptron_state()),
        {"activation": None},
        r"say which activation .*--activation relu, and what standard deviation it acts with.*--std 0\.1",
    ),
    "halves of what": (
        lambda: perceptron_state(2 * A),
        {},
        r"what the second half of its 6 outputs is: --second-output log_std \(or std\)",
    ),
    "a value beside the mean": (
        lambda: perceptron_state(A + 1),
        {},
        r"gives 4 numbers; 3 action dimensions need 3, or 6",
    ),
    "two standard deviations": (
        lambda: under("policy.", perceptron_state()) | {"log_std": torch.zeros(A), "std": torch.ones(A)},
        {},
        "holds two standard deviations",
    ),
    "two last layers": (
        lambda: {"policy": skrl(True, "state_preprocessor").content["policy"] | under("mean_layer.", nn.Linear(A, A))},
        {},
        "which of .*_layer.* is the policy",
    ),
    "memory": (
        lambda: {
            "model_state_dict": under("actor.", perceptron_state()) | {"memory_a.rnn.weight_ih_l0": torch.ones(2, 2)}
        },
        {},
        "a policy with memory",
    ),
    "images": (
        lambda: rl_games(True, "new").content["model"] | {"a2c_network.actor_cnn.0.weight": torch.ones(2, 2, 3, 3)},
        {},
        "has 'a2c_network.actor_cnn.0.weight', which rl_games' checkpoint as read here has not",
    ),
    "a normaliser of an unknown kind": (
        lambda: {"policy": perceptron_state(), "obs_norm": {"m": torch.zeros(D), "s": torch.ones(D)}},
        {"std": 0.1},
        "has 'obs_norm.m', which may belong to a normaliser.*--normalizer stats.npz",
    ),
    "a standard deviation that belongs to it": (
        lambda: {"policy": perceptron_state(), "log_std": torch.zeros(A)},
        {"std": 0.1},
        "--std is for deterministic policies|has 'log_std'",
    ),
    "two networks": (lambda: {"a": perceptron_state(), "b": perceptron_state()}, {"std": 0.1}, "which of a, b is the"),
    "action values": (
        lambda: under("q_network.", perceptron_state()),
        {"action_space": Discrete(A)},
        "DQN's network of action values",
    ),
    "rl_games' SAC": (
        lambda: {"actor": under("trunk.", perceptron_state(2 * A)), "critic": {}},
        {},
        "the bounds of its log standard deviation stand in its configuration alone",
    ),
    "a negative standard deviation": (
        lambda: {"model_state_dict": under("actor.", perceptron_state()) | {"std": torch.tensor([0.1, -0.1, 1.0])}},
        {},
        "its standard deviation is .*-0.1.*expected positive numbers",
    ),
    "an own standard deviation, and --std": (lambda: rsl_rl("std").content, {"std": 0.1}, "--std is for deterministic"),
    "a kind that the file says": (
        lambda: rsl_rl("std").content,
        {"second_output": "std"},
        "--second-output: the file itself says",
    ),
    "another family": (
        lambda: rsl_rl("std").content,
        {"distribution": "squashed_gaussian", "action_space": BOUNDED},
        "--distribution squashed_gaussian: .* rsl_rl's checkpoint is gaussian",
    ),
    "no bounds to squash to": (
        lambda: perceptron_state(),
        {"std": 0.1, "distribution": "squashed_gaussian"},
        r"expected finite bounds, to which it rescales .* \(a gaussian needs none\)",
    ),
    "a second normaliser": (
        lambda: rsl_rl("std", "obs_norm_state_dict").content,
        {"normalizer": Path("stats.npz")},
        "holds a normaliser of its own, obs_norm_state_dict; stats.npz would be a second one",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_with_the_true_reason(case: str, tmp_path: Path) -> None:
    content, options, message = REFUSED[case]
    torch.save(content(), tmp_path / "policy.pt")
    with pytest.raises(PriorImportError, match=message):
        state_dict.read(tmp_path / "policy.pt", replace(OPTIONS, **{"activation": "elu", **options}))


def test_tianshous_statistics_may_clip_nothing(tmp_path: Path) -> None:
    made = tianshou(False)
    made.content["obs_rms"].clip_max = None
    torch.save(made.content, tmp_path / "policy.pth")
    spec = state_dict.read(tmp_path / "policy.pth", made.options).network.spec
    assert spec.observation_clip is None
    assert spec.observation_epsilon == pytest.approx(float(np.finfo(np.float32).eps))


def test_a_class_of_a_script_is_named_and_not_cloudpickles_records(tmp_path: Path) -> None:
    class Agent:
        pass

    cloudpickle.register_pickle_by_value(__import__(__name__, fromlist=["Agent"]))
    for content, said in (
        (Agent, "the class Agent, whose code"),
        (Agent(), "an object of the class Agent, whose code"),
    ):
        torch.save(content, tmp_path / "agent.pt", pickle_module=cloudpickle)
        with pytest.raises(PriorImportError, match=said) as refused:
            state_dict.read(tmp_path / "agent.pt", OPTIONS)
        assert "_make_skeleton_class" not in str(refused.value)


def test_a_free_log_std_is_within_the_bounds_of_its_framework(tmp_path: Path) -> None:
    torch.save(skrl(True, "state_preprocessor").content, tmp_path / "agent.pt")
    log_std = state_dict.read(tmp_path / "agent.pt", OPTIONS).network.log_std
    assert log_std is not None
    assert log_std.tolist() == pytest.approx([-0.5, 0.5, 2.0])


def test_a_gaussian_of_unbounded_actions_is_a_prior(tmp_path: Path) -> None:
    """It becomes a bundle, acts unclipped, leaves as ONNX and comes back the same."""
    actor = mlp(2, 8, 1)
    torch.save({"model_state_dict": under("actor.", actor) | {"std": torch.tensor([0.5])}}, tmp_path / "model_7.pt")
    options = ImportOptions(env_id=f"{own_tasks.__name__}:{own_tasks.OpenSlide.__name__}", activation="elu")
    done = import_prior(str(tmp_path / "model_7.pt"), tmp_path / "prior", options)
    bundle = load_bundle(tmp_path / "prior")
    assert done.card.name == "model_7"
    assert bundle.network_spec.action_high == (math.inf,)
    obs = 100.0 * torch.randn(STATES, 2)
    policy = NumpyPolicy(bundle.build())
    with torch.no_grad():
        wanted = actor(obs)
    assert float(wanted.abs().max()) > 10.0
    np.testing.assert_allclose(policy.to_env(policy.mode(policy.outputs(obs.numpy()))), wanted, rtol=1e-5, atol=1e-5)
    onnx_model.save(bundle, tmp_path / "policy.onnx")
    back = read_source(str(tmp_path / "policy.onnx"))
    assert back.action_space == gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    with torch.no_grad():
        torch.testing.assert_close(back.network(obs), bundle.build()(obs))
