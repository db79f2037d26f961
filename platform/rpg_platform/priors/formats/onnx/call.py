"""Gives an operator its view of one node of an ONNX model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rpg_algorithms.policies.graph_ops import GraphError
from rpg_platform.priors.network.graph_builder import Batch, Constant, GraphBuilder, Size, Symbol, Value

# onnx.TensorProto's numbers for types.
DTYPES: Mapping[int, Any] = {
    1: np.dtype("<f4"),
    11: np.dtype("<f8"),
    10: np.dtype("<f2"),
    7: np.dtype("<i8"),
    6: np.dtype("<i4"),
    9: np.dtype("?"),
}
FLOATS = (1, 11)


@dataclass(frozen=True)
class Sizes:
    """Whole numbers (or truth values) out of shapes, in a list or alone."""

    values: tuple[Any, ...]
    scalar: bool = False


Item = Symbol | Constant | Sizes | None


@dataclass(frozen=True)
class Call:
    """One node: its inputs, attributes, opset, and how many outputs it has."""

    inputs: Sequence[Item]
    attributes: Mapping[str, Any]
    opset: int
    outputs: int = 1

    def given(self, place: int) -> bool:
        """Whether an optional input is there."""
        return place < len(self.inputs) and self.inputs[place] is not None

    def tensor(self, place: int) -> Value:
        """Returns an input that must be a tensor of numbers; known sizes become a constant."""
        item = self.inputs[place] if place < len(self.inputs) else None
        if isinstance(item, Symbol | Constant):
            return item
        if isinstance(item, Sizes):
            if any(isinstance(each, Batch) for each in item.values):
                raise GraphError("arithmetic with the size of the batch")
            return Constant(torch.tensor(item.values[0] if item.scalar else list(item.values)))
        raise GraphError(f"has no input {place}")

    def optional(self, place: int) -> Value | None:
        """Returns an input as a tensor; None where it is missing."""
        return self.tensor(place) if self.given(place) else None

    def sizes(self, place: int) -> list[Size]:
        """Returns an input that must be a list of whole numbers."""
        item = self.inputs[place] if self.given(place) else None
        if isinstance(item, Sizes):
            return [each if isinstance(each, Batch) else int(each) for each in item.values]
        if isinstance(item, Constant) and not item.value.is_floating_point() and item.value.numel() <= 10_000:
            return [int(each) for each in item.value.reshape(-1)]
        raise GraphError(f"input {place} depends on the data, expected known whole numbers")

    def integers(self, place: int, name: str) -> list[int] | None:
        """Returns whole numbers, an attribute in older opsets and an input in newer ones; None where there are none."""
        if name in self.attributes:
            return [int(each) for each in self.attributes[name]]
        if not self.given(place):
            return None
        values = self.sizes(place)
        if any(isinstance(each, Batch) for each in values):
            raise GraphError(f"{name} by the size of the batch")
        return [each for each in values if isinstance(each, int)]

    def number(self, place: int, name: str) -> float | Value | None:
        """Returns a bound, an attribute or an input; a tensor where it is no single number."""
        if name in self.attributes:
            return float(self.attributes[name])
        value = self.optional(place)
        if isinstance(value, Constant) and value.value.numel() == 1:
            return float(value.value.item())
        return value

    def flag(self, name: str, default: int) -> int:
        """Returns a whole number among the attributes."""
        value = self.attributes.get(name, default)
        if not isinstance(value, int):
            raise GraphError(f"{name}={value!r}")
        return value

    def real(self, name: str, default: float) -> float:
        """Returns a number among the attributes."""
        value = self.attributes.get(name, default)
        if not isinstance(value, int | float):
            raise GraphError(f"{name}={value!r}")
        return float(value)


Operator = Callable[[GraphBuilder, Call], Item | list[Item]]
