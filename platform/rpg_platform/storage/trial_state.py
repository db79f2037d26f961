"""How far a trial is, by its checkpoints; each is completed by a file that says it, with every other file's size."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rpg_platform.results.report import STOPPED_BY, is_finished, with_earlier
from rpg_platform.spec.sweep import TrialSpec

FORMAT = 1
STATE_FILE = "trial.json"


@dataclass(frozen=True)
class TrialState:
    """How far a trial has come, by its newest complete checkpoint.

    Attributes:
        checkpoint: local path or URI.
        env_steps: env steps that it has trained.
        report: its last report; ``finished`` in it is true after the evaluation at the end of its budget, and
            ``stopped_by`` says what ended it before that, for good.
        earlier: as it was at the ends of the smaller budgets that it had before, newest first.
    """

    checkpoint: str
    env_steps: int
    report: Mapping[str, Any] = field(default_factory=dict)
    earlier: tuple[TrialState, ...] = ()

    @property
    def finished(self) -> bool:
        """Whether it was evaluated at the end of its budget."""
        return is_finished(self.report)

    @property
    def stopped(self) -> bool:
        """Whether a scheduler ended it early: an outcome of its own, which is not run again."""
        return STOPPED_BY in self.report

    def finishes(self, trial: TrialSpec) -> bool:
        """Whether there is nothing left to do of ``trial``, whose budget may have been extended."""
        return self.stopped or (self.finished and self.env_steps >= trial.env_steps)

    def report_for(self, trial: TrialSpec) -> dict[str, Any]:
        """Its last report, as one of ``trial``, whose budget may have been extended; see ``report.EARLIER``."""
        return with_earlier(self.report, trial, [each.report for each in self.earlier])

    def checkpoint_at(self, env_steps: int) -> str:
        """The checkpoint of its final evaluation after so many env steps; the newest where it has none there."""
        return next((each.checkpoint for each in self.earlier if each.env_steps == env_steps), self.checkpoint)


def write_state(checkpoint: Path, env_steps: int, report: Mapping[str, Any]) -> None:
    """Completes a checkpoint's folder: ``trial.json`` is written last and names all other files and their sizes.

    Args:
        checkpoint: the folder, everything else already in it.
        env_steps: env steps that the trial has trained.
        report: the trial's last report; numbers, flags, texts and lists of it are kept.
    """
    files = {
        file.relative_to(checkpoint).as_posix(): file.stat().st_size
        for file in sorted(checkpoint.rglob("*"))
        if file.is_file() and file != checkpoint / STATE_FILE
    }
    kept = {key: value for key, value in report.items() if isinstance(value, bool | int | float | str | list)}
    state = {"format": FORMAT, "env_steps": env_steps, "report": kept, "files": files}
    (checkpoint / STATE_FILE).write_text(json.dumps(state), encoding="utf-8")


def read_state(checkpoint: Path) -> Mapping[str, Any]:
    """What ``write_state`` wrote."""
    state: Mapping[str, Any] = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
    return state
