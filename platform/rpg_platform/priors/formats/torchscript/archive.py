"""Reads TorchScript files (``torch.jit.save``) as graphs; executes nothing of the file, not even through torch.

``inert`` reads the archive's pickles, ``code`` parses its code and ``evaluator`` walks through it. Scripted, traced and
frozen modules are read. ``forward`` takes observations ``[B, D]``; further arguments are left out if no action depends
on them. It returns tensors, alone, in a tuple or with names: ``network.outputs`` tells which of them are the policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rpg_platform.priors.files.archive import Archive, open_archive
from rpg_platform.priors.files.inert import Instance
from rpg_platform.priors.files.torch_files import load_member
from rpg_platform.priors.formats.exported_card import read_card, with_card, with_origin
from rpg_platform.priors.formats.torchscript.code import CodeError, Library, Record
from rpg_platform.priors.formats.torchscript.evaluator import Evaluator
from rpg_platform.priors.formats.torchscript.memory import recurrent_layer
from rpg_platform.priors.imported import Imported, ImportOptions, PriorImportError
from rpg_platform.priors.network.graph_builder import Constant, GraphBuilder, Symbol, Value
from rpg_platform.priors.network.graph_policy import policy_of_outputs
from rpg_platform.priors.network.outputs import MEMORY, GraphFile, Meaning, Output


def read(source: Path, options: ImportOptions) -> Imported:
    """Reads the policy of a TorchScript file.

    Raises:
        PriorImportError: see ``read_archive``.
    """
    return read_archive(open_archive(source), options, "a TorchScript file")[0]


def read_archive(
    archive: Archive, options: ImportOptions, what: str, names: Sequence[str] | None = None
) -> tuple[Imported, Meaning]:
    """Reads the policy of an open TorchScript archive; returns it, and what the outputs of its ``forward`` mean.

    Args:
        archive: the archive.
        options: what the user says about it.
        what: what messages call it.
        names: of the outputs, where they are known and a trace lost them.

    Raises:
        PriorImportError: not such a file, or its ``forward`` does what a graph cannot hold: names the operation and the
            line of the archive's code.
    """
    folder = _folder(archive)
    card = read_card(archive.get(f"{folder}extra/card.json"))
    file = GraphFile(archive.what, what, with_card(options, card))
    if archive.get(f"{folder}byteorder", b"little") != b"little":
        raise PriorImportError(f"{archive.what}: written on a big-endian machine; expected little-endian numbers")
    module = load_member(archive, f"{folder}data.pkl", f"{folder}data/")
    constants = load_member(archive, f"{folder}constants.pkl", f"{folder}constants/")
    if not isinstance(module, Instance) or not isinstance(constants, list | tuple):
        raise PriorImportError(f"{archive.what}: data.pkl holds {str(module)[:100]}, expected a module")
    builder, library = GraphBuilder(file.observation_size), Library(archive, folder)
    evaluator = Evaluator(builder, library, constants)
    try:
        outputs = _outputs(_translated(module, evaluator, archive.what), names, archive.what)
        network, meaning = policy_of_outputs(outputs, builder, file)
    except PriorImportError as error:
        recurrent = recurrent_layer(module, library)
        if recurrent is None:
            raise
        raise PriorImportError(f"{archive.what}: {recurrent}: a recurrent layer: {MEMORY}") from error
    unused = ", ".join(map(repr, evaluator.other_inputs))
    notes = (f"no action depends on its input {unused}: left out", *meaning.notes) if unused else meaning.notes
    facts = {"module": module.qualified_name.rpartition(".")[2][:200]}
    return with_origin(Imported(network, "torchscript", None, None, facts=facts, notes=notes), card), meaning


def _translated(module: Instance, evaluator: Evaluator, where: str) -> Any:
    """Returns what ``module.forward`` returns at the builder's observation.

    Raises:
        PriorImportError: it does what a graph cannot hold.
    """
    try:
        return evaluator.run(module)
    except CodeError as error:
        raise PriorImportError(f"{where}: {error}") from error
    except RecursionError as error:
        raise PriorImportError(f"{where}: its code is nested too deeply") from error


def _outputs(result: Any, names: Sequence[str] | None, where: str) -> list[Output]:
    """Returns the outputs that ``forward`` gives, with their names where they have some."""
    items: list[tuple[str | None, Any]]
    if isinstance(result, dict):
        items = list(result.items())
    elif isinstance(result, list | tuple):
        fields = names if names is not None else result.fields if isinstance(result, Record) else ()
        items = list(zip(fields if len(fields) == len(result) else [None] * len(result), result, strict=True))
    else:
        items = [(None, result)]
    items = [(name, value) for name, value in items if value is not None]
    if not items:
        raise PriorImportError(f"{where}: forward returns nothing; expected tensors: mean and log_std, or logits")
    return [Output(name, partial(_tensor, value, where)) for name, value in items]


def _tensor(value: Any, where: str) -> Value:
    try:
        value = Evaluator.needed(value)
    except CodeError as error:
        raise PriorImportError(f"{where}: {error}") from error
    if isinstance(value, Symbol | Constant):
        return value
    raise PriorImportError(
        f"{where}: forward returns {type(value).__name__}; expected tensors: mean and log_std, or logits"
    )


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
