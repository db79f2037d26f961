"""What an entry of the corpus is: a small file of one format and variant, and what its own framework makes of it.

A module with entries has a table, name → ``Entry``, which ``test_corpus`` adds to its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, distributions

from rpg_platform.priors.imported import ImportOptions


@dataclass(frozen=True)
class Source:
    """A file or folder, or the address of one.

    Attributes:
        source: as ``rpg priors import`` takes it.
        options: what the user says about it, the environment's spaces included.
        log_prob: what the source's own framework says: observations ``[N, D]`` and actions ``[N, A]`` (``[N]`` of
            discrete ones), as the bundle's distribution samples them, to log-probabilities ``[N]``, nats. Actions of a
            squashed Gaussian are those before tanh, and the density is that of the tanh.
        states: observations ``[N, D]`` to compare on, 1,000 of several magnitudes.
        perceptron: the import is to find a plain perceptron, which the fused engine trains.
        exact: which actions ``[N]`` the source's own arithmetic has digits for; None: all.
        form: what the import is to call it; empty: not looked at.
    """

    source: str | Path
    options: ImportOptions
    log_prob: Callable[[Tensor, Tensor], Tensor]
    states: Tensor
    perceptron: bool = True
    exact: Callable[[Tensor], Tensor] | None = None
    form: str = ""


Entry = Callable[[Path], Source]
"""Writes its file into the folder that it is given."""


# --- densities of actions [N, A] or [N] by torch's own distributions, nats


def gaussian(mean: Tensor, log_std: Tensor, actions: Tensor) -> Tensor:
    return distributions.Normal(mean, log_std.exp()).log_prob(actions).sum(-1)


def before_tanh(mean: Tensor, log_std: Tensor, actions: Tensor) -> Tensor:
    """Of the tanh, by torch's own transform."""
    base = distributions.Normal(mean.double(), log_std.double().exp())
    squashed = distributions.TransformedDistribution(base, distributions.TanhTransform(cache_size=1))
    transform = squashed.transforms[0]
    return squashed.log_prob(transform(actions.double())).sum(-1).float()


def categorical(logits: Tensor, actions: Tensor) -> Tensor:
    return distributions.Categorical(logits=logits).log_prob(actions)
