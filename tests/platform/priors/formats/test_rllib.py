"""Checkpoints of RLlib's own PPO and SAC: what is imported acts as RLlib does, and nothing in them is executed."""

from __future__ import annotations

import base64
import io
import json
import pickle
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import msgpack
import numpy as np
import pytest
import torch
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.connectors.env_to_module.mean_std_filter import MeanStdFilter
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from tests.platform.priors.archives import smuggled
from tests.platform.priors.payloads import Payload, acts, payload, refusal
from tests.platform.priors.rllib_policies import OWN_ENV, Reference, configurations, make

from rpg_algorithms.policies.bundle import load_bundle
from rpg_algorithms.policies.numpy_policy import NumpyPolicy
from rpg_algorithms.policies.spaces import flatten_observations
from rpg_platform.evaluation.prior_check import check_prior
from rpg_platform.priors.environment import bare_task
from rpg_platform.priors.formats import rllib
from rpg_platform.priors.imported import Imported, ImportOptions, PriorImportError
from rpg_platform.priors.sources import import_prior

MODULE = Path("learner_group", "learner", "rl_module", "default_policy")
OBSERVATIONS = Path("env_runner", "env_to_module_connector")
ACTIONS = Path("env_runner", "module_to_env_connector")
FILTER = OBSERVATIONS / "MeanStdFilter"


@pytest.fixture(scope="module")
def references(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reference]:
    folder = tmp_path_factory.mktemp("rllib")
    return {name: make(name, config, folder) for name, config in configurations().items()}


@pytest.fixture
def copy(references: dict[str, Reference], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a checkpoint, to damage."""

    def make_copy(name: str) -> Path:
        return Path(shutil.copytree(references[name].folder, tmp_path / name))

    return make_copy


def change(file: Path, edit: Callable[[Any], None]) -> None:
    """Rewrites a pickle of our own."""
    data = pickle.loads(file.read_bytes())
    edit(data)
    file.write_bytes(pickle.dumps(data))


def read(folder: Path) -> Imported:
    return rllib.read(folder, ImportOptions())


# ---- parity with RLlib --------------------------------------------------------------------------
@pytest.mark.parametrize("name", list(configurations()))
def test_acts_as_rllib_does(name: str, references: dict[str, Reference], tmp_path: Path) -> None:
    """Log-probabilities, sampled actions as the environment gets them, deterministic actions: on 1,000 states."""
    reference = references[name]
    own = name in ("shared", "free", "clamped", "sac")  # of a class that RLlib was given: the checkpoint names none
    done = import_prior(str(reference.folder), tmp_path / "bundle", ImportOptions(env_id=OWN_ENV if own else None))
    network = load_bundle(done.folder).build()
    spec, space = network.spec, done.imported.observation_space
    assert space is not None
    obs = torch.from_numpy(flatten_observations(space, reference.observations))
    actions, log_prob = torch.from_numpy(reference.actions), reference.log_prob
    if spec.distribution == "gaussian":  # the density of the environment's actions, of which RLlib's is a multiple
        bounds = done.imported.action_space
        assert isinstance(bounds, gym.spaces.Box)
        scale, shift = (bounds.high - bounds.low) / 2, (bounds.high + bounds.low) / 2
        actions, log_prob = actions * torch.from_numpy(scale) + torch.from_numpy(shift), log_prob - np.log(scale).sum()
    with torch.no_grad():
        ours = network.distribution(obs).log_prob(actions).numpy()
    np.testing.assert_allclose(ours, log_prob, rtol=1e-5, atol=1e-5)
    acting = NumpyPolicy(network)
    np.testing.assert_allclose(acting.to_env(actions.numpy()), reference.env_actions, rtol=1e-5, atol=1e-5)
    mode = acting.mode(acting.outputs(obs.numpy()))
    expected = reference.deterministic
    if spec.distribution == "gaussian":
        expected = expected * scale + shift
    np.testing.assert_allclose(mode, expected, rtol=1e-4, atol=1e-5)
    if name == "sac":
        log_std = acting.outputs(obs.numpy())[:, 2:]
        assert (log_std.min(), log_std.max()) == (-5.0, 2.0), "RLlib's clamps are at work in this test"


def test_what_comes_with_the_policy(references: dict[str, Reference]) -> None:
    filtered, clamped, sac = (read(references[name].folder) for name in ("filter", "clamped", "sac"))
    assert (filtered.format, filtered.env_id, filtered.alpha) == ("rllib/ppo", "Pendulum-v1", None)
    assert filtered.facts["ray"] == "2.60.0"
    assert (filtered.facts["env_steps"], filtered.facts["gamma"]) == (64, 0.99)
    assert filtered.facts["observation_filter"].startswith("MeanStdFilter of 6")
    assert filtered.network.spec.graph is None, "a perceptron stays one, so that the fused engine trains it"
    assert filtered.network.normalizer is not None
    assert clamped.network.spec.graph is not None, "one clamp a dimension, as the bounds differ"
    assert (sac.format, sac.env_id) == ("rllib/sac", None)
    assert sac.alpha == pytest.approx(references["sac"].alpha, rel=1e-3)
    assert "tanh of the mean" in sac.notes[0]


def test_an_environment_without_a_name_must_be_named(references: dict[str, Reference], tmp_path: Path) -> None:
    with pytest.raises(PriorImportError, match=r"does not say which environment .* add --env ID or --task NAME"):
        import_prior(str(references["sac"].folder), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_states_in_msgpack(copy: Callable[[str], Path]) -> None:
    """As ``save_to_path(use_msgpack=True)`` writes them, with arrays as the package msgpack_numpy encodes them."""

    def encode(value: Any) -> Any:
        assert isinstance(value, np.ndarray)
        return {b"nd": True, b"type": value.dtype.str, b"kind": b"", b"shape": value.shape, b"data": value.tobytes()}

    folder = copy("filter")
    expected = read(folder).network.state_dict()
    for place, name in ((MODULE, "module_state"), (FILTER, "state")):
        state = pickle.loads((folder / place / f"{name}.pkl").read_bytes())
        (folder / place / f"{name}.pkl").unlink()
        (folder / place / f"{name}.msgpack").write_bytes(msgpack.packb(state, default=encode))
    found = read(folder).network.state_dict()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    packed = {"pi.net.mlp.0.weight": {b"nd": True, b"type": "|O", b"kind": b"O", b"shape": [1], b"data": b"\x80\x04."}}
    (folder / MODULE / "module_state.msgpack").write_bytes(msgpack.packb(packed))
    with pytest.raises(PriorImportError, match=r"module_state.msgpack: an array of \|O: expected numbers"):
        read(folder)


# ---- what is refused ----------------------------------------------------------------------------
def _model(key: str, value: Any) -> Callable[[Any], None]:
    return lambda data: data["ctor_args_and_kwargs"][1]["model_config"].update({key: value})


def _connector(name: str) -> Callable[[Any], None]:
    from ray.rllib.connectors.env_to_module.frame_stacking import FrameStackingEnvToModule
    from ray.rllib.connectors.env_to_module.prev_actions_prev_rewards import PrevActionsPrevRewards

    kind = {"stack": FrameStackingEnvToModule, "previous": PrevActionsPrevRewards}[name]
    return lambda data: data["ctor_args_and_kwargs"][1]["connectors"].insert(0, (kind, (), {}))


def _actions_as_they_are(data: Any) -> None:
    for kind, _, kwargs in data["ctor_args_and_kwargs"][1]["connectors"]:
        if kind.__name__ == "NormalizeAndClipActions":
            kwargs["normalize_actions"] = False


def _own_module(data: Any) -> None:
    data["class"] = type(data["class"].__name__, (), {"__module__": "tests.platform.priors.formats.test_rllib"})
    globals()[data["class"].__name__] = data["class"]


@pytest.mark.parametrize(
    ("name", "file", "edit", "message"),
    [
        ("filter", MODULE, _model("use_lstm", True), r"its model has an LSTM \(use_lstm=True\)"),
        ("filter", MODULE, _model("fcnet_activation", "gelu6"), "activation 'gelu6' is not read; expected one of relu"),
        ("filter", MODULE, _own_module, r"its RLModule is tests\.\S+; only RLlib's own PPO and SAC modules are read"),
        (
            "filter",
            OBSERVATIONS,
            _connector("stack"),
            r"connector FrameStacking \(with arguments\) stands between environment and network",
        ),
        ("discrete", OBSERVATIONS, _connector("previous"), "connector PrevActionsPrevRewards"),
        ("sac", ACTIONS, _actions_as_they_are, r"with normalize_actions=False its SAC sends tanh\(u\), in \[-1, 1\]"),
    ],
)
def test_refuses_what_it_cannot_represent(
    name: str, file: Path, edit: Callable[[Any], None], message: str, copy: Callable[[str], Path]
) -> None:
    folder = copy(name)
    change(folder / file / "class_and_ctor_args.pkl", edit)
    with pytest.raises(PriorImportError, match=message):
        read(folder)


def test_refuses_an_empty_filter(copy: Callable[[str], Path]) -> None:
    folder = copy("filter")
    change(folder / FILTER / "state.pkl", lambda data: data[None]["running_stats"][0].update(num_pushes=0))
    with pytest.raises(PriorImportError, match="the filter has seen 0 observations"):
        read(folder)


def test_clipped_instead_of_unsquashed(copy: Callable[[str], Path]) -> None:
    """normalize_actions=False: the sample itself goes to the environment, and says so where nothing clips it."""
    folder = copy("free")
    unsquashed = read(folder).network
    change(folder / ACTIONS / "class_and_ctor_args.pkl", _actions_as_they_are)
    imported = read(folder)
    assert "this prior clips them" in imported.notes[0]
    last = f"mlp.{2 * len(imported.network.spec.hidden)}.weight"
    scaled = imported.network.state_dict()[last] * torch.tensor([[1.5], [4.25]])
    assert torch.allclose(unsquashed.state_dict()[last], scaled)
    log_std = imported.network.state_dict()["log_std"] + torch.tensor([1.5, 4.25]).log()
    assert torch.allclose(unsquashed.state_dict()["log_std"], log_std)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "rllib_checkpoint.json").write_text("{"), "not JSON"),
        (
            lambda f: (f / "rllib_checkpoint.json").write_text(json.dumps({"checkpoint_version": "1.2"})),
            r"checkpoint of version 1.2 .*; only those of the new API stack",
        ),
        (lambda f: shutil.rmtree(f / "learner_group"), "expected a whole Algorithm's checkpoint"),
        (lambda f: shutil.rmtree(f / "env_runner"), "what is done to observations and actions is unknown"),
        (lambda f: (f / MODULE / "module_state.pkl").unlink(), "module_state.pkl: no such file"),
        (
            lambda f: shutil.copytree(f / MODULE, f / MODULE.parent / "other"),
            "default_policy, other: choose one with --module",
        ),
    ],
)
def test_incomplete_checkpoints(damage: Callable[[Path], Any], message: str, copy: Callable[[str], Path]) -> None:
    folder = copy("filter")
    damage(folder)
    with pytest.raises(PriorImportError, match=message):
        read(folder)


def test_weights_that_do_not_fit(copy: Callable[[str], Path]) -> None:
    folder = copy("filter")
    file = folder / MODULE / "module_state.pkl"
    change(file, lambda data: data.update({"pi.net.mlp.0.weight": np.zeros((2, 5), np.float32)}))
    with pytest.raises(PriorImportError, match="a layer with 8 outputs is followed by one with 5 inputs"):
        read(folder)
    change(file, lambda data: data.update({"pi.net.mlp.0.weight": np.full((2, 8), np.nan, np.float32)}))
    with pytest.raises(PriorImportError, match=r"'pi\.net\.mlp\.0\.weight' has values that are not finite"):
        read(folder)


# ---- nothing is executed ------------------------------------------------------------------------
def test_no_pickle_of_a_checkpoint_is_executed(copy: Callable[[str], Path], tmp_path: Path) -> None:
    """Each pickle in turn carries a payload, alone and before what belongs there; read or refused, it never runs."""
    folder, marker = copy("filter"), tmp_path / "executed"
    files = sorted(folder.rglob("*.pkl"))
    assert len(files) > 15
    for file in files:
        whole = file.read_bytes()
        for data in (payload(marker), smuggled(whole, marker)):
            assert acts(data, marker), file
            file.write_bytes(data)
            assert str(file.parent) in (refusal(read, folder) or str(file.parent))
            assert not marker.exists(), file
        file.write_bytes(whole)
    read(folder)


def test_no_array_of_a_filter_is_executed(copy: Callable[[str], Path], tmp_path: Path) -> None:
    folder, marker = copy("filter"), tmp_path / "executed"
    buffer = io.BytesIO()
    np.save(buffer, np.array([Payload(marker)] * 3, dtype=object), allow_pickle=True)
    text = base64.b64encode(zlib.compress(buffer.getvalue())).decode()
    buffer.seek(0)
    np.load(buffer, allow_pickle=True)
    assert marker.exists(), "the payload works"
    marker.unlink()
    change(folder / FILTER / "state.pkl", lambda data: data[None]["running_stats"][0].update(mean_array=text))
    with pytest.raises(PriorImportError, match=r"MeanStdFilter: holds \|O, expected numbers"):
        read(folder)
    assert not marker.exists()


def test_a_filter_that_unpacks_without_end(copy: Callable[[str], Path]) -> None:
    folder = copy("filter")
    bomb = base64.b64encode(zlib.compress(bytes(200_000_000))).decode()
    change(folder / FILTER / "state.pkl", lambda data: data[None]["running_stats"][0].update(mean_array=bomb))
    with pytest.raises(PriorImportError, match="truncated, or too large"):
        read(folder)


@pytest.mark.parametrize(
    "place", [MODULE / "module_state.pkl", MODULE / "class_and_ctor_args.pkl", FILTER / "state.pkl"]
)
def test_truncated_files(place: Path, copy: Callable[[str], Path]) -> None:
    folder = copy("filter")
    whole = (folder / place).read_bytes()
    for size in (0, 1, 10, len(whole) // 2, len(whole) - 1):
        (folder / place).write_bytes(whole[:size])
        with pytest.raises(PriorImportError, match=place.name):
            read(folder)


@pytest.mark.slow
def test_a_trained_policy_earns_here_what_it_earned_there(local_ray: None, tmp_path: Path) -> None:
    """With a remote env runner, whose filter RLlib merges into the checkpoint."""
    config = (
        PPOConfig()
        .environment("CartPole-v1")
        .env_runners(num_env_runners=1, env_to_module_connector=lambda env, spaces=None, device=None: MeanStdFilter())
        .rl_module(model_config=DefaultModelConfig(fcnet_hiddens=[32, 32]))
        .training(train_batch_size_per_learner=1_000, minibatch_size=250, num_epochs=6, lr=3e-3)
        .debugging(seed=1, log_level="ERROR")
    )
    algorithm = config.build_algo()
    try:
        for _ in range(10):
            earned = algorithm.train()["env_runners"]["episode_return_mean"]
        algorithm.save_to_path(str(tmp_path / "checkpoint"))
    finally:
        algorithm.stop()
    assert earned > 80, "an untrained policy balances for about 22 steps"
    done = import_prior(str(tmp_path / "checkpoint"), tmp_path / "prior")
    played = check_prior(load_bundle(done.folder), bare_task("CartPole-v1"), episodes=50)
    assert played.basic["sampled"].mean > 0.8 * earned
