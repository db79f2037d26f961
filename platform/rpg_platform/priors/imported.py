"""Defines what every reader of a format takes (options), returns (a policy) and raises."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import gymnasium as gym

    from rpg_algorithms.policies.bundle import Ancestor
    from rpg_algorithms.policies.network import PolicyNetwork


class PriorImportError(ValueError):
    """Refuses a source: names the file, what is wrong with it and what was expected.

    Messages quote the source, so their unprintable characters are escaped.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def printable(text: str) -> str:
    """Escapes whatever in ``text`` a terminal would act on, such as escape sequences and changes of direction."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


@dataclass(frozen=True)
class ImportOptions:
    """The user's word on a source, which may not say enough itself.

    Attributes:
        env_id: gymnasium id of the environment that the policy acts in.
        env_kwargs: keyword arguments of ``gymnasium.make``.
        std: standard deviation, before tanh and per action dimension, of a policy that is deterministic in the source.
        normalizer: file with the observation normaliser, where it is not in the source (VecNormalize).
        activation: activation of the hidden layers (a key of ``ACTIVATIONS``), where the source
            does not say.
        module: id of the RLModule to take from a checkpoint with several.
        distribution: family of the actions (``gaussian`` or ``squashed_gaussian``), where the source does not say.
        second_output: what a network's second output is, ``log_std`` or ``std``, where its name does not say.
        observation_space, action_space: of the environment that the user names; None where none is named. For formats
            that store no spaces (``sources`` compares them with those that a source does store).
    """

    env_id: str | None = None
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    std: float | None = None
    normalizer: Path | None = None
    activation: str | None = None
    module: str | None = None
    distribution: Literal["gaussian", "squashed_gaussian"] | None = None
    second_output: Literal["log_std", "std"] | None = None
    observation_space: gym.Space[Any] | None = None
    action_space: gym.Space[Any] | None = None


@dataclass(frozen=True)
class Imported:
    """The policy that a reader found, and all that the source says about it.

    Attributes:
        network: the policy, weights loaded and normaliser buffers filled.
        format: what was read, such as ``sb3/ppo``.
        observation_space, action_space: as the source stores them; None where it stores none.
        env_id: the environment as the source names it; None where it does not.
        env_kwargs: its keyword arguments, as far as the source names them.
        alpha: entropy temperature that the policy was trained at, reward per nat; None where there is none or it is
            unknown.
        facts: JSON-able details of the source (versions, timesteps, ...), for the card's ``made_by["import"]``.
        notes: lines that the user should read.
        parents: content hashes, where the source is itself a bundle.
        lineage: what is known of the parents, see ``PriorCard.lineage``.
    """

    network: PolicyNetwork
    format: str
    observation_space: gym.Space[Any] | None
    action_space: gym.Space[Any] | None
    env_id: str | None = None
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    alpha: float | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    parents: tuple[str, ...] = ()
    lineage: tuple[Ancestor, ...] = ()
