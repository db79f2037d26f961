"""Keeps an iteration's policy near the one that acted: the step that leaves the region is shortened."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

TOLERANCE = 1.25
"""A step is shortened where it leads this many times as far as the limit."""
CLOSE = 0.5
"""Share of the limit from which on a shortened step is long enough."""
MOST_TRIES = 5


@dataclass
class TrustRegion:
    """The region that ends the policy's steps of an iteration.

    A prior's actions vary little, so a first step of Adam, which has the learning rate's size in every parameter, may
    take the policy nats away, in a direction that is mostly noise. The KL grows with the square of a short step, so its
    root tells what share of the step ends at the limit; it is measured there, and tried again nearer or farther if need
    be, as TRPO's line search is (1502.05477, appendix C). The last step of an iteration is not looked at.

    Attributes:
        limit: KL(pi_old || pi_theta) that ends them, nats.
    """

    limit: float
    _before: float | None = field(default=None, init=False)  # the KL before the last step, on the minibatch before

    def begin(self) -> None:
        """An iteration begins: no step of it was taken."""
        self._before = None

    def ends(self, kl: float, undo: Callable[[float], None], measure: Callable[[], float]) -> bool:
        """Ends the policy's steps of the iteration if it has left the region, and shortens the one that led too far.

        Where no try ends in the region, the step is taken back. Where the KL is not a number, nothing is mended.

        Args:
            kl: of the policy, on the minibatch that comes next.
            undo: takes back this share of what is left of the last step; a negative one goes on.
            measure: the KL anew, on the same minibatch.

        Returns:
            Whether the policy stays where it is for the rest of the iteration.
        """
        if kl <= self.limit:
            self._before = kl
            return False
        if self._before is None or math.isnan(kl) or kl <= TOLERANCE * self.limit:
            return True
        start, target = math.sqrt(max(self._before, 0.0)), math.sqrt(self.limit)
        inside, outside, share = 0.0, 1.0, 1.0
        for _ in range(MOST_TRIES):
            slope = (math.sqrt(kl) - start) / share
            wanted = (target - start) / slope if slope > 0 else outside
            margin = 0.02 * (outside - inside)
            share, last = min(outside - margin, max(inside + margin, wanted)), share
            undo(1.0 - share / last)
            kl = measure()
            if CLOSE * self.limit <= kl <= TOLERANCE * self.limit:
                return True
            inside, outside = (share, outside) if kl < self.limit else (inside, share)
        if not kl <= TOLERANCE * self.limit:
            undo(1.0 - inside / share)
            measure()
        return True
