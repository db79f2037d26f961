"""Brings graphs into their simplest form: files spell one network in many ways, and equal networks should look equal.

Exporters write a linear layer as a product and a sum, a clamp as a minimum of a maximum, silu as a product with a
sigmoid. ``simplified`` undoes that; the results are equal up to the rounding of float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rpg_algorithms.policies.graph import BINARY
from rpg_algorithms.policies.graph_ops import OPS, GraphError
from rpg_platform.priors.network.graph_builder import (
    Constant,
    GraphBuilder,
    Operand,
    Symbol,
    Value,
    shape_of,
    sorted_symbols,
)

_ELEMENTWISE = BINARY | {name for name, op in OPS.items() if op.inputs == (1, 1)} - {
    *("softmax", "log_softmax", "layer_norm", "sum", "mean", "max", "min"),
    *("concat", "slice", "take", "reshape", "permute", "expand"),
}


def simplified(outputs: Sequence[Value], builder: GraphBuilder) -> list[Value]:
    """Simplifies the outputs; one that turns out not to depend on the observation becomes a constant."""
    new: dict[int, Value] = {}
    known: dict[object, Symbol] = {}
    for symbol in sorted_symbols(each for each in outputs if isinstance(each, Symbol)):
        inputs = tuple(new.get(id(each), each) if isinstance(each, Symbol) else each for each in symbol.inputs)
        value: Value = symbol
        if any(a is not b for a, b in zip(inputs, symbol.inputs, strict=True)):
            value = Symbol(symbol.shape, symbol.op, inputs, symbol.attributes)
        for _ in range(8):  # a rule may make way for another
            after = _rewritten(value, builder) if isinstance(value, Symbol) else value
            if after is value:
                break
            value = after
        if isinstance(value, Symbol):  # what is computed twice is computed once
            operands = tuple(each if isinstance(each, float) else id(each) for each in value.inputs)
            value = known.setdefault((value.op, operands, tuple(sorted(value.attributes.items()))), value)
        new[id(symbol)] = value
    return [new[id(each)] if isinstance(each, Symbol) else each for each in outputs]


def constant_of(value: Value) -> Constant | None:
    """Returns the constant that a value is or repeats for the whole batch; None where it depends on the observation."""
    if isinstance(value, Constant):
        return value
    if value.op == "expand" and isinstance(value.inputs[0], Constant):
        return value.inputs[0]
    return None


def is_op(value: Operand, op: str) -> bool:
    """Whether the value is the result of this operation."""
    return isinstance(value, Symbol) and value.op == op


def affine(value: Value, stop: Callable[[Symbol], bool]) -> tuple[Symbol, Tensor, Tensor] | None:
    """Finds ``(x, scale, shift)`` where the value is ``scale * x + shift``, number by number along the last axis.

    Args:
        value: where to start.
        stop: which symbols to take for x. One of another operation than the four arithmetic ones, or with several
            symbols for inputs, gives None.

    Returns:
        x, and float64 tensors ``[n]`` of the size of the last axis.
    """
    if not isinstance(value, Symbol):
        return None
    size = value.shape[-1]
    if len(value.shape) != 2 or size is None:
        return None
    scale, shift = torch.ones(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
    while not stop(value):
        if value.op == "neg":
            step: Operand = value.inputs[0]
            scale = -scale
        elif value.op in ("add", "sub", "mul", "div"):
            a, b = value.inputs
            symbol_first = isinstance(a, Symbol)
            step, other = (a, b) if symbol_first else (b, a)
            number = _per_column(other, size)
            if number is None or (value.op == "div" and (not symbol_first or (number == 0).any())):
                return None
            if value.op == "mul":
                scale = scale * number
            elif value.op == "div":
                scale = scale / number
            else:
                shift = shift + scale * (-number if value.op == "sub" and symbol_first else number)
                scale = -scale if value.op == "sub" and not symbol_first else scale
        else:
            return None
        if not isinstance(step, Symbol) or step.shape != value.shape:
            return None
        value = step
    return value, scale, shift


def _per_column(operand: Operand, size: int) -> Tensor | None:
    """Returns a number or constant as ``[size]`` in float64; None for a symbol or for values that differ by row."""
    if isinstance(operand, Symbol):
        constant = constant_of(operand)
        if constant is None:
            return None
        operand = constant
    tensor = operand.value if isinstance(operand, Constant) else torch.tensor(float(operand))
    try:
        return tensor.to(torch.float64).broadcast_to(1, size)[0]
    except RuntimeError:
        return None


def _rewritten(symbol: Symbol, builder: GraphBuilder) -> Value:
    for rule in _RULES:
        try:
            after = rule(symbol, builder)
        except GraphError:  # what a rule would make is not allowed: the symbol is
            continue
        if after is not None:
            return after
    return symbol


# --- rules: a simpler value, or None


def _of_constants(symbol: Symbol, builder: GraphBuilder) -> Value | None:
    """Arithmetic of constants that were repeated for the batch is done once, before they are repeated."""
    if symbol.op not in _ELEMENTWISE:
        return None
    inputs = [each if isinstance(each, float) else constant_of(each) for each in symbol.inputs]
    if any(each is None for each in inputs):
        return None
    arguments = [Constant(torch.tensor(each)) if isinstance(each, float) else each for each in inputs]
    result = builder.constant(lambda *tensors: OPS[symbol.op].torch(*tensors, **symbol.attributes), *arguments)
    return builder.expand(result, shape_of(symbol))


def _identity(symbol: Symbol, builder: GraphBuilder) -> Value | None:
    x = symbol.inputs[0] if symbol.inputs else None
    if not isinstance(x, Symbol):
        if symbol.op in ("add", "mul") and isinstance(x, float) and x == {"add": 0.0, "mul": 1.0}[symbol.op]:
            return _same_shape(symbol.inputs[1], symbol)
        return None
    if symbol.op in ("reshape", "expand") and x.shape == symbol.shape:
        return x
    if symbol.op == "reshape" and x.op == "reshape":
        return Symbol(symbol.shape, "reshape", x.inputs, symbol.attributes)
    if symbol.op == "concat" and len(symbol.inputs) == 1:
        return x
    if symbol.op in ("add", "sub", "mul", "div") and isinstance(symbol.inputs[1], float):
        if symbol.inputs[1] == (0.0 if symbol.op in ("add", "sub") else 1.0):
            return x
        if symbol.op == "mul" and symbol.inputs[1] == 0.0:  # an idiom for zeros of a batch's shape
            return builder.full(shape_of(symbol), 0.0)
    return None


def _same_shape(value: Operand, symbol: Symbol) -> Value | None:
    return value if isinstance(value, Symbol) and value.shape == symbol.shape else None


def _unexpanded(symbol: Symbol, builder: GraphBuilder) -> Value | None:
    """Arithmetic with a constant that was repeated for the batch takes the constant itself."""
    if symbol.op not in BINARY:
        return None
    for place, each in enumerate(symbol.inputs):
        other = symbol.inputs[1 - place]
        constant = constant_of(each) if isinstance(each, Symbol) else None
        if constant is not None and isinstance(other, Symbol) and other.shape == symbol.shape:
            operands = (constant, other) if place == 0 else (other, constant)
            after = builder.symbol(symbol.op, *operands)
            return after if after.shape == symbol.shape else None
    return None


def _part_of_joined(symbol: Symbol, builder: GraphBuilder) -> Value | None:
    """Replaces a slice of joined values by the part that it lies in."""
    x = symbol.inputs[0] if symbol.inputs else None
    if symbol.op != "slice" or not isinstance(x, Symbol) or x.op != "concat":
        return None
    axis, start, stop, step = (symbol.attributes[name] for name in ("axis", "start", "stop", "step"))
    if axis != x.attributes["axis"] or step != 1:
        return None
    position = 0
    for part in x.inputs:
        assert isinstance(part, Symbol)
        size = part.shape[axis]
        assert size is not None
        if position <= start and stop <= position + size:
            return builder.slice(part, axis, start - position, stop - position)
        position += size
    return None


def _slice_of_slice(symbol: Symbol, builder: GraphBuilder) -> Value | None:
    x = symbol.inputs[0] if symbol.inputs else None
    if symbol.op != "slice" or not isinstance(x, Symbol) or x.op != "slice":
        return None
    inner, outer = x.attributes, symbol.attributes
    if inner["axis"] != outer["axis"] or inner["step"] != 1 or not isinstance(x.inputs[0], Symbol):
        return None
    start = inner["start"]
    return builder.slice(x.inputs[0], outer["axis"], start + outer["start"], start + outer["stop"], outer["step"])


def _into_linear(symbol: Symbol, builder: GraphBuilder) -> Value | None:
    """Arithmetic with constants after a linear layer goes into its weights."""
    if symbol.op not in ("add", "sub", "mul", "div"):
        return None
    found = affine(symbol, lambda x: x.op == "linear")
    if found is None:
        return None
    x, scale, shift = found
    obs, weight, *bias = x.inputs
    assert isinstance(obs, Symbol)
    assert isinstance(weight, Constant)
    new_weight = (weight.value.to(torch.float64) * scale[:, None]).to(torch.float32)
    old_bias = [each.value.to(torch.float64) for each in bias if isinstance(each, Constant)]
    new_bias = ((old_bias[0] * scale if old_bias else 0.0) + shift).to(torch.float32)
    hints = weight.hint, bias[0].hint if bias and isinstance(bias[0], Constant) else "bias"
    kept = weight if bool((scale == 1.0).all()) else Constant(new_weight, hints[0], weight.trainable)
    return builder.linear(obs, kept, Constant(new_bias, hints[1], True))


def _clamp(symbol: Symbol, builder: GraphBuilder) -> Value | None:
    """Minimum and maximum with one number are a clamp, a clamp of a clamp is one, and one from 0 is relu."""
    if symbol.op in ("minimum", "maximum"):
        x, bound = symbol.inputs if isinstance(symbol.inputs[0], Symbol) else symbol.inputs[::-1]
        number = _uniform(bound)
        if not isinstance(x, Symbol) or number is None or x.shape != symbol.shape:
            return None
        low, high = (number, None) if symbol.op == "maximum" else (None, number)
        return builder.unary("clamp", x, min=low, max=high)
    if symbol.op != "clamp":
        return None
    x, low, high = symbol.inputs[0], symbol.attributes["min"], symbol.attributes["max"]
    if (low, high) == (0.0, None):
        return builder.unary("relu", x) if isinstance(x, Symbol) else None
    if isinstance(x, Symbol) and x.op == "clamp":
        inner = x.attributes["min"], x.attributes["max"]
        if inner[1] is None and low is None and inner[0] <= high:
            return Symbol(x.shape, "clamp", x.inputs, {"min": inner[0], "max": high})
        if inner[0] is None and high is None and low <= inner[1]:
            return Symbol(x.shape, "clamp", x.inputs, {"min": low, "max": inner[1]})
    return None


def _uniform(operand: Operand) -> float | None:
    """Returns the one number that a constant holds everywhere; None for others."""
    if isinstance(operand, float):
        return operand
    constant = constant_of(operand)
    if constant is None or constant.trainable:
        return None
    first = float(constant.value.flatten()[0]) if constant.value.numel() else math.nan
    return first if math.isfinite(first) and bool((constant.value == first).all()) else None


def _silu(symbol: Symbol, builder: GraphBuilder) -> Value | None:
    """Recognises ``x * sigmoid(x)`` and ``x / (1 + exp(-x))``."""
    if symbol.op == "mul":
        for x, gate in (symbol.inputs, symbol.inputs[::-1]):
            if isinstance(x, Symbol) and isinstance(gate, Symbol) and gate.op == "sigmoid" and gate.inputs[0] is x:
                return builder.unary("silu", x)
    if symbol.op == "div" and isinstance(x := symbol.inputs[0], Symbol):
        power = _sum_with(symbol.inputs[1], 1.0)
        if power is not None and power.op == "exp" and is_op(power.inputs[0], "neg"):
            inner = power.inputs[0]
            assert isinstance(inner, Symbol)
            if inner.inputs[0] is x:
                return builder.unary("silu", x)
    return None


def _elu(symbol: Symbol, builder: GraphBuilder) -> Value | None:
    """Recognises ``max(x, 0) + (exp(min(x, 0)) - 1)``, written for runtimes without Elu in double precision."""
    if symbol.op != "add":
        return None
    for above, below in (symbol.inputs, symbol.inputs[::-1]):
        power = _sum_with(below, -1.0)
        if power is None and isinstance(below, Symbol) and below.op == "expm1":
            power = below
        if power is None or power.op not in ("exp", "expm1") or not isinstance(above, Symbol) or above.op != "relu":
            continue
        least = power.inputs[0]
        clamp = {"min": None, "max": 0.0}
        if not isinstance(least, Symbol) or least.op != "clamp" or dict(least.attributes) != clamp:
            continue
        if least.inputs[0] is above.inputs[0] and isinstance(least.inputs[0], Symbol):
            return builder.unary("elu", least.inputs[0], alpha=1.0)
    return None


def _sum_with(value: Operand, number: float) -> Symbol | None:
    """Returns the x of ``x + number``; None for other values."""
    if not isinstance(value, Symbol) or value.op not in ("add", "sub"):
        return None
    a, b = value.inputs
    if isinstance(a, Symbol) and isinstance(b, float) and b == (number if value.op == "add" else -number):
        return a
    return b if isinstance(b, Symbol) and isinstance(a, float) and a == number and value.op == "add" else None


def _log_softmax(symbol: Symbol, builder: GraphBuilder) -> Value | None:
    x = symbol.inputs[0] if symbol.inputs else None
    if symbol.op == "log" and isinstance(x, Symbol) and x.op == "softmax" and isinstance(x.inputs[0], Symbol):
        return builder.softmax("log_softmax", x.inputs[0], x.attributes["axis"])
    return None


_RULES: tuple[Callable[[Symbol, GraphBuilder], Value | None], ...] = (
    *(_of_constants, _unexpanded, _identity, _part_of_joined, _slice_of_slice),
    *(_clamp, _silu, _elu, _log_softmax, _into_linear),
)


def replaced(outputs: Sequence[Value], old: Symbol, new: Symbol) -> list[Value]:
    """Returns the outputs with ``new`` in the place of ``old``."""
    values: dict[int, Symbol] = {id(old): new}
    for symbol in sorted_symbols(each for each in outputs if isinstance(each, Symbol)):
        inputs = tuple(values.get(id(each), each) if isinstance(each, Symbol) else each for each in symbol.inputs)
        if id(symbol) not in values and any(a is not b for a, b in zip(inputs, symbol.inputs, strict=True)):
            values[id(symbol)] = Symbol(symbol.shape, symbol.op, inputs, symbol.attributes)
    return [values.get(id(each), each) if isinstance(each, Symbol) else each for each in outputs]
