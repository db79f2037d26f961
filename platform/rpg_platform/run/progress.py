"""What a running sweep shows: a live table on a terminal, plain lines anywhere else; and the same as data."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ray.tune import Callback
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rpg_platform import logs
from rpg_platform.results.leader import Leader, Standing
from rpg_platform.results.report import ENV_STEPS, FAILED, FINAL, Ending, ending, finite_figures
from rpg_platform.run.status import words_of
from rpg_platform.spec.measures import BY_NAME, RETURNS
from rpg_platform.spec.sections import Objective
from rpg_platform.spec.sweep import TrialSpec, trial_id_of
from rpg_platform.tracking.tune_trial import error_text
from rpg_platform.wording import duration

if TYPE_CHECKING:
    from rpg_platform.tracking.sender import TrackerState

logger = logging.getLogger(__name__)
LINE_EVERY_S = 10.0
REFRESH_PER_S = 2
STATES = ("finished", "ended_early", "running", "restarting", "pending", "stopped", "failed")
_UNDER_WAY = ("running", "restarting")
_MOST_ROWS, _OTHER_LINES = 30, 10
_SAMPLE_EVERY_S, _SAMPLES = 5.0, 60  # the rate is that of the last five minutes
_CELLS = ("basic_return", "addon_return", "kl_to_prior")


@dataclass(frozen=True)
class Snapshot:
    """A sweep's progress at one moment.

    Attributes:
        states: how many trials are in each of ``STATES``.
        env_steps, env_steps_total: done, and of all trials.
        env_steps_per_s: NaN while unknown.
        time_left_s: of the trials that are to run or running; NaN while unknown.
        running: trial id, env steps and budget of those that are under way.
        failures: trial id → why it failed.
        best: the best setting so far.
        tracker: where the tracker's records are.
        waiting: what the trials wait for, where none of them can start.
    """

    states: Mapping[str, int]
    env_steps: float
    env_steps_total: int
    env_steps_per_s: float
    time_left_s: float
    running: Sequence[tuple[str, float, int]]
    failures: Mapping[str, str]
    best: Leader | None
    tracker: TrackerState | None
    waiting: str | None = None

    @property
    def over(self) -> int:
        """How many trials have ended, whichever way."""
        return sum(self.states.get(name, 0) for name in ("finished", "ended_early", "failed"))

    def as_json(self) -> dict[str, Any]:
        """As strict JSON has it: NaN is null."""
        return {
            "trials": {"total": sum(self.states.values()), **self.states},
            "env_steps": int(self.env_steps),
            "env_steps_total": self.env_steps_total,
            "env_steps_per_s": self.env_steps_per_s if math.isfinite(self.env_steps_per_s) else None,
            "time_left_s": self.time_left_s if math.isfinite(self.time_left_s) else None,
            "running": [{"trial": t, "env_steps": int(s), "budget": b} for t, s, b in self.running],
            "failures": [{"trial": trial, "error": error} for trial, error in self.failures.items()],
            "best": None if self.best is None else asdict(self.best) | {"text": str(self.best)},
            "tracker": None if self.tracker is None else asdict(self.tracker) | {"text": str(self.tracker)},
            "waiting": self.waiting,
        }


class Progress(Callback):
    """Follows a sweep's trials: states, env steps, rate, time left, what is best so far.

    Args:
        trials: trials of the sweep, as far as they are known; ``add_trials`` takes more.
        console: where to show it; a live view when it is a terminal.
        tracking: says where the tracker's records are.
        finished: last reports of the trials that an earlier attempt finished.
        begun: env steps of the trials that an earlier attempt left at a checkpoint.
        objective: what is best; None: what the first trial says.
        planned: how many trials there will be, those that a search has yet to propose among them.
        budget: env steps of each of those.
        waiting_for: says what trials wait for while the cluster has no room for any.
    """

    def __init__(
        self,
        trials: Sequence[TrialSpec],
        console: Console,
        tracking: Callable[[], TrackerState] | None = None,
        finished: Mapping[str, Mapping[str, Any]] | None = None,
        begun: Mapping[str, int] | None = None,
        objective: Objective | None = None,
        planned: int = 0,
        budget: int = 0,
        waiting_for: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._lock = threading.Lock()  # a status is written from another thread
        self._tracking, self._waiting_for = tracking, waiting_for
        self._is_running = False
        self._total: dict[str, int] = {}
        self._planned, self._budget = planned, budget
        self._state: dict[str, str] = {}
        self._latest: dict[str, Mapping[str, Any]] = {}
        self._why: dict[str, str] = {}
        self._standing = Standing(objective or (trials[0].objective if trials else Objective()))
        self._console, self._tell = console, logs.teller(console)
        self._started = time.monotonic()
        self._samples: deque[tuple[float, float]] = deque(maxlen=_SAMPLES)
        self._last_line = 0.0
        self._codes: set[str] = set()
        self._live: Live | None = None
        self.add_trials(trials)
        for trial_id, report in (finished or {}).items():
            self._latest[trial_id] = report
            self._state[trial_id] = _STATE_AT[ending(report)]
            self._standing.heard(trial_id, report)
        for trial_id, env_steps in (begun or {}).items():
            self._latest.setdefault(trial_id, {ENV_STEPS: float(env_steps)})

    def add_trials(self, trials: Iterable[TrialSpec]) -> None:
        """Trials that are to run; those that are known already stay as they are."""
        with self._lock:
            new = [trial for trial in trials if trial.trial_id not in self._total]
            self._total |= {trial.trial_id: trial.env_steps for trial in new}
            self._state |= {trial.trial_id: "pending" for trial in new}
            self._standing.add(new)

    def __enter__(self) -> Progress:
        self._is_running = True
        if self._console.is_terminal and not logs.as_json():
            self._live = Live(
                get_renderable=self._view, console=self._console, refresh_per_second=REFRESH_PER_S, transient=True
            )
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_running = False
        with self._lock:  # nothing runs any more: what has not ended was stopped
            self._state |= {name: "stopped" for name, state in self._state.items() if state in _UNDER_WAY}
        if self._live is not None:
            self._live.stop()
            self._live = None

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks; a live display, its console and the tracker stay here."""
        return self.__dict__ | {
            "_live": None,
            "_console": None,
            "_tell": None,
            "_tracking": None,
            "_waiting_for": None,
            "_lock": None,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state | {
            "_console": Console(),
            "_tell": print,
            "_lock": threading.Lock(),
            "_waiting_for": lambda: None,
        }

    # --- Tune's events

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Tune has looked round: a line is due even while no trial reports, on a full cluster for hours."""
        self._maybe_line()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial got its resources; one of a population perhaps with other weights than before."""
        if trial.config["trial"].get("starts_from"):
            with self._lock:
                self._standing.add([TrialSpec.of_config(trial.config)])
        self._move(trial, "running")

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A trial reported."""
        self._print_code(str(result.get("code", "")))
        trial_id = self._know(trial)
        with self._lock:
            self._latest[trial_id] = result
            if self._state[trial_id] == "pending":
                self._state[trial_id] = "running"
            self._standing.heard(trial_id, result)
            now = time.monotonic()
            if not self._samples or now - self._samples[-1][0] >= _SAMPLE_EVERY_S:
                self._samples.append((now, self._done_steps()))
        self._maybe_line()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial ended: it finished, gave up, was ended early by the scheduler, or stopped."""
        trial_id = self._know(trial)
        last = self._latest.get(trial_id, {})
        if self._state[trial_id] == "pending":
            return  # it never started
        if FAILED in last:
            self._why[trial_id] = str(last[FAILED])
        self._move(trial, _STATE_AT[ending(last)])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial failed for good."""
        self._why[trial_id_of(trial.config)] = error_text(trial)[0]
        self._move(trial, "failed")

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial failed and starts again from its checkpoint."""
        self._why[self._know(trial)] = error_text(trial)[0]
        self._move(trial, "restarting")

    def failures(self) -> dict[str, str]:
        """Trial id → why it failed for good."""
        with self._lock:
            return {name: self._why.get(name, "") for name, state in self._state.items() if state == "failed"}

    def _know(self, trial: Any) -> str:
        """The trial's id; one that a search has just made becomes known."""
        trial_id = trial_id_of(trial.config)
        if trial_id not in self._total:
            self.add_trials([TrialSpec.of_config(trial.config)])
        return trial_id

    def _print_code(self, code: str) -> None:
        """Once for each version of the code that a trial runs: on a cluster it should be the driver's."""
        if code and code not in self._codes:
            self._codes.add(code)
            self._tell(f"{code} (trial)")

    def _move(self, trial: Any, state: str) -> None:
        trial_id = self._know(trial)
        with self._lock:
            self._state[trial_id] = state
        if self._live is None and state not in ("running", "pending"):
            why = f" — {self._why[trial_id]}" if state in ("failed", "restarting") and self._why.get(trial_id) else ""
            text = f"{self._clock()}  {trial_id}: {state.replace('_', ' ')}{self._returns(trial_id)}{why}"
            self._tell(text, trial=trial_id, seed=trial.config["trial"].get("seed"))

    # --- what is shown

    def snapshot(self) -> Snapshot:
        """The progress now; may be asked from any thread."""
        tracker = None if self._tracking is None else self._tracking()
        waiting = self._waiting()
        with self._lock:
            counts = Counter(self._state.values())
            counts["pending"] += self._to_come()
            rate, left = self._rate(), self._steps_left()
            return Snapshot(
                {state: counts[state] for state in STATES},
                self._done_steps(),
                sum(self._total.values()) + self._budget * self._to_come(),
                rate,
                left / rate if rate > 0 else 0.0 if left == 0 else math.nan,
                [(name, self._steps(name), self._total[name]) for name, s in self._state.items() if s in _UNDER_WAY],
                {name: self._why.get(name, "") for name, state in self._state.items() if state == "failed"},
                self._standing.leader(),
                tracker,
                waiting,
            )

    def _waiting(self) -> str | None:
        with self._lock:
            states = set(self._state.values())
        if not self._is_running or "pending" not in states or states & set(_UNDER_WAY):
            return None
        try:
            return self._waiting_for()
        except Exception as error:  # the cluster did not answer: no reason to say nothing of the sweep
            logger.debug("what the trials wait for: %s", error)
            return None

    def _steps(self, trial_id: str) -> float:
        return min(float(self._latest.get(trial_id, {}).get(ENV_STEPS, 0.0)), float(self._total[trial_id]))

    def _done_steps(self) -> float:
        return sum(self._steps(trial_id) for trial_id in self._latest)

    def _steps_left(self) -> float:
        to_run = [name for name, state in self._state.items() if state in ("pending", *_UNDER_WAY)]
        return sum(self._total[name] - self._steps(name) for name in to_run) + self._budget * self._to_come()

    def _to_come(self) -> int:
        return max(0, self._planned - len(self._total))

    def _rate(self) -> float:
        """Env steps per second over the last minutes."""
        if not self._samples:
            return math.nan
        since, steps = self._samples[0]
        elapsed = time.monotonic() - since
        return (self._done_steps() - steps) / elapsed if elapsed > 1.0 else math.nan

    def _summary(self, now: Snapshot) -> str:
        tracker = "" if now.tracker is None else f"; MLflow: {now.tracker}"
        return f"{words_of(now.states)}; {_pace(now)}{tracker}"

    def _maybe_line(self) -> None:
        now = time.monotonic()
        if self._live is None and now - self._last_line >= LINE_EVERY_S:
            self._last_line = now
            shown = self.snapshot()
            lines = [f"{self._clock()}  {self._summary(shown)}"]
            lines += [f"{self._clock()}  best so far: {shown.best}"] if shown.best is not None else []
            for line in lines:
                self._tell(line)

    def _view(self) -> RenderableType:
        shown = self.snapshot()
        head = Table.grid(padding=(0, 2, 0, 0))
        head.add_row(Text(self._clock()), words_of(shown.states))
        head.add_row("", _pace(shown))
        if shown.tracker is not None:
            away = shown.tracker.unreachable_s is not None
            head.add_row("MLflow", Text(str(shown.tracker), style="red" if away else ""))
        if shown.best is not None:
            head.add_row("best", Text(shown.best.text(), style="bold"))
            head.add_row("prior", Text(shown.best.prior_text()))
        parts: list[RenderableType] = [head, Text()]
        # What does not fit the terminal would be cut off below by rich, the newest trials first.
        most = max(1, min(_MOST_ROWS, self._console.size.height - _OTHER_LINES - min(len(shown.failures), 4)))
        if shown.running:
            parts.append(self._table(shown.running[:most]))
        if len(shown.running) > most:
            parts.append(Text(f"and {len(shown.running) - most} more", style="dim"))
        failed = list(shown.failures.items())[-3:]
        parts += [
            Text(f"{name}: failed: {why}", style="red", overflow="ellipsis", no_wrap=True) for name, why in failed
        ]
        if len(shown.failures) > len(failed):
            parts.append(Text(f"and {len(shown.failures) - len(failed)} more failed", style="red"))
        return Group(*parts)

    def _table(self, running: Sequence[tuple[str, float, int]]) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0))
        for heading in ("trial", "env steps", "", "basic", "add-on", "KL to prior"):
            left = heading in ("trial", "")
            table.add_column(heading, justify="left" if left else "right", no_wrap=True, overflow="ellipsis")
        for trial_id, steps, total in running:
            result = self._latest.get(trial_id, {})
            bar = ProgressBar(total=max(total, 1), completed=steps, width=20)
            table.add_row(trial_id, f"{steps:,.0f}", bar, *(_number(result.get(key)) for key in _CELLS))
        return table

    def _returns(self, trial_id: str) -> str:
        result = self._latest.get(trial_id, {})
        found = finite_figures(result, FINAL, "deterministic")
        words = [f"{BY_NAME[name].heading} {found[name]:,.0f}" for name in RETURNS if name in found]
        return " — " + ", ".join(words) if words else ""

    def _clock(self) -> str:
        return f"[{duration(time.monotonic() - self._started)}]"


_STATE_AT: Mapping[Ending, str] = {
    "finished": "finished",
    "failed": "failed",
    "stopped": "ended_early",
    "unfinished": "stopped",
}


def _pace(now: Snapshot) -> str:
    if now.waiting is not None:
        return now.waiting
    if not now.env_steps_per_s > 0:
        return "starting"
    return f"{now.env_steps_per_s:,.0f} env steps/s, about {duration(now.time_left_s)} left"


def _number(value: Any) -> str:
    return f"{value:,.1f}" if isinstance(value, float) and math.isfinite(value) else "–"
