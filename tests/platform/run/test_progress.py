"""What a running sweep shows: on a terminal, in a pipe, and as data; and which setting it calls the best so far."""

from __future__ import annotations

import io
import json
import math
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from tests.platform.run.many import MANY

from rpg_platform.results.leader import Standing
from rpg_platform.run.progress import Progress
from rpg_platform.spec.checks import expand
from rpg_platform.spec.sweep import SweepSpec, TrialSpec
from rpg_platform.tracking.sender import TrackerState

A, B = (f"rpg-omega_prime={w}-alpha_hat=0.02" for w in (0.1, 0.2))


def trials(**changes: Any) -> list[TrialSpec]:
    return expand(SweepSpec.model_validate(MANY | changes))


def tune_trial(spec: TrialSpec) -> Any:
    class Trial(SimpleNamespace):
        __hash__ = object.__hash__  # type: ignore[assignment]

    return Trial(
        config={"trial": spec.model_dump(mode="json")}, error_file=None, get_error=lambda: "ValueError: it broke"
    )


def evaluated(total: float, prefix: str = "eval", kl: float = 1.0) -> dict[str, Any]:
    names = {"total_return": total, "basic_return": total - 5, "addon_return": 5.0}
    figures = {f"{prefix}/deterministic/{name}_mean": value for name, value in names.items()}
    return {"env_steps": 50_000.0, f"{prefix}/kl_to_prior": kl, **figures}


def test_the_best_of_a_population_is_named_by_the_weights_that_it_has() -> None:
    made = {trial.trial_id: trial for trial in trials(seeds=1)}
    progress = Progress(list(made.values()), Console(quiet=True))
    raw = made[f"{A}-seed=0"].model_dump(mode="json")
    raw["weights"]["omega_prime"] = [[0, 0.2], [5_000, 0.2], [5_001, 0.24]]
    raw["starts_from"] = {"checkpoint": "/start", "until_env_steps": 5_000}
    taken = tune_trial(TrialSpec.model_validate(raw))
    progress.on_trial_start(0, [], taken)
    progress.on_trial_result(1, [], taken, evaluated(300.0, "validation"))
    assert "rpg omega_prime=0.2⇒0.24@5001 alpha_hat=0.02: total 300" in str(progress.snapshot().best)


# ---- best so far ---------------------------------------------------------------------------------
def test_best_is_from_validations_first_and_from_final_evaluations_as_soon_as_there_are_any() -> None:
    made = trials()
    standing = Standing(made[0].objective)
    standing.add(made)
    assert standing.leader() is None
    standing.heard("prior", evaluated(70.0))
    assert standing.leader() is None, "the prior is not trained"
    standing.heard(f"{A}-seed=0", evaluated(300.0, "validation"))
    standing.heard(f"{A}-seed=0", evaluated(200.0, "validation"))  # worse than it was: its best counts
    standing.heard(f"{B}-seed=1", evaluated(250.0, "validation"))
    found = standing.leader()
    assert found is not None
    assert (found.group, found.source, found.seeds, found.of_seeds) == (A, "validation", 1, 2)
    assert found.figures["total_return"] == 300.0
    standing.heard(f"{B}-seed=0", evaluated(90.0))
    standing.heard(f"{B}-seed=1", evaluated(110.0))
    standing.heard(f"{A}-seed=0", {"env_steps": 1.0, "total_return": math.nan})
    found = standing.leader()
    assert found is not None
    assert (found.group, found.source, found.seeds) == (B, "final evaluation", 2)
    assert found.figures["total_return"] == 100.0
    assert str(found) == (
        "rpg omega_prime=0.2 alpha_hat=0.02: total 100, basic 95.00, add-on 5.00, KL 1.00 "
        "(final evaluation, 2 of 2 seeds); prior: total 70.00, basic 65.00, add-on 5.00, KL 1.00"
    )


def test_best_keeps_to_the_constraints_and_says_what_is_broken() -> None:
    made = trials(
        objective={"constraints": {"kl_to_prior": {"max": 2}, "basic_return": {"min_fraction_of_prior": 0.9}}}
    )
    standing = Standing(made[0].objective)
    standing.add(made)
    standing.heard("prior", evaluated(105.0))
    standing.heard(f"{A}-seed=0", evaluated(500.0, kl=3.0))
    found = standing.leader()
    assert found is not None
    assert found.broken == ("kl_to_prior at most 2, is 3 (50 % beyond)",)
    assert "; breaks kl_to_prior at most 2" in str(found)
    standing.heard(f"{B}-seed=0", evaluated(96.0, kl=1.0))  # 91 of basic return, of 90 that are asked for
    found = standing.leader()
    assert found is not None
    assert (found.group, found.broken) == (B, ())


# ---- the view ------------------------------------------------------------------------------------
@pytest.fixture
def busy() -> tuple[Progress, io.StringIO]:
    """501 trials, 40 of them running, some finished, some failed; a terminal of 100 x 24."""
    made = sorted(trials(seeds=250), key=lambda trial: (trial.method != "prior", trial.group))  # one setting first
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=100, height=24, color_system=None, legacy_windows=False)
    state = TrackerState(1_234, 12, unreachable_s=95.0)
    progress = Progress(made, console, lambda: state, {"prior": evaluated(70.0) | {"finished": True}})
    for trial in made[1:52]:
        progress.on_trial_start(0, [], tune_trial(trial))
    for trial in made[1:46]:
        progress.on_trial_result(0, [], tune_trial(trial), {"env_steps": 25_000.0, "basic_return": 1.5})
    for trial in made[1:7]:
        progress.on_trial_result(0, [], tune_trial(trial), evaluated(300.0) | {"finished": True, "env_steps": 1e5})
        progress.on_trial_complete(0, [], tune_trial(trial))
    for trial in made[7:12]:
        progress.on_trial_error(0, [], tune_trial(trial))
    return progress, text


def test_the_view_of_many_trials_fits_a_terminal(busy: tuple[Progress, io.StringIO]) -> None:
    progress, text = busy
    console = progress._console
    text.truncate(0)
    console.print(progress._view())
    shown = text.getvalue().strip("\x00\n").splitlines()
    assert len(shown) <= 24
    assert max(map(len, shown)) <= 100
    whole = " ".join(" ".join(shown).split())
    assert "[0:00] 7 finished, 40 running, 449 pending, 5 failed starting" in whole
    assert "MLflow 1,234 sent, 12 spooled, unreachable for 95 s" in whole
    assert "best rpg omega_prime=0.1 alpha_hat=0.02: total 300" in whole
    assert "(final evaluation, 6 of 250 seeds) prior total 70.00" in whole
    rows = sum("25,000" in line for line in shown)
    assert 5 <= rows < 40
    assert f"and {40 - rows} more" in whole
    assert "failed: ValueError: it broke" in whole
    assert "and 2 more failed" in whole


def test_the_same_as_data(busy: tuple[Progress, io.StringIO]) -> None:
    content = json.loads(json.dumps(busy[0].snapshot().as_json(), allow_nan=False))
    assert content["trials"] == {
        **dict.fromkeys(("ended_early", "restarting", "stopped"), 0),
        "total": 501,
        "finished": 7,
        "running": 40,
        "pending": 449,
        "failed": 5,
    }
    assert len(content["running"]) == 40
    assert content["env_steps"] == 6 * 100_000 + 39 * 25_000
    assert content["env_steps_total"] == 500 * 100_000
    assert content["tracker"]["unreachable_s"] == 95.0
    assert content["best"]["seeds"] == 6
    assert {each["error"] for each in content["failures"]} == {"ValueError: it broke"}
    assert content["time_left_s"] is None


def test_plain_lines_when_it_is_no_terminal() -> None:
    made, text = trials(), io.StringIO()
    with Progress(made, Console(file=text, width=80), lambda: TrackerState(3, 0)) as progress:
        for trial in made[1:3]:
            progress.on_trial_start(0, [], tune_trial(trial))
        progress.on_trial_result(0, [], tune_trial(made[1]), evaluated(300.0, "validation"))
        progress.on_trial_result(0, [], tune_trial(made[2]), evaluated(100.0, "validation"))
        progress.on_trial_error(0, [], tune_trial(made[2]))
    lines = text.getvalue().splitlines()
    assert lines[0] == "[0:00]  2 running, 3 pending; starting; MLflow: 3 sent, 0 spooled"
    assert lines[1].startswith("[0:00]  best so far: rpg omega_prime=0.1 alpha_hat=0.02: total 300")
    assert lines[2] == f"[0:00]  {made[2].trial_id}: failed — ValueError: it broke"
    assert len(lines) == 3, "one block in ten seconds"


def test_trials_may_become_known_while_the_sweep_runs_and_tune_may_pickle_it() -> None:
    made = trials()
    progress = Progress(made[:1], Console(file=io.StringIO()), planned=7, budget=100_000)
    progress.add_trials(made[1:2])
    progress.on_trial_start(0, [], tune_trial(made[3]))  # one that a search has just proposed
    states = progress.snapshot().states
    assert (states["pending"], states["running"]) == (2 + 4, 1)
    assert progress.snapshot().env_steps_total == 6 * 100_000  # the prior has none
    assert pickle.loads(pickle.dumps(progress)).snapshot().states == states


def test_what_an_earlier_attempt_did_is_not_counted_as_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    made, now = trials(), [0.0]
    monkeypatch.setattr("rpg_platform.run.progress.time.monotonic", lambda: now[0])
    begun = {made[1].trial_id: 40_000}
    progress = Progress(made, Console(file=io.StringIO()), finished={"prior": {"finished": True}}, begun=begun)
    for at, steps in ((0.0, 41_000.0), (10.0, 42_000.0), (20.0, 43_000.0)):
        now[0] = at
        progress.on_trial_result(0, [], tune_trial(made[1]), {"env_steps": steps})
    shown = progress.snapshot()
    assert shown.env_steps_per_s == pytest.approx(100.0)
    assert shown.env_steps == 43_000
    assert shown.time_left_s == pytest.approx((400_000 - 43_000) / 100)
    progress.on_trial_complete(0, [], tune_trial(made[1]))  # it is stopped: what it leaves is not to be done
    assert progress.snapshot().time_left_s == pytest.approx(300_000 / 100)


def test_a_stopped_sweep_shows_nothing_as_running() -> None:
    first, second, *_ = todo = trials()
    with Progress(todo, Console(file=io.StringIO())) as progress:
        progress.on_trial_start(0, [], tune_trial(first))
        progress.on_trial_complete(0, [], tune_trial(second))  # Tune ends what waits, too
        assert progress.snapshot().states["pending"] == len(todo) - 1
    states = progress.snapshot().states
    assert (states["running"], states["stopped"], states["pending"]) == (0, 1, len(todo) - 1)
