"""What a running sweep shows: a live table on a terminal, plain lines anywhere else."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray.tune import Callback
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rpg_platform.spec import TrialSpec

LINE_EVERY_S = 10.0
REFRESH_PER_S = 2


class Progress(Callback):
    """Follows a sweep's trials: states, env steps, rate, time left, latest returns.

    Args:
        trials: all trials of the sweep.
        console: where to show it; a live view when it is a terminal.
        tracking: says where the tracker's records are.
        finished: last reports of the trials that an earlier attempt finished.
    """

    def __init__(
        self,
        trials: Sequence[TrialSpec],
        console: Console,
        tracking: Callable[[], object] | None = None,
        finished: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self._tracking = tracking
        self._total = {trial.trial_id: trial.env_steps for trial in trials}
        self._latest: dict[str, Mapping[str, Any]] = dict(finished or {})
        self._state = dict.fromkeys(self._total, "pending") | dict.fromkeys(self._latest, "finished")
        self._console = console
        self._started = time.monotonic()
        self._first_report: tuple[float, float] | None = None
        self._last_line = 0.0
        self._codes: set[str] = set()
        self._live: Live | None = None

    def __enter__(self) -> Progress:
        if self._console.is_terminal:
            self._live = Live(
                get_renderable=self._view, console=self._console, refresh_per_second=REFRESH_PER_S, transient=True
            )
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks; a live display, its console and the tracker stay here."""
        return self.__dict__ | {"_live": None, "_console": None, "_tracking": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state | {"_console": Console()}

    # --- Tune's events

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial got its resources."""
        self._move(trial, "running")

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A trial reported."""
        self._print_code(str(result.get("code", "")))
        self._latest[_trial_id(trial)] = result
        if self._first_report is None:
            self._first_report = (time.monotonic(), self._done_steps())
        self._maybe_line()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial ended: it finished, gave up, or was stopped."""
        last = self._latest.get(_trial_id(trial), {})
        self._move(trial, "finished" if last.get("finished") else "failed" if "failed" in last else "stopped")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial failed for good."""
        self._move(trial, "failed")

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial failed and starts again from its checkpoint."""
        self._move(trial, "restarting")

    def _print_code(self, code: str) -> None:
        """Once for each version of the code that a trial runs: on a cluster it should be the driver's."""
        if code and code not in self._codes:
            self._codes.add(code)
            self._console.print(f"{code} (trial)", highlight=False, markup=False, soft_wrap=True)

    def _move(self, trial: Any, state: str) -> None:
        trial_id = _trial_id(trial)
        self._state[trial_id] = state
        if self._live is None and state in ("finished", "failed", "stopped", "restarting"):
            self._console.print(f"{self._clock()}  {trial_id}: {state}{self._returns(trial_id)}", highlight=False)

    # --- what is shown

    def _done_steps(self) -> float:
        return sum(min(float(r.get("env_steps", 0.0)), self._total.get(k, 0)) for k, r in self._latest.items())

    def _rate(self) -> float:
        """Env steps per second since the first report."""
        if self._first_report is None:
            return math.nan
        since, steps = self._first_report
        elapsed = time.monotonic() - since
        return (self._done_steps() - steps) / elapsed if elapsed > 1.0 else math.nan

    def _summary(self) -> str:
        states = list(self._state.values())
        counts = ", ".join(
            f"{states.count(s)} {s}" for s in ("finished", "running", "pending", "stopped", "failed") if s in states
        )
        rate, left = self._rate(), sum(self._total.values()) - self._done_steps()
        pace = f"{rate:,.0f} env steps/s, about {_duration(left / rate)} left" if rate > 0 else "starting"
        tracking = "" if self._tracking is None else f"; MLflow: {self._tracking()}"
        return f"{counts}; {pace}{tracking}"

    def _maybe_line(self) -> None:
        now = time.monotonic()
        if self._live is None and now - self._last_line >= LINE_EVERY_S:
            self._last_line = now
            self._console.print(f"{self._clock()}  {self._summary()}", highlight=False)

    def _view(self) -> RenderableType:
        table = Table(box=None, padding=(0, 2, 0, 0))
        for heading in ("trial", "env steps", "", "basic", "add-on", "KL to prior"):
            table.add_column(heading, justify="left" if heading in ("trial", "") else "right")
        for trial_id, state in self._state.items():
            if state not in ("running", "restarting"):
                continue
            result, total = self._latest.get(trial_id, {}), self._total[trial_id]
            steps = float(result.get("env_steps", 0.0))
            table.add_row(
                trial_id,
                f"{steps:,.0f}",
                ProgressBar(total=max(total, 1), completed=steps, width=20),
                *(_number(result.get(key)) for key in ("basic_return", "addon_return", "kl_to_prior")),
            )
        return Group(Text(f"{self._clock()}  {self._summary()}"), table)

    def _returns(self, trial_id: str) -> str:
        result = self._latest.get(trial_id, {})
        names = ("basic", "addon", "total")
        values = [result.get(f"eval/deterministic/{name}_return_mean") for name in names]
        if any(v is None for v in values):
            return ""
        return " — " + ", ".join(
            f"{name.replace('addon', 'add-on')} {v:,.0f}" for name, v in zip(names, values, strict=True)
        )

    def _clock(self) -> str:
        return f"[{_duration(time.monotonic() - self._started)}]"


def _trial_id(trial: Any) -> str:
    return str(trial.config["trial"]["trial_id"])


def _number(value: Any) -> str:
    return f"{value:,.1f}" if isinstance(value, float) and math.isfinite(value) else "–"


def _duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "?"
    minutes, s = divmod(int(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{s:02d}" if hours else f"{minutes}:{s:02d}"
