"""SBX's archives, laid out as SBX 0.28 saves them (JAX is no part of the tests), and what their actors compute."""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tests.platform.priors.archives import parts_of, zipped
from tests.platform.priors.sb3_zips import dumps, instance, model_zip, stub

D, A, HIDDEN = 3, 2, (5, 4)
ACTORS = {"ppo": "sbx.ppo.policies", "crossq": "sbx.crossq.policies", "td3": None}
NAMES = {"ppo": "PPOPolicy", "sac": "SACPolicy", "tqc": "TQCPolicy", "crossq": "CrossQPolicy", "td3": "TD3Policy"}
KINDS = {"ppo": "ppo", "td3": "td3"}
Weights = dict[str, Any]


class JaxArray:
    """Pickles as JAX's arrays do: numpy's parts under a function of JAX's."""

    def __init__(self, array: Any, module: str = "jax._src.array", name: str = "_reconstruct_array") -> None:
        self.array, self.function = np.asarray(array, np.float32), stub(module, name)

    def __reduce__(self) -> Any:
        function, args, state = self.array.__reduce__()
        return self.function, (function, args, state, {"weak_type": False})


def dense(rng: np.random.Generator, inputs: int, outputs: int) -> Weights:
    kernel = rng.standard_normal((inputs, outputs)) / inputs**0.5
    return {"kernel": kernel.astype(np.float32), "bias": 0.1 * rng.standard_normal(outputs).astype(np.float32)}


def weights_of(kind: str) -> tuple[Weights, Weights]:
    """Parameters and batch statistics of an actor, as numpy arrays."""
    rng = np.random.default_rng(0)
    sizes = (D, *HIDDEN)
    params: Weights = {f"Dense_{i}": dense(rng, a, b) for i, (a, b) in enumerate(itertools.pairwise(sizes))}
    params["Dense_2"] = dense(rng, HIDDEN[-1], A)
    statistics: Weights = {}
    if kind in ("sac", "tqc", "crossq"):
        params["Dense_3"] = dense(rng, HIDDEN[-1], A)
    if kind == "ppo":
        params["log_std"] = rng.standard_normal(A).astype(np.float32)
    if kind == "crossq":
        for i, n in enumerate(sizes):
            params[f"BatchRenorm_{i}"] = {k: rng.random(n).astype(np.float32) for k in ("scale", "bias")}
            statistics[f"BatchRenorm_{i}"] = {"mean": rng.random(n).astype(np.float32)}
            statistics[f"BatchRenorm_{i}"]["var"] = (0.5 + rng.random(n)).astype(np.float32)
            statistics[f"BatchRenorm_{i}"]["steps"] = np.float32(3.0)
    return params, statistics


def in_jax(tree: Any) -> Any:
    return {k: in_jax(v) for k, v in tree.items()} if isinstance(tree, Mapping) else JaxArray(tree)


def archive(
    kind: str, params: Any = None, statistics: Any = None, data: Mapping[str, Any] | None = None, **attributes: Any
) -> bytes:
    """An archive of SBX: no policy.pth, and the whole policy in ``data``."""
    own, measured = weights_of(kind)
    params = in_jax(own) if params is None else params
    state: dict[str, Any] = {"step": 3, "params": params if kind == "crossq" else {"params": params}}
    if kind == "crossq":
        state["batch_stats"] = in_jax(measured) if statistics is None else statistics
    policy: dict[str, Any] = {
        "actor_state": instance("flax.training.train_state", "TrainState", **state),
        "activation_fn": instance("jax._src.custom_derivatives", "custom_jvp", __name__="relu"),
    }
    if (module := ACTORS.get(kind, "sbx.common.policies")) is not None:
        policy["actor_class"] = stub(module, "SquashedGaussianActor" if kind in ("sac", "tqc") else "Actor")
    if kind == "ppo":
        policy["activation_fn"] = instance("jaxlib._jax", "PjitFunction", function_name="tanh")
    module, name = f"sbx.{kind}.policies", NAMES[kind]
    pickled = {
        "policy_class": stub(module, name),
        "policy": instance(module, name, **policy | attributes),
        "ent_coef_state": instance("flax.training.train_state", "TrainState", params={"log_ent_coef": JaxArray(-1.0)}),
        **(data or {}),
    }
    parts = parts_of(model_zip(KINDS.get(kind, "sac")))
    settings = json.loads(parts["data"])
    for key, value in pickled.items():
        settings[key] = {":type:": "x", ":serialized:": base64.b64encode(dumps(value)).decode()}
    return zipped({**{k: v for k, v in parts.items() if k != "policy.pth"}, "data": json.dumps(settings).encode()})


def expected(kind: str, x: NDArray[Any]) -> NDArray[Any]:
    """Mean and log standard deviation (of a TD3: the mean before tanh), as the actors of SBX compute them."""
    params, statistics = weights_of(kind)

    def normed(i: int, x: NDArray[Any]) -> NDArray[Any]:
        if f"BatchRenorm_{i}" not in params:
            return x
        learned, measured = params[f"BatchRenorm_{i}"], statistics[f"BatchRenorm_{i}"]
        return learned["scale"] * (x - measured["mean"]) / np.sqrt(measured["var"] + 1e-3) + learned["bias"]

    def layer(i: int, x: NDArray[Any]) -> NDArray[Any]:
        return x @ params[f"Dense_{i}"]["kernel"] + params[f"Dense_{i}"]["bias"]

    x = normed(0, x)
    for i in range(2):
        x = layer(i, x)
        x = normed(i + 1, np.tanh(x) if kind == "ppo" else np.maximum(x, 0.0))
    log_std = layer(3, x) if "Dense_3" in params else np.broadcast_to(params.get("log_std", np.log(0.5)), (len(x), A))
    return np.concatenate((layer(2, x), np.clip(log_std, -20.0, 2.0)), axis=-1)
