"""Mutations of files that know what a file is made of: archives in archives, pickles in JSON, opcodes in pickles.

A byte flipped in an archive mostly breaks its checksum, and nothing behind it is ever reached. So a mutation goes down
into a part with good odds, changes that, and packs all of it again as a program would have written it.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import io
import json
import pickle
import pickletools
import random
import zipfile
from collections.abc import Sequence
from typing import Any

from tests.platform.priors.archives import zipped

EDGES = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 1 << 31, (1 << 31) - 1, (1 << 32) - 1, (1 << 63) - 1, (1 << 64) - 1]
VALUES: list[Any] = [
    None,
    True,
    0,
    -1,
    10**400,
    1e308,
    float("nan"),
    "",
    "x" * 300,
    [],
    {},
    [[[]]],
    {":serialized:": ""},
]
NAMES = ["os system", "builtins exec", "builtins eval", "builtins getattr", "builtins __import__", "posix system"]
NAMES += ["subprocess Popen", "numpy dtype", "numpy ndarray", "numpy._core.multiarray _reconstruct", "torch Size"]
NAMES += ["numpy._core.numeric _frombuffer", "collections OrderedDict", "torch._utils _rebuild_tensor_v2"]
OPCODES = [each.code.encode("latin-1") for each in pickletools.opcodes]


def mutate(data: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    """A changed copy of ``data``; ``others`` are what parts may be taken from."""
    if rng.random() < 0.75:
        if data.startswith(b"PK"):
            return _archive(data, others, rng)
        if data.startswith(b"{"):
            return _json(data, others, rng)
        if data.startswith((b"\x80", b"cbuiltins", b"(", b"c")) and rng.random() < 0.8:
            return _pickle(data, rng)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        data = _bytes(data, others, rng)
    return data


def _archive(data: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError, ValueError):
        return _bytes(data, others, rng)
    names = list(parts)
    if not names:
        return data
    chosen = rng.choice(names)
    match rng.randrange(20):
        case 0:
            del parts[chosen]
        case 1:
            parts[rng.choice(names)] = parts[chosen]
        case 2:
            parts[f"{chosen}#"] = parts[chosen]
        case 3:
            parts[rng.choice(["../x", "/x", "data/../../x", "a" * 500, "\u202e.pth", "x.pth"])] = parts[chosen]
        case 4:
            return zipped({f"folder/{name}": part for name, part in parts.items()})
        case _:
            parts[chosen] = mutate(parts[chosen], [*others, *parts.values()], rng)
    return zipped(parts, rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))


def _json(data: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return _bytes(data, others, rng)
    return json.dumps(_json_value(value, others, rng)).encode()


def _json_value(value: Any, others: Sequence[bytes], rng: random.Random) -> Any:
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice([*value, *(k for k in value if isinstance(value[k], dict) or k == ":serialized:")])
        if rng.random() < 0.1:
            return {k: v for k, v in value.items() if k != key}
        return value | {key: _json_value(value[key], others, rng)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = rng.randrange(len(value))
        return [*value[:at], _json_value(value[at], others, rng), *value[at + rng.randrange(2) :]]
    if isinstance(value, str) and len(value) > 8 and rng.random() < 0.95:
        try:
            return base64.b64encode(mutate(base64.b64decode(value, validate=True), others, rng)).decode()
        except (binascii.Error, ValueError):
            return _bytes(value.encode(), others, rng).decode("latin-1")
    return rng.choice(VALUES)


def _pickle(data: bytes, rng: random.Random) -> bytes:
    """Instructions deleted, doubled, exchanged, replaced or put in."""
    starts: list[int] = []
    with contextlib.suppress(Exception):  # whatever pickletools makes of it: what it has read so far is enough
        starts.extend(position for _, _, position in pickletools.genops(data) if position is not None)
    if len(starts) < 3:
        return _bytes(data, (), rng)
    pieces = [data[a:b] for a, b in zip(starts, [*starts[1:], len(data)], strict=True)]
    # without the frames, whose length would give most changes away
    pieces = [piece for piece in pieces if not piece.startswith(pickle.FRAME)]
    for _ in range(rng.choice((1, 1, 2, 4))):
        at, other = rng.randrange(len(pieces)), rng.randrange(len(pieces))
        match rng.randrange(8):
            case 0:
                pieces[at] = b""
            case 1:
                pieces[at] += pieces[at]
            case 2:
                pieces[at], pieces[other] = pieces[other], pieces[at]
            case 3:
                pieces[at] = pieces[other]
            case 4:
                pieces[at] += rng.choice(OPCODES) + rng.randbytes(rng.choice((0, 1, 4, 8)))
            case 5:
                pieces[at] += b"c" + rng.choice(NAMES).replace(" ", "\n").encode() + b"\n"
            case 6:
                pieces[at] += rng.choice((b"N", b")", b"]", b"}", b"(", b"0", b"2", b"R", b"b", b"\x81", b"t", b"\x85"))
            case _:
                pieces[at] = _number(pieces[at], rng)
    return b"".join(pieces)


def _number(piece: bytes, rng: random.Random) -> bytes:
    """An instruction with another argument."""
    size = rng.choice((1, 2, 4, 8))
    edge = rng.choice(EDGES) & ((1 << 8 * size) - 1)
    return piece[:1] + edge.to_bytes(size, "little") + piece[1 + size :]


def _bytes(data: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    if not data:
        return rng.randbytes(rng.randrange(20))
    at = rng.randrange(len(data))
    end = min(len(data), at + rng.choice((1, 2, 8, 50)))
    match rng.randrange(9):
        case 0:
            return data[:at]
        case 1:
            return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
        case 2:
            return data[:at] + rng.randbytes(end - at) + data[end:]
        case 3:
            return data[:at] + data[end:]
        case 4:
            return data[:end] + data[at:]
        case 5:
            return data[:at] + rng.randbytes(rng.randrange(1, 20)) + data[at:]
        case 6:
            other = rng.choice(others) if others else data
            start = rng.randrange(len(other)) if other else 0
            return data[:at] + other[start : start + rng.choice((4, 30, 500))] + data[end:]
        case 7:
            return data[:at]
    size = rng.choice((1, 2, 4, 8))
    edge = rng.choice(EDGES) & ((1 << 8 * size) - 1)
    return data[:at] + edge.to_bytes(size, rng.choice(("little", "big"))) + data[at + size :]
