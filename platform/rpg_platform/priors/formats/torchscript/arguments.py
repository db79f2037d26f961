"""Arguments of TorchScript's operations: what each may be, and refusals that say what it was.

Arguments are symbols and constants, or plain Python values: numbers, strings, lists, None, and ``BATCH`` for the size
of the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from rpg_algorithms.policies.graph_ops import GraphError
from rpg_platform.priors.network import composites
from rpg_platform.priors.network.graph_builder import Batch, Constant, GraphBuilder, Symbol, Value

Operation = Callable[..., Any]
# torch's numbers for types; symbols are float32 whatever floating type a file casts them to.
DTYPES: Mapping[int, torch.dtype] = {
    0: torch.uint8,
    3: torch.int32,
    4: torch.int64,
    6: torch.float32,
    7: torch.float64,
    11: torch.bool,
}


def is_tensor(value: Any) -> bool:
    """Whether it is a symbol or a constant."""
    return isinstance(value, Symbol | Constant)


def tensor(value: Any) -> Value:
    """The argument as a tensor. Raises GraphError for anything else."""
    if isinstance(value, Symbol | Constant):
        return value
    raise GraphError(f"needs a tensor, got {kind_of(value)}")


def kind_of(value: Any) -> str:
    """What a value is, for messages."""
    return "the size of the batch" if isinstance(value, Batch) else type(value).__name__


def number(value: Any) -> float:
    """The argument as a number. Raises GraphError for anything else, a tensor that depends on the data included."""
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, Constant) and value.value.numel() == 1:
        return value.value.item()
    raise GraphError(f"needs a number, got {kind_of(value)}")


def integer(value: Any) -> int:
    """The argument as a whole number. Raises GraphError for anything else."""
    result = number(value)
    if result != int(result) if math.isfinite(result) else True:
        raise GraphError(f"needs a whole number, got {result}")
    return int(result)


def sizes(value: Any) -> list[int | Batch]:
    """The argument as a list of sizes. Raises GraphError for anything else."""
    if not isinstance(value, list | tuple):
        raise GraphError(f"needs a list of sizes, got {kind_of(value)}")
    return [each if isinstance(each, Batch) else integer(each) for each in value]


def tensors(values: Any) -> list[Value]:
    """The argument as a list of tensors. Raises GraphError for anything else."""
    if not isinstance(values, list | tuple):
        raise GraphError(f"needs a list of tensors, got {kind_of(values)}")
    return [tensor(each) for each in values]


def cast(b: GraphBuilder, x: Any, dtype: Any) -> Any:
    """A tensor in another type: nothing for symbols, which are float32, and only for floating types."""
    if dtype is None or not is_tensor(x):
        return x
    if dtype not in DTYPES:
        raise GraphError(f"a cast to type {dtype}")
    return composites.cast(b, x, DTYPES[dtype])
