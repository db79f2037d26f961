"""What docs/conditioned.md says of one environment: the tables and the picture, from the records."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from benchmarks.conditioned.records import KEEP, OBJECTIVE, RULE, Records, Scores, Setting
from benchmarks.conditioned.study import EACH, LONG, RANGE, Study
from benchmarks.reproduction.plan import ENVIRONMENTS
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from rpg_platform.results.difference import mean_interval, ratio_interval
from rpg_platform.results.names import SYMBOLS
from rpg_platform.results.statistics import Interval


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
        study: the comparison.
        records: what its trainings came to; at least a seed of the range and one of separate trainings.
    """

    def __init__(self, study: Study, records: Records) -> None:
        self.study = study
        self.scores = {kind: Scores(each) for kind, each in records.root.items() if each}
        both = set(records.root[RANGE]) & set(records.root[EACH])
        self._paired = [Scores({seed: records.root[kind][seed] for seed in sorted(both)}) for kind in (RANGE, EACH)]

    @staticmethod
    def can_be_written(records: Records) -> bool:
        """Whether there is a seed that has both: the range and separate trainings."""
        return bool(set(records.root.get(RANGE, {})) & set(records.root.get(EACH, {})))

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
        study, (ours, theirs) = self.study, (self.scores[RANGE], self.scores[EACH])
        steps = {kind: study.env_steps(kind) / 1e6 for kind in (RANGE, EACH)}
        yield f"### {ENVIRONMENTS[study.environment]}"
        yield ""
        machines = "; ".join(dict.fromkeys([*ours.machines(), *theirs.machines()]))
        commits = ", ".join(dict.fromkeys(each for scores in self.scores.values() for each in scores.commits()))
        command = f"`python -m benchmarks.conditioned --environment {study.environment}`"
        yield _filled(f"{command}, trained on: {machines}." + (f" Commits: {commits}." if commits else ""))
        yield ""
        yield _filled(
            f"Means over training seeds, {len(ours.seeds)} of the range and {len(theirs.seeds)} of separate trainings, "
            "with 95 % intervals over them; ratios are of the seeds that have both. J is the sampled policy's "
            "objective at the setting, undiscounted per episode; the rest is of the deterministic policy, "
            f"{study.file.evaluation.episodes} episodes. The range has {steps[RANGE]:g} M env steps for all settings, "
            f"a separate training {steps[EACH]:g} M for one."
        )
        yield ""
        yield "| setting | J, range | J, separate | not below its interval | total, range | total, separate |"
        yield "| --- | --- | --- | --- | --- | --- |"
        yield from (self._row(setting) for setting in ours.settings)
        yield ""
        yield "| figure | range | separate | ratio |"
        yield "| --- | --- | --- | --- |"
        best = [[max(totals) for totals in each.by_seed("total_return")] for each in self._paired]
        volumes = [each.hypervolumes() for each in self._paired]
        rows = (("best total return of a seed's settings", best), ("hypervolume of (basic, add-on)", volumes))
        for words, (a, b) in rows:
            yield f"| {words} | {_over_seeds(a)} | {_over_seeds(b)} | {_ratio(a, b)} |"
        million = steps[RANGE], steps[EACH] * len(ours.settings)
        yield f"| env steps of a seed, M | {million[0]:g} | {million[1]:g} | {million[0] / million[1]:.3f} |"
        yield ""
        if kept := ours.kept():
            shares = ", ".join(f"{100 * share:.1f} % (at {weight:.3g})" for weight, share in kept)
            yield _filled(
                f"Asked to keep {100 * KEEP:.0f} % of the prior's basic return, each seed's policy keeps on other "
                f"episodes: {shares}. Command: `rpg weights {study.name(RANGE, 0)} --rule '{RULE}'`."
            )
            yield ""
        yield from self._long()
        yield f"![The trade-off of one training, and of separate ones](images/conditioned-{study.environment}.png)"

    def _row(self, setting: Setting) -> str:
        ours, theirs = self.scores[RANGE], self.scores[EACH]
        j, single = ours.over_seeds(setting, OBJECTIVE), theirs.over_seeds(setting, OBJECTIVE)
        low = (mean_interval(single) or (math.nan,))[0]
        verdict = "–" if math.isnan(low) else "above" if np.mean(j) > np.mean(single) else "yes"
        verdict = "**no**" if np.mean(j) < low else verdict
        totals = " | ".join(_over_seeds(each.over_seeds(setting, "total_return")) for each in (ours, theirs))
        return f"| {_named(setting)} | {_over_seeds(j)} | {_over_seeds(single)} | {verdict} | {totals} |"

    def _long(self) -> Iterator[str]:
        """How far separate trainings at small weights come in as many steps as the range has."""
        if LONG not in self.scores:
            return
        long = self.scores[LONG]
        steps = {kind: self.study.env_steps(kind) / 1e6 for kind in (EACH, LONG)}
        yield f"Separate trainings of {steps[LONG]:g} M env steps ({len(long.seeds)} seeds):"
        yield ""
        yield "| setting | | J | basic | add-on | total |"
        yield "| --- | --- | --- | --- | --- | --- |"
        of = (("range", RANGE), (f"separate, {steps[EACH]:g} M", EACH), (f"separate, {steps[LONG]:g} M", LONG))
        for setting, (words, kind) in itertools.product(long.settings, of):
            names = (OBJECTIVE, "basic_return", "addon_return", "total_return")
            figures = " | ".join(_over_seeds(self.scores[kind].over_seeds(setting, name)) for name in names)
            yield f"| {_named(setting)} | {words} | {figures} |"
        yield ""

    def draw(self, file: Path) -> None:
        """The front of either, and how J went in the long separate trainings."""
        figure = Figure(figsize=(10.4, 4.0) if LONG in self.scores else (5.2, 4.0), layout="constrained")
        front, *more = figure.subplots(1, 2 if LONG in self.scores else 1, squeeze=False)[0]
        for kind, colour, words in ((EACH, "#9a9a9a", "separate trainings"), (RANGE, "#0072b2", "one training")):
            scores = self.scores[kind]
            names = ("basic_return", "addon_return")
            points = [[np.mean(scores.over_seeds(s, name)) for name in names] for s in scores.settings]
            front.plot(*np.array(sorted(points)).T, "o", color=colour, label=words)
        prior = self.scores[RANGE].prior
        front.plot(prior["basic_return"], prior["addon_return"], "*", color="black", markersize=11, label="prior")
        front.set(xlabel="basic return", ylabel="add-on return")
        front.legend(frameon=False)
        for curves in more:
            long = self.scores[LONG]
            for setting, colour in zip(long.settings, ("#d55e00", "#009e73", "#cc79a7"), strict=False):
                trained = long.curves(setting)
                steps = np.linspace(max(c.steps[0] for c in trained), min(c.steps[-1] for c in trained), 60)
                values = [np.interp(steps, curve.steps, curve.objective) for curve in trained]
                curves.plot(steps, np.mean(values, axis=0), color=colour, label=f"separate, {_named(setting)}")
                end = float(np.mean(self.scores[RANGE].over_seeds(setting, OBJECTIVE)))
                curves.axhline(end, color=colour, ls="--")
            curves.set(xlabel="env steps", ylabel="J (dashed: one training for the range, at its end)")
            curves.xaxis.set_major_formatter(EngFormatter())
            curves.legend(frameon=False)
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, dpi=140)


def _filled(text: str) -> str:
    return textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False)


def _named(setting: Setting) -> str:
    return " · ".join(f"{SYMBOLS.get(name, name)} {value:g}" for name, value in setting)
