"""A sweep that is ended goes on where it was: nothing is run twice, nothing is lost, and it stays the sweep it was."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from tests.platform.commands import refused, started, wait_for

from rpg_platform.spec.extension import ResumeError, check_same, extended, what_schedules_do
from rpg_platform.spec.sweep import SweepSpec
from rpg_platform.storage.location import default_tracking_uri
from rpg_platform.storage.sweep_folder import SweepFolder

if TYPE_CHECKING:
    from tests.platform.servers import TrackedSweep

    ReadSweep = Callable[[str, str], TrackedSweep]

RAW: dict[str, Any] = {
    "name": "ended",
    "task": "halfcheetah-foot-angle",
    "prior": "halfcheetah-spg",
    "algorithm": "rpg",
    "weights": {"omega_prime": {"grid": [0.1, 0.2]}, "alpha_hat": 0.02},
    "budget": {"env_steps": 12 * 2048},
    "training": {"critic_warmup_iterations": 1, "rollout_length": 256},
    "resources": {"max_concurrent": 1, "envs_per_runner": 8},
    "checkpoint": {"every_env_steps": 2048},
    "evaluation": {"episodes": 1, "validations": 0},
}
FIRST, SECOND = (f"rpg-omega_prime={w}-alpha_hat=0.02-seed=0" for w in (0.1, 0.2))
LIMIT_S = 240


def spec(**changes: Any) -> SweepSpec:
    return SweepSpec.model_validate(RAW | changes)


def test_a_sweep_is_resumed_as_it_was() -> None:
    check_same(spec(), spec(resources={"max_concurrent": 7}, description="elsewhere", faults={"retries": 5}))
    with pytest.raises(ResumeError, match=r"budget\.env_steps was 24576, now 10000; .*`rpg extend`"):
        check_same(spec(), spec(budget={"env_steps": 10_000}, weights={"omega_prime": 0.1, "alpha_hat": 0.03}))


def test_an_extension_says_what_its_schedules_do() -> None:
    assert what_schedules_do(spec(), spec(seeds=3)) == []
    [rate] = what_schedules_do(spec(), spec(budget={"env_steps": 4 * 12 * 2048}))
    assert "0 at 24,576 env steps, goes on at 75 % of training.lr and falls to 0 at 98,304" in rate
    faster = {"training": RAW["training"] | {"anneal_power": 2}}
    [rate] = what_schedules_do(spec(**faster), spec(**faster, budget={"env_steps": 4 * 12 * 2048}))
    assert "goes on at 56.2 % of training.lr" in rate
    weights = {"omega_prime": {"grid": [0.1, [[0, 0.2], [9_000, 0.1]]]}, "alpha_hat": 0.02}
    constant = {"weights": weights, "training": {"anneal_lr": False}}
    [kept] = what_schedules_do(spec(**constant), spec(**constant, budget={"env_steps": 50_000}))
    assert "after its last point a weight stays as it is" in kept


def test_an_extension_only_adds() -> None:
    more = extended(spec(), env_steps=50_000, seeds=3)
    assert (more.budget.env_steps, more.seeds) == (50_000, (0, 1, 2))
    wider = spec(weights={"omega_prime": {"grid": [0.1, 0.2, 0.4]}, "alpha_hat": 0.02})
    assert extended(spec(), wider) == wider
    for change, message in (
        ({"env_steps": 3_000}, "env_steps=3000: .* has 24576 already"),
        ({}, "nothing to extend"),
        ({"asked": spec(weights={"omega_prime": 0.1, "alpha_hat": 0.02})}, "1 trials .* would not be part"),
        ({"asked": spec(training=RAW["training"] | {"lr": 1e-5})}, r"training\.lr was 0.0004, now 1e-05"),
    ):
        with pytest.raises(ResumeError, match=message):
            extended(spec(), **change)


def test_the_default_warm_up_is_that_of_the_first_budget() -> None:
    def small(env_steps: int, **training: Any) -> SweepSpec:
        return spec(budget={"env_steps": env_steps}, training={"rollout_length": 256, **training})

    for budget, warmup in ((2048, 0), (4 * 2048, 1), (24 * 2048, 6), (400_000, 10)):
        assert small(budget).training.fixed.critic_warmup_iterations == warmup
    stored = SweepSpec.model_validate(small(4 * 2048).model_dump(mode="json"))
    for more in (extended(stored, env_steps=400_000), extended(stored, small(400_000))):
        assert (more.budget.env_steps, more.training.fixed.critic_warmup_iterations) == (400_000, 1)
    with pytest.raises(ResumeError, match="critic_warmup_iterations was 1, now 7"):
        extended(stored, small(400_000, critic_warmup_iterations=7))


@pytest.mark.slow
@pytest.mark.timeout(4 * LIMIT_S)
@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGTERM, id="stopped"), pytest.param(signal.SIGKILL, id="killed")]
)
def test_an_ended_sweep_goes_on_where_it_was(tmp_path: Path, number: int, read_sweep: ReadSweep) -> None:
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(RAW))
    folder = SweepFolder(str(tmp_path / "results"), "ended")
    with started("sweep", "sweep.yaml", "--storage", "results", cwd=tmp_path) as process:
        # The prior's row and the first trial are finished, the second has a checkpoint.
        wait_for(lambda: SECOND in folder.trials(), process)
        if number == signal.SIGKILL:
            os.killpg(process.pid, number)  # Ray's processes too: as if the machine went down
        else:
            process.send_signal(number)
        output, _ = process.communicate(timeout=LIMIT_S)
    ended = folder.trials()
    assert (ended[FIRST].finished, ended[SECOND].finished) == (True, False)
    if number == signal.SIGTERM:
        assert process.returncode == 1
        assert "rpg resume ended --storage" in output
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "results" / "ended" / FIRST).rglob("*")}

    again = refused("sweep", str(tmp_path / "sweep.yaml"), "--storage", str(tmp_path / "results"))
    assert "nothing is overwritten" in again

    with started("resume", "ended", "--storage", "results", cwd=tmp_path) as process:
        output, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, output
    assert "2 of 3 trials are finished, 1 go on from a checkpoint" in output
    states = folder.trials()
    assert all(state.finished for state in states.values())
    assert {file: file.stat().st_mtime_ns for file in before} == before, "a finished trial was touched"
    tracked = read_sweep(default_tracking_uri(tmp_path / "results"), "ended")
    assert sorted(tracked.children) == sorted((FIRST, SECOND, "prior"))
    assert {run.info.status for run in (tracked.parent, *tracked.children.values())} == {"FINISHED"}
    steps = [step for step, _ in tracked.history(tracked.children[SECOND], "system/env_steps_per_s")]
    assert max(steps) == 12 * 2048
    # From the checkpoint on, not from the start: what was trained once is not trained again.
    assert len(steps) - len(set(steps)) <= 1 if number == signal.SIGTERM else steps.count(2048) == 1
