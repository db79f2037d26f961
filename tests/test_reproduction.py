"""The reproduction: its plan, the page from a real MLflow store, and the whole path in small."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.reproduction.driver import Driver, NotReadyError
from benchmarks.reproduction.figures import number
from benchmarks.reproduction.kept import Kept, KeptSweep
from benchmarks.reproduction.page import write_page
from benchmarks.reproduction.plan import CONFIGS, ENVIRONMENTS, FINAL_EVALUATION_SEED, ROOT, SEEDS, Scope, Step
from benchmarks.reproduction.records import Store
from docs.check import check_width, read_lines
from scipy import stats
from scipy.optimize import brentq
from tests.platform.resolved import resolved
from tests.platform.tracking.toy_sweep import trial_of

from rpg_algorithms import load_bundle
from rpg_platform.bundles import SHIPPED
from rpg_platform.evaluation.episode_file import EvaluatedPolicy, write_episodes
from rpg_platform.evaluation.play import Episodes
from rpg_platform.results.difference import mean_interval, ratio_interval
from rpg_platform.results.report import MODES
from rpg_platform.spec.checks import expand
from rpg_platform.spec.sweep import TrialSpec
from rpg_platform.spec.trials import count_trials
from rpg_platform.spec.yaml_file import load_spec
from rpg_platform.storage.location import default_tracking_uri
from rpg_platform.storage.sweep_folder import SweepFolder, TrialState
from rpg_platform.tracking.tracker import MlflowTracker

QUICK = Scope(("hopper",), quick=True)
REPORTS = 4
BEST = {
    "rpg": {"omega_prime": 0.5, "alpha_hat": 0.005},
    "kl": {"kl_coefficient": 0.05},
    "greedy": {"alpha_hat": 0.005},
    "full": {"alpha": 0.0},
    "scratch": {"alpha": 0.005},
}
FAILS = ("final-hopper-1", "greedy")
SPIKES, LOW = ("final-hopper-0", "full"), ("final-hopper-0", "rpg")


# ---- the plan ------------------------------------------------------------------------------------
def test_every_method_has_the_same_tuning_budget_and_the_settings_of_its_priors() -> None:
    for environment in ENVIRONMENTS:
        prior = load_spec(CONFIGS / "priors" / f"{environment}.yaml")
        customise, scratch, *entropy = (
            load_spec(file, check_files=False)
            for kind in ("customise", "scratch", "entropy")
            if (file := CONFIGS / "paper" / f"{environment}_{kind}.yaml").is_file()
        )
        counts: dict[str, int] = defaultdict(int)
        for trial in expand(customise):
            counts[trial.method] += 1
        assert counts == {"prior": 1, "rpg": 6, "kl": 6, "greedy": 6, "full": 6}
        assert count_trials(scratch) == 6
        assert customise.budget == scratch.budget
        assert scratch.training.fixed.network == prior.training.fixed.network
        assert customise.training.fixed.gamma == scratch.training.fixed.gamma == prior.training.fixed.gamma
        for spec in entropy:
            assert spec.training == prior.training
            assert spec.budget.env_steps <= prior.budget.env_steps
            assert spec.seeds == SEEDS
            for method in spec.methods:
                assert not method.weights or prior.weights["alpha"] in next(iter(method.weights.values())).values
    assert sum(step.stage == "entropy" for step in Scope().steps()) == 3 * len(SEEDS)  # a finished seed is kept


def test_what_is_reported_took_part_in_no_choice() -> None:
    scope = Scope(("ant",), (2,))
    tuning = [(step, scope.spec(step, "/s")) for step in scope.of("tuning", "ant")]
    final = [(step, scope.spec(step, "/s", chosen=BEST)) for step in scope.of("final", "ant")]
    assert [spec.seeds for step, spec in final if not step.is_scratch] == [(seed,) for seed in SEEDS]
    assert all(step.is_scratch or (step.prior_seed,) == spec.seeds for step, spec in (*tuning, *final))
    assert not {seed for _, spec in tuning for seed in spec.seeds} & {seed for _, spec in final for seed in spec.seeds}
    for chose, judges in ((a.evaluation, b.evaluation) for _, a in tuning for _, b in final):
        seen = {*range(chose.seed, chose.seed + chose.episodes)}
        seen |= {*range(chose.validation_seed, chose.validation_seed + chose.validation_episodes)}
        assert not seen & {*range(judges.seed, judges.seed + judges.episodes)}
        assert judges.seed == FINAL_EVALUATION_SEED


def test_intervals_are_scipys() -> None:
    rng = np.random.default_rng(3)
    x, y = rng.normal(5, 2, 5), rng.normal(9, 1, 5)
    low, high = stats.ttest_1samp(x, 0).confidence_interval(0.95)
    assert mean_interval(list(x)) == pytest.approx((low, high))
    # Fieller's ends are the ratios at which the mean of x - r y is just clear of zero.
    middle = x.mean() / y.mean()
    ends = [brentq(lambda r: stats.ttest_1samp(x - r * y, 0).pvalue - 0.05, middle, end) for end in (-0.5, 1.5)]
    assert ratio_interval(list(x), list(y)) == pytest.approx(ends)
    assert ratio_interval(list(x), list(y - y.mean())) is None
    assert mean_interval([1.0]) is None


def test_a_sweep_waits_for_what_it_needs_and_is_never_continued_as_another(tmp_path: Path) -> None:
    driver = Driver(QUICK, str(tmp_path), default_tracking_uri(tmp_path), print, lambda: None)
    [prior] = QUICK.of("prior", "hopper")
    with pytest.raises(NotReadyError, match="prior-hopper of seed 100 is not trained"):
        driver._sweep(QUICK.of("tuning", "hopper")[0])
    with pytest.raises(NotReadyError, match="tuning on hopper has not ended"):
        driver._sweep(QUICK.of("final", "hopper")[-1])
    spec = QUICK.spec(prior, str(tmp_path))
    other = spec.model_validate(spec.model_dump(mode="json") | {"seeds": [0]})
    SweepFolder(str(tmp_path), prior.name).create(other, None)
    with pytest.raises(ValueError, match=r"seeds was \[0\], now .*begin another one \(--storage\)"):
        driver._sweep(prior)


def test_a_prior_that_another_machine_trained_is_gone_on_from(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "kept")
    [prior] = QUICK.of("prior", "hopper")
    kept.keep(prior, KeptSweep(tags={}, trials={}), {100: SHIPPED["hopper-spg"]})
    driver = Driver(QUICK, str(tmp_path / "s"), default_tracking_uri(tmp_path / "s"), print, lambda: None, kept)
    tuning, other = QUICK.of("tuning", "hopper")[:2]
    found = driver._sweep(tuning).prior
    assert found is not None
    assert found.card.content_hash == load_bundle(SHIPPED["hopper-spg"]).card.content_hash
    with pytest.raises(NotReadyError, match="prior-hopper of seed 101 is not trained"):
        driver._sweep(other)
    assert Store(driver.uri, kept).is_complete(QUICK, prior)


# ---- a store -------------------------------------------------------------------------------------
def figures(step: Step, trial: TrialSpec, seed: int) -> dict[str, float]:
    """Basic and add-on return and KL of a made trial; the settings in ``BEST`` are the best on the tuning seeds."""
    method = step.method_of(trial.method, trial.weights)
    noise = random.Random(f"{step.name}/{trial.trial_id}")
    best = 400.0 if dict(trial.weights) == BEST.get(method) and step.stage == "tuning" else 0.0
    basic = 2000.0 + 100 * len(method) + 50 * seed + best + noise.gauss(0, 80)
    return {"basic": basic, "addon": 300.0 + noise.gauss(0, 40), "kl": 1.0 + noise.random()}


def reports(step: Step, trial: TrialSpec, seed: int) -> list[dict[str, Any]]:
    """What it reports: training, and its end."""
    of, key = figures(step, trial, seed), (step.name, trial.method)
    made: list[dict[str, Any]] = []
    for i in range(1, REPORTS + 1):
        steps = float(trial.env_steps * i // REPORTS)
        kl = 60.0 if key == SPIKES and i == 3 else 2.0
        made.append({"env_steps": steps, "kl_to_prior": kl, "approx_kl": 0.01, "timestamp": 1e9 + i})
        made[-1] |= {"explained_variance": 0.1 if key == LOW else 0.9, "episode_length": 500.0}
        so_far = {"basic_return": of["basic"], "total_return": of["basic"] + of["addon"]}
        made[-1] |= {name: value * i / REPORTS for name, value in so_far.items()}
    last = made[-1] | {"finished": True, "eval/kl_to_prior": of["kl"], "time_total_s": 36.0}
    for mode, less in (("deterministic", 0.0), ("sampled", 100.0)):
        values = {"basic_return": of["basic"] - less, "addon_return": of["addon"]}
        for name, value in (values | {"total_return": sum(values.values())}).items():
            last |= {f"eval/{mode}/{name}_mean": value, f"eval/{mode}/{name}_std": 5.0}
    return [*(made if trial.env_steps else []), last]


def episodes(total: float) -> EvaluatedPolicy:
    spread = np.array([total - 1.0, total, total + 30.0])
    same = np.zeros(3)
    return EvaluatedPolicy(1, 0, {mode: Episodes(same, same, spread, same, same, same) for mode in MODES})


def fill(storage: Path, steps: list[Step]) -> None:
    """Records sweeps as a driver does, through the tracker."""
    for step in steps:
        spec = QUICK.spec(step, str(storage), prior=None, chosen=BEST if step.stage == "final" else None)
        sweep = resolved(spec, storage, prior_hash=None if spec.prior is None else "a" * 64)
        tracker = MlflowTracker(sweep, sweep.trials, run_key=step.name)
        tracker.start()
        for trial in sweep.trials:
            seed = trial.seed if step.prior_seed is None else step.prior_seed
            *training, last = reports(step, trial, seed)
            tracker.on_trial_start(0, [], trial_of(trial))
            for report in training:
                tracker.on_trial_result(0, [], trial_of(trial), report)
            if (step.name, trial.method) == FAILS:
                broken = trial_of(trial)
                broken.last_result = training[-1] | {"failed": "it broke"}
                tracker.on_trial_complete(0, [], broken)
                continue
            checkpoint = storage / step.name / trial.trial_id / "checkpoint_000000"
            write_episodes(
                checkpoint, trial.trial_id, {"final": episodes(last["eval/deterministic/total_return_mean"])}
            )
            tracker.adopt(trial, TrialState(str(checkpoint), trial.env_steps, last))
        tracker.finish([])  # the pictures of its summary take seconds
        assert tracker.unsent == 0


def rows(page: str, start: str) -> list[list[str]]:
    """Cells of the lines of tables that begin with a word."""
    return [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith(f"| {start} |")]


def expected(method: str, measure: str) -> list[float]:
    """A measure of the final trials of a method that starts from a prior, straight from what they were made of."""
    found = []
    for step in QUICK.of("final", "hopper"):
        if step.prior_seed is not None:
            [own] = [t for t in expand(QUICK.spec(step, "/s", chosen=BEST)) if t.method == method]
            of = figures(step, own, step.prior_seed)
            found.append(of["basic"] + of["addon"] if measure == "total" else of[measure])
    return found


def interval_text(values: list[float]) -> str:
    ends = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    return f"{number(float(np.mean(values)))} [{number(ends.low)}, {number(ends.high)}]"


def test_the_page_has_what_mlflow_has(tmp_path: Path) -> None:
    out = tmp_path / "docs" / "page.md"
    store = default_tracking_uri(tmp_path / "storage")
    write_page(Store(store), QUICK, out)
    assert "Tuning has not ended yet." in out.read_text()
    assert not list(out.parent.glob("images/*"))
    fill(tmp_path / "storage", [step for step in QUICK.steps() if step.stage != "prior"])
    write_page(Store(store), QUICK, out)
    page = out.read_text()
    assert "| Hopper | priors | not run yet |" in page
    assert "2 settings, each trained with 2 seeds for 12,288 env steps" in " ".join(page.split())
    assert "not at the chosen weights" not in page
    assert check_width(list(read_lines(out))) == []
    assert {file.name for file in out.parent.glob("images/*")} == {
        "reproduction-1-hopper.png",
        "reproduction-2-hopper.png",
    }
    # The choice is that of the tuning seeds alone, though the final trials order the settings otherwise.
    tuned, final, trained, health = rows(page, "RPG")
    assert tuned[1:4] == ["2", "none", "ω′ 0.5 · α̂ 0.005"]
    rpg, kl = expected("rpg", "total"), expected("kl", "total")
    assert final[1] == "ω′ 0.5 · α̂ 0.005"
    assert final[4] == interval_text(rpg)
    assert final[5] == interval_text([total - 100 for total in rpg])
    assert final[6] == number(float(np.median([total + more for total in rpg for more in (-1, 0, 30)])))
    assert final[7] == interval_text(expected("rpg", "kl"))
    assert final[8] == "2"
    [_, of_kl, against_kl, _, _] = rows(page, "KL PPO")
    assert of_kl[4] == interval_text(kl)
    # A made training's returns rise in proportion to its env steps, from its first report on.
    assert trained[2:5] == [interval_text([share * total for total in rpg]) for share in (0.25, 0.5, 1.0)]
    differences = [a - b for a, b in zip(rpg, kl, strict=True)]
    assert against_kl[1] == interval_text(differences)
    assert against_kl[3].startswith(f"{np.mean(rpg) / np.mean(kl):.3f}")
    assert rows(page, "Greedy")[1][8] == "1 of 2, 1 failed"
    basic = [
        figures(step, trial, trial.seed)["basic"]
        for step in QUICK.of("entropy", "hopper")
        for trial in QUICK.trials(step)
        if trial.method == "spg" and trial.weights == {"alpha": 0.05}
    ]
    assert rows(page, "Soft PPO")[1][1:5] == [
        "α 0.05",
        interval_text(basic),
        interval_text([x - 100 for x in basic]),
        "2",
    ]
    assert rows(page, "Hopper: Soft PPO at α 0.05, basic return")[0][4] == interval_text(basic)
    assert rows(page, "prior")[0][2] == interval_text(expected("prior", "basic"))
    trained = sum(t.env_steps > 0 for step in QUICK.steps() if step.stage != "prior" for t in QUICK.trials(step))
    unsound = "trials that touched KL 50 or ended with explained variance below 0.3"
    assert rows(page, unsound)[0][4:6] == [f"2 of {trained}", "**missed** so far"]
    assert health == ["RPG", "6", "0", "2.00", "1"]
    assert rows(page, "Full, from the prior's weights")[-1] == ["Full, from the prior's weights", "6", "1", "60.0", "0"]
    # What is kept of the sweeps is all that the page needs.
    kept = Kept(tmp_path / "kept")
    for step in QUICK.steps():
        if step.stage != "prior":
            kept.keep(step, Store(store).to_keep(step), {})
    write_page(Store(default_tracking_uri(tmp_path / "nothing"), kept), QUICK, out)
    assert out.read_text() == page


# ---- the whole path ------------------------------------------------------------------------------
@pytest.mark.slow
def test_the_quick_pass_runs_is_stopped_and_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.reproduce", "--quick", "--storage", str(tmp_path / "s")]
    path = os.pathsep.join(map(str, (ROOT / "platform", ROOT / "algorithms")))
    environment = os.environ | {"PYTHONPATH": path}
    first = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    for line in first.stdout:
        if "prior-halfcheetah" in line:
            break
    while not (tmp_path / "s" / "prior-halfcheetah" / "status.json").is_file():
        time.sleep(0.2)
    first.send_signal(signal.SIGINT)
    said, _ = first.communicate(timeout=600)
    assert first.returncode == 1, said
    assert "The same command goes on" in said
    before = sorted((tmp_path / "s").glob("entropy-*/**/trial.json"))
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all trained" in done.stdout
    assert sorted((tmp_path / "s").glob("entropy-*/**/trial.json")) == before
    page = (tmp_path / "s" / "reproduction.md").read_text()
    assert "not run yet" not in page
    assert all(row[8] == "2" for name in ("Greedy", "KL PPO", "RPG") for row in rows(page, name)[1:2])
    again = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert again.returncode == 0
    assert "of 9)" not in again.stdout  # nothing was left to do
