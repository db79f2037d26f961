"""Policies that Stable-Baselines3 trained, imported and customised by a sweep, as a user does on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize
from tests.platform.commands import rpg

LIMIT_S = 900
RANDOM = -1_200.0  # Pendulum's return of random actions


def train_ppo(folder: Path) -> None:
    """With VecNormalize, whose statistics stand beside the zip."""
    envs = VecNormalize(make_vec_env("Pendulum-v1", n_envs=4, seed=0), gamma=0.9)
    model = PPO("MlpPolicy", envs, n_steps=512, batch_size=64, gamma=0.9, learning_rate=1e-3, seed=0, device="cpu")
    model.learn(100_000)
    model.save(folder / "prior.zip")
    envs.save(str(folder / "vecnormalize.pkl"))


def train_sac(folder: Path) -> None:
    model = SAC(
        "MlpPolicy", "Pendulum-v1", learning_rate=1e-3, policy_kwargs={"net_arch": [64, 64]}, seed=0, device="cpu"
    )
    model.learn(6_000)
    model.save(folder / "prior.zip")


def output(folder: Path, *arguments: str) -> str:
    ended = rpg(*arguments, cwd=folder, limit_s=LIMIT_S)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return ended.stdout


@pytest.mark.slow
@pytest.mark.timeout(2 * LIMIT_S)
@pytest.mark.parametrize(("train", "family"), [(train_ppo, "gaussian"), (train_sac, "squashed_gaussian")])
def test_customised_policies_beat_the_prior_on_the_addon(tmp_path: Path, train: Any, family: str) -> None:
    """Swing up, but anticlockwise: the prior's own reward is never seen."""
    train(tmp_path)
    output(tmp_path, "priors", "import", "prior.zip", "--env", "Pendulum-v1", "--out", "prior")
    card = json.loads((tmp_path / "prior" / "card.json").read_text())
    assert card["network"]["distribution"] == family
    gamma = card["made_by"]["import"]["gamma"]
    spec = {
        "name": "turn",
        "task": {"env": "Pendulum-v1", "addons": {"turn": "0.2 * next_obs[2]"}},
        "prior": "./prior",
        "algorithm": "rpg",
        "weights": {"omega_prime": {"grid": [0.1, 0.5]}, "alpha_hat": 0.1},
        "budget": {"env_steps": 200_000},
        "training": {
            "gamma": gamma,
            "lr": 3e-4,
            "rollout_length": 256,
            "minibatch_size": 128,
            "critic_warmup_iterations": 5,
        },
        "evaluation": {"episodes": 40},
    }
    (tmp_path / "turn.yaml").write_text(yaml.safe_dump(spec))
    rows = json.loads(output(tmp_path, "sweep", "turn.yaml", "--storage", "results", "--json"))
    [prior] = [row for row in rows if row["is_prior"]]
    customised = [row for row in rows if not row["is_prior"]]
    assert len(customised) == 2
    for mode in ("deterministic", "sampled"):
        measured = prior[mode]
        assert measured["basic_return"]["mean"] > 0.4 * RANDOM, "the prior has learnt its task"
        for row in customised:
            assert row[mode]["addon_return"]["mean"] > measured["addon_return"]["mean"] + 1.0
        kept = max(customised, key=lambda row: row["weights"]["omega_prime"])
        assert kept[mode]["basic_return"]["mean"] > 0.5 * RANDOM, "with the larger weight what it did is kept"
