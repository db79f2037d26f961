"""Tells from its content what a file or folder is; the name of a file only has to agree."""

from __future__ import annotations

from pathlib import Path

from rpg_platform.priors import formats
from rpg_platform.priors.formats import Format, what_is_read
from rpg_platform.priors.formats.content import Content
from rpg_platform.priors.imported import PriorImportError

# What begins so is of none of the formats; says what it is instead.
_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"\x93NUMPY", "a numpy array"),
    (b"\x89HDF\r\n", "an HDF5 file; demonstrations (D4RL) are for rpg clone, and Keras models are not read"),
    (b"\x1f\x8b", "a gzip archive; unpack it first"),
    (b"BZh", "a bzip2 archive; unpack it first"),
    (b"\xfd7zXZ", "an xz archive; unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive; unpack it first"),
    (b"\x89PNG", "a PNG picture"),
    (b"SQLite format 3", "an SQLite database; give a models:/ address of it"),
    (b"\x7fELF", "a program"),
    (b"version https://git-lfs", "a Git LFS pointer: the file itself was not downloaded (git lfs pull)"),
    (b"<", "an XML or HTML document"),
    (b"{", "a JSON document"),
)
_PICKLE = "a pickle: it cannot be loaded without executing what it says, and it is no format that is read here"


def recognise(path: Path) -> Format:
    """Tells the format of a file or folder.

    Raises:
        PriorImportError: it is missing, is of no format that is read (the message says what was found), or its name
            promises another format.
    """
    if not path.exists():
        raise PriorImportError(f"{path}: no such file or folder")
    content = Content(path)
    found = format_of(content)
    if found is None:
        raise (_refused_folder(path) if path.is_dir() else _none(path, f"holds {_file_in_words(content)}"))
    promised = [each for each in formats.FORMATS if path.suffix.lower() in each.suffixes]
    if promised and found not in promised and path.is_file():
        raise PriorImportError(
            f"{path}: named {path.suffix} like {' or '.join(each.called for each in promised)}, but it holds "
            f"{found.called}; rename it, or say --format {found.name} if that is what it should be"
        )
    return found


def format_of(content: Content) -> Format | None:
    """Finds the first format of the table that fits the content, whatever its name; None where none does.

    Raises:
        PriorImportError: the file is damaged or cannot be read.
    """
    return next((each for each in formats.FORMATS if each.fits(content)), None)


def _none(path: Path, found: str) -> PriorImportError:
    return PriorImportError(f"{path}: {found}; read are {what_is_read()}")


def _refused_folder(path: Path) -> PriorImportError:
    """Explains why a folder is of no format, and which of its parts may have been meant."""
    names = sorted(each.name for _, each in zip(range(1000), path.iterdir(), strict=False))
    checkpoints = [name for name in names if name.startswith("checkpoint_")]
    if checkpoints:
        return PriorImportError(
            f"{path}: a trial's folder; choose one of its checkpoints, such as {path / checkpoints[-1]}"
        )
    if "policies" in names:
        return _none(path, "a checkpoint of RLlib's old API stack, which is not read")
    zips = [name for name in names if name.endswith(".zip")]
    if len(zips) == 1:
        return PriorImportError(f"{path}: a folder; the model in it may be {path / zips[0]}")
    listed = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
    return _none(path, f"a folder that holds {listed or 'nothing'}")


def _file_in_words(content: Content) -> str:
    """Says in words what a file of no format is."""
    start = content.start
    if not start:
        return "nothing: the file is empty"
    if start.startswith(b"PK"):
        return _archive_in_words(content)
    if start.startswith(b"\x80") and start[1:2] <= b"\x05":
        return _PICKLE
    for signature, what in _SIGNATURES:
        if start.startswith(signature):
            return what
    printable = sum(32 <= byte < 127 or byte in b"\t\r\n" for byte in start)
    return "text" if printable > 0.95 * len(start) else "data of an unknown kind"


def _archive_in_words(content: Content) -> str:
    names, files = content.members, content.member_files
    if "archive_format" in files:
        return "a program of torch.export (.pt2); export it as ONNX or TorchScript"
    if names and all(name.endswith(".npy") for name in names):
        return "numpy arrays (.npz); demonstrations are for rpg clone, statistics for --normalizer"
    if {"parameters", "parameter_list"} & files:
        return "a model of Stable-Baselines 2 (TensorFlow)"
    listed = ", ".join(sorted(name[:60] for name in names)[:5]) or "nothing"
    return f"a zip archive of {listed}"
