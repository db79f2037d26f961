"""Reads one YAML document into plain data, and remembers the line and column of every key and value.

The YAML here is the 1.2 core schema, without anchors, tags or merge keys, plus `_` inside numbers: `1e-4` is
a number, `yes`, `010:20` and `2026-01-01` are text. Whatever else the text holds is reported with its place;
nothing raises, and nothing that a document says is ever constructed but mappings, lists, text, numbers,
booleans and null.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import yaml
from yaml.events import AliasEvent
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.reader import ReaderError

from rpg_platform.spec.errors import Problem
from rpg_platform.wording import Path, dotted, show

Place: TypeAlias = tuple[int, int]

MAX_BYTES = 262_144
MAX_DEPTH = 32
_MAX_DIGITS = 18
_TAG = "tag:yaml.org,2002:"
_ALIAS = "*"
_KEY = re.compile(r"[^\x00-\x1f\x7f\ud800-\udfff]{1,200}")


@dataclass
class Document:
    """A document that was read.

    Attributes:
        data: What it holds: None, bool, int, float, str, list, or dict with text keys; None where it could
            not be read.
        values: Line and column (from 1) of the value at each path.
        keys: Line and column (from 1) of the key at each path.
        texts: The YAML node of each text, at its path.
        problems: What could not be read, each with its place.
        broken: It is not YAML, so `data` means nothing.
    """

    data: Any = None
    values: dict[Path, Place] = field(default_factory=dict)
    keys: dict[Path, Place] = field(default_factory=dict)
    texts: dict[Path, ScalarNode] = field(default_factory=dict)
    problems: list[tuple[Place, Problem]] = field(default_factory=list)
    broken: bool = False

    def place(self, problem: Problem) -> Place:
        """Where to point for a problem: its value or key, or else the nearest thing above it in the text."""
        path = problem.path
        for candidate in (path, (*path, "expression")):
            if problem.offset is not None and candidate in self.texts:
                return _place_in_text(self.texts[candidate], problem.offset)
        if path in self.values and not (problem.at_key and path in self.keys):
            return self.values[path]
        while path and path not in self.keys and path not in self.values:
            path = path[:-1]
        return self.keys.get(path) or self.values.get(path) or (1, 1)


def _place_in_text(node: ScalarNode, offset: int) -> Place:
    """Line and column of the character at `offset` of a text; of the whole text where escapes hide which it is.

    Folding changes blanks, so only the other characters are followed through the source.
    """
    source, at, end = str(node.start_mark.buffer), node.start_mark.index, node.end_mark.index
    if node.style in ("|", ">"):
        at = source.find("\n", at) + 1
    elif node.style is not None:
        at += 1
    for character in node.value[:offset]:
        if character.isspace():
            continue
        at = _after_blanks(source, at, end)
        if at >= end or source[at] != character:
            return _place(node.start_mark)
        at += 2 if node.style == "'" == character else 1
    return _end_of(source[: _after_blanks(source, at, end) if offset < len(node.value) else at])


def _after_blanks(source: str, at: int, end: int) -> int:
    while at < end and source[at].isspace():
        at += 1
    return at


def _end_of(text: str) -> Place:
    """The place just behind a text."""
    lines = f"{text}.".splitlines()
    return (len(lines), len(lines[-1]))


def _place(mark: Any) -> Place:
    return (mark.line + 1, mark.column + 1)


# ---- scalars ------------------------------------------------------------------------------------
def _integer(text: str) -> int:
    digits = text.replace("_", "")
    if len(digits.lstrip("+-0")) > _MAX_DIGITS:
        raise ValueError(f"a whole number takes at most {_MAX_DIGITS} digits, got {len(digits)}")
    return int(digits, 0 if digits.startswith(("0x", "0o")) else 10)


def _float(text: str) -> float:
    return float(text.replace("_", "").lower().replace(".inf", "inf").replace(".nan", "nan"))


_FLOAT = r"[-+]?(\.[0-9][0-9_]*|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
# Kind -> what it looks like, the characters that it starts with where it is plain, and its value.
_SCALARS: dict[str, tuple[str, Iterable[str], Callable[[str], Any]]] = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""], lambda text: None),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF", lambda text: text.lower() == "true"),
    "int": (r"[-+]?[0-9][0-9_]*|0x[0-9a-fA-F]+|0o[0-7]+", "-+0123456789", _integer),
    "float": (_FLOAT, "-+.0123456789", _float),
    "str": (r"(?s:.*)", "", str),
}


# ---- reading ------------------------------------------------------------------------------------
class _Broken(Exception):  # noqa: N818 - becomes a problem of the document
    """The document as a whole cannot be read: its place and why."""


class _Loader(yaml.BaseLoader):
    """PyYAML's own parser with the scalars above, no aliases and a bound on nesting."""

    depth = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if self.check_event(AliasEvent):
            self.get_event()  # type: ignore[no-untyped-call]
            return ScalarNode(f"{_ALIAS}{event.anchor}", "", event.start_mark, event.end_mark)
        if self.depth >= MAX_DEPTH:
            raise _Broken(_place(event.start_mark), f"nested more than {MAX_DEPTH} levels deep")
        event.anchor = None  # PyYAML would refuse an anchor that is there twice, and without aliases that is no fault
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


for _kind, (_pattern, _first, _) in _SCALARS.items():
    if _first:
        _Loader.add_implicit_resolver(f"{_TAG}{_kind}", re.compile(f"(?:{_pattern})\\Z"), list(_first))


def read_document(raw: bytes) -> Document:
    """Read one document; whatever is wrong is in its `problems`."""
    document = Document()
    try:
        node = _Loader(_decode(raw)).get_single_node()
        if node is None:
            raise _Broken((1, 1), "the file is empty: expected a mapping such as 'task: ...'")
        if not isinstance(node, MappingNode):
            kind = "a list" if isinstance(node, SequenceNode) else "a single value"
            raise _Broken(_place(node.start_mark), f"expected a mapping (key: value), got {kind}")
        document.data = _construct(node, (), document)
        return document
    except _Broken as error:
        place, message = error.args
    except ReaderError as error:
        place = _end_of(raw.decode("utf-8-sig")[: error.position])
        message = f"not valid YAML: character {error.character:#x} is not allowed"
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = _place(mark) if mark else (1, 1)
        why = ", ".join(part for part in (error.context, error.problem) if part)
        if "flow mapping" in why and "got '['" in why:
            why += "; a text with [ or , in it stands in quotes inside {...}"
        message = f"not valid YAML: {' '.join(why.split())}"
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        place, message = (1, 1), f"not valid YAML: {type(error).__name__}"
    document.broken = True
    document.problems.append((place, Problem((), message)))
    return document


def _decode(raw: bytes) -> str:
    if len(raw) > MAX_BYTES:
        raise _Broken((1, 1), f"more than {MAX_BYTES} bytes: too large for a specification")
    if b"\0" in raw:
        raise _Broken((1, 1), "this is a binary file, not YAML text in UTF-8")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        place = _end_of(raw[: error.start].decode("utf-8", "replace"))
        raise _Broken(place, f"this is not YAML text in UTF-8: byte 0x{raw[error.start]:02x}") from None


def _construct(node: Node, path: Path, document: Document) -> Any:
    document.values[path] = _place(node.start_mark)
    kind = node.tag.removeprefix(_TAG)
    if isinstance(node, MappingNode) and kind == "map":
        return _mapping(node, path, document)
    if isinstance(node, SequenceNode) and kind == "seq":
        return [_construct(item, (*path, index), document) for index, item in enumerate(node.value)]
    if isinstance(node, ScalarNode) and kind in _SCALARS:
        pattern, _, value_of = _SCALARS[kind]
        if kind == "str":
            document.texts[path] = node
        try:
            if re.fullmatch(pattern, node.value):
                return value_of(node.value)
            message = f"{show(node.value)} is no {kind}"
        except ValueError as error:
            message = str(error)
    elif kind.startswith(_ALIAS):
        message = f"an alias ({kind}) cannot be used here: write the value out"
    else:
        message = f"the tag {node.tag.replace(_TAG, '!!')[:60]!r} cannot be used here: write a plain value"
    document.problems.append((document.values[path], Problem(path, message)))
    return None


def _mapping(node: MappingNode, path: Path, document: Document) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    for key_node, value_node in node.value:
        place, here = _place(key_node.start_mark), (*path, key_node.value)
        unread = _unread(key_node)
        if unread is not None:  # nothing depends on such a key: the rest of the mapping is still used
            message = f"{dotted(path)}: {unread}" if path else unread
            document.problems.append((place, Problem((), message)))
        elif key_node.value in mapping:
            message = f"the key is here twice, first in line {document.keys[here][0]}"
            document.problems.append((place, Problem(here, message)))
        else:
            document.keys[here] = place
            mapping[key_node.value] = _construct(value_node, here, document)
    return mapping


def _unread(key: Node) -> str | None:
    """Why a key cannot be used; None where it can."""
    if not isinstance(key, ScalarNode) or not _KEY.fullmatch(key.value):
        return "a key must be a short text"
    return "a merge key (<<) cannot be used here: write the values out" if key.value == "<<" else None
