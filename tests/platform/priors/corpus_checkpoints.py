"""The corpus of state dictionaries: CleanRL, rsl_rl, rl_games, skrl, Tianshou and plain perceptrons.

Each case has the names and the statistics of its framework, and computes mean and standard deviation as the framework's
source does. (The frameworks need other versions of our libraries than ours, so they are no dependency.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from tests.platform.priors.corpus import Entry, Source, before_tanh, categorical, gaussian
from torch import Tensor, nn

from rpg_platform.priors.imported import ImportOptions

D, A = 5, 3
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
    squashed: bool = False  # tanh follows the samples
    statistics: Mapping[str, Any] | None = None  # of a normaliser beside it
    perceptron: bool = True  # what follows its log_std needs no graph
    zipped: bool = True  # as torch.save writes by default


def rsl_rl(stored: str, norm: str = "", of: str = "actor") -> Made:
    actor, parameter = mlp(D, 16, 8, A), torch.tensor([0.5, 1.0, 2.0])
    new = stored.startswith("distribution") or norm == "obs_normalizer"
    policy = under("mlp." if new else f"{of}.", actor) | {stored: parameter.log() if "log" in stored else parameter}
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
    return Made(
        {"model_state_dict": under("actor.", actor) | under("critic.", mlp(D, 1))},
        forward,
        options,
        perceptron=kind != "std",
    )


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


def skrl_without_std(space: gym.Space[Any], **told: float) -> Made:
    net = mlp(D, 16, 8, A)
    content = {"policy": under("net_container.", net), "value": under("net_container.", mlp(D, 1))}
    options = replace(OPTIONS, action_space=space, **told)  # type: ignore[arg-type]
    return Made(content, lambda obs: (net(obs), torch.full((len(obs), A), told.get("std", 1.0))), options)


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

    return Made(
        content,
        forward,
        replace(OPTIONS, action_space=BOUNDED),
        scaled=not squashed,
        squashed=squashed,
        perceptron=squashed or not conditioned,
    )


def tianshou_td3() -> Made:
    body, last = mlp(D, 16, 8, activation=nn.ReLU, ends=False), nn.Linear(8, A)
    content = under("actor.preprocess.model.model.", body) | under("actor.last.model.0.", last)
    content |= {f"actor_old.{name}": value for name, value in content.items()} | under("critic_old.", nn.Linear(2, 1))
    options = replace(OPTIONS, action_space=BOUNDED, std=0.1)
    return Made(content, lambda obs: (last(body(obs)), torch.full((len(obs), A), 0.1)), options, squashed=True)


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


# --- CleanRL's agents, written out as its single files have them


def cleanrl_options(**changes: Any) -> ImportOptions:
    return replace(OPTIONS, action_space=BOUNDED, **changes)


class ContinuousAgent(nn.Module):
    """ppo_continuous_action.py."""

    def __init__(self) -> None:
        super().__init__()
        self.critic = mlp(D, 16, 16, 1, activation=nn.Tanh)
        self.actor_mean = mlp(D, 16, 16, A, activation=nn.Tanh)
        self.actor_logstd = nn.Parameter(torch.tensor([[-0.5, 0.25, 0.0]]))


class DiscreteAgent(nn.Module):
    """ppo.py."""

    def __init__(self) -> None:
        super().__init__()
        self.critic = mlp(D, 16, 16, 1, activation=nn.Tanh)
        self.actor = mlp(D, 16, 16, A, activation=nn.Tanh)


class SacActor(nn.Module):
    """sac_continuous_action.py."""

    action_scale: Tensor
    action_bias: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(D, 16), nn.Linear(16, 16)
        self.fc_mean, self.fc_logstd = nn.Linear(16, A), nn.Linear(16, A)
        self.register_buffer("action_scale", HALF)
        self.register_buffer("action_bias", MIDDLE)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.relu(self.fc2(torch.relu(self.fc1(x))))
        log_std = torch.tanh(self.fc_logstd(x))
        return self.fc_mean(x), -5 + 0.5 * (2 - -5) * (log_std + 1)


class DeterministicActor(nn.Module):
    """td3_continuous_action.py and ddpg_continuous_action.py."""

    action_scale: Tensor
    action_bias: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc_mu = nn.Linear(D, 16), nn.Linear(16, 16), nn.Linear(16, A)
        self.register_buffer("action_scale", HALF)
        self.register_buffer("action_bias", MIDDLE)

    def before_tanh(self, x: Tensor) -> Tensor:
        return self.fc_mu(torch.relu(self.fc2(torch.relu(self.fc1(x)))))  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.before_tanh(x)) * self.action_scale + self.action_bias


def enlarged(agent: nn.Module) -> dict[str, Any]:
    """Its state dictionary, weights enlarged so that log standard deviations come near their bounds."""
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.mul_(2.0)
    return agent.state_dict()


def cleanrl_ppo(normalised: bool, zipped: bool) -> Made:
    agent = ContinuousAgent()

    def forward(obs: Tensor) -> tuple[Tensor, Tensor]:
        # gymnasium's NormalizeObservation, then CleanRL's TransformObservation to [-10, 10]
        seen = ((obs - MEAN) / (VAR + 1e-8).sqrt()).clip(-10, 10).float() if normalised else obs
        mean = agent.actor_mean(seen)
        return mean, torch.exp(agent.actor_logstd.expand_as(mean))

    statistics = {"mean": MEAN.numpy(), "var": VAR.numpy()} if normalised else None
    return Made(enlarged(agent), forward, cleanrl_options(), statistics=statistics, zipped=zipped)


def cleanrl_discrete() -> Made:
    agent = DiscreteAgent()
    options = replace(OPTIONS, action_space=Discrete(A))
    return Made(enlarged(agent), lambda obs: (agent.actor(obs),) * 2, options)


def cleanrl_sac() -> Made:
    actor = SacActor()

    def forward(obs: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = actor(obs)
        return mean, log_std.exp()

    return Made(enlarged(actor), forward, cleanrl_options(), squashed=True, perceptron=False)


def cleanrl_deterministic() -> Made:
    """It saves actor and critics as a tuple."""
    actor = DeterministicActor()
    content = (actor.state_dict(), nn.Linear(2, 1).state_dict(), nn.Linear(2, 1).state_dict())

    def forward(obs: Tensor) -> tuple[Tensor, Tensor]:
        mean = actor.before_tanh(obs)
        return mean, torch.full_like(mean, 0.2)

    return Made(content, forward, cleanrl_options(std=0.2), squashed=True)


CASES: dict[str, tuple[str, Callable[[], Made]]] = {
    "rsl_rl": ("rsl_rl", lambda: rsl_rl("std")),
    "rsl_rl log": ("rsl_rl", lambda: rsl_rl("log_std", "obs_norm_state_dict")),
    "rsl_rl 3": ("rsl_rl", lambda: rsl_rl("std", "actor_obs_normalizer")),
    "rsl_rl 4": ("rsl_rl", lambda: rsl_rl("log_std", "obs_normalizer")),
    "rsl_rl 5": ("rsl_rl", lambda: rsl_rl("distribution.std_param", "obs_normalizer")),
    "rsl_rl 5 log": ("rsl_rl", lambda: rsl_rl("distribution.log_std_param")),
    "rsl_rl distilled": ("rsl_rl", lambda: rsl_rl("std", of="student")),
    "rsl_rl of the state": ("rsl_rl", lambda: rsl_rl_state_dependent("std")),
    "rsl_rl of the state, log": ("rsl_rl", lambda: rsl_rl_state_dependent("log_std")),
    "rl_games": ("rl_games", lambda: rl_games(True, "new")),
    "rl_games old, compiled": ("rl_games", lambda: rl_games(False, "old", prefix="_orig_mod.")),
    "rl_games continuous_a2c": ("rl_games", lambda: rl_games(True, "new", "std")),
    "rl_games discrete": ("rl_games", rl_games_discrete),
    "skrl shared": ("skrl", lambda: skrl(True, "state_preprocessor")),
    "skrl 2": ("skrl", lambda: skrl(False, "observation_preprocessor")),
    "skrl categorical": ("skrl", lambda: skrl_without_std(Discrete(A))),
    "skrl deterministic": ("skrl", lambda: skrl_without_std(OPEN, std=0.2)),
    "Tianshou": ("tianshou/ppo", lambda: tianshou(False)),
    "Tianshou 2, of the state": ("tianshou/ppo", lambda: tianshou(True, "policy.")),
    "Tianshou's SAC": ("tianshou/sac", lambda: tianshou(True, squashed=True)),
    "Tianshou's TD3": ("tianshou/td3-or-ddpg", tianshou_td3),
    "Tianshou discrete": ("tianshou/discrete", tianshou_discrete),
    "CleanRL's ppo_continuous_action": ("cleanrl/ppo", lambda: cleanrl_ppo(True, zipped=True)),
    "CleanRL's ppo_continuous_action, old stream": ("cleanrl/ppo", lambda: cleanrl_ppo(False, zipped=False)),
    "CleanRL's ppo": ("cleanrl/ppo", cleanrl_discrete),
    "CleanRL's sac": ("cleanrl/sac", cleanrl_sac),
    "CleanRL's td3": ("cleanrl/td3-or-ddpg", cleanrl_deterministic),
    "CleanRL in a checkpoint": ("cleanrl/ppo", cleanrl_wrapped),
    "CleanRL's shared network": ("cleanrl/ppo", cleanrl_shared),
    "a bare Sequential": ("perceptron", lambda: perceptron("", "")),
    "a bare Sequential in a checkpoint": ("perceptron", lambda: perceptron("", "policy_state_dict")),
    "actor without a log std": ("perceptron", lambda: perceptron("actor.", "")),
    "policy with a log std": ("perceptron", lambda: perceptron("policy.net.", "", log_std=torch.tensor([-1.0]))),
    "bare logits": ("perceptron", lambda: perceptron_discrete("")),
    "CleanRL's ppo with relu": ("cleanrl/ppo", lambda: perceptron_discrete("actor.")),
}


def save(made: Made, folder: Path) -> Path:
    """Writes what a case has, as torch does."""
    torch.save(made.content, folder / "policy.pt", _use_new_zipfile_serialization=made.zipped)
    return folder / "policy.pt"


def checkpoint(case: str, folder: Path) -> Source:
    """A file of ``CASES``."""
    torch.manual_seed(1)
    form, make = CASES[case]
    made, options = make(), None
    if made.statistics is not None:
        np.savez(folder / "stats.npz", **made.statistics)
        options = replace(made.options, normalizer=folder / "stats.npz")
    states = 3.0 * torch.randn(1_000, D)
    return Source(
        save(made, folder), options or made.options, partial(_log_prob, made), states, made.perceptron, form=form
    )


def _log_prob(made: Made, states: Tensor, actions: Tensor) -> Tensor:
    with torch.no_grad():
        mean, std = made.forward(states)
    if isinstance(made.options.action_space, Discrete):
        return categorical(mean, actions)
    if made.scaled:  # the density of the environment's action
        return gaussian(mean, std.log(), (actions - MIDDLE) / HALF) - HALF.log().sum()
    return (before_tanh if made.squashed else gaussian)(mean, std.log(), actions)


CHECKPOINTS: dict[str, Entry] = {f"state dict, {case}": partial(checkpoint, case) for case in CASES}
