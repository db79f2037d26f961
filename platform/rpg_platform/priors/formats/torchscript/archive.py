"""Reads TorchScript files (``torch.jit.save``) as graphs; executes nothing of the file, not even through torch.

``inert`` reads the archive's pickles, ``code`` parses its code and ``evaluator`` walks through it. Scripted, traced and
frozen modules are read. ``forward`` takes observations ``[B, D]`` and returns

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


def read(source: Path | Archive, options: ImportOptions, what: str = "a TorchScript file") -> Imported:
    """Reads the policy of a TorchScript file.

    Args:
        source: the file, or an archive that is open already.
        options: what the user says about it.
        what: what messages call it.

    Raises:
        PriorImportError: not such a file, or its ``forward`` does what a graph cannot hold: names the operation and the
            line of the archive's code.
    """
    archive = source if isinstance(source, Archive) else open_archive(source)
    folder = _folder(archive)
    card = read_card(archive.get(f"{folder}extra/card.json"))
    file = GraphFile(archive.what, what, with_card(options, card))
    if archive.get(f"{folder}byteorder", b"little") != b"little":
        raise PriorImportError(f"{archive.what}: written on a big-endian machine; expected little-endian numbers")
    module = load_member(archive, f"{folder}data.pkl", f"{folder}data/")
    constants = load_member(archive, f"{folder}constants.pkl", f"{folder}constants/")
    if not isinstance(module, Instance) or not isinstance(constants, list | tuple):
        raise PriorImportError(f"{archive.what}: data.pkl holds {str(module)[:100]}, expected a module")
    builder = GraphBuilder(file.observation_size)
    outputs = _translated(module, constants, Library(archive, folder), builder, archive.what)
    network, notes = policy_of_outputs(outputs, builder, file)
    facts = {"module": module.qualified_name.rpartition(".")[2][:200]}
    return with_origin(Imported(network, "torchscript", None, None, facts=facts, notes=notes), card)


def _translated(
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
