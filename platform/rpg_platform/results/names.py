"""How the report and MLflow name a setting: by symbols, short."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rpg_platform.results.rows import Row

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
    """A setting to read: ``ω′ 0.2 · α̂ 0.02``, the method in front where it is not RPG."""
    if row.is_prior:
        return "prior, untouched"
    weights = " · ".join(f"{SYMBOLS.get(name, name)} {weight_words(value)}" for name, value in row.weights.items())
    more = row.setting.split(" ")[1 + len(row.weights) :]  # training settings that differ too
    name = " · ".join([*([weights] if weights else []), *more])
    return name if row.method == "rpg" and name else " ".join(filter(None, (row.method, name)))


def weight_words(value: Any) -> str:
    """A weight to read; a schedule by its first and last value."""
    if isinstance(value, (int, float)):
        return f"{value:.4g}"
    return f"{value[0][1]:.4g} … {value[-1][1]:.4g}"
