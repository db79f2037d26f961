"""A pickle reader that imports and calls nothing that the pickle names.

``load`` runs the pickle's own small stack machine (protocols 0 to 5) and gives back

- Python's containers, numbers, strings and bytes; ``OrderedDict``; numeric numpy arrays, scalars and types, as
  themselves;
- a ``Global`` for every name and an ``Instance`` for every object, call or constructor: records of what the pickle
  asked for, never carried out.

So a pickle can lie, but it cannot act: a file whose ``__reduce__`` would run a command yields an
``Instance("os.system", ("…",))``. Budgets (``Limits``) hold its size in time and memory. The containers of a result
never contain themselves and unfold to a bounded tree, so they may be walked recursively; only instances may form
cycles. Whatever is wrong with the bytes, ``PriorImportError`` is raised and nothing else.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rpg_platform.priors.files.inert_machine import Limits, Machine
from rpg_platform.priors.files.inert_values import (
    INTERPRETERS,
    Global,
    Instance,
    Interpreter,
    KeepInert,
)
from rpg_platform.priors.imported import PriorImportError

__all__ = ["Global", "Instance", "KeepInert", "Limits", "load", "load_at"]


def load(
    data: bytes,
    *,
    what: str = "pickle",
    limits: Limits | None = None,
    persistent: Callable[[Any], Any] | None = None,
    interpret: Mapping[str, Interpreter] | None = None,
) -> Any:
    """Reads one pickle; bytes after its end are ignored, as ``pickle.load`` ignores them.

    Args:
        data: the pickle.
        what: what it is, for messages, such as ``model.zip: data: policy_kwargs``.
        limits: budgets, by default ``Limits()``.
        persistent: maps a persistent id (of any type) to its value; without it, persistent ids are refused.
        interpret: further names read as themselves: ``{"module.name": function(args, charge)}``. Such a function is
            ours, calls ``charge(bytes)`` before it allocates, raises ``KeepInert`` for arguments that it has no
            reading of (an ``Instance`` results) and ``ValueError`` for wrong ones.

    Raises:
        PriorImportError: the bytes are no pickle, are damaged, or exceed a budget.
    """
    return load_at(data, 0, what=what, limits=limits, persistent=persistent, interpret=interpret)[0]


def load_at(
    data: bytes,
    start: int,
    *,
    what: str = "pickle",
    limits: Limits | None = None,
    persistent: Callable[[Any], Any] | None = None,
    interpret: Mapping[str, Interpreter] | None = None,
) -> tuple[Any, int]:
    """``load`` of the pickle that begins at ``start``; returns its value and where it ends."""
    machine = Machine(data, start, limits or Limits(), persistent, {**INTERPRETERS, **(interpret or {})})
    try:
        value = machine.run()
        _check_unfolding(value, machine.limits)
    except PriorImportError as error:
        raise PriorImportError(f"{what}: {error}") from error
    except IndexError as error:
        raise PriorImportError(f"{what}: not a pickle, or a damaged one: its stack runs empty") from error
    except (ValueError, TypeError, KeyError, OverflowError, struct.error, MemoryError, RecursionError) as error:
        raise PriorImportError(f"{what}: not a pickle, or a damaged one: {str(error)[:200]}") from error
    return value, machine.position


def _children(container: Any) -> Iterator[Any]:
    if isinstance(container, dict):
        yield from container.keys()
        yield from container.values()
    else:
        yield from container


def _check_unfolding(value: Any, limits: Limits) -> None:
    """Raises PriorImportError unless containers are trees of bounded depth and size; see the module's docstring."""
    containers = (list, tuple, dict, set, frozenset)
    measured: dict[int, tuple[int, int]] = {}  # id -> levels below, nodes when unfolded
    seen: set[int] = set()
    roots = [value]
    while roots:
        root = roots.pop()
        if isinstance(root, Instance):
            if id(root) not in seen:
                seen.add(id(root))
                roots += [root.args, root.kwargs, root.state, root.items, root.entries]
            continue
        if not isinstance(root, containers) or id(root) in measured:
            continue
        path: list[tuple[Any, Iterator[Any], list[int]]] = [(root, _children(root), [0, 1])]
        within = {id(root)}
        while path:
            container, children, measure = path[-1]
            for child in children:
                if isinstance(child, Instance):
                    roots.append(child)
                    measure[1] += 1
                elif not isinstance(child, containers):
                    measure[1] += 1
                elif id(child) in measured:
                    _add_measure(measure, measured[id(child)], limits)
                elif id(child) in within:
                    raise PriorImportError("the pickle holds a container that contains itself")
                else:
                    path.append((child, _children(child), [0, 1]))
                    within.add(id(child))
                    break
            else:
                path.pop()
                within.discard(id(container))
                _add_measure(measure, (-1, 0), limits)
                measured[id(container)] = (measure[0], measure[1])
                if path:
                    _add_measure(path[-1][2], measured[id(container)], limits)
            if len(path) > limits.nesting:
                raise PriorImportError(f"the pickle nests more than {limits.nesting} levels deep")


def _add_measure(measure: list[int], child: tuple[int, int], limits: Limits) -> None:
    measure[0] = max(measure[0], child[0] + 1)
    measure[1] += child[1]
    if measure[0] > limits.nesting:
        raise PriorImportError(f"the pickle nests more than {limits.nesting} levels deep")
    if measure[1] > limits.nodes:
        raise PriorImportError(f"the pickle unfolds to more than {limits.nodes} values")
