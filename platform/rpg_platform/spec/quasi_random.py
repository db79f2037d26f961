"""Quasi-random points: scrambled Sobol, which fills a space more evenly than independent draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rpg_platform.spec.space import SearchSpace, Setting

MAX_POINTS = 2**20


def points(dimensions: int, count: int, seed: int) -> Sequence[Sequence[float]]:
    """The first points of one sequence, so that more of them leave the earlier ones as they were.

    Owen-scrambled Sobol points (Owen 1998, "Scrambling Sobol' and Niederreiter-Xing points").

    Args:
        dimensions: of the unit cube.
        count: how many, at most ``MAX_POINTS``.
        seed: of the scrambling.

    Returns:
        ``[count, dimensions]`` in [0, 1).
    """
    from scipy.stats import qmc

    if not 0 <= count <= MAX_POINTS:
        raise ValueError(f"count={count}: at most {MAX_POINTS} points are drawn")
    sequence = qmc.Sobol(dimensions, scramble=True, rng=seed)
    drawn: list[list[float]] = sequence.random_base2(max(count - 1, 0).bit_length())[:count].tolist()
    return drawn


def settings(spaces: Mapping[str, SearchSpace], count: int, seed: int) -> list[dict[str, Setting]]:
    """The first ``count`` points of ``spaces``, by name; settings of choices may come again."""
    return [
        {name: space.at(u) for (name, space), u in zip(spaces.items(), point, strict=True)}
        for point in points(len(spaces), count, seed)
    ]
