"""What a file or folder is, told from its content; its name only has to agree."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal, get_args

from rpg_platform.bundles import bundle_in
from rpg_platform.priors.files.archive import open_archive
from rpg_platform.priors.formats import sb3
from rpg_platform.priors.imported import PriorImportError

Kind = Literal["bundle", "rllib", "sb3", "cleanrl", "torchscript", "onnx", "mlflow"]
KINDS: tuple[Kind, ...] = get_args(Kind)

WHAT: Mapping[Kind, str] = MappingProxyType(
    {
        "bundle": "a bundle, a trial's checkpoint, or an SPG or RPG checkpoint of this package",
        "rllib": "an RLlib checkpoint folder (PPO or SAC of the new API stack)",
        "sb3": "a Stable-Baselines3 zip (PPO, A2C, SAC, TD3, DDPG)",
        "cleanrl": "a CleanRL state dictionary (torch.save of agent.state_dict())",
        "torchscript": "a TorchScript archive",
        "onnx": "an ONNX model",
        "mlflow": "an MLflow model folder",
    }
)
READ = "; read are " + "; ".join(WHAT.values()) + "; module:function; and MLflow's models:/ and runs:/ addresses"

# What a file of this name is expected to hold; other names may hold anything.
_SUFFIXES: Mapping[str, tuple[Kind, ...]] = {
    ".onnx": ("onnx",),
    ".zip": ("sb3",),
    ".pt": ("torchscript", "cleanrl"),
    ".pth": ("torchscript", "cleanrl"),
    ".cleanrl_model": ("cleanrl",),
}
_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"\x93NUMPY", "a numpy array"),
    (b"\x89HDF\r\n", "an HDF5 file (a Keras model?)"),
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
_FOLDERS: tuple[tuple[str, Kind], ...] = (
    ("algorithm/rllib_checkpoint.json", "bundle"),
    ("MLmodel", "mlflow"),
    ("rllib_checkpoint.json", "rllib"),
)


def recognise(path: Path) -> Kind:
    """The kind of a file or folder.

    Raises:
        PriorImportError: missing, of no kind that is read (says what was found), or named like another kind.
    """
    if not path.exists():
        raise PriorImportError(f"{path}: no such file or folder")
    if path.is_dir():
        return _folder(path)
    kind, found = _file(path)
    if kind is None:
        raise PriorImportError(f"{path}: holds {found}{READ}")
    expected = _SUFFIXES.get(path.suffix.lower(), KINDS)
    if kind not in expected:
        raise PriorImportError(
            f"{path}: named {path.suffix} like {' or '.join(WHAT[each] for each in expected)}, but it holds "
            f"{WHAT[kind]}; rename it, or say --format {kind} if that is what it should be"
        )
    return kind


def kind_of_file(path: Path) -> Kind | None:
    """The kind of a file's content, whatever its name; None for anything that is not read."""
    try:
        return _file(path)[0]
    except PriorImportError:
        return None


def _folder(path: Path) -> Kind:
    if bundle_in(path) is not None:
        return "bundle"
    for name, kind in _FOLDERS:
        if (path / name).is_file():
            return _algorithm(path) if name == "rllib_checkpoint.json" else kind
    names = sorted(each.name for _, each in zip(range(1000), path.iterdir(), strict=False))
    checkpoints = [name for name in names if name.startswith("checkpoint_")]
    if checkpoints:
        raise PriorImportError(
            f"{path}: a trial's folder; choose one of its checkpoints, such as {path / checkpoints[-1]}"
        )
    if "policies" in names:
        raise PriorImportError(f"{path}: a checkpoint of RLlib's old API stack, which is not read{READ}")
    zips = [name for name in names if name.endswith(".zip")]
    if len(zips) == 1:
        raise PriorImportError(f"{path}: a folder; the model in it may be {path / zips[0]}")
    listed = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
    raise PriorImportError(f"{path}: a folder that holds {listed or 'nothing'}{READ}")


def _algorithm(path: Path) -> Kind:
    """RLlib's own algorithms, or those of this package."""
    from rpg_platform.priors.files.rllib_checkpoint import Checkpoint
    from rpg_platform.priors.formats.rpg import ALGORITHMS

    return "bundle" if Checkpoint(path).algorithm in ALGORITHMS else "rllib"


def _file(path: Path) -> tuple[Kind | None, str]:
    """The kind, and in words what was found."""
    try:
        with path.open("rb") as stream:
            start = stream.read(256)
    except OSError as error:
        raise PriorImportError(f"{path}: cannot be read: {error.strerror}") from error
    if not start:
        return None, "nothing: the file is empty"
    if start.startswith(b"PK"):
        return _archive(path)
    if _is_onnx(start):
        return "onnx", WHAT["onnx"]
    if start.startswith(b"\x80") and start[1:2] <= b"\x05":
        return _pickle(start)
    for signature, what in _SIGNATURES:
        if start.startswith(signature):
            return None, what
    printable = sum(32 <= byte < 127 or byte in b"\t\r\n" for byte in start)
    return None, "text" if printable > 0.95 * len(start) else "data of an unknown kind"


def _pickle(start: bytes) -> tuple[Kind | None, str]:
    """torch.save of before 1.6 begins with a pickled magic number; any other pickle is refused."""
    if b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19." in start:
        return "cleanrl", "a file of torch.save"
    return None, "a pickle: it cannot be loaded without executing what it says, and it is no format that is read here"


def _archive(path: Path) -> tuple[Kind | None, str]:
    names = set(open_archive(path))
    ends = {name.rpartition("/")[2] for name in names}
    if sb3.recognise(names):
        return "sb3", WHAT["sb3"]
    if "constants.pkl" in ends:
        return "torchscript", WHAT["torchscript"]
    if "archive_format" in ends:
        return None, "a program of torch.export (.pt2); export it as ONNX or TorchScript"
    if "data.pkl" in ends:
        return "cleanrl", "a file of torch.save"
    if names and all(name.endswith(".npy") for name in names):
        return None, "numpy arrays (.npz); demonstrations are for rpg clone, statistics for --normalizer"
    if {"parameters", "parameter_list"} & ends:
        return None, "a model of Stable-Baselines 2 (TensorFlow)"
    listed = ", ".join(sorted(name[:60] for name in names)[:5]) or "nothing"
    return None, f"a zip archive of {listed}"


def _is_onnx(start: bytes) -> bool:
    """A ModelProto begins with its ir_version (field 1, a small number), then one of its other first fields."""
    return (
        len(start) > 4 and start[0] == 0x08 and 1 <= start[1] <= 64 and start[2] in (0x12, 0x1A, 0x22, 0x2A, 0x3A, 0x42)
    )
