"""Disk space: what a sweep and its checkpoints take, what is free, and stopping in order before a disk is full.

A checkpoint is written to the temporary folder of the trial's machine first and copied to the storage from there. Two
looks keep a full disk from spoiling anything: the driver stops the sweep while there still is room for every running
trial to save once more (`DiskGuard`), and a trial writes no checkpoint that does not fit (`checkpoint_room`), so that
the one before it stays as it is.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import logging
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.tune import Callback

from rpg_algorithms.policies.bundle import PriorBundle
from rpg_algorithms.policies.network import NetworkSpec, spec_for_spaces
from rpg_platform.spec.methods import METHODS
from rpg_platform.spec.sweep import TrialSpec

logger = logging.getLogger(__name__)
RESERVE = 32 * 2**20  # bytes that the driver leaves for results, MLflow's database and logs
SLACK = 2**20  # bytes that a trial leaves beside its checkpoint
CHECK_EVERY_S = 2.0

# Bytes, from the files of real trials; a test compares them.
_CARD, _BUNDLE_COPIES, _COPY_EXTRA = 4_500, 4, 14_000  # RLlib writes the configuration four times, the prior in it
_FIXED, _PER_EPISODE = 60_000, 120


class DiskFullError(OSError):
    """There is no room for a checkpoint; the message names the folder, what is free and what is needed."""

    def __init__(self, folder: Path, free: int, needed: int) -> None:
        super().__init__(
            errno.ENOSPC,
            f"{folder}: {size_text(free)} are free, and the next checkpoint needs {size_text(needed)}",
        )

    def __str__(self) -> str:
        return str(self.strerror)


# ---- sizes --------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters of a trial's networks.

    Attributes:
        policy: of the policy that is trained (or, if nothing is, played).
        critic: of its critic.
        prior: of the frozen prior that it is measured against.
    """

    policy: int
    critic: int = 0
    prior: int = 0


def parameters(trial: TrialSpec, env: Any, prior: PriorBundle | None) -> Parameters:
    """How large a trial's networks are; nothing is built.

    Args:
        trial: the trial.
        env: an environment of its task, for its spaces.
        prior: the sweep's prior.
    """
    of_prior = 0 if prior is None else sum(int(array.size) for array in prior.weights.values())
    if not METHODS[trial.method].trains:
        return Parameters(of_prior)
    used = METHODS[trial.method].uses_prior and prior is not None
    if used and prior is not None and trial.training.start_from_prior:
        spec, policy = prior.network_spec, of_prior
    else:
        network = trial.training.network
        options = {} if network is None else network.model_dump()
        spec = spec_for_spaces(env.observation_space, env.action_space, **options)
        policy = _perceptron(spec)
    critic = _layers((spec.observation_size, *spec.hidden, 1))
    return Parameters(policy, critic, of_prior if used else 0)


def _perceptron(spec: NetworkSpec) -> int:
    free = spec.action_size if spec.distribution != "categorical" and not spec.state_dependent_std else 0
    return _layers((spec.observation_size, *spec.hidden, spec.dist_inputs_size - free)) + free


def _layers(widths: tuple[int, ...]) -> int:
    return sum((inputs + 1) * outputs for inputs, outputs in itertools.pairwise(widths))


def bundle_bytes(sizes: Parameters) -> int:
    """Size of a policy's bundle."""
    return 4 * sizes.policy + _CARD


def checkpoint_bytes(trial: TrialSpec, sizes: Parameters) -> int:
    """Size of one checkpoint of a trial: weights, Adam's two moments, the prior, the policies as bundles, episodes."""
    policies = 2 if trial.evaluation.validations and METHODS[trial.method].trains else 1
    episodes = _PER_EPISODE * trial.evaluation.episodes * 2 * policies
    bundles = policies * bundle_bytes(sizes)
    if not METHODS[trial.method].trains:
        return bundles + episodes + _CARD
    trained = sizes.policy + sizes.critic
    weights, moments = 4 * (trained + sizes.prior), 8 * trained
    return weights + moments + _BUNDLE_COPIES * (4 * sizes.prior + _COPY_EXTRA) + bundles + episodes + _FIXED


def reports(trial: TrialSpec) -> int:
    """How many reports a trial makes."""
    from rpg_platform.trial.trainable import REPORTS_PER_TRIAL

    if not METHODS[trial.method].trains:
        return 1
    resources = trial.resources
    per_iteration = trial.training.rollout_length * resources.envs_per_runner * max(1, resources.env_runners)
    iterations = math.ceil(trial.env_steps / per_iteration)
    return math.ceil(iterations / max(1, math.ceil(iterations / REPORTS_PER_TRIAL)))


def trial_bytes(trial: TrialSpec, sizes: Parameters) -> int:
    """Size of a trial's folder at the end: the checkpoints that are kept and its result files."""
    every, count = trial.checkpoint.every_env_steps, reports(trial)
    made = 1 + (0 if every is None else min(trial.env_steps // every, count))
    settings = len(json.dumps(trial.model_dump(mode="json")))
    results = count * (settings + 1_500) + 3 * settings + 1_500
    return min(trial.checkpoint.keep, made) * checkpoint_bytes(trial, sizes) + results


def size_text(count: float) -> str:
    """Bytes as people read them, in powers of 1,000: ``1.2 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 99.5 else f"{count:.1f} {unit}"
        count /= 1_000
    return f"{count:,.1f} TB"


# ---- what is free -------------------------------------------------------------------------------
def existing(folder: str | Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    path = Path(folder)
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def free_bytes(folder: str | Path) -> int:
    """Bytes that may still be written to a folder (or to where it will be made)."""
    return shutil.disk_usage(existing(folder)).free


def by_disk(needs: Iterable[tuple[str | Path, int]]) -> list[tuple[Path, int]]:
    """Needs of folders that share a file system, added up under the first of them."""
    found: dict[int, tuple[Path, int]] = {}
    for folder, needed in needs:
        path = existing(folder)
        first, sofar = found.get(path.stat().st_dev, (path, 0))
        found[path.stat().st_dev] = (first, sofar + needed)
    return list(found.values())


def temporary_folders() -> list[Path]:
    """Where this process and Ray's processes on this machine write temporarily."""
    import ray

    folders = [Path(tempfile.gettempdir())]
    node = getattr(getattr(ray, "_private", None), "worker", None)
    session = getattr(getattr(node, "_global_node", None), "get_session_dir_path", None)
    if session is not None and Path(session()).is_dir():  # of a cluster elsewhere it is a path on another machine
        folders.append(Path(session()))
    return folders


# ---- in a trial ---------------------------------------------------------------------------------
@contextlib.contextmanager
def checkpoint_room(folder: Path, storage: str | None, needed: int) -> Iterator[None]:
    """Around the writing of a checkpoint: refuses what does not fit, and leaves nothing half written behind.

    Args:
        folder: the temporary folder that it is written to.
        storage: the local folder that it is copied to afterwards; None where that is elsewhere.
        needed: its size, bytes.

    Raises:
        DiskFullError: it does not fit, on either disk; nothing has been written.
    """
    ways: list[tuple[str | Path, int]] = [(folder, needed)]
    ways += [] if storage is None else [(storage, needed)]
    for path, bytes_ in by_disk(ways):
        if (free := free_bytes(path)) < bytes_ + SLACK:
            raise DiskFullError(path, free, bytes_)
    try:
        yield
    except OSError:
        for each in folder.iterdir():
            shutil.rmtree(each) if each.is_dir() else each.unlink()
        raise


def written(folder: Path) -> int:
    """Bytes in a folder's files."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


# ---- in the driver ------------------------------------------------------------------------------
class DiskGuard(Callback):
    """Stops a sweep, every running trial saved, while the driver's disks still have room for that.

    Args:
        needs: folder → bytes that must stay free in it.
        stop: asks the sweep to end.
        tell: called with a line for the user.
        advice: what to do once there is room again.
    """

    def __init__(
        self, needs: Mapping[str | Path, int], stop: Callable[[], None], tell: Callable[[str], None], advice: str
    ) -> None:
        self._needs, self._stop, self._tell, self._advice = dict(needs), stop, tell, advice
        self._checked = -math.inf
        self.reason: str | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks; what belongs to this process stays here."""
        return {"reason": self.reason}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__({}, lambda: None, logger.warning, "")  # type: ignore[misc]
        self.reason = state["reason"]

    def shortage(self) -> str | None:
        """Which folder is too full, by how much; None where all have room."""
        for folder, needed in by_disk(self._needs.items()):
            if (free := free_bytes(folder)) < needed:
                return (
                    f"{folder} is nearly full: {size_text(free)} are free, and {size_text(needed)} are needed to save "
                    "the running trials"
                )
        return None

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Looks every few seconds."""
        now = time.monotonic()
        if self.reason is not None or now - self._checked < CHECK_EVERY_S:
            return
        self._checked = now
        try:
            self.reason = self.shortage()
        except OSError as error:  # a network file system that is away for a moment
            logger.debug("disk space could not be read: %s", error)
        if self.reason is not None:
            self._tell(f"{self.reason}. The sweep stops and keeps what it has. {self._advice}")
            self._stop()


def guarded(
    storage: str | None, temporary: Iterable[Path], checkpoint: int, at_once: int, here: int
) -> dict[str | Path, int]:
    """What a driver's folders must keep free so that every running trial can save itself once more.

    Args:
        storage: the sweep's folder, where it is local.
        temporary: folders for what is temporary, that of checkpoints first.
        checkpoint: size of the largest checkpoint, bytes.
        at_once: how many trials run together.
        here: how many of them on this machine.
    """
    needs: dict[str | Path, int] = {}
    if storage is not None:  # the checkpoint that is due, and the one of the stop
        needs[storage] = 2 * checkpoint * at_once + RESERVE
    for index, folder in enumerate(dict.fromkeys(map(os.fspath, temporary))):
        needs.setdefault(folder, 2 * checkpoint * here + RESERVE if index == 0 else 0)
    return needs
