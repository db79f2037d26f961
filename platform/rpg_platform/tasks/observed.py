"""Says what a difference between the observations of a policy and of an environment means, and what bridges it."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

MAX_FRAMES = 64


def difference(taken: int, given: int, stored: gym.Space[Any] | None = None) -> str:
    """Compares the size of a policy's observations with that of an environment's, in words.

    Args:
        taken: how many numbers the network takes.
        given: how many numbers an observation of the environment has.
        stored: the observation space that the source stores; None where it stores none.
    """
    said = f"the network takes {taken} numbers, an observation has {given}"
    ways = []
    if taken == given + 1:
        seen = ", and its last lies between 0 and 1" if _ends_in_a_share(stored) else ""
        ways.append(
            f"one number more{seen}: a time feature? --wrapper sb3_contrib.common.wrappers:TimeFeatureWrapper appends "
            "the time that is left (RL Zoo's), --wrapper 'gymnasium.wrappers:TimeAwareObservation="
            '{"normalize_time": true}\' the time that has passed'
        )
    if given and taken % given == 0 and 1 < taken // given <= MAX_FRAMES:
        frames = taken // given
        ways.append(
            f"{frames} times as many: a stack of {frames} observations? --wrapper "
            f'\'gymnasium.wrappers:FrameStackObservation={{"stack_size": {frames}, "padding_type": "zero"}}\' '
            "--wrapper gymnasium.wrappers:FlattenObservation gives that of VecFrameStack"
        )
    if not ways:
        return said
    return f"{said}; {'; or '.join(ways)}; in a task's file the same stands under `wrappers:`"


def _ends_in_a_share(space: gym.Space[Any] | None) -> bool:
    """Whether the last number of an observation is bounded by 0 and 1, and not all of them are."""
    if not isinstance(space, gym.spaces.Box) or space.low.size < 2:
        return False
    shares = ((space.low == 0.0) & (space.high == 1.0)).reshape(-1)
    return bool(shares[-1] and not shares.all())
