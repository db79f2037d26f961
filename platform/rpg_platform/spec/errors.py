"""What is wrong with a sweep specification, and how it is said.

A `Problem` is a path into the specification and a sentence; `SpecError` carries all of a file's. pydantic's
errors are turned into the same sentences by `explain`, and hand-written validators report theirs through
`refuse`, so a user sees one voice whichever of the two found the fault.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import NoReturn

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from rpg_platform.wording import Path, dotted, one_of, show, suggestion

_CUSTOM = "specification"
_MISSING = "missing, and it has no default"
_MEANT = re.compile(r"did you mean '(.+)'\?$")


@dataclass(frozen=True)
class Problem:
    """One fault of a specification.

    Attributes:
        path: Where it is, e.g. `("weights", "omega_prime", "grid", 1)`.
        message: What is wrong, what was expected.
        at_key: The key itself is at fault (an unknown name), not its value.
        needs: Further paths that the message speaks of; it is left unsaid when one of them is itself at
            fault.
        offset: Characters of the text there that stand before the fault; None: it is of the text as a whole.
    """

    path: Path
    message: str
    at_key: bool = False
    needs: tuple[Path, ...] = ()
    offset: int | None = None

    def __str__(self) -> str:
        return f"{dotted(self.path)}: {self.message}" if self.path else self.message


class SpecError(ValueError):
    """A specification that was refused; `str()` lists every fault, one a line."""

    def __init__(self, messages: Sequence[str]) -> None:
        super().__init__(tuple(messages))
        self.messages: tuple[str, ...] = tuple(messages)

    def __str__(self) -> str:
        return "\n".join(self.messages)


def refuse(problems: Sequence[Problem]) -> NoReturn:
    """Raise `problems` from inside a pydantic validator; their paths start at the value being validated.

    Raises:
        ValidationError: Always.
    """
    raise ValidationError.from_exception_data(
        _CUSTOM,
        [
            InitErrorDetails(type=fault(problem.message, problem.at_key, problem.offset), loc=problem.path, input=None)
            for problem in problems
        ],
    )


def fault(message: str, at_key: bool = False, offset: int | None = None) -> PydanticCustomError:
    """The error to raise from inside a pydantic validator, about the value being validated."""
    return PydanticCustomError(_CUSTOM, "{message}", {"message": message, "at_key": at_key, "offset": offset})


def explain(
    error: ValidationError, model: type[BaseModel], homes: Mapping[str, Collection[str]] | None = None
) -> list[Problem]:
    """The problems of a pydantic error, in our words.

    Args:
        error: What `model.model_validate` raised.
        model: Names the valid keys where one is unknown.
        homes: The keys of each section, to tell where a misplaced key belongs.
    """
    faults = error.errors(include_url=False)
    inside = {fault["loc"][:-1] for fault in faults}
    problems = []
    for fault in faults:
        if fault["type"] == "too_short" and fault["loc"] in inside:
            continue  # pydantic counts the items that it accepted
        problems.append(_explain_one(fault, model, homes or {}))
    misspelt = {(*p.path[:-1], name) for p in problems if p.at_key for name in _MEANT.findall(p.message)}
    return [problem for problem in problems if problem.message != _MISSING or problem.path not in misspelt]


# The type of pydantic's error -> our sentence; what it names is in the error's context, or put in by `_explain_one`.
_SENTENCES = {
    "missing": _MISSING,
    "literal_error": "expected {one_of}, {got}",
    "greater_than_equal": "must be at least {ge}, {got}",
    "greater_than": "must be above {gt}, {got}",
    "less_than_equal": "must be at most {le}, {got}",
    "less_than": "must be below {lt}, {got}",
    "too_short": "needs at least one value, got an empty list",
    "too_long": "takes at most {max_length} values, got {length}",
    "string_too_short": "must not be empty text",
    "string_too_long": "takes at most {max_length} characters, got {length}",
    "int_type": "expected a whole number, {got}",
    "float_type": "expected a number, {got}",
    "finite_number": "expected a finite number, {got}",
    "bool_type": "expected true or false, {got}",
    "string_type": "expected text, {got}",
    "string_unicode": "expected valid Unicode text, {got}",
    "tuple_type": "expected a list, {got}",
    "dict_type": "expected a mapping (key: value), {got}",
    "model_type": "expected a mapping (key: value), {got}",
    "model_attributes_type": "expected a mapping (key: value), {got}",
}


def _explain_one(error: ErrorDetails, model: type[BaseModel], homes: Mapping[str, Collection[str]]) -> Problem:
    path, value, context = tuple(error["loc"]), error["input"], error.get("ctx", {})
    if error["type"] == _CUSTOM:
        at_key = bool(context["at_key"])
        path = path[:-1] if at_key and path[-1] == "[key]" else path  # pydantic's mark of a mapping's key
        return Problem(path, str(context["message"]), at_key, offset=context["offset"])
    if error["type"] == "extra_forbidden":
        return Problem(path, "unknown key" + _key_hint(path, model, homes), at_key=True)
    valid = re.findall(r"'([^']*)'", str(context.get("expected")))
    if error["type"] == "literal_error" and isinstance(value, str):
        return Problem(path, f"unknown value {show(value)}" + suggestion(value, valid))
    named = {name: show(each) for name, each in context.items()}
    named |= {
        "got": f"got {show(value)}",
        "length": str(len(value) if isinstance(value, Sized) else 0),
        "one_of": one_of(valid),
    }
    sentence = _SENTENCES.get(error["type"])
    return Problem(path, sentence.format_map(named) if sentence else f"{error['msg']}, {named['got']}")


def _key_hint(path: Path, model: type[BaseModel], homes: Mapping[str, Collection[str]]) -> str:
    """What to write in place of the unknown key `path[-1]`: a near name, its section, or all names."""
    section = _section_at(path[:-1], model)
    name, valid = str(path[-1]), list(section.model_fields) if section else []
    if not difflib.get_close_matches(name[:100], valid, n=1):
        for home, keys in homes.items():
            if name in keys:
                return f"; it belongs under {home!r}"
    return suggestion(name, valid)


def _section_at(path: Path, model: type[BaseModel]) -> type[BaseModel] | None:
    section: object = model
    for part in path:
        if not (isinstance(section, type) and issubclass(section, BaseModel)) or part not in section.model_fields:
            return None
        field = section.model_fields[str(part)].annotation
        members = [field, *getattr(field, "__args__", ())]
        section = next((m for m in members if isinstance(m, type) and issubclass(m, BaseModel)), None)
    return section if isinstance(section, type) and issubclass(section, BaseModel) else None
