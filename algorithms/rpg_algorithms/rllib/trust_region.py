"""Keeps an iteration's policy near the one that acted: the step that leaves the region is shortened."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

TOLERANCE = 1.25
"""A step is shortened where it leads this many times as far as the limit."""
MOST_TRIES = 4


@dataclass
class TrustRegion:
    """The region, and how far the last step that stayed in it led.

    A prior's actions vary little, so a first step of Adam, which has the learning rate's size in every parameter, may
    take the policy nats away, in a direction that is mostly noise. The KL grows with the square of a short step, so its
    root tells what share of the step ends at the limit; it is measured there, and shortened again if need be, as TRPO's
    line search is (1502.05477, appendix C).

    Attributes:
        limit: KL(pi_old || pi_theta) that ends the policy's steps of an iteration, nats.
    """

    limit: float
    _before: float | None = None

    def begin(self) -> None:
        """An iteration begins: no step of it was taken."""
        self._before = None

    def is_left(self, kl: float, undo: Callable[[float], None], measure: Callable[[], float]) -> bool:
        """Says whether the policy stays where it is for the rest of the iteration; shortens the step that led too far.

        Args:
            kl: of the policy, on the minibatch that comes next.
            undo: takes back this share, in [0, 1], of what is left of the last step.
            measure: the KL anew, on the same minibatch.
        """
        if kl <= self.limit:
            self._before = kl
            return False
        if self._before is not None:
            start = math.sqrt(max(self._before, 0.0))
            for _ in range(MOST_TRIES):
                if kl <= TOLERANCE * self.limit:
                    break
                undo(1.0 - (math.sqrt(self.limit) - start) / (math.sqrt(kl) - start))
                kl = measure()
        return True
