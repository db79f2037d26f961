"""Reads one YAML document into plain data, and remembers the line and column of every key and value.

The YAML here is the 1.2 core schema, without anchors, tags or merge keys, plus `_` inside numbers: `1e-4` is
a number, `yes`, `010:20` and `2026-01-01` are text. Whatever else the text holds is reported with its place;
nothing raises, and nothing that a document says is ever constructed but mappings, lists, text, numbers,
booleans and null.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import yaml
from yaml.composer import Composer
from yaml.events import AliasEvent
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.parser import Parser
from yaml.reader import Reader
from yaml.resolver import BaseResolver
from yaml.scanner import Scanner

from rpg_platform.spec.errors import Problem
from rpg_platform.wording import Path, dotted, show

Place: TypeAlias = tuple[int, int]

MAX_BYTES = 262_144
MAX_DEPTH = 32
_MAX_DIGITS = 18
_TAG = "tag:yaml.org,2002:"
_ALIAS = "alias"
_KEY = re.compile(r"[^\x00-\x1f\x7f\ud800-\udfff]{1,200}")


@dataclass(frozen=True)
class Written:
    """A text of a document.

    Attributes:
        text: What it says.
        source: The whole document.
        start, end: Where in the document it is written, quotes or block indicator included.
        line, column: Of its start.
        style: None (plain), a quotation mark, or a block's `|` or `>`.
    """

    text: str
    source: str
    start: int
    end: int
    line: int
    column: int
    style: str | None

    def place(self, offset: int) -> Place:
        """Line and column of the character at `offset`; of the whole where escapes hide which it is."""
        before = self.source[self.start : self._position(offset)]
        if "\n" not in before:
            return (self.line, self.column + len(before))
        return (self.line + before.count("\n"), len(before) - before.rfind("\n"))

    def _position(self, offset: int) -> int:
        """Index in the document. Folding changes blanks, so only other characters are followed."""
        at = self.start
        if self.style in ("|", ">"):
            at = self.source.find("\n", at) + 1
        elif self.style is not None:
            at += 1
        for character in self.text[:offset]:
            if character.isspace():
                continue
            while at < self.end and self.source[at].isspace():
                at += 1
            if at >= self.end or self.source[at] != character:
                return self.start
            at += 2 if self.style == "'" == character else 1
        while offset < len(self.text) and at < self.end and self.source[at].isspace():
            at += 1
        return at


@dataclass
class Document:
    """A document that was read.

    Attributes:
        data: What it holds: None, bool, int, float, str, list, or dict with text keys; None where it could
            not be read.
        values: Line and column (from 1) of the value at each path.
        keys: Line and column (from 1) of the key at each path.
        texts: Each text at its path, as it is and as it is written.
        problems: What could not be read; `broken` says so of the document as a whole.
        broken: It is not YAML, so `data` means nothing.
        source: Its text; None where it has none.
    """

    data: Any = None
    values: dict[Path, Place] = field(default_factory=dict)
    keys: dict[Path, Place] = field(default_factory=dict)
    texts: dict[Path, Written] = field(default_factory=dict)
    problems: list[tuple[Place, Problem]] = field(default_factory=list)
    broken: bool = False
    source: str | None = None

    def place(self, problem: Problem) -> Place:
        """Where to point for a problem: its value or key, or else the nearest thing above it in the text."""
        path = problem.path
        if problem.offset is not None:
            for candidate in (path, (*path, "expression")):
                if candidate in self.texts:
                    return self.texts[candidate].place(problem.offset)
        if problem.at_key and path in self.keys:
            return self.keys[path]
        if path in self.values:
            return self.values[path]
        while path:
            path = path[:-1]
            if path in self.keys:
                return self.keys[path]
            if path in self.values:
                return self.values[path]
        return (1, 1)


class _Resolver(BaseResolver):
    """The scalars of YAML 1.2's core schema, and `_` inside numbers."""


for _name, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9][0-9_]*|0x[0-9a-fA-F]+|0o[0-7]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9][0-9_]*|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
):
    _Resolver.add_implicit_resolver(f"{_TAG}{_name}", re.compile(f"(?:{_pattern})\\Z"), _first)


class _TooDeep(yaml.MarkedYAMLError):
    pass


class _Loader(Reader, Scanner, Parser, Composer, _Resolver):
    """PyYAML's own parser with the resolver above, no aliases and a bound on nesting."""

    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        _Resolver.__init__(self)
        self.depth = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        if self.check_event(AliasEvent):
            event = self.get_event()  # type: ignore[no-untyped-call]
            return ScalarNode(_ALIAS, event.anchor, event.start_mark, event.end_mark)
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "anchor", None) is not None:
            event.anchor = None
        if self.depth >= MAX_DEPTH:
            raise _TooDeep(problem=f"nested more than {MAX_DEPTH} levels deep", problem_mark=event.start_mark)
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


def read_document(raw: bytes) -> Document:
    """Read one document; whatever is wrong is in its `problems`."""
    document = Document()
    text = document.source = _decode(raw, document)
    if text is None:
        return document
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        _broken(document, *_syntax(error, text))
        return document
    if node is None:
        _broken(document, (1, 1), "the file is empty: expected a mapping such as 'task: ...'")
    elif not isinstance(node, MappingNode):
        kind = "a list" if isinstance(node, SequenceNode) else "a single value"
        _broken(document, _place(node.start_mark), f"expected a mapping (key: value), got {kind}")
    else:
        document.data = _construct(node, (), document)
    return document


def _decode(raw: bytes, document: Document) -> str | None:
    if len(raw) > MAX_BYTES:
        _broken(document, (1, 1), f"more than {MAX_BYTES} bytes: too large for a specification")
        return None
    if b"\0" in raw:
        _broken(document, (1, 1), "this is a binary file, not YAML text in UTF-8")
        return None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = raw[: error.start]
        line = before.count(b"\n") + 1
        column = len(before[before.rfind(b"\n") + 1 :].decode("utf-8", "replace")) + 1
        _broken(document, (line, column), f"this is not YAML text in UTF-8: byte 0x{raw[error.start]:02x}")
        return None


def _broken(document: Document, place: Place, message: str) -> None:
    document.broken = True
    document.problems.append((place, Problem((), message)))


def _syntax(error: Exception, text: str) -> tuple[Place, str]:
    """Where PyYAML stopped and why, on one line."""
    if isinstance(error, yaml.reader.ReaderError):
        before = text[: error.position]
        place = (before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1)
        return place, f"not valid YAML: character {ord(text[error.position]):#x} is not allowed"
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        why = ", ".join(part for part in (error.context, error.problem) if part)
        place = _place(mark) if mark else (1, 1)
        if "flow mapping" in why and "got '['" in why:
            why += "; a text with [ or , in it stands in quotes inside {...}"
        return place, why if isinstance(error, _TooDeep) else f"not valid YAML: {' '.join(why.split())}"
    return (1, 1), f"not valid YAML: {type(error).__name__}"


def _place(mark: Any) -> Place:
    return (mark.line + 1, mark.column + 1)


def _construct(node: Node, path: Path, document: Document) -> Any:
    document.values[path] = _place(node.start_mark)
    if isinstance(node, MappingNode) and node.tag == f"{_TAG}map":
        return _mapping(node, path, document)
    if isinstance(node, SequenceNode) and node.tag == f"{_TAG}seq":
        return [_construct(item, (*path, index), document) for index, item in enumerate(node.value)]
    if isinstance(node, ScalarNode):
        kind = node.tag.removeprefix(_TAG)
        if kind in _SCALARS:
            if kind == "str" and document.source is not None:
                start, end = node.start_mark.index, node.end_mark.index
                where = _place(node.start_mark)
                document.texts[path] = Written(node.value, document.source, start, end, *where, node.style)
            try:
                return _SCALARS[kind](node.value)
            except ValueError as error:
                return _fault(document, node, path, str(error) or f"{show(node.value)} is no {kind}")
    if node.tag == _ALIAS:
        return _fault(document, node, path, f"an alias (*{node.value}) cannot be used here: write the value out")
    shown = node.tag.replace(_TAG, "!!")[:60]
    return _fault(document, node, path, f"the tag {shown!r} cannot be used here: write a plain value")


def _mapping(node: MappingNode, path: Path, document: Document) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    for key_node, value_node in node.value:
        plain = isinstance(key_node, ScalarNode) and key_node.tag != _ALIAS
        if not plain or not _KEY.fullmatch(key_node.value):
            _unread(document, key_node, path, "a key must be a short text")
            continue
        if key_node.value == "<<":
            _unread(document, key_node, path, "a merge key (<<) cannot be used here: write the values out")
            continue
        key = key_node.value
        here = (*path, key)
        if key in mapping:
            line = document.keys[here][0]
            _fault(document, key_node, here, f"the key is here twice, first in line {line}")
            continue
        document.keys[here] = _place(key_node.start_mark)
        mapping[key] = _construct(value_node, here, document)
    return mapping


def _unread(document: Document, node: Node, path: Path, message: str) -> None:
    """Report something that nothing depends on: the rest of the mapping it stands in is still used."""
    place = f"{dotted(path)}: " if path else ""
    document.problems.append((_place(node.start_mark), Problem((), f"{place}{message}")))


def _fault(document: Document, node: Node, path: Path, message: str) -> None:
    document.problems.append((_place(node.start_mark), Problem(path, message)))


def _null(text: str) -> None:
    if text not in ("", "~", "null", "Null", "NULL"):
        raise ValueError


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError
    return text.lower() == "true"


def _integer(text: str) -> int:
    digits = text.replace("_", "")
    if len(digits.lstrip("+-0")) > _MAX_DIGITS:
        raise ValueError(f"a whole number takes at most {_MAX_DIGITS} digits, got {len(digits)}")
    base = 16 if digits.startswith("0x") else 8 if digits.startswith("0o") else 10
    try:
        return int(digits, base)
    except ValueError:
        raise ValueError("") from None


def _float(text: str) -> float:
    digits = text.replace("_", "").lower()
    try:
        return float({".inf": "inf", "+.inf": "inf", "-.inf": "-inf", ".nan": "nan"}.get(digits, digits))
    except ValueError:
        raise ValueError("") from None


_SCALARS: dict[str, Any] = {"null": _null, "bool": _boolean, "int": _integer, "float": _float, "str": str}
