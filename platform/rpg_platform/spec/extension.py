"""Whether a sweep may be continued as it is asked for, and what it may be extended to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

from rpg_platform.spec.checks import expand
from rpg_platform.spec.sweep import WARMUP, SweepSpec, default_warmup
from rpg_platform.wording import show

MAY_DIFFER = ("description", "storage", "tracking", "resources", "checkpoint", "faults")
"""What a resumed sweep may do otherwise: where it runs and how it is kept, not what it does."""


class ResumeError(ValueError):
    """A sweep that cannot be continued as asked; the message says what differs."""


def check_same(stored: SweepSpec, asked: SweepSpec) -> None:
    """Refuses to continue a sweep as another one.

    Args:
        stored: what the sweep was started with.
        asked: what it is to be continued with.

    Raises:
        ResumeError: names every difference that matters, with both values.
    """
    before, now = (spec.model_dump(mode="json", exclude=set(MAY_DIFFER)) for spec in (stored, asked))
    found = list(_differences(before, now, ""))
    if found:
        raise ResumeError(
            f"the sweep {stored.name!r} was started otherwise: {'; '.join(found)}. Continue it as it was, give this "
            "one another name (--name), or give that one more with `rpg extend`"
        )


def _differences(before: Any, now: Any, path: str) -> Iterator[str]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in sorted(before.keys() | now.keys()):
            yield from _differences(before.get(key), now.get(key), f"{path}.{key}" if path else str(key))
    elif before != now:
        yield f"{path} was {show(before)}, now {show(now)}"


def extended(
    stored: SweepSpec, asked: SweepSpec | None = None, *, env_steps: int | None = None, seeds: int | None = None
) -> SweepSpec:
    """A sweep's specification with more env steps, seeds, grid points or samples.

    Args:
        stored: what the sweep was started with.
        asked: a specification of it with more trials; None: the stored one.
        env_steps: new budget per trial.
        seeds: new number of seeds.

    Raises:
        ResumeError: nothing is new, or a trial of the sweep would not be part of it any more.
    """
    changes: dict[str, Any] = {}
    if env_steps is not None:
        changes["budget"] = {"env_steps": env_steps}
    if seeds is not None:
        changes["seeds"] = list(range(seeds))
    base = stored if asked is None else asked
    if all(each.training.fixed.critic_warmup_iterations == default_warmup(each) for each in (stored, base)):
        warmup = stored.training.fixed.critic_warmup_iterations  # the default was that of the budget then
        changes["training"] = base.model_dump(mode="json")["training"]
        if WARMUP not in base.training.searched:
            changes["training"][WARMUP] = warmup
    spec = SweepSpec.model_validate(base.model_dump(mode="json") | changes)
    before, after = ({trial.trial_id: trial for trial in expand(each)} for each in (stored, spec))
    _check_search(stored, spec)
    lost = [name for name in before if name not in after]
    if lost:
        raise ResumeError(
            f"{len(lost)} trials of the sweep {stored.name!r} would not be part of it any more, such as {lost[0]!r}: "
            "an extension keeps every weight, setting and seed that was there"
        )
    for name, trial in before.items():
        if after[name].env_steps < trial.env_steps:
            raise ResumeError(
                f"env_steps={after[name].env_steps}: the sweep {stored.name!r} has {trial.env_steps} already"
            )
        kept, other = (t.model_dump(mode="json", exclude={*MAY_DIFFER, "env_steps"}) for t in (trial, after[name]))
        if found := list(_differences(kept, other, "")):
            raise ResumeError(f"{name}: {'; '.join(found)}: an extension keeps the settings of what was run")
    more_samples = spec.search.is_adaptive and (spec.samples or 0) > (stored.samples or 0)
    more_seeds = spec.search.is_adaptive and len(spec.seeds) > len(stored.seeds)
    more_steps = spec.search.is_adaptive and spec.budget != stored.budget
    if after == before and not (more_samples or more_seeds or more_steps):
        raise ResumeError(f"nothing to extend: give the sweep {stored.name!r} more env steps, seeds or grid points")
    return spec


def what_schedules_do(stored: SweepSpec, spec: SweepSpec) -> list[str]:
    """Says how the schedules of trials that an extension trains further go on; nothing where none is.

    The annealed learning rate follows the schedule of the new budget, so it rises again: at the rate where it ended, 0,
    nothing would be learned, and trials that the extension adds follow the same schedule from their start.
    """
    before, after = stored.budget.env_steps, spec.budget.env_steps
    if after == before:
        return []
    said = []
    if any(value is True for value in spec.training.candidates("anneal_lr")):
        power = min(cast(float, value) for value in spec.training.candidates("anneal_power"))
        share = 100 * (1 - before / after) ** power
        said.append(
            f"Learning rate: 0 at {before:,} env steps, goes on at {share:.3g} % of training.lr and falls to 0 at "
            f"{after:,}: the schedule of the new budget. Returns may dip before they rise"
        )
    weights = [value for method in spec.methods for value in method.weights.values()]
    if any(isinstance(each, tuple) for weight in weights for each in getattr(weight, "values", (weight,))):
        said.append("Schedules of weights keep their env steps: after its last point a weight stays as it is")
    return said


_SEARCHED = ("search", "scheduler", "algorithm", "weights", "search_seed", "training", "objective", "evaluation")
"""What an extension keeps where settings depend on the results of others."""


def _check_search(stored: SweepSpec, spec: SweepSpec) -> None:
    """Refuses what would make the settings, or the verdicts, of a sweep others than those that were.

    Raises:
        ResumeError: names what can't be changed.
    """
    before, now = (each.model_dump(mode="json", include=set(_SEARCHED)) for each in (stored, spec))
    found = list(_differences(before, now, ""))
    if found and (stored.search.is_adaptive or stored.scheduler != spec.scheduler):
        raise ResumeError(f"{'; '.join(found)}: an extension keeps the search of the sweep {stored.name!r}")
    if stored.search.is_adaptive:
        if (spec.samples or 0) < (stored.samples or 0):
            raise ResumeError(f"samples={spec.samples}: the sweep {stored.name!r} has {stored.samples} already")
        if gone := sorted(set(stored.seeds) - set(spec.seeds)):
            raise ResumeError(f"seeds={list(spec.seeds)}: the sweep {stored.name!r} has seed {gone[0]} already")
    if stored.scheduler is not None and stored.scheduler.pbt is not None:
        raise ResumeError(f"the settings of {stored.name!r} were trained as one population: it can't be extended")
    if stored.scheduler is not None and stored.budget != spec.budget:
        raise ResumeError(
            f"env_steps={spec.budget.env_steps}: {stored.scheduler.name} compared settings on a budget of "
            f"{stored.budget.env_steps}; a sweep with a scheduler takes more seeds or settings, no other budget"
        )
