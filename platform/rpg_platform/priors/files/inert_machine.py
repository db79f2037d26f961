"""The stack machine of ``inert``: the instructions of pickle protocols 0 to 5, none importing or calling anything."""

from __future__ import annotations

import codecs
import pickle
import struct
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rpg_platform.priors.files.inert_values import (
    MAX_COMPOSITE_KEYS,
    Global,
    Instance,
    Interpreter,
    KeepInert,
    build,
    canonical_name,
    check_key,
)
from rpg_platform.priors.imported import PriorImportError


@dataclass(frozen=True)
class Limits:
    """Budgets of one pickle.

    Attributes:
        opcodes: instructions carried out.
        allocated_bytes: memory of arrays and of copies of strings and containers.
        integer_bytes: length of one integer.
        nesting: containers within containers, and open marks.
        nodes: size of the result with shared containers counted as often as they occur.
        seconds: time.
    """

    opcodes: int = 1_000_000
    allocated_bytes: int = 1 << 30
    integer_bytes: int = 1_024
    nesting: int = 200
    nodes: int = 4_000_000
    seconds: float = 60.0


class Machine:
    """The stack machine of one pickle. Methods named ``do_…`` carry out one instruction each."""

    def __init__(
        self,
        data: bytes,
        start: int,
        limits: Limits,
        persistent: Callable[[Any], Any] | None,
        interpreters: Mapping[str, Interpreter],
    ) -> None:
        self.data, self.position, self.limits = data, start, limits
        self.persistent, self.interpreters = persistent, interpreters
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.allocated = 0
        self.composite_keys = 0
        self.deadline = time.monotonic() + limits.seconds

    def run(self) -> Any:
        """Carries out instructions until STOP and returns the top of the stack."""
        data, size = self.data, len(self.data)
        for count in range(self.limits.opcodes):
            if self.position >= size:
                raise PriorImportError("the pickle is truncated: it ends before its STOP")
            code = data[self.position]
            self.position += 1
            if code == _STOP:
                return self.stack.pop()
            action = _ACTIONS.get(code)
            if action is None:
                raise PriorImportError(
                    f"not a pickle, or a damaged one: byte {self.position - 1} ({code:#04x}) is no instruction"
                )
            action(self)
            if count % 1024 == 0:
                self.check_time()
        raise PriorImportError(f"the pickle takes more than {self.limits.opcodes} instructions")

    # -- budgets and reading --

    def check_time(self) -> None:
        if time.monotonic() > self.deadline:
            raise PriorImportError(f"the pickle takes more than {self.limits.seconds:g} s to read")

    def charge(self, size: int) -> None:
        self.allocated += size
        if self.allocated > self.limits.allocated_bytes:
            raise PriorImportError(f"the pickle takes more than {self.limits.allocated_bytes} bytes of memory")

    def take(self, size: int) -> bytes:
        """The next ``size`` bytes."""
        end = self.position + size
        if end > len(self.data):
            raise PriorImportError("the pickle is truncated, or damaged: it claims more bytes than it has")
        chunk = self.data[self.position : end]
        self.position = end
        return chunk

    def take_line(self) -> bytes:
        """The bytes up to the next newline, without it."""
        end = self.data.find(b"\n", self.position)
        if end < 0:
            raise PriorImportError("the pickle is truncated, or damaged: a line without an end")
        chunk = self.data[self.position : end]
        self.position = end + 1
        return chunk

    def take_sized(self, width: int) -> bytes:
        """Bytes preceded by their number, an unsigned integer of ``width`` bytes."""
        return self.take(int.from_bytes(self.take(width), "little"))

    def take_number(self) -> int:
        """A memo index in decimals."""
        line = self.take_line()
        if len(line) > 10 or not line.isdigit():
            raise PriorImportError("damaged pickle: a number of an object that is none")
        return int(line)

    def pop_mark(self) -> list[Any]:
        """What lies above the topmost mark."""
        items, self.stack = self.stack, self.marks.pop()
        return items

    # -- building --

    def remember(self, index: int) -> None:
        value = self.stack[-1]
        self.memo[index] = value
        if isinstance(value, Instance):
            value.memo = (*value.memo[-3:], index)  # four places at most: a value is stored once

    def call(self, function: Any, args: Any, kwargs: Any = None) -> Any:
        """What stands for ``function(*args, **kwargs)``: a value by one of our interpreters, or a record of it."""
        if not isinstance(args, tuple) or not isinstance(function, Global | Instance):
            raise PriorImportError("damaged pickle: a call without a function or without arguments")
        if isinstance(function, Instance):
            return Instance(f"{function.qualified_name[:200]}(…)", args)
        if not kwargs and (interpreter := self.interpreters.get(canonical_name(function))) is not None:
            try:
                return interpreter(args, self.charge)
            except KeepInert:
                pass
        return Instance(function.qualified_name, args, kwargs) if kwargs else Instance(function.qualified_name, args)

    def count_key(self, key: Any) -> None:
        if check_key(key):
            self.composite_keys += 1
            if self.composite_keys > MAX_COMPOSITE_KEYS:
                raise PriorImportError(f"the pickle has more than {MAX_COMPOSITE_KEYS} composite dictionary keys")

    def set_items(self, target: Any, pairs: list[Any]) -> None:
        if len(pairs) % 2:
            raise PriorImportError("damaged pickle: a dictionary key without a value")
        couples = zip(pairs[::2], pairs[1::2], strict=True)
        if isinstance(target, Instance):
            if isinstance(target.entries, tuple):
                target.entries = []
            target.entries.extend(couples)
        elif isinstance(target, dict):
            for key, value in couples:
                self.count_key(key)
                target[key] = value
        else:
            raise PriorImportError("damaged pickle: entries for what is no dictionary")

    def append_items(self, target: Any, items: list[Any]) -> None:
        if isinstance(target, Instance):
            if isinstance(target.items, tuple):
                target.items = []
            target.items.extend(items)
        elif isinstance(target, list):
            target.extend(items)
        else:
            raise PriorImportError("damaged pickle: items for what is no list")

    def push_text(self, raw: bytes) -> None:
        text = raw.decode("utf-8", "surrogatepass")
        self.charge(sys.getsizeof(text))
        self.stack.append(text)

    # -- instructions: numbers and strings --

    def do_int(self) -> None:
        line = self.take_line()
        if line in (b"00", b"01"):
            self.stack.append(line == b"01")
        elif len(line) > 32:
            raise PriorImportError(f"the pickle holds an integer of {len(line)} digits")
        else:
            self.stack.append(int(line))

    def do_long(self) -> None:
        line = self.take_line().removesuffix(b"L")
        if len(line) > 2 * self.limits.integer_bytes:
            raise PriorImportError(f"the pickle holds an integer of {len(line)} digits")
        self.stack.append(int(line))

    def push_long(self, size: int) -> None:
        if not 0 <= size <= self.limits.integer_bytes:
            raise PriorImportError(f"the pickle holds an integer of {size} bytes")
        self.stack.append(int.from_bytes(self.take(size), "little", signed=True))

    def do_string(self) -> None:
        line = self.take_line()
        if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
            raise PriorImportError("damaged pickle: a string without quotes")
        self.stack.append(codecs.escape_decode(line[1:-1])[0].decode("latin-1"))

    def do_persistent(self, identifier: Any) -> None:
        if self.persistent is None:
            raise PriorImportError("the pickle refers to objects outside of it (a persistent id)")
        self.stack.append(self.persistent(identifier))

    # -- instructions: containers --

    def do_mark(self) -> None:
        if len(self.marks) >= self.limits.nesting:
            raise PriorImportError(f"the pickle nests more than {self.limits.nesting} levels deep")
        self.marks.append(self.stack)
        self.stack = []

    def do_pop(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.pop_mark()

    def do_tuple(self, size: int) -> None:
        items = self.stack[-size:]
        if len(items) != size:
            raise IndexError
        self.stack[-size:] = [tuple(items)]

    def do_list(self) -> None:
        items = self.pop_mark()
        self.stack.append(items)

    def do_dict(self) -> None:
        pairs = self.pop_mark()
        result: dict[Any, Any] = {}
        self.set_items(result, pairs)
        self.stack.append(result)

    def do_append(self) -> None:
        item = self.stack.pop()
        self.append_items(self.stack[-1], [item])

    def do_appends(self) -> None:
        items = self.pop_mark()
        self.append_items(self.stack[-1], items)

    def do_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items(self.stack[-1], [key, value])

    def do_setitems(self) -> None:
        pairs = self.pop_mark()
        self.set_items(self.stack[-1], pairs)

    def do_additems(self) -> None:
        items, target = self.pop_mark(), self.stack[-1]
        if isinstance(target, Instance):
            self.append_items(target, items)
            return
        if not isinstance(target, set):
            raise PriorImportError("damaged pickle: elements for what is no set")
        for item in items:
            self.count_key(item)
            target.add(item)

    def do_frozenset(self) -> None:
        items = self.pop_mark()
        for item in items:
            self.count_key(item)
        self.stack.append(frozenset(items))

    # -- instructions: memo --

    def do_get(self, index: int) -> None:
        if index not in self.memo:
            raise PriorImportError(f"damaged pickle: refers to an object {index} that it has not stored")
        self.stack.append(self.memo[index])

    # -- instructions: names, calls and objects, none of which happen --

    def push_global(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str) or max(len(module), len(name)) > _LONGEST_NAME:
            raise PriorImportError("damaged pickle: a name that is none")
        self.stack.append(Global(module, name))

    def do_global(self) -> None:
        self.push_global(self.take_line().decode(), self.take_line().decode())

    def do_stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.push_global(module, name)

    def do_reduce(self) -> None:
        args, function = self.stack.pop(), self.stack.pop()
        self.stack.append(self.call(function, args))

    def do_newobj_ex(self) -> None:
        kwargs, args, function = self.stack.pop(), self.stack.pop(), self.stack.pop()
        if not isinstance(kwargs, dict):
            raise PriorImportError("damaged pickle: keyword arguments that are none")
        self.stack.append(self.call(function, args, kwargs))

    def do_inst(self) -> None:
        self.do_global()
        function = self.stack.pop()
        args = tuple(self.pop_mark())
        self.stack.append(self.call(function, args))

    def do_obj(self) -> None:
        function, *args = self.pop_mark() or [None]
        self.stack.append(self.call(function, tuple(args)))

    def do_build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Instance):
            value = build(target, state, self.charge)
            if value is not target:
                self.stack[-1] = value
                for index in target.memo:
                    if self.memo.get(index) is target:
                        self.memo[index] = value
        elif isinstance(target, Global | str | bytes | int | float | None):  # others' attributes mean nothing to us
            raise PriorImportError("damaged pickle: a state for what takes none")

    def do_proto(self) -> None:
        version = self.take(1)[0]
        if version > pickle.HIGHEST_PROTOCOL:
            raise PriorImportError(f"pickle protocol {version}: expected 0 to {pickle.HIGHEST_PROTOCOL}")

    def do_frame(self) -> None:
        if int.from_bytes(self.take(8), "little") > len(self.data) - self.position:
            raise PriorImportError("the pickle is truncated: a frame claims more bytes than it has")

    def refuse_extension(self) -> None:
        raise PriorImportError("the pickle refers to an extension registry, which no file of this kind does")

    def refuse_buffer(self) -> None:
        raise PriorImportError("the pickle keeps buffers outside of it")


def _push(value: Callable[[Machine], Any]) -> Callable[[Machine], None]:
    def action(machine: Machine) -> None:
        result = value(machine)  # first: it may change which stack is the top one
        machine.stack.append(result)

    return action


_STOP = pickle.STOP[0]
_LONGEST_NAME = 1_000
_ACTIONS: dict[int, Callable[[Machine], Any]] = {
    code[0]: action
    for code, action in {
        # numbers
        pickle.NONE: _push(lambda m: None),
        pickle.NEWTRUE: _push(lambda m: True),
        pickle.NEWFALSE: _push(lambda m: False),
        pickle.INT: Machine.do_int,
        pickle.BININT: _push(lambda m: int.from_bytes(m.take(4), "little", signed=True)),
        pickle.BININT1: _push(lambda m: m.take(1)[0]),
        pickle.BININT2: _push(lambda m: int.from_bytes(m.take(2), "little")),
        pickle.LONG: Machine.do_long,
        pickle.LONG1: lambda m: m.push_long(m.take(1)[0]),
        pickle.LONG4: lambda m: m.push_long(int.from_bytes(m.take(4), "little", signed=True)),
        pickle.FLOAT: _push(lambda m: float(m.take_line())),
        pickle.BINFLOAT: _push(lambda m: struct.unpack(">d", m.take(8))[0]),
        # strings; those of Python 2 are bytes that mostly hold text
        pickle.STRING: Machine.do_string,
        pickle.BINSTRING: _push(lambda m: m.take_sized(4).decode("latin-1")),
        pickle.SHORT_BINSTRING: _push(lambda m: m.take_sized(1).decode("latin-1")),
        pickle.UNICODE: _push(lambda m: m.take_line().decode("raw-unicode-escape")),
        pickle.SHORT_BINUNICODE: lambda m: m.push_text(m.take_sized(1)),
        pickle.BINUNICODE: lambda m: m.push_text(m.take_sized(4)),
        pickle.BINUNICODE8: lambda m: m.push_text(m.take_sized(8)),
        pickle.SHORT_BINBYTES: _push(lambda m: m.take_sized(1)),
        pickle.BINBYTES: _push(lambda m: m.take_sized(4)),
        pickle.BINBYTES8: _push(lambda m: m.take_sized(8)),
        pickle.BYTEARRAY8: _push(lambda m: bytearray(m.take_sized(8))),
        # containers
        pickle.MARK: Machine.do_mark,
        pickle.POP: Machine.do_pop,
        pickle.POP_MARK: Machine.pop_mark,
        pickle.DUP: _push(lambda m: m.stack[-1]),
        pickle.EMPTY_TUPLE: _push(lambda m: ()),
        pickle.TUPLE: _push(lambda m: tuple(m.pop_mark())),
        pickle.TUPLE1: lambda m: m.do_tuple(1),
        pickle.TUPLE2: lambda m: m.do_tuple(2),
        pickle.TUPLE3: lambda m: m.do_tuple(3),
        pickle.EMPTY_LIST: _push(lambda m: []),
        pickle.LIST: Machine.do_list,
        pickle.APPEND: Machine.do_append,
        pickle.APPENDS: Machine.do_appends,
        pickle.EMPTY_DICT: _push(lambda m: {}),
        pickle.DICT: Machine.do_dict,
        pickle.SETITEM: Machine.do_setitem,
        pickle.SETITEMS: Machine.do_setitems,
        pickle.EMPTY_SET: _push(lambda m: set()),
        pickle.ADDITEMS: Machine.do_additems,
        pickle.FROZENSET: Machine.do_frozenset,
        # memo
        pickle.PUT: lambda m: m.remember(m.take_number()),
        pickle.BINPUT: lambda m: m.remember(m.take(1)[0]),
        pickle.LONG_BINPUT: lambda m: m.remember(int.from_bytes(m.take(4), "little")),
        pickle.MEMOIZE: lambda m: m.remember(len(m.memo)),
        pickle.GET: lambda m: m.do_get(m.take_number()),
        pickle.BINGET: lambda m: m.do_get(m.take(1)[0]),
        pickle.LONG_BINGET: lambda m: m.do_get(int.from_bytes(m.take(4), "little")),
        # names, calls and objects
        pickle.PERSID: lambda m: m.do_persistent(m.take_line().decode()),
        pickle.BINPERSID: lambda m: m.do_persistent(m.stack.pop()),
        pickle.GLOBAL: Machine.do_global,
        pickle.STACK_GLOBAL: Machine.do_stack_global,
        pickle.REDUCE: Machine.do_reduce,
        pickle.NEWOBJ: Machine.do_reduce,
        pickle.NEWOBJ_EX: Machine.do_newobj_ex,
        pickle.INST: Machine.do_inst,
        pickle.OBJ: Machine.do_obj,
        pickle.BUILD: Machine.do_build,
        # the rest
        pickle.PROTO: Machine.do_proto,
        pickle.FRAME: Machine.do_frame,
        pickle.EXT1: Machine.refuse_extension,
        pickle.EXT2: Machine.refuse_extension,
        pickle.EXT4: Machine.refuse_extension,
        pickle.NEXT_BUFFER: Machine.refuse_buffer,
        pickle.READONLY_BUFFER: Machine.refuse_buffer,
    }.items()
}
