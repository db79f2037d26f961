"""alpha = 0 collapses to PPO: value targets, advantages, loss and gradients are stock RLlib PPO's.

RLlib's side runs its own classes: ``PPOTorchLearner``'s learner connector pipeline (GAE among it) on
``SingleAgentEpisode`` objects, and its ``compute_loss_for_module`` on its own default module. Ours runs
``SPGLearner`` on the same transitions as arrays. Both networks hold the same weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.evaluation.postprocessing import Postprocessing

from rpg_algorithms import NetworkConfig, SPGConfig
from rpg_algorithms.policies.numpy_policy import NumpyPolicy
from rpg_algorithms.rllib.rollout import Rollout, TensorRollout

GAMMA, LAMBDA = 0.97, 0.9
HIDDEN = (16, 8)
T, N = 12, 3
ENVIRONMENTS = {"continuous": "Pendulum-v1", "discrete": "CartPole-v1"}
LOSS = {"vf_loss_coeff": 0.7, "vf_clip_param": 3.0, "entropy_coeff": 0.01, "clip_param": 0.2}


@dataclass
class Pair:
    """Stock PPO's learner and ours, with equal weights, and a rollout by an older policy."""

    ppo: Any
    spg: Any
    rollout: Rollout
    old_inputs: np.ndarray


def copy_weights(spg_module: Any, ppo_module: Any, continuous: bool) -> None:
    """Puts our weights into RLlib's default module."""
    mapping: dict[str, torch.Tensor] = {}
    for ours, encoder, head in ((spg_module.policy.mlp, "actor", "pi"), (spg_module.critic, "critic", "vf")):
        linears = [layer for layer in ours if isinstance(layer, torch.nn.Linear)]
        for i, layer in enumerate(linears[:-1]):
            for kind in ("weight", "bias"):
                mapping[f"encoder.{encoder}_encoder.net.mlp.{2 * i}.{kind}"] = getattr(layer, kind)
        for kind in ("weight", "bias"):
            mapping[f"{head}.net.mlp.0.{kind}"] = getattr(linears[-1], kind)
    if continuous:
        mapping["pi.log_std"] = spg_module.policy.log_std
    state = ppo_module.state_dict()
    found = {name: tensor for name, tensor in mapping.items() if name in state}
    assert set(state) - set(found) <= {"pi.log_std_clip_param_const", "vf.log_std_clip_param_const"}, sorted(state)
    assert len(found) == len(mapping), sorted(set(mapping) - set(found))
    ppo_module.load_state_dict({**state, **{k: v.detach().clone() for k, v in found.items()}})


def make_rollout(policy: NumpyPolicy, rng: np.random.Generator, size: int) -> tuple[Rollout, np.ndarray]:
    """Transitions with a termination, a truncation, both in one column, and ends in the last row."""
    obs = rng.standard_normal((T, N, size)).astype(np.float32)
    outputs = policy.outputs(obs.reshape(T * N, size)).reshape(T, N, -1)
    inputs, actions = policy.complete(outputs), policy.sample(outputs, policy.noise(rng, (T, N)))
    terminated, truncated = np.zeros((2, T, N), bool)
    terminated[4, 0] = truncated[8, 0] = True  # column 0: both kinds
    truncated[6, 1] = True  # column 1: truncated, then cut under way
    terminated[T - 1, 2] = True  # column 2: terminates with the last row
    final_index = np.argwhere(truncated)
    rollout = Rollout(
        obs=obs,
        actions=actions,
        logp=policy.log_prob(inputs, actions),
        basic=rng.standard_normal((T, N)).astype(np.float32),
        addon=np.zeros((T, N), np.float32),
        terminated=terminated,
        truncated=truncated,
        last_obs=rng.standard_normal((N, size)).astype(np.float32),
        final_index=final_index,
        final_obs=rng.standard_normal((len(final_index), size)).astype(np.float32),
    )
    return rollout, inputs


def make_pair(kind: str, alpha: float = 0.0) -> Pair:
    env = gym.make(ENVIRONMENTS[kind])
    ppo = (
        PPOConfig()
        .environment(ENVIRONMENTS[kind])
        .rl_module(
            model_config=DefaultModelConfig(
                fcnet_hiddens=list(HIDDEN),
                fcnet_activation="tanh",
                head_fcnet_hiddens=[],
                vf_share_layers=False,
                free_log_std=kind == "continuous",
            )
        )
        .training(gamma=GAMMA, lambda_=LAMBDA, use_kl_loss=False, **LOSS)
        .build_learner(env=env)
    )
    spg = (
        SPGConfig()
        .environment(ENVIRONMENTS[kind])
        .rl_module(
            model_config=NetworkConfig(
                hidden=HIDDEN, activation="tanh", normalize_observations=False, log_std_init=-0.5
            )
        )
        .training(
            alpha=alpha,
            gamma=GAMMA,
            lambda_=LAMBDA,
            scale_rewards=False,
            normalize_advantages="none",
            **LOSS,
        )
        .debugging(seed=0)
        .build_learner(env=env)
    )
    module = spg.actor_critic
    rollout, old_inputs = make_rollout(
        NumpyPolicy(module.policy), np.random.default_rng(0), module.policy.spec.observation_size
    )
    with torch.no_grad():  # the policy has moved on since, so that some ratios are clipped
        for parameter in module.policy.parameters():
            parameter.add_(0.15 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    copy_weights(module, ppo.module[DEFAULT_MODULE_ID], kind == "continuous")
    return Pair(ppo, spg, rollout, old_inputs)


def episodes_of(pair: Pair) -> tuple[list[SingleAgentEpisode], np.ndarray]:
    """The rollout cut into RLlib's episodes, and the (t, n) index of their steps in order."""
    rollout, env = pair.rollout, gym.make(ENVIRONMENTS["discrete" if pair.rollout.actions.ndim == 2 else "continuous"])
    finals = {tuple(index): obs for index, obs in zip(rollout.final_index.tolist(), rollout.final_obs, strict=True)}
    episodes, order = [], []
    for n in range(N):
        start = 0
        for t in range(T):
            terminated, truncated = bool(rollout.terminated[t, n]), bool(rollout.truncated[t, n])
            if not (terminated or truncated or t == T - 1):
                continue
            steps = slice(start, t + 1)
            last = finals.get((t, n), rollout.last_obs[n] if t == T - 1 else rollout.obs[t + 1, n])
            episodes.append(
                SingleAgentEpisode(
                    observation_space=env.observation_space,
                    action_space=env.action_space,
                    observations=[*rollout.obs[steps, n], last],
                    actions=list(rollout.actions[steps, n]),
                    rewards=list(rollout.basic[steps, n]),
                    terminated=terminated,
                    truncated=truncated,
                    extra_model_outputs={
                        Columns.ACTION_LOGP: list(rollout.logp[steps, n]),
                        Columns.ACTION_DIST_INPUTS: list(pair.old_inputs[steps, n]),
                    },
                    len_lookback_buffer=0,
                )
            )
            order += [(i, n) for i in range(start, t + 1)]
            start = t + 1
    return episodes, np.array(order)


def stock_batch(pair: Pair) -> tuple[dict[str, torch.Tensor], np.ndarray]:
    """RLlib's own learner connector pipeline on the episodes; and where its rows lie in our arrays."""
    episodes, order = episodes_of(pair)
    batch = pair.ppo._learner_connector(
        rl_module=pair.ppo.module, batch={}, episodes=episodes, shared_data={}, metrics=pair.ppo.metrics
    )
    return batch[DEFAULT_MODULE_ID], order


def our_samples(pair: Pair) -> Any:
    weights = {name: float(value) for name, value in pair.spg.config.reward_weights().items()}
    with torch.no_grad():
        return pair.spg._prepare(TensorRollout.from_rollout(pair.rollout, "cpu"), weights)[0]


@pytest.mark.parametrize("kind", ENVIRONMENTS)
def test_value_targets_and_advantages_are_stock_ppos(kind: str) -> None:
    pair = make_pair(kind)
    batch, order = stock_batch(pair)
    real = batch[Columns.LOSS_MASK].numpy().astype(bool)
    assert real.sum() == T * N
    rows = order[:, 0] * N + order[:, 1]
    samples = our_samples(pair)
    target, advantage = samples.target[rows].numpy(), samples.advantage[rows].numpy()
    assert target == pytest.approx(batch[Postprocessing.VALUE_TARGETS].numpy()[real], abs=1e-6)
    # RLlib standardises over all rows, its artificial ones among them: an affine map, the same for every step.
    theirs = batch[Postprocessing.ADVANTAGES].numpy()[real]
    slope, intercept = np.polyfit(advantage, theirs, 1)
    assert slope > 0.1
    assert theirs == pytest.approx(slope * advantage + intercept, abs=1e-6)


@pytest.mark.parametrize("kind", ENVIRONMENTS)
def test_alpha_above_zero_is_not_ppo(kind: str) -> None:
    pair = make_pair(kind, alpha=0.1)
    batch, order = stock_batch(pair)
    real = batch[Columns.LOSS_MASK].numpy().astype(bool)
    target = our_samples(pair).target[order[:, 0] * N + order[:, 1]].numpy()
    assert np.abs(target - batch[Postprocessing.VALUE_TARGETS].numpy()[real]).max() > 0.05


@pytest.mark.parametrize("kind", ENVIRONMENTS)
def test_loss_and_gradient_are_stock_ppos(kind: str) -> None:
    pair = make_pair(kind)
    batch, _ = stock_batch(pair)
    # RLlib's loss on RLlib's batch...
    ppo_module = pair.ppo.module[DEFAULT_MODULE_ID].unwrapped()
    stock = pair.ppo.compute_loss_for_module(
        module_id=DEFAULT_MODULE_ID, config=pair.ppo.config, batch=batch, fwd_out=ppo_module.forward_train(batch)
    )
    stock.backward()
    # ... and ours on the same rows without the artificial ones, which RLlib masks.
    real = batch[Columns.LOSS_MASK].bool()
    ours = pair.spg.compute_loss_for_module(
        module_id=DEFAULT_MODULE_ID,
        config=pair.spg.config,
        batch={k: v[real] for k, v in batch.items() if isinstance(v, torch.Tensor)},
        fwd_out={},
    )
    ours.backward()
    assert ours.item() == pytest.approx(stock.item(), abs=1e-6)
    module = pair.spg.actor_critic
    policy_first, critic_first = module.policy.mlp[0].weight.grad, module.critic[0].weight.grad
    parameters = dict(ppo_module.named_parameters())
    for gradient, name in ((policy_first, "actor"), (critic_first, "critic")):
        theirs = parameters[f"encoder.{name}_encoder.net.mlp.0.weight"].grad
        assert torch.allclose(gradient, theirs, atol=1e-6, rtol=1e-5)
        assert gradient.abs().max() > 1e-3
    if kind == "continuous":
        assert torch.allclose(module.policy.log_std.grad, parameters["pi.log_std"].grad, atol=1e-6)


def test_the_batch_exercises_every_clip() -> None:
    pair = make_pair("continuous")
    batch, _ = stock_batch(pair)
    real = batch[Columns.LOSS_MASK].bool()
    module = pair.spg.actor_critic
    with torch.no_grad():
        obs = batch[Columns.OBS][real]
        logp = module.policy.distribution(obs).log_prob(batch[Columns.ACTIONS][real])
        ratio = torch.exp(logp - batch[Columns.ACTION_LOGP][real])
        error = (module.values(obs) - batch[Postprocessing.VALUE_TARGETS][real]).square()
    assert ((ratio > 1.2) | (ratio < 0.8)).any()
    assert ((ratio < 1.2) & (ratio > 0.8)).any()
    assert (error > LOSS["vf_clip_param"]).any()
    assert (error < LOSS["vf_clip_param"]).any()
