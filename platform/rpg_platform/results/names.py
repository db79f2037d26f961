"""How the report and MLflow name a setting: by symbols, short."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rpg_platform.results.colours import by_logarithm
from rpg_platform.results.rows import Row
from rpg_platform.spec.methods import PRIOR
from rpg_platform.spec.space import CONDITIONED, ConditionedRange, dump

PRIOR_NAME = "prior, untouched"

SYMBOLS: Mapping[str, str] = {
    "omega_prime": "ω′",
    "omega": "ω",
    "alpha_hat": "α̂",
    "alpha": "α",
    "kl_coefficient": "β",
    "entropy_coeff": "entropy",
    "addon_weight": "add-on",
}


def short_name(row: Row) -> str:
    """A setting to read: ``ω′ 0.2 · α̂ 0.02``, the method in front where it is not RPG; see ``at_words``."""
    if row.is_prior:
        return PRIOR_NAME
    return setting_words(row.method, row.weights, row.setting) + at_words(row)


def setting_words(method: str, weights: Mapping[str, Any], setting: str) -> str:
    """A setting to read, by its name as ``rows.setting_names`` gives it."""
    return _named(method, weights, setting.split(" ")[1 + len(weights) :])


def run_name(trial: Mapping[str, Any], searched: Iterable[str] = ()) -> str:
    """What MLflow calls a trial's run: its setting as ``short_name`` has it, and its seed.

    Args:
        trial: a trial's specification, as data.
        searched: the training settings in which trials differ.
    """
    if trial["method"] == PRIOR:
        return PRIOR_NAME
    training = trial.get("training") or {}
    more = [f"{name}={training[name]}" for name in searched if name in training]
    return " · ".join([_named(trial["method"], trial.get("weights") or {}, more), f"seed {trial['seed']}"])


def at_words(row: Row) -> str:
    """`` @53k`` where figures were made after fewer env steps than the budget, as its extension has not ended."""
    return f" @{steps_words(row.evaluated_at)}" if row.seeds and row.evaluated_at < row.env_steps else ""


def steps_words(count: float) -> str:
    """A number of env steps to read, in three digits."""
    return f"{count / 1e6:.3g}M" if count >= 1e6 else f"{count / 1e3:.3g}k" if count >= 1e3 else f"{count:.0f}"


def _named(method: str, weights: Mapping[str, Any], more: Sequence[str]) -> str:
    words = [f"{SYMBOLS.get(name, name)} {weight_words(value)}" for name, value in weights.items()]
    name = " · ".join([*words, *more])
    return name if method == "rpg" and name else " ".join(filter(None, (method, name)))


def weight_words(value: Any) -> str:
    """A weight to read; a schedule by its first and last value, a range by its ends."""
    if isinstance(value, (int, float)):
        return f"{value:.4g}"
    told = dump(value) if isinstance(value, ConditionedRange) else value
    if isinstance(told, Mapping):
        return " … ".join(f"{end:.4g}" for end in told[CONDITIONED])
    return f"{value[0][1]:.4g} … {value[-1][1]:.4g}"


def varied_weights(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The weights that differ between settings of the main method.

    Returns:
        Of each ``name``, ``symbol``, ``values`` (ascending), ``is_log`` (see ``by_logarithm``) and ``method``.
    """
    method = main_method(rows)
    values: dict[str, set[float]] = {}
    for row in rows:
        for name, value in row.weights.items() if row.method == method else ():
            if isinstance(value, (int, float)):
                values.setdefault(name, set()).add(float(value))
    varied = {name: sorted(each) for name, each in values.items() if len(each) > 1}
    order = list(SYMBOLS)
    return [
        {
            "name": name,
            "symbol": SYMBOLS.get(name, name),
            "values": varied[name],
            "is_log": by_logarithm(varied[name][0], varied[name][-1]),
            "method": method,
        }
        for name in sorted(varied, key=order.index)
    ]


def main_method(rows: Sequence[Row]) -> str | None:
    """The method of most settings, the prior aside."""
    counts: dict[str, int] = {}
    for row in rows:
        if not row.is_prior:
            counts[row.method] = counts.get(row.method, 0) + 1
    return max(counts, key=lambda name: counts[name], default=None)
