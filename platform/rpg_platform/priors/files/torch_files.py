"""Tensors out of files that ``torch.save`` wrote, without torch's own unpickler.

The structure of such a file is a pickle, which ``inert`` reads; the numbers are plain bytes beside it, which become
tensors here. Everything else in the file (a whole module, an optimizer, a configuration) stays an inert ``Instance``.
Both layouts are read: the zip archive of torch 1.6 and later, and the stream of before.
"""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from rpg_platform.priors.files.archive import (
    Archive,
    looks_like,
    open_archive,
    read_file,
)
from rpg_platform.priors.files.inert import (
    Global,
    KeepInert,
    Limits,
    load,
    load_at,
)
from rpg_platform.priors.files.inert_values import Charge, Interpreter, check_shape
from rpg_platform.priors.imported import PriorImportError

_DTYPES = MappingProxyType(
    {
        "DoubleStorage": torch.float64,
        "FloatStorage": torch.float32,
        "HalfStorage": torch.float16,
        "BFloat16Storage": torch.bfloat16,
        "LongStorage": torch.int64,
        "IntStorage": torch.int32,
        "ShortStorage": torch.int16,
        "CharStorage": torch.int8,
        "ByteStorage": torch.uint8,
        "BoolStorage": torch.bool,
    }
)
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001


def load_tensors(data: bytes, what: str = "torch file", limits: Limits | None = None) -> Any:
    """What ``torch.save`` was given: its containers with tensors (on the CPU), everything foreign inert.

    Tensors that shared memory still do; parameters are plain tensors without gradient.

    Args:
        data: the file.
        what: what it is, for messages.
        limits: budgets of its pickle.

    Raises:
        PriorImportError: another kind of file, truncated, damaged, or beyond the limits.
    """
    if data.startswith(b"PK"):
        return _load_archive(open_archive(data, what), limits)
    if not data.startswith(b"\x80"):
        raise PriorImportError(f"{what}: not a file of torch.save{looks_like(data)}")
    return _load_stream(data, what, limits)


def read_tensors(path: Path, limits: Limits | None = None) -> Any:
    """``load_tensors`` of a file."""
    return load_tensors(read_file(path), str(path), limits)


def load_pickle(data: bytes, what: str = "pickle", limits: Limits | None = None) -> Any:
    """``inert.load`` of a plain pickle in which tensors become tensors."""
    return load(data, what=what, limits=limits, interpret=_INTERPRETERS | {_FROM_BYTES: _load_from_bytes})


def _load_archive(archive: Archive, limits: Limits | None) -> Any:
    what = archive.what
    pickles = [name for name in archive if name.rpartition("/")[2] == "data.pkl"]
    if any(name.rpartition("/")[2] == "constants.pkl" for name in archive):
        raise PriorImportError(f"{what}: a TorchScript archive, expected a file of torch.save")
    if len(pickles) != 1:
        raise PriorImportError(f"{what}: not a file of torch.save: it has {len(pickles)} members data.pkl")
    folder = pickles[0].removesuffix("data.pkl")
    if archive.get(f"{folder}byteorder", b"little") != b"little":
        raise PriorImportError(f"{what}: written on a big-endian machine; expected little-endian numbers")
    return load_member(archive, pickles[0], f"{folder}data/", limits)


def load_member(archive: Archive, name: str, folder: str, limits: Limits | None = None) -> Any:
    """A pickle in an archive of torch's, its tensors made of the members under ``folder``; see ``load_tensors``.

    Raises:
        PriorImportError: damaged, or beyond the limits.
    """
    storages: dict[str, Tensor] = {}

    def persistent(identifier: Any) -> Any:
        dtype, key, count = _storage_id(identifier)
        name = f"{folder}{key}"
        if key not in storages:
            if name not in archive:
                raise PriorImportError(f"its tensors need a member {name} that the file has not")
            storages[key] = _tensor_of_bytes(archive.read(name), dtype)
        storage = storages[key]
        if storage.dtype != dtype or len(storage) < count:
            raise PriorImportError(f"member {name} is no storage of {count} numbers of {dtype}")
        return storage

    return load(
        archive.read(name),
        what=f"{archive.what}: {name}",
        limits=limits,
        persistent=persistent,
        interpret=_INTERPRETERS,
    )


def _load_stream(data: bytes, what: str, limits: Limits | None) -> Any:
    """The layout of before torch 1.6: four pickles, then the keys of the storages, then their numbers in that order."""
    storages: dict[str, Tensor] = {}
    claimed = 0

    def persistent(identifier: Any) -> Any:
        nonlocal claimed
        if isinstance(identifier, tuple) and len(identifier) == 4 and identifier[0] == "module":
            return identifier[1]  # the name of a module's class, with its source code, which is left out
        dtype, key, count = _storage_id(identifier)
        if key not in storages:
            claimed += count * dtype.itemsize
            if claimed > len(data):
                raise PriorImportError("truncated or damaged: its tensors claim more bytes than the file has")
            storages[key] = torch.zeros(count, dtype=dtype)
        if storages[key].dtype != dtype or len(storages[key]) != count:
            raise PriorImportError(f"its tensors disagree about storage {key}")
        return storages[key]

    try:
        magic, position = load_at(data, 0, what=what, limits=limits)
    except PriorImportError as error:
        raise PriorImportError(f"{what}: not a file of torch.save ({str(error).removeprefix(f'{what}: ')})") from error
    if magic != _LEGACY_MAGIC:
        raise PriorImportError(f"{what}: a pickle, but not a file of torch.save")
    version, position = load_at(data, position, what=what, limits=limits)
    if version != _LEGACY_VERSION:
        raise PriorImportError(f"{what}: version {str(version)[:20]} of torch.save; expected {_LEGACY_VERSION}")
    system, position = load_at(data, position, what=what, limits=limits)
    if not (isinstance(system, dict) and system.get("little_endian") is True):
        raise PriorImportError(f"{what}: written on a big-endian machine; expected little-endian numbers")
    value, position = load_at(data, position, what=what, limits=limits, persistent=persistent, interpret=_INTERPRETERS)
    keys, position = load_at(data, position, what=what, limits=limits)
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(storages):
        raise PriorImportError(f"{what}: damaged: its storages are not those that its tensors use")
    for key in map(str, keys):
        storage = storages[key]
        size = storage.dtype.itemsize * len(storage)
        raw = data[position + 8 : position + 8 + size]
        if int.from_bytes(data[position : position + 8], "little") != len(storage) or len(raw) != size:
            raise PriorImportError(f"{what}: truncated or damaged: storage {key[:50]} has not the size that it claims")
        storage.copy_(_tensor_of_bytes(raw, storage.dtype))
        position += 8 + size
    return value


def _storage_id(identifier: Any) -> tuple[torch.dtype, str, int]:
    """Type, key and number of elements of ``('storage', type, key, device, count[, view])``."""
    if isinstance(identifier, tuple) and 5 <= len(identifier) <= 6 and identifier[0] == "storage":
        kind, key, _, count = identifier[1:5]
        dtype = _DTYPES.get(kind.name) if isinstance(kind, Global) and kind.module == "torch" else None
        if dtype is None:
            raise PriorImportError(f"tensors of type {str(kind)[:100]}: expected one of {', '.join(_DTYPES)}")
        if isinstance(key, str) and type(count) is int and 0 <= count < 1 << 40 and identifier[5:] in ((), (None,)):
            return dtype, key, count
    raise PriorImportError("damaged: a reference to a storage that is none")


def _tensor_of_bytes(raw: bytes, dtype: torch.dtype) -> Tensor:
    if len(raw) % dtype.itemsize:
        raise PriorImportError(f"damaged: {len(raw)} bytes are no numbers of {dtype}")
    if not raw:
        return torch.zeros(0, dtype=dtype)
    if dtype == torch.bool:
        return torch.frombuffer(bytearray(raw), dtype=torch.uint8) != 0
    return torch.frombuffer(bytearray(raw), dtype=dtype)


def _rebuild_tensor(args: tuple[Any, ...], charge: Charge) -> Tensor:
    """``(storage, offset, size, stride, …)``: a view of a storage, within its bounds."""
    if len(args) < 4 or not isinstance(args[0], Tensor):
        raise KeepInert
    storage, offset, size, stride = args[:4]
    check_shape(size)
    check_shape(stride)
    if len(size) != len(stride) or storage.dim() != 1 or type(offset) is not int or offset < 0:
        raise ValueError("a tensor whose layout is none")
    count, last = storage.dtype.itemsize, offset
    for n, step in zip(size, stride, strict=True):
        count *= n
        last += (n - 1) * step
    charge(count)
    if count == 0:
        return torch.zeros(size, dtype=storage.dtype)
    if last >= len(storage):
        raise ValueError(f"a tensor of shape {size} beyond its storage of {len(storage)} numbers")
    return torch.as_strided(storage, size, stride, offset)


def _rebuild_parameter(args: tuple[Any, ...], charge: Charge) -> Tensor:
    if not args or not isinstance(args[0], Tensor):
        raise KeepInert
    return args[0]


def _rebuild_from_type(args: tuple[Any, ...], charge: Charge) -> Tensor:
    """``(function, type, args, state)``: a tensor with attributes, which are left out."""
    if len(args) < 3 or not isinstance(args[2], tuple) or not isinstance(args[0], Global):
        raise KeepInert
    function = {"_rebuild_tensor_v2": _rebuild_tensor, "_rebuild_parameter": _rebuild_parameter}.get(args[0].name)
    if function is None or args[0].module != "torch._utils":
        raise KeepInert
    return function(args[2], charge)


def _size(args: tuple[Any, ...], charge: Charge) -> tuple[int, ...]:
    if len(args) != 1 or not isinstance(args[0], list | tuple):
        raise KeepInert
    size = tuple(args[0])
    check_shape(size)
    return size


def _load_from_bytes(args: tuple[Any, ...], charge: Charge) -> Tensor:
    """A storage that was pickled outside of ``torch.save``: the bytes of a ``torch.save`` of it."""
    if len(args) != 1 or not isinstance(args[0], bytes):
        raise KeepInert
    charge(len(args[0]))
    storage = load_tensors(args[0], "a tensor's storage")
    if not isinstance(storage, Tensor):
        raise KeepInert
    return storage


_FROM_BYTES = "torch.storage._load_from_bytes"
_INTERPRETERS: dict[str, Interpreter] = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    "torch.Size": _size,
}
