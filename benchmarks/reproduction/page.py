"""The page of the reproduction, written whole from MLflow alone: what was run, tables, curves, and what is missing."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from benchmarks.reproduction.curves import draw_entropy, draw_final
from benchmarks.reproduction.figures import (
    BASIC,
    NAMES,
    NOT_YET,
    TOTAL,
    Group,
    Measured,
    difference,
    entropy_groups,
    final_groups,
    number,
    ratio,
    setting,
    while_training,
)
from benchmarks.reproduction.goals import goals, paper
from benchmarks.reproduction.plan import (
    ENVIRONMENTS,
    FINAL_EVALUATION_SEED,
    QUICK_ENV_STEPS,
    SCRATCH,
    TUNING_SEEDS,
    Scope,
    Stage,
)
from benchmarks.reproduction.records import COMMIT, MACHINE, VERSION, Store, Trained, chosen_in

from rpg_platform.results.report import MODES
from rpg_platform.review.curves import LOW_EXPLAINED_VARIANCE, SPIKE_KL

WIDTH = 100
_STAGES: Mapping[Stage, str] = {
    "entropy": "first experiment",
    "prior": "priors",
    "tuning": "tuning",
    "final": "final figures",
}
Sound = tuple[Trained, Mapping[str, float]]
_OTHERS = ("prior", "greedy", "kl", "full", SCRATCH)
_SHARES = (0.125, 0.25, 0.5, 1.0)
"""Of a training, after which its returns are told."""


def write_page(store: Store, scope: Scope, out: Path) -> None:
    """Writes the page and, beside it in ``images/``, its curves.

    Args:
        store: what was run.
        scope: what there is to be run: what of it is missing is said.
        out: the page's file; its folder is made.

    Raises:
        ValueError: the store holds what can't be one reproduction.
    """
    page = _Page(store, scope, out)
    out.parent.mkdir(parents=True, exist_ok=True)
    blocks = ["# The paper's experiments, reproduced", *page.blocks()]
    out.write_text("\n\n".join(blocks) + "\n", encoding="utf-8")


class _Page:
    def __init__(self, store: Store, scope: Scope, out: Path) -> None:
        self.store, self.scope, self.out = store, scope, out
        self.entropy = {e: groups for e in scope.environments if (groups := entropy_groups(store, scope, e))}
        self.final = {e: final_groups(store, scope, e) for e in scope.environments}

    def blocks(self) -> Iterator[str]:
        if self.scope.quick:
            yield _wrapped(
                f"**This is the quick pass: {QUICK_ENV_STEPS:,} env steps a trial. It shows that the path works, and "
                "its figures mean nothing.**"
            )
        yield _wrapped(
            "`make reproduce` trains what this page reports and writes the page, from MLflow alone: its own store, and "
            "what other machines' stores held of sweeps that they finished (`benchmarks/reproduction/kept/`), which "
            "are not trained again unless `--anew` asks for it. It repeats the two experiments of "
            "[arXiv 2503.11019](https://arxiv.org/abs/2503.11019) with this project's "
            "own sweeps, those in `tune_configs/paper/`, which `rpg sweep` runs too. It takes days, can be stopped by "
            "Ctrl-C, and goes on when it is started again; `make reproduce-quick` takes the same path in minutes. "
            "`python -m benchmarks.reproduce --help` lists the options."
        )
        yield from self._what_was_run()
        yield from self._held_against()
        yield from self._first()
        yield from self._second()
        yield from self._health()

    # ---- what was run ---------------------------------------------------------------------------

    def _what_was_run(self) -> Iterator[str]:
        yield "## What was run"
        seeds, tuning = _listed(self.scope.seeds), _listed(TUNING_SEEDS)
        yield _bullets(
            [
                f"Final figures are of the training seeds {seeds}, all of them: no seed is selected and no row is "
                "left out. A trial that failed is counted in the column *seeds*.",
                "Intervals cover 95 %, over seeds, by Student's t; those of differences are paired by seed, and those "
                "of ratios are Fieller's.",
                f"In the second experiment each seed has a prior of its own seed. Settings were chosen on the training "
                f"seeds {tuning}, with priors of those seeds, by the mean total return of the deterministic policy; "
                f"the final figures are also evaluated on other episodes (seeds from {FINAL_EVALUATION_SEED:,} on). "
                "So nothing that is reported took part in a choice.",
                self._budget(),
                *self._surroundings(),
            ]
        )
        yield _table(
            ["environment", "what", "trials finished", "env steps", "training hours", "command"], self._progress()
        )

    def _budget(self) -> str:
        """What tuning had, counted in MLflow."""
        counts = set()
        for environment in self.scope.environments:
            found = chosen_in(self.store, self.scope, environment) or {}
            counts |= {choice.settings for choice in found.values()}
        tried = [
            trial for e in self.scope.environments for s in self.scope.of("tuning", e) for trial in self.store.trials(s)
        ]
        steps = sorted({trial.env_steps for trial in tried if trial.env_steps})
        if not counts or not steps:
            return "Every method has the same tuning budget. Tuning has not ended on any environment yet."
        words = " or ".join(map(str, sorted(counts)))
        each = " or ".join(f"{n:,}" for n in steps)
        return (
            f"Every method had the same tuning budget: {words} settings, each trained with {len(TUNING_SEEDS)} seeds "
            f"for {each} env steps. Greedy's settings are its α̂, those of Full its α."
        )

    def _surroundings(self) -> list[str]:
        every = [tags for step in self.scope.steps() if (tags := self.store.tags(step))]
        said = {
            "Versions": {_versions(tags) for tags in every},
            "Machine": {tags[MACHINE] for tags in every if MACHINE in tags},
            "Commits": {tags[COMMIT][:10] for tags in every if COMMIT in tags},
        }
        return [f"{what}: {'; '.join(sorted(found))}." for what, found in said.items() if found]

    def _progress(self) -> Iterator[list[str]]:
        for environment in self.scope.environments:
            for stage, words in _STAGES.items():
                steps = self.scope.of(stage, environment)
                if not steps:
                    continue
                planned = [trial for step in steps for trial in self.scope.trials(step) if trial.env_steps]
                trials = [t for step in steps for t in self.store.trials(step) if t.env_steps]
                done = [t for t in trials if t.is_finished]
                failed = sum(t.error is not None for t in trials)
                hours = sum(t.hours for t in done)
                count = f"{len(done)} of {len(planned)}" + (f", {failed} failed" if failed else "")
                steps_done = f"{sum(t.env_steps for t in done):,}"
                yield [
                    ENVIRONMENTS[environment],
                    words,
                    count if trials else NOT_YET,
                    steps_done,
                    number(hours, 1),
                    self._command(1 if stage == "entropy" else 2, environment),
                ]

    def _command(self, experiment: int, environment: str) -> str:
        if self.scope.quick:
            return "`make reproduce-quick`"
        return f'`make reproduce REPRODUCE_ARGS="--experiments {experiment} --environments {environment}"`'

    # ---- what it is held to ---------------------------------------------------------------------

    def _held_against(self) -> Iterator[str]:
        yield "## Measured against what was asked"
        yield _wrapped("Deterministic policies. *Must* and *aim* were set before these trainings.")
        rows = [
            [
                goal.what,
                goal.paper,
                goal.must.words if goal.must else "–",
                goal.aim.words if goal.aim else "–",
                goal.measured.text(goal.digits),
                goal.verdict,
                self._command(goal.experiment, goal.environment),
            ]
            for goal in goals(self.entropy, self.final)
        ]
        unsound = sum(_touched(each) or _is_low(each) for each in self.healths)
        planned = sum(t.env_steps > 0 for step in self.scope.steps() for t in self.scope.trials(step))
        is_all = sum(trial.is_finished for trial, _ in self.healths) == planned
        verdict = ("**missed**" if unsound else "must met") + ("" if is_all else " so far")
        found = [f"{unsound} of {len(self.healths)}", verdict]
        what = f"trials that touched KL {SPIKE_KL:g} or ended with explained variance below {LOW_EXPLAINED_VARIANCE:g}"
        command = "`make reproduce-quick`" if self.scope.quick else "`make reproduce`"
        rows.append([what, "–", "none", "–", *(found if self.healths else ["–", NOT_YET]), command])
        yield _table(["figure", "paper", "must", "aim", "measured", "verdict", "command"], rows)

    # ---- the first experiment -------------------------------------------------------------------

    def _first(self) -> Iterator[str]:
        yield "## Experiment 1: where the entropy belongs"
        yield _wrapped(
            "Soft PPO has the entropy in the reward alone (soft policy gradient), the entropy bonus is in the loss "
            "alone, and repeat-entropy PPO has it in both. All train from scratch on the basic reward, at the same "
            "temperatures. The curves are returns while training, with the span from the lowest to the highest seed."
        )
        for environment, groups in self.entropy.items():
            yield f"### {ENVIRONMENTS[environment]}: basic return"
            picture = self._picture(1, environment)
            if draw_entropy(self.store, environment, groups, picture):
                yield _image(f"{ENVIRONMENTS[environment]}, basic return over env steps", picture)
            rows = [
                [
                    NAMES[group.method],
                    group.setting,
                    *(group.mean(BASIC, mode).text() for mode in MODES),
                    group.counted,
                    paper(environment, group.method, BASIC),
                    self._command(1, environment),
                ]
                for group in groups
            ]
            yield _table(["method", "weight", *MODES, "seeds", "paper", "command"], rows)

    # ---- the second experiment ------------------------------------------------------------------

    def _second(self) -> Iterator[str]:
        yield "## Experiment 2: customization"
        yield _wrapped(
            "Returns per episode, undiscounted; total is basic plus add-on return. KL is that of the sampled policy to "
            "the prior, nats per state. The median is over all episodes of all seeds, deterministic."
        )
        for environment, groups in self.final.items():
            yield f"### {ENVIRONMENTS[environment]}"
            picture = self._picture(2, environment)
            if draw_final(self.store, environment, groups, picture):
                yield _image(f"{ENVIRONMENTS[environment]}, total return over env steps", picture)
            yield from self._tuned(environment)
            rows = [self._final_row(environment, group) for group in groups.values()]
            heads = ["method", "weights", "basic", "add-on", "total", "total, sampled", "median total", "KL", "seeds"]
            yield _table([*heads, "total in the paper", "command"], rows)
            yield _table(
                ["RPG against", *(f"{what}, {mode}" for what in ("difference of totals", "ratio") for mode in MODES),
                 "clear of zero (deterministic)", "command"],
                [self._against(environment, groups, other) for other in _OTHERS],
            )  # fmt: skip
            yield from self._on_the_way(environment, groups)

    def _on_the_way(self, environment: str, groups: Mapping[str, Group]) -> Iterator[str]:
        """What each method returns while it trains: how few env steps a customization takes."""
        trained = [group for group in groups.values() if any(trial.env_steps for trial in group.trials)]
        budgets = {trial.env_steps for group in trained for trial in group.trials} - {0}
        if len(budgets) != 1:
            if budgets:
                yield _wrapped("The methods have different env steps: their returns on the way are not compared.")
            return
        heads = [f"after {share * max(budgets):,.0f} env steps" for share in _SHARES]
        rows = [
            [NAMES[group.method], *(while_training(self.store, group, share).text() for share in _SHARES)]
            for group in trained
        ]
        yield _wrapped("On the way there: total return of the episodes that were sampled while training.")
        yield _table(["method", *heads, "command"], [[*row, self._command(2, environment)] for row in rows])

    def _tuned(self, environment: str) -> Iterator[str]:
        found = chosen_in(self.store, self.scope, environment)
        if found is None:
            yield _wrapped("Tuning has not ended yet.")
            return
        rows = [
            [
                NAMES[method],
                str(choice.settings),
                str(choice.unfinished) if choice.unfinished else "none",
                setting(choice.weights),
                number(choice.total),
            ]
            for method, choice in sorted(found.items(), key=lambda each: list(NAMES).index(each[0]))
        ]
        heads = ["tuned", "settings", "of them without a result", "chosen", "its total on the tuning seeds"]
        yield _table(heads, rows)
        groups = self.final[environment]
        others = [name for name, of in found.items() if groups[name].trials and groups[name].weights != of.weights]
        if others:
            names = ", ".join(NAMES[method] for method in others)
            yield _wrapped(f"**The final figures of {names} are not at the chosen weights: tuning has changed since.**")

    def _final_row(self, environment: str, group: Group) -> list[str]:
        totals = [group.mean(TOTAL, mode).text() for mode in MODES]
        of_prior = group.method == "prior"
        kl = "0" if of_prior else "–" if group.method == SCRATCH else group.mean("kl_to_prior").text()
        return [
            NAMES[group.method],
            group.setting,
            group.mean(BASIC).text(),
            group.mean("addon_return").text(),
            *totals,
            self._median(group),
            kl,
            group.counted,
            paper(environment, group.method, TOTAL),
            self._command(2, environment),
        ]

    def _median(self, group: Group) -> str:
        totals = [self.store.totals(trial) for trial in group.trials if trial.is_finished]
        return number(float(np.median(np.concatenate(totals)))) if sum(map(len, totals)) else "–"

    def _against(self, environment: str, groups: Mapping[str, Group], other: str) -> list[str]:
        rpg, them = groups["rpg"], groups[other]
        found = difference(rpg, them)
        return [
            NAMES[other],
            *(difference(rpg, them, mode=mode).text() for mode in MODES),
            *(ratio(rpg, them, mode=mode).text(3) for mode in MODES),
            _clear(found),
            self._command(2, environment),
        ]

    # ---- health ---------------------------------------------------------------------------------

    def _health(self) -> Iterator[str]:
        yield "## How sound the trainings were"
        yield _wrapped(
            f"Of every trial of this page, priors and tuning too: how many touched a KL to the prior of {SPIKE_KL:g} "
            f"nats while training, and how many ended with an explained variance below {LOW_EXPLAINED_VARIANCE:g} "
            "(the median of the last tenth of the training). From the metric histories in MLflow."
        )
        rows = []
        for method, words in NAMES.items():
            own = [each for each in self.healths if each[0].method == method]
            if own:
                worst = max((of["kl_max"] for _, of in own if math.isfinite(of["kl_max"])), default=math.nan)
                highest = number(worst) if math.isfinite(worst) else "–"
                rows.append([words, str(len(own)), str(sum(map(_touched, own))), highest, str(sum(map(_is_low, own)))])
        yield _table(["method", "trials", f"touched KL {SPIKE_KL:g}", "highest KL", "explained variance low"], rows)

    @cached_property
    def healths(self) -> list[Sound]:
        """Every training that has begun, with its health."""
        trials = [trial for step in self.scope.steps() for trial in self.store.trials(step) if trial.env_steps]
        trainings = [(trial, self.store.training(trial)) for trial in trials]
        return [(trial, training.health) for trial, training in trainings if training is not None]

    def _picture(self, experiment: int, environment: str) -> Path:
        return self.out.parent / "images" / f"reproduction-{experiment}-{environment}.png"


def _versions(tags: Mapping[str, str]) -> str:
    named = sorted((name.removeprefix(VERSION), value) for name, value in tags.items() if name.startswith(VERSION))
    return ", ".join(map(" ".join, named))


def _touched(sound: Sound) -> bool:
    return sound[1]["kl_max"] > SPIKE_KL


def _is_low(sound: Sound) -> bool:
    """Whether a training that has ended did so with a critic that explains little."""
    return sound[0].is_finished and sound[1]["explained_variance"] < LOW_EXPLAINED_VARIANCE


# ---- Markdown ------------------------------------------------------------------------------------
def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _bullets(items: Iterable[str]) -> str:
    return "\n".join(_wrapped(f"- {item}", "  ") for item in items)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _image(words: str, file: Path) -> str:
    return f"![{words}](images/{file.name})"


def _listed(seeds: Sequence[int]) -> str:
    *first, last = map(str, seeds)
    return f"{', '.join(first)} and {last}"


def _clear(found: Measured) -> str:
    """Whether a difference's interval leaves zero out."""
    if math.isnan(found.value):
        return NOT_YET
    if found.interval is None:
        return "too few seeds to tell"
    low, high = found.interval
    return "yes, above" if low > 0 else "yes, below" if high < 0 else "no"
