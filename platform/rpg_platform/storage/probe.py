"""Whether machines share a storage: what one of them writes there, the others read, and the other way round."""

from __future__ import annotations

import posixpath
from uuid import uuid4

from pyarrow.fs import FileSelector

from rpg_platform.storage.location import LocationError, file_system

_QUESTION = "question"


def ask(storage: str) -> str:
    """Writes a question into the storage, which is made if it is not there; the name to answer it by.

    Raises:
        OSError, LocationError: the storage cannot be written to.
    """
    name = f".rpg-probe-{uuid4().hex}"
    files, base = file_system(storage)
    files.create_dir(posixpath.join(base, name), recursive=True)
    _write(storage, name, _QUESTION)
    return name


def answer(storage: str, name: str, who: str) -> str | None:
    """Reads the question and answers it; why that can't be done, or None."""
    try:
        if not _holds(storage, name, _QUESTION):
            return "it does not see what the driver has written there"
        _write(storage, name, who)
    except (OSError, LocationError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def confirm(storage: str, name: str, who: str, others: list[str]) -> str | None:
    """Reads what each of ``others`` has answered, on the machine of ``who``; why that can't be done, or None."""
    try:
        files, base = file_system(storage)
        there = {info.base_name for info in files.get_file_info(FileSelector(posixpath.join(base, name)))}
        unseen = set(others) - there - {who}
    except (OSError, LocationError) as error:
        return f"{type(error).__name__}: {error}"
    return f"it does not see what {len(unseen)} other nodes have written there" if unseen else None


def is_answered(storage: str, name: str, who: str) -> bool:
    """Whether the answer of ``who`` has come to this machine."""
    return _holds(storage, name, who)


def end(storage: str, name: str) -> None:
    """Removes question and answers."""
    files, base = file_system(storage)
    files.delete_dir(posixpath.join(base, name))


def _holds(storage: str, name: str, file: str) -> bool:
    files, base = file_system(storage)
    return bool(files.get_file_info(posixpath.join(base, name, file)).is_file)


def _write(storage: str, name: str, file: str) -> None:
    files, base = file_system(storage)
    with files.open_output_stream(posixpath.join(base, name, file)) as stream:
        stream.write(b"rpg")
