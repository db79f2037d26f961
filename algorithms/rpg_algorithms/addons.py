"""The interface of add-on rewards r_R(s, a, s')."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
"""A numpy array; the docstring of what takes or gives it says its shape and what it holds."""


@runtime_checkable
class AddonReward(Protocol):
    """A vectorised reward, evaluated once per rollout for all its steps."""

    @property
    def info_keys(self) -> tuple[str, ...]:
        """Names of the entries of the environment's ``info`` that it reads; the env runner records only these."""

    def __call__(self, obs: Array, actions: Array, next_obs: Array, infos: Mapping[str, Array]) -> Array:
        """Rewards per step.

        Args:
            obs: ``[B, D]`` observations as the policy sees them (flattened, not normalised).
            actions: ``[B, A]`` (``[B]`` for Discrete) actions as the environment received them (clipped).
            next_obs: ``[B, D]`` observations after the step; the final one at the end of an episode.
            infos: ``info_keys`` → ``[B]``.

        Returns:
            ``[B]`` reward per step.
        """


@runtime_checkable
class CompositeReward(AddonReward, Protocol):
    """An add-on reward that is the sum of named parts, each of which is reported apart.

    Attributes:
        part_names: names of the parts: letters, digits, ``-`` and ``_``.
    """

    part_names: tuple[str, ...]

    def parts(self, obs: Array, actions: Array, next_obs: Array, infos: Mapping[str, Array]) -> Sequence[Array]:
        """Each part's ``[B]``, in the order of ``part_names``; the whole is their sum."""


def part_names(addon: Any) -> tuple[str, ...]:
    """The names of the parts of an add-on reward; none where it is one."""
    return tuple(getattr(addon, "part_names", ()))


def resolve_addon(addon: Any) -> AddonReward:
    """An add-on reward from a callable or a ``module:function`` string; a plain function reads no infos.

    Raises:
        ValueError: it cannot be imported or called.
    """
    if isinstance(addon, str):
        module_name, _, attribute = addon.partition(":")
        if not attribute:
            raise ValueError(f"addon_reward={addon!r}: expected 'module:function'")
        try:
            addon = getattr(importlib.import_module(module_name), attribute)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"addon_reward={module_name}:{attribute}: {error}") from error
    if not callable(addon):
        raise ValueError(f"addon_reward={addon!r}: expected a callable or 'module:function'")
    if not hasattr(addon, "info_keys"):
        return _WithoutInfos(addon)
    return addon  # type: ignore[no-any-return]


class _WithoutInfos:
    """A plain function as an add-on reward that reads no infos."""

    info_keys: tuple[str, ...] = ()

    def __init__(self, function: Any) -> None:
        self.function = function

    def __call__(self, obs: Array, actions: Array, next_obs: Array, infos: Mapping[str, Array]) -> Array:
        result: Array = self.function(obs, actions, next_obs, infos)
        return result
