"""Small valid sources of the other importers, for ``fuzz_targets``: written in a moment, without their libraries."""

from __future__ import annotations

import base64
import io
import json
import tempfile
import zlib
from pathlib import Path
from typing import Any

import gymnasium as gym
import msgpack
import numpy as np
import torch
from numpy.typing import NDArray
from tests.platform.priors.archives import saved, smuggled
from tests.platform.priors.payloads import Payload
from tests.platform.priors.sb3_zips import box, dumps, instance, layers, linear, stub

from rpg_algorithms.policies.bundle import PriorCard, save_bundle
from rpg_algorithms.policies.network import PolicyNetwork, spec_for_spaces
from rpg_platform.priors.imported import ImportOptions

Seed = dict[str, bytes]
D, A = 3, 2
OBSERVATIONS = gym.spaces.Box(-1.0, 1.0, (D,))
ACTIONS = gym.spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 1.0], np.float32))
NAMED = ImportOptions(observation_space=OBSERVATIONS, action_space=ACTIONS)


def bundles(marker: Path) -> list[Seed]:
    seeds = []
    for family in ("gaussian", "squashed_gaussian"):
        spec = spec_for_spaces(OBSERVATIONS, ACTIONS, family, hidden=(4,), state_dependent_std=family != "gaussian")  # type: ignore[arg-type]
        with tempfile.TemporaryDirectory() as folder:
            card = PriorCard.describe("x", "Pendulum-v1", OBSERVATIONS, ACTIONS, spec)
            save_bundle(folder, PolicyNetwork(spec), card)
            seeds.append({file.name: file.read_bytes() for file in Path(folder).iterdir()})
    return seeds


def state_dict(marker: Path) -> list[Seed]:
    g = torch.Generator().manual_seed(0)
    ppo = layers("actor_mean.", (D, 4, A), g) | {"actor_logstd": torch.zeros(1, A)} | layers("critic.", (D, 4, 1), g)
    sac = linear("fc1", D, 4, g) | linear("fc2", 4, 4, g) | linear("fc_mean", 4, A, g) | linear("fc_logstd", 4, A, g)
    low, high = torch.tensor(ACTIONS.low), torch.tensor(ACTIONS.high)
    sac |= {"action_scale": (high - low) / 2, "action_bias": (high + low) / 2}
    rl_games = layers("a2c_network.actor_mlp.", (D, 4), g) | linear("a2c_network.mu", 4, A, g)
    rl_games |= {"a2c_network.sigma": torch.zeros(A), "running_mean_std.running_mean": torch.zeros(D)}
    rl_games |= {"running_mean_std.running_var": torch.ones(D), "value_mean_std.running_mean": torch.zeros(1)}
    checkpoint = {"model": rl_games, "epoch": 3, "optimizer": {"state": {}}}
    files = [saved(ppo), saved(sac, new=False), saved(checkpoint), saved(ppo | {"payload": Payload(marker)})]
    return [{"agent.pt": file} for file in files]


def filtered(array: NDArray[np.float64]) -> str:
    """An array as RLlib's filter keeps it."""
    stream = io.BytesIO()
    np.save(stream, array)
    return base64.b64encode(zlib.compress(stream.getvalue())).decode()


def packed_array(array: NDArray[Any]) -> dict[bytes, Any]:
    """An array as msgpack_numpy writes it, which RLlib packs with."""
    shape = list(array.shape)
    return {b"nd": True, b"type": array.dtype.str, b"kind": b"", b"shape": shape, b"data": array.tobytes()}


def rllib_checkpoints(marker: Path) -> list[Seed]:
    """PPO with a filter, its states once as pickles and once as msgpack; SAC."""
    module = "learner_group/learner/rl_module/default_policy"
    spaces = box([-1.0] * D, [1.0] * D), box(ACTIONS.low, ACTIONS.high)
    statistics = {
        "num_pushes": 50,
        "mean_array": filtered(np.zeros(D)),
        "sum_sq_diff_array": filtered(np.full(D, 50.0)),
    }
    settings = {"de_mean_to_zero": True, "de_std_to_one": True, "clip_by_value": 10.0, "running_stats": [statistics]}
    g = torch.Generator().manual_seed(0)
    ppo = layers("encoder.actor_encoder.net.mlp.", (D, 4), g) | layers("pi.net.mlp.", (4, 2 * A), g)
    sac = layers("pi_encoder.net.mlp.", (D, 4), g) | layers("pi.net.mlp.", (4, 2 * A), g)
    seeds = []
    for kind, state, packed in (("ppo", ppo, False), ("ppo", ppo, True), ("sac", sac, False)):
        arrays = {name: tensor.numpy() for name, tensor in state.items()}

        def constructed(target: Any, *args: Any, **kwargs: Any) -> bytes:
            return dumps({"class": target, "ctor_args_and_kwargs": (args, kwargs), "payload": Payload(marker)})

        def connector(name: str, folder: str = "common") -> Any:
            return stub(f"ray.rllib.connectors.{folder}.x", name)

        name = kind.upper()
        config = instance(f"ray.rllib.algorithms.{kind}.{kind}", f"{name}Config", env="Pendulum-v1", env_config={})
        observed = [(connector("AddObservationsFromEpisodesToBatch"), (), {})]
        if kind == "ppo":
            observed.append((connector("MeanStdFilter", "env_to_module"), (), {}))
        acted = [(connector("NormalizeAndClipActions"), (), {"normalize_actions": True, "clip_actions": False})]
        rl_module = stub(f"ray.rllib.algorithms.{kind}.torch.x", f"Default{name}TorchRLModule")
        versions = {"type": "Algorithm", "checkpoint_version": "2.1", "ray_version": "2.60.0"}
        files = {
            "rllib_checkpoint.json": json.dumps(versions).encode(),
            "class_and_ctor_args.pkl": constructed(stub(f"ray.rllib.algorithms.{kind}.{kind}", name), config),
            "algorithm_state.pkl": dumps({"metrics_logger": {"stats": {}}}),
            f"{module}/class_and_ctor_args.pkl": constructed(rl_module, model_config={"fcnet_activation": "relu"}),
            "env_runner/env_to_module_connector/class_and_ctor_args.pkl": constructed(
                connector("EnvToModulePipeline"), *spaces, connectors=observed
            ),
            "env_runner/module_to_env_connector/class_and_ctor_args.pkl": constructed(
                connector("ModuleToEnvPipeline"), *spaces, connectors=acted
            ),
        }
        filter_state = "env_runner/env_to_module_connector/MeanStdFilter/state"
        if packed:
            files[f"{module}/module_state.msgpack"] = msgpack.packb(arrays, default=packed_array)
            files[f"{filter_state}.msgpack"] = msgpack.packb({None: settings})
        else:
            files[f"{module}/module_state.pkl"] = smuggled(dumps(arrays), marker)
            files[f"{filter_state}.pkl"] = dumps({None: settings})
        seeds.append(files)
    return seeds


def mlflow_folders(marker: Path) -> list[Seed]:
    """A model folder that holds a bundle, as ``rpg export`` writes it."""
    flavours = "flavors:\n  python_function:\n    loader_module: mlflow.pyfunc.model\nmlflow_version: 3.17.2\n"
    return [{"MLmodel": flavours.encode()} | {f"bundle/{name}": data for name, data in bundles(marker)[0].items()}]
