"""The running figures that scale observations and rewards, held as buffers, so that checkpoints carry them.

Dimension letters: B batch, K conditioned weights, F features, M episodes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rpg_algorithms.maths.conditioned import features, features_size

SMALLEST_SPREAD = 1e-8


class RunningMoments(nn.Module):
    """Mean and variance of a stream of batches (Chan et al. 1979), held as buffers.

    With ``count`` 0 the mean is 0 and the variance 1, so an unused instance changes nothing.
    """

    mean: Tensor
    var: Tensor
    count: Tensor

    def __init__(self, shape: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("var", torch.ones(shape, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    @staticmethod
    def sums(batch: Tensor) -> Tensor:
        """Returns ``[3, *shape]``: count, sum and sum of squares over the leading dimension; learners may add them."""
        x = batch.to(torch.float64)
        count = torch.full(x.shape[1:], float(x.shape[0]), dtype=torch.float64, device=x.device)
        return torch.stack((count, x.sum(0), x.square().sum(0)))

    @torch.no_grad()
    def merge(self, sums: Tensor) -> None:
        """Merges a batch that is given by its ``sums``."""
        n = sums[0].flatten()[0]
        batch_mean = sums[1] / n
        batch_var = (sums[2] / n - batch_mean.square()).clamp_min(0.0)
        total = self.count + n
        delta = batch_mean - self.mean
        m2 = self.var * self.count + batch_var * n + delta.square() * self.count * n / total
        self.mean.add_(delta * (n / total))
        self.var.copy_(m2 / total)
        self.count.copy_(total)

    def update(self, batch: Tensor) -> None:
        """Merges ``batch`` ``[B, *shape]``."""
        self.merge(self.sums(batch))


class RunningScale(nn.Module):
    """A running scale that forgets: the geometric mean of spreads over about the last ``HORIZON`` samples.

    Geometric, so that one batch with a spread a hundred times as large (of a fall, say) moves it by a fifth.

    Attributes:
        log: logarithm of the scale, float64.
        count: samples that it stands for.
    """

    HORIZON = 100_000

    log: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("log", torch.zeros((), dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    @property
    def value(self) -> Tensor:
        """The scale; 1 before the first spread."""
        return self.log.exp()

    @torch.no_grad()
    def merge(self, spread: Tensor, samples: int) -> float:
        """Merges the spread of so many samples; one of zero tells nothing and is left out.

        Returns:
            The scale before it over the scale after it; 1 for the first.
        """
        if float(spread) <= SMALLEST_SPREAD:
            return 1.0
        before, is_first = self.log.clone(), float(self.count) == 0
        self.count.clamp_max_(self.HORIZON).add_(samples)
        self.log.lerp_(spread.log(), samples / self.count)
        return 1.0 if is_first else float((before - self.log).exp())


class ToldScale(nn.Module):
    """A running scale that is a function of the weights that a policy is told: no part of their range drowns another.

    Its logarithm is a quadratic function of ``u``, fitted by least squares to the spreads of single episodes' returns,
    of which it forgets those further back than about ``HORIZON`` samples.

    Attributes:
        moments: sums of the features' products, weighted by samples, float64.
        products: sums of the features times the logarithms, float64.
        fit: the coefficients, float64.
    """

    HORIZON = RunningScale.HORIZON
    STIFFNESS = 1_000.0
    """Samples that every coefficient but the constant is held at zero by."""

    moments: Tensor
    products: Tensor
    fit: Tensor

    def __init__(self, count: int) -> None:
        super().__init__()
        size = 1 + features_size(count)
        self.register_buffer("moments", torch.zeros(size, size, dtype=torch.float64))
        self.register_buffer("products", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("fit", torch.zeros(size, dtype=torch.float64))

    @staticmethod
    def terms(u: Tensor) -> Tensor:
        """``[..., 1 + F]`` float64 of ``u`` ``[..., K]``: the constant and the features."""
        u = u.double()
        return torch.cat((torch.ones_like(u[..., :1]), features(u)), dim=-1)

    def at(self, u: Tensor) -> Tensor:
        """The scale ``[...]`` at ``u`` ``[..., K]``; 1 before the first spread."""
        return (self.terms(u) @ self.fit).exp()

    @classmethod
    def sums(cls, u: Tensor, spreads: Tensor, samples: Tensor) -> Tensor:
        """``[1 + F, 2 + F]`` what ``merge`` takes; learners may add them.

        Args:
            u: ``[M, K]`` of each episode.
            spreads: ``[M]`` of its returns; those of zero tell nothing.
            samples: ``[M]`` how many there are.
        """
        known = spreads > SMALLEST_SPREAD
        x, y, w = cls.terms(u[known]), spreads[known].double().log(), samples[known].double()
        weighted = x * w[:, None]
        return torch.cat((x.T @ weighted, (weighted.T @ y)[:, None]), dim=1)

    @torch.no_grad()
    def merge(self, sums: Tensor, u: Tensor) -> float:
        """Merges spreads that are given by their ``sums``.

        Args:
            sums: of this batch.
            u: ``[B, K]`` where the scale is needed.

        Returns:
            Geometric mean over ``u`` of the scale before it over the scale after it; 1 for the first.
        """
        before, count = self.fit.clone(), self.moments[0, 0].clone()
        added = sums[0, 0]
        if float(added) == 0:
            return 1.0
        keep = self.HORIZON / max(self.HORIZON, float(count + added))
        self.moments.mul_(keep).add_(sums[:, :-1])
        self.products.mul_(keep).add_(sums[:, -1])
        stiff = torch.full_like(self.products, self.STIFFNESS)
        stiff[0] = 0.0
        self.fit.copy_(torch.linalg.solve(self.moments + stiff.diag(), self.products))
        return 1.0 if float(count) == 0 else float((self.terms(u) @ (before - self.fit)).mean().exp())
