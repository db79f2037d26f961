"""The source code in a TorchScript archive, parsed and looked up by name. Nothing of it is compiled or executed.

torch writes what a module computes as a small subset of Python: ``code/__torch__/torch/nn/modules/linear.py`` holds
``class Linear`` with its ``forward``. Python's own parser reads it into a tree, which is all that is ever made of it.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rpg_platform.priors.files.archive import Archive

MAX_FILE_BYTES, MAX_TOTAL_BYTES, MAX_FILE_LINES = 1_000_000, 4_000_000, 20_000
_FORMATTED_STRING = re.compile(rb"(?i)(?<![a-z0-9_])(?:f|fr|rf)['\"]")  # torch writes none; long ones parse slowly


class CodeError(ValueError):
    """What is wrong at one place of the code: ``file``, ``line`` and why."""

    def __init__(self, message: str, file: str, node: ast.AST | int | None = None) -> None:
        line = node if isinstance(node, int) else getattr(node, "lineno", None)
        super().__init__(message, file, line)

    def __str__(self) -> str:
        message, file, line = self.args
        return f"{file}{f', line {line}' if line else ''}: {message}"


@dataclass(frozen=True)
class Function:
    """A function or method, and the member of the archive that it stands in."""

    definition: ast.FunctionDef
    file: str


@dataclass(frozen=True)
class ClassCode:
    """A class: its methods, the names of its parameters, its constants' expressions, its fields in order."""

    name: str
    methods: Mapping[str, Function]
    parameters: frozenset[str]
    constants: Mapping[str, ast.expr]
    fields: tuple[str, ...]
    is_tuple: bool


class Record(tuple[Any, ...]):
    """A named tuple that the code makes; without names, where some of its values are missing.

    Attributes:
        fields: their names.
    """

    fields: tuple[str, ...] = ()

    @classmethod
    def of(cls, values: Sequence[Any], fields: Sequence[str]) -> Record:
        """Makes one of values and their names."""
        record = cls(values)
        record.fields = tuple(fields) if len(fields) == len(values) else ()
        return record


class Library:
    """The code of one archive, parsed file by file as it is asked for."""

    def __init__(self, archive: Archive, folder: str) -> None:
        self._archive, self._folder = archive, folder
        self._files: dict[str, dict[str, Function | ClassCode]] = {}
        self._bytes = 0

    def find(self, qualified_name: str) -> Function | ClassCode | None:
        """What ``__torch__.a.b.Name`` names; None where the archive has no such thing.

        Raises:
            CodeError: its file cannot be parsed.
        """
        parts = qualified_name.split(".")
        if len(parts) < 2 or parts[0] != "__torch__" or not all(part.isidentifier() for part in parts):
            return None
        file = f"code/{'/'.join(parts[:-1])}.py"
        if file not in self._files:
            member = self._folder + file
            if member not in self._archive:
                return None
            self._bytes += self._archive.size(member)
            if self._archive.size(member) > MAX_FILE_BYTES or self._bytes > MAX_TOTAL_BYTES:
                raise CodeError(f"more than the {MAX_FILE_BYTES} bytes of code that are read", file)
            self._files[file] = _definitions(self._archive.read(member), file)
        return self._files[file].get(parts[-1])


def _definitions(source: bytes, file: str) -> dict[str, Function | ClassCode]:
    lines = source.count(b"\n")
    if lines > MAX_FILE_LINES:
        raise CodeError(f"{lines} lines, more than the {MAX_FILE_LINES} that are read", file)
    if _FORMATTED_STRING.search(source):
        raise CodeError("formatted strings, which TorchScript has not", file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source.decode())  # of bytes, Python would import the codec that they ask for
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise CodeError(f"cannot be parsed: {str(error)[:200] or type(error).__name__}", file) from error
    found: dict[str, Function | ClassCode] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = Function(node, file)
        elif isinstance(node, ast.ClassDef):
            found[node.name] = _class(node, file)
        elif not isinstance(node, ast.Import | ast.ImportFrom | ast.Assign):  # which archives of 2019 have, unused
            raise CodeError(f"{type(node).__name__} outside of a class or function", file, node)
    return found


def _class(node: ast.ClassDef, file: str) -> ClassCode:
    methods: dict[str, Function] = {}
    parameters: list[str] = []
    constants: dict[str, ast.expr] = {}
    fields: list[str] = []
    for item in node.body:
        match item:
            case ast.FunctionDef():
                methods[item.name] = Function(item, file)
            case ast.Assign(targets=[ast.Name(id="__parameters__")], value=ast.List(elts=names)):
                parameters += [str(each.value) for each in names if isinstance(each, ast.Constant)]
            case ast.AnnAssign(target=ast.Name(id=name), value=value):
                fields.append(name)
                if value is not None:
                    constants[name] = value
            case _:
                continue  # buffers' names, annotations
    bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
    return ClassCode(node.name, methods, frozenset(parameters), constants, tuple(fields), "NamedTuple" in bases)
