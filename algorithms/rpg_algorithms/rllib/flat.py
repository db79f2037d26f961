"""Keeps parameters and Adam's moments in flat buffers that torch's module and optimizer share."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from rpg_algorithms.addons import Array


class FlatParameters:
    """Re-homes parameters, gradients and Adam's moments into flat buffers, without changing their values."""

    def __init__(self, groups: Sequence[Sequence[nn.Parameter]], optimizer: torch.optim.Optimizer) -> None:
        self.order = [p for group in groups for p in group]
        self.optimizer = optimizer
        size = sum(p.numel() for p in self.order)
        self.value, self.grad, self.m, self.v = (torch.zeros(size) for _ in range(4))
        offset = 0
        self.slices: dict[nn.Parameter, slice] = {}
        for p in self.order:
            place = slice(offset, offset + p.numel())
            self.slices[p] = place
            self.value[place].copy_(p.detach().flatten())
            p.data = self.value[place].view_as(p)
            offset = place.stop
        self.adopt_moments()

    def view(self, buffer: Tensor, p: nn.Parameter) -> Tensor:
        """The part of a flat buffer that belongs to ``p``, in its shape."""
        return buffer[self.slices[p]].view_as(p)

    def adopt_moments(self) -> None:
        """Points Adam's state at the flat moments, keeping its values; called again after a checkpoint was loaded."""
        for p in self.order:
            state = self.optimizer.state[p]
            for key, buffer in (("exp_avg", self.m), ("exp_avg_sq", self.v)):
                view = self.view(buffer, p)
                if key in state and state[key].data_ptr() != view.data_ptr():
                    view.copy_(state[key])
                state[key] = view
            if "step" not in state:
                state["step"] = torch.zeros(())

    def moments_are_ours(self) -> bool:
        """Says whether the optimizer still uses the flat moments; loading a state replaces them."""
        state = self.optimizer.state[self.order[0]]
        return "exp_avg" in state and state["exp_avg"].data_ptr() == self.m.data_ptr()


class FlatAdam:
    """Adam (arXiv 1412.6980) on flat buffers, for the steps of one epoch.

    Parameters may have taken different numbers of steps, as a critic has that warmed up alone.

    Within the epoch the moments are kept divided by ``1 - beta``, which saves two passes over them per step.
    """

    def __init__(self, flat: FlatParameters) -> None:
        self.flat = flat
        group = flat.optimizer.param_groups[0]
        self.lr, self.eps = float(group["lr"]), np.float32(group["eps"])
        self.beta1, self.beta2 = group["betas"]
        self.value, self.grad, self.m, self.v = (x.numpy() for x in (flat.value, flat.grad, flat.m, flat.v))
        self.count = 0
        self.parts: list[tuple[slice, float]] = []
        for p in flat.order:
            place, taken = flat.slices[p], float(flat.optimizer.state[p]["step"])
            if self.parts and self.parts[-1][1] == taken:
                place = slice(self.parts.pop()[0].start, place.stop)
            self.parts.append((place, taken))

    def __enter__(self) -> FlatAdam:
        self.m /= np.float32(1.0 - self.beta1)
        self.v /= np.float32(1.0 - self.beta2)
        return self

    def __exit__(self, *_: object) -> None:
        self.m *= np.float32(1.0 - self.beta1)
        self.v *= np.float32(1.0 - self.beta2)
        for p in self.flat.order:
            self.flat.optimizer.state[p]["step"] += self.count

    def step(self, scratch: Array) -> None:
        """Takes one step; ``scratch`` is working memory as large as the gradient."""
        b1, b2 = self.beta1, self.beta2
        self.count += 1
        self.m *= np.float32(b1)
        self.m += self.grad
        self.v *= np.float32(b2)
        np.multiply(self.grad, self.grad, out=scratch)
        self.v += scratch
        np.sqrt(self.v, out=scratch)
        for place, taken in self.parts:
            t = taken + self.count
            part = scratch[place]
            part *= np.float32(math.sqrt((1.0 - b2) / (1.0 - b2**t)))
            part += self.eps
            np.divide(self.m[place], part, out=part)
            part *= np.float32(self.lr * (1.0 - b1) / (1.0 - b1**t))
        self.value -= scratch
