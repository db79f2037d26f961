"""A pickle reader that imports and calls nothing that the pickle names.

``load`` lets the standard library's own reader in Python (``pickle._Unpickler``, protocols 0 to 5) do the work, all but
the instructions that look up, call or change what the pickle names, and gives back

- Python's containers, numbers, strings and bytes; ``OrderedDict``; numeric numpy arrays, scalars and types, as
  themselves;
- a ``Global`` for every name and an ``Instance`` for every object, call or constructor: records of what the pickle
  asked for, never carried out.

So a pickle can lie, but it cannot act: a file whose ``__reduce__`` would run a command yields an
``Instance("os.system", ("…",))``. ``Limits`` bound its size in time and memory. The containers of a result never
contain themselves and unfold to a bounded tree, so they may be walked recursively; only instances may form cycles.
Whatever is wrong with the bytes, ``PriorImportError`` is raised and nothing else.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import struct
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rpg_platform.priors.files.inert_readers import INTERPRETERS, Interpreter, canonical_name, with_state
from rpg_platform.priors.files.inert_values import Budget, Global, Instance, Limits
from rpg_platform.priors.imported import PriorImportError

__all__ = ["Global", "Instance", "Limits", "PickleStream", "load"]

_LONGEST_NAME = 1_000
_DAMAGE = (
    pickle.PickleError,
    struct.error,
    ValueError,
    TypeError,
    LookupError,
    OverflowError,
    MemoryError,
    RecursionError,
)


class PickleStream(io.BytesIO):
    """Bytes that are read in whole pieces or not at all."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._size = len(data)

    def read(self, size: int | None = -1, /) -> bytes:
        piece = super().read(size)
        if size is not None and len(piece) < size:
            raise PriorImportError("the pickle is truncated: it ends before its STOP")
        return piece

    def readline(self, size: int | None = -1, /) -> bytes:
        line = super().readline(size)
        if not line.endswith(b"\n"):
            raise PriorImportError("the pickle is truncated, or damaged: a line without an end")
        return line

    def left(self) -> int:
        """The number of bytes not read yet."""
        return self._size - self.tell()


def load(
    source: bytes | PickleStream,
    *,
    what: str = "pickle",
    limits: Limits | None = None,
    persistent: Callable[[Any], Any] | None = None,
    interpret: Mapping[str, Interpreter] | None = None,
) -> Any:
    """Reads one pickle; bytes after its end are ignored, as ``pickle.load`` ignores them.

    Args:
        source: the pickle, or a stream that stands at its beginning and is left at its end.
        what: names it in messages, such as ``model.zip: data: policy_kwargs``.
        limits: bounds, by default ``Limits()``.
        persistent: maps a persistent id (of any type, not yet checked) to its value; without it, such ids are refused.
        interpret: further names read as themselves: ``{"module.name": function(budget, *args)}``, see
            ``inert_readers``. Such a function is ours and calls ``budget.charge(bytes)`` before it allocates.

    Raises:
        PriorImportError: the bytes are no pickle, are damaged, or exceed a limit.
    """
    stream = source if isinstance(source, PickleStream) else PickleStream(source)
    budget = Budget(limits or Limits())
    try:
        value = _Reader(stream, budget, persistent, {**INTERPRETERS, **(interpret or {})}).load()
        budget.check_unfolding(value)
    except PriorImportError as error:
        raise PriorImportError(f"{what}: {error}") from error
    except IndexError as error:
        raise PriorImportError(f"{what}: not a pickle, or a damaged one: its stack runs empty") from error
    except _DAMAGE as error:
        raise PriorImportError(f"{what}: not a pickle, or a damaged one: {str(error)[:200]}") from error
    return value


class _Instructions(dict[int, Callable[[Any], None]]):
    """What a reader does for each instruction; counts the instructions."""

    def __init__(self, limits: Limits) -> None:
        super().__init__(_Reader.dispatch)
        self._limits, self._count, self._deadline = limits, 0, time.monotonic() + limits.seconds

    def __getitem__(self, code: int) -> Callable[[Any], None]:
        if self._count % 1024 == 0 and time.monotonic() > self._deadline:
            raise PriorImportError(f"the pickle takes more than {self._limits.seconds:g} s to read")
        if self._count >= self._limits.opcodes:
            raise PriorImportError(f"the pickle takes more than {self._limits.opcodes} instructions")
        self._count += 1
        return super().__getitem__(code)

    def __missing__(self, code: int) -> Callable[[Any], None]:
        raise PriorImportError(f"not a pickle, or a damaged one: the byte {code:#04x} is no instruction")


class _Memo(dict[int, Any]):
    """Stored objects; in place of an instance that its state made a numpy value, that value."""

    def __getitem__(self, index: int) -> Any:
        found = super().__getitem__(index)
        return found if not isinstance(found, Instance) or found.value is None else found.value


class _Reader(pickle._Unpickler):
    """Replaces each instruction that could import, call, or change what is not a plain container."""

    # The standard library's reader has these; its type stubs leave them out.
    dispatch: dict[int, Callable[[Any], None]]  # type: ignore[misc]
    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]
    read: Callable[[int], bytes]

    def __init__(
        self,
        stream: PickleStream,
        budget: Budget,
        persistent: Callable[[Any], Any] | None,
        interpreters: Mapping[str, Interpreter],
    ) -> None:
        super().__init__(stream, encoding="latin-1")  # strings of Python 2 are bytes that mostly hold text
        self.stream, self.budget = stream, budget
        self.persistent, self.interpreters = persistent, interpreters
        self.memo: dict[int, Any] = _Memo()
        self.dispatch = _Instructions(budget.limits)

    # -- names and calls, none of which happen --

    def find_class(self, module: str, name: str) -> Global:
        if max(len(module), len(name)) > _LONGEST_NAME:
            raise PriorImportError("damaged pickle: a name that is none")
        return Global(module, name)

    def persistent_load(self, pid: Any) -> Any:
        if self.persistent is None:
            raise PriorImportError("the pickle refers to objects outside of it (a persistent id)")
        return self.persistent(pid)

    def get_extension(self, code: int) -> None:
        raise PriorImportError("the pickle refers to an extension registry, which no file of this kind does")

    def load_next_buffer(self) -> None:
        raise PriorImportError("the pickle keeps buffers outside of it")

    load_readonly_buffer = load_next_buffer

    def call(self, function: Any, args: Any, kwargs: Any = None) -> None:
        """Pushes what stands for ``function(*args, **kwargs)``: a value of our own making, or a record of the call."""
        if not isinstance(args, tuple) or not isinstance(function, Global | Instance):
            raise PriorImportError("damaged pickle: a call without a function or without arguments")
        name = function.qualified_name if isinstance(function, Global) else f"{function.qualified_name[:200]}(…)"
        self.budget.charge(len(name) + 8 * len(args))
        maker = function if isinstance(function, Instance) else None
        value = Instance(name, args, kwargs or {}, function=maker)
        if isinstance(function, Global) and not kwargs:
            interpreter = self.interpreters.get(canonical_name(function))
            with contextlib.suppress(TypeError):  # of arguments that it has no reading of
                value = value if interpreter is None else interpreter(self.budget, *args)
        self.append(value)

    def _instantiate(self, klass: Any, args: Sequence[Any]) -> None:  # for INST and OBJ
        self.call(klass, tuple(args))

    def load_reduce(self) -> None:
        args, function = self.stack.pop(), self.stack.pop()
        self.call(function, args)

    load_newobj = load_reduce

    def load_newobj_ex(self) -> None:
        kwargs, args, function = self.stack.pop(), self.stack.pop(), self.stack.pop()
        if not isinstance(kwargs, dict):
            raise PriorImportError("damaged pickle: keyword arguments that are none")
        self.call(function, args, kwargs)

    def load_build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Instance):
            target.value = with_state(target, state, self.budget)
            if target.value is None:
                target.state = state
            else:
                self.stack[-1] = target.value
        elif isinstance(target, Global | str | bytes | int | float | None):  # others' attributes mean nothing to us
            raise PriorImportError("damaged pickle: a state for what takes none")

    # -- containers --

    def load_append(self) -> None:
        self.add(list, [self.stack.pop()])

    def load_appends(self) -> None:
        self.add(list, self.pop_mark())

    def load_additems(self) -> None:
        self.add(set, self.pop_mark())

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.add(dict, [(key, value)])

    def load_setitems(self) -> None:
        self.add(dict, self.pop_pairs())

    def load_dict(self) -> None:
        pairs = self.pop_pairs()
        self.append({})
        self.add(dict, pairs)

    def load_frozenset(self) -> None:
        elements = self.pop_mark()
        for element in elements:
            self.budget.check_key(element)
        self.append(frozenset(elements))

    def pop_pairs(self) -> list[tuple[Any, Any]]:
        items = self.pop_mark()
        if len(items) % 2:
            raise PriorImportError("damaged pickle: a dictionary key without a value")
        return list(zip(items[::2], items[1::2], strict=True))

    def add(self, kind: type, items: list[Any]) -> None:
        """Adds to the container on top of the stack, which is of a ``kind``, or an instance that may be a subclass."""
        target = self.stack[-1]
        if isinstance(target, Instance):
            target.items.extend(items)
        elif not isinstance(target, kind):
            raise PriorImportError(f"damaged pickle: it adds to what is no {kind.__name__}")
        elif isinstance(target, list):
            target.extend(items)
        elif isinstance(target, dict | set):
            for item in items:
                self.budget.check_key(item[0] if kind is dict else item)
            target.update(items)

    # -- sizes --

    def load_frame(self) -> None:
        """Reads the frame's length alone: what follows is read as if there were no frames."""
        if int.from_bytes(self.read(8), "little") > self.stream.left():
            raise PriorImportError("the pickle is truncated: a frame claims more bytes than it has")

    def load_bytearray8(self) -> None:
        self.append(bytearray(self.read(int.from_bytes(self.read(8), "little"))))


def _measured(load: Callable[[Any], None]) -> Callable[[Any], None]:
    """An instruction that pushes a number or a text, whose size is then checked."""

    def action(reader: _Reader) -> None:
        load(reader)
        value = reader.stack[-1]
        if isinstance(value, str):
            reader.budget.charge(sys.getsizeof(value))
        elif value.bit_length() > 8 * reader.budget.limits.integer_bytes:
            raise PriorImportError(f"the pickle holds an integer of {(value.bit_length() + 7) // 8} bytes")

    return action


# The standard library's instructions, each by the method of ours that replaces it where there is one.
_Reader.dispatch = {code: getattr(_Reader, load.__name__) for code, load in pickle._Unpickler.dispatch.items()}
_NUMBERS = (pickle.INT, pickle.LONG, pickle.LONG1, pickle.LONG4)
_TEXTS = (pickle.UNICODE, pickle.SHORT_BINUNICODE, pickle.BINUNICODE, pickle.BINUNICODE8)
_Reader.dispatch |= {code: _measured(_Reader.dispatch[code]) for code in b"".join(_NUMBERS + _TEXTS)}
