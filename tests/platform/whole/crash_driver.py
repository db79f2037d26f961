"""A driver that dies: a small sweep's hooks on the real tracker, killed (SIGKILL) at chosen points, and begun again.

    python -m tests.platform.whole.crash_driver FOLDER URI EXPERIMENT every|chain COUNT SEED

``every`` runs sweep after sweep, each killed once, the k-th at the k-th point that it passes, until one passes fewer;
``chain`` runs one sweep that is killed each time that a run has just been made, until there are none to make, and then
COUNT times at random points. A point lies before and after each request to
MLflow, and before, after and in the middle of each write to the spool. Each incarnation is a fork, so
that imports are paid once. Everything that was appended is noted in ``FOLDER/<experiment>/appended``.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mlflow import MlflowClient
from tests.platform.records import CARD
from tests.platform.resolved import tracker_of

from rpg_platform.spec.checks import expand
from rpg_platform.spec.sweep import SweepSpec
from rpg_platform.tracking import sender, spool

TRIALS, STEPS, KEYS = 3, 5, 4
REQUESTS = ("create_run", "create_experiment", "log_batch", "update_run", "set_terminated", "log_text")
REQUESTS += ("log_artifact", "log_artifacts", "search_runs", "get_run", "set_tag")
REQUESTS += ("search_logged_models", "create_logged_model", "log_outputs", "finalize_logged_model")
FILES = ("acknowledge", "remember", "reject", "write_json", "_open_database", "_checkpoint")
CLEAN, DIED = 0, -signal.SIGKILL

Event = tuple[str, int, int]  # hook, trial, step


def events() -> list[Event]:
    """What happens in the sweep, in order."""
    found: list[Event] = [("start", trial, 0) for trial in range(TRIALS)]
    found += [("result", trial, step) for step in range(1, STEPS + 1) for trial in range(TRIALS)]
    return found + [("complete", trial, STEPS) for trial in range(TRIALS)]


def specs() -> tuple[SweepSpec, list[Any]]:
    spec = SweepSpec.model_validate(
        {
            "name": "crashing",
            "task": "halfcheetah-foot-angle",
            "algorithm": "spg",
            "weights": {"alpha": 0.1},
            "seeds": TRIALS,
            "budget": {"env_steps": 10_000},
        }
    )
    return spec, expand(spec)


class Points:
    """Counts the points that are passed, and ends the process at the chosen one."""

    def __init__(self, last: int | None, *, created: bool = False) -> None:
        self.left = last
        self.created = created  # the end comes as soon as a run has been made
        self.passed = 0

    def here(self) -> bool:
        self.passed += 1
        return self.left is not None and self.passed >= self.left

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)  # from a thread: until the signal is there

    def around(self, owner: Any, name: str) -> None:
        real: Callable[..., Any] = getattr(owner, name)

        def wrapped(*arguments: Any, **named: Any) -> Any:
            if self.here():
                self.die()
            answer = real(*arguments, **named)
            if self.here() or (self.created and name == "create_run"):
                self.die()
            return answer

        setattr(owner, name, wrapped)

    def inside_writes(self) -> None:
        """Adds a point in the middle of SQLite's work on each statement that writes to the spool."""
        real = spool.Spool._execute

        def execute(this: spool.Spool, statement: str, values: tuple[Any, ...] = ()) -> bool:
            last = self.here()
            if last and this._database is not None:
                this._database.set_progress_handler(self.die, 4)
            answer = real(this, statement, values)
            if last:
                self.die()
            return answer

        spool.Spool._execute = execute  # type: ignore[method-assign]


def last_report(index: int) -> dict[str, Any]:
    return {
        "finished": True,
        "env_steps": 10.0 * STEPS,
        "timestamp": 2_000_000,
        "eval/deterministic/total_return_mean": 7.0 + index,
    }


def note(folder: Path, line: str) -> None:
    descriptor = os.open(folder / "appended", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, f"{line}\n".encode())
    os.close(descriptor)


def drive(folder: Path, uri: str, experiment: str, points: Points, incarnation: int) -> None:
    """One incarnation: goes on where the notes of the last one end."""
    sender._SHORTEST_REST_S = 0.01
    sender._REST_PER_WORK = 0.0
    sender._FIRST_PAUSE_S = 0.05
    sender._LONGEST_PAUSE_S = 0.5
    for name in REQUESTS:
        points.around(MlflowClient, name)
    for name in FILES:
        points.around(spool.Spool, name)
    points.inside_writes()
    done = [line for line in (folder / "appended").read_text().splitlines() if line.startswith("did ")]
    spec, trials = specs()
    tracker = tracker_of(uri, experiment, spec, trials, folder / "tracking", resume=True)
    tracker.start()
    for hook, index, step in events():
        told = json.dumps([hook, index, step])
        known = f"did {told}" in done
        if known and (hook != "start" or f"did {json.dumps(['complete', index, STEPS])}" in done):
            continue  # what is behind; but a trial that has not ended is started again
        checkpoint = SimpleNamespace(path=str(folder.parent / "checkpoint"), filesystem=None)
        config = {"trial": trials[index].model_dump(mode="json")}
        trial = SimpleNamespace(config=config, checkpoint=checkpoint, last_result=last_report(index))
        now = 1_000_000 + 1_000 * incarnation + step
        values = {f"m{key}": float(100 * index + step) + key / 10 for key in range(KEYS)}
        note(folder, f"will {told} {now}")
        if hook == "start":
            tracker.on_trial_start(0, [], trial)  # type: ignore[arg-type]
        elif hook == "result":
            tracker.on_trial_result(0, [], trial, values | {"env_steps": 10.0 * step, "timestamp": now})  # type: ignore[arg-type]
        else:
            tracker.on_trial_complete(0, [], trial)  # type: ignore[arg-type]
        note(folder, f"did {told}")
        if hook == "result":
            note(folder, f"reported {told} {now}")
        time.sleep(0.01)
    final = {"eval/deterministic/total_return_mean": 1.0, "env_steps": 50.0}
    tracker.finish([(trial, final, None) for trial in trials])
    note(folder, f"errors {tracker.errors}")


def incarnate(
    folder: Path, uri: str, experiment: str, last: int | None, incarnation: int, *, created: bool = False
) -> int:
    """Runs one incarnation in a fork; returns how it ended."""
    place = folder / experiment
    place.mkdir(exist_ok=True)
    (place / "appended").touch()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            drive(place, uri, experiment, Points(last, created=created), incarnation)
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def main() -> None:
    folder, uri, experiment, mode, count, seed = sys.argv[1:]
    bundle = Path(folder) / "checkpoint" / "bundle"
    bundle.mkdir(parents=True, exist_ok=True)
    (bundle / "card.json").write_text(CARD)
    ends: dict[str, list[int]] = {}
    if mode == "every":
        for last in range(1, 1 + int(count)):
            name = f"{experiment}-{last}"
            ends[name] = [incarnate(Path(folder), uri, name, last, 0)]
            if ends[name] == [CLEAN]:  # it passed fewer points than that
                break
            ends[name].append(incarnate(Path(folder), uri, name, None, 1))
    else:
        chances = random.Random(int(seed))
        ends[experiment] = []
        for incarnation in range(1 + TRIALS + int(count) + 1):
            created = incarnation <= TRIALS
            last = None if created or incarnation > TRIALS + int(count) else chances.randint(3, 60)
            ends[experiment].append(incarnate(Path(folder), uri, experiment, last, incarnation, created=created))
    sys.stdout.write(json.dumps(ends))


if __name__ == "__main__":
    main()
