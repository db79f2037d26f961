"""Behaviour cloning: the likelihood, what is held out, when it stops, what it leaves, and that it does as was shown."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import scipy.stats
import torch
from tests.platform.priors.clone.demonstrators import balance, play, record, save, shipped, swing_up
from typer.testing import CliRunner

from rpg_algorithms import NetworkSpec, RPGConfig
from rpg_algorithms.maths.distributions import make_distribution
from rpg_algorithms.policies.bundle import load_bundle
from rpg_algorithms.policies.comparison import BOUND_STRIP
from rpg_platform.cli.main import app
from rpg_platform.evaluation.play import evaluate
from rpg_platform.priors.clone.clone import Clone, CloneSettings, Likelihood, clone_prior, fit, hold_out
from rpg_platform.priors.clone.demonstrations import DemonstrationError, Demonstrations, read_demonstrations
from rpg_platform.priors.environment import bare_task

Array = np.ndarray[Any, Any]
SMALL = CloneSettings(hidden=(32, 32), epochs=8)
BOX = gym.spaces.Box(np.array([-2.0, 0.0]), np.array([2.0, 1.0]), dtype=np.float64)


@pytest.fixture(scope="module")
def swing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty episodes of 200 steps of a noisy controller; some of its actions are at the bounds."""
    return save(tmp_path_factory.mktemp("demonstrations") / "swing.npz", play("Pendulum-v1", swing_up(0.2), 40, 200))


def pendulum(file: Path, episodes: int | None = None) -> Demonstrations:
    env = gym.make("Pendulum-v1")
    found = read_demonstrations(str(file), env.observation_space, env.action_space)
    if episodes is None:
        return found
    assert found.episodes is not None
    keep = found.episodes < episodes
    arrays = {name: getattr(found, name)[keep] for name in ("observations", "actions", "episodes")}
    return dataclasses.replace(found, **arrays, returns=None)


def made(observations: Array, actions: Array, episodes: Array | None = None, space: Any = BOX) -> Demonstrations:
    """Demonstrations out of arrays, in an environment of no use."""
    observation_space = gym.spaces.Box(-np.inf, np.inf, observations.shape[1:], np.float32)
    actions = actions if isinstance(space, gym.spaces.Discrete) else actions.astype(np.float32)
    return Demonstrations(
        observations.astype(np.float32), actions, episodes, None, "made", "0", observation_space, space
    )


# ---- the likelihood -----------------------------------------------------------------------------
def independent_nll(clone: Clone, shown: Demonstrations) -> float:
    """By scipy, from the policy's own outputs: densities inside, tails at the bounds; in the environment's units."""
    obs, actions = (x[clone.heldout] for x in (shown.observations, shown.actions))
    spec = clone.network.spec
    inputs = clone.network(torch.from_numpy(obs)).double().numpy()
    if spec.distribution == "categorical":
        return float(-(inputs - np.logaddexp.reduce(inputs, 1)[:, None])[np.arange(len(obs)), actions].mean())
    low, high = np.array(spec.action_low), np.array(spec.action_high)
    mean, log_std = np.split(inputs, 2, 1)
    half, middle = (high - low) / 2, (high + low) / 2
    y, edge = (actions - middle) / half, 1.0 - BOUND_STRIP
    if spec.distribution == "gaussian":
        normal = scipy.stats.norm(mean, np.exp(log_std))
        inside, start, centre = normal.logpdf(actions), half * edge, middle
    else:
        normal = scipy.stats.norm(mean, np.exp(log_std))
        at = np.clip(y, -edge, edge)
        inside, start, centre = normal.logpdf(np.arctanh(at)) - np.log((1 - at**2) * half), np.arctanh(edge), 0.0
    tails = np.where(y > 0, normal.logsf(centre + start), normal.logcdf(centre - start)) - np.log(BOUND_STRIP * half)
    return float(-np.where(np.abs(y) >= edge, tails, inside).sum(1).mean())


@pytest.mark.parametrize(
    ("distribution", "state_dependent"),
    [("gaussian", False), ("gaussian", True), ("squashed_gaussian", False), ("squashed_gaussian", True)],
)
def test_the_heldout_nll_is_an_independent_computations(distribution: str, state_dependent: bool, swing: Path) -> None:
    shown = pendulum(swing, 8)
    settings = dataclasses.replace(SMALL, distribution=distribution, state_dependent_std=state_dependent, epochs=3)
    clone = fit(shown, settings)
    assert clone.network.spec.state_dependent_std == state_dependent
    expected = independent_nll(clone, shown)
    assert clone.heldout_nll == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert clone.best.heldout_nll == pytest.approx(expected, rel=1e-4, abs=1e-4)  # before the units are folded in
    assert (np.abs(shown.actions[clone.heldout]) >= 2.0).any()
    # Its normaliser is that of the training observations.
    assert clone.network.normalizer is not None
    train = np.delete(shown.observations, clone.heldout, axis=0).astype(float)
    assert clone.network.normalizer.mean.numpy() == pytest.approx(train.mean(0), abs=1e-9)
    assert clone.network.normalizer.var.numpy() == pytest.approx(train.var(0), abs=1e-9)


def test_categorical(tmp_path: Path) -> None:
    env = gym.make("CartPole-v1")
    file = save(tmp_path / "balance.npz", play("CartPole-v1", balance, 20, 100))
    shown = read_demonstrations(str(file), env.observation_space, env.action_space)
    clone = fit(shown, dataclasses.replace(SMALL, epochs=25, lr=5e-3))
    assert clone.network.spec.distribution == "categorical"
    assert clone.heldout_nll == pytest.approx(independent_nll(clone, shown), rel=1e-5)
    assert clone.heldout_nll < 0.3 * math.log(2.0)
    played = evaluate(clone.network, bare_task("CartPole-v1"), 5, 0, "deterministic")
    assert played.basic_return.mean() > 400  # of 500
    with pytest.raises(ValueError, match="distribution='gaussian' does not fit the action space Discrete"):
        fit(shown, dataclasses.replace(SMALL, distribution="gaussian"))


def test_it_finds_the_parameters_of_a_clipped_gaussian() -> None:
    """A linear policy with noise, clipped by its environment: a fifth of its actions are at a bound."""
    rng = np.random.default_rng(0)
    obs = rng.standard_normal((8_000, 2))
    unbounded = np.stack((1.5 * obs[:, 0] - 0.5, 0.5 + 0.3 * obs[:, 1]), 1) + rng.standard_normal((8_000, 2)) * [
        0.4,
        0.1,
    ]
    actions = np.clip(unbounded, BOX.low, BOX.high)
    assert 0.15 < ((actions <= BOX.low) | (actions >= BOX.high)).any(1).mean() < 0.4
    clone = fit(made(obs, actions), CloneSettings(hidden=(), epochs=25, patience=5, lr=1e-2))
    assert clone.network.log_std is not None
    assert clone.network.log_std.exp().tolist() == pytest.approx([0.4, 0.1], rel=0.05)
    points = torch.tensor([[0.0, 0.0], [1.0, 1.0], [-1.0, -2.0], [2.0, 0.0]])
    found = clone.network.distribution(points).mode()
    assert found[:, 0].tolist() == pytest.approx([-0.5, 1.0, -2.0, 2.5], abs=0.05)  # beyond the bound too
    assert found[:, 1].tolist() == pytest.approx([0.5, 0.8, -0.1, 0.5], abs=0.03)
    assert clone.split == "transitions"


@pytest.mark.parametrize("high", [1.0, 200.0])
def test_the_range_of_the_actions_does_not_matter(high: float) -> None:
    """Ranges are the network's units, so the same demonstrations in other units train alike."""
    rng = np.random.default_rng(0)
    obs = rng.standard_normal((4_000, 2))
    actions = 0.3 * np.tanh(obs) + 0.1 * rng.standard_normal((4_000, 2))
    nll = []
    for factor in (1.0, high):
        box = gym.spaces.Box(-factor, factor, (2,), np.float64)
        for family in ("gaussian", "squashed_gaussian"):
            settings = dataclasses.replace(SMALL, distribution=family, state_dependent_std=True)
            nll.append(fit(made(obs, factor * actions, space=box), settings).heldout_nll - 2 * math.log(factor))
    assert nll[2:] == pytest.approx(nll[:2], abs=1e-3)


def test_unbounded_actions() -> None:
    rng = np.random.default_rng(0)
    obs = rng.standard_normal((4_000, 2))
    actions = 1e3 + 50.0 * obs + 5.0 * rng.standard_normal((4_000, 2))
    box = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    clone = fit(made(obs, actions, space=box), CloneSettings(hidden=(), epochs=40, lr=1e-2))
    assert clone.network.log_std is not None
    assert clone.network.log_std.exp().tolist() == pytest.approx([5.0, 5.0], rel=0.1)
    with pytest.raises(ValueError, match="expected finite bounds"):
        fit(made(obs, actions, space=box), dataclasses.replace(SMALL, distribution="squashed_gaussian"))


@pytest.mark.parametrize("distribution", ["gaussian", "squashed_gaussian"])
@pytest.mark.parametrize("state_dependent", [False, True])
def test_the_floor_holds_where_the_likelihood_has_none(distribution: str, state_dependent: bool) -> None:
    """A deterministic demonstrator, in one dimension at its bound: any smaller deviation is likelier."""
    obs = np.random.default_rng(0).standard_normal((1_000, 2))
    actions = np.stack((0.5 * np.tanh(obs[:, 0]), np.ones(1_000)), 1)
    settings = CloneSettings(
        distribution, (16,), state_dependent_std=state_dependent, std_floor=0.1, epochs=60, lr=1e-2
    )
    clone = fit(made(obs, actions), settings)
    log_std = clone.network(torch.from_numpy(obs[:500]).float())[:, 2:]
    assert torch.isfinite(log_std).all()
    # In the environment's units half the range is 2 and 0.5; a state-dependent deviation has the smaller's floor.
    half = torch.tensor(
        [1.0, 1.0] if distribution == "squashed_gaussian" else [0.5, 0.5] if state_dependent else [2.0, 0.5]
    )
    floor = torch.log(0.1 * half)
    assert (log_std >= floor - 1e-5).all()
    assert (log_std[:, 0] < floor[0] + 0.3).float().mean() > 0.9  # and it is reached
    lower = fit(made(obs, actions), dataclasses.replace(settings, std_floor=0.02))
    assert lower.heldout_nll < clone.heldout_nll - 0.5


# ---- what is held out, and stopping -------------------------------------------------------------
def test_whole_episodes_are_held_out() -> None:
    lengths = [50, 10, 40, 100, 30, 70]
    episodes = np.repeat(np.arange(6), lengths)
    shown = made(np.zeros((300, 2)), np.zeros((300, 2)), episodes)
    seen = set()
    for seed in range(20):
        train, heldout, split = hold_out(shown, 0.2, seed)
        assert split == "episodes"
        assert sorted([*train, *heldout]) == list(range(300))
        assert not set(episodes[train]) & set(episodes[heldout])
        assert len(heldout) >= 60
        seen.add(tuple(sorted(set(episodes[heldout]))))
        assert np.array_equal(hold_out(shown, 0.2, seed)[1], heldout)
    assert len(seen) > 5
    assert len(hold_out(shown, 0.9, 0)[0]) >= 10  # an episode always stays


def test_what_is_held_out_of_one_episode_and_of_none() -> None:
    one = made(np.zeros((100, 2)), np.zeros((100, 2)), np.zeros(100, np.int64))
    train, heldout, split = hold_out(one, 0.25, 3)
    assert (train.tolist(), heldout.tolist()) == (list(range(75)), list(range(75, 100)))
    assert split == "last steps of the one episode"
    unknown = made(np.zeros((100, 2)), np.zeros((100, 2)))
    train, heldout, split = hold_out(unknown, 0.25, 3)
    assert (len(train), len(heldout), split) == (75, 25, "transitions")
    assert heldout.tolist() != sorted(range(75, 100))
    assert sorted([*train, *heldout]) == list(range(100))
    with pytest.raises(DemonstrationError, match="made: 1 transition; expected at least one to hold out"):
        hold_out(made(np.zeros((1, 2)), np.zeros((1, 2))), 0.1, 0)


def test_early_stopping_keeps_the_best_epochs_weights() -> None:
    """Noise for actions, few transitions and a large network: it learns them by heart, and what is held out suffers."""
    rng = np.random.default_rng(0)
    obs, actions = rng.standard_normal((300, 4)), rng.uniform(0.1, 0.9, (300, 2))
    shown = made(obs, actions, np.repeat(np.arange(10), 30))
    settings = CloneSettings(hidden=(256, 256), epochs=300, patience=6, holdout=0.3, std_floor=0.01, batch_size=32)
    clone = fit(shown, settings)
    nll = [epoch.heldout_nll for epoch in clone.epochs]
    assert clone.stopped_early
    assert len(nll) < 100
    assert len(nll) == clone.best.number + 6
    assert clone.best.heldout_nll == min(nll) == nll[clone.best.number - 1]
    assert clone.heldout_nll == pytest.approx(min(nll), abs=1e-4)
    assert clone.heldout_nll == pytest.approx(independent_nll(clone, shown), abs=1e-4)
    assert nll[-1] > min(nll) + 0.05
    assert clone.epochs[-1].train_nll < clone.best.train_nll - 0.1
    patient = fit(shown, dataclasses.replace(settings, patience=20))
    assert patient.best.number == clone.best.number
    assert len(patient.epochs) == clone.best.number + 20


def test_equal_seeds_give_equal_clones_and_others_do_not(swing: Path) -> None:
    shown = pendulum(swing, 6)
    torch.manual_seed(1)
    first = fit(shown, SMALL)
    torch.manual_seed(2)  # whatever else has drawn random numbers
    state = torch.get_rng_state()
    again = fit(shown, SMALL)
    assert torch.equal(torch.get_rng_state(), state)
    other = fit(shown, dataclasses.replace(SMALL, seed=1))
    assert [e.heldout_nll for e in first.epochs] == [e.heldout_nll for e in again.epochs]
    for name, value in first.network.state_dict().items():
        assert torch.equal(again.network.state_dict()[name], value), name
    assert not torch.equal(other.network.mlp[0].weight, first.network.mlp[0].weight)
    assert not np.array_equal(other.heldout, first.heldout)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"holdout": 0.0}, "holdout=0.0: expected a number between 0.001 and 0.9"),
        ({"std_floor": 0.0}, "std_floor=0.0: expected a number between 0.0001"),
        ({"epochs": 0}, "epochs=0: expected a number between 1"),
        ({"patience": 0}, "patience=0"),
        ({"lr": math.nan}, "lr=nan"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_settings_out_of_bounds(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CloneSettings(**setting)


def test_a_likelihood_that_breaks_is_an_error_and_no_clone(swing: Path) -> None:
    shown = pendulum(swing, 4)
    wild = dataclasses.replace(shown, observations=shown.observations * np.float32(1e38))  # its variance overflows
    with pytest.raises(DemonstrationError, match="likelihood became NaN or infinite in epoch 1; a smaller lr"):
        fit(dataclasses.replace(wild), dataclasses.replace(SMALL, lr=1.0))


def test_the_likelihoods_gradient_is_a_finite_difference() -> None:
    rng = np.random.default_rng(0)
    actions = np.clip(rng.standard_normal((6, 2)) * 2.0, BOX.low, BOX.high).astype(np.float32)
    assert ((actions == BOX.low) | (actions == BOX.high)).any()
    for family in ("gaussian", "squashed_gaussian"):
        spec = NetworkSpec(1, 2, family, action_low=tuple(BOX.low), action_high=tuple(BOX.high))  # type: ignore[arg-type]
        likelihood = Likelihood(spec, actions)
        parameters = torch.from_numpy(rng.standard_normal((6, 4))).requires_grad_()
        assert torch.autograd.gradcheck(
            lambda x, d=family, f=likelihood: f(make_distribution(d, x), torch.arange(6)), parameters
        )


# ---- what it leaves -----------------------------------------------------------------------------
def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(each) for each in arguments])


def test_a_clone_does_what_was_shown_and_its_card_says_so(tmp_path: Path) -> None:
    """Of five runs of the shipped HalfCheetah prior, by the command."""
    file = save(tmp_path / "run.npz", play("HalfCheetah-v5", shipped(), 5, 1000))
    out = tmp_path / "clone"
    settings = ("--hidden", "128,128", "--epochs", 50, "--episodes", 8, "--seed", 1)
    done = run("clone", file, "--out", out, "--env", "HalfCheetah-v5", *settings, "--json")
    assert done.exit_code == 0, done.output
    summary = json.loads(done.stdout)
    lines = done.stderr.splitlines()
    assert lines[0].startswith("epoch   1  held-out")
    assert "held-out" in lines[-1]
    assert "nats/action" in lines[-1]
    assert "transitions/s" in lines[-1]
    bundle = load_bundle(out)
    card = bundle.card
    assert summary["card"]["content_hash"] == card.content_hash
    made_by = card.made_by
    assert (card.name, card.env_id, card.alpha) == ("clone", "HalfCheetah-v5", None)
    assert made_by["method"] == "behaviour cloning"
    assert made_by["demonstrations"]["data_set"] == "run.npz"
    assert len(made_by["demonstrations"]["sha256"]) == 64
    assert (made_by["demonstrations"]["transitions"], made_by["demonstrations"]["episodes"]) == (5000, 5)
    assert made_by["held_out"]["transitions"] == 1000
    assert made_by["held_out"]["nll_nats_per_action"] < -7
    assert made_by["settings"]["std_floor"] == 0.05
    assert made_by["epochs"] <= 50
    demonstrated = made_by["demonstrations"]["mean_return"]
    assert demonstrated > 8_000
    assert set(card.returns) == {"basic/deterministic", "basic/sampled"}
    assert card.returns["basic/deterministic"].mean > 0.5 * demonstrated  # at this speed one run in five stumbles
    assert card.returns["basic/sampled"].mean > 0.25 * demonstrated  # a sampled run may fall on its back
    # It was not so from the start.
    poor = run("clone", file, "--out", tmp_path / "poor", "--env", "HalfCheetah-v5", *settings, "--epochs", 1, "--json")
    assert json.loads(poor.stdout)["card"]["returns"]["basic/deterministic"]["mean"] < 0.3 * demonstrated
    # Without an alpha there is no omega.
    config = RPGConfig().environment("HalfCheetah-v5").training(prior=bundle, addon_reward="math:sin", alpha_hat=0.1)
    with pytest.raises(ValueError, match=r"omega=1.0: prior 'clone' records no alpha.*give omega_prime"):
        config.training(omega=1.0).reward_weights()
    assert config.copy().training(omega=None, omega_prime=0.1).reward_weights()["omega_prime"] == 0.1


def test_minari_by_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env = gym.make("Pendulum-v1", g=9.0)
    record(tmp_path, "pendulum/swing-v0", env, swing_up(0.2), 4)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    out = tmp_path / "clone"
    done = run("clone", "pendulum/swing-v0", "--out", out, "--epochs", 3, "--hidden", "16", "--episodes", 2)
    assert done.exit_code == 0, done.output
    assert f"Check it: rpg priors check {out}" in done.stdout
    assert "pendulum/swing-v0: 800 transitions in 4 episodes, mean return" in done.stdout
    card = load_bundle(out).card
    assert (card.env_id, card.env_kwargs) == ("Pendulum-v1", {"g": 9.0})
    assert card.made_by["demonstrations"]["data_set"] == "pendulum/swing-v0"
    assert card.made_by["held_out"]["split_by"] == "episodes"
    assert card.returns["basic/sampled"].episodes == 2


def test_an_environment_is_not_made_on_a_data_sets_word(tmp_path: Path) -> None:
    """Its id may name any module: playing needs --env."""
    folder = record(tmp_path, "swing-v0", gym.make("Pendulum-v1"), swing_up(0.2), 2)
    file = folder / "data" / "metadata.json"
    metadata = json.loads(file.read_text())
    described = json.loads(metadata["env_spec"]) | {"id": "antigravity:Fly-v0"}
    file.write_text(json.dumps(metadata | {"env_spec": json.dumps(described)}))
    arguments = ("--out", tmp_path / "clone", "--epochs", 1, "--hidden", "8", "--episodes", 1)
    done = run("clone", folder, *arguments)
    assert done.exit_code == 2
    assert "antigravity:Fly-v0" in done.stderr
    assert "--env ID or --task NAME" in done.stderr
    assert run("clone", folder, *arguments, "--env", "Pendulum-v1").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["swing"], "does not name its environment; say which: --env ID or --task NAME"),
        (["swing", "--env", "Pendulum-v1", "--task", "hopper-height"], "give one of them"),
        (["swing", "--env", "Pendulm-v1"], "environment 'Pendulm-v1': "),
        (["swing", "--task", "hopper-hight"], "did you mean 'hopper-height'"),
        (["swing", "--env", "HalfCheetah-v5"], "observations have 3 entries .* the environment has 17"),
        (["swing", "--env", "Pendulum-v1", "--hidden", "64,big"], "--hidden '64,big': expected widths such as 256,256"),
        (["swing", "--env", "Pendulum-v1", "--hidden", "0"], "--hidden '0': expected at most 16 widths of 1 to 8192"),
        (["swing", "--env", "Pendulum-v1", "--holdout", "1.5"], "holdout=1.5: expected a number"),
        (["swing", "--env", "Pendulum-v1", "--distribution", "categorical"], "'categorical' does not fit"),
        (["nowhere"], "nowhere: no such file or folder"),
    ],
)
def test_what_the_command_refuses(arguments: list[str], message: str, swing: Path, tmp_path: Path) -> None:
    arguments = [str(swing) if each == "swing" else each for each in arguments]
    done = run("clone", *arguments, "--out", tmp_path / "out")
    assert done.exit_code == 2, done.output
    assert re.search(message, done.stderr), done.stderr
    assert not (tmp_path / "out").exists()


def test_a_squashed_clone_swings_up_too(swing: Path, tmp_path: Path) -> None:
    settings = CloneSettings("squashed_gaussian", hidden=(64, 64), state_dependent_std=True, epochs=30)
    clone, card = clone_prior(str(swing), tmp_path / "clone", bare_task("Pendulum-v1"), settings, episodes=10)
    assert clone.network.spec.state_dependent_std
    assert card.returns["basic/deterministic"].mean > -200  # the controller's is about -150, a random policy's -1,200
