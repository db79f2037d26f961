"""The claim of ``test_proof_residual`` for a whole range of weights at once, in one training.

A policy that is told omega' must be, at every weight of the range, the soft optimum of that weight's
residual problem: of ``omega' / alpha * r + r_R`` at alpha_hat, where r is the reward that nothing here may read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.algorithms.proofs.finite_mdp import kl_per_state, soft_value_iteration
from tests.algorithms.proofs.problem import ALPHA, Problem, make_problem, residual_config, save_prior
from tests.algorithms.registry import built, learner_of

from rpg_algorithms import Conditioned, NetworkSpec, PolicyNetwork
from rpg_algorithms.maths.conditioned import grid

TOLERANCE = 1e-2  # nats, in every state, at every weight
UNITS = 64
OMEGA_PRIME, ALPHA_HAT = Conditioned(0.25, 0.8), 0.6  # omega from 0.42 to 1.33


def hidden_layer_prior(folder: Path, policy: np.ndarray) -> Path:
    """A bundle that is the table of ``log policy``, with a hidden layer of which one unit per state is used."""
    states, actions = policy.shape
    spec = NetworkSpec(states, actions, "categorical", hidden=(UNITS,), activation="relu", normalize_observations=False)
    torch.manual_seed(0)
    network = PolicyNetwork(spec)
    with torch.no_grad():
        network.mlp[0].weight[:states] = torch.eye(states)
        network.mlp[0].bias[:states] = 0.0
        network.mlp[2].weight.zero_()
        network.mlp[2].weight[:, :states] = torch.from_numpy(np.log(policy).T)
        network.mlp[2].bias.zero_()
    return save_prior(folder, network)


def train(p: Problem, folder: Path, iterations: int, hide: bool = False, **weights: Any) -> PolicyNetwork:
    """The policy after training over a range, in an environment whose own reward is misleading."""
    batch = 64 * 32
    config = residual_config(
        p,
        hidden_layer_prior(folder, p.prior),
        lr=[[0, 0.02], [int(0.5 * iterations * batch), 0.004], [iterations * batch, 0.0]],
        num_epochs=6,
        minibatch_size=512,
        train_batch_size_per_learner=batch,
        **weights,
    )
    with built(config) as algorithm:
        if hide:  # what was told is zero where the policy is trained, so what it is multiplied by stays zero
            module, size = learner_of(algorithm).actor_critic, p.mdp.num_states
            normalize = module.policy.normalize

            def without(obs: torch.Tensor) -> torch.Tensor:
                return normalize(torch.cat((obs[..., :size], torch.zeros_like(obs[..., size:])), dim=-1))

            module.policy.normalize = without
        for _ in range(iterations):
            algorithm.train()
        policy = learner_of(algorithm).actor_critic.policy
        assert isinstance(policy, PolicyNetwork)
        return policy


def divergences(p: Problem, policy: PolicyNetwork, settings: list[dict[str, float]]) -> np.ndarray:
    """``[settings]`` largest KL over states from the policy, folded there, to each setting's soft optimum."""
    found = []
    for weights in settings:
        with torch.no_grad():
            table = torch.softmax(policy.folded(weights)(torch.eye(p.mdp.num_states)), -1).double().numpy()
        found.append(kl_per_state(table, target(p, **weights)).max())
    return np.array(found)


def target(p: Problem, omega_prime: float, alpha_hat: float = ALPHA_HAT) -> np.ndarray:
    return soft_value_iteration(p.mdp, omega_prime / ALPHA * p.hidden_reward + p.addon, alpha_hat)


@pytest.mark.usefixtures("local_ray")
def test_one_training_reaches_the_soft_optimum_of_every_weight(tmp_path: Path) -> None:
    p, settings = make_problem(1, addon_scale=0.5), grid((OMEGA_PRIME.named("omega_prime"),), 25)
    policy = train(p, tmp_path, 140, omega_prime=OMEGA_PRIME, alpha_hat=ALPHA_HAT)
    assert divergences(p, policy, settings).max() < TOLERANCE
    # No one policy would do: the optima at the ends are far apart, and the prior is none of them.
    ends = [target(p, **settings[0]), target(p, **settings[-1])]
    assert kl_per_state(*ends).max() > 10 * TOLERANCE
    assert min(kl_per_state(p.prior, target(p, **weights)).max() for weights in settings) > TOLERANCE


@pytest.mark.usefixtures("local_ray")
def test_with_the_weights_hidden_it_is_one_compromise(tmp_path: Path) -> None:
    p, settings = make_problem(1, addon_scale=0.5), grid((OMEGA_PRIME.named("omega_prime"),), 25)
    policy = train(p, tmp_path, 60, hide=True, omega_prime=OMEGA_PRIME, alpha_hat=ALPHA_HAT)
    found = divergences(p, policy, settings)
    assert found.min() < TOLERANCE  # it has learned: somewhere in the range it is right
    assert (found > TOLERANCE).sum() > len(settings) / 2
    assert found.max() > 10 * TOLERANCE
