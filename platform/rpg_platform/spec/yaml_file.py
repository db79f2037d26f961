"""Sweep specifications as YAML files: `load_spec` and `dump_spec`.

A file is refused with all its faults at once, each as `file:line:column: path: what is wrong`, sorted by
line. When some fields are invalid the others are still checked: the invalid ones are set aside, and only what
is said about the rest stands.
"""

from __future__ import annotations

import copy
import os
import pathlib
from collections.abc import Iterable
from typing import Any

import yaml
from pydantic import ValidationError

from rpg_platform.bundles import SHIPPED
from rpg_platform.spec.checks import check, is_path, with_discount_of_prior
from rpg_platform.spec.errors import Problem, SpecError, explain
from rpg_platform.spec.shipped import sweep_file
from rpg_platform.spec.sweep import SECTION_KEYS, SweepSpec
from rpg_platform.spec.task import TaskFile, TaskSpec, get_task
from rpg_platform.spec.yaml_document import MAX_BYTES, Document, read_document
from rpg_platform.tasks.registry import TASKS
from rpg_platform.tasks.task import Task
from rpg_platform.wording import Path

__all__ = ["SpecError", "dump_spec", "find_task", "load_spec", "parse_spec"]


_pipes: dict[pathlib.Path, bytes] = {}


def load_spec(path: str | os.PathLike[str], *, check_files: bool = True) -> SweepSpec:
    """Read a sweep's specification from a YAML file.

    Args:
        path: The file, or the name of a shipped sweep (`sweep_file`). A relative path inside it (the prior's, the
            storage's) is relative to its folder, of a pipe to the working directory.
        check_files: Require that the prior exists and fits. Without it a specification can be checked before
            its prior has been trained, or on another machine.

    Returns:
        The specification, its `name` filled in and a prior's path made absolute.

    Raises:
        SpecError: If anything is wrong with the file or with what it says; lists every fault with line and
        column.
    """
    text = text_of(pathlib.Path(path))
    file, beside = sweep_file(path)
    folder = "." if file in _pipes else beside
    return parse_spec(text, source=str(file), folder=folder, name=file.stem, check_files=check_files)


def text_of(file: pathlib.Path) -> bytes:
    """What a specification's file holds, at most ``MAX_BYTES`` and one more; a pipe is read the first time alone.

    Raises:
        SpecError: it can't be read.
    """
    try:
        file, _ = sweep_file(file)
    except ValueError as error:
        raise SpecError([str(error)]) from error
    if file in _pipes:
        return _pipes[file]
    try:
        with file.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
        if not file.is_file():
            _pipes[file] = content
        return content
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise SpecError([f"{file}: cannot be read: {reason}"]) from error


def parse_spec(
    text: bytes | str,
    *,
    source: str = "<text>",
    folder: str | os.PathLike[str] = ".",
    name: str | None = None,
    check_files: bool = True,
) -> SweepSpec:
    """Read a sweep's specification from YAML text.

    Args:
        text: The YAML.
        source: Stands before line and column in messages.
        folder: What a relative path inside it is relative to.
        name: The specification's name when it gives none.
        check_files: As in `load_spec`.

    Raises:
        SpecError: As `load_spec`.
    """
    document = read_document(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text)
    spec, found = (None, []) if document.broken else _validate(document, pathlib.Path(folder), name, check_files)
    if spec is None or found or document.problems:
        raise _refusal(source, document, found)
    return spec


def _refusal(source: str, document: Document, found: Iterable[Problem]) -> SpecError:
    """Lists what could not be read and what was found besides, by line and column."""
    placed = [*document.problems, *((document.place(problem), problem) for problem in found)]
    lines = sorted((place, str(problem)) for place, problem in placed)
    return SpecError(list(dict.fromkeys(f"{source}:{line}:{column}: {text}" for (line, column), text in lines)))


def find_task(name_or_file: str) -> Task:
    """The task registered under a name, or the one under `task` in a YAML file: a sweep's, or one with nothing else.

    Raises:
        SpecError: If what the file says of its task is wrong; lists every fault with line and column.
        ValueError: If there is neither such a task nor such a file.
    """
    return get_task(find_task_spec(name_or_file))


def find_task_spec(name_or_file: str) -> str | TaskSpec:
    """What `find_task` makes a task of: the name, or the file's specification. Raises SpecError."""
    file = pathlib.Path(name_or_file)
    if name_or_file in TASKS or not (file.suffix in (".yaml", ".yml") or file.is_file()):
        return name_or_file
    document, found = read_document(text_of(file)), []
    if not document.problems:
        try:
            task = TaskFile.model_validate({"task": document.data.get("task")}).task
            return task if isinstance(task, str) else _with_folder(task, file.parent)
        except ValidationError as error:
            found = explain(error, TaskFile)
    raise _refusal(str(file), document, found)


def dump_spec(spec: SweepSpec) -> str:
    """The YAML of a specification, defaults and all; `parse_spec` gives the same specification back."""
    return yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)


def _validate(
    document: Document, folder: pathlib.Path, name: str | None, check_files: bool
) -> tuple[SweepSpec | None, list[Problem]]:
    """The specification if its fields are valid, and every problem with it."""
    nameless = document.data.get("name") is None and name is not None
    data = {**document.data, "name": name} if nameless else document.data
    set_aside = [problem.path for _, problem in document.problems if problem.path]
    try:
        spec = SweepSpec.model_validate(data)
        problems: list[Problem] = []
    except ValidationError as error:
        problems = explain(error, SweepSpec, SECTION_KEYS)
        problems = [problem for problem in problems if not _touches(problem.path, set_aside)]
        set_aside += [problem.path for problem in problems if problem.path]
        if nameless:
            problems = [_of_stem(problem) if problem.path == ("name",) else problem for problem in problems]
        rest = _without(data, set_aside)
        try:
            spec = SweepSpec.model_validate(rest)
        except ValidationError:
            return None, problems
    spec = _with_absolute_storage(_with_absolute_bundles(spec, folder), folder)
    if isinstance(spec.task, TaskSpec):
        spec = spec.model_copy(update={"task": _with_folder(spec.task, folder)})
    spec = with_discount_of_prior(spec) if check_files else spec
    for problem in check(spec, check_files=check_files):
        if not any(_touches(path, set_aside) for path in (problem.path, *problem.needs)):
            problems.append(problem)
    return spec, problems


def _of_stem(problem: Problem) -> Problem:
    return Problem((), f"name: the file's stem {problem.message}; rename the file or give a name")


def _touches(path: Path, others: Iterable[Path]) -> bool:
    """Whether `path` is inside one of `others`, or one of them inside it."""
    return any(path[: len(other)] == other[: len(path)] for other in others)


def _without(data: dict[str, Any], paths: Iterable[Path]) -> dict[str, Any]:
    """A copy of `data` without what is at `paths`, and with something valid where a field is required."""
    rest = copy.deepcopy(data)
    for path in paths:
        top = path[0]
        section = rest.get(str(top))
        if len(path) > 1 and top != "task" and isinstance(section, dict) and path[1] in section:
            del section[path[1]]
        elif len(path) == 1 or top == "task" or not isinstance(section, dict):
            rest.pop(str(top), None)
    required = {"name": "unnamed", "task": next(iter(TASKS)), "algorithm": "ppo", "budget": {}}
    rest = {**required, **{key: value for key, value in rest.items() if value is not None}}
    if isinstance(rest["budget"], dict):
        rest["budget"].setdefault("env_steps", 10**12)
    return rest


def _with_folder(task: TaskSpec, folder: pathlib.Path) -> TaskSpec:
    """The user's modules are looked for beside the file, or in the folder that it names."""
    if not (task.has_user_code or task.folder):
        return task
    beside = os.path.abspath(folder / pathlib.Path(task.folder or ".").expanduser())  # noqa: PTH100
    return task.model_copy(update={"folder": beside})


def _with_absolute_storage(spec: SweepSpec, folder: pathlib.Path) -> SweepSpec:
    """A relative ``storage`` is relative to the file, like all its paths."""
    if spec.storage is None or "://" in spec.storage or spec.storage.startswith(("~", "/")):
        return spec
    return spec.model_copy(update={"storage": os.path.abspath(folder / spec.storage)})  # noqa: PTH100


def _with_absolute_bundles(spec: SweepSpec, folder: pathlib.Path) -> SweepSpec:
    given = {"prior": spec.prior, "start": spec.start}
    paths = {name: _absolute(bundle, folder) for name, bundle in given.items() if bundle and bundle not in SHIPPED}
    return spec.model_copy(update={name: path for name, path in paths.items() if path})


def _absolute(bundle: str, folder: pathlib.Path) -> str | None:
    """The path that a bundle's name stands for; None where it is none, or can't be told."""
    try:
        beside = pathlib.Path(os.path.abspath(folder / pathlib.Path(bundle).expanduser()))  # noqa: PTH100
        return str(beside) if is_path(bundle) or bundle.startswith("~") or beside.is_dir() else None
    except (OSError, RuntimeError, ValueError):
        return None
