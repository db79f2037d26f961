"""Finds the environment that a prior acts in: the user names it, or the prior's card does."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym

from rpg_algorithms.policies.bundle import PriorCard
from rpg_platform.priors.imported import PriorImportError
from rpg_platform.spec.yaml_file import find_task
from rpg_platform.tasks.task import Nothing, Task

Wrappers = Sequence[tuple[str, Mapping[str, Any]]]
"""``module:Class`` of each wrapper with its keyword arguments, innermost first."""


def bare_task(env_id: str, env_kwargs: Mapping[str, Any] | None = None, wrappers: Wrappers = ()) -> Task:
    """Makes a task without an add-on of an environment."""
    description = "the environment's own reward alone"
    return Task(env_id, env_id, Nothing(), "–", Nothing(), description, dict(env_kwargs or {}), tuple(wrappers))


def wrapper(text: str) -> tuple[str, Mapping[str, Any]]:
    """Reads ``module:Class`` or ``module:Class={"argument": value}``, as ``--wrapper`` takes it.

    Raises:
        ValueError: it is neither.
    """
    name, given, arguments = text.partition("=")
    module, _, attribute = name.strip().partition(":")
    expected = (
        'expected module:Class or module:Class={"argument": value}, such as gymnasium.wrappers:FlattenObservation'
    )
    if not module or not attribute:
        raise ValueError(f"--wrapper {text!r}: {expected}")
    try:
        read = json.loads(arguments) if given else {}
    except json.JSONDecodeError as error:
        raise ValueError(f"--wrapper {text!r}: its arguments are not JSON: {error}; {expected}") from error
    if not isinstance(read, dict):
        raise ValueError(f"--wrapper {text!r}: its arguments are {type(read).__name__}; {expected}")
    return name.strip(), read


def task_of_card(card: PriorCard) -> Task:
    """Makes a task without an add-on of the environment that a card names.

    A card may come from anywhere, so it chooses among registered environments only: an id such as ``module:Env-v0``
    would import a module, and text among the keyword arguments may name a file.

    Raises:
        ValueError: the card names no registered environment, arguments other than numbers and truth values, or
            wrappers.
    """
    if not card.env_id:
        raise ValueError(
            f"prior {card.name!r}: it was imported by the spaces of its source alone, and its card names no "
            "environment: name one, --env ID or --task NAME"
        )
    if wrappers := wrappers_of(card):
        raise ValueError(
            f"prior {card.name!r}: it acts in {card.env_id} in the wrappers {', '.join(wrappers)}, which are not made "
            "on a card's word; name them yourself: --env ID --wrapper MODULE:CLASS, or --task FILE"
        )
    plain = all(isinstance(value, bool | int | float) for value in card.env_kwargs.values())
    if card.env_id not in gym.registry or not plain:
        with_kwargs = f" with {card.env_kwargs}" if card.env_kwargs else ""
        raise ValueError(
            f"prior {card.name!r}: its card names the environment {card.env_id!r}{with_kwargs}, which is not made on a "
            "card's word; name it yourself: --env ID or --task NAME"
        )
    return bare_task(card.env_id, card.env_kwargs)


def wrappers_of(card: PriorCard) -> list[str]:
    """Names the wrappers that a prior was imported with, innermost first."""
    imported = card.made_by.get("import")
    wrappers = imported.get("wrappers") if isinstance(imported, dict) else None
    return [str(name) for name in wrappers] if isinstance(wrappers, list | dict) else []


def chosen_task(
    task: str | None,
    env_id: str | None,
    card: PriorCard,
    env_kwargs: Mapping[str, Any] | None = None,
    wrappers: Wrappers = (),
) -> Task:
    """Makes the task of ``--task``, or of ``--env`` and its arguments; without either, of the card's environment.

    Raises:
        ValueError: they do not go together, or there is no such task or environment.
    """
    if task is not None and env_id is not None:
        raise ValueError(f"--task {task} and --env {env_id}: give one of them; a task has its own environment")
    check_named(env_id, env_kwargs, wrappers)
    if task is not None:
        return find_task(task)
    if env_id is None:
        return task_of_card(card)
    return bare_task(env_id, env_kwargs or (card.env_kwargs if env_id == card.env_id else None), wrappers)


def check_named(env_id: str | None, env_kwargs: Mapping[str, Any] | None, wrappers: Wrappers) -> None:
    """Raises PriorImportError where arguments or wrappers are given for no environment."""
    for given, option in ((env_kwargs, "--env-kwargs"), (wrappers, "--wrapper")):
        if given and env_id is None:
            raise PriorImportError(f"{option} without --env: say which environment it is for (a task has its own)")
