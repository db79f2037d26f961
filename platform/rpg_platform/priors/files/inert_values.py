"""The records that a pickle is read into, and the budget that reading it may spend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rpg_platform.priors.imported import PriorImportError


@dataclass(frozen=True, slots=True)
class Global:
    """A name in a pickle: a class, a function, a constant. Nobody looks it up.

    Attributes:
        module: the module as written, such as ``gym.spaces.box``.
        name: the name within it, such as ``Box``.
    """

    module: str
    name: str

    @property
    def qualified_name(self) -> str:
        """``module.name``."""
        return f"{self.module}.{self.name}"

    def __repr__(self) -> str:
        return f"<inert {self.qualified_name[:200]}>"


@dataclass(eq=False, slots=True)
class Instance:
    """Records what a call or a constructor in a pickle would have made; compared and hashed by identity.

    Attributes:
        qualified_name: module and name of what the pickle wants called.
        args: the positional arguments.
        kwargs: the keyword arguments.
        state: the argument of ``__setstate__`` or content of ``__dict__``; None where the pickle gives none.
        items: what the pickle appends to it (subclasses of list, deques), or the pairs (key, value) that it sets in it.
        value: the numpy value that the state completed, which stands in its place from then on; None for any other.
        function: what was called, where the pickle made that by a call too.
    """

    qualified_name: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    state: Any = None
    items: list[Any] = field(default_factory=list)
    value: Any = field(default=None, repr=False)
    function: Instance | None = field(default=None, repr=False)

    @property
    def attributes(self) -> dict[str, Any]:
        """The instance attributes that ``state`` would have set: a dictionary, or a pair (dictionary, slots)."""
        parts = self.state if isinstance(self.state, tuple) and len(self.state) == 2 else (self.state,)
        return {k: v for part in parts if isinstance(part, dict) for k, v in part.items() if isinstance(k, str)}

    def __repr__(self) -> str:
        return f"<inert instance of {self.qualified_name[:200]}>"


_CLASS_MAKERS = ("_make_skeleton_class", "_make_skeleton_enum")
_FUNCTION_MAKERS = ("_make_function", "_fill_function", "_make_skel_func")


def in_words(value: Any) -> str:
    """Names what a pickle holds, for messages: its type, or of cloudpickle's records what they would have made."""
    if isinstance(value, Instance) and value.function is not None:
        return f"an object of {_called(value.function)}"
    return _called(value) if isinstance(value, Global | Instance) else type(value).__name__


def _called(value: Global | Instance) -> str:
    module, _, maker = value.qualified_name.rpartition(".")
    if isinstance(value, Instance) and module.startswith("cloudpickle"):
        if maker in _CLASS_MAKERS and len(value.args) > 1 and isinstance(value.args[1], str):
            return f"the class {value.args[1][:100]}, whose code stands in the file itself (it was defined in a script)"
        if maker in _FUNCTION_MAKERS:
            return "a function whose code stands in the file itself (it was defined in a script)"
    return value.qualified_name[:200]


@dataclass(frozen=True)
class Limits:
    """Bounds of one pickle.

    Attributes:
        opcodes: instructions.
        allocated_bytes: memory of arrays, of text and of copies of containers.
        integer_bytes: length of one integer.
        nesting: containers within containers.
        nodes: size of the result with shared containers counted as often as they occur.
        composite_keys: dictionary keys and set elements that are tuples or frozensets.
        seconds: time.
    """

    opcodes: int = 1_000_000
    allocated_bytes: int = 1 << 30
    integer_bytes: int = 1_024
    nesting: int = 200
    nodes: int = 4_000_000
    composite_keys: int = 5_000
    seconds: float = 60.0


_PLAIN_KEYS = (str, bytes, int, float, type(None), Global, Instance)
_MAX_KEY_PARTS = 200
_CONTAINERS = (list, tuple, dict, set, frozenset)


class Budget:
    """Counts what one pickle spends of its ``Limits``; every method raises PriorImportError beyond them."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._allocated = self._composite_keys = 0

    def charge(self, size: int) -> None:
        """Takes ``size`` bytes, which are about to be allocated, off the budget."""
        self._allocated += size
        if self._allocated > self.limits.allocated_bytes:
            raise PriorImportError(f"the pickle takes more than {self.limits.allocated_bytes} bytes of memory")

    def check_key(self, key: Any) -> None:
        """Refuses dictionary keys and set elements that are costly to hash.

        Tuples hash recursively and without a cache, so nested ones can take exponential time; equal hashes can be made
        at will, so composite keys are counted and integers are kept within 64 bits.
        """
        parts = [key]
        for part in parts:  # which grows while it is walked
            if isinstance(part, tuple | frozenset):
                if len(parts) + len(part) > _MAX_KEY_PARTS:
                    raise PriorImportError("the pickle has a dictionary key too complicated to hash")
                parts.extend(part)
            elif isinstance(part, int) and not -(1 << 63) <= part < 1 << 64:
                raise PriorImportError("the pickle has a dictionary key beyond 64 bits")
            elif not isinstance(part, (*_PLAIN_KEYS, complex, np.generic)):
                raise PriorImportError(f"the pickle has a dictionary key of type {type(part).__name__}")
        self._composite_keys += not isinstance(key, _PLAIN_KEYS)
        if self._composite_keys > self.limits.composite_keys:
            raise PriorImportError(f"the pickle has more than {self.limits.composite_keys} composite dictionary keys")

    def check_unfolding(self, value: Any) -> None:
        """Refuses containers that contain themselves, nest too deeply or unfold to too many values.

        The containers of each ``Instance`` are checked by themselves: instances may form cycles.
        """
        parts = [value]
        measured: dict[int, tuple[int, int]] = {}
        within: set[int] = set()

        def measure(value: Any) -> tuple[int, int]:
            """The levels of containers in ``value`` and the number of values that it unfolds to."""
            if (known := measured.get(id(value))) is not None:
                return known
            levels, nodes = 0, 1
            if isinstance(value, _CONTAINERS):
                if id(value) in within:
                    raise PriorImportError("the pickle holds a container that contains itself")
                within.add(id(value))
                self._check_levels(len(within))
                for child in (*value, *value.values()) if isinstance(value, dict) else value:
                    below, number = measure(child)
                    levels, nodes = max(levels, below), nodes + number
                within.remove(id(value))
                levels += 1
                self._check_levels(levels)
                if nodes > self.limits.nodes:
                    raise PriorImportError(f"the pickle unfolds to more than {self.limits.nodes} values")
                measured[id(value)] = levels, nodes
            elif isinstance(value, Instance):
                measured[id(value)] = levels, nodes
                parts.extend((value.args, value.kwargs, value.state, value.items))
            return levels, nodes

        for part in parts:  # which grows while it is walked
            measure(part)

    def _check_levels(self, levels: int) -> None:
        if levels > self.limits.nesting:
            raise PriorImportError(f"the pickle nests more than {self.limits.nesting} levels deep")
