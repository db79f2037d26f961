"""Zip archives taken apart and put together again, and pickles with something smuggled in."""

from __future__ import annotations

import base64
import io
import json
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch


def zipped(members: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """An archive; a ``#`` at the end of a name is left out, so that a name may occur twice."""
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that occur twice
        with zipfile.ZipFile(stream, "w", method) as archive:
            for name, content in members.items():
                archive.writestr(name.rstrip("#"), content)
    return stream.getvalue()


def parts_of(data: bytes) -> dict[str, bytes]:
    """The members of an archive."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def with_parts(data: bytes, change: Callable[[str, bytes], bytes | None]) -> bytes:
    """An archive with each member as ``change`` makes it; None leaves it out."""
    changed = {name: change(name, content) for name, content in parts_of(data).items()}
    return zipped({name: content for name, content in changed.items() if content is not None})


def saved(value: Any, new: bool = True) -> bytes:
    """The bytes of ``torch.save``, in the layout of today or of before 1.6."""
    stream = io.BytesIO()
    torch.save(value, stream, _use_new_zipfile_serialization=new)
    return stream.getvalue()


def smuggled(pickled: bytes, marker: Path) -> bytes:
    """The same pickle, which runs something before it does what it did before."""
    return f"cbuiltins\nexec\n(S\"open({str(marker)!r}, 'w').close()\"\ntR0".encode() + pickled


def smuggled_torch(data: bytes, marker: Path) -> bytes:
    """``smuggled`` into the pickle of a zip archive of ``torch.save``."""
    return with_parts(data, lambda name, part: smuggled(part, marker) if name.endswith("data.pkl") else part)


def with_data(model: bytes, **changes: Any) -> bytes:
    """A Stable-Baselines3 archive with values of its ``data`` replaced; bytes are pickles, None leaves one out."""
    data = json.loads(parts_of(model)["data"])
    for key, value in changes.items():
        if isinstance(value, bytes):
            value = {":type:": "x", ":serialized:": base64.b64encode(value).decode()}
        data[key] = value
    data = {key: value for key, value in data.items() if value is not None or key not in changes}
    return with_parts(model, lambda name, part: json.dumps(data).encode() if name == "data" else part)


def pickles_of(model: bytes) -> dict[str, bytes]:
    """The pickles in the ``data`` of a Stable-Baselines3 archive, by key."""
    data = json.loads(parts_of(model)["data"])
    found = {k: v[":serialized:"] for k, v in data.items() if isinstance(v, dict) and ":serialized:" in v}
    return {key: base64.b64decode(value) for key, value in found.items()}
