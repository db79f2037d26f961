"""Every error of ours comes back whole from another process: Ray carries a worker's error to the driver in a pickle."""

from __future__ import annotations

import copy
import errno
import importlib
import pickle
import pkgutil
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from ray import cloudpickle
from ray.exceptions import RayTaskError

import rpg_algorithms
import rpg_platform
from rpg_platform.tasks.conformance import Check

# Arguments of the classes that take other than one text.
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "CodeError": ("a loop without an end", "code/policy.py"),
    "ConformanceError": ("slide", [Check("environment", "episodes end", "none did in 4,000 random steps")]),
    "DiskFullError": (errno.ENOSPC, "/tmp: 1.0 MB are free, and 2.0 MB are needed"),
    "ExpressionError": ("unknown name 'obz'", 3, "2 + obz[0]"),
    "SpecError": (["budget: missing", "task: unknown"],),
    "TaskError": (("addons", "foot"), "expected a number", True, 4),
}


def _modules(package: ModuleType) -> Iterator[ModuleType]:
    for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not info.name.endswith("__main__"):
            yield importlib.import_module(info.name)


def _errors() -> list[type[BaseException]]:
    found = {
        value
        for package in (rpg_algorithms, rpg_platform)
        for module in _modules(package)
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, BaseException) and value.__module__ == module.__name__
    }
    return sorted(found, key=lambda each: f"{each.__module__}.{each.__name__}")


@pytest.mark.parametrize("kind", _errors(), ids=lambda kind: kind.__name__)
def test_an_error_survives_pickling(kind: type[BaseException]) -> None:
    error = kind(*ARGUMENTS.get(kind.__name__, ("what is wrong, where, and what to do",)))
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):  # Tune copies, too
        assert type(again) is kind
        assert (str(again), again.args, vars(again)) == (str(error), error.args, vars(error))
    assert str(error) or kind.__name__.startswith("_")
    # As the driver gets it from Ray, and as Tune then keeps it in the trial's folder.
    got = RayTaskError("step", f"Traceback\n{error}", error).as_instanceof_cause()
    again = cloudpickle.loads(cloudpickle.dumps(got))
    assert isinstance(again, kind)
    assert str(again) == str(got)
