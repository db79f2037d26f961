"""Episodes that collapsed: how many of a setting's fell far below anything that the prior did."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def collapse_bound(prior: Sequence[float]) -> float:
    """The total return below which an episode counts as collapsed.

    It lies below the prior's worst episode by half the size of its mean or, if that is more, by the range of its
    episodes. So a prior's own episodes never count, and neither does a policy that merely earns somewhat less.

    Args:
        prior: total returns of the prior's episodes, on the same seeds.

    Returns:
        NaN where the prior has none, or one is not finite.
    """
    values = np.asarray(prior, dtype=np.float64)
    if not len(values) or not np.isfinite(values).all():
        return math.nan
    return float(values.min() - max(abs(values.mean()) / 2, np.ptp(values)))


def collapsed(episodes: Sequence[Sequence[float] | None], prior: Sequence[float] | None) -> int | None:
    """How many episodes of all seeds collapsed; one whose return is not finite did.

    Args:
        episodes: total returns of each seed's episodes; None where a seed's are unknown.
        prior: the prior's; None where they are unknown.

    Returns:
        None where it can't be said.
    """
    bound = math.nan if prior is None else collapse_bound(prior)
    known = [each for each in episodes if each is not None]
    if math.isnan(bound) or len(known) < len(episodes) or not known:
        return None
    return sum(not total >= bound for each in known for total in each)
