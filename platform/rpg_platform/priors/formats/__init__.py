"""The formats of other people's policies: one line for each in ``FORMATS``, its reader in a module of this package.

A new format is a module with a reader and a line here. Everything else iterates the table: what a file is told to be,
`rpg priors import` and its help, what an MLflow model may hold, and every message that says what is read.
"""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rpg_platform.bundles import bundle_in
from rpg_platform.priors.formats.content import Content
from rpg_platform.priors.imported import Imported, ImportOptions

Need = Literal["read_path", "store"]


@dataclass(frozen=True)
class Format:
    """A way in which other people keep policies, and the reader that makes ours of it.

    Attributes:
        name: what ``rpg priors import --format`` calls it.
        called: what messages and the help call it, such as ``an ONNX model``.
        reader: its reader as ``module:function``, imported only when something is of this format. The reader takes the
            source (a ``Path``; the text itself of an address) and ``ImportOptions``, and returns ``Imported``.
        holds: tells from its content whether a file or folder is of this format. The first format of the table that
            says so counts. May raise PriorImportError for a damaged file.
        marker: name of a file at the top of every folder of this format: another way to tell it, and the way in which
            an MLflow model's folders are told.
        suffixes: endings of file names that promise this format; a file of another format so named is refused.
        address: the pattern of a text that names such a source where there is no file or folder of that name.
        needs: what the reader is given besides, by keyword: ``read_path`` reads a file that stands inside of the
            source, ``store`` gives the address of the MLflow store.
    """

    name: str
    called: str
    reader: str
    holds: Callable[[Content], bool] | None = None
    marker: str | None = None
    suffixes: tuple[str, ...] = ()
    address: re.Pattern[str] | None = None
    needs: tuple[Need, ...] = ()

    @property
    def only_by_address(self) -> bool:
        """Whether no file or folder can be of this format."""
        return self.holds is None and self.marker is None

    def fits(self, content: Content) -> bool:
        """Whether a file or folder is of this format. Raises PriorImportError for a damaged file."""
        marked = self.marker is not None and content.has(self.marker)
        return marked or (self.holds is not None and self.holds(content))

    def read(self, source: str | Path, options: ImportOptions, tools: Mapping[Need, Any]) -> Imported:
        """Reads the policy of a source of this format; the reader gets those of the ``tools`` that it needs.

        Raises:
            PriorImportError: the reader refuses the source.
        """
        read: Callable[..., Imported] = pkgutil.resolve_name(self.reader)
        return read(source, options, **{need: tools[need] for need in self.needs})


def _is_ours(content: Content) -> bool:
    """Recognises a bundle, a trial's checkpoint, and RLlib's checkpoints of our own algorithms."""
    if not content.path.is_dir():
        return False
    if bundle_in(content.path) is not None or content.has("algorithm/rllib_checkpoint.json"):
        return True
    if not content.has("rllib_checkpoint.json"):
        return False
    from rpg_platform.priors.files.rllib_checkpoint import Checkpoint  # these two need torch and Ray
    from rpg_platform.priors.formats.rpg import ALGORITHMS

    return Checkpoint(content.path).algorithm in ALGORITHMS


def _is_state_dictionary(content: Content) -> bool:
    """Recognises a file of ``torch.save``; before torch 1.6 such a file began with a pickled magic number."""
    old = content.start.startswith(b"\x80") and b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19." in content.start
    return old or ("data.pkl" in content.member_files and "archive_format" not in content.member_files)


def _is_onnx(content: Content) -> bool:
    """Recognises a ModelProto: it begins with ir_version (field 1, a small number), then another early field."""
    start = content.start
    return (
        len(start) > 4 and start[0] == 0x08 and 1 <= start[1] <= 64 and start[2] in (0x12, 0x1A, 0x22, 0x2A, 0x3A, 0x42)
    )


_HERE = "rpg_platform.priors.formats"
FORMATS: tuple[Format, ...] = (
    Format(
        "bundle",
        "a bundle, a trial's checkpoint, or an SPG or RPG checkpoint of this package",
        f"{_HERE}.rpg:read",
        _is_ours,
        marker="card.json",
    ),
    Format(
        "mlflow",
        "an MLflow model (its folder, models:/NAME@ALIAS or runs:/ID/PATH)",
        f"{_HERE}.mlflow_models:read",
        marker="MLmodel",
        address=re.compile(r"(models|runs|mlflow-artifacts):/.*"),
        needs=("read_path", "store"),
    ),
    Format(
        "rllib",
        "an RLlib checkpoint folder (PPO or SAC of the new API stack)",
        f"{_HERE}.rllib:read",
        marker="rllib_checkpoint.json",
    ),
    Format(
        "sb3",
        "a Stable-Baselines3 zip (PPO, A2C, TRPO, SAC, TD3, DDPG; sb3-contrib's TQC, CrossQ, MaskablePPO, ARS; SBX)",
        f"{_HERE}.sb3:read",
        lambda content: (
            "data" in content.members and not content.members.isdisjoint({"policy.pth", "_stable_baselines3_version"})
        ),
        suffixes=(".zip",),
    ),
    Format(
        "torchscript",
        "a TorchScript archive",
        f"{_HERE}.torchscript:read",
        lambda content: "constants.pkl" in content.member_files,
        suffixes=(".pt", ".pth"),
    ),
    Format(
        "state-dict",
        "a state dictionary or checkpoint of torch.save (CleanRL, rsl_rl, rl_games, skrl, Tianshou, a perceptron)",
        f"{_HERE}.state_dict:read",
        _is_state_dictionary,
        suffixes=(".pt", ".pth", ".cleanrl_model"),
    ),
    Format("onnx", "an ONNX model", f"{_HERE}.onnx:read", _is_onnx, suffixes=(".onnx",)),
    Format(
        "function",
        "module:function of your own code",
        f"{_HERE}.functions:read",
        address=re.compile(r"[^\W\d][\w.]*:[^\W\d][\w.]*"),
    ),
)


def names() -> list[str]:
    """Returns the names of all formats, in the order of the table."""
    return [each.name for each in FORMATS]


def what_is_read() -> str:
    """Lists every format in words, for messages and the help."""
    return "; ".join(each.called for each in FORMATS)
