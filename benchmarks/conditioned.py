"""One training for a range of weights against a separate training of each setting: trains both, writes the comparison.

    python -m benchmarks.conditioned --environment halfcheetah [--storage DIR] [--write-only]

Three sweeps of five seeds, all of the settings of ``tune_configs/<environment>_conditioned.yaml``: its policy for a
range; a training of each setting at which that is evaluated, 0.8 M env steps; and two small weights for as long as the
range. Ctrl-C saves what is running and the same command goes on. The section is written into docs/conditioned.md.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

import numpy as np
from benchmarks.reproduction.plan import CONFIGS, ENVIRONMENTS, ROOT
from benchmarks.speed import machine
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from rpg_algorithms.addons import Array
from rpg_algorithms.maths.conditioned import Conditioned, grid
from rpg_platform.results.difference import mean_interval, ratio_interval
from rpg_platform.results.names import SYMBOLS
from rpg_platform.results.report import FINAL, is_finished, mean_key, number
from rpg_platform.results.statistics import Interval
from rpg_platform.review.choice import parse_rule
from rpg_platform.review.curves import Training, trainings
from rpg_platform.review.finding import NothingFoundError, find_weight
from rpg_platform.review.found import Found, found_in
from rpg_platform.review.range_policies import RangePolicies, range_policies
from rpg_platform.spec.methods import PRIOR
from rpg_platform.spec.sections import Objective, Resources
from rpg_platform.spec.sweep import SweepSpec, TrialSpec
from rpg_platform.spec.yaml_file import dump_spec, load_spec
from rpg_platform.storage.location import DEFAULT_STORAGE, storage_path
from rpg_platform.storage.sweep_folder import SweepFolder

PAGE = ROOT / "docs" / "conditioned.md"
SEEDS = (0, 1, 2, 3, 4)
SEPARATE = 800_000
KEEP = 0.9
RULE = f"max addon_return where basic_return >= {KEEP} * prior"
KINDS = ("range", "separate", "long")
Setting = tuple[tuple[str, float], ...]
"""Weights, by name in their order."""


@dataclass(frozen=True)
class Study:
    """The comparison on one environment.

    Attributes:
        environment: what ``tune_configs/<environment>_conditioned.yaml`` is for.
        storage: where its sweeps are kept.
    """

    environment: str
    storage: str

    @cached_property
    def _file(self) -> SweepSpec:
        return load_spec(CONFIGS / f"{self.environment}_conditioned.yaml", check_files=False)

    @cached_property
    def ranges(self) -> list[Conditioned]:
        """The weights that the policy is told."""
        weights = self._file.model_dump(mode="json")["weights"]
        return [
            Conditioned(value["conditioned"][0], value["conditioned"][1], name)
            for name, value in weights.items()
            if isinstance(value, dict)
        ]

    @property
    def settings(self) -> list[Setting]:
        """Those at which the policy for the range is evaluated, and each of which is trained by itself."""
        each = self._file.evaluation.values_of_each(len(self.ranges))
        return [tuple(point.items()) for point in grid(self.ranges, each)]

    def name(self, kind: str) -> str:
        """Of a sweep."""
        return f"conditioned-{self.environment}-{kind}"

    def spec(self, kind: str) -> SweepSpec:
        """The specification of a sweep: ``range``, ``separate`` or ``long``."""
        raw = self._file.model_dump(mode="json")
        raw |= {"name": self.name(kind), "storage": self.storage, "seeds": list(SEEDS)}
        if kind == "range":
            return SweepSpec.model_validate(raw)
        axes = {each.name: sorted({dict(s)[each.name] for s in self.settings}) for each in self.ranges}
        if kind == "long":  # small weights of the first, the middle of the others
            first = self.ranges[0].name
            axes = {name: values[:2] if name == first else [values[len(values) // 2]] for name, values in axes.items()}
        else:
            raw["budget"] |= {"env_steps": SEPARATE}
        raw["weights"] = {**raw["weights"], **{name: {"grid": values} for name, values in axes.items()}}
        raw["resources"] |= {"envs_per_runner": Resources().envs_per_runner}
        return SweepSpec.model_validate(raw)

    def train(self) -> bool:
        """Trains what is not trained; returns whether everything is."""
        from rpg_platform.run.run import run_sweep
        from rpg_platform.storage.sweep import Sweep

        for kind in KINDS:
            folder, spec = SweepFolder(self.storage, self.name(kind)), self.spec(kind)
            resume = folder.is_sweep()
            if resume and all(is_finished(report, error) for _, report, error in found_in(folder).results):
                continue
            source = folder.source() if resume else dump_spec(spec)
            outcome = run_sweep(Sweep.resolve(folder.spec() if resume else spec, source=source, resume=resume))
            if outcome.interrupted:
                return False
        return True


@dataclass(frozen=True)
class Scores:
    """What one sweep came to: setting → seed → measure → its mean over the final episodes."""

    of: Mapping[Setting, Mapping[int, Mapping[str, float]]]
    prior: Mapping[str, float]
    hours: float

    @classmethod
    def read(cls, found: Found) -> Scores:
        """Of a sweep's finished trials."""
        of: dict[Setting, dict[int, dict[str, float]]] = {}
        prior: dict[str, float] = {}
        names = ("basic_return", "addon_return", "total_return", "task_metric")
        for trial, report, error in found.results:
            if not is_finished(report, error) or report is None:
                continue
            figures = {name: number(report, mean_key(FINAL, "deterministic", name)) for name in names}
            figures["objective"] = number(report, mean_key(FINAL, "sampled", "objective"))
            if trial.method == PRIOR:
                prior = figures
            else:
                of.setdefault(_weights(trial), {})[trial.seed] = figures
        seconds = sum(float((report or {}).get("time_total_s", 0.0)) for _, report, _ in found.trained)
        return cls(of, prior, seconds / 3600)

    def over_seeds(self, setting: Setting, measure: str) -> list[float]:
        """A measure at a setting, by seed."""
        at = self.of.get(_like(setting, self.of), {})
        return [at[seed][measure] for seed in sorted(at)]

    def by_seed(self, measure: str) -> dict[int, list[float]]:
        """Seed → a measure at every setting, in the settings' order; of seeds that have all."""
        seeds = set.intersection(*(set(at) for at in self.of.values())) if self.of else set()
        return {seed: [at[seed][measure] for at in self.of.values()] for seed in sorted(seeds)}

    def hypervolumes(self) -> list[float]:
        """Per seed the area between the settings' front of (basic, add-on) and (0, the prior's add-on)."""
        basic, addon = self.by_seed("basic_return"), self.by_seed("addon_return")
        floor = self.prior["addon_return"]
        return [hypervolume([(b, a - floor) for b, a in zip(basic[s], addon[s], strict=True)]) for s in basic]


def _weights(trial: TrialSpec) -> Setting:
    """A trial's weights that are numbers, but the add-on's own."""
    numbers = {name: value for name, value in trial.weights.items() if isinstance(value, int | float)}
    return tuple((name, float(value)) for name, value in numbers.items())


def _like(setting: Setting, known: Mapping[Setting, Any]) -> Setting:
    """The same setting, whatever the order of its weights."""
    return next((each for each in known if dict(each) == dict(setting)), setting)


def hypervolume(points: Sequence[tuple[float, float]]) -> float:
    """Area that the points dominate above the origin; of two figures that are to be high."""
    area, highest = 0.0, 0.0
    for x, y in sorted(points, reverse=True):
        if x > 0 and y > highest:
            area, highest = area + x * (y - highest), y
    return area


def kept_on_other_episodes(found: Found) -> list[tuple[float, float]]:
    """Per seed the weight that keeps ``KEEP`` of the prior's basic return, and the share kept on other episodes.

    As ``rpg weights NAME --rule RULE`` finds it, for one policy at a time. A seed without such a weight is left out.
    """
    policies, objective, settings = range_policies(found), parse_rule(RULE), found.spec.evaluation
    of, *others = policies.told
    rest = {each.name: float(f"{each.weight(0.0):.3g}") for each in others}
    kept = []
    for network in policies.networks:
        one = replace(policies, networks=[network])
        play = partial(_play, one, of.name, rest, objective, settings.episodes)

        before = one.play_prior(objective, settings.episodes, settings.selection_seed)
        try:
            answer = find_weight(of, objective, partial(play, settings.selection_seed), before)
        except NothingFoundError as error:
            print(error, file=sys.stderr)
            continue
        prior = one.play_prior(objective, settings.episodes, settings.seed)
        assert prior is not None
        reached = play(settings.seed, answer.value)["basic_return"].mean() / prior["basic_return"].mean()
        kept.append((answer.value, float(reached)))
    return kept


def _play(
    policies: RangePolicies,
    of: str,
    rest: Mapping[str, float],
    objective: Objective,
    episodes: int,
    seed: int,
    at: float,
) -> Mapping[str, Array]:
    return policies.play({of: at, **rest}, objective, episodes, seed)


def _words(value: float, interval: Interval | None = None, digits: int = 0) -> str:
    ends = "" if interval is None else f" [{interval[0]:,.{digits}f}, {interval[1]:,.{digits}f}]"
    return f"{value:,.{digits}f}{ends}"


def _over_seeds(scores: Sequence[float], digits: int = 0) -> str:
    return _words(float(np.mean(scores)), mean_interval(scores), digits) if scores else "–"


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    if not ours or not theirs:
        return "–"
    return _words(float(np.mean(ours) / np.mean(theirs)), ratio_interval(ours, theirs), 3)


class Section:
    """What docs/conditioned.md says of one environment.

    Args:
        study: the comparison; its sweeps for the range and of separate trainings have begun.
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        folders = {kind: SweepFolder(study.storage, study.name(kind)) for kind in KINDS}
        self.found = {kind: found_in(folder) for kind, folder in folders.items() if folder.is_sweep()}
        self.scores = {kind: Scores.read(found) for kind, found in self.found.items()}

    def write(self, page: Path) -> None:
        """Puts it between its marks on a page, and its picture into ``images/`` beside the page."""
        begin, end = (f"<!-- {self.study.environment}: {word} -->" for word in ("measured", "end"))
        text = page.read_text(encoding="utf-8")
        if begin not in text:
            text = f"{text.rstrip()}\n\n{begin}\n{end}\n"
        before, after = text.split(begin)[0], text.split(end)[1]
        page.write_text(f"{before}{begin}\n\n" + "\n".join(self.lines()) + f"\n\n{end}{after}", encoding="utf-8")
        self.draw(page.parent / "images" / f"conditioned-{self.study.environment}.png")

    def lines(self) -> Iterator[str]:
        """The section, a paragraph or line of a table at a time."""
        ours, theirs, study = self.scores["range"], self.scores["separate"], self.study
        steps, seeds = self.found["range"].spec.budget.env_steps, sum(1 for _ in ours.by_seed("objective"))
        yield f"### {ENVIRONMENTS[study.environment]}"
        yield ""
        yield f"`python -m benchmarks.conditioned --environment {study.environment}`, {machine()}."
        yield ""
        yield textwrap.fill(
            f"Means over {seeds} training seeds with 95 % intervals over them. J is the sampled policy's objective at "
            "the setting, undiscounted per episode; the rest is of the deterministic policy, "
            f"{self.found['range'].spec.evaluation.episodes} episodes. The range has {steps / 1e6:g} M env steps for "
            f"all settings, a separate training {SEPARATE / 1e6:g} M for one.",
            100,
        )
        yield ""
        yield "| setting | J, range | J, separate | not below its interval | total, range | total, separate |"
        yield "| --- | --- | --- | --- | --- | --- |"
        for setting in study.settings:
            j, single = ours.over_seeds(setting, "objective"), theirs.over_seeds(setting, "objective")
            low = (mean_interval(single) or (math.nan,))[0]
            verdict = "–" if not j or math.isnan(low) else "above" if np.mean(j) > np.mean(single) else "yes"
            verdict = "**no**" if j and np.mean(j) < low else verdict
            totals = (_over_seeds(each.over_seeds(setting, "total_return")) for each in (ours, theirs))
            yield f"| {_named(setting)} | {_over_seeds(j)} | {_over_seeds(single)} | {verdict} | {' | '.join(totals)} |"
        yield ""
        yield "| figure | range | separate | ratio |"
        yield "| --- | --- | --- | --- |"
        best = [[max(values) for values in each.by_seed("total_return").values()] for each in (ours, theirs)]
        volumes = [each.hypervolumes() for each in (ours, theirs)]
        rows = (("best total return of a seed's settings", best), ("hypervolume of (basic, add-on)", volumes))
        for words, (a, b) in rows:
            yield f"| {words} | {_over_seeds(a)} | {_over_seeds(b)} | {_ratio(a, b)} |"
        yield f"| hours of training | {ours.hours:.2f} | {theirs.hours:.2f} | {ours.hours / theirs.hours:.3f} |"
        yield ""
        kept = kept_on_other_episodes(self.found["range"])
        if kept:
            shares = ", ".join(f"{100 * share:.1f} % (at {weight:.3g})" for weight, share in kept)
            yield textwrap.fill(
                f"Asked to keep {100 * KEEP:.0f} % of the prior's basic return, each seed's policy keeps on other "
                f"episodes: {shares}. Command: `rpg weights {study.name('range')} --rule '{RULE}'`.",
                100,
                break_long_words=False,
                break_on_hyphens=False,
            )
            yield ""
        yield from self._long()
        yield f"![The trade-off of one training, and of separate ones](images/conditioned-{study.environment}.png)"

    def _long(self) -> Iterator[str]:
        """How far separate trainings at small weights come in as many steps as the range has."""
        if "long" not in self.scores:
            return
        long, ours, theirs = (self.scores[kind] for kind in ("long", "range", "separate"))
        steps = self.found["long"].spec.budget.env_steps
        yield f"Separate trainings of {steps / 1e6:g} M env steps:"
        yield ""
        yield "| setting | | J | basic | add-on | total |"
        yield "| --- | --- | --- | --- | --- | --- |"
        of = (("range", ours), (f"separate, {SEPARATE / 1e6:g} M", theirs), (f"separate, {steps / 1e6:g} M", long))
        for setting, (words, scores) in itertools.product(long.of, of):
            names = ("objective", "basic_return", "addon_return", "total_return")
            figures = " | ".join(_over_seeds(scores.over_seeds(setting, name)) for name in names)
            yield f"| {_named(setting)} | {words} | {figures} |"
        yield ""

    def draw(self, file: Path) -> None:
        """The front of either, and how J went in the long separate trainings."""
        figure = Figure(figsize=(10.4, 4.0), layout="constrained")
        front, curves = figure.subplots(1, 2)
        for kind, colour, words in (
            ("separate", "#9a9a9a", "separate trainings"),
            ("range", "#0072b2", "one training"),
        ):
            scores = self.scores[kind]
            points = [[np.mean(scores.over_seeds(s, n)) for n in ("basic_return", "addon_return")] for s in scores.of]
            x, y = np.array(sorted(points)).T
            front.plot(x, y, "o", color=colour, label=words)
        prior = self.scores["range"].prior
        front.plot(prior["basic_return"], prior["addon_return"], "*", color="black", markersize=11, label="prior")
        front.set(xlabel="basic return", ylabel="add-on return")
        front.legend(frameon=False)
        for i, (setting, trained) in enumerate(self._curves().items()):
            colour = ("#d55e00", "#009e73", "#cc79a7")[i % 3]
            grid_ = np.linspace(0, max(t.steps[-1] for t in trained), 60)
            values = [_interpolated(t, grid_) for t in trained]
            curves.plot(grid_, np.nanmean(values, axis=0), color=colour, label=f"separate, {_named(setting)}")
            curves.axhline(float(np.mean(self.scores["range"].over_seeds(setting, "objective"))), color=colour, ls="--")
        curves.set(xlabel="env steps", ylabel="J (dashed: one training for the range, at its end)")
        curves.xaxis.set_major_formatter(EngFormatter())
        if curves.lines:
            curves.legend(frameon=False)
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, dpi=140)

    def _curves(self) -> dict[Setting, list[Training]]:
        """Setting → its long separate trainings."""
        found = self.found.get("long")
        if found is None:
            return {}
        trained = trainings(found.folder, [trial.trial_id for trial, _, _ in found.trained])
        of: dict[Setting, list[Training]] = {}
        for trial, _, _ in found.trained:
            if trial.method != PRIOR and trial.trial_id in trained:
                of.setdefault(_weights(trial), []).append(trained[trial.trial_id])
        return of


def _interpolated(training: Training, at: Array) -> Array:
    values = training.values["objective"]
    known = np.isfinite(values)
    return np.interp(at, training.steps[known], values[known], left=np.nan, right=np.nan)


def _named(setting: Setting) -> str:
    return " · ".join(f"{SYMBOLS.get(name, name)} {value:g}" for name, value in setting)


def main() -> int:
    """Trains and writes; returns the exit code: 0 if everything is finished."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.conditioned", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--environment", choices=list(ENVIRONMENTS), default="halfcheetah")
    parser.add_argument("--storage", help=f"default: {DEFAULT_STORAGE}/conditioned")
    parser.add_argument("--out", type=Path, default=PAGE, help="the page; default: docs/conditioned.md")
    parser.add_argument("--write-only", action="store_true", help="train nothing")
    given = parser.parse_args()
    study = Study(given.environment, storage_path(given.storage or f"{DEFAULT_STORAGE}/conditioned"))
    done = given.write_only or study.train()
    if done:
        Section(study).write(given.out)
        print(f"Page        {given.out}")
    return 0 if done else 1


if __name__ == "__main__":
    sys.exit(main())
