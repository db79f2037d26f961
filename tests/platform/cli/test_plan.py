"""``rpg plan`` as a user meets it: on this machine without Ray, and of a running cluster."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from rpg_platform.cli.main import app

SPEC: dict[str, Any] = {
    "task": "halfcheetah-foot-angle",
    "prior": "halfcheetah-spg",
    "algorithm": "rpg",
    "weights": {"omega_prime": {"grid": [0.05, 0.2]}, "alpha_hat": 0.02},
    "seeds": 2,
    "budget": {"env_steps": 1_000_000},
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return tmp_path / "cache"


def plan(
    capfd: pytest.CaptureFixture[str], folder: Path, *arguments: str, expected: int = 0, **changes: Any
) -> tuple[str, str]:
    """What ``rpg plan`` prints, and what it says on standard error."""
    file = folder / "mine.yaml"
    file.write_text(yaml.safe_dump(SPEC | changes))
    storage = [] if "--storage" in arguments else ["--storage", str(folder / "out")]
    with pytest.raises(SystemExit) as ended:
        app(["plan", str(file), *storage, *arguments])
    printed = capfd.readouterr()
    assert ended.value.code == expected, printed.err
    return printed.out, printed.err


def test_the_rate_is_measured_once_and_kept(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    shown, said = plan(capfd, tmp_path)
    assert said == ""
    assert re.search(r"Trials +5: the prior, rpg 2 settings x 2 seeds", shown)
    assert re.search(r"Env steps +4,000,000, and 660,000 at most in evaluations", shown)
    assert re.search(
        r"Time +about .*CPU-hours \(\d+% of it evaluations\) at [\d,]+ env steps/s a trial, measured", shown
    )
    assert re.search(r"Cluster +1 node, .*trials? at once \(1 CPU each\)", shown)
    assert not (tmp_path / "out").exists()
    first = json.loads(plan(capfd, tmp_path, "--no-calibrate", "--json")[0])
    assert first["rate"]["env_steps_per_s"] > 0
    work = first["env_steps"] / first["rate"]["env_steps_per_s"]
    assert first["cpu_hours"] * 3600 > work
    assert first["wall_s"] > work / first["at_once"]


def test_a_running_cluster_is_asked(
    local_ray: None, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the session's Ray, of two CPUs, whatever this machine has."""
    resources = {"env_runners": 1}
    made = json.loads(plan(capfd, tmp_path, "--no-calibrate", "--json", resources=resources)[0])
    assert made["nodes"] == [{"CPU": 2.0}]
    assert (made["per_trial"]["CPU"], made["at_once"], made["rounds"]) == (2.0, 1, 5)
    assert (made["rate"], made["wall_s"], made["trials"]) == (None, None, 5)
    _, said = plan(capfd, tmp_path, "--no-calibrate", expected=2, resources={"env_runners": 2})
    assert "a trial asks for 3 CPU (resources), the cluster has 2: no trial could ever start" in said


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({"weights": {"omega_prim": 1}}, (), r"mine\.yaml:\d+:\d+: weights\.omega_prim: unknown|did you mean"),
        ({"task": "hopper-height"}, (), "acts in HalfCheetah-v5, but task 'hopper-height' is in Hopper-v5"),
        ({}, ("--storage", "/proc"), "/proc cannot be written to"),
        ({}, ("--name", "taken"), "a sweep named 'taken' was run there; nothing is overwritten"),
        ({"storage": "s3://bucket/x"}, ("--storage", "s3://bucket/x"), "give tracking.uri"),
    ],
    ids=["specification", "prior", "storage", "name", "tracking"],
)
def test_what_would_be_refused_is_refused(
    changes: dict[str, Any],
    arguments: tuple[str, ...],
    message: str,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    (tmp_path / "out" / "taken").mkdir(parents=True)
    shown, said = plan(capfd, tmp_path, *arguments, expected=2, **changes)
    assert shown == ""
    assert re.search(message, said)
