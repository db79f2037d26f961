"""A setting by name: ``SWEEP`` is a sweep's best, ``SWEEP#2`` the second of its table; and which policy that means."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from rpg_platform.results.report import FINAL, SELECTION, evaluations, mean_key, number
from rpg_platform.results.rows import Row
from rpg_platform.review.found import Found, found_in
from rpg_platform.spec.measures import MEASURES
from rpg_platform.spec.sections import Constraints, Objective
from rpg_platform.storage.sweep_folder import SweepFolder
from rpg_platform.wording import one_of, suggestion

_NAME = re.compile(r"(?P<sweep>[A-Za-z0-9][A-Za-z0-9_-]{0,63})(#(?P<rank>\d+))?")
_RULE = re.compile(r"\s*max\s+(?P<measure>\w+)(\s+where\s+(?P<conditions>.+?))?\s*")
_CONDITION = re.compile(
    r"\s*(?P<measure>\w+)\s*(?P<sign><=|>=)\s*(?P<number>[-+]?[0-9.]+(e[-+]?\d+)?)\s*(?P<prior>\*\s*prior)?\s*", re.I
)


class ChoiceError(ValueError):
    """A name or a rule that chooses no setting; the message says what to give instead."""


@dataclass(frozen=True)
class Choice:
    """One setting of a sweep, and the policy that stands for it.

    Attributes:
        found: the sweep.
        row: the setting.
        rank: its place in the table, from 1.
        trial_id: of the setting's seeds the one with the highest objective, see ``best_seed``.
        training: the trial that was trained; another one where its policy is told the setting's weights.
        checkpoint: that trial's.
    """

    found: Found
    row: Row
    rank: int
    trial_id: str
    training: str
    checkpoint: str


def is_choice(text: str, storage: str) -> bool:
    """Whether ``text`` names a sweep in the storage, or a setting of one."""
    named = _NAME.fullmatch(text)
    return named is not None and SweepFolder(storage, named["sweep"]).is_sweep()


def choose(text: str, storage: str, rule: str | None = None, told: Collection[str] = ()) -> Choice:
    """The setting that a name means.

    Args:
        text: ``SWEEP`` or ``SWEEP#RANK``.
        storage: where the sweep is.
        rule: what is best instead of the sweep's own objective, see ``parse_rule``.
        told: only among policies that are told these weights.

    Raises:
        ChoiceError: there is no such setting, or nothing satisfies the rule.
        SweepFolderError: there is no such sweep.
    """
    named = _NAME.fullmatch(text)
    if named is None:
        raise ChoiceError(f"{text!r}: expected a sweep's name, or NAME#RANK")
    objective = None if rule is None else parse_rule(rule)
    found = found_in(SweepFolder(storage, named["sweep"]), objective)
    with_figures = [row for row in found.rows if row.seeds]
    if told:
        with_figures = _told(found, with_figures, set(told), text)
    if named["rank"] is not None:
        rank = int(named["rank"])
        if not 1 <= rank <= len(with_figures):
            raise ChoiceError(
                f"{text}: the sweep's table has {len(with_figures)} settings; see rpg show {named['sweep']}"
            )
        row = with_figures[rank - 1]
    else:
        able = [row for row in with_figures if row.is_deployable and not row.violations]
        best = next((row for row in with_figures if row.is_best), able[0] if told and able else None)
        if best is None:
            beside = "; those trained on the hidden reward (△) are never chosen" if _has_bound(with_figures) else ""
            raise ChoiceError(
                f"{text}: no setting {'satisfies ' + repr(rule) if rule else 'is best'}{beside}; "
                f"see rpg show {named['sweep']}"
            )
        row, rank = best, with_figures.index(best) + 1
    trial_id = best_seed(found, row)
    training = next(trial.point_of or trial_id for trial, _, _ in found.results if trial.trial_id == trial_id)
    return Choice(found, row, rank, trial_id, training, found.checkpoints[trial_id])


def _told(found: Found, rows: Sequence[Row], names: set[str], text: str) -> list[Row]:
    """The rows of policies that are told these weights.

    Raises:
        ChoiceError: there are none.
    """
    if not (left := [row for row in rows if set(found.told.get(row.group, ())) == names]):
        every = sorted({", ".join(sorted(each)) for each in found.told.values()})
        has = f"its policies are told {' or '.join(every)}" if every else "its policies are told none"
        raise ChoiceError(f"{text}: --weights gives {', '.join(sorted(names))}; {has}")
    return left


def _has_bound(rows: Sequence[Row]) -> bool:
    return any(not row.is_deployable for row in rows)


def best_seed(found: Found, row: Row) -> str:
    """The trial that stands for a setting: of its finished seeds the one with the highest objective.

    By the episodes that settings are chosen by, where they are others than those shown.
    """
    key = mean_key(SELECTION if row.chosen_apart else FINAL, row.objective["mode"], row.objective["maximize"])
    own = ((each[0].trial_id, evaluations(*each)) for each in found.results if each[0].group == row.group)
    done = {name: number(made[row.evaluated_at], key) for name, made in own if row.evaluated_at in made}
    return max(done, key=lambda name: (-math.inf if math.isnan(done[name]) else done[name], name))


def parse_rule(rule: str) -> Objective:
    """An objective from a line: ``max addon_return where basic_return >= 0.9 * prior and kl_to_prior <= 3``.

    Raises:
        ChoiceError: it can't be read, or names what cannot be maximised or bounded.
    """
    read = _RULE.fullmatch(rule)
    if read is None:
        raise ChoiceError(f"--rule {rule!r}: expected 'max RETURN [where MEASURE >= NUMBER [* prior] [and …]]'")
    constraints: dict[str, dict[str, float]] = {}
    for text in re.split(r"\s+and\s+", read["conditions"] or "") if read["conditions"] else ():
        condition = _CONDITION.fullmatch(text)
        if condition is None:
            raise ChoiceError(f"--rule: {text.strip()!r}: expected MEASURE >= NUMBER, <= NUMBER or >= NUMBER * prior")
        if condition["measure"] not in Constraints.model_fields:
            hint = suggestion(condition["measure"], Constraints.model_fields)
            raise ChoiceError(f"--rule: {condition['measure']!r} can't be bounded{hint}")
        if condition["prior"] and condition["sign"] == "<=":
            raise ChoiceError(f"--rule: {text.strip()!r}: a share of the prior's return can be asked for with >= alone")
        kind = "min_fraction_of_prior" if condition["prior"] else "max" if condition["sign"] == "<=" else "min"
        constraints.setdefault(condition["measure"], {})[kind] = float(condition["number"])
    returns = [measure.name for measure in MEASURES if measure.is_objective and not measure.minimise]
    if read["measure"] not in returns:
        raise ChoiceError(f"--rule: {read['measure']!r} can't be maximised; expected {one_of(returns)}")
    try:
        return Objective.model_validate({"maximize": read["measure"], "constraints": constraints})
    except ValueError as error:
        raise ChoiceError(f"--rule {rule!r}: {_words(error)}") from error


def _words(error: ValueError) -> str:
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        return "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
    return str(error)
