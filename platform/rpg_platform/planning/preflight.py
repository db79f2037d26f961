"""A sweep's plan with everything that is known of it, and what is refused before the sweep starts."""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from rpg_platform.planning.cluster import Amounts
from rpg_platform.planning.estimate import SweepPlan, make_plan
from rpg_platform.planning.rates import Rate, keep_rate, known_rate, rate_key
from rpg_platform.spec.sweep import TrialSpec
from rpg_platform.storage.sweep import Sweep
from rpg_platform.storage.sweep_folder import SweepFolder
from rpg_platform.storage.trial_state import TrialState
from rpg_platform.trial.room import RESERVE, by_disk, existing, free_bytes, free_text, size_text


class PlanError(ValueError):
    """A sweep that cannot run as it is planned; the message says what is missing."""


def plan_of(
    sweep: Sweep,
    nodes: Sequence[Amounts],
    states: Mapping[str, TrialState] | None = None,
    *,
    calibrate: bool = False,
) -> SweepPlan:
    """Plans a sweep; what is finished of it costs nothing more.

    Args:
        sweep: the sweep.
        nodes: resources of the machines that it will run on.
        states: how far its trials are, on resuming.
        calibrate: measure the heaviest trial's rate now, for some seconds, and keep it.

    Raises:
        CapacityError: no trial could ever start.
        PlanError: the storage cannot be written to, or it or the temporary folder has too little room.
    """

    def rate_of(trial: TrialSpec) -> Rate | None:
        key = rate_key(trial, nodes)
        if not calibrate:
            return known_rate(key)
        from rpg_platform.planning.measuring import measure_apart  # RLlib, which a plan of known rates does not need

        rate = measure_apart(trial, sweep.prior)
        keep_rate(key, rate)
        return rate

    check_writable(sweep.storage)
    plan = make_plan(sweep, nodes, rate_of, states)
    check_room(plan, sweep.folder)
    return plan


def must_stay_free(plan: SweepPlan, folder: SweepFolder) -> list[tuple[str | Path, int]]:
    """The driver's folders, each with the bytes that every running trial needs there to save itself once more.

    In the storage all trials save themselves, in the driver's temporary folder its own node's share of them.
    """
    here = math.ceil(plan.at_once / max(1, len(plan.nodes)))
    savers = [(folder.uri, plan.at_once)] if folder.is_local else []
    savers.append((tempfile.gettempdir(), here))
    # The checkpoint that is due, and the one of the stop.
    return [(each, 2 * plan.checkpoint_bytes * trials + RESERVE) for each, trials in savers]


def check_room(plan: SweepPlan, folder: SweepFolder) -> None:
    """Refuses a sweep for which the driver's disks have too little room.

    Raises:
        PlanError: names the folder, what is free and what is needed.
    """
    needs = must_stay_free(plan, folder)
    if folder.is_local:
        needs[0] = (folder.uri, max(needs[0][1], plan.storage_bytes + RESERVE))
    for path, needed in by_disk(needs):
        if free_bytes(path) < needed:
            raise PlanError(
                f"{path}: {free_text(path)}, and the sweep needs {size_text(needed)} there: make room, give "
                "another --storage (TMPDIR moves what is temporary), keep fewer checkpoints (checkpoint.keep), or run "
                "fewer trials at once (resources.max_concurrent)"
            )


def check_writable(storage: str) -> None:
    """Refuses a local storage that cannot be written to.

    Raises:
        PlanError: says which folder is at fault.
    """
    if "://" in storage:
        return
    folder = existing(storage)
    if not folder.is_dir():
        raise PlanError(f"storage={storage!r}: {folder} is a file, expected a folder")
    try:
        tempfile.TemporaryFile(dir=folder).close()  # has no name: nothing is seen of it
    except OSError as error:
        raise PlanError(f"storage={storage!r}: {folder} cannot be written to: {error.strerror}") from error


def check_hidden_modules(folder: str | Path | None = None) -> None:
    """Refuses a working directory in which a file has the name of a library that trials import.

    Ray puts the driver's working directory first on its workers' path, so they would import the file instead.

    Args:
        folder: None: the working directory.

    Raises:
        PlanError: names the file and what it hides.
    """
    here = Path.cwd() if folder is None else Path(folder)
    for name, module in list(sys.modules.items()):
        installed = getattr(module, "__file__", None)
        if "." in name or installed is None:
            continue
        for file in (here / f"{name}.py", here / name / "__init__.py"):
            if file.is_file() and not (Path(installed).exists() and file.samefile(installed)):
                raise PlanError(
                    f"{file} has the name of a library, {name} ({installed}), and would hide it from the trials: "
                    "rename it, or start rpg in another folder"
                )
