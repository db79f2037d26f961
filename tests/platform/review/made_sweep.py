"""A sweep's folder with the files that trials leave; its figures are a function of weights and seed."""

from __future__ import annotations

import itertools
import json
import math
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.platform.resolved import resolved
from tests.platform.tracking.toy_sweep import trial_of

from rpg_platform.bundles import SHIPPED
from rpg_platform.review.sources import FolderSource
from rpg_platform.search.proposals import known_trials
from rpg_platform.spec.checks import expand
from rpg_platform.spec.sweep import SweepSpec, TrialSpec
from rpg_platform.storage.plans import PLANS_FILE
from rpg_platform.storage.sweep_folder import SweepFolder
from rpg_platform.storage.trial_state import write_state
from rpg_platform.tracking.tracker import MlflowTracker

STEPS = 100_000
RAW: dict[str, Any] = {
    "name": "made",
    "description": "A made sweep with <b>markup</b> & an ampersand.",
    "task": "halfcheetah-foot-angle",
    "prior": "halfcheetah-spg",
    "algorithm": "rpg",
    "weights": {"omega_prime": {"grid": [0.05, 0.2, 0.8]}, "alpha_hat": {"grid": [0.02, 0.1]}},
    "baselines": [{"kl": {"kl_coefficient": 0.1}}],
    "seeds": 3,
    "budget": {"env_steps": STEPS},
}


def figures(trial: TrialSpec) -> dict[str, float]:
    """Basic and add-on return, and KL, of a trial's deterministic evaluation."""
    if trial.method == "prior":
        return {"basic": 6800.0, "addon": -3250.0, "kl": 0.0}
    noise = random.Random(trial.trial_id)
    if trial.method == "full":
        return {"basic": 7000.0 + noise.gauss(0, 60), "addon": -500.0 + noise.gauss(0, 30), "kl": 0.5}
    w = float(trial.weights.get("omega_prime", trial.weights.get("kl_coefficient", 0.1)))  # type: ignore[arg-type]
    a = float(trial.weights.get("alpha_hat", 0.3))  # type: ignore[arg-type]
    addon = -2600 + 1300 * math.exp(-2 * w) - 2000 * a + noise.gauss(0, 30)
    basic = 6700 - 900 * math.exp(-6 * w) + noise.gauss(0, 60)
    return {"basic": basic, "addon": addon, "kl": 3.5 - 2 * w + noise.gauss(0, 0.1)}


def points_of(trial: TrialSpec) -> list[dict[str, float]]:
    """Three settings over each range that a trial's policy is told."""
    ranges = [(name, (each.low, math.sqrt(each.low * each.high), each.high)) for name, each in trial.told.items()]
    return [dict(zip(trial.told, point, strict=True)) for point in itertools.product(*(ends for _, ends in ranges))]


def final_report(trial: TrialSpec, apart: bool = False) -> dict[str, Any]:
    """The report at a trial's end; ``apart``: with selection episodes, medians and single episodes, as trials make."""
    if trial.told:
        evaluated = [(at, final_report(trial.at(at), apart)) for at in points_of(trial)]
        own = [{key: value for key, value in each.items() if key.startswith("eval")} for _, each in evaluated]
        points = [{"weights": at, "report": each} for (at, _), each in zip(evaluated, own, strict=True)]
        return {**evaluated[0][1], "points": points}
    of = figures(trial)
    report: dict[str, Any] = {"env_steps": float(trial.env_steps), "finished": True, "eval/kl_to_prior": of["kl"]}
    if trial.method != "prior":
        report["eval/objective"] = of["addon"] - 50.0 * of["kl"]
    report["code"] = "rpg 0.1.0 from /somewhere"
    for mode, less in (("deterministic", 0.0), ("sampled", 120.0 if trial.method == "rpg" else 5.0)):
        values = {"basic_return": of["basic"] - less, "addon_return": of["addon"] - less}
        values |= {"total_return": sum(values.values()), "episode_length": 1000.0, "task_metric": -of["addon"] / 1e4}
        for name, value in values.items():
            report |= {f"eval/{mode}/{name}_mean": value, f"eval/{mode}/{name}_std": 50.0}
        if apart:  # other settings are best by these
            noise = random.Random(f"{trial.group} {mode}")
            for name, value in values.items():
                report[f"eval_selection/{mode}/{name}_mean"] = value * (1 + noise.gauss(0, 0.15))
                if name.endswith("_return"):
                    report[f"eval/{mode}/{name}_median"] = value + 1
            fallen = [-9000.0] * (trial.method == "kl")
            report[f"eval/{mode}/total_return_episodes"] = [values["total_return"]] * (20 - len(fallen)) + fallen
    if apart:
        report["eval_selection/kl_to_prior"] = of["kl"] * 0.9
    return report


def training_reports(trial: TrialSpec, count: int = 20) -> list[dict[str, Any]]:
    """Reports while training; in every third no episode ended."""
    of, reports = figures(trial.at(points_of(trial)[0]) if trial.told else trial), []
    for i in range(1, count + 1):
        part = i / count
        report = {
            "env_steps": float(round(trial.env_steps * part)),
            "kl_to_prior": of["kl"] * part,
            "approx_kl": 0.01 if i > 2 else 0.0,
            "clip_fraction": 0.2,
            "env_steps_per_s": 900.0 + 10 * i,
            "explained_variance": 0.9,
            "nonfinite_values": 0.0,
            "env_failures": 0.0,
            "reward_addon_term": -3.0 + part,
            "reward_prior_term": 0.1,
            "reward_entropy_term": -0.05,
        }
        if i % 3:
            report |= {"basic_return": of["basic"] - 200 * (1 - part), "addon_return": of["addon"] - 900 * (1 - part)}
            report["total_return"] = report["basic_return"] + report["addon_return"]
        if i % 5 == 0:
            for name in ("basic_return", "addon_return"):
                report[f"validation/deterministic/{name}_mean"] = of[name.split("_")[0]] - 100 * (1 - part)
            report["validation/deterministic/total_return_mean"] = of["basic"] + of["addon"] - 200 * (1 - part)
            report["validation/objective"] = of["addon"] - 50.0 * of["kl"] - 300 * (1 - part)
        reports.append(report)
    return reports


def made_sweep(
    storage: Path, *, reports: int = 20, whole_lines: bool = False, apart: bool = False, **changes: Any
) -> SweepFolder:
    """Writes a finished sweep.

    Args:
        storage: its storage.
        reports: how many each trial made.
        apart: see ``final_report``.
        whole_lines: with the configuration in each, as Tune writes them.
        changes: of its specification.
    """
    spec = SweepSpec.model_validate(RAW | changes | {"storage": str(storage)})
    folder = SweepFolder(str(storage), spec.name)
    folder.create(spec, None)
    trials = expand(spec)
    for trial in trials:
        own = Path(folder.uri) / trial.trial_id
        checkpoint = own / "checkpoint_000000"
        shutil.copytree(SHIPPED["halfcheetah-spg"], checkpoint / "bundle")
        last = final_report(trial, apart)
        write_state(checkpoint, trial.env_steps, last)
        lines = [*([] if trial.method == "prior" else training_reports(trial, reports)[:-1]), last]
        if whole_lines:
            lines = [line | {"config": {"trial": trial.model_dump(mode="json")}} for line in lines]
        (own / "result.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    status = {
        "format": 1,
        "sweep": spec.name,
        "state": "finished",
        "started": 1e9,
        "heartbeat": 1e9 + 65,
        "failures": [],
    }
    steps = sum(trial.env_steps for trial in trials)
    counts = {"trials": {"total": len(trials)}, "env_steps": steps, "env_steps_total": steps}
    folder.write_text("status.json", json.dumps(status | counts))
    return folder


def record(folder: SweepFolder, uri: str | None = None, files: Mapping[str, bytes] | None = None) -> None:
    """Records a made sweep in MLflow as its driver would have.

    Args:
        folder: the sweep's.
        uri: of the store; None: the embedded one beside it.
        files: artifacts of its run beside the usual ones.
    """
    spec = folder.spec()
    trials, states = known_trials(spec, folder), folder.trials()
    prior, plans = FolderSource(folder).prior_hash() or "a" * 64, folder.read_text(PLANS_FILE)
    sweep = resolved(spec, folder.storage, uri=uri, prior_hash=prior, source=folder.source(), resume=True)
    tracker = MlflowTracker(sweep, trials, texts_at_start={} if plans is None else {PLANS_FILE: plans})
    tracker.start()
    for trial in trials:
        tracker.on_trial_start(0, [], trial_of(trial))
        lines = (Path(folder.uri) / trial.trial_id / "result.json").read_text().splitlines()
        adopted = states[trial.trial_id].finishes(trial)  # with its last report
        for line in lines[:-1] if adopted else lines:
            tracker.on_trial_result(0, [], trial_of(trial), json.loads(line))
        if adopted:
            tracker.adopt(trial, states[trial.trial_id])
    why = {each["trial"]: each["error"] for each in json.loads(folder.read_text("status.json") or "{}")["failures"]}
    for trial in trials:
        if trial.trial_id in why:
            failed: Any = trial_of(trial)
            failed.last_result = {"failed": why[trial.trial_id]}
            tracker.on_trial_complete(0, [], failed)
    results = [(trial, states[trial.trial_id].report, why.get(trial.trial_id)) for trial in trials]
    assert tracker.finish(results, files=lambda status: files or {}) == ("FAILED" if why else "FINISHED")
    assert tracker.errors == 0
