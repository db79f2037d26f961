"""Reads checkpoints of RLlib's own PPO and SAC (new API stack) with their observation filter and action mapping.

What RLlib computes, and how it is represented here:

- Observations go through the connectors of ``env_to_module``. ``MeanStdFilter`` gives
  ``clip((x - mean) / (std + 1e-6))``, std with n - 1 in its denominator; that is our normaliser with
  ``var = (std + 1e-6)^2`` and ``epsilon = 0``. ``FlattenObservations`` is our flattening and one-hot encoding.
- PPO's Gaussian sample u is not clipped but *unsquashed* for the environment (``normalize_actions``, the default):
  ``low + (u + 1) (high - low) / 2``, then clipped. That map goes into the last layer and the log standard deviation,
  so the imported density is that of the environment's actions: ``log pi(action) = log pi_RLlib(u) - sum(log scale)``.
- SAC's sample is tanh(u), its density that in (-1, 1)^A with the log standard deviation clamped to [-5, 2]: ours.

Sources: ``ray.rllib`` 2.60, ``utils/filter.py``, ``utils/spaces/space_utils.py`` (``unsquash_action``),
``core/distribution/torch/torch_distribution.py``, ``core/models/torch/{encoder,heads,primitives}.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from rpg_algorithms.policies.discount import recorded_gamma
from rpg_platform.priors.files.inert import Global
from rpg_platform.priors.files.rllib_checkpoint import Checkpoint, Pipeline, decode_array, read_constructed, read_state
from rpg_platform.priors.imported import Imported, ImportOptions, PriorImportError
from rpg_platform.priors.network.assemble import FreeLogStd, Moments, NetworkLogStd, Policy, Step, assemble
from rpg_platform.priors.network.layers import as_array, known_activation, stack, with_activations

_PPO = ("DefaultPPOTorchRLModule", "PPOTorchRLModule")
_SAC = ("DefaultSACTorchRLModule", "SACTorchRLModule")
_CATALOGS = ("PPOCatalog", "SACCatalog")
# ray.rllib.core.rl_module.default_model_config: what a model_config that does not say it means.
_DEFAULTS: Mapping[str, Any] = {
    "fcnet_activation": "tanh",
    "head_fcnet_activation": "relu",
    "free_log_std": False,
    "log_std_clip_param": 20.0,
    "use_lstm": False,
    "use_attention": False,
}
_SAC_LOG_STD = NetworkLogStd(-5.0, 2.0)  # ray.rllib.utils.numpy.MIN_LOG_NN_OUTPUT and MAX_LOG_NN_OUTPUT
_FILTER_EPSILON = 1e-6  # ray.rllib.utils.numpy.SMALL_NUMBER
_NORM_EPSILON = 0.001  # of the layer normalisations in RLlib's TorchMLP

_PASSING = {  # connectors that move observations and actions without changing them
    "AddObservationsFromEpisodesToBatch",
    "AddTimeDimToBatchAndZeroPad",
    "AddStatesFromEpisodesToBatch",
    "BatchIndividualItems",
    "NumpyToTensor",
    "GetActions",
    "TensorToNumpy",
    "UnBatchToIndividualItems",
    "RemoveSingleTsTimeRankFromBatch",
    "ListifyDataForVectorEnv",
}


def read(path: Path, options: ImportOptions) -> Imported:
    """Reads the policy of an Algorithm's checkpoint: its folder, or a file at the top of the folder.

    Raises:
        PriorImportError: not such a folder, or a module, connector or space that is not read; names it.
    """
    checkpoint = Checkpoint(path.parent if path.is_file() else path)
    module = checkpoint.module(options.module)
    made, where = read_constructed(module), str(module)
    kind = made.class_name.rpartition(".")[2]
    if not made.class_name.startswith("ray.rllib.") or kind not in (*_PPO, *_SAC):
        raise PriorImportError(
            f"{where}: its RLModule is {made.class_name}; only RLlib's own PPO and SAC modules are read. Export any "
            "other as TorchScript or ONNX that returns (mean, log_std) or logits"
        )
    config = _model_config(made.kwargs, where)
    state = read_state(module, "module_state")
    if not isinstance(state, dict):
        raise PriorImportError(f"{where}: its module_state is {type(state).__name__}, expected named arrays")
    observed = checkpoint.env_to_module
    space, action_space = observed.observation_space, observed.action_space
    moments = _observation_filter(observed)
    notes: list[str] = []
    policy = _policy(checkpoint, kind, state, config, moments, notes)
    alpha = None
    if kind in _SAC:
        alpha = checkpoint.metric(f"learners--{module.name}--alpha_value")
    env = checkpoint.config.get("env")
    return Imported(
        network=assemble(policy),
        format=f"rllib/{'sac' if kind in _SAC else 'ppo'}",
        observation_space=space,
        action_space=action_space,
        env_id=env if isinstance(env, str) and env in gym.registry else None,
        env_kwargs=_plain(checkpoint.config.get("env_config")),
        alpha=alpha if alpha is not None and alpha > 0 else None,
        facts=_facts(checkpoint, module.name, moments),
        notes=tuple(notes),
    )


def _facts(checkpoint: Checkpoint, module: str, moments: Moments | None) -> dict[str, Any]:
    env = checkpoint.config.get("env")
    facts = {
        "ray": checkpoint.ray_version,
        "algorithm": checkpoint.algorithm.rpartition(".")[2],
        "module": module,
        "env": env[:200] if isinstance(env, str) else None,
        "env_steps": checkpoint.metric("env_runners--num_env_steps_sampled_lifetime"),
        "gamma": recorded_gamma({"training": checkpoint.config}),
        "observation_filter": None if moments is None else f"MeanStdFilter of {moments.count:g} observations",
    }
    return {key: value for key, value in facts.items() if value is not None}


def _plain(env_config: Any) -> dict[str, Any]:
    """Keeps arguments that are numbers or truth values; text may name files or code, so the user must give it."""
    if not isinstance(env_config, dict):
        return {}
    return {k: v for k, v in env_config.items() if isinstance(k, str) and isinstance(v, bool | int | float)}


def _model_config(kwargs: Mapping[str, Any], where: str) -> dict[str, Any]:
    given = kwargs.get("model_config")
    if not isinstance(given, dict):
        raise PriorImportError(f"{where}: stores no model_config; checkpoints of Ray 2.40 and later do")
    catalog = kwargs.get("catalog_class")
    if isinstance(catalog, Global) and not (catalog.module.startswith("ray.rllib.") and catalog.name in _CATALOGS):
        raise PriorImportError(f"{where}: its model is built by {catalog.qualified_name}; only RLlib's own are read")
    config = {**_DEFAULTS, **given}
    for key, what in (("use_lstm", "an LSTM"), ("use_attention", "attention")):
        if config[key]:
            raise PriorImportError(f"{where}: its model has {what} ({key}=True); only perceptrons are read")
    return config


# ---- the network --------------------------------------------------------------------------------
def _policy(
    checkpoint: Checkpoint,
    kind: str,
    state: Mapping[str, Any],
    config: Mapping[str, Any],
    moments: Moments | None,
    notes: list[str],
) -> Policy:
    observed, where = checkpoint.env_to_module, str(checkpoint.folder)
    space, action_space = observed.observation_space, observed.action_space
    steps = _steps(state, kind, config, where)
    mapping = _action_mapping(checkpoint.module_to_env)
    if isinstance(action_space, gym.spaces.Discrete):
        if action_space.start != 0:
            raise PriorImportError(f"{where}: action space {action_space}: RLlib acts from 0, its start is not applied")
        return Policy(where, steps, "categorical", space, action_space, moments=moments)
    if not isinstance(action_space, gym.spaces.Box) or np.dtype(action_space.dtype).kind != "f":
        raise PriorImportError(f"{where}: action space {action_space}: expected a Box of floats or Discrete")
    bounded = action_space.is_bounded()
    if not (action_space.high > action_space.low).all():
        raise PriorImportError(f"{where}: action space {action_space} leaves some dimension no choice")
    if kind in _SAC:
        _check_squashed(action_space, bounded and mapping["normalize_actions"], where)
        notes.append(
            "RLlib's SAC acts by the mean before tanh when it does not explore; this prior acts by tanh of the mean"
        )
        return Policy(where, steps, "squashed_gaussian", space, action_space, _SAC_LOG_STD, moments)
    scale = shift = None
    if mapping["normalize_actions"] and bounded:
        low, high = action_space.low.astype(np.float64), action_space.high.astype(np.float64)
        if not (np.all(low == -1.0) and np.all(high == 1.0)):
            scale, shift = 0.5 * (high - low), 0.5 * (high + low)
    elif not mapping["clip_actions"]:
        notes.append("the source sent actions beyond the bounds to its environment as they were; this prior clips them")
    log_std = _log_std(state, config, where)
    return Policy(where, steps, "gaussian", space, action_space, log_std, moments, scale, shift)


def _steps(state: Mapping[Any, Any], kind: str, config: Mapping[str, Any], where: str) -> list[Step]:
    encoder = "pi_encoder.net."
    if kind in _PPO:
        shared = any(isinstance(name, str) and name.startswith("encoder.encoder.") for name in state)
        encoder = "encoder.encoder.net." if shared else "encoder.actor_encoder.net."
    if any(isinstance(name, str) and name.startswith(encoder) and "cnn" in name for name in state):
        raise PriorImportError(f"{where}: its encoder is convolutional; only perceptrons are read")
    activations = [_activation(config[key], where) for key in ("fcnet_activation", "head_fcnet_activation")]
    encoded = stack(state, f"{encoder}mlp.", where, _NORM_EPSILON)
    head = stack(state, "pi.net.mlp.", where, _NORM_EPSILON)
    return [
        *with_activations(encoded, activations[0], after_last=True),
        *with_activations(head, activations[1], after_last=False),
    ]


def _activation(value: Any, where: str) -> str | None:
    if isinstance(value, Global):
        value = value.name if value.module.startswith("torch.nn.") else value.qualified_name
    return known_activation(value, where)


def _log_std(state: Mapping[str, Any], config: Mapping[str, Any], where: str) -> FreeLogStd | NetworkLogStd:
    clip = config["log_std_clip_param"]
    if not isinstance(clip, int | float) or not clip > 0:
        raise PriorImportError(f"{where}: log_std_clip_param={clip!r}: expected a positive number")
    if not config["free_log_std"]:
        return NetworkLogStd(-float(clip), float(clip))
    if "pi.log_std" not in state:
        raise PriorImportError(f"{where}: free_log_std=True, but its state holds no pi.log_std")
    return FreeLogStd(np.clip(as_array(state["pi.log_std"], "pi.log_std", where), -clip, clip))


def _check_squashed(space: gym.spaces.Box, unsquashed: bool, where: str) -> None:
    if not unsquashed and not (np.all(space.low == -1.0) and np.all(space.high == 1.0)):
        raise PriorImportError(
            f"{where}: with normalize_actions=False its SAC sends tanh(u), in [-1, 1], to an environment with actions "
            f"in {space}; a squashed Gaussian here always spans the environment's bounds"
        )


# ---- the connectors -----------------------------------------------------------------------------
def _action_mapping(pipeline: Pipeline) -> dict[str, bool]:
    """Reads ``normalize_actions`` and ``clip_actions``. Raises PriorImportError for connectors that change actions."""
    mapping = {"normalize_actions": False, "clip_actions": False}
    for name, kwargs in pipeline.connectors:
        if name == "NormalizeAndClipActions":
            mapping = {key: bool(kwargs.get(key)) for key in mapping}
        elif name not in _PASSING:
            raise _unknown_connector(pipeline, name, "actions")
    return mapping


def _observation_filter(pipeline: Pipeline) -> Moments | None:
    """Reads the normaliser of a ``MeanStdFilter``. Raises PriorImportError for others that change observations."""
    found = None
    for name, kwargs in pipeline.connectors:
        if name == "MeanStdFilter" and found is None and not kwargs.get("multi_agent"):
            found = _moments(pipeline)
        elif name == "FlattenObservations":
            if kwargs.get("keys_to_remove") or kwargs.get("multi_agent") or kwargs.get("agent_ids"):
                raise PriorImportError(f"{pipeline.folder}: its FlattenObservations removes keys or agents")
        elif name not in _PASSING:
            raise _unknown_connector(pipeline, name, "observations")
    return found


def _unknown_connector(pipeline: Pipeline, name: str, what: str) -> PriorImportError:
    several = " (several agents)" if "ModuleMapping" in name or "AgentUnmapping" in name else ""
    return PriorImportError(
        f"{pipeline.folder}: connector {name[:100]}{several} stands between environment and network; of those that "
        f"change {what} only MeanStdFilter, FlattenObservations and NormalizeAndClipActions are read, each once"
    )


def _moments(pipeline: Pipeline) -> Moments | None:
    space, where = pipeline.observation_space, str(pipeline.folder / "MeanStdFilter")
    if not isinstance(space, gym.spaces.Box):
        return None  # RLlib leaves discrete observations as they are
    if np.dtype(space.dtype).kind != "f":
        raise PriorImportError(f"{where}: RLlib rounds filtered {space.dtype} observations; only floats are read")
    match read_state(pipeline.folder / "MeanStdFilter", "state"):
        case {None: {"running_stats": [dict() as stats]} as settings}:
            pass
        case _:
            raise PriorImportError(f"{where}: its state is not that of a filter for one agent")
    pushes = stats.get("num_pushes")
    if not isinstance(pushes, int | np.integer) or pushes < 2:
        raise PriorImportError(
            f"{where}: the filter has seen {pushes} observations, so what the policy was trained on is not in this "
            "checkpoint (RLlib does not collect it from remote env runners where FlattenObservations stands before it)"
        )
    mean = decode_array(stats.get("mean_array"), where).reshape(-1)
    squares = decode_array(stats.get("sum_sq_diff_array"), where).reshape(-1)
    if not (np.isfinite(mean).all() and np.isfinite(squares).all()) or mean.shape != squares.shape:
        raise PriorImportError(f"{where}: its statistics are not finite, or of different sizes")
    std = np.sqrt(np.maximum(0.0, (squares / (float(pushes) - 1.0)).astype(np.float32))) + np.float32(_FILTER_EPSILON)
    var = np.square(std.astype(np.float64))
    if not settings.get("de_mean_to_zero", True):
        mean = np.zeros_like(mean)
    if not settings.get("de_std_to_one", True):
        var = np.ones_like(var)
    clip = settings.get("clip_by_value")
    if clip is not None and (not isinstance(clip, int | float) or not 0 <= clip < np.inf):
        raise PriorImportError(f"{where}: clip_by_value={clip!r}: expected a number or None")
    return Moments(mean, var, float(pushes), 0.0, float(clip) if clip else None)
