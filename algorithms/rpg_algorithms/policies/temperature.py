"""The entropy temperature that a policy was trained at, from the settings of its training."""

from __future__ import annotations

import math
from collections.abc import Mapping

ENTROPY_IN_LOSS = "entropy in the loss besides the reward's: no temperature describes what was optimised"


def temperature_of(settings: Mapping[str, object]) -> float | None:
    """Reads at which temperature a training ended.

    Args:
        settings: ``kl_coefficient``, ``alpha_hat``, ``alpha`` and ``entropy_coeff`` as ``SPGConfig`` and ``RPGConfig``
            have them: numbers, or schedules whose last value counts. Anything else, as in a file, is unknown.

    Returns:
        Reward per nat. None where there was none, and where the loss had an entropy term: that is another objective
        (docs/mathematics.md), of which no policy is the maximum-entropy optimum at ``alpha``.
    """
    if (_last(settings.get("entropy_coeff")) or 0.0) > 0:
        return None
    names = ("kl_coefficient", "alpha_hat", "alpha")
    given = next((settings[name] for name in names if settings.get(name) is not None), None)
    value = _last(given)
    return value if value is not None and 0 < value < math.inf else None


def _last(value: object) -> float | None:
    if isinstance(value, (list, tuple)) and value and isinstance(value[-1], (list, tuple)) and len(value[-1]) == 2:
        value = value[-1][1]
    return None if isinstance(value, bool) or not isinstance(value, (int, float)) else float(value)
