"""The pickle reader that carries nothing out: what it reads, what it records, what it refuses."""

from __future__ import annotations

import collections
import io
import pickle
import pickletools
import struct
import time
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
from tests.platform.priors.payloads import Payload, acts

from rpg_platform.priors.files.inert import Global, Instance, Limits, PickleStream, load
from rpg_platform.priors.imported import PriorImportError

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
VALUES = [
    *(None, True, False, 0, 1, -1, 255, 256, 65_535, 65_536, -(2**31), 2**31, 2**70, -(2**700)),
    *(0.0, -1.5, 1e300, float("inf"), "", "text", "line\nbreak 'quoted' \\ é 😀", "\ud800", b"", b"\0\xff" * 200),
    *((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [], [1, [2, [3]]], {}, {"a": 1, (1, "b"): {2: None}}),
    *({1, "a"}, set(), frozenset((1, (2, 3))), bytearray(b"abc"), 1.5 - 2j, slice(1, None, -1)),
    *(collections.OrderedDict(b=1, a=[2]), list(range(3_000)), "x" * 70_000),
    *(np.dtype("f4"), np.dtype(">i8"), np.float64(1.5), np.int8(-3), np.bool_(True)),
    *(np.arange(6, dtype=np.float32).reshape(2, 3), np.asfortranarray(np.arange(6.0).reshape(2, 3))),
    *(np.zeros((0, 3)), np.array(3), np.array([True, False]), np.arange(4, dtype=">f8"), np.ones(2, np.complex64)),
    *(np.arange(6, dtype=np.uint16)[::2], np.ones(3, np.float16)),
]


def same(a: Any, b: Any) -> bool:
    if isinstance(b, np.ndarray | np.generic):
        return isinstance(a, type(b)) and a.dtype == b.dtype.newbyteorder("=") and np.array_equal(a, b)
    return type(a) is type(b) and bool(a == b)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_data_is_read_as_pickle_reads_it(protocol: int) -> None:
    wrong = [v for v in VALUES if not same(load(pickle.dumps(v, protocol)), v)]
    assert wrong == []
    together = load(pickle.dumps(VALUES, protocol))
    assert [v for r, v in zip(together, VALUES, strict=True) if not same(r, v)] == []


def test_arrays_are_native_writable_and_shared_as_they_were() -> None:
    array = np.arange(3, dtype=">f4")
    first, again = load(pickle.dumps([array, array]))
    assert first is again
    assert first.dtype.isnative
    first[0] = 7.0
    assert np.array_equal(again, [7.0, 1.0, 2.0])


def test_numpy_1_wrote_other_module_names() -> None:
    for protocol in (2, 4):
        data = pickle.dumps(np.arange(3.0), protocol)
        old = data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray").replace(b"\x8c\x16n", b"\x8c\x15n")
        assert old != data
        # the frame is one byte shorter now
        old = old.replace(b"\x95" + struct.pack("<Q", len(data) - 11), b"\x95" + struct.pack("<Q", len(old) - 11))
        assert np.array_equal(load(old), [0.0, 1.0, 2.0])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_payload_is_recorded_and_not_run(protocol: int, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    for value in (Payload(marker), {"payload": Payload(marker)}, [1, Payload(marker)]):
        data = pickle.dumps(value, protocol)
        assert acts(data, marker)
        found = load(data)
        found = found["payload"] if isinstance(found, dict) else found[-1] if isinstance(found, list) else found
        assert isinstance(found, Instance)
        assert (found.qualified_name.split(".")[1], found.args) == ("exec", Payload(marker).__reduce__()[1])
        assert not marker.exists()


class Thing(list):  # type: ignore[type-arg]
    """Uses every way in which a pickle makes an object."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Thing:
        return super().__new__(cls)

    def __getnewargs_ex__(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (1,), {"named": 2}


def test_objects_are_recorded_whole() -> None:
    thing = Thing()
    thing.extend(["item"])
    thing.attribute = thing  # a cycle through an object
    found = load(pickle.dumps(thing))
    assert found.qualified_name.endswith("test_inert.Thing")
    assert (found.args, dict(found.kwargs), found.items) == ((1,), {"named": 2}, ["item"])
    assert found.attributes["attribute"] is found
    counter = load(pickle.dumps(collections.Counter("aab"), 0))
    assert (counter.qualified_name, counter.args) == ("collections.Counter", ({"a": 2, "b": 1},))
    deque = load(pickle.dumps(collections.deque([1, 2], 5)))
    assert (deque.qualified_name, deque.args, deque.items) == ("collections.deque", ((), 5), [1, 2])
    assert load(pickle.dumps(np.random.default_rng(0))).qualified_name.endswith("__generator_ctor")
    assert load(pickle.dumps(np.array([None, "x"], dtype=object))).state[-1] == [None, "x"]
    assert load(pickle.dumps(collections.OrderedDict)) == Global("collections", "OrderedDict")


def test_code_stays_inert() -> None:
    class Local:
        def method(self) -> int:
            return 1

    function = load(cloudpickle.dumps(lambda x: x + 1))
    assert function.qualified_name == "cloudpickle.cloudpickle._make_function"
    instance = load(cloudpickle.dumps(Local()))
    assert instance.qualified_name == "cloudpickle.cloudpickle._make_skeleton_class(…)"


def test_every_instruction_is_known() -> None:
    """Those of pickle's reader, which does all but the few that could act: a new one would have to be looked at."""
    codes = {ord(each.code) for each in pickletools.opcodes}
    assert codes == {*pickle._Unpickler.dispatch}  # type: ignore[attr-defined]


def test_hooks() -> None:
    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return ("id", value.imag) if isinstance(value, complex) else None

    stream = io.BytesIO()
    Pickler(stream).dump([1j, 2])
    assert load(stream.getvalue(), persistent=lambda pid: pid) == [("id", 1.0), 2]
    with pytest.raises(PriorImportError, match="objects outside of it"):
        load(stream.getvalue())

    def interpret(budget: Any, argument: str) -> str:  # one argument: the range, which has three, stays inert
        return f"path {argument}"

    data = pickle.dumps([Payload(Path("x")), range(2)])
    found = load(data, interpret={"builtins.exec": interpret, "builtins.range": interpret})
    assert found[0].startswith("path open(")
    assert found[1].args == (0, 2, 1)


def nested(levels: int, code: bytes) -> bytes:
    return b"\x80\x04" + b"(" * (code in b"lt") * levels + b")" + code * levels + b"."


def doubled(levels: int, ending: bytes) -> bytes:
    """A tuple of two tuples of two tuples …: 2 ** levels when unfolded."""
    steps = b"".join(b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) + b"0" for i in range(levels))
    return b"\x80\x02)q\x000" + steps + b"h" + bytes([levels]) + ending


def long4(size: int) -> bytes:
    return b"\x80\x02\x8b" + struct.pack("<i", size) + b"\x7f" * min(size, 1 << 21) + b"."


class Claim:
    """An array that claims another shape than it has."""

    def __init__(self, shape: tuple[int, ...], raw: bytes, order: str = "C") -> None:
        self.args = (raw, np.dtype("f4"), shape, order)

    def __reduce__(self) -> tuple[Any, ...]:
        return np._core.numeric._frombuffer, self.args  # type: ignore[attr-defined]


def colliding(count: int) -> bytes:
    """A set of tuples, as many as fit a budget of time and no other."""
    return pickle.dumps({(i, i): None for i in range(count)})


# what, pickle, the refusal
MALFORMED: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "truncated"),
    "text": (b"hello world", "not a pickle, or a damaged one: Memo value not found"),
    "zeros": (bytes(1_000), "byte 0x00 is no instruction"),
    "no stop": (pickle.dumps([1], 2)[:-1], "ends before its STOP"),
    "cut string": (pickle.dumps("x" * 100)[:50], "truncated"),
    "cut frame": (b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b"N.", "frame claims"),
    "line without end": (b"cbuiltins", "line without an end"),
    "empty stack": (b".", "stack runs empty"),
    "tuple of nothing": (b"\x80\x02\x85.", "stack runs empty"),
    "no mark": (b"Nt.", "stack runs empty"),
    "protocol 6": (b"\x80\x06N.", "unsupported pickle protocol: 6"),
    "memo": (b"h\x05.", "Memo value not found at index 5"),
    "negative memo": (b"Np-1\n.", "damaged one: negative PUT argument"),
    "memo index of terabytes": (b"Nr\xff\xff\xff\xffj\xfe\xff\xff\xff.", "Memo value not found at index 4294967294"),
    "extension": (b"\x82\x01.", "extension registry"),
    "extension of two bytes": (b"\x83\x01\x00.", "extension registry"),
    "extension of four bytes": (b"\x84\x01\x00\x00\x00.", "extension registry"),
    "buffers": (b"\x80\x05\x97.", "buffers outside"),
    "buffer made read-only": (b"\x80\x05\x96" + struct.pack("<Q", 1) + b"x\x98.", "buffers outside"),
    "bytearray of terabytes": (b"\x80\x05\x96" + struct.pack("<Q", 1 << 42) + b"x.", "truncated"),
    "bytearray of endless size": (b"\x80\x05\x96" + b"\xff" * 8 + b"x.", "damaged one"),
    "bytes of gigabytes": (b"\x80\x05B\xff\xff\xff\xffx.", "truncated"),
    "persistent id": (b"Pabc\n.", "objects outside of it"),
    "call of a number": (b"I1\n)R.", "call without a function"),
    "arguments of a call": (b"cos\nsystem\nI1\nR.", "without arguments"),
    "name": (b"\x80\x04NN\x93.", "STACK_GLOBAL requires str"),
    "endless name": (b"c" + b"x" * 2_000 + b"\ny\n.", "a name that is none"),
    "item of a number": (b"I1\nI2\na.", "adds to what is no list"),
    "entry of a list": (b"]I1\nI2\ns.", "adds to what is no dict"),
    "entry without value": (b"}(I1\nu.", "key without a value"),
    "state of a number": (b"I1\nNb.", "a state for what takes none"),
    "state of a name": (b"cos\nsystem\n}b.", "a state for what takes none"),
    "unquoted string": (b"Sabc\n.", "must be quoted"),
    "integer": (b"I1x\n.", "invalid literal"),
    "utf-8": (b"\x80\x04\x8c\x02\xff\xff.", "can't decode|codec"),
    "list as a key": (b"}]I1\ns.", "key of type list"),
    "int beyond 64 bits as a key": (pickle.dumps({2**64: 1}), "beyond 64 bits"),
    "long integer": (long4(1 << 20), "integer of 1048576 bytes"),
    "negative size": (long4(-5), "negative byte count"),
    "hexadecimal integer": (b"I0x" + b"f" * 100_000 + b"\n.", "integer of 50000 bytes"),
    "decimal integer": (b"L" + b"9" * 100_000 + b"L\n.", "Exceeds the limit .* for integer string conversion"),
    "deep": (nested(20_000, b"\x85"), "nests more than 200 levels"),
    "marks": (b"(" * 20_000 + b"t" * 20_000 + b".", "nests more than 200 levels"),
    "unfolds": (doubled(60, b"."), "unfolds to more than"),
    "unfolding key": (b"\x80\x02}" + doubled(60, b"Ns.")[2:], "too complicated to hash"),
    "deep key": (b"\x80\x02}" + b")" + b"\x85" * 20_000 + b"Ns.", "too complicated to hash"),
    "itself": (b"]q\x00h\x00a.", "contains itself"),
    "itself by way of a dictionary": (b"}q\x00(I1\nh\x00u.", "contains itself"),
    "opcodes": (b"\x80\x02" + b"N0" * 600_000 + b"N.", "more than 1000000 instructions"),
    "composite keys": (colliding(6_000), "more than 5000 composite"),
    "array too short": (pickle.dumps(Claim((4,), b"1234")), r"array of shape \(4,\)"),
    "array too long": (pickle.dumps(Claim((2,), b"1" * 12)), r"array of shape \(2,\)"),
    "array of terabytes": (pickle.dumps(Claim((1 << 39, 1 << 39), b"1234")), "an array of shape"),
    "array of endless size": (pickle.dumps(Claim((10**30,), b"1234")), "not made of sizes"),
    "array of negative size": (pickle.dumps(Claim((-1, -1), b"1234")), "not made of sizes"),
    "array of many dimensions": (pickle.dumps(Claim((1,) * 40, b"1234")), "at most 32"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_pickles_have_their_own_message(name: str) -> None:
    data, message = MALFORMED[name]
    start = time.process_time()
    with pytest.raises(PriorImportError, match=message) as caught:
        load(data, what="the file")
    assert str(caught.value).startswith("the file: ")
    assert len(str(caught.value)) < 400
    assert time.process_time() - start < 5.0


@pytest.mark.parametrize(
    ("function", "rest"),
    [("builtins\nbytearray", b""), ("numpy._core.numeric\n_frombuffer", b"Vu1\n(J\0\0\x10\0tVC\n")],
)
def test_memory_is_charged(function: str, rest: bytes) -> None:
    """A megabyte is stored once and copied over and over."""
    data = b"\x80\x03(B" + struct.pack("<I", 1 << 20) + bytes(1 << 20) + rest + b"tq\x000"
    data += f"c{function}\nq\x010".encode() + b"h\x01h\x00R0" * 2_000 + b"N."
    with pytest.raises(PriorImportError, match="more than 1073741824 bytes of memory"):
        load(data)
    assert load(data, limits=Limits(allocated_bytes=3 << 30)) is None


def test_records_are_charged() -> None:
    """A tuple of 100,000 arguments is stored once; each of 2,000 records would take it apart anew."""
    data = b"\x80\x02ccopyreg\n__newobj__\nq\x000(cos\nsystem\n" + b"N" * 100_000 + b"tq\x010"
    assert load(data + b"h\x00h\x01R.").qualified_name == "os.system"
    with pytest.raises(PriorImportError, match="more than 1073741824 bytes of memory"):
        load(data + b"h\x00h\x01R" * 2_000 + b".")


def test_time_is_bounded() -> None:
    with pytest.raises(PriorImportError, match="more than 0 s to read"):
        load(pickle.dumps(list(range(5_000))), limits=Limits(seconds=0.0))


def test_several_pickles_in_one_stream() -> None:
    for protocol in PROTOCOLS:
        data = pickle.dumps("first", protocol) + pickle.dumps("second", protocol) + b"the rest"
        assert load(data) == "first"
        stream = PickleStream(data)
        assert (load(stream), load(stream), stream.read()) == ("first", "second", b"the rest")
