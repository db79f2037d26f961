"""The rules by which a setting goes on at a rung: asynchronous successive halving and median stopping.

Both compare keys. A key is `ranking.order_key` of a setting's validation figures, means over its seeds: smaller is
better, and a setting that breaks a constraint comes after all that break none. A setting is judged once at each rung,
when it arrives, against the settings that arrived before it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

Key: TypeAlias = tuple[bool, bool, float, float]


def asha_goes_on(key: Key, others: Sequence[Key], reduction_factor: int) -> bool:
    """Says whether a setting is among the best 1/η of those that reached its rung; the best one always is.

    Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning" (arXiv 1810.05934), in its stopping variant:
    a setting that passes goes on at once and is not called back. In a tie the setting that arrives passes.

    Args:
        key: of the setting that arrives.
        others: of those that arrived before it.
        reduction_factor: η.
    """
    better = sum(other < key for other in others)
    return better < max(1, (len(others) + 1) // reduction_factor)


def median_goes_on(key: Key, others: Sequence[Key], min_settings: int) -> bool:
    """Says whether a setting goes on: it does unless it is worse than more than half of those before it.

    Golovin et al. 2017, "Google Vizier", section 3.2.2, with the figure at the step in place of a running mean.

    Args:
        key: of the setting that arrives.
        others: of those that arrived before it.
        min_settings: with fewer others than this the setting goes on.
    """
    better = sum(other < key for other in others)
    return len(others) < min_settings or 2 * better <= len(others)


RULES: Mapping[str, Callable[[Any, Key, Sequence[Key]], bool]] = {
    "asha": lambda section, key, others: asha_goes_on(key, others, section.reduction_factor),
    "median": lambda section, key, others: median_goes_on(key, others, section.min_settings),
}
"""Scheduler by name → its rule, called with the scheduler's section of the specification."""
