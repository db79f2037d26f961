"""A user's own functions and classes by name, ``module:attribute``, wherever they are needed.

They are held by their name and imported where they are used, so that they travel to workers as text. A module is looked
for on the Python path, then beside the specification, then in the working directory; on a cluster's nodes it comes with
the job (``py_modules`` or ``working_dir``, see docs/tasks.md).
"""

from __future__ import annotations

import importlib
import os
import re
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

from rpg_algorithms.addons import Array
from rpg_platform.wording import suggestion

NAME = re.compile(r"[^\W\d][\w.]*:[^\W\d][\w.]*")
"""``module:attribute``."""


class UserCodeError(ValueError):
    """A name that cannot be imported; says why."""


def load(name: str, folder: str | None = None) -> Any:
    """What ``module:attribute`` names.

    Args:
        name: the name.
        folder: a folder to look in after the Python path; it stays on the path of this process.

    Raises:
        UserCodeError: there is no such module or attribute, or importing it fails.
    """
    if not NAME.fullmatch(name):
        raise UserCodeError(f"{name!r}: expected 'module:name'")
    module_name, _, attribute = name.partition(":")
    found: Any = load_module(module_name, folder)
    file = getattr(found, "__file__", None) or "built in"
    for part in attribute.split("."):
        if not hasattr(found, part):
            names = [each for each in vars(found) if not each.startswith("_")] if hasattr(found, "__dict__") else []
            raise UserCodeError(f"module {module_name!r} ({file}) has no {part!r}{suggestion(part, names[:50])}")
        found = getattr(found, part)
    return found


def load_module(name: str, folder: str | None = None) -> ModuleType:
    """The module ``name``, imported if it is not yet. Raises UserCodeError."""
    for path in (folder, _working_directory()):
        if path and Path(path).is_dir() and path not in sys.path:
            sys.path.append(path)  # at the end: a file of theirs must not hide an installed package
            importlib.invalidate_caches()
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            where = f"on the Python path or in {folder or _working_directory()}"
            raise UserCodeError(f"there is no module {error.name!r} {where}{_near_file(name, folder)}") from error
        raise UserCodeError(_failed(name, error)) from error
    except (Exception, SystemExit) as error:  # whatever their module does
        raise UserCodeError(_failed(name, error)) from error
    beside = _beside(name, folder)
    loaded = getattr(module, "__file__", None)
    if beside is not None and (loaded is None or not Path(loaded).samefile(beside)):
        raise UserCodeError(f"module {name!r} is {loaded}, which hides {beside}: rename the latter")
    return module


def _working_directory() -> str | None:
    try:
        return os.getcwd()  # noqa: PTH109
    except OSError:  # it has been removed
        return None


def _beside(name: str, folder: str | None) -> Path | None:
    """The file of module ``name`` in ``folder``, if it is there."""
    if not folder:
        return None
    path = Path(folder, *name.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def _near_file(name: str, folder: str | None) -> str:
    if not folder or not Path(folder).is_dir():
        return ""
    near = suggestion(name, [file.stem for file in sorted(Path(folder).glob("*.py"))[:200]])
    return near if "did you mean" in near else ""


def _failed(name: str, error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    if isinstance(error, SyntaxError):
        where = f" ({error.filename}, line {error.lineno})"
    message = " ".join(str(error).split())[:300]
    return f"importing {name!r} failed: {type(error).__name__}: {message}{where}"


@dataclass(frozen=True)
class UserFunction:
    """A user's add-on reward or metric by name; imported at its first use in a process, pickled as its name.

    Attributes:
        name: ``module:function``; the function takes (obs, actions, next_obs, infos) and gives ``[B]``.
        folder: where its module is looked for besides the Python path.
        keys: the infos that it reads; None: its attribute ``info_keys``, if it has one.
    """

    name: str
    folder: str | None = None
    keys: tuple[str, ...] | None = None

    @cached_property
    def function(self) -> Any:
        """The function itself. Raises UserCodeError."""
        function = load(self.name, self.folder)
        if isinstance(function, type) or not callable(function):
            what = "a class" if isinstance(function, type) else f"a {type(function).__name__}"
            raise UserCodeError(f"{self.name} is {what}: expected a function (obs, actions, next_obs, infos) -> [B]")
        return function

    @cached_property
    def info_keys(self) -> tuple[str, ...]:
        """Entries of the environment's info that it reads."""
        return tuple(getattr(self.function, "info_keys", ()) if self.keys is None else self.keys)

    def __call__(self, obs: Array, actions: Array, next_obs: Array, infos: Mapping[str, Array]) -> Array:
        result: Array = self.function(obs, actions, next_obs, infos)
        return result

    def __reduce__(self) -> tuple[type[UserFunction], tuple[Any, ...]]:
        return UserFunction, (self.name, self.folder, self.keys)
