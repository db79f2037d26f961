"""The discount that a prior was trained at, and why a customization keeps it.

``alpha * log pi`` is the prior's soft advantage *at its own discount*: the residual reward stands for the prior's
unknown one at that discount alone (docs/mathematics.md). This module reads raw JSON, so that a specification is checked
without torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping


def recorded_gamma(made_by: object) -> float | None:
    """Reads the discount that a policy was trained at from its card's ``made_by``.

    Args:
        made_by: how a card says that its policy was made; anything that JSON can hold.

    Returns:
        The discount per step, in (0, 1]; None where the card does not know it.
    """
    if not isinstance(made_by, Mapping):
        return None
    for section in ("training", "import"):
        settings = made_by.get(section)
        gamma = settings.get("gamma") if isinstance(settings, Mapping) else None
        if isinstance(gamma, (int, float)) and not isinstance(gamma, bool) and 0 < gamma <= 1:
            return float(gamma)
    return None


def other_discount(gamma: float, prior: str, made_by: object) -> str | None:
    """Says what is wrong with customising a prior by its log-probabilities at another discount than its own.

    Args:
        gamma: the discount per step of the customization.
        prior: what the message calls the prior.
        made_by: as in ``recorded_gamma``.

    Returns:
        The message; None where the discounts agree or the card does not know the prior's.
    """
    its = recorded_gamma(made_by)
    if its is None or math.isclose(gamma, its, rel_tol=1e-9):
        return None
    return (
        f"is {gamma:g}, but the prior {prior!r} was trained at {its:g}, and its log-probabilities stand for its "
        f"reward at that discount alone; set gamma: {its:g}"
    )
