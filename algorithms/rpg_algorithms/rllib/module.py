"""The actor-critic RLModule: the policy, its critic, and the frozen prior that travels with them.

Observation moments, reward scale and prior are buffers or parameters of the module, so weights, checkpoints,
evaluation and restarted env runners all carry them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis import InferenceOnlyAPI, ValueFunctionAPI
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from torch import Tensor, nn

from rpg_algorithms.maths.conditioned import Conditioned
from rpg_algorithms.maths.distributions import DistributionName, make_distribution
from rpg_algorithms.policies.bundle import PriorBundle
from rpg_algorithms.policies.network import (
    ActivationName,
    NetworkSpec,
    PolicyNetwork,
    make_mlp,
    spec_for_spaces,
)
from rpg_algorithms.policies.running import RunningScale, ToldScale


@dataclass
class NetworkConfig:
    """Network of a policy that is trained from scratch, for ``config.rl_module(model_config=NetworkConfig(...))``.

    Attributes:
        distribution: ``gaussian``, ``squashed_gaussian`` or ``categorical``; None for the space's default.
        hidden: widths of the policy's hidden layers.
        activation: activation after each of them.
        state_dependent_std: whether the standard deviation is an output of the network.
        log_std_init: initial log standard deviation of a state-independent one, nats.
        normalize_observations: keep running moments of observations and normalise with them.
        observation_clip: bound on normalised observations; None for no bound.
        critic_hidden, critic_activation: the critic's; None for the policy's.
    """

    distribution: DistributionName | None = None
    hidden: tuple[int, ...] = (128, 128)
    activation: ActivationName = "relu"
    state_dependent_std: bool = False
    log_std_init: float = -2.0
    normalize_observations: bool = True
    observation_clip: float | None = 10.0
    critic_hidden: tuple[int, ...] | None = None
    critic_activation: ActivationName | None = None


class ActorCriticModule(TorchRLModule, InferenceOnlyAPI, ValueFunctionAPI):
    """Actor and critic of SPG and RPG.

    ``model_config`` holds the fields of ``NetworkConfig``, ``prior_network`` (fields of ``NetworkSpec``, or None),
    ``start_from_prior`` (a policy that starts from a prior has the prior's network) and ``context``: the weights that
    policy and critic are told, in the columns after the observation's.

    Attributes:
        policy: the policy being trained, with its observation normaliser.
        critic: V(s) on what the policy's ``normalize`` gives. Not on env runners.
        prior: the frozen prior, or None. Not on env runners.
        reward_scale: running spread of the discounted return, which rewards are divided by; a function of the weights
            that the policy is told. Not on env runners.
    """

    prior: PolicyNetwork | None
    reward_scale: RunningScale | ToldScale

    def setup(self) -> None:
        """Builds the networks from ``model_config``."""
        options = dict(self.model_config)
        prior_network, start_from_prior = options.pop("prior_network"), options.pop("start_from_prior")
        context = tuple(Conditioned(**each) for each in options.pop("context"))
        critic_hidden, critic_activation = options.pop("critic_hidden"), options.pop("critic_activation")
        prior_spec = None if prior_network is None else NetworkSpec.from_dict(prior_network)
        if prior_spec is not None and start_from_prior:
            spec = replace(prior_spec, context=context)
        else:
            spec = spec_for_spaces(self.observation_space, self.action_space, context=context, **options)
        self.policy = PolicyNetwork(spec)
        self.critic = make_mlp(
            spec.input_size, tuple(critic_hidden or spec.hidden), 1, critic_activation or spec.activation
        )
        self.reward_scale = ToldScale(len(context)) if context else RunningScale()
        self.prior = None
        if prior_spec is not None:
            spec.check_compatible(prior_spec, "prior")
            self.prior = PolicyNetwork(prior_spec).requires_grad_(False)

    def get_non_inference_attributes(self) -> list[str]:
        """Returns the attributes that env runners do without."""
        return ["critic", "reward_scale", "prior"]

    def load_prior(self, bundle: PriorBundle, origin: PriorBundle | None) -> None:
        """Puts the bundle's weights into ``prior``, and those of ``origin``, if there is one, into ``policy``."""
        assert self.prior is not None
        self.prior.load_state_dict(bundle.build().state_dict())
        if origin is not None:
            self.policy.start_from(origin.build())

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Returns the state as numpy arrays. Running figures stay float64, which RLlib's own conversion would round."""
        state: dict[str, Any] = super().get_state(*args, **kwargs)
        for name, tensor in self.state_dict().items():
            if tensor.dtype == torch.float64 and name in state:
                state[name] = tensor.detach().cpu().numpy().copy()
        return state

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Loads a state, running figures in float64; one of version 0.1.0 has another scale of rewards."""
        if "reward_moments.var" in state:
            state = dict(state)
            count, var = (torch.as_tensor(np.array(state.pop(f"reward_moments.{name}"))) for name in ("count", "var"))
            del state["reward_moments.mean"]
            state |= {"reward_scale.log": var.double().clamp_min(1e-16).log() / 2, "reward_scale.count": count}
        super().set_state(state)
        exact = {
            name: torch.as_tensor(np.array(state[name]))
            for name, tensor in self.state_dict().items()
            if tensor.dtype == torch.float64 and name in state
        }
        self.load_state_dict(exact, strict=False)

    def values(self, normalized_obs: Tensor) -> Tensor:
        """V(s) ``[B]`` at what the policy's ``normalize`` gives."""
        result: Tensor = self.critic(normalized_obs).squeeze(-1)
        return result

    @torch.no_grad()
    def rescale_values(self, factor: float) -> None:
        """Multiplies V everywhere, for rewards that are divided by another scale from now on (PopArt, 1602.07714)."""
        last = self.critic[-1]
        assert isinstance(last, nn.Linear)
        last.weight.mul_(factor)
        last.bias.mul_(factor)

    def compute_values(self, batch: dict[str, Any], embeddings: Any | None = None) -> Tensor:
        """Returns V(s) ``[B]`` of the raw ``batch["obs"]``, for RLlib's value API."""
        return self.values(self.policy.normalize(batch[Columns.OBS]))

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        return {Columns.ACTION_DIST_INPUTS: self.policy(torch.as_tensor(batch[Columns.OBS], dtype=torch.float32))}

    def action_distribution(self, dist_inputs: Tensor) -> Any:
        """Returns the policy's action distribution with these inputs (see ``maths.distributions``)."""
        return make_distribution(self.policy.spec.distribution, dist_inputs)
