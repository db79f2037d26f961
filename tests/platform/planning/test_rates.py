"""Which trials share a rate, and how it is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.platform.planning.planned import RATE, TWO, spec

from rpg_platform.planning.rates import keep_rate, known_rate, rate_key
from rpg_platform.spec.checks import expand
from rpg_platform.spec.sweep import TrialSpec


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "rpg" / "rates"


def trials(**changes: Any) -> dict[str, TrialSpec]:
    return {trial.trial_id: trial for trial in expand(spec(**changes))}


def test_a_rate_belongs_to_what_costs_time() -> None:
    found = trials(baselines=["greedy", {"full": {"alpha": 0.1}}])
    one, other, greedy, full = (
        found[f"{name}-seed=0"]
        for name in (
            "rpg-omega_prime=0.1-alpha_hat=0.02",
            "rpg-omega_prime=0.2-alpha_hat=0.02",
            "greedy",
            "full-alpha=0.1",
        )
    )
    key = rate_key(one, TWO)
    assert key == rate_key(other, TWO) == rate_key(greedy, TWO)
    assert key != rate_key(full, TWO)  # of the other algorithm
    assert key != rate_key(one, [{"CPU": 64.0}])
    assert key != rate_key(trials(training={"num_epochs": 3})[one.trial_id], TWO)


def test_a_rate_is_kept_until_its_file_is_damaged(cache: Path) -> None:
    assert known_rate("key") is None
    keep_rate("key", RATE)
    assert known_rate("key") == RATE
    file = cache / "key.json"
    kept = file.read_text()
    for damaged in (
        '{"env_steps_per_s": "fast"}',
        kept[:-3],
        kept.replace("1000.0", "0.0"),
        kept.replace("2.0", "NaN"),
    ):
        file.write_text(damaged)
        assert known_rate("key") is None, damaged


def test_a_rate_that_cannot_be_kept_stops_nothing(cache: Path) -> None:
    cache.parent.mkdir(parents=True)
    cache.touch()
    keep_rate("key", RATE)
    assert known_rate("key") is None
