"""Finds recurrent layers in a TorchScript module, as the reason why it is refused."""

from __future__ import annotations

import ast

from rpg_platform.priors.files.inert import Instance
from rpg_platform.priors.formats.torchscript.code import ClassCode, CodeError, Library

RECURRENT = frozenset(
    ("lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
)
_MAX_MODULES = 10_000


def recurrent_layer(module: Instance, library: Library) -> str | None:
    """Returns the first recurrent layer that a ``forward`` of the module or of its parts calls; None without one.

    Such as ``code/__torch__/torch/nn/modules/rnn.py, line 20: torch.lstm``.
    """
    pending, seen = [module], {id(module)}
    while pending and len(seen) < _MAX_MODULES:
        current = pending.pop()
        try:
            found = library.find(current.qualified_name)
        except CodeError:
            continue
        layer = _called(found) if isinstance(found, ClassCode) else None
        if layer is not None:
            return layer
        parts = [each for each in current.attributes.values() if isinstance(each, Instance) and id(each) not in seen]
        seen.update(map(id, parts))
        pending += parts
    return None


def _called(code: ClassCode) -> str | None:
    for name, method in code.methods.items():
        if not name.startswith("forward"):
            continue
        for node in ast.walk(method.definition):
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr=op)) if op in RECURRENT:
                    return f"{method.file}, line {node.lineno}: torch.{op}"
    return None
