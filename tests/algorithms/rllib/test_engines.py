"""The fused engine takes autograd's steps in every registered configuration, setting and network.

The long form of ``test_fused``. Together with ``test_ppo_equality``, which holds autograd's loss to stock RLlib's, it
makes the default engine's steps PPO's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.algorithms.registry import CASES, FAMILIES, Case, built, learner_of, same
from tests.algorithms.stepping import after_updates

from rpg_algorithms import NetworkConfig, SPGConfig

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]
SETTINGS: dict[str, dict[str, Any]] = {
    "no gradient clipping": {"grad_clip": None},
    "much gradient clipping": {"grad_clip": 0.01},
    "clipped value loss": {"vf_clip_param": 0.5, "vf_loss_coeff": 2.0},
    "narrow clip": {"clip_param": 0.01},
    "advantages as they are": {"normalize_advantages": "none"},
    "advantages over the batch": {"normalize_advantages": "batch"},
    "entropy in the loss": {"entropy_coeff": 0.1},
    "one minibatch": {"minibatch_size": None},
    "stop by KL": {"target_kl": 1e-3},
}
NETWORKS: dict[str, dict[str, Any]] = {
    "relu": {"hidden": (16, 8), "activation": "relu"},
    "elu": {"hidden": (8,), "activation": "elu"},
    "tanh": {"hidden": (8, 8, 8), "activation": "tanh"},
    "linear": {"hidden": ()},
    "wider critic": {"hidden": (8,), "critic_hidden": (32,)},
    "deeper critic": {"hidden": (8,), "critic_hidden": (16, 16), "critic_activation": "tanh"},
}


def assert_engines_agree(config: SPGConfig) -> None:
    eager, fused = (after_updates(config, engine) for engine in ("eager", "fused"))
    for key, tensor in eager[0].items():
        assert torch.allclose(fused[0][key], tensor, atol=2e-5, rtol=1e-4), key
    assert fused[2] == pytest.approx(eager[2], rel=1e-3, abs=1e-4, nan_ok=True)
    for index, moments in eager[1].items():
        for name, value in moments.items():
            assert torch.allclose(torch.as_tensor(fused[1][index][name]), torch.as_tensor(value), atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("name", CASES)
def test_every_configuration(name: str, tmp_path: Path) -> None:
    assert_engines_agree(CASES[name].build_config(tmp_path))


def test_the_end_of_a_warm_up(tmp_path: Path) -> None:
    assert_engines_agree(CASES["rpg-gaussian"].build_config(tmp_path, critic_warmup_iterations=1))


@pytest.mark.parametrize("what", SETTINGS)
def test_every_setting(what: str, tmp_path: Path) -> None:
    case = Case(SPGConfig, "state-dependent", {"alpha": 0.05, "lr": 1e-3})
    config = case.build_config(tmp_path, **SETTINGS[what])
    assert_engines_agree(config)
    # The setting does something, or the comparison would say nothing about it.
    plain = after_updates(case.build_config(tmp_path), "eager")
    assert not same(plain[0], after_updates(config, "eager")[0], "policy.mlp.")


@pytest.mark.parametrize("what", NETWORKS)
@pytest.mark.parametrize("family", ["gaussian", "categorical"])
def test_every_network(what: str, family: str, tmp_path: Path) -> None:
    config = Case(SPGConfig, family, {"alpha": 0.05, "lr": 1e-3}).build_config(tmp_path)
    config.rl_module(model_config=NetworkConfig(**(FAMILIES[family] | {"log_std_init": -0.5} | NETWORKS[what])))
    assert_engines_agree(config)


def test_what_it_cannot_do_is_left_to_autograd_or_refused(tmp_path: Path) -> None:
    config = CASES["spg-gaussian"].build_config(tmp_path)
    config.rl_module(model_config=NetworkConfig(hidden=(8,), activation="silu"))
    with built(config.copy(copy_frozen=False)) as algorithm:
        assert learner_of(algorithm)._fused is None
        algorithm.train()
    with pytest.raises(ValueError, match="update_engine='fused' needs perceptrons with relu, tanh or elu on the CPU"):
        config.training(update_engine="fused").build_algo()
