"""What stands in an RLlib checkpoint of the new API stack, read without unpickling any of it.

    checkpoint/
      rllib_checkpoint.json            versions
      class_and_ctor_args.pkl          the Algorithm's class and configuration
      algorithm_state.pkl              metrics
      learner_group/learner/rl_module/<module>/
        class_and_ctor_args.pkl        the RLModule's class, spaces and model_config
        module_state.pkl               its weights
      env_runner/env_to_module_connector/  what is done to observations, with the environment's own spaces
      env_runner/module_to_env_connector/  what is done to actions

A state is a pickle or, on request of whoever saved it, msgpack (``*.msgpack``).
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from rpg_algorithms.addons import Array
from rpg_platform.priors.files import inert
from rpg_platform.priors.files.archive import read_file, read_npy
from rpg_platform.priors.files.inert import Global, Instance
from rpg_platform.priors.files.inert_readers import make_array
from rpg_platform.priors.files.spaces import read_space
from rpg_platform.priors.imported import PriorImportError

CHECKPOINT_FILE = "rllib_checkpoint.json"
ARGUMENTS_FILE = "class_and_ctor_args.pkl"
_MODULES = Path("learner_group", "learner", "rl_module")
_MAX_JSON_BYTES, _MAX_STATE_BYTES, _MAX_FILTER_BYTES = 1_000_000, 1 << 30, 64_000_000
_MAX_MODULES = 1_000


@dataclass(frozen=True)
class Constructed:
    """A class and the arguments that it was constructed with, as RLlib stores them.

    Attributes:
        file: where it stands.
        class_name: qualified name of the class; never imported.
        args, kwargs: what its constructor was given.
    """

    file: Path
    class_name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


@dataclass(frozen=True)
class Pipeline:
    """A connector pipeline.

    Attributes:
        folder: where it stands.
        observation_space, action_space: the environment's.
        connectors: (class name without its module, keyword arguments) of each piece, in order.
    """

    folder: Path
    observation_space: gym.Space[Any]
    action_space: gym.Space[Any]
    connectors: tuple[tuple[str, Mapping[str, Any]], ...]


class Checkpoint:
    """An Algorithm's checkpoint folder.

    Attributes:
        folder: the folder.
        ray_version: of the Ray that wrote it.
        algorithm: qualified class name of the Algorithm.
        config: attributes of its AlgorithmConfig.

    Raises:
        PriorImportError: not a checkpoint, or one of the old API stack.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        metadata = read_json(folder / CHECKPOINT_FILE)
        self.ray_version = str(metadata.get("ray_version", "unknown"))[:40]
        version = str(metadata.get("checkpoint_version", "unknown"))[:40]
        if not re.fullmatch(r"2\.\d+", version):
            raise PriorImportError(
                f"{folder}: an RLlib checkpoint of version {version} (Ray {self.ray_version}); only those of the new "
                "API stack (checkpoint_version 2.x, Ray 2.40 or later) are read"
            )
        made = read_constructed(folder)
        self.algorithm = made.class_name
        config = made.args[0] if made.args else made.kwargs.get("config")
        if isinstance(config, Instance):
            config = config.attributes
        if not isinstance(config, dict):
            raise PriorImportError(f"{made.file}: holds no algorithm configuration")
        self.config: Mapping[str, Any] = config

    def modules(self) -> list[str]:
        """The ids of the RLModules, sorted."""
        folder = self.folder / _MODULES
        if not folder.is_dir():
            raise PriorImportError(
                f"{self.folder}: holds no {_MODULES}; expected a whole Algorithm's checkpoint "
                "(Algorithm.save_to_path, or a checkpoint that Tune made)"
            )
        return sorted(
            each.name for _, each in zip(range(_MAX_MODULES), folder.iterdir(), strict=False) if each.is_dir()
        )

    def module(self, wanted: str | None) -> Path:
        """The folder of the RLModule ``wanted``, or of the only one.

        Raises:
            PriorImportError: there is none of that name, or no name was given and there are several.
        """
        names = self.modules()
        if wanted is None and len(names) == 1:
            wanted = names[0]
        if wanted not in names:
            asked = "" if wanted is None else f"no RLModule {wanted!r}; "
            raise PriorImportError(
                f"{self.folder}: {asked}its RLModules are {', '.join(names[:20]) or 'none'}: choose one with --module"
            )
        return self.folder / _MODULES / wanted

    @cached_property
    def env_to_module(self) -> Pipeline:
        """What is done to observations. Raises PriorImportError."""
        return self._pipeline("env_to_module_connector")

    @cached_property
    def module_to_env(self) -> Pipeline:
        """What is done to actions. Raises PriorImportError."""
        return self._pipeline("module_to_env_connector")

    def _pipeline(self, name: str) -> Pipeline:
        places = [self.folder / "env_runner" / name, self.folder / name]
        folder = next((each for each in places if each.is_dir()), None)
        if folder is None:
            raise PriorImportError(
                f"{self.folder}: holds no env_runner/{name}, so what is done to observations and actions is unknown"
            )
        made = read_constructed(folder)
        if len(made.args) != 2:
            raise PriorImportError(f"{made.file}: names {len(made.args)} spaces, expected two")
        where = str(made.file)
        listed = made.kwargs.get("connectors")
        if not isinstance(listed, list):
            raise PriorImportError(f"{made.file}: lists no connectors")
        connectors = []
        for each in listed:
            match each:
                case (kind, tuple(), dict() as kwargs):
                    connectors.append((_connector_name(kind), kwargs))
                case _:
                    raise PriorImportError(f"{made.file}: a connector is {str(each)[:100]}, expected a class of RLlib")
        spaces = [read_space(space, where) for space in made.args]
        return Pipeline(folder, spaces[0], spaces[1], tuple(connectors))

    def metric(self, name: str) -> float | None:
        """The last value of a metric such as ``learners--default_policy--alpha_value``; None where there is none."""
        try:
            state = read_state(self.folder, "algorithm_state")
        except PriorImportError:
            return None  # a checkpoint without metrics is a whole one
        for key in ("metrics_logger", "stats", name):
            state = state.get(key) if isinstance(state, dict) else None
        found = None
        for key in ("lifetime_sum", "values", "latest_merged"):
            value = state.get(key) if isinstance(state, dict) else None
            value = value[-1] if isinstance(value, list) and value else value
            if found is None and isinstance(value, int | float | np.number) and np.isfinite(value):
                found = float(value)
        return found


def _connector_name(kind: Any) -> str:
    """The name of a connector's class, with its module where that is not RLlib's."""
    if isinstance(kind, Instance) and kind.qualified_name == "functools.partial" and kind.args:
        kind = kind.args[0]
        return f"{kind.name} (with arguments)" if isinstance(kind, Global) else str(kind)[:100]
    if not isinstance(kind, Global):
        return str(kind)[:100]
    return kind.name if kind.module.startswith("ray.rllib.") else kind.qualified_name


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object. Raises PriorImportError."""
    try:
        data = json.loads(read_file(file, _MAX_JSON_BYTES))
    except (ValueError, RecursionError) as error:
        if isinstance(error, PriorImportError):
            raise
        raise PriorImportError(f"{file}: not JSON: {str(error)[:200]}") from error
    if not isinstance(data, dict):
        raise PriorImportError(f"{file}: not a JSON object")
    return data


def read_constructed(folder: Path) -> Constructed:
    """What ``class_and_ctor_args.pkl`` of a folder says. Raises PriorImportError."""
    file = folder / ARGUMENTS_FILE
    match inert.load(read_file(file, _MAX_STATE_BYTES), what=str(file)):
        case {"class": Global() as kind, "ctor_args_and_kwargs": (tuple() as args, dict() as kwargs)}:
            return Constructed(file, kind.qualified_name, args, kwargs)
    raise PriorImportError(f"{file}: does not name a class and its arguments, as RLlib's checkpoints do")


def read_state(folder: Path, name: str) -> Any:
    """The state ``name.msgpack`` or ``name.pkl`` of a folder. Raises PriorImportError."""
    packed = folder / f"{name}.msgpack"
    if packed.is_file():
        return _read_msgpack(packed)
    file = folder / f"{name}.pkl"
    return inert.load(read_file(file, _MAX_STATE_BYTES), what=str(file))


def _read_msgpack(file: Path) -> Any:
    import msgpack  # type: ignore[import-untyped]  # comes with ray

    data = read_file(file, _MAX_STATE_BYTES)
    try:
        return msgpack.unpackb(data, raw=False, strict_map_key=False, object_hook=_numpy_object)
    except PriorImportError as error:
        raise PriorImportError(f"{file}: {error}") from error
    except (ValueError, TypeError, msgpack.UnpackException, MemoryError, RecursionError) as error:
        raise PriorImportError(f"{file}: not msgpack, or damaged: {str(error)[:200]}") from error


def _numpy_object(data: dict[Any, Any]) -> Any:
    """An array or a number as msgpack_numpy writes it; where that unpickles arrays of objects, this refuses."""
    if b"nd" not in data:
        return data
    kind, raw, shape = (data.get(key) for key in (b"type", b"data", b"shape"))
    try:
        array = make_array(raw, kind, tuple(shape) if isinstance(shape, list) else (), "C")
    except TypeError as error:
        raise PriorImportError(f"an array of {str(kind)[:40]}: expected numbers") from error
    return array if data[b"nd"] else array.reshape(())[()]


def decode_array(text: Any, where: str) -> Array:
    """An array as RLlib's filters store it: numpy's own format, zlib, base64. Raises PriorImportError."""
    try:
        if not isinstance(text, str):
            raise ValueError(f"{type(text).__name__} in place of text")
        unpacker = zlib.decompressobj()
        data = unpacker.decompress(base64.b64decode(text, validate=True), _MAX_FILTER_BYTES)
        if not unpacker.eof:
            raise ValueError("truncated, or too large")
    except (ValueError, binascii.Error, zlib.error) as error:
        raise PriorImportError(f"{where}: a damaged array: {str(error)[:200]}") from error
    array = read_npy(data, where)
    if array.dtype.kind not in "fiu":
        raise PriorImportError(f"{where}: an array of {array.dtype}: expected numbers")
    return array.astype(np.float64)
