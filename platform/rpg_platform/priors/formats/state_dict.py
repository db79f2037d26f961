"""Reads policies out of files of ``torch.save``: state dictionaries and checkpoints of many frameworks.

A file is flattened to names of tensors (``model_state_dict.actor.0.weight``). A row of ``state_layouts.LAYOUTS`` says
which names are the policy's, and what it computes of them; there is no code of its own for any framework. Nothing that
the policy might need is left out in silence: a name under the policy's dictionary that its row does not know, or a
normaliser that it does not use, refuses the file. What a file does not hold (its activation) is the framework's
default, which a note names.

Dimension letters: D observation size, A action dimensions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import gymnasium as gym
import numpy as np
import torch

from rpg_algorithms.addons import Array
from rpg_algorithms.maths.distributions import DistributionName
from rpg_platform.priors.files.inert import Instance
from rpg_platform.priors.files.inert_values import in_words
from rpg_platform.priors.files.torch_files import read_tensors
from rpg_platform.priors.formats.state_layouts import LAYOUTS, NOT_THE_POLICY, Layout, Statistics
from rpg_platform.priors.imported import Imported, ImportOptions, PriorImportError
from rpg_platform.priors.network.assemble import (
    NO_CLAMP,
    FreeLogStd,
    Linear,
    Moments,
    NetworkLogStd,
    Policy,
    assemble,
)
from rpg_platform.priors.network.layers import (
    as_array,
    known_activation,
    linear,
    moments_from_npz,
    named_spaces,
    some_names,
    with_activations,
)

_WRAPPED = re.compile(r"(module|_orig_mod)\.")  # by DataParallel and torch.compile
_OPTIMIZER = re.compile(r"\w*optim\w*")
_MEMORY = re.compile(r".*\b(weight|bias)_(ih|hh)_l\d+.*")
# What outside of a policy's dictionary may be a part of it: its normaliser or its noise.
_NORMALISER = re.compile(r"(norm|rms|mean_std|preprocessor|scaler)(?!.*(weight|bias)$)", re.IGNORECASE)
_NOISE = re.compile(r"log_?std|\bstd\b|sigma", re.IGNORECASE)
_OF_OTHERS = re.compile(r"reward|return", re.IGNORECASE)
_COUNTERS = ("iter", "epoch", "frame", "global_step", "timesteps")
_MAX_DEPTH, _MAX_NAMES, _MAX_ROOTS, _LONGEST_NAME = 5, 20_000, 200, 300
_EXPECTED = (
    "expected the policy of CleanRL, rsl_rl, rl_games, skrl or Tianshou, or the layers of a perceptron (0.weight, "
    "0.bias, 2.weight, …), which may stand in actor, policy, pi, net or model"
)


def read(path: Path, options: ImportOptions) -> Imported:
    """Reads the policy of a state dictionary or checkpoint.

    Raises:
        PriorImportError: another kind of file or network, or something that the file does not hold is not given.
    """
    where = str(path)
    if options.std is not None and not 0 < options.std < float("inf"):
        raise PriorImportError(f"std={options.std}: expected a positive number")
    content = _flattened(read_tensors(path), where)
    layouts = _layouts(content, where)
    spaces = named_spaces(options, f"a file of torch.save ({next(iter(layouts)).called})", where)
    found = _find(content, layouts, spaces[1], where)
    notes: list[str] = list(found.layout.notes)
    moments = found.moments(options, notes)
    policy, activation = _policy(found, spaces, options, notes)
    action_space = found.action_space()
    found.check_nothing_is_left(options.unnormalized or options.normalizer is not None)
    facts: dict[str, Any] = {"activation": activation or "identity"}
    facts |= {name: found.flat[name] for name in _COUNTERS if type(found.flat.get(name)) in (int, float)}
    network = assemble(replace(policy, moments=moments))
    return Imported(network, found.layout.name, None, action_space, facts=facts, notes=tuple(notes))


# ---- finding the policy -------------------------------------------------------------------------


class _Content(NamedTuple):
    """A file's values by their dotted names, and the beginnings of names that dictionaries stand for."""

    flat: dict[str, Any]
    roots: set[str]


def _flattened(content: Any, where: str) -> _Content:
    """Names everything in nested dictionaries, and what simple objects hold as attributes; leaves optimizers out."""
    flat, roots = dict[str, Any](), {""}

    def add(name: str, value: Any, depth: int) -> None:
        if isinstance(value, Instance):  # such as a RunningMeanStd; what its attributes hold is not followed
            simple = np.ndarray | float | int | None
            held = {key: each for key, each in value.attributes.items() if isinstance(each, simple)}
        elif isinstance(value, dict):
            held = {str(key): each for key, each in value.items() if isinstance(key, str | int)}
            roots.add(f"{name}." if name else "")
        elif isinstance(value, tuple | list) and depth == 0:
            held = {str(index): each for index, each in enumerate(value)}
        else:
            if name in flat:
                raise PriorImportError(f"{where}: two values are named {name[:100]!r}")
            if len(name) > _LONGEST_NAME or len(flat) >= _MAX_NAMES or len(roots) > _MAX_ROOTS:
                raise PriorImportError(f"{where}: more names, or longer ones, than a policy's file has")
            flat[name] = value
            return
        for key, each in held.items() if depth < _MAX_DEPTH else ():
            if not _OPTIMIZER.fullmatch(key):
                part = _WRAPPED.sub("", key)
                add(f"{name}.{part}" if name else part, each, depth + 1)

    add("", content, 0)
    if isinstance(content, Instance) or not any(isinstance(value, torch.Tensor) for value in flat.values()):
        held = some_names(content) if isinstance(content, dict) else in_words(content)
        raise PriorImportError(
            f"{where}: holds {held}, not a state dictionary. A whole pickled module cannot be read without executing "
            "code from the file: save its state_dict()"
        )
    return _Content(flat, {root for root in roots if not _beside_the_policy(root)})


def _beside_the_policy(name: str) -> bool:
    """Whether a name says that it belongs to a critic, a target, a teacher or an optimizer."""
    return any(NOT_THE_POLICY.fullmatch(part) for part in name.split(".") if part)


def _layouts(content: _Content, where: str) -> dict[Layout, list[str]]:
    """Finds the layouts that fit, in the table's order, each with the beginnings of its names, outermost first.

    Raises:
        PriorImportError: there is none, or what fits first is not read.
    """
    flat = content.flat
    names = {root: [each.removeprefix(root) for each in flat if each.startswith(root)] for root in content.roots}
    found: dict[Layout, list[str]] = {}
    for layout in LAYOUTS:
        fits = [root for root in names if layout.fits(names[root], root[:-1].rpartition(".")[2])]
        if fits and layout.refused is not None and not found:
            raise PriorImportError(f"{where}: {layout.called}: {layout.refused}")
        if fits and layout.refused is None:
            found[layout] = sorted(fits, key=lambda root: (root.count("."), root))
    if not found:
        raise PriorImportError(f"{where}: a state dictionary of {some_names(flat)}; {_EXPECTED}")
    return found


def _find(content: _Content, layouts: Mapping[Layout, list[str]], actions: gym.Space[Any], where: str) -> _Found:
    """Chooses the first layout that acts in the space. Raises PriorImportError where there is none, or two policies."""
    kind = "discrete" if isinstance(actions, gym.spaces.Discrete) else "box"
    for layout, roots in layouts.items():
        if layout.acts_in not in ("any", kind):
            continue
        outermost = [root for root in roots if root.count(".") == roots[0].count(".")]
        if len(outermost) > 1:
            listed = ", ".join(root[:-1] for root in outermost[:5])
            raise PriorImportError(f"{where}: which of {listed} is the policy? Save that state dictionary alone")
        return _Found(where, content.flat, outermost[0], layout)
    first = next(iter(layouts))
    wanted = "a Discrete space" if first.acts_in == "discrete" else "a Box"
    raise PriorImportError(f"{where}: {first.called} acts in {wanted}, the environment in {actions}")


# ---- what its names mean ------------------------------------------------------------------------


@dataclass
class _Found:
    """The policy of a file: where its names begin and what they mean; remembers which of them were used.

    Attributes:
        where: the file, for messages.
        flat: all values of the file by name.
        root: with which the policy's names begin.
        layout: their meaning.
        used: names that were read.
    """

    where: str
    flat: Mapping[str, Any]
    root: str
    layout: Layout
    used: set[str] = field(default_factory=set)

    @cached_property
    def names(self) -> dict[str, None]:
        """The names of the policy's dictionary, without the root, in their order."""
        return {name.removeprefix(self.root): None for name in self.flat if name.startswith(self.root)}

    def array(self, name: str) -> Array:
        """Reads one array of the policy's dictionary. Raises PriorImportError for anything else."""
        self.used.add(self.root + name)
        return as_array(self.flat[self.root + name], self.root + name, self.where)

    def linear(self, name: str) -> Linear:
        """Reads one linear layer; its bias may be missing. Raises PriorImportError."""
        if f"{name}.weight" not in self.names:
            raise PriorImportError(f"{self.where}: has no {name}.weight; it holds {some_names(self.flat)}")
        weight = self.array(f"{name}.weight")
        if weight.ndim == 1:
            raise PriorImportError(f"{self.where}: {name} is a normalisation between layers, which is not read here")
        bias = self.array(f"{name}.bias") if f"{name}.bias" in self.names else np.zeros(len(weight), np.float32)
        return linear(weight, bias, name, self.where)

    def layers(self) -> list[Linear]:
        """Reads the layers of the row in their order. Raises PriorImportError."""
        layers: list[Linear] = []
        for pattern in self.layout.layers:
            matches = [re.fullmatch(f"({pattern})\\.weight", name) for name in self.names]
            found = [match for match in matches if match and not _beside_the_policy(match[1])]
            if len({match[1].removesuffix(match[2] or "") if match.re.groups > 1 else match[1] for match in found}) > 1:
                listed = ", ".join(match[1] for match in found[:5])
                raise PriorImportError(f"{self.where}: which of {listed} is the policy? Save its layers alone")
            found.sort(key=lambda match: int(match[2]) if match.re.groups > 1 else 0)
            layers += [self.linear(match[1]) for match in found]
        return layers

    def free(self, pattern: str | None) -> Array | None:
        """Reads a free parameter ``[A]`` or of one number by its name's pattern; None where there is none."""
        found = [name for name in self.names if pattern is not None and re.fullmatch(pattern, name)]
        return self.array(found[0]).reshape(-1) if found else None

    def head(self) -> Linear | None:
        """Reads the linear layer of the log standard deviation; None where there is none."""
        pattern = self.layout.head
        found = [name for name in self.names if pattern is not None and re.fullmatch(f"{pattern}\\.weight", name)]
        return self.linear(found[0].removesuffix(".weight")) if found else None

    def action_space(self) -> gym.Space[Any] | None:
        """Reads the bounds that ``action_scale`` and ``action_bias`` hold; None without them."""
        if not {"action_scale", "action_bias"} <= set(self.names):
            return None
        scale, bias = (self.array(name).reshape(-1) for name in ("action_scale", "action_bias"))
        if scale.shape != bias.shape or scale.size == 0 or not (scale > 0).all():
            raise PriorImportError(
                f"{self.where}: action_scale {list(scale.shape)} and action_bias {list(bias.shape)} fit no bounds"
            )
        return gym.spaces.Box(bias - scale, bias + scale, scale.shape, np.float32)

    def moments(self, options: ImportOptions, notes: list[str]) -> Moments | None:
        """Reads the file's normaliser, or that of ``--normalizer``. Raises PriorImportError where there are both."""
        for statistics in self.layout.statistics:
            places = [f"{root}{place}." for place in statistics.at for root in dict.fromkeys((self.root, ""))]
            present = [at for at in places if f"{at}{statistics.mean}" in self.flat]
            if present and options.normalizer is not None:
                raise PriorImportError(
                    f"{self.where}: holds a normaliser of its own, {present[0][:-1]}; {options.normalizer} would be a "
                    "second one"
                )
            if present and options.unnormalized:
                self.used |= {name for name in self.flat if name.startswith(tuple(present))}
                notes.append(f"its normaliser {present[0][:-1]} is left out, as --normalizer none says")
                return None
            if present:  # of several, the others are a critic's
                self.used |= {name for name in self.flat if name.startswith(tuple(present))}
                notes.append(f"observations are normalised as in its {present[0][:-1]}")
                return self._moments(present[0], statistics)
        if options.normalizer is not None:
            moments = moments_from_npz(options.normalizer)
            clip = "not clipped" if moments.clip is None else f"clipped to ±{moments.clip:g}"
            notes.append(f"observations are normalised as in {options.normalizer.name}, and {clip}")
            return moments
        if not options.unnormalized:
            notes.append(self.layout.unnormalised)
        return None

    def _moments(self, at: str, statistics: Statistics) -> Moments:
        held = {name.removeprefix(at): name for name in self.flat if name.startswith(at)}

        def number(*names: str, default: float) -> float:
            for name in names:
                if name in held:
                    value = self.flat[held[name]]
                    found = np.zeros(1) if value is None else self._exact(held[name], f"{at}{name}")
                    if found.size == 1 and found[0] >= 0:
                        return float(found[0])
                    raise PriorImportError(f"{self.where}: {at}{name}: expected one number of at least 0")
            return default

        mean, var = (self._exact(held.get(name), f"{at}{name}") for name in (statistics.mean, statistics.var))
        if mean.shape != var.shape or mean.size == 0 or (var < 0).any():
            raise PriorImportError(
                f"{self.where}: {at[:-1]}: a mean {list(mean.shape)} and a variance {list(var.shape)}: expected one "
                "shape, variances of at least 0"
            )
        epsilon = number("eps", "epsilon", default=statistics.epsilon)
        clip = number("clip_max", default=statistics.clip or 0.0)
        if statistics.added_to == "std":
            var, epsilon = np.square(np.sqrt(var) + epsilon), 0.0
        if not (var + epsilon > 0).all():
            raise PriorImportError(f"{self.where}: {at[:-1]}: a variance of 0, which nothing keeps from division")
        count = number("count", "current_count", default=1.0)
        return Moments(mean, var, count, epsilon, clip if clip > 0 else None)

    def _exact(self, name: str | None, called: str) -> Array:
        """Reads an array in float64, ``[D]``."""
        value = None if name is None else self.flat[name]
        array = value.detach().double().numpy() if isinstance(value, torch.Tensor) else value
        if isinstance(array, int | float):
            array = np.array([array], dtype=np.float64)
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu" or not np.isfinite(array).all():
            raise PriorImportError(f"{self.where}: {called}: expected finite numbers")
        return array.astype(np.float64).reshape(-1)

    def check_nothing_is_left(self, normalised: bool) -> None:
        """Raises PriorImportError where a name that may matter to the policy was not used.

        Args:
            normalised: the user gives the normaliser, so that none of the file's is missed.
        """
        for name, value in self.flat.items():
            numbers = isinstance(value, np.ndarray) or (isinstance(value, torch.Tensor) and value.is_floating_point())
            if name in self.used or not numbers or _beside_the_policy(name) or _OF_OTHERS.search(name):
                continue
            if _NORMALISER.search(name):
                if not normalised:
                    raise PriorImportError(
                        f"{self.where}: has {name[:100]!r}, which may belong to a normaliser of observations, but to "
                        f"none that {self.layout.called} has: give it with --normalizer stats.npz (arrays mean and var)"
                    )
            elif name.startswith(self.root) or _NOISE.search(name):
                raise PriorImportError(
                    f"{self.where}: has {name[:100]!r}, which {self.layout.called} as read here has not: it may "
                    "compute something else; save the policy's layers alone, or bring it as module:function"
                )


# ---- what the policy is -------------------------------------------------------------------------

_Noise = FreeLogStd | NetworkLogStd | None


def _policy(
    found: _Found, spaces: tuple[gym.Space[Any], gym.Space[Any]], options: ImportOptions, notes: list[str]
) -> tuple[Policy, str | None]:
    """Makes the policy without its normaliser; returns it and the activation of its hidden layers."""
    layout, where = found.layout, found.where
    if any(_MEMORY.fullmatch(name) for name in found.names if not _beside_the_policy(name)):
        raise PriorImportError(
            f"{where}: a policy with memory (recurrent layers): a prior's density may depend on the observation alone"
        )
    layers, missing = found.layers(), list[str]()
    activation = _activation(found, options, len(layers), missing, notes)
    scale = shift = None
    family: DistributionName = "categorical"
    noise: _Noise = None
    if isinstance(spaces[1], gym.spaces.Discrete):
        if options.std is not None or options.second_output is not None:
            raise PriorImportError(f"{where}: --std and --second-output are for continuous actions, not {spaces[1]}")
        if layout.acts_in == "any":
            notes.append("its outputs are taken for logits; action values (of DQN) would be no policy")
    else:
        family = _family(found, options, notes)
        layers, noise = _noise(found, layers, math.prod(spaces[1].shape or ()), options, missing, notes)
        if layout.scaled and family == "gaussian":
            scale, shift = _to_bounds(found, spaces[1], notes)
    if missing:
        raise PriorImportError(f"{where}: {layout.called}: say {', and '.join(missing)}")
    steps = with_activations(layers, activation, after_last=False)
    return Policy(where, steps, family, *spaces, noise, None, scale, shift), activation


def _activation(found: _Found, options: ImportOptions, layers: int, missing: list[str], notes: list[str]) -> str | None:
    """Returns the activation of the hidden layers: that of the user, else the framework's, which a note names."""
    default = found.layout.activation
    if options.activation is not None:
        return known_activation(options.activation, found.where)
    if layers == 1:
        return None
    if default is None:
        missing.append("which activation its hidden layers have, as it is no framework's: --activation relu")
    else:
        notes.append(
            f"the file does not name the activation of its hidden layers: {default} is taken, the default of "
            f"{found.layout.framework}; --activation says otherwise"
        )
    return default


def _family(found: _Found, options: ImportOptions, notes: list[str]) -> Literal["gaussian", "squashed_gaussian"]:
    family, asked = found.layout.family, options.distribution
    if family is not None and asked not in (None, family):
        raise PriorImportError(
            f"{found.where}: --distribution {asked}: the policy of {found.layout.called} is {family}"
        )
    if family is None and asked is None:
        notes.append(
            "taken for a gaussian, whose samples are clipped for the environment; if its actions are the tanh of a "
            "Gaussian's samples, say --distribution squashed_gaussian"
        )
    return family or asked or "gaussian"


def _noise(
    found: _Found, layers: list[Linear], a: int, options: ImportOptions, missing: list[str], notes: list[str]
) -> tuple[list[Linear], _Noise]:
    """Finds the standard deviation of the actions: a layer, a parameter, half of the outputs, or what the user gives.

    Returns:
        The layers, of which the last gives the log standard deviation too where that depends on the state, and the
        standard deviation; None where it is among what is ``missing``.
    """
    layout, where = found.layout, found.where
    low, high = layout.bounds or (-NO_CLAMP, NO_CLAMP)
    head, log_std, std = found.head(), found.free(layout.log_std), found.free(layout.std)
    stored = head is not None or log_std is not None or std is not None
    if sum(each is not None for each in (head, log_std, std)) > 1:
        raise PriorImportError(f"{where}: holds two standard deviations of its actions; expected one")
    outputs = len(layers[-1].bias)
    halves = not stored and outputs == 2 * a
    if options.std is not None and (stored or halves):
        raise PriorImportError(f"{where}: --std is for deterministic policies; this one has its own standard deviation")
    if options.second_output is not None and not (halves or (stored and layout.sigma)):
        raise PriorImportError(f"{where}: --second-output: the file itself says what its standard deviation is")
    if stored and layout.sigma and options.second_output is None:
        notes.append(
            "its sigma is taken for the logarithm of the standard deviation, as in the model continuous_a2c_logstd; "
            "--second-output std says otherwise"
        )
    by = "log" if options.second_output == "std" else layout.by
    if head is not None:
        if head.weight.shape != layers[-1].weight.shape:
            raise PriorImportError(
                f"{where}: the last layer has the shape {list(layers[-1].weight.shape)} and that of the standard "
                f"deviation {list(head.weight.shape)}: expected one shape"
            )
        joined = (np.concatenate(parts) for parts in zip(layers[-1], head, strict=True))
        return [*layers[:-1], Linear(*joined)], NetworkLogStd(low, high, by)
    if stored:
        if std is None and by == "log":
            log_std, std = None, log_std
        return layers, FreeLogStd(_free(found, log_std, std, a, (low, high)))
    if halves:
        if options.second_output is None:
            missing.append(f"what the second half of its {outputs} outputs is: --second-output log_std (or std)")
            return layers, None
        return layers, NetworkLogStd(low, high, by)
    if outputs != a:
        raise PriorImportError(
            f"{where}: its network gives {outputs} numbers; {a} action dimensions need {a}, or {2 * a} with "
            "standard deviations"
        )
    if options.std is None:
        before = " before tanh" if layout.tanh else ""
        missing.append(
            f"what standard deviation{before} it acts with, as a deterministic policy has no density, and RPG needs "
            "that of a prior: --std 0.1"
        )
        return layers, None
    return layers, FreeLogStd(np.full(a, math.log(options.std), dtype=np.float32))


def _free(found: _Found, log_std: Array | None, std: Array | None, a: int, bounds: tuple[float, float]) -> Array:
    """Returns a free log standard deviation ``[A]``, within its bounds, of either form."""
    if log_std is None:
        assert std is not None
        if found.layout.bounds is not None:
            std = np.clip(std, *np.exp(bounds))
        if not (std > 0).all():
            raise PriorImportError(
                f"{found.where}: its standard deviation is {std[:5].tolist()}: expected positive numbers"
            )
        log_std = np.log(std)
    values = np.clip(log_std, *bounds)
    return np.broadcast_to(values, (a,)) if values.size == 1 else values


def _to_bounds(found: _Found, space: gym.Space[Any], notes: list[str]) -> tuple[Array | None, Array | None]:
    """Returns scale and shift from -1 to 1 to the bounds of the actions; None where there are none or they are so."""
    if not isinstance(space, gym.spaces.Box) or not space.is_bounded():
        return None, None
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    if np.all(low == -1.0) and np.all(high == 1.0):
        return None, None
    notes.append(f"its actions in -1 to 1 are rescaled to the environment's bounds, as {found.layout.framework} does")
    return 0.5 * (high - low), 0.5 * (high + low)
