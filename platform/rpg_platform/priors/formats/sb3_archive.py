"""Reads the parts of a Stable-Baselines3 archive: its settings, its weights, and facts about its origin."""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch

from rpg_platform.priors.files.archive import Archive, open_archive
from rpg_platform.priors.files.inert import Instance, load
from rpg_platform.priors.files.inert_values import Global, in_words
from rpg_platform.priors.files.torch_files import load_tensors
from rpg_platform.priors.imported import ImportOptions, PriorImportError, printable

MAX_DATA_BYTES = 256 << 20
VERSION = "_stable_baselines3_version"
Spaces = tuple[gym.Space[Any], gym.Space[Any]]
Kwargs = Mapping[str, Any]
# (D, A) of gymnasium's MuJoCo environments whose observations changed: what they were, what -v5 has.
_OLD_SIZES: dict[tuple[int, ...], tuple[str, str]] = {
    (111, 8): ("Ant-v2 and Ant-v3", "Ant-v5 gives 105, or 27 with include_cfrc_ext_in_observation=False"),
    (27, 8): ("Ant-v4", "Ant-v5 gives 105, and these 27 with include_cfrc_ext_in_observation=False"),
    (376, 17): ("Humanoid and HumanoidStandup up to -v4", "Humanoid-v5 and HumanoidStandup-v5 give 348"),
    (11, 2): ("Reacher up to -v4", "Reacher-v5 gives 10"),
    (11, 1): ("InvertedDoublePendulum up to -v4", "InvertedDoublePendulum-v5 gives 9"),
}


@dataclass(frozen=True)
class Model:
    """The parts of an archive.

    Attributes:
        archive: the zip.
        data: its ``data``, pickles still in base64.
        state: ``policy.pth``, name → tensor; empty for SBX, which keeps its policy in ``data``.
        policy_name: the qualified name of the policy's class; empty where the class itself is stored.
    """

    archive: Archive
    data: Mapping[str, Any]
    state: Mapping[str, Any]

    @property
    def where(self) -> str:
        return self.archive.what

    @cached_property
    def policy_name(self) -> str:
        stored = self.value("policy_class")
        return stored.qualified_name if isinstance(stored, Global) else ""

    def value(self, key: str) -> Any:
        """Returns a value of ``data``; inert where it is a pickle, None where it is missing."""
        value = self.data.get(key)
        if not isinstance(value, dict) or ":serialized:" not in value:
            return value
        where, encoded = f"{self.where}: data: {key}", value[":serialized:"]
        if not isinstance(encoded, str):
            raise PriorImportError(f"{where}: damaged: expected a pickle in base64")
        try:
            raw = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError) as error:
            raise PriorImportError(f"{where}: damaged: not base64: {error}") from error
        return load(raw, what=where)


def open_model(path: Path) -> Model:
    """Reads the settings and policy weights of an archive. Raises PriorImportError."""
    archive = open_archive(path)
    if "data" not in archive or ("policy.pth" not in archive and VERSION not in archive):
        raise PriorImportError(f"{path}: not a Stable-Baselines3 model: {_instead(archive)}")
    if archive.size("data") > MAX_DATA_BYTES:
        raise PriorImportError(f"{path}: data: more than the {MAX_DATA_BYTES} bytes that are read")
    try:
        data = json.loads(archive.read("data"))
    except (ValueError, RecursionError) as error:
        if isinstance(error, PriorImportError):
            raise
        raise PriorImportError(f"{path}: data: not JSON: {str(error)[:200]}") from error
    if not isinstance(data, dict):
        raise PriorImportError(f"{path}: data: {type(data).__name__}, expected a JSON object")
    if "policy.pth" not in archive:
        if "policy" not in data:
            raise PriorImportError(f"{path}: not a Stable-Baselines3 model: {_instead(archive)}")
        return Model(archive, data, {})
    state = load_tensors(archive.read("policy.pth"), f"{path}: policy.pth")
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise PriorImportError(f"{path}: policy.pth: {kind_of(state)}, expected a state dict")
    return Model(archive, data, state)


def _instead(archive: Archive) -> str:
    names = list(archive)
    last = {name.rpartition("/")[2] for name in names}
    if {"parameters", "parameter_list"} & last:
        return "a model of Stable-Baselines 2 (TensorFlow), which is not read"
    if "constants.pkl" in last:
        return "a TorchScript archive"
    if "data.pkl" in last:
        return "a file of torch.save (a state dict, or policy.save); expected what model.save writes"
    nested = [name for name in names if name.endswith(".zip")]
    if nested:
        return f"it contains {nested[0][:100]}; unpack it first"
    folders = [name for name in names if name.endswith("/policy.pth")]
    if folders:
        return f"its parts stand in the folder {folders[0].removesuffix('policy.pth')[:100]}; expected them at the top"
    listed = ", ".join(name[:50] for name in names[:5]) or "nothing"
    return f"it holds {listed}; expected data and policy.pth"


def kind_of(value: Any) -> str:
    """Names the type of a value, for messages."""
    return in_words(value)


def temperature(model: Model) -> float | None:
    """Returns SAC's entropy temperature: ``exp(log_ent_coef)`` where it was learned, else the fixed coefficient."""
    for name in ("pytorch_variables.pth", "tensors.pth"):  # the latter before 0.9
        if name not in model.archive:
            continue
        variables = load_tensors(model.archive.read(name), f"{model.where}: {name}")
        if not isinstance(variables, dict):
            continue
        for key in ("log_ent_coef", "ent_coef_tensor"):
            value = variables.get(key)
            if not isinstance(value, torch.Tensor) or value.numel() != 1 or not value.is_floating_point():
                continue
            alpha = math.exp(min(float(value), 700.0)) if key == "log_ent_coef" else float(value)
            if not math.isfinite(alpha) or alpha < 0:
                raise PriorImportError(f"{model.where}: {name}: {key} is {float(value)}")
            return alpha or None
    return None


def facts_of(model: Model) -> dict[str, Any]:
    """Collects versions and training settings, JSON-able."""
    facts: dict[str, Any] = {"library": "stable-baselines3", "version": _text(model, VERSION)}
    for line in _text(model, "system_info.txt").splitlines()[:30]:
        name, _, value = line.removeprefix("- ").partition(": ")
        if name in ("Python", "PyTorch", "Numpy", "Gym", "Gymnasium", "OpenAI Gym") and value:
            facts.setdefault("saved_with", {})[name] = value[:80]
    for name in ("num_timesteps", "n_envs", "seed", "gamma", "gae_lambda", "ent_coef", "learning_rate", "n_steps"):
        number = model.data.get(name)
        if isinstance(number, str):
            facts[name] = printable(number[:80])
        elif (
            isinstance(number, int | float) and not isinstance(number, bool) and abs(number) < 1 << 63
        ):  # false for NaN
            facts[name] = number
    return facts


def _text(model: Model, name: str) -> str:
    if name not in model.archive or model.archive.size(name) > 100_000:
        return ""
    text = model.archive.read(name).decode("utf-8", "replace").strip()
    return printable(text)


def version_notes(model: Model, spaces: Spaces, options: ImportOptions) -> list[str]:
    """Says where today's environments differ from those that the policy was trained in."""
    notes, sizes = [], tuple(math.prod(space.shape or ()) for space in spaces if isinstance(space, gym.spaces.Box))
    stored = model.value("observation_space")
    if sizes in _OLD_SIZES and ((target := options.spaces[0]) is None or target.shape != spaces[0].shape):
        old, new = _OLD_SIZES[sizes]
        notes.append(
            f"it observes {sizes[0]} numbers, as in {old}; {new}: it acts only where observations have its size"
        )
    if isinstance(stored, Instance) and stored.qualified_name.startswith("gym."):
        version = _text(model, VERSION)[:20]
        notes.append(
            f"saved with gym, gymnasium's predecessor (Stable-Baselines3 {version or 'of unknown version'}): today's "
            "environments (-v5) may differ in dynamics and rewards; `rpg priors check` shows what it earns there"
        )
    return notes
