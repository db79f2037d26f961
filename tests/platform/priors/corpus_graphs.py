"""The corpus of networks that are read as graphs: ONNX, TorchScript and the user's own modules, in their variants."""

from __future__ import annotations

import dataclasses
import io
import logging
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import onnxruntime
import torch
from tests.platform.priors.corpus import Entry, Source, before_tanh, categorical, gaussian
from tests.platform.priors.graph_modules import ACTIONS, CONTINUOUS, DISCRETE, OBSERVATIONS, A, D, K, mlp
from torch import Tensor, distributions, nn
from torch.nn import functional

from rpg_platform.priors.imported import ImportOptions

WITH_STD = dataclasses.replace(CONTINUOUS, std=0.3)
SQUASHED = dataclasses.replace(CONTINUOUS, distribution="squashed_gaussian")
ONE_ACTION = gym.spaces.Box(-1.0, 1.0, (1,))


class ActorCritic(nn.Module):
    """Two perceptrons and a free log standard deviation; subclasses return what others export of them."""

    def __init__(self, outputs: int = A) -> None:
        super().__init__()
        self.actor = nn.Sequential(mlp([D, 16, 8], nn.ELU), nn.Linear(8, outputs))
        self.critic = nn.Sequential(mlp([D, 16], nn.ELU), nn.Linear(16, 1))
        self.log_std = nn.Parameter(torch.linspace(-0.8, -0.2, outputs))

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        return self.actor(obs), self.critic(obs)


class Actor(ActorCritic):
    def forward(self, obs: Tensor) -> Tensor:
        return self.actor(obs)


class WithValue(ActorCritic):
    """Mean, log standard deviation and value, as rl_games' exports have them."""

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean = self.actor(obs)
        return mean, mean * 0.0 + self.log_std, self.critic(obs)


class Std(ActorCritic):
    """Mean and standard deviation."""

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.actor(obs)
        return mean, self.log_std.exp().expand_as(mean)


class TwoHeads(ActorCritic):
    """SAC's, with a value beside them."""

    def __init__(self, outputs: int = A) -> None:
        super().__init__(2 * outputs)

    def forward(self, obs: Tensor) -> dict[str, Tensor]:
        mean, log_std = self.actor(obs).chunk(2, dim=-1)
        return {"q_value": self.critic(obs), "log_std": torch.clamp(log_std, -5.0, 0.5), "mean": mean}


class Named(NamedTuple):
    mu: Tensor
    value: Tensor


class NamedOutputs(ActorCritic):
    def forward(self, obs: Tensor) -> Named:
        return Named(self.actor(obs), self.critic(obs))


class Stateful(ActorCritic):
    """As Godot RL exports: a state goes in and out, on which nothing depends."""

    def forward(self, obs: Tensor, state_ins: Tensor) -> tuple[Tensor, Tensor]:
        return self.actor(obs), state_ins


class Talking(ActorCritic):
    """Left from debugging."""

    def forward(self, obs: Tensor) -> Tensor:
        print("observation", obs.shape, obs.mean(), float(obs.max()))  # noqa: T201 - what is tested
        return self.actor(obs)


class Normed(ActorCritic):
    """Norms of observations, a maximum over an axis, bounds by the minimum and maximum of two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("high", torch.linspace(0.5, 1.5, A))

    def forward(self, obs: Tensor) -> Tensor:
        unit = functional.normalize(obs, dim=1) + 0.1 * torch.norm(obs, dim=1, keepdim=True)
        action = self.actor(unit + obs.norm(p=1, dim=-1, keepdim=True) * 0.01 + torch.max(obs, dim=1, keepdim=True)[0])
        return torch.min(torch.max(action, -self.high), self.high)


class Scaled(ActorCritic):
    """A network of some size on a normalised observation, its outputs near 100: rounding counts."""

    def __init__(self) -> None:
        super().__init__()
        self.actor = nn.Sequential(mlp([D, 256, 128, 64], nn.ELU), nn.Linear(64, A))
        for parameter in self.actor.parameters():
            if parameter.dim() == 2:
                nn.init.orthogonal_(parameter, 3.0)
        self.register_buffer("mean", torch.linspace(-2.0, 2.0, D))
        self.register_buffer("var", torch.linspace(0.1, 3.0, D))

    def forward(self, obs: Tensor) -> Tensor:
        return self.actor((obs - self.mean) / torch.sqrt(self.var + 1e-5)) * 0.5


class Squashed(ActorCritic):
    """TD3's: a tanh scaled to the bounds."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.from_numpy((ACTIONS.high - ACTIONS.low) / 2.0))
        self.register_buffer("shift", torch.from_numpy((ACTIONS.high + ACTIONS.low) / 2.0))

    def forward(self, obs: Tensor) -> Tensor:
        return torch.tanh(self.actor(obs)) * self.scale + self.shift


class SquashedMean(Squashed):
    """The same with a log standard deviation of the samples before tanh."""

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        action = torch.tanh(self.actor(obs)) * self.scale + self.shift
        return action, self.log_std + torch.zeros_like(action)


# --- what the source says


def _own_std(outputs: Sequence[Tensor], actions: Tensor, std: float = 0.3) -> Tensor:
    return gaussian(outputs[0], torch.full((outputs[0].shape[1],), std).log(), actions)


def _squashed_std(outputs: Sequence[Tensor], actions: Tensor) -> Tensor:
    return _squashed_mean([outputs[0], torch.full((A,), 0.3).log()], actions)


def _squashed_mean(outputs: Sequence[Tensor], actions: Tensor) -> Tensor:
    low, high = torch.from_numpy(ACTIONS.low).double(), torch.from_numpy(ACTIONS.high).double()
    mean = torch.atanh(2.0 * (outputs[0].double() - low) / (high - low) - 1.0)
    return before_tanh(mean, outputs[1], actions)


def _gaussian(outputs: Sequence[Tensor], actions: Tensor) -> Tensor:
    return gaussian(outputs[0], outputs[1], actions)


def _gaussian_std(outputs: Sequence[Tensor], actions: Tensor) -> Tensor:
    return gaussian(outputs[0], outputs[1].log(), actions)


def _halves(outputs: Sequence[Tensor], actions: Tensor) -> Tensor:
    return gaussian(*outputs[0].chunk(2, dim=-1), actions)


def _heads(outputs: Sequence[Tensor], actions: Tensor) -> Tensor:
    return gaussian(outputs[2], outputs[1], actions)


def _squashed_heads(outputs: Sequence[Tensor], actions: Tensor) -> Tensor:
    return before_tanh(outputs[2], outputs[1], actions)


def _logits(outputs: Sequence[Tensor], actions: Tensor) -> Tensor:
    return categorical(outputs[0], actions)


def _probabilities(outputs: Sequence[Tensor], actions: Tensor) -> Tensor:
    return distributions.Categorical(probs=outputs[0].double()).log_prob(actions).float()


# --- the variants


@dataclasses.dataclass(frozen=True)
class Variant:
    """A module, how its outputs are named in ONNX, what the user says, and what its outputs mean to its framework."""

    make: Callable[[], nn.Module]
    names: Sequence[str] | None
    log_prob: Callable[[Sequence[Tensor], Tensor], Tensor]
    options: ImportOptions = CONTINUOUS
    perceptron: bool = True
    inputs: Sequence[str] = ("obs",)
    largest: float = 10.0

    def states(self) -> Tensor:
        """Observations of several magnitudes."""
        scale = torch.tensor([0.01, 0.1, 0.3, 1.0]).repeat(250)[:, None]
        return self.largest * scale * torch.randn(1_000, D, generator=torch.Generator().manual_seed(3))

    def module(self) -> nn.Module:
        torch.manual_seed(0)
        return self.make().eval()

    def example(self) -> tuple[Tensor, ...]:
        return (torch.randn(3, D), *(torch.zeros(1) for _ in self.inputs[1:]))


class Softmax(Actor):
    def forward(self, obs: Tensor) -> Tensor:
        exp = self.actor(obs).exp()
        return exp / exp.sum(dim=1, keepdim=True)


TOLD = dataclasses.replace(CONTINUOUS, action_space=ONE_ACTION, second_output="log_std")
VARIANTS: dict[str, Variant] = {
    "mu, log_std, value": Variant(WithValue, ["mu", "log_std", "value"], _gaussian),
    "mean, log_std, value without names": Variant(WithValue, None, _gaussian),
    "action, value": Variant(ActorCritic, ["action", "value"], _own_std, WITH_STD),
    "action, value without names": Variant(ActorCritic, None, _own_std, WITH_STD),
    "action alone": Variant(Actor, ["continuous_actions"], _own_std, WITH_STD),
    "action by tanh": Variant(Squashed, ["actions"], _squashed_std, WITH_STD),
    "action by tanh, log_std": Variant(SquashedMean, ["action", "log_std"], _squashed_mean, SQUASHED),
    "mean, std": Variant(Std, ["mean", "std"], _gaussian_std),
    "mean, std, told": Variant(Std, None, _gaussian_std, dataclasses.replace(CONTINUOUS, second_output="std")),
    "both in one": Variant(partial(Actor, 2 * A), ["output"], _halves),
    "heads by name": Variant(TwoHeads, ["q_value", "log_std", "mean"], _heads),
    "squashed heads by name": Variant(TwoHeads, ["q_value", "log_std", "mean"], _squashed_heads, SQUASHED),
    "one action, told": Variant(partial(ActorCritic, 1), None, _gaussian, TOLD, perceptron=False),
    "logits, value": Variant(partial(ActorCritic, K), ["logits", "value"], _logits, DISCRETE),
    "logits, value without names": Variant(partial(ActorCritic, K), None, _logits, DISCRETE),
    "probabilities": Variant(partial(Softmax, K), ["action_probs"], _probabilities, DISCRETE, perceptron=False),
    "a state that passes by": Variant(
        Stateful, ["output", "state_outs"], _own_std, WITH_STD, inputs=("obs", "state_ins")
    ),
    "a state that passes by, discrete": Variant(
        partial(Stateful, K), ["output", "state_outs"], _logits, DISCRETE, inputs=("obs", "state_ins")
    ),
    "norms and bounds": Variant(Normed, ["action"], _own_std, WITH_STD, perceptron=False),
    "outputs near 100": Variant(
        Scaled, ["action"], partial(_own_std, std=3.0), dataclasses.replace(CONTINUOUS, std=3.0), largest=1.0
    ),
}
UNNAMED = {name: variant for name, variant in VARIANTS.items() if name not in ("mean, std", "probabilities")}
SCRIPTED: dict[str, Variant] = {
    "named tuple": Variant(NamedOutputs, None, _own_std, WITH_STD),
    "print": Variant(Talking, None, _own_std, WITH_STD),
}


def onnx(variant: Variant, opset: int, folder: Path) -> Source:
    """By torch's exporter; run by onnxruntime."""
    buffer = io.BytesIO()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            variant.module(),
            variant.example(),
            buffer,
            opset_version=opset,
            input_names=list(variant.inputs),
            output_names=variant.names,
            dynamic_axes={"obs": {0: "batch"}},
            dynamo=False,
        )
    (folder / "policy.onnx").write_bytes(buffer.getvalue())
    return Source(
        folder / "policy.onnx",
        variant.options,
        runtime(buffer.getvalue(), variant),
        variant.states(),
        variant.perceptron,
    )


def runtime(model: bytes, variant: Variant) -> Callable[[Tensor, Tensor], Tensor]:
    def log_prob(obs: Tensor, actions: Tensor) -> Tensor:
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 4
        settings.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
        feeds: dict[str, Any] = {each.name: np.zeros(1, np.float32) for each in session.get_inputs()[1:]}
        outputs = session.run(None, {session.get_inputs()[0].name: obs.numpy(), **feeds})
        return variant.log_prob([torch.from_numpy(each) for each in outputs], actions)

    return log_prob


def torchscript(variant: Variant, how: str, folder: Path) -> Source:
    """Saved by torch, and run by it."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        if how == "traced":
            made: Any = torch.jit.trace(variant.module(), variant.example(), strict=False)
        else:
            made = torch.jit.script(variant.module())
            made = torch.jit.freeze(made) if how == "frozen" else made
        torch.jit.save(made, str(folder / "policy.pt"))
        loaded = torch.jit.load(str(folder / "policy.pt"))
    log_prob = partial(_module_log_prob, loaded, variant)
    return Source(folder / "policy.pt", variant.options, log_prob, variant.states(), variant.perceptron)


def _module_log_prob(module: Any, variant: Variant, obs: Tensor, actions: Tensor) -> Tensor:
    with torch.no_grad():
        result = module(obs, *variant.example()[1:])
    outputs = list(result.values()) if isinstance(result, dict) else result
    return variant.log_prob([outputs] if isinstance(outputs, Tensor) else list(outputs), actions)


OWN = {name: variant.module() for name, variant in {**VARIANTS, **SCRIPTED}.items() if len(variant.inputs) == 1}
own_heads, own_named, own_large, own_tanh = (
    OWN[name] for name in ("heads by name", "named tuple", "outputs near 100", "action by tanh, log_std")
)


def function(attribute: str, variant: Variant, folder: Path) -> Source:
    """The user's own module, by its name."""
    log_prob = partial(_module_log_prob, globals()[attribute], variant)
    return Source(f"{__name__}:{attribute}", variant.options, log_prob, variant.states(), variant.perceptron)


def sb3_documentation(folder: Path) -> Source:
    """As Stable-Baselines3's documentation exports a policy: actions, values and log-probabilities without names."""
    from stable_baselines3 import PPO

    class Onnxable(nn.Module):
        def __init__(self, policy: Any) -> None:
            super().__init__()
            self.policy = policy

        def forward(self, observation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return self.policy(observation, deterministic=True)

    class Env(gym.Env[Any, Any]):
        observation_space, action_space = OBSERVATIONS, gym.spaces.Box(-1.0, 1.0, (A,))

    torch.manual_seed(0)
    policy = PPO("MlpPolicy", Env(), device="cpu").policy
    options = dataclasses.replace(WITH_STD, action_space=Env.action_space)
    return onnx(Variant(partial(Onnxable, policy), None, _own_std, options), 17, folder)


GRAPHS: dict[str, Entry] = {
    **{f"onnx, {name}": partial(onnx, variant, 17) for name, variant in VARIANTS.items()},
    "onnx, mu, log_std, value, old opset": partial(onnx, VARIANTS["mu, log_std, value"], 11),
    "onnx, Stable-Baselines3's documentation": sb3_documentation,
    **{f"torchscript, {name}": partial(torchscript, variant, "scripted") for name, variant in UNNAMED.items()},
    **{f"torchscript, {name}": partial(torchscript, variant, "scripted") for name, variant in SCRIPTED.items()},
    **{
        f"torchscript, {name}, {how}": partial(torchscript, VARIANTS[name], how)
        for how in ("traced", "frozen")
        for name in ("mu, log_std, value", "heads by name", "a state that passes by", "norms and bounds")
    },
    "function, heads by name": partial(function, "own_heads", VARIANTS["heads by name"]),
    "function, named tuple": partial(function, "own_named", SCRIPTED["named tuple"]),
    "function, action by tanh, log_std": partial(function, "own_tanh", VARIANTS["action by tanh, log_std"]),
    "function, outputs near 100": partial(function, "own_large", VARIANTS["outputs near 100"]),
}
