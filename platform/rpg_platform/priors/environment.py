"""Finds the environment that a prior acts in: the user names it, or the prior's card does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym

from rpg_algorithms.policies.bundle import PriorCard
from rpg_platform.spec.yaml_file import find_task
from rpg_platform.tasks.task import Nothing, Task


def bare_task(env_id: str, env_kwargs: Mapping[str, Any] | None = None) -> Task:
    """Makes a task without an add-on of an environment."""
    return Task(env_id, env_id, Nothing(), "–", Nothing(), "the environment's own reward alone", dict(env_kwargs or {}))


def task_of_card(card: PriorCard) -> Task:
    """Makes a task without an add-on of the environment that a card names.

    A card may come from anywhere, so it chooses among registered environments only: an id such as ``module:Env-v0``
    would import a module, and text among the keyword arguments may name a file.

    Raises:
        ValueError: the card names no registered environment, or arguments other than numbers and truth values.
    """
    plain = all(isinstance(value, bool | int | float) for value in card.env_kwargs.values())
    if card.env_id not in gym.registry or not plain:
        with_kwargs = f" with {card.env_kwargs}" if card.env_kwargs else ""
        raise ValueError(
            f"prior {card.name!r}: its card names the environment {card.env_id!r}{with_kwargs}, which is not made on a "
            "card's word; name it yourself: --env ID or --task NAME"
        )
    return bare_task(card.env_id, card.env_kwargs)


def chosen_task(
    task: str | None, env_id: str | None, card: PriorCard, env_kwargs: Mapping[str, Any] | None = None
) -> Task:
    """Makes the task of ``--task``, or of ``--env`` and its arguments; without either, of the card's environment.

    Raises:
        ValueError: they do not go together, or there is no such task or environment.
    """
    if task is not None and env_id is not None:
        raise ValueError(f"--task {task} and --env {env_id}: give one of them; a task has its own environment")
    if env_kwargs and env_id is None:
        raise ValueError("--env-kwargs without --env: say which environment they are for")
    if task is not None:
        return find_task(task)
    if env_id is None:
        return task_of_card(card)
    return bare_task(env_id, env_kwargs or (card.env_kwargs if env_id == card.env_id else None))
