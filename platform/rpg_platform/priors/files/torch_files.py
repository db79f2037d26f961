"""Tensors out of files that ``torch.save`` wrote, without torch's own unpickler.

The structure of such a file is a pickle, which ``inert`` reads; the numbers are plain bytes beside it, which become
tensors here. Everything else in the file (a whole module, an optimizer, a configuration) stays an inert ``Instance``.
Both layouts are read: the zip archive of torch 1.6 and later, and the stream of before.

``torch.load(weights_only=True)`` would not do: it refuses a file for anything foreign beside the weights (arguments of
the training, a number of numpy's), unpacks an archive's member before it compares its size, and reads no TorchScript.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from rpg_platform.priors.files.archive import Archive, looks_like, open_archive, read_file
from rpg_platform.priors.files.inert import Global, PickleStream, load
from rpg_platform.priors.files.inert_readers import Interpreter, check_shape
from rpg_platform.priors.files.inert_values import Budget
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


def load_tensors(data: bytes, what: str = "torch file") -> Any:
    """What ``torch.save`` was given: its containers with tensors (on the CPU), everything foreign inert.

    Tensors that shared memory still do; parameters are plain tensors without gradient.

    Args:
        data: the file.
        what: names it in messages.

    Raises:
        PriorImportError: another kind of file, truncated, damaged, or beyond the limits.
    """
    if data.startswith(b"PK"):
        return _load_archive(open_archive(data, what))
    if not data.startswith(b"\x80"):
        raise PriorImportError(f"{what}: not a file of torch.save{looks_like(data)}")
    return _load_stream(PickleStream(data), what)


def read_tensors(path: Path) -> Any:
    """``load_tensors`` of a file."""
    return load_tensors(read_file(path), str(path))


def _load_archive(archive: Archive) -> Any:
    what = archive.what
    pickles = [name for name in archive if name.rpartition("/")[2] == "data.pkl"]
    if any(name.rpartition("/")[2] == "constants.pkl" for name in archive):
        raise PriorImportError(f"{what}: a TorchScript archive, expected a file of torch.save")
    if len(pickles) != 1:
        raise PriorImportError(f"{what}: not a file of torch.save: it has {len(pickles)} members data.pkl")
    folder = pickles[0].removesuffix("data.pkl")
    if archive.get(f"{folder}byteorder", b"little") != b"little":
        raise PriorImportError(f"{what}: written on a big-endian machine; expected little-endian numbers")
    return load_member(archive, pickles[0], f"{folder}data/")


def load_member(archive: Archive, name: str, folder: str) -> Any:
    """A pickle in an archive of torch's, its tensors made of the members under ``folder``; see ``load_tensors``.

    Raises:
        PriorImportError: damaged, or beyond the limits.
    """
    storages: dict[str, Tensor] = {}

    def persistent(identifier: Any) -> Tensor:
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

    what = f"{archive.what}: {name}"
    return load(archive.read(name), what=what, persistent=persistent, interpret=_INTERPRETERS)


def _load_stream(stream: PickleStream, what: str) -> Any:
    """The layout of before torch 1.6: four pickles, then the keys of the storages, then their numbers in that order."""
    storages: dict[str, Tensor] = {}
    claimed, whole = 0, stream.left()

    def persistent(identifier: Any) -> Any:
        nonlocal claimed
        if isinstance(identifier, tuple) and len(identifier) == 4 and identifier[0] == "module":
            return identifier[1]  # the name of a module's class, with its source code, which is left out
        dtype, key, count = _storage_id(identifier)
        if key not in storages:
            claimed += count * dtype.itemsize
            if claimed > whole:
                raise PriorImportError("truncated or damaged: its tensors claim more bytes than the file has")
            storages[key] = torch.zeros(count, dtype=dtype)
        if storages[key].dtype != dtype or len(storages[key]) != count:
            raise PriorImportError(f"its tensors disagree about storage {key}")
        return storages[key]

    try:
        magic = load(stream, what=what)
    except PriorImportError as error:
        raise PriorImportError(f"{what}: not a file of torch.save ({str(error).removeprefix(f'{what}: ')})") from error
    if not isinstance(magic, int) or magic != _LEGACY_MAGIC:
        raise PriorImportError(f"{what}: a pickle, but not a file of torch.save")
    version = load(stream, what=what)
    if not isinstance(version, int) or version != _LEGACY_VERSION:
        raise PriorImportError(f"{what}: version {str(version)[:20]} of torch.save; expected {_LEGACY_VERSION}")
    system = load(stream, what=what)
    if not (isinstance(system, dict) and system.get("little_endian") is True):
        raise PriorImportError(f"{what}: written on a big-endian machine; expected little-endian numbers")
    value = load(stream, what=what, persistent=persistent, interpret=_INTERPRETERS)
    keys = load(stream, what=what)
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(storages):
        raise PriorImportError(f"{what}: damaged: its storages are not those that its tensors use")
    for key in map(str, keys):
        storage = storages[key]
        size = storage.dtype.itemsize * len(storage)
        if stream.left() < 8 + size or int.from_bytes(stream.read(8), "little") != len(storage):
            raise PriorImportError(f"{what}: truncated or damaged: storage {key[:50]} has not the size that it claims")
        storage.copy_(_tensor_of_bytes(stream.read(size), storage.dtype))
    return value


def _storage_id(identifier: Any) -> tuple[torch.dtype, str, int]:
    """Type, key and number of elements of ``('storage', type, key, device, count[, view])``."""
    match identifier:
        case ("storage", Global() as kind, str() as key, _, int() as count, *view) if 0 <= count < 1 << 40:
            dtype = _DTYPES.get(kind.name) if kind.module == "torch" else None
            if dtype is None:
                raise PriorImportError(f"tensors of type {kind}: expected one of {', '.join(_DTYPES)}")
            if all(part is None for part in view):
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


def _rebuild_tensor(budget: Budget, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    """A view of a storage, within its bounds; what else the file says of the tensor (its gradient) is left out."""
    if not isinstance(storage, Tensor):
        raise TypeError
    check_shape(size)
    check_shape(stride)
    if len(size) != len(stride) or storage.dim() != 1 or type(offset) is not int or offset < 0:
        raise ValueError("a tensor whose layout is none")
    budget.charge(storage.dtype.itemsize * math.prod(size))
    if 0 in size:
        return torch.zeros(size, dtype=storage.dtype)
    if offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) >= len(storage):
        raise ValueError(f"a tensor of shape {size} beyond its storage of {len(storage)} numbers")
    return torch.as_strided(storage, size, stride, offset)


def _rebuild_parameter(budget: Budget, tensor: Any, *_: Any) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise TypeError
    return tensor


def _rebuild_from_type(budget: Budget, function: Any, kind: Any, args: Any, *_: Any) -> Tensor:
    """A tensor with attributes, which are left out."""
    rebuild = _REBUILD.get(function.qualified_name) if isinstance(function, Global) else None
    if rebuild is None:
        raise TypeError
    return rebuild(budget, *args)


def _size(budget: Budget, numbers: Any) -> tuple[int, ...]:
    if not isinstance(numbers, list | tuple):
        raise TypeError
    check_shape(size := tuple(numbers))
    return size


_REBUILD: dict[str, Callable[..., Tensor]] = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
}
_INTERPRETERS: dict[str, Interpreter] = {
    **_REBUILD,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    "torch.Size": _size,
}
