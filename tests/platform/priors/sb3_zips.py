"""Stable-Baselines3 archives of any age written by hand: no training, and no library of that age."""

from __future__ import annotations

import base64
import io
import itertools
import json
import pickle
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from tests.platform.priors.archives import saved, zipped
from torch import Tensor

POLICIES = {
    "ppo": ("stable_baselines3.common.policies", "ActorCriticPolicy"),
    "a2c": ("stable_baselines3.common.policies", "ActorCriticPolicy"),
    "sac": ("stable_baselines3.sac.policies", "SACPolicy"),
    "td3": ("stable_baselines3.td3.policies", "TD3Policy"),
}


def stub(module: str, name: str) -> type[Any]:
    """A class that ``dumps`` writes as one of another module."""
    return type(name, (), {"__module__": module, "is_stub": True})


def instance(module: str, name: str, **state: Any) -> Any:
    """An object of a class that is not installed, with these attributes."""
    made = stub(module, name)()
    made.__dict__.update(state)
    return made


class _Pickler(pickle._Pickler):  # type: ignore[name-defined,misc]
    """Writes stubs by their name, whether or not there is such a module."""

    def save_global(self, obj: Any, name: str | None = None) -> None:
        if getattr(obj, "is_stub", False):
            self.write(pickle.GLOBAL + f"{obj.__module__}\n{obj.__name__}\n".encode())
            self.memoize(obj)
        else:
            super().save_global(obj, name)

    def save_type(self, obj: Any) -> None:
        self.save_global(obj)

    dispatch: ClassVar = pickle._Pickler.dispatch | {type: save_type}  # type: ignore[attr-defined]


def dumps(value: Any, protocol: int = 4, numpy_1: bool = False) -> bytes:
    """A pickle; ``numpy_1`` gives numpy's functions the names of that time (protocol 2 or 3)."""
    stream = io.BytesIO()
    _Pickler(stream, protocol).dump(value)
    data = stream.getvalue()
    return data.replace(b"cnumpy._core.", b"cnumpy.core.") if numpy_1 else data


def box(low: Any, high: Any, age: str = "gymnasium", dtype: Any = np.float32) -> Any:
    """A Box as gym 0.12 and 0.17, gym 0.21 or gymnasium keep it."""
    low, high = np.asarray(low, dtype), np.asarray(high, dtype)
    bounds = {"low": low, "high": high, "bounded_below": -np.inf < low, "bounded_above": high < np.inf}
    if age == "gym 0.12":
        return instance("gym.spaces.box", "Box", shape=low.shape, dtype=np.dtype(dtype), low=low, high=high)
    if age == "gym 0.17":
        random = np.random.RandomState(0)
        return instance("gym.spaces.box", "Box", dtype=np.dtype(dtype), shape=low.shape, **bounds, np_random=random)
    state = {"dtype": np.dtype(dtype), "_shape": low.shape, **bounds, "_np_random": None}
    if age == "gym 0.21":
        return instance("gym.spaces.box", "Box", **state)
    return instance("gymnasium.spaces.box", "Box", **state, low_repr="x", high_repr="y")


def discrete(n: int, age: str = "gymnasium") -> Any:
    """A Discrete of gym (without a start) or gymnasium."""
    if age.startswith("gym "):
        return instance("gym.spaces.discrete", "Discrete", n=n, shape=(), dtype=np.dtype(np.int64), np_random=None)
    state = {"n": np.int64(n), "start": np.int64(0), "_shape": (), "dtype": np.dtype(np.int64), "_np_random": None}
    return instance("gymnasium.spaces.discrete", "Discrete", **state)


def layers(prefix: str, sizes: Sequence[int], generator: torch.Generator, step: int = 2) -> dict[str, Tensor]:
    """Weights of linear layers ``<prefix>0``, ``<prefix>2`` and so on."""
    state = {}
    for i, (a, b) in enumerate(itertools.pairwise(sizes)):
        state[f"{prefix}{step * i}.weight"] = torch.randn(b, a, generator=generator) / a**0.5
        state[f"{prefix}{step * i}.bias"] = 0.1 * torch.randn(b, generator=generator)
    return state


def linear(name: str, a: int, b: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Weights of one linear layer."""
    return {k.replace(f"{name}.0", name): v for k, v in layers(f"{name}.", (a, b), generator).items()}


def policy_state(kind: str, observed: int = 3, acted: int = 2, hidden: Sequence[int] = (4, 5)) -> dict[str, Tensor]:
    """A policy's state dictionary as SB3 names it, of random weights."""
    g, last = torch.Generator().manual_seed(0), hidden[-1]
    if kind == "sac":
        state = layers("actor.latent_pi.", (observed, *hidden), g)
        state |= linear("actor.mu", last, acted, g) | linear("actor.log_std", last, acted, g)
        return state | layers("critic.qf0.", (observed + acted, *hidden, 1), g)
    if kind == "td3":
        state = layers("actor.mu.", (observed, *hidden, acted), g)
        return state | layers("critic.qf0.", (observed + acted, 4, 1), g)
    state = {"log_std": torch.randn(acted, generator=g)} | layers("mlp_extractor.policy_net.", (observed, *hidden), g)
    state |= layers("mlp_extractor.value_net.", (observed, *hidden), g)
    return state | linear("action_net", last, acted, g) | linear("value_net", last, 1, g)


def model_zip(
    kind: str,
    state: Mapping[str, Tensor] | None = None,
    observation_space: Any = None,
    action_space: Any = None,
    policy_kwargs: Any = None,
    age: str = "gymnasium",
    version: str | None = "2.3.2",
    **data: Any,
) -> bytes:
    """An archive of ``kind`` (a key of ``POLICIES``) as ``model.save`` of that age writes it."""
    old = age != "gymnasium"
    state = policy_state(kind) if state is None else state
    pickles = {
        "policy_class": stub(*POLICIES[kind]),
        "observation_space": box([-1.0] * 3, [np.inf] * 3, age) if observation_space is None else observation_space,
        "action_space": box([-2.0, 0.0], [2.0, 1.0], age) if action_space is None else action_space,
        "policy_kwargs": policy_kwargs or {},
        "_last_obs": np.zeros((1, 3), np.float32),
    }
    settings: dict[str, Any] = {"num_timesteps": 100, "gamma": 0.99, "use_sde": False, "seed": None}
    if kind == "ppo":
        settings["n_epochs"], settings["clip_range"] = 10, 0.2
    if kind == "td3":
        settings["policy_delay"] = 2
    protocol = 2 if old else 4
    for key, value in pickles.items():
        encoded = base64.b64encode(dumps(value, protocol, numpy_1=old)).decode()
        settings[key] = {":type:": "<class>", ":serialized:": encoded}
    members = {"data": json.dumps(settings | data).encode()}
    variables = {"log_ent_coef": torch.tensor([-1.0])} if kind == "sac" else None
    members["tensors.pth" if old and version is None else "pytorch_variables.pth"] = saved(variables, not old)
    members["policy.pth"] = saved(OrderedDict(state), not old)
    members["policy.optimizer.pth"] = saved({"state": {}, "param_groups": []}, not old)
    if version is not None:
        members["_stable_baselines3_version"] = version.encode()
    return zipped(members)


def vecnormalize(size: int = 3, age: str = "gymnasium", **changes: Any) -> bytes:
    """A file of ``VecNormalize.save``."""
    library = "stable_baselines" if age == "gym 0.12" else "stable_baselines3"
    moments = instance(
        f"{library}.common.running_mean_std",
        "RunningMeanStd",
        mean=np.arange(size, dtype=float),
        var=np.full(size, 4.0),
        count=50.0,
    )
    state = {
        "observation_space": box([-1.0] * size, [1.0] * size, age),
        "num_envs": 1,
        "norm_obs": True,
        "norm_reward": True,
        "obs_rms": moments,
        "clip_obs": 10.0,
        "epsilon": 1e-8,
        "training": True,
    }
    made = instance(f"{library}.common.vec_env.vec_normalize", "VecNormalize", **(state | changes))
    return dumps(made, 2 if age != "gymnasium" else 4, numpy_1=age != "gymnasium")
