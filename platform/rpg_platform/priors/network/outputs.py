"""Tells which of a network's outputs are its policy: by their names, else by place and shape, and says what it took.

Exports hold more than a policy: values, recurrent states, log-probabilities. An output so named is never taken for a
standard deviation, and neither is one that may as well be a value: then the user has to say what it is.

Dimension letters: B batch, D observation size, A action dimensions, K actions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch

from rpg_algorithms.policies.network import NetworkSpec, observation_size, spec_for_spaces
from rpg_platform.priors.imported import ImportOptions, PriorImportError
from rpg_platform.priors.network.graph_builder import BATCH, Constant, GraphBuilder, Operand, Symbol, Value
from rpg_platform.priors.network.layers import named_spaces
from rpg_platform.priors.network.simplify import affine, constant_of, is_op, simplified

MEMORY = (
    "a policy with a memory, whose actions depend on what it saw before; RPG needs a prior that acts by the "
    "observation alone"
)
MAX_OUTPUTS = 100
Role = Literal["mean", "action", "log_std", "std", "logits", "probabilities", "log_prob", "value", "memory", "other"]
SecondOutput = Literal["log_std", "std"]

_STD = {"std", "stddev", "stdev", "deviation", "sigma", "scale"}
_ROLES: tuple[tuple[Role, set[str]], ...] = (
    ("log_std", {"logstd", "logsigma", "logscale"}),
    ("log_prob", {"logprob", "logp", "logpi", "logprobability"}),
    ("other", {"entropy", "kl", "logvar", "var", "variance", "cov", "covariance"}),
    ("logits", {"logit"}),
    ("probabilities", {"prob", "probability", "probabilitie"}),
    ("value", {"value", "critic", "baseline", "vf", "qf", "vpred", "qvalue", "advantage"}),
    ("std", _STD),
    ("memory", {"state", "hidden", "cell", "memory", "recurrent", "rnn", "lstm", "gru", "carry"}),
    ("mean", {"mean", "mu", "loc"}),
    ("action", {"action", "act"}),
)
_LETTERS: dict[str, Role] = {
    **dict.fromkeys(("v", "q"), "value"),
    **dict.fromkeys(("h", "hn", "hx", "c", "cn", "cx"), "memory"),
}
_FILLERS = {"in", "out", "n", "next", "new"}


def role_of(name: str | None) -> Role | None:
    """Returns what a name says that an output (or a further input) is; None where it says nothing."""
    if name is None:
        return None
    words = re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())
    known = {word[:-1] if len(word) > 2 and word.endswith("s") else word for word in words}
    if "log" in known:
        if known & _STD:
            return "log_std"
        if known & {"prob", "probability", "probabilitie", "p", "pi"}:
            return "log_prob"
    letters = known - _FILLERS
    if len(letters) == 1 and (letter := letters.copy().pop()) in _LETTERS:
        return _LETTERS[letter]
    return next((role for role, marks in _ROLES if known & marks), None)


@dataclass(frozen=True)
class Output:
    """One output of a network.

    Attributes:
        name: what the file calls it; None where it does not.
        value: returns its value. Raises PriorImportError where no graph can hold it, which matters only if it is used.
    """

    name: str | None
    value: Callable[[], Value]

    @property
    def role(self) -> Role | None:
        """What its name says that it is; None where it says nothing."""
        return role_of(self.name)


@dataclass(frozen=True)
class GraphFile:
    """A file that describes a graph, and the user's word on it.

    Attributes:
        where: the file's name, for messages.
        what: the kind of file, such as ``a TorchScript file``.
        options: what the user said about it.
    """

    where: str
    what: str
    options: ImportOptions

    def spaces(self) -> tuple[gym.Space[Any], gym.Space[Any]]:
        """Returns the spaces of the environment that the user named. Raises PriorImportError without one."""
        return named_spaces(self.options, self.what, self.where)

    @property
    def observation_size(self) -> int:
        """D of the environment that the user named. Raises PriorImportError without one, or for other spaces."""
        try:
            return observation_size(self.spaces()[0])
        except ValueError as error:
            raise (
                error if isinstance(error, PriorImportError) else PriorImportError(f"{self.where}: {error}")
            ) from error

    def base(self) -> NetworkSpec:
        """Returns the specification as far as spaces and options fix it."""
        try:
            return spec_for_spaces(*self.spaces(), self.options.distribution)
        except ValueError as error:
            raise PriorImportError(f"{self.where}: {error}") from error


@dataclass(frozen=True)
class Meaning:
    """What a network's outputs mean.

    Attributes:
        spec: the specification as far as the outputs fix it.
        parts: logits; or mean and log standard deviation.
        places: which outputs they come from: the one of the logits or the action, or the two of mean and second.
        second: what the second output, or second half of the only one, is; None where there is none.
        probabilities: the output holds probabilities, whose logarithm is taken.
        squashed: the output holds tanh(mean) scaled to the bounds of the action space, which is taken off.
        notes: lines that the user should read.
    """

    spec: NetworkSpec
    parts: tuple[Value, ...]
    places: tuple[int, ...]
    second: SecondOutput | None = None
    probabilities: bool = False
    squashed: bool = False
    notes: tuple[str, ...] = field(default=())


def meaning_of(outputs: Sequence[Output], builder: GraphBuilder, source: GraphFile) -> Meaning:
    """Finds the policy among a network's outputs.

    These are read: logits ``[B, K]`` or probabilities; mean and (log) standard deviation, each ``[B, A]``, or both in
    one ``[B, 2A]``; and actions ``[B, A]`` alone, where the user gives a standard deviation. Others may stand beside
    them.

    Raises:
        PriorImportError: there is no policy among them, they may mean several things, or no graph can hold them.
        GraphError: they are larger than a graph may be.
    """
    if len(outputs) > MAX_OUTPUTS:
        raise PriorImportError(f"{source.where}: {len(outputs)} outputs, more than the {MAX_OUTPUTS} that are read")
    return _Reading(outputs, builder, source).meaning()


class _Reading:
    """Reads the outputs of one network."""

    def __init__(self, outputs: Sequence[Output], builder: GraphBuilder, source: GraphFile) -> None:
        self.outputs, self.builder, self.source = outputs, builder, source
        self.spec, self.options = source.base(), source.options
        self.roles = [each.role for each in outputs]

    def meaning(self) -> Meaning:
        return self._categorical() if self.spec.distribution == "categorical" else self._continuous()

    # --- words

    def _refusal(self, message: str) -> PriorImportError:
        return PriorImportError(f"{self.source.where}: {message}")

    def _shapes(self, places: Sequence[int] | None = None) -> str:
        """Describes outputs, such as ``mu [B, 3] and value [B, 1]``."""
        texts = []
        for each in self.outputs if places is None else [self.outputs[place] for place in places]:
            name = "" if each.name is None else f"{each.name[:60]} "
            try:
                text = ", ".join("B" if size is None else str(size) for size in each.value().shape)
            except PriorImportError:
                texts.append(f"{name}(not what a graph can hold)")
            else:
                texts.append(f"{name}[{text}]")
        return " and ".join(texts) or "nothing"

    def _expected(self) -> str:
        a = self.spec.action_size
        return f"expected mean and log_std, both [B, {a}] or in one [B, {2 * a}]"

    def _called(self, place: int) -> str:
        name = self.outputs[place].name
        return f"its output {place + 1}" if name is None else f"its output {name[:60]!r}"

    def _left_out(self, used: Sequence[int]) -> str:
        rest = [(place, each.name) for place, each in enumerate(self.outputs) if place not in used]
        shown = [f"output {place + 1}" if name is None else repr(name[:60]) for place, name in rest]
        return f"; left out: {', '.join(shown)}" if shown else ""

    def _unnamed(self) -> list[int]:
        return [place for place, role in enumerate(self.roles) if role is None]

    def _of_role(self, *roles: Role) -> list[int]:
        return [place for role in roles for place, each in enumerate(self.roles) if each == role]

    # --- discrete actions

    def _categorical(self) -> Meaning:
        size = self.spec.action_size
        if self.options.std is not None:
            raise self._refusal("--std is for continuous actions")
        fitting = self._of_size(self._of_role("logits", "log_prob", "probabilities"))[:1]
        fitting = fitting or self._of_size(sorted([*self._unnamed(), *self._of_role("action")]))
        if len(fitting) != 1:
            values = "; the values of a Q-network are no policy" if not fitting and "value" in self.roles else ""
            raise self._refusal(f"returns {self._shapes()}; expected logits [B, {size}]{values}")
        (place,) = fitting
        logits = self.outputs[place].value()
        probabilities = self.roles[place] == "probabilities" or is_op(logits, "softmax")
        left, notes = self._left_out(fitting), []
        if probabilities:
            notes.append(f"returns probabilities: their logarithm is taken{left}")
            logits = self.builder.unary("log", logits)
        elif self.roles[place] is None and _is_positive(self._simple(logits)):
            raise self._refusal(
                f"every number of {self._called(place)} is positive, as probabilities are and logits seldom; its name "
                "has to say which they are: logits or probabilities"
            )
        elif self.roles[place] not in ("logits", "log_prob") or left:
            notes.append(f"takes {self._called(place)} for logits (those of a Q-network would be no policy){left}")
        return Meaning(self.spec, (logits,), (place,), probabilities=probabilities, notes=tuple(notes))

    def _of_size(self, places: Sequence[int]) -> list[int]:
        """Returns those of shape ``[B, K]``. Raises PriorImportError where none is and no graph holds one."""
        found, error = [], None
        for place in places:
            try:
                if self.outputs[place].value().shape == (None, self.spec.action_size):
                    found.append(place)
            except PriorImportError as caught:
                error = error or caught
        if not found and error is not None:
            raise error
        return found

    # --- continuous actions

    def _continuous(self) -> Meaning:
        a = self.spec.action_size
        first = self._first()
        mean = self.outputs[first].value()
        if mean.shape == (None, 2 * a) and self.roles[first] is None and not self._of_role("log_std", "std"):
            return self._halves(first, mean)
        if mean.shape != (None, a):
            raise self._refusal(f"returns {self._shapes()}; {self._expected()}")
        if self.options.std is not None:
            return self._deterministic(first)
        named = self._of_role("log_std", "std")[:1]
        second = named[0] if named else self._guessed(first)
        if second is None:
            return self._deterministic(first)
        form = self.options.second_output or ("std" if self.roles[second] == "std" else "log_std")
        value = self._log_std(self.outputs[second].value(), form, f"{self._called(second)}", bool(named))
        note = f"takes {self._called(first)} for the mean and {self._called(second)} for the {_WORDS[form]}"
        if not named and self.options.second_output is None:
            note += " (--second-output std, if it is the standard deviation itself)"
        before_tanh = self._before_tanh(mean) if self.spec.distribution == "squashed_gaussian" else None
        note += "" if before_tanh is None else "; the mean's own tanh, scaled to the bounds, is taken off"
        notes = (note + self._left_out((first, second)), *self._family())
        parts, squashed = (mean if before_tanh is None else before_tanh, value), before_tanh is not None
        return Meaning(self.spec, parts, (first, second), form, squashed=squashed, notes=notes)

    def _first(self) -> int:
        """Finds the output that is the mean or the action."""
        actions = self._of_role("action")
        actions.sort(key=lambda place: "deterministic" not in str(self.outputs[place].name).lower())
        found = [*self._of_role("mean"), *actions, *self._unnamed()]
        if not found:
            raise self._refusal(f"returns {self._shapes()}, none of which is an action; {self._expected()}")
        return found[0]

    def _family(self) -> tuple[str, ...]:
        if self.options.distribution is not None:
            return ()
        return (
            "taken for a gaussian, whose samples are clipped for the environment; if its actions are the tanh of a "
            "Gaussian's samples, say --distribution squashed_gaussian",
        )

    def _halves(self, place: int, both: Value) -> Meaning:
        a = self.spec.action_size
        if self.options.std is not None:
            raise self._refusal(f"--std is for deterministic policies; this one returns {self._shapes([place])}")
        form: SecondOutput = self.options.second_output or "log_std"
        mean, second = (self.builder.slice(both, 1, start, start + a) for start in (0, a))
        second = self._log_std(second, form, f"the second half of {self._called(place)}", False)
        note = f"returns one tensor of {2 * a}: its first half is taken for the mean, its second for {form}"
        notes = (note + self._left_out([place]), *self._family())
        return Meaning(self.spec, (mean, second), (place,), form, notes=notes)

    def _log_std(self, value: Value, form: SecondOutput, called: str, named: bool) -> Value:
        """Returns the log standard deviation ``[B, A]`` of one that is given as ``form``."""
        if form == "log_std" and not named and self.options.second_output is None and _is_positive(self._simple(value)):
            raise self._refusal(
                f"every number of {called} is positive, as standard deviations are and their logarithms seldom; say "
                "which it is: --second-output std or --second-output log_std"
            )
        if form == "std":
            value = self.builder.unary("log", value)
        return self.builder.expand(value, [BATCH, self.spec.action_size])

    def _simple(self, value: Value) -> Value:
        return simplified([value], self.builder)[0]

    def _guessed(self, first: int) -> int | None:
        """Finds the standard deviation among outputs whose names say nothing; None where none has its shape.

        A value has one number per observation. What may be either is taken for a standard deviation only if the user
        says so (``--second-output``), or if it is the same for all observations, as no value is.
        """
        a, one, all_ = self.spec.action_size, [], []
        for place in self._unnamed():
            if place == first:
                continue
            shape = self.outputs[place].value().shape
            if shape in ((None, a), (1, a), (a,)):
                all_.append(place)
            elif shape in ((None, 1), (1, 1), (1,), ()):
                one.append(place)
        found = all_ or one
        if not found:
            return None
        if a > 1 and len(all_) > 1:
            raise self._refusal(
                f"returns {self._shapes()}; {self._expected()}, or names of outputs that say which is which"
            )
        if self.options.second_output is not None or (a > 1 and all_):
            return found[0]
        constant = [place for place in found if constant_of(self._simple(self.outputs[place].value())) is not None]
        if constant:
            return constant[0]
        numbers = "one number per observation" if a == 1 else f"one number for {a} actions"
        raise self._refusal(
            f"returns {self._shapes()}; {self._called(found[0])} has {numbers}, as a value has, and no name that says "
            "whether it is one: --second-output log_std (or std) takes it for the standard deviation, --std 0.1 leaves "
            "it out and gives one to the first output alone"
        )

    # --- deterministic policies

    def _deterministic(self, place: int) -> Meaning:
        """Puts a Gaussian of ``--std`` around a policy that returns its action, before tanh where it ends in one."""
        action, std, family = self.outputs[place].value(), self.options.std, self.options.distribution
        left = self._left_out([place])
        if std is None:
            raise self._refusal(
                f"returns actions alone, {self._shapes([place])}{left.replace(';', ',')}: a deterministic policy has "
                "no density, and RPG needs that of a prior; give it a standard deviation (before tanh, where it ends "
                "in one) with --std, such as --std 0.1"
            )
        if not 0.0 < std < math.inf:
            raise PriorImportError(f"std={std}: expected a positive number")
        log_std = Constant(torch.full((self.spec.action_size,), math.log(std)), "log_std", True)
        before_tanh = None if family == "gaussian" else self._before_tanh(action)
        what = f"takes {self._called(place)} for actions" if left else "returns actions alone"
        if before_tanh is not None:
            note = f"{what}: a squashed_gaussian with standard deviation {std:g} before tanh{left}"
            spec = replace(self.spec, distribution="squashed_gaussian")
            return Meaning(spec, (before_tanh, log_std), (place,), squashed=True, notes=(note,))
        if family == "squashed_gaussian":
            raise self._refusal("its actions are no tanh scaled to the bounds of the action space")
        note = f"{what}: a gaussian around them with standard deviation {std:g}{left}"
        return Meaning(self.spec, (action, log_std), (place,), notes=(note,))

    def _before_tanh(self, action: Value) -> Value | None:
        """Finds u where the action is tanh(u) scaled to the bounds of the action space; None for other actions."""
        found = affine(self._simple(action), lambda x: x.op == "tanh")
        if found is None or self.spec.action_low is None or self.spec.action_high is None:
            return None
        tanh, scale, shift = found
        low, high = np.array(self.spec.action_low), np.array(self.spec.action_high)
        fits = np.allclose(scale.numpy(), 0.5 * (high - low)) and np.allclose(
            shift.numpy(), 0.5 * (high + low), atol=1e-6
        )
        u = tanh.inputs[0]
        return u if fits and isinstance(u, Symbol) else None


_WORDS = {"log_std": "log standard deviation", "std": "standard deviation"}


_KEEP_SIGN = {
    *("add", "mul", "div", "minimum", "sum", "mean", "max", "min"),
    *("reshape", "expand", "slice", "take", "permute", "concat"),
}


def _is_positive(value: Value) -> bool:
    """Whether its last operations let it be positive only."""
    constant = constant_of(value)
    return _never_negative(value) if constant is None else bool((constant.value > 0).all())


def _never_negative(value: Operand, depth: int = 8) -> bool:
    if isinstance(value, float):
        return value >= 0.0
    if isinstance(value, Constant):
        return bool((value.value >= 0).all())
    if value.op in ("exp", "softplus", "sigmoid", "softmax", "relu", "abs", "sqrt"):
        return True
    if depth == 0:
        return False
    inner = [_never_negative(each, depth - 1) for each in value.inputs]
    if value.op == "clamp":
        low, high = value.attributes["min"], value.attributes["max"]
        return (low is not None and low >= 0.0) or (inner[0] and (high is None or high >= 0.0))
    if value.op == "maximum":
        return any(inner)
    return value.op in _KEEP_SIGN and all(inner)
