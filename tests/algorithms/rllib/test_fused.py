"""The fused minibatch step equals autograd's, on the same rollouts and minibatches, for every family of networks."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from rpg_algorithms import SPG, NetworkConfig, SPGConfig
from rpg_algorithms.rllib.fused import FusedUpdate
from rpg_algorithms.rllib.rollout import RolloutBatch

pytestmark = pytest.mark.usefixtures("local_ray")

CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "gaussian-tanh": ("Pendulum-v1", {"activation": "tanh"}, {}),
    "state-dependent-relu": ("Pendulum-v1", {"activation": "relu", "state_dependent_std": True}, {}),
    "squashed-elu-other-depth": (
        "Pendulum-v1",
        {"activation": "elu", "distribution": "squashed_gaussian", "critic_hidden": (16,)},
        {},
    ),
    "other-activation": ("Pendulum-v1", {"activation": "tanh", "critic_activation": "relu"}, {}),
    "entropy-batch-unclipped": (
        "Pendulum-v1",
        {"activation": "tanh"},
        {"entropy_coeff": 0.05, "normalize_advantages": "batch", "grad_clip": None},
    ),
    "state-dependent-entropy": ("Pendulum-v1", {"state_dependent_std": True}, {"entropy_coeff": 0.05}),
    "categorical-entropy-value-clip": (
        "CartPole-v1",
        {"activation": "relu"},
        {"entropy_coeff": 0.05, "vf_clip_param": 0.5, "normalize_advantages": "none"},
    ),
    "no-hidden-layer": ("CartPole-v1", {"hidden": ()}, {}),
}


def build(env: str, network: dict[str, Any], training: dict[str, Any], engine: str) -> SPG:
    return (
        SPGConfig()
        .environment(env)
        .env_runners(num_envs_per_env_runner=4)
        .training(
            alpha=0.1,
            lr=5e-4,  # higher, and rounding decides which samples the clipping takes out
            clip_param=0.1,
            train_batch_size_per_learner=260,  # not a multiple of the minibatch
            minibatch_size=32,
            num_epochs=4,
            update_engine=engine,
            **training,
        )
        .rl_module(model_config=NetworkConfig(**({"hidden": (24, 16)} | network)))
        .debugging(seed=0, log_level="ERROR")
        .build_algo()
    )


def state(algo: SPG) -> dict[str, np.ndarray]:
    return {k: v.numpy().copy() for k, v in learner(algo).actor_critic.state_dict().items()}


def learner(algo: SPG) -> Any:
    return algo.learner_group._learner


def moments(algo: SPG) -> list[dict[str, torch.Tensor]]:
    optimizer = learner(algo).get_optimizer("default_policy")
    return [optimizer.state[p] for p in optimizer.param_groups[0]["params"]]


@pytest.mark.parametrize("case", CASES)
def test_parameters_moments_and_statistics_are_autograds(case: str) -> None:
    eager, fused = (build(*CASES[case], engine) for engine in ("eager", "fused"))
    assert learner(eager)._fused is None
    assert isinstance(learner(fused)._fused, FusedUpdate)
    learner(fused).actor_critic.load_state_dict(learner(eager).actor_critic.state_dict())
    start = state(eager)
    for _ in range(3):
        batch = RolloutBatch(eager.env_runner_group.local_env_runner.sample())
        results = [learner(a).update(training_data=batch, timesteps={})["default_policy"] for a in (eager, fused)]
        for name in ("policy_loss", "vf_loss", "approx_kl", "clip_fraction", "entropy", "grad_norm"):
            expected, got = (float(r[name].peek()) for r in results)
            assert got == pytest.approx(expected, rel=2e-3, abs=2e-5), name
        eager.env_runner_group.sync_weights(from_worker_or_learner_group=eager.learner_group, inference_only=True)
    moved = max(np.abs(after - start[name]).max() for name, after in state(eager).items() if "mlp" in name)
    assert moved > 2e-3  # equality below is not of things that stood still
    for name, expected in state(eager).items():
        np.testing.assert_allclose(state(fused)[name], expected, atol=2e-5, err_msg=name)
    for expected, got in zip(moments(eager), moments(fused), strict=True):
        assert float(got["step"]) == float(expected["step"]) == 3 * 4 * 8
        for key in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(got[key], expected[key], atol=2e-5, rtol=2e-2)
    for algo in (eager, fused):
        algo.stop()


def test_a_loaded_optimizer_state_is_used(tmp_path: Any) -> None:
    """RLlib's restore replaces Adam's tensors; the next fused step must start from them, not from the old ones."""
    env, network, training = CASES["gaussian-tanh"]
    algo = build(env, network, training, "fused")
    for _ in range(2):
        algo.train()
    path = algo.save_to_path(str(tmp_path / "checkpoint"))
    batch = RolloutBatch(algo.env_runner_group.local_env_runner.sample())
    generator = learner(algo)._generator.get_state()
    restored = build(env, network, training, "fused")
    restored.restore_from_path(path)
    learner(restored)._generator.set_state(generator)
    learner(restored)._return_carry = copy.deepcopy(learner(algo)._return_carry)
    for each in (algo, restored):
        learner(each).update(training_data=batch, timesteps={})
    for name, expected in state(algo).items():
        np.testing.assert_array_equal(state(restored)[name], expected, err_msg=name)
    for each in (algo, restored):
        each.stop()


def test_parameters_that_took_different_numbers_of_steps() -> None:
    """A critic that warmed up alone is ahead of the policy in Adam's bias correction, in both engines."""
    env, network, training = CASES["gaussian-tanh"]
    eager, fused = (build(env, network, training, engine) for engine in ("eager", "fused"))
    learner(fused).actor_critic.load_state_dict(learner(eager).actor_critic.state_dict())
    batch = RolloutBatch(eager.env_runner_group.local_env_runner.sample())
    for algo in (eager, fused):
        with torch.no_grad():
            samples, _ = learner(algo)._prepare(
                _tensors(batch), {"alpha": 0.1, "basic_weight": 1.0, "addon_weight": 0.0}
            )
        learner(algo)._optimise(samples, warming_up=True, minibatches=0)
        learner(algo)._optimise(samples, warming_up=False, minibatches=0)
    steps = {float(s["step"]) for s in moments(fused)}
    assert steps == {32.0, 64.0}
    for name, expected in state(eager).items():
        np.testing.assert_allclose(state(fused)[name], expected, atol=2e-5, err_msg=name)
    for algo in (eager, fused):
        algo.stop()


def test_what_it_cannot_train_falls_back_or_is_refused() -> None:
    env = "Pendulum-v1"
    silu = build(env, {"activation": "silu"}, {}, "auto")
    assert learner(silu)._fused is None
    silu.train()
    silu.stop()
    with pytest.raises(ValueError, match="update_engine='fused' needs perceptrons"):
        build(env, {"activation": "silu"}, {}, "fused")


def _tensors(batch: RolloutBatch) -> Any:
    from rpg_algorithms.rllib.rollout import TensorRollout, merge_rollouts

    return TensorRollout.from_rollout(merge_rollouts(batch.rollouts), "cpu")
