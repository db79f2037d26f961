"""The nodes of a compiled expression: a closed tree of numpy calls on ``[B, K]`` arrays. See ``expressions``."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rpg_platform.wording import show, suggestion

Array: TypeAlias = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Sizes:
    """The widths of what an expression reads; None where unknown.

    Attributes:
        observation: entries of a flattened observation.
        action: entries of an action; 1 for a Discrete one.
        discrete: the action is an index.
        info_keys: keys that ``info`` has.
    """

    observation: int | None = None
    action: int | None = None
    discrete: bool = False
    info_keys: Collection[str] | None = None


@dataclass(frozen=True)
class Batch:
    """What B transitions hold: observations and actions ``[B, D]``, infos ``[B]``."""

    obs: Array
    action: Array
    next_obs: Array
    info: Mapping[str, Array]


class Fault(Exception):  # noqa: N818 - becomes an ExpressionError, which knows the text
    """What is wrong and at which offset of the text."""

    def __init__(self, message: str, at: int) -> None:
        self.message, self.at = message, at


class Node(Protocol):
    """One operation of an expression."""

    @property
    def at(self) -> int:
        """Offset in the text."""

    def width(self, sizes: Sizes) -> int | None:
        """K, or None where it depends on a size that is unknown. Raises Fault."""

    def value(self, batch: Batch) -> Any:
        """``[B, K]``, or something that broadcasts to it."""


@dataclass(frozen=True)
class Number:
    """A constant."""

    at: int
    number: np.float64

    def width(self, sizes: Sizes) -> int | None:
        return 1

    def value(self, batch: Batch) -> Any:
        return self.number


@dataclass(frozen=True)
class Source:
    """``obs``, ``action`` or ``next_obs``."""

    at: int
    name: str

    def width(self, sizes: Sizes) -> int | None:
        return sizes.action if self.name == "action" else sizes.observation

    def value(self, batch: Batch) -> Any:
        return getattr(batch, self.name)


@dataclass(frozen=True)
class Info:
    """One entry of the environment's info."""

    at: int
    key: str

    def width(self, sizes: Sizes) -> int | None:
        keys = sizes.info_keys
        if keys is not None and self.key not in keys:
            hint = suggestion(self.key, sorted(keys)) or "; it gives none at all"
            raise Fault(f"the environment's info has no {show(self.key)}{hint}", self.at)
        return 1

    def value(self, batch: Batch) -> Any:
        return np.asarray(batch.info[self.key], np.float64)[:, None]


@dataclass(frozen=True)
class Entries:
    """``of[index]`` or ``of[slice]``."""

    at: int
    of: Node
    index: int | slice

    def width(self, sizes: Sizes) -> int | None:
        whole = self.of.width(sizes)
        if sizes.discrete and isinstance(self.of, Source) and self.of.name == "action":
            raise Fault("a Discrete action is one index and has no entries: write e.g. action == 0", self.at)
        if isinstance(self.index, int):
            if whole is not None and not -whole <= self.index < whole:
                raise Fault(f"index {self.index} is out of range: there are {whole} entries", self.at)
            return 1
        return self._slice_width(self.index, whole)

    def _slice_width(self, cut: slice, whole: int | None) -> int | None:
        bounds = [bound for bound in (cut.start, cut.stop) if bound is not None]
        if whole is not None:
            for bound in bounds:
                if not -whole <= bound <= whole:
                    raise Fault(f"bound {bound} is out of range: there are {whole} entries", self.at)
            taken = len(range(*cut.indices(whole)))
        elif len(bounds) == 2 and (bounds[0] >= 0) == (bounds[1] >= 0):
            taken = max(0, -(-(bounds[1] - bounds[0]) // (cut.step or 1)))
        else:
            return None
        if taken == 0:
            raise Fault("takes no entry at all", self.at)
        return taken

    def value(self, batch: Batch) -> Any:
        taken = self.of.value(batch)[:, self.index]
        return np.asarray(taken[:, None] if isinstance(self.index, int) else taken, np.float64)


@dataclass(frozen=True)
class Each:
    """A function of each element; arguments of one entry go with any number of entries."""

    at: int
    function: Callable[..., Any]
    arguments: tuple[Node, ...]

    def width(self, sizes: Sizes) -> int | None:
        widths = [argument.width(sizes) for argument in self.arguments]
        several = {width for width in widths if width not in (None, 1)}
        if len(several) > 1:
            listed = " and ".join(str(width) for width in widths if width in several)
            raise Fault(f"combines {listed} values per step, which do not go together", self.at)
        if several:
            return several.pop()
        return None if None in widths else 1

    def value(self, batch: Batch) -> Any:
        return self.function(*(np.asarray(argument.value(batch), np.float64) for argument in self.arguments))


@dataclass(frozen=True)
class Over:
    """A function over the last axis."""

    at: int
    function: Callable[..., Any]
    of: Node

    def width(self, sizes: Sizes) -> int | None:
        self.of.width(sizes)
        return 1

    def value(self, batch: Batch) -> Any:
        value = np.asarray(self.of.value(batch), np.float64)
        return self.function(value, axis=-1, keepdims=True) if value.ndim else value
