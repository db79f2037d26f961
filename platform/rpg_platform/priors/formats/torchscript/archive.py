"""TorchScript files (``torch.jit.save``) read as a graph; nothing of the file is executed, not even by torch.

The archive's pickles are read by ``inert``, its code is parsed and walked through by ``torchscript_eval``. Scripted,
traced and frozen modules are read. ``forward`` takes observations ``[B, D]`` and returns

- (mean, log_std), each ``[B, A]``, or one tensor ``[B, 2A]`` of both;
- logits ``[B, K]``, where actions are discrete;
- the action alone (a deterministic policy): refused, or with ``--std`` a Gaussian around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rpg_platform.priors.files.archive import Archive, open_archive
from rpg_platform.priors.files.inert import Instance
from rpg_platform.priors.files.torch_files import load_member
from rpg_platform.priors.formats.exported_card import read_card, with_card, with_origin
from rpg_platform.priors.formats.torchscript.code import CodeError, Library
from rpg_platform.priors.formats.torchscript.evaluator import Evaluator
from rpg_platform.priors.imported import Imported, ImportOptions, PriorImportError
from rpg_platform.priors.network.graph_builder import Constant, GraphBuilder, Symbol, Value
from rpg_platform.priors.network.graph_policy import GraphFile, named_outputs, policy_of_outputs


def read(path: Path, options: ImportOptions) -> Imported:
    """The policy of a TorchScript file.

    Raises:
        PriorImportError: not such a file, or its ``forward`` does what a graph cannot hold: names the operation and the
            line of the archive's code.
    """
    return read_archive(open_archive(path), options, "a TorchScript file", "torchscript")


def read_archive(archive: Archive, options: ImportOptions, what: str, kind: str) -> Imported:
    """The policy of a TorchScript archive, wherever it comes from; see ``read``."""
    folder = _folder(archive)
    card = read_card(archive.get(f"{folder}extra/card.json"))
    source = GraphFile(archive.what, what, with_card(options, card))
    if archive.get(f"{folder}byteorder", b"little") != b"little":
        raise PriorImportError(f"{archive.what}: written on a big-endian machine; expected little-endian numbers")
    module = load_member(archive, f"{folder}data.pkl", f"{folder}data/")
    constants = load_member(archive, f"{folder}constants.pkl", f"{folder}constants/")
    if not isinstance(module, Instance) or not isinstance(constants, list | tuple):
        raise PriorImportError(f"{archive.what}: data.pkl holds {str(module)[:100]}, expected a module")
    builder = source.builder()
    outputs = translate(module, constants, Library(archive, folder), builder, archive.what)
    network, notes = policy_of_outputs(outputs, builder, source)
    facts = {"module": module.qualified_name.rpartition(".")[2][:200]}
    return with_origin(Imported(network, kind, None, None, facts=facts, notes=notes), card)


def translate(
    module: Instance, constants: Sequence[Any], library: Library, builder: GraphBuilder, where: str
) -> list[Value]:
    """What ``module.forward`` returns at the builder's observation.

    Raises:
        PriorImportError: it does what a graph cannot hold.
    """
    try:
        result = Evaluator(builder, library, constants).run(module, builder.obs)
        return _tensors(result, where)
    except CodeError as error:
        raise PriorImportError(f"{where}: {error}") from error
    except RecursionError as error:
        raise PriorImportError(f"{where}: its code is nested too deeply") from error


def _tensors(result: Any, where: str) -> list[Value]:
    if isinstance(result, dict):
        names = named_outputs(result)
        if names is None:
            raise PriorImportError(
                f"{where}: forward returns a dictionary of {list(result)[:10]}; expected mean and log_std, or logits"
            )
        result = [result[name] for name in names]
    items = list(Evaluator.needed(result)) if isinstance(result, list | tuple) else [Evaluator.needed(result)]
    if not items or not all(isinstance(each, Symbol | Constant) for each in items):
        kinds = ", ".join(type(each).__name__ for each in items) or "nothing"
        raise PriorImportError(f"{where}: forward returns {kinds}; expected tensors: mean and log_std, or logits")
    return items


def _folder(archive: Archive) -> str:
    """The folder of the archive that everything stands in, with its slash."""
    found = [name for name in archive if name.rpartition("/")[2] == "constants.pkl" and name.count("/") <= 1]
    if len(found) != 1:
        raise PriorImportError(
            f"{archive.what}: not a TorchScript file: it has {len(found)} members constants.pkl; expected what "
            "torch.jit.save writes"
        )
    folder = found[0].removesuffix("constants.pkl")
    if f"{folder}data.pkl" not in archive:
        raise PriorImportError(f"{archive.what}: not a TorchScript file: it has no member {folder}data.pkl")
    return folder
