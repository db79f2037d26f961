"""What of a sweep has no result, and why, in lines to read."""

from __future__ import annotations

from rpg_platform.results.endings import without_result
from rpg_platform.results.report import TrialResult
from rpg_platform.spec.checks import expand
from rpg_platform.spec.sweep import SweepSpec


def test_trials_without_a_result_are_named_by_their_reasons() -> None:
    raw = {"name": "s", "task": "halfcheetah-foot-angle", "algorithm": "spg", "weights": {"alpha": 0.1}, "seeds": 12}
    trials = expand(SweepSpec.model_validate(raw | {"budget": {"env_steps": 10_000}}))
    ends = [
        ({"finished": True, "env_steps": 10_000.0}, None),
        ({"finished": False, "env_steps": 5_000.0}, "NonFiniteError: vf_loss is NaN"),
        *[({"finished": False, "env_steps": 2_000.0}, "no report for 9 s")] * 5,
        (None, "no report for 9 s"),
        ({"finished": False, "env_steps": 2_048.0}, None),
        ({"finished": False, "env_steps": 2_048.0, "stopped_by": "asha"}, None),  # on purpose
        (None, None),
        (None, None),
    ]
    results: list[TrialResult] = [(trial, *end) for trial, end in zip(trials, ends, strict=True)]
    names = [trial.trial_id for trial in trials]
    assert without_result(results) == [
        f"{names[1]}: NonFiniteError: vf_loss is NaN",
        f"{', '.join(names[2:5])} and 3 more: no report for 9 s",
        f"stopped, and saved: {names[8]} at 2,048 of 10,000 env steps",
        f"never started: {names[10]}, {names[11]}",
    ]
    assert without_result(results[:1]) == []
