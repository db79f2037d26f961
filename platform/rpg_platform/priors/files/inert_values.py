"""What a pickle becomes when nothing in it is imported or called: inert values, and the few things read as themselves.

``inert`` is the reader; this module holds its vocabulary. A *global* of a pickle is only ever a name. Where the name
is one of ``INTERPRETERS``, our own function of the same meaning makes the value (a numpy array out of a shape, a
number type and bytes); everything else stays an ``Instance`` that nobody calls.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

import numpy as np

_EMPTY: Final[Mapping[str, Any]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Global:
    """A name in a pickle: a class, a function, a constant. Never looked up.

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
    """What a call or a constructor in a pickle would have made; compared and hashed by identity.

    Attributes:
        qualified_name: module and name of what would have been called.
        args: its positional arguments.
        kwargs: its keyword arguments.
        state: what its ``__setstate__`` or ``__dict__`` would have been given; None where there was nothing.
        items: what would have been appended to it (subclasses of list, deques).
        entries: what would have been set in it (subclasses of dict).
        memo: the reader's bookkeeping.
    """

    qualified_name: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=lambda: _EMPTY)
    state: Any = None
    items: list[Any] | tuple[()] = ()
    entries: list[tuple[Any, Any]] | tuple[()] = ()
    memo: tuple[int, ...] = field(default=(), repr=False)

    @property
    def attributes(self) -> dict[str, Any]:
        """The instance attributes that ``state`` would have set: a dictionary, or a pair (dictionary, slots)."""
        parts = self.state if isinstance(self.state, tuple) and len(self.state) == 2 else (self.state,)
        return {k: v for part in parts if isinstance(part, dict) for k, v in part.items() if isinstance(k, str)}

    def __repr__(self) -> str:
        return f"<inert instance of {self.qualified_name[:200]}>"


class KeepInert(Exception):  # noqa: N818 - a signal, not an error
    """Raised by an interpreter for arguments that it has no reading of: the value stays an ``Instance``."""


Charge = Callable[[int], None]  # takes bytes about to be allocated off the budget, or refuses
Interpreter = Callable[[tuple[Any, ...], Charge], Any]

# Modules that were renamed: the names below stand under the newer one.
_RENAMED = {
    "__builtin__": "builtins",
    "copy_reg": "copyreg",
    "numpy.core.multiarray": "numpy._core.multiarray",
    "numpy.core.numeric": "numpy._core.numeric",
}


def canonical_name(reference: Global) -> str:
    """The qualified name with Python 2's and numpy 1's module names replaced by today's."""
    return f"{_RENAMED.get(reference.module, reference.module)}.{reference.name}"


# ---- numpy ----------------------------------------------------------------------------------------------------------

_NUMERIC = re.compile(r"([<>|=]?)(b1|[iu][1248]|f[248]|c8|c16)")
_MAX_DIMENSIONS = 32


def as_dtype(value: Any) -> np.dtype[Any]:
    """A numeric numpy type out of what a pickle holds. Raises KeepInert for any other type."""
    if isinstance(value, np.dtype):
        return value
    if isinstance(value, Instance) and value.qualified_name == "numpy.dtype" and value.args:
        value = value.args[0]
    if isinstance(value, str) and (match := _NUMERIC.fullmatch(value)):
        return np.dtype(match[0])
    raise KeepInert


def _dtype_with_state(shell: Instance, state: Any) -> np.dtype[Any]:
    """``numpy.dtype('f8', False, True)`` and its state ``(version, byte order, None, None, None, …)``."""
    dtype = as_dtype(shell)
    if not (isinstance(state, tuple) and len(state) >= 5 and state[1] in ("<", ">", "|", "=")):
        raise KeepInert
    if any(part is not None for part in state[2:5]):  # subarrays and structures
        raise KeepInert
    return dtype if state[1] == "|" else np.dtype(dtype.newbyteorder(state[1]).str)


def make_array(raw: Any, dtype: Any, shape: Any, order: Any, charge: Charge) -> np.ndarray[Any, Any]:
    """A native-endian, writable array of a claimed shape and type, made of ``raw`` bytes.

    Raises:
        KeepInert: not numeric, or not this layout.
        ValueError: the bytes are not as many as the shape says.
    """
    kind = as_dtype(dtype)
    if isinstance(raw, str):  # Python 2 wrote bytes so
        raw = raw.encode("latin-1")
    if not isinstance(raw, bytes | bytearray) or order not in ("C", "F"):
        raise KeepInert
    check_shape(shape)
    count = 1
    for n in shape:
        count *= n
    if count * kind.itemsize != len(raw):
        raise ValueError(f"an array of shape {shape} and type {kind} with {len(raw)} bytes")
    charge(len(raw))
    array = np.frombuffer(raw, kind).reshape(shape, order=order)
    return array.view(np.uint8) != 0 if kind.kind == "b" else array.astype(kind.newbyteorder("="), copy=True)


def check_shape(shape: Any) -> None:
    """Raises ValueError unless ``shape`` is a tuple of a few non-negative integers below 2**40."""
    if not isinstance(shape, tuple) or len(shape) > _MAX_DIMENSIONS:
        raise ValueError("an array whose shape is not a tuple of at most 32 numbers")
    if any(type(n) is not int or not 0 <= n < 1 << 40 for n in shape):
        raise ValueError("an array whose shape is not made of sizes")


def _array_with_state(state: Any, charge: Charge) -> np.ndarray[Any, Any]:
    """The state of ``ndarray.__reduce__``: ``(version, shape, dtype, is_fortran, bytes)``."""
    if not isinstance(state, tuple) or len(state) not in (4, 5):
        raise KeepInert
    shape, dtype, fortran, raw = state[-4:]
    return make_array(raw, dtype, shape, "F" if fortran is True or fortran == 1 else "C", charge)


def _frombuffer(args: tuple[Any, ...], charge: Charge) -> Any:
    if len(args) != 4:
        raise KeepInert
    return make_array(args[0], args[1], args[2], args[3], charge)


def _scalar(args: tuple[Any, ...], charge: Charge) -> Any:
    if len(args) != 2:
        raise KeepInert
    return make_array(args[1], args[0], (), "C", charge)[()]


# ---- Python's own ---------------------------------------------------------------------------------------------------

MAX_COMPOSITE_KEYS = 5_000
_MAX_KEY_NODES = 200
_MAX_SET_COMPOSITES = 100
_PLAIN_KEYS = (str, bytes, float, bool, type(None), Global, Instance)


def check_key(key: Any) -> bool:
    """Refuses dictionary keys and set elements that are costly to hash; returns whether the key is a composite one.

    Tuples hash recursively and without a cache, so nested ones can take exponential time (or the C stack); equal
    hashes can be made at will, so composite keys are counted and integers kept within 64 bits.

    Raises:
        ValueError: not a key that the reader takes.
    """
    if type(key) is int:
        if not -(1 << 63) <= key < 1 << 64:
            raise ValueError("a dictionary key beyond 64 bits")
        return False
    if isinstance(key, _PLAIN_KEYS):
        return False
    pending, nodes = [(key, 0)], 0
    while pending:
        part, depth = pending.pop()
        nodes += 1
        if isinstance(part, tuple | frozenset):
            nodes += len(part)
            if nodes > _MAX_KEY_NODES or depth > 8:
                raise ValueError("a dictionary key too complicated to hash")
            pending += [(each, depth + 1) for each in part]
        elif type(part) is int:
            check_key(part)
        elif not isinstance(part, (*_PLAIN_KEYS, complex, np.generic)):
            raise ValueError(f"a dictionary key of type {type(part).__name__}")
    return True


def _elements(args: tuple[Any, ...], charge: Charge) -> list[Any]:
    if not args:
        return []
    if len(args) != 1 or not isinstance(args[0], list | tuple | set | frozenset):
        raise KeepInert
    charge(8 * len(args[0]))
    return list(args[0])


def _hashable_elements(args: tuple[Any, ...], charge: Charge) -> list[Any]:
    elements = _elements(args, charge)
    composite = sum(map(check_key, elements))
    if composite > _MAX_SET_COMPOSITES:
        raise KeepInert
    charge(64 * len(elements) + 10_000 * composite)  # equal hashes take time rather than memory
    return elements


def _ordered_dict(args: tuple[Any, ...], charge: Charge) -> Any:
    result: OrderedDict[Any, Any] = OrderedDict()
    for pair in _elements(args, charge):  # Python 2 gave the items as an argument
        if not isinstance(pair, list | tuple) or len(pair) != 2 or check_key(pair[0]):
            raise KeepInert
        result[pair[0]] = pair[1]
    return result


def _bytes(args: tuple[Any, ...], charge: Charge) -> bytes:
    match args:
        case ():
            return b""
        case (bytes() | bytearray() as raw,):
            charge(len(raw))
            return bytes(raw)
        case (str() as text, "latin-1" | "latin1"):
            charge(len(text))
            return text.encode("latin-1")
    raise KeepInert


def _complex(args: tuple[Any, ...], charge: Charge) -> complex:
    if len(args) == 2 and all(type(part) is float for part in args):
        return complex(*args)
    raise KeepInert


def _slice(args: tuple[Any, ...], charge: Charge) -> slice:
    if 1 <= len(args) <= 3 and all(part is None or type(part) is int for part in args):
        return slice(*args)
    raise KeepInert


def _empty_dict(args: tuple[Any, ...], charge: Charge) -> dict[Any, Any]:
    """``dict()``, and ``defaultdict(factory)`` whose factory nobody calls."""
    if len(args) > 1 or (args and not isinstance(args[0], Global | type(None))):
        raise KeepInert
    return {}


def _reconstructor(args: tuple[Any, ...], charge: Charge) -> Instance:
    """``copyreg._reconstructor(cls, object, None)`` and ``copyreg.__newobj__(cls, *args)``."""
    if not args or not isinstance(args[0], Global):
        raise KeepInert
    return Instance(args[0].qualified_name, () if args[1:2] == (Global("builtins", "object"),) else args[1:])


def _size(args: tuple[Any, ...], charge: Charge) -> tuple[Any, ...]:
    return tuple(_elements(args, charge))


INTERPRETERS: Mapping[str, Interpreter] = MappingProxyType(
    {
        "numpy._core.multiarray.scalar": _scalar,
        "numpy._core.numeric._frombuffer": _frombuffer,
        "collections.OrderedDict": _ordered_dict,
        "collections.defaultdict": _empty_dict,
        "builtins.dict": _empty_dict,
        "builtins.list": _elements,
        "builtins.tuple": _size,
        "builtins.set": lambda args, charge: set(_hashable_elements(args, charge)),
        "builtins.frozenset": lambda args, charge: frozenset(_hashable_elements(args, charge)),
        "builtins.bytes": _bytes,
        "builtins.bytearray": lambda args, charge: bytearray(_bytes(args, charge)),
        "builtins.complex": _complex,
        "builtins.slice": _slice,
        "_codecs.encode": _bytes,
        "copyreg._reconstructor": _reconstructor,
        "copyreg.__newobj__": _reconstructor,
    }
)


def build(shell: Instance, state: Any, charge: Charge) -> Any:
    """What an ``Instance`` becomes when it is given its state: a numpy value, or itself with the state kept.

    Raises:
        ValueError: a numpy array that its own bytes contradict.
    """
    try:
        if shell.qualified_name == "numpy.dtype":
            return _dtype_with_state(shell, state)
        if shell.qualified_name in ("numpy._core.multiarray._reconstruct", "numpy.core.multiarray._reconstruct"):
            return _array_with_state(state, charge)
    except KeepInert:
        pass
    shell.state = state
    return shell
