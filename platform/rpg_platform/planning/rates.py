"""How fast trials are: measured here in seconds, or by an earlier sweep's own reports, and kept for the next plan.

A rate belongs to a task, the settings that cost time, and a machine. It is kept in ``~/.cache/rpg/rates/`` (or under
``$XDG_CACHE_HOME``), a small JSON file each; the folder may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

import rpg_platform
from rpg_platform.planning.cluster import Amounts
from rpg_platform.spec.methods import METHODS
from rpg_platform.spec.sweep import TrialSpec
from rpg_platform.storage.cache import cache_folder

logger = logging.getLogger(__name__)

_COSTS_TIME = {"rollout_length", "minibatch_size", "num_epochs", "start_from_prior", "network"}


@dataclasses.dataclass(frozen=True)
class Rate:
    """How fast one trial is.

    Attributes:
        env_steps_per_s: of training.
        evaluation_steps_per_s: of evaluating.
        setup_s: seconds to build the trial.
        source: where the figures come from.
        at: when, seconds since the epoch.
    """

    env_steps_per_s: Annotated[float, Field(gt=0)]
    evaluation_steps_per_s: Annotated[float, Field(gt=0)]
    setup_s: Annotated[float, Field(ge=0)]
    source: Literal["measured here", "reports of an earlier sweep"]
    at: float


_COSTS_NO_TIME = {
    "max_concurrent",
    "memory_gb_per_trial",
    "custom_per_trial",
    "custom_per_env_runner",
    "custom_per_learner",
}


# ---- kept ----------------------------------------------------------------------------------------
def rate_key(trial: TrialSpec, nodes: Sequence[Amounts]) -> str:
    """What has the same rate: the task, the settings that cost time, the resources, the machine or cluster.

    Args:
        trial: one that trains.
        nodes: resources of the machines that it may run on.
    """
    what = [
        rpg_platform.__version__,
        trial.task if isinstance(trial.task, str) else trial.task.model_dump(mode="json"),
        METHODS[trial.method].algorithm,
        trial.prior if METHODS[trial.method].uses_prior else None,
        trial.training.model_dump(mode="json", include=_COSTS_TIME),
        trial.resources.model_dump(mode="json", exclude=_COSTS_NO_TIME),
        _processor(),
        sorted({(node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in nodes}),
    ]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:32]


@functools.cache
def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _file(key: str) -> Path:
    return cache_folder("rates") / f"{key}.json"


def known_rate(key: str) -> Rate | None:
    """The rate that was kept under a key; None if there is none that can be read."""
    try:
        return TypeAdapter(Rate).validate_json(_file(key).read_bytes())
    except (OSError, ValidationError):
        return None


def keep_rate(key: str, rate: Rate) -> None:
    """Keeps a rate for later plans; what cannot be written is not kept."""
    file = _file(key)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(f".{os.getpid()}.part")
        temporary.write_text(json.dumps(dataclasses.asdict(rate), indent=1), encoding="utf-8")
        temporary.replace(file)
    except OSError as error:
        logger.debug("the rate could not be kept: %s", error)
