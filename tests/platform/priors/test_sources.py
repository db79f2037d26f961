"""Any source to a bundle: recognised by content, held against its environment, never written over another."""

from __future__ import annotations

import json
import pickle
import re
import shlex
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import A2C
from tests.algorithms.registry import make_prior
from tests.platform.priors.archives import with_data
from tests.platform.priors.sb3_zips import box, dumps, model_zip, policy_state, stub
from torch import nn

from rpg_algorithms.policies.bundle import load_bundle, load_card
from rpg_platform.bundles import resolve_prior
from rpg_platform.priors.environment import chosen_task, task_of_card, wrapper
from rpg_platform.priors.imported import ImportOptions, PriorImportError
from rpg_platform.priors.origin import hash_of
from rpg_platform.priors.recognise import recognise
from rpg_platform.priors.sources import import_prior, read_source
from rpg_platform.spec.sweep import SweepSpec
from rpg_platform.storage.sweep import Sweep
from rpg_platform.tasks.environments import spaces_of

PENDULUM = ImportOptions(env_id="Pendulum-v1")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable-Baselines3 model for Pendulum-v1; the zip stores spaces but no environment."""
    file = tmp_path_factory.mktemp("sb3") / "swing up.zip"
    A2C("MlpPolicy", "Pendulum-v1", policy_kwargs={"net_arch": [8]}, device="cpu").save(file)
    return file


# ---- what a file is -----------------------------------------------------------------------------
def _agent(path: Path) -> None:
    torch.save({"actor.0.weight": torch.zeros(2, 2), "actor.0.bias": torch.zeros(2)}, path)


def _legacy_agent(path: Path) -> None:
    torch.save({"actor.0.weight": torch.zeros(2, 2)}, path, _use_new_zipfile_serialization=False)


def _script(path: Path) -> None:
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), path)


def _onnx(path: Path) -> None:
    import onnx.helper as make

    identity = make.make_node("Identity", ["x"], ["y"])
    x, y = (make.make_tensor_value_info(name, 1, [1, 2]) for name in "xy")
    path.write_bytes(make.make_model(make.make_graph([identity], "g", [x], [y])).SerializeToString())


def _zip(path: Path, *names: str) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")


@pytest.mark.parametrize(
    ("name", "write", "kind"),
    [
        ("agent.pt", _agent, "state-dict"),
        ("agent.cleanrl_model", _legacy_agent, "state-dict"),
        ("agent", _agent, "state-dict"),
        ("policy.pt", _script, "torchscript"),
        ("policy.onnx", _onnx, "onnx"),
        ("policy", _onnx, "onnx"),
        ("model.zip", lambda path: _zip(path, "data", "policy.pth", "pytorch_variables.pth"), "sb3"),
    ],
)
def test_files_are_recognised_by_their_content(
    name: str, write: Callable[[Path], None], kind: str, tmp_path: Path
) -> None:
    write(tmp_path / name)
    assert recognise(tmp_path / name).name == kind


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.zip", b"", "holds nothing: the file is empty; read are"),
        ("model.pkl", pickle.dumps({"a": 1}), "holds a pickle: it cannot be loaded without executing what it says"),
        ("model.zip", b"\x1f\x8b\x08rest", "a gzip archive; unpack it first"),
        ("model.h5", b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        ("model.txt", b"hello, this is text\n", "holds text; read are .* a Stable-Baselines3 zip"),
        ("model.json", b'{"a": 1}', "a JSON document"),
        ("model.pth", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("model.zip", b"PK\x03\x04 cut off", "archive is truncated"),
        ("model.bin", bytes(range(256)), "data of an unknown kind"),
        (
            "actions.npz",
            lambda path: np.savez(path, mean=np.zeros(2)),
            r"numpy arrays \(.npz\); demonstrations are for rpg clone",
        ),
        ("photos.zip", lambda path: _zip(path, "a.png", "b.png"), "a zip archive of a.png, b.png"),
        ("old.zip", lambda path: _zip(path, "data", "parameters"), "Stable-Baselines 2"),
        ("program.pt2", lambda path: _zip(path, "m/archive_format"), "a program of torch.export"),
        (
            "policy.onnx",
            _script,
            r"named .onnx like an ONNX model, but it holds a TorchScript archive; rename it, or say",
        ),
        ("policy.zip", _agent, "named .zip like a Stable-Baselines3 zip .* --format state-dict"),
        ("policy.pt", _onnx, "but it holds an ONNX model"),
    ],
)
def test_other_files_are_refused_by_what_they_are(name: str, content: Any, message: str, tmp_path: Path) -> None:
    if callable(content):
        content(tmp_path / name)
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(PriorImportError, match=message) as refused:
        read_source(str(tmp_path / name))
    assert str(refused.value).startswith(str(tmp_path / name))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ((), "a folder that holds nothing; read are"),
        (("checkpoint_000000/x", "checkpoint_000001/x"), "choose one of its checkpoints, such as .*checkpoint_000001"),
        (("policies/x", "algorithm_state.pkl"), "old API stack"),
        (("model.zip", "log.txt"), "the model in it may be .*model.zip"),
        (("a", "b"), "a folder that holds a, b"),
    ],
)
def test_folders(files: tuple[str, ...], message: str, tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(PriorImportError, match=message):
        read_source(str(tmp_path))


@pytest.mark.parametrize(
    ("source", "form", "message"),
    [
        (
            "nowhere/model.zip",
            None,
            r"nowhere/model.zip: neither a file or folder, nor an MLflow address .* nor module:function",
        ),
        ("https://example.org/model.zip", None, "remote files are not fetched; download it"),
        ("s3://bucket/model.zip", None, "remote files are not fetched"),
        ("x", "sb4", "format 'sb4': no such format; did you mean 'sb3'"),
    ],
)
def test_sources_that_are_none(source: str, form: str | None, message: str) -> None:
    with pytest.raises(PriorImportError, match=message):
        read_source(source, form=form)


def test_a_named_format_is_held_to(model: Path) -> None:
    with pytest.raises(PriorImportError, match=r"swing up\.zip"):
        read_source(str(model), form="torchscript")


# ---- the bundle that comes out ------------------------------------------------------------------
def test_the_card_says_where_it_comes_from(model: Path, tmp_path: Path) -> None:
    done = import_prior(str(model), tmp_path / "prior", PENDULUM)
    card = load_card(tmp_path / "prior")
    assert card == done.card
    assert (card.name, card.env_id) == ("swing-up", "Pendulum-v1")
    made_by = card.made_by["import"]
    assert (made_by["format"], made_by["source"]) == ("sb3/a2c", "swing up.zip")
    assert made_by["sha256"] == hash_of(model)
    assert set(card.made_by["versions"]) == {"residual-policy-gradient", "torch", "numpy", "gymnasium"}
    assert str(model.parent) not in json.dumps(card.model_dump()), "no path of whoever imported it"
    env = gym.make("Pendulum-v1")
    load_bundle(tmp_path / "prior").check_spaces(env.observation_space, env.action_space, "Pendulum-v1")


def test_spaces_of_source_and_environment_must_agree(model: Path, tmp_path: Path) -> None:
    with pytest.raises(
        PriorImportError, match=r"does not say which environment it acts in .* add --env ID or --task NAME"
    ):
        import_prior(str(model), tmp_path / "out")
    with pytest.raises(
        PriorImportError,
        match=r"its observation space is Box\(.*\(3,\), float32\), that of HalfCheetah-v5 is Box\(-inf, inf, \(17,\)",
    ):
        import_prior(str(model), tmp_path / "out", ImportOptions(env_id="HalfCheetah-v5"))
    other = ImportOptions(env_id="tests.platform.priors.test_sources:StrongPendulum")
    with pytest.raises(PriorImportError, match=r"its action space is Box\(-2.0, 2.0.*that of .* is Box\(-3.0, 3.0"):
        import_prior(str(model), tmp_path / "out", other)
    with pytest.raises(PriorImportError, match="--task x and --env Pendulum-v1: give one"):
        import_prior(str(model), tmp_path / "out", PENDULUM, task="x")
    with pytest.raises(PriorImportError, match="--env-kwargs without --env"):
        import_prior(str(model), tmp_path / "out", ImportOptions(env_kwargs={"g": 9.8}))
    with pytest.raises(PriorImportError, match="--wrapper without --env"):
        import_prior(str(model), tmp_path / "out", wrappers=[(FLAT, {})])
    assert not (tmp_path / "out").exists()


class StrongPendulum(gym.Wrapper[Any, Any, Any, Any]):
    """Pendulum with other bounds of its actions, and other bounds of its observations, which do not matter."""

    def __init__(self) -> None:
        super().__init__(gym.make("Pendulum-v1"))
        self.action_space = gym.spaces.Box(-3.0, 3.0, (1,))
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (3,))


class Unmakeable(gym.Env[Any, Any]):
    """An environment whose simulator is not installed."""

    def __init__(self) -> None:
        raise ImportError("No module named 'pybullet'")


UNMAKEABLE = "tests.platform.priors.test_sources:Unmakeable"


def test_the_source_is_looked_at_before_the_environment_is_made(tmp_path: Path) -> None:
    """Nobody installs a simulator to learn that the file is none that is read."""
    agent, pickled, dqn = tmp_path / "agent.pt", tmp_path / "model.pkl", tmp_path / "dqn.zip"
    torch.save({"some": torch.zeros(2)}, agent)
    pickled.write_bytes(pickle.dumps({"a": 1}))
    dqn.write_bytes(
        with_data(model_zip("ppo"), policy_class=dumps(stub("stable_baselines3.dqn.policies", "DQNPolicy")))
    )
    for source, message in (
        (agent, "a state dictionary of some|holds some"),
        (pickled, "a pickle"),
        (dqn, "DQN learns"),
    ):
        with pytest.raises(PriorImportError, match=message):
            import_prior(str(source), tmp_path / "out", ImportOptions(env_id=UNMAKEABLE))


def test_a_prior_of_stored_spaces_meets_its_environment_later(model: Path, tmp_path: Path) -> None:
    missing = ImportOptions(env_id=UNMAKEABLE)
    with pytest.raises(PriorImportError, match=r"No module named 'pybullet'; .* --stored-spaces imports the policy by"):
        import_prior(str(model), tmp_path / "out", missing)
    done = import_prior(str(model), tmp_path / "named", missing, stored_spaces=True)
    assert done.card.env_id == UNMAKEABLE
    assert "a sweep compares them with its task's when it starts" in done.notes[-1]
    nameless = import_prior(str(model), tmp_path / "nameless", stored_spaces=True).card
    assert nameless.env_id == ""
    for card in (done.card, nameless):
        assert card.made_by["import"]["spaces"] == "as stored in the source; no environment was made"
    with pytest.raises(ValueError, match="its card names no environment: name one, --env ID or --task NAME"):
        task_of_card(nameless)
    agent = tmp_path / "agent.pt"
    torch.save({"actor.0.weight": torch.zeros(2, 3), "actor.0.bias": torch.zeros(2)}, agent)
    with pytest.raises(PriorImportError, match=r"holds no observation and action spaces; .*no environment is made\)"):
        import_prior(str(agent), tmp_path / "out", missing, stored_spaces=True)
    sweep: dict[str, Any] = {
        "name": "later",
        "prior": str(tmp_path / "nameless"),
        "algorithm": "rpg",
        "weights": {"omega_prime": 0.1, "alpha_hat": 0.1},
        "budget": {"env_steps": 100_000},
        "storage": str(tmp_path / "results"),
    }
    turn = {"turn": "next_obs[0]"}
    fits = SweepSpec.model_validate(sweep | {"task": {"env": "Pendulum-v1", "addons": turn}})
    assert Sweep.resolve(fits).prior is not None
    frames = [{"gymnasium.wrappers:FrameStackObservation": {"stack_size": 2}}, {FLAT: {}}]
    task = {"env": "Pendulum-v1", "wrappers": frames, "addons": turn}
    with pytest.raises(ValueError, match=r"is not that of Pendulum-v1.* takes 3 numbers, an observation has 6$"):
        Sweep.resolve(SweepSpec.model_validate(sweep | {"task": task}))


LEFT = "sb3_contrib.common.wrappers:TimeFeatureWrapper"
PASSED = 'gymnasium.wrappers:TimeAwareObservation={"normalize_time": true}'
FRAMES = 'gymnasium.wrappers:FrameStackObservation={"stack_size": 3, "padding_type": "zero"}'
FLAT = "gymnasium.wrappers:FlattenObservation"


@pytest.mark.parametrize(
    ("size", "said", "ways"),
    [
        (4, "the network takes 4 numbers, an observation has 3; one number more: a time feature?", ([LEFT], [PASSED])),
        (9, "takes 9 numbers, an observation has 3; 3 times as many: a stack of 3 observations?", ([FRAMES, FLAT],)),
    ],
)
def test_wrappers_that_change_the_observation(
    size: int, said: str, ways: tuple[list[str], ...], tmp_path: Path
) -> None:
    """The size is explained, and each way on that the message names leads to a prior."""
    agent = tmp_path / "agent.zip"
    spaces = box([-1.0] * size, [1.0] * size), box([-2.0], [2.0])
    agent.write_bytes(model_zip("ppo", policy_state("ppo", size, 1), *spaces))
    script = tmp_path / "net.pt"
    torch.jit.save(torch.jit.trace(nn.Linear(size, 2), torch.zeros(1, size)), script)
    for source in (agent, script):
        with pytest.raises(PriorImportError, match=re.escape(said)) as caught:
            import_prior(str(source), tmp_path / "out", PENDULUM)
        for way in ways:
            assert " ".join(shlex.join(["--wrapper", each]) for each in way) in str(caught.value)
    for i, way in enumerate(ways):
        out = tmp_path / f"out{i}"
        card = import_prior(str(agent), out, PENDULUM, wrappers=[wrapper(each) for each in way]).card
        assert [f"{name}" for name in card.made_by["import"]["wrappers"]] == [each.partition("=")[0] for each in way]
        with pytest.raises(ValueError, match=r"not made on a card's word; .* --wrapper MODULE:CLASS, or"):
            task_of_card(card)
        played = chosen_task(None, "Pendulum-v1", card, None, [wrapper(each) for each in way])
        load_bundle(out).check_spaces(*spaces_of(played), "Pendulum-v1")


def test_a_time_feature_is_told_by_its_bounds(tmp_path: Path) -> None:
    agent = tmp_path / "agent.zip"
    spaces = box([-1.0, -1.0, -8.0, 0.0], [1.0, 1.0, 8.0, 1.0]), box([-2.0], [2.0])
    agent.write_bytes(model_zip("ppo", policy_state("ppo", 4, 1), *spaces))
    with pytest.raises(PriorImportError, match="one number more, and its last lies between 0 and 1: a time feature"):
        import_prior(str(agent), tmp_path / "out", PENDULUM)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("FlattenObservation", "expected module:Class or module:Class="),
        ("a:B={", "its arguments are not JSON"),
        ("a:B=[1]", "its arguments are list"),
    ],
)
def test_wrappers_as_text(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wrapper(text)


def test_bounds_of_observations_only_describe(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = StrongPendulum.__init__

    def weaker(self: StrongPendulum) -> None:
        original(self)
        self.action_space = gym.spaces.Box(-2.0, 2.0, (1,))

    monkeypatch.setattr(StrongPendulum, "__init__", weaker)
    options = ImportOptions(env_id="tests.platform.priors.test_sources:StrongPendulum")
    done = import_prior(str(model), tmp_path / "out", options)
    assert done.card.observation_space["high"] == "inf", "the environment's, which a sweep will check"


def test_nothing_is_overwritten_unasked(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "prior"
    first = import_prior(str(model), out, PENDULUM)
    with pytest.raises(PriorImportError, match="a bundle is there; add --force to replace it"):
        import_prior(str(model), out, PENDULUM, name="second")
    assert load_card(out) == first.card
    assert import_prior(str(model), out, PENDULUM, name="second", force=True).card.name == "second"
    for place, message in ((model, "a file is there"), (model.parent, "a folder with other files is there")):
        before = sorted(model.parent.iterdir())
        with pytest.raises(PriorImportError, match=message):
            import_prior(str(model), place, PENDULUM, force=True)
        assert sorted(model.parent.iterdir()) == before


def test_the_environment_of_a_task(tmp_path: Path) -> None:
    source = resolve_prior("halfcheetah-spg")
    done = import_prior(str(source), tmp_path / "prior", task="halfcheetah-foot-angle")
    assert done.card.env_id == "HalfCheetah-v5"
    walk = make_prior(tmp_path / "walk")
    with pytest.raises(PriorImportError, match="it does not act there"):
        import_prior(str(walk), tmp_path / "out", task="halfcheetah-foot-angle")


def test_hashes_of_folders(tmp_path: Path) -> None:
    """They depend on names and contents, on nothing else."""
    folder = make_prior(tmp_path / "a")
    before = hash_of(folder)
    assert before == hash_of(folder)
    (folder / "card.json").rename(folder / "kard.json")
    assert hash_of(folder) != before
