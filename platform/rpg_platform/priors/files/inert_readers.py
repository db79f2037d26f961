"""The few calls in a pickle that are read as what they mean: numpy's numeric values and Python's own containers.

Each function here takes the budget and the arguments that a pickle gives, and makes the value itself; the function that
the pickle names is never looked up. It raises ``TypeError`` for arguments that it has no reading of (the call stays an
``Instance``) and ``ValueError`` for arguments that contradict each other (the pickle is refused).
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from rpg_platform.priors.files.inert_values import Budget, Global, Instance

Interpreter = Callable[..., Any]  # (budget, *args of the call)

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


def make_array(raw: Any, dtype: Any, shape: Any, order: str) -> np.ndarray[Any, Any]:
    """A native-endian, writable array of a claimed shape and type, made of as many ``raw`` bytes.

    Raises:
        TypeError: not numeric, or no bytes.
        ValueError: the bytes are not as many as the shape says.
    """
    kind = _numeric(dtype)
    if isinstance(raw, str):  # Python 2 wrote bytes so
        raw = raw.encode("latin-1")
    if not isinstance(raw, bytes | bytearray) or order not in ("C", "F"):
        raise TypeError
    check_shape(shape)
    if math.prod(shape) * kind.itemsize != len(raw):
        raise ValueError(f"an array of shape {shape} and type {kind} with {len(raw)} bytes")
    array = np.frombuffer(raw, kind).reshape(shape, order="F" if order == "F" else "C")
    return array.view(np.uint8) != 0 if kind.kind == "b" else array.astype(kind.newbyteorder("="), copy=True)


def check_shape(shape: Any) -> None:
    """Raises ValueError unless ``shape`` is a tuple of a few non-negative integers below 2**40."""
    if not isinstance(shape, tuple) or len(shape) > _MAX_DIMENSIONS:
        raise ValueError("an array whose shape is not a tuple of at most 32 numbers")
    if any(type(n) is not int or not 0 <= n < 1 << 40 for n in shape):
        raise ValueError("an array whose shape is not made of sizes")


def _numeric(kind: Any) -> np.dtype[Any]:
    """A numeric numpy type out of one, or out of its name. Raises TypeError for any other type."""
    name = kind.str if isinstance(kind, np.dtype) else kind
    if not isinstance(name, str) or not _NUMERIC.fullmatch(name):
        raise TypeError
    return np.dtype(name)


def with_state(shell: Instance, state: Any, budget: Budget) -> Any:
    """The numpy value that an ``Instance`` becomes when it is given its state; None for any other instance.

    Raises:
        ValueError: a numpy array that its own bytes contradict.
    """
    try:
        match shell.qualified_name, shell.args, state:
            case "numpy.dtype", (kind, *_), (_, "<" | ">" | "|" | "=" as order, None, None, None, *_):
                return np.dtype(_numeric(kind).newbyteorder("=" if order == "|" else order).str)
            case (
                "numpy._core.multiarray._reconstruct" | "numpy.core.multiarray._reconstruct",
                _,
                (shape, dtype, fortran, raw) | (_, shape, dtype, fortran, raw),
            ):
                return _array(budget, raw, dtype, shape, "F" if fortran is True or fortran == 1 else "C")
    except TypeError:
        pass
    return None


def _array(budget: Budget, raw: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray[Any, Any]:
    budget.charge(len(raw))
    return make_array(raw, dtype, shape, order)


def _scalar(budget: Budget, dtype: Any, raw: Any) -> Any:
    return _array(budget, raw, dtype, (), "C")[()]


# ---- Python's own ---------------------------------------------------------------------------------------------------


def _list(budget: Budget, elements: Any = ()) -> list[Any]:
    if not isinstance(elements, list | tuple | set | frozenset):
        raise TypeError
    budget.charge(8 * len(elements))
    return list(elements)


def _set(budget: Budget, elements: Any = ()) -> set[Any]:
    elements = _list(budget, elements)
    budget.charge(64 * len(elements))
    for element in elements:
        budget.check_key(element)
    return set(elements)


def _ordered_dict(budget: Budget, pairs: Any = ()) -> OrderedDict[Any, Any]:
    """Empty, but Python 2 gave the items as an argument."""
    result: OrderedDict[Any, Any] = OrderedDict()
    for key, value in _list(budget, pairs):
        budget.charge(128)
        budget.check_key(key)
        result[key] = value
    return result


def _bytes(budget: Budget, raw: Any = b"", encoding: str = "latin-1") -> bytes:
    if encoding not in ("latin-1", "latin1") or not isinstance(raw, bytes | bytearray | str):
        raise TypeError
    budget.charge(len(raw))
    return raw.encode("latin-1") if isinstance(raw, str) else bytes(raw)


def _complex(budget: Budget, real: Any, imaginary: Any) -> complex:
    if type(real) is not float or type(imaginary) is not float:
        raise TypeError
    return complex(real, imaginary)


def _slice(budget: Budget, *bounds: Any) -> slice:
    if not all(bound is None or type(bound) is int for bound in bounds):
        raise TypeError
    return slice(*bounds)


def _empty_dict(budget: Budget, factory: Any = None) -> dict[Any, Any]:
    """``dict()``, and ``defaultdict(factory)`` whose factory nobody calls."""
    if not isinstance(factory, Global | None):
        raise TypeError
    return {}


def _constructed(budget: Budget, kind: Any, *args: Any) -> Instance:
    """``copyreg._reconstructor(cls, object, None)`` and ``copyreg.__newobj__(cls, *args)``."""
    if not isinstance(kind, Global):
        raise TypeError
    return Instance(kind.qualified_name, () if args[:1] == (Global("builtins", "object"),) else args)


INTERPRETERS: Mapping[str, Interpreter] = MappingProxyType(
    {
        "numpy._core.multiarray.scalar": _scalar,
        "numpy._core.numeric._frombuffer": _array,
        "collections.OrderedDict": _ordered_dict,
        "collections.defaultdict": _empty_dict,
        "builtins.dict": _empty_dict,
        "builtins.list": _list,
        "builtins.tuple": lambda budget, *args: tuple(_list(budget, *args)),
        "builtins.set": _set,
        "builtins.frozenset": lambda budget, *args: frozenset(_set(budget, *args)),
        "builtins.bytes": _bytes,
        "builtins.bytearray": lambda budget, *args: bytearray(_bytes(budget, *args)),
        "builtins.complex": _complex,
        "builtins.slice": _slice,
        "_codecs.encode": _bytes,
        "copyreg._reconstructor": _constructed,
        "copyreg.__newobj__": _constructed,
    }
)
