"""Builds an ONNX graph from nodes, constants, and functions that runtimes lack, or lack in float64.

It uses only operators that onnxruntime has in float64 too. Min and Max replace Clip, which in some runtimes turns NaN
into a bound; 1 / (1 + exp(-x)) replaces Sigmoid, whose fast versions do not go to 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Chebyshev coefficients of erfc, from erfccheb in Press et al., Numerical Recipes, 3rd edition, section 6.2.2; those
# below 1e-11 are left out.
_ERFC = (
    *(-1.3026537197817094, 6.4196979235649026e-1, 1.9476473204185836e-2, -9.561514786808631e-3, -9.46595344482036e-4),
    *(3.66839497852761e-4, 4.2523324806907e-5, -2.0278578112534e-5, -1.624290004647e-6, 1.303655835580e-6),
    *(1.5626441722e-8, -8.5238095915e-8, 6.529054439e-9, 5.059343495e-9, -9.91364156e-10, -2.27365122e-10),
    9.6467911e-11,
)


class Nodes:
    """Collects nodes and constants of a network that is computed in float64 or float32; numbers the values."""

    def __init__(self, weights: dict[str, NDArray[Any]], *, double: bool) -> None:
        self.weights, self.double = weights, double
        self.dtype = np.float64 if double else np.float32
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._cast_weights: dict[str, str] = {}

    def node(self, operator: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        """Adds a node and returns the name of its output: ``name``, or a name with a running number."""
        from onnx import helper

        name = name or f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def constant(self, value: Any, dtype: Any = None) -> str:
        """Adds a constant and returns its name; its precision is the network's unless ``dtype`` is given."""
        from onnx import numpy_helper

        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype or self.dtype), name))
        return name

    def indices(self, *values: int) -> str:
        """Adds a vector of integers, as Reshape, Slice and others take it."""
        return self.constant(list(values), np.int64)

    def weight(self, key: str) -> str:
        """Adds one of the bundle's weights, stored unchanged and cast to the network's precision in the graph."""
        from onnx import numpy_helper

        if key not in self._cast_weights:
            name = f"policy.{key}"  # apart from the outputs' names
            self.constants.append(numpy_helper.from_array(np.ascontiguousarray(self.weights[key]), name))
            self._cast_weights[key] = self.cast(name)
        return self._cast_weights[key]

    def cast(self, value: str) -> str:
        """Casts a float32 value to the network's precision."""
        from onnx import TensorProto

        return self.node("Cast", value, to=TensorProto.DOUBLE) if self.double else value

    def output(self, name: str, value: str) -> None:
        """Names an output of the model, which is float32 at any precision of the network."""
        from onnx import TensorProto

        self.node("Cast", value, name=name, to=TensorProto.FLOAT)

    # ---- functions ------------------------------------------------------------------------------

    def between(self, x: str, low: Any = None, high: Any = None, dtype: Any = None) -> str:
        """Clips from below and above where the bound is not None; bounds may be vectors."""
        if low is not None:
            x = self.node("Max", x, self.constant(low, dtype))
        return x if high is None else self.node("Min", x, self.constant(high, dtype))

    def plus(self, x: str, number: float) -> str:
        """Adds a number."""
        return self.node("Add", x, self.constant(number))

    def times(self, x: str, number: float) -> str:
        """Multiplies with a number."""
        return self.node("Mul", x, self.constant(number))

    def below_and_above(self, x: str, below: Callable[[str], str]) -> str:
        """Computes max(x, 0) + below(min(x, 0)), for activations that are the identity above 0, and 0 at 0."""
        zero = self.constant(0.0)
        return self.node("Add", self.node("Max", x, zero), below(self.node("Min", x, zero)))

    def expm1(self, x: str) -> str:
        """Computes exp(x) - 1 with an absolute error of the precision's epsilon."""
        return self.plus(self.node("Exp", x), -1.0)

    def elu(self, x: str, alpha: float = 1.0) -> str:
        return self.below_and_above(x, lambda below: self.times(self.expm1(below), alpha))

    def logistic_denominator(self, x: str) -> str:
        """Computes 1 + exp(-x)."""
        return self.plus(self.node("Exp", self.node("Neg", x)), 1.0)

    def sigmoid(self, x: str) -> str:
        return self.node("Div", self.constant(1.0), self.logistic_denominator(x))

    def silu(self, x: str) -> str:
        return self.node("Div", x, self.logistic_denominator(x))

    def softplus(self, x: str) -> str:
        """Computes max(x, 0) + log(1 + exp(-|x|))."""
        small = self.node("Log", self.plus(self.node("Exp", self.node("Neg", self.node("Abs", x))), 1.0))
        return self.node("Add", self.node("Max", x, self.constant(0.0)), small)

    def erf(self, x: str) -> str:
        """Computes erf itself in float64, because runtimes have Erf only in float32."""
        if not self.double:
            return self.node("Erf", x)
        z = self.node("Abs", x)
        t = self.node("Div", self.constant(2.0), self.plus(z, 2.0))
        y = self.plus(self.times(t, 4.0), -2.0)
        d, dd = self.constant(_ERFC[-1]), self.constant(0.0)
        for coefficient in _ERFC[-2:0:-1]:  # Clenshaw's recurrence
            d, dd = self.plus(self.node("Sub", self.node("Mul", y, d), dd), coefficient), d
        series = self.node("Sub", self.times(self.plus(self.node("Mul", y, d), _ERFC[0]), 0.5), dd)
        exponent = self.node("Sub", series, self.node("Mul", z, z))
        complement = self.node("Mul", t, self.node("Exp", exponent))
        return self.node("Mul", self.node("Sign", x), self.node("Sub", self.constant(1.0), complement))
