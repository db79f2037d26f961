"""Behaviour cloning: fits a stochastic prior to demonstrations by maximum likelihood.

Demonstrations show the actions that the environment received, so the likelihood is that of those actions: inside the
bounds the density of the action, and within a hundredth of the half-range of a bound the probability of that strip
divided by its width (see ``rpg_algorithms.policies.comparison``). A gaussian whose mean lies beyond the bound thus
explains a demonstrator that always saturates, and no action at a bound needs an infinite sample before tanh.
Likelihoods of gaussian and squashed policies are comparable.

A deterministic demonstrator's likelihood grows without limit as the standard deviation shrinks: ``std_floor`` bounds
it.

Dimension letters: B transitions, D observation size, A action dimensions, P size of ``dist_inputs``.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rpg_algorithms.maths.distributions import Categorical, DiagonalGaussian, DistributionName, make_distribution
from rpg_algorithms.policies.bundle import PriorCard, save_bundle
from rpg_algorithms.policies.comparison import ActionBox, received_coordinates, received_log_prob
from rpg_algorithms.policies.network import ActivationName, NetworkSpec, PolicyNetwork, spec_for_spaces
from rpg_platform.bundles import versions
from rpg_platform.evaluation.play import as_card_returns, evaluate_both
from rpg_platform.priors.clone.demonstrations import DemonstrationError, Demonstrations, read_demonstrations
from rpg_platform.priors.environment import task_of_card
from rpg_platform.tasks.environments import spaces_of
from rpg_platform.tasks.task import Nothing, Task

Split = Literal["episodes", "last steps of the one episode", "transitions"]
EVALUATION_SEED = 10_000
_CHUNK = 16_384  # transitions at a time where no gradient is needed


@dataclass(frozen=True)
class CloneSettings:
    """The settings by which a clone is trained.

    Attributes:
        distribution: family; None for the action space's default.
        hidden: widths of the hidden layers.
        activation: activation after each of them.
        state_dependent_std: whether the standard deviation is an output of the network.
        std_floor: smallest standard deviation: as a share of half the action's range for a gaussian (of the
            demonstrated actions' own deviation where there are no bounds), before tanh for a squashed one. A
            state-dependent one is bounded alike in all dimensions, by that of the smallest range.
        epochs: most passes over the training transitions.
        patience: stop after so many epochs without a better held-out likelihood.
        holdout: share of the transitions, in whole episodes, that is held out.
        batch_size: transitions per gradient step.
        lr: Adam's learning rate.
        seed: of the split, the initial weights and the order of transitions.
    """

    distribution: DistributionName | None = None
    hidden: tuple[int, ...] = (256, 256)
    activation: ActivationName = "relu"
    state_dependent_std: bool = False
    std_floor: float = 0.05
    epochs: int = 200
    patience: int = 15
    holdout: float = 0.1
    batch_size: int = 256
    lr: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks every number. Raises ValueError for one out of its bounds."""
        for name, low, high in (
            ("std_floor", 1e-4, 10.0),
            ("epochs", 1, 1_000_000),
            ("patience", 1, 1_000_000),
            ("holdout", 0.001, 0.9),
            ("batch_size", 1, 1_000_000),
            ("lr", 1e-8, 1.0),
            ("seed", 0, 2**31 - 1),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name}={value!r}: expected a number between {low} and {high}")


@dataclass(frozen=True)
class Epoch:
    """One pass over the training transitions.

    Attributes:
        number: from 1.
        train_nll: mean negative log-likelihood while training, nats per action.
        heldout_nll: of the held-out transitions after it.
        best: whether that is the lowest so far.
        transitions_per_s: trained on.
    """

    number: int
    train_nll: float
    heldout_nll: float
    best: bool
    transitions_per_s: float


@dataclass(frozen=True)
class Clone:
    """A fitted policy: the weights of the epoch with the best held-out likelihood.

    Attributes:
        network: the policy, its normaliser of the training observations included.
        settings: how it was trained.
        epochs: all of them.
        heldout_nll: held-out negative log-likelihood of ``network``, nats per action, densities in the
            environment's units.
        heldout: indices of the held-out transitions.
        split: what was held out whole.
        stopped_early: whether patience ended the training.
    """

    network: PolicyNetwork
    settings: CloneSettings
    epochs: tuple[Epoch, ...]
    heldout_nll: float
    heldout: NDArray[np.int64]
    split: Split
    stopped_early: bool

    @property
    def best(self) -> Epoch:
        """The epoch whose weights were kept."""
        return [epoch for epoch in self.epochs if epoch.best][-1]


def hold_out(
    demonstrations: Demonstrations, share: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], Split]:
    """Splits transitions into training and held-out ones.

    Whole episodes are held out, in a random order until they hold ``share`` of the transitions, as neighbours in an
    episode are nearly the same. Of one episode its last steps are; where episodes are not known, transitions at
    random.

    Returns:
        Indices of the training transitions, of the held-out ones, and what was held out.

    Raises:
        DemonstrationError: there are too few transitions for both.
    """
    n, rng = len(demonstrations), np.random.default_rng(seed)
    wanted = max(1, round(share * n))
    if n < 2:
        raise DemonstrationError(f"{demonstrations.data_set}: {n} transition; expected at least one to hold out")
    if demonstrations.episodes is None:
        order = rng.permutation(n)
        return np.sort(order[wanted:]), np.sort(order[:wanted]), "transitions"
    lengths = np.bincount(demonstrations.episodes)
    if len(lengths) == 1:
        return np.arange(n - wanted), np.arange(n - wanted, n), "last steps of the one episode"
    order = rng.permutation(len(lengths))
    count = int(np.searchsorted(np.cumsum(lengths[order]), wanted)) + 1
    chosen = np.isin(demonstrations.episodes, order[: min(count, len(lengths) - 1)])
    return np.flatnonzero(~chosen), np.flatnonzero(chosen), "episodes"


class Likelihood:
    """Log-likelihood of demonstrated actions under an action distribution, in the environment's units.

    Args:
        spec: the policy's specification.
        actions: ``[N, A]`` as the environment received them, or ``[N]`` indices.
    """

    def __init__(self, spec: NetworkSpec, actions: NDArray[Any]) -> None:
        self._actions = torch.from_numpy(actions)
        self.box: ActionBox | None = None
        if spec.distribution == "categorical":
            return
        bounds = (spec.action_low or ()) + (spec.action_high or ())
        if not np.all(np.isfinite(bounds)):
            return
        box = ActionBox.of(spec)
        exact = self._actions.double()
        self._unsquashed, self._side = (
            x.float() for x in received_coordinates(DiagonalGaussian(exact, exact), exact, box)
        )
        self.box = ActionBox(box.middle.float(), box.half.float())
        self._units = torch.log(box.half).sum().item()

    def __call__(self, distribution: DiagonalGaussian | Categorical, index: Tensor) -> Tensor:
        """Computes ``[B]`` log-likelihoods of the actions at ``index`` under a distribution of as many states, nats."""
        if self.box is None or isinstance(distribution, Categorical):
            return distribution.log_prob(self._actions[index])
        per_dimension = received_log_prob(distribution, self._unsquashed[index], self._side[index], self.box)
        return per_dimension.sum(-1) - self._units


class _Scaled(nn.Module):
    """A policy network whose outputs are in units of the action's range, so that any range trains alike."""

    middle: Tensor
    scale: Tensor

    def __init__(self, network: PolicyNetwork, middle: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("middle", middle)
        self.register_buffer("scale", scale)

    def inputs(self, normalized_obs: Tensor) -> Tensor:
        """Computes ``dist_inputs`` ``[B, P]``, the same as ``network.head`` after ``fold``."""
        network = self.network
        out: Tensor = network.mlp(normalized_obs)
        if network.spec.distribution == "categorical":
            return out
        log_scale = torch.log(self.scale)
        if network.log_std is not None:
            log_std: Tensor = (network.log_std + log_scale).expand_as(out)
        else:
            out, raw = out.chunk(2, dim=-1)
            log_std = (raw + log_scale).clamp(*network.spec.log_std_bounds)
        return torch.cat((self.middle + self.scale * out, log_std), dim=-1)

    @torch.no_grad()
    def fold(self) -> PolicyNetwork:
        """Returns a copy of the network whose last layer holds the units."""
        network = copy.deepcopy(self.network)
        if network.spec.distribution == "categorical":
            return network
        last, size = network.mlp[-1], network.spec.action_size
        assert isinstance(last, nn.Linear)
        last.weight[:size] *= self.scale[:, None]
        last.bias[:size] = last.bias[:size] * self.scale + self.middle
        if network.log_std is not None:
            network.log_std.add_(torch.log(self.scale))
        else:
            last.bias[size:] += torch.log(self.scale)
        return network


@contextmanager
def _one_thread() -> Iterator[None]:
    """Runs on one thread: small networks are no faster on several, and the result must not depend on their number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@_one_thread()
def fit(
    demonstrations: Demonstrations,
    settings: CloneSettings | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> Clone:
    """Fits a policy to demonstrations.

    Args:
        demonstrations: what was observed and done.
        settings: how; the same settings and demonstrations give the same policy.
        on_epoch: called after every epoch.

    Raises:
        DemonstrationError: too few transitions, or the likelihood became NaN or infinite.
        ValueError: the family does not fit the action space.
    """
    settings = settings or CloneSettings()
    train, heldout, split = hold_out(demonstrations, settings.holdout, settings.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = _model(demonstrations, settings, train)
    likelihood = Likelihood(model.network.spec, demonstrations.actions)
    obs = torch.from_numpy(demonstrations.observations)
    normalized = torch.cat([model.network.normalize(part) for part in torch.split(obs, _CHUNK)])
    optimizer = torch.optim.Adam(_parameters(model, settings.lr), fused=True)
    generator = torch.Generator().manual_seed(settings.seed)
    train_index, heldout_index = torch.from_numpy(train), torch.from_numpy(heldout)
    epochs: list[Epoch] = []
    best, waited = math.inf, 0
    kept = copy.deepcopy(model.state_dict())
    while len(epochs) < settings.epochs and waited < settings.patience:
        started = time.perf_counter()
        order = train_index[torch.randperm(len(train_index), generator=generator)]
        total = 0.0
        for index in torch.split(order, settings.batch_size):
            total += _step(model, optimizer, likelihood, normalized[index], index, settings) * len(index)
        seconds = time.perf_counter() - started
        nll = _mean_nll(model.inputs, likelihood, normalized, heldout_index, model.network.spec.distribution)
        if not (math.isfinite(nll) and math.isfinite(total)):
            raise DemonstrationError(
                f"{demonstrations.data_set}: the likelihood became NaN or infinite in epoch {len(epochs) + 1}; "
                f"a smaller lr than {settings.lr} may help"
            )
        waited = 0 if nll < best else waited + 1
        if waited == 0:
            best, kept = nll, copy.deepcopy(model.state_dict())
        epochs.append(Epoch(len(epochs) + 1, total / len(train), nll, waited == 0, len(train) / max(seconds, 1e-9)))
        if on_epoch is not None:
            on_epoch(epochs[-1])
    model.load_state_dict(kept)
    network = model.fold().eval().requires_grad_(False)
    final = _mean_nll(network.head, likelihood, normalized, heldout_index, network.spec.distribution)
    return Clone(network, settings, tuple(epochs), final, heldout, split, waited >= settings.patience)


def _model(demonstrations: Demonstrations, settings: CloneSettings, train: NDArray[np.int64]) -> _Scaled:
    """Makes the untrained network and fills its normaliser from the training observations."""
    space = demonstrations.action_space
    spec = spec_for_spaces(
        demonstrations.observation_space,
        space,
        settings.distribution,
        hidden=settings.hidden,
        activation=settings.activation,
        log_std_init=-0.5,
    )
    middle, scale = torch.zeros(spec.action_size), torch.ones(spec.action_size)
    if spec.distribution == "gaussian":
        assert isinstance(space, gym.spaces.Box)
        if space.is_bounded("both"):
            box = ActionBox.of(spec)
            middle, scale = box.middle.float(), box.half.float()
        else:
            shown = demonstrations.actions[train].astype(np.float64)
            middle = torch.from_numpy(shown.mean(0)).float()
            scale = torch.from_numpy(shown.std(0)).float().clamp_min(1e-6)
    if spec.distribution != "categorical" and settings.state_dependent_std:
        low = math.log(settings.std_floor) + float(torch.log(scale.min()))
        high = max(2.0, low + 1.0, math.log(2.0) + float(torch.log(scale.max())))
        spec = dataclasses.replace(spec, state_dependent_std=True, log_std_bounds=(low, high))
    network = PolicyNetwork(spec)
    assert network.normalizer is not None
    network.normalizer.update(torch.from_numpy(demonstrations.observations[train]))
    return _Scaled(network, middle, scale)


def _parameters(model: _Scaled, lr: float) -> list[dict[str, Any]]:
    """Groups the parameters for the optimizer; a free standard deviation learns at ten times the rate.

    It has no layers that add up to large steps. At the common rate, the training on a small data set would stop when
    the mean fits and the deviation has not yet arrived.
    """
    free = model.network.log_std
    others = [parameter for parameter in model.parameters() if parameter is not free]
    return [{"params": others, "lr": lr}, *([] if free is None else [{"params": [free], "lr": 10.0 * lr}])]


def _step(
    model: _Scaled,
    optimizer: torch.optim.Optimizer,
    likelihood: Likelihood,
    normalized: Tensor,
    index: Tensor,
    settings: CloneSettings,
) -> float:
    """Takes one gradient step on a batch; returns the batch's mean negative log-likelihood before the step."""
    optimizer.zero_grad(set_to_none=True)
    distribution = make_distribution(model.network.spec.distribution, model.inputs(normalized))
    loss = -likelihood(distribution, index).mean()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    if model.network.log_std is not None:
        with torch.no_grad():
            model.network.log_std.clamp_(min=math.log(settings.std_floor))
    return loss.item()


@torch.no_grad()
def _mean_nll(
    inputs: Callable[[Tensor], Tensor],
    likelihood: Likelihood,
    normalized: Tensor,
    index: Tensor,
    distribution: DistributionName,
) -> float:
    """Computes the mean negative log-likelihood of the transitions at ``index``, nats per action."""
    total = 0.0
    for part in torch.split(index, _CHUNK):
        found = make_distribution(distribution, inputs(normalized[part]))
        total += float(likelihood(found, part).double().sum())
    return -total / len(index)


# ---- the prior ----------------------------------------------------------------------------------
def clone_prior(
    source: str,
    out: Path,
    task: Task | None = None,
    settings: CloneSettings | None = None,
    name: str | None = None,
    episodes: int = 0,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> tuple[Clone, PriorCard]:
    """Reads demonstrations, fits a policy to them and writes it as a bundle.

    Args:
        source: see ``read_demonstrations``.
        out: folder of the bundle.
        task: whose environment was demonstrated; None where a Minari data set names it.
        settings: how the policy is trained.
        name: on the card; None for the folder's.
        episodes: how many to play with the policy, for the card's returns.
        on_epoch: called after every epoch.

    Returns:
        The fitted policy and the card that was written.

    Raises:
        ValueError: the demonstrations are refused, their environment is not known, or it cannot be made.
    """
    spaces = (None, None) if task is None else spaces_of(task)
    demonstrations = read_demonstrations(source, *spaces)
    env_id, env_kwargs = demonstrations.env_id, demonstrations.env_kwargs
    if task is not None:
        env_id, env_kwargs = task.env_id, task.env_kwargs
    if env_id is None:
        raise DemonstrationError(f"{source}: does not name its environment; say which: --env ID or --task NAME")
    clone = fit(demonstrations, settings, on_epoch)
    card = clone_card(clone, demonstrations, name or out.resolve().name, env_id, dict(env_kwargs))
    if episodes:
        played = task if task is not None else task_of_card(card)
        returns = as_card_returns(evaluate_both(clone.network, played, episodes, EVALUATION_SEED))
        bare = isinstance(played.addon, Nothing)
        returns = {key: value for key, value in returns.items() if key.startswith("basic/") or not bare}
        card = card.model_copy(update={"returns": returns})
    return clone, save_bundle(out, clone.network, card)


def clone_card(
    clone: Clone,
    demonstrations: Demonstrations,
    name: str,
    env_id: str,
    env_kwargs: dict[str, Any] | None = None,
) -> PriorCard:
    """Describes a cloned prior; its alpha is unknown, as nothing was trained at an entropy temperature.

    Args:
        clone: the fitted policy.
        demonstrations: what it was fitted to.
        name: short name.
        env_id: the environment that it acts in.
        env_kwargs: its keyword arguments.
    """
    returned = demonstrations.returns
    held = len(clone.heldout)
    return PriorCard.describe(
        name,
        env_id,
        demonstrations.observation_space,
        demonstrations.action_space,
        clone.network.spec,
        env_kwargs=env_kwargs or {},
        alpha=None,
        made_by={
            "method": "behaviour cloning",
            "versions": versions("torch", "numpy", "gymnasium"),
            "demonstrations": {
                "data_set": demonstrations.data_set,
                "sha256": demonstrations.sha256,
                "transitions": len(demonstrations),
                "episodes": demonstrations.number_of_episodes,
                "mean_return": None if returned is None else float(returned.mean()),
            },
            "held_out": {
                "nll_nats_per_action": clone.heldout_nll,
                "transitions": held,
                "split_by": clone.split,
            },
            "train_nll_nats_per_action": clone.best.train_nll,
            "epochs": len(clone.epochs),
            "best_epoch": clone.best.number,
            "settings": dataclasses.asdict(clone.settings) | {"hidden": list(clone.settings.hidden)},
        },
    )
