"""Stable-Baselines3 archives that are refused, each with its own reason; and none of them runs anything."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.platform.priors.archives import (
    parts_of,
    pickles_of,
    saved,
    smuggled,
    smuggled_torch,
    with_data,
    with_parts,
    zipped,
)
from tests.platform.priors.payloads import Payload, acts, payload
from tests.platform.priors.sb3_models import trained
from tests.platform.priors.sb3_zips import (
    box,
    discrete,
    dumps,
    instance,
    layers,
    model_zip,
    policy_state,
    stub,
    vecnormalize,
)

from rpg_platform.priors.formats.sb3 import read
from rpg_platform.priors.formats.vecnormalize import read_vecnormalize
from rpg_platform.priors.imported import Imported, ImportOptions, PriorImportError


def imported(data: bytes, folder: Path, **options: Any) -> Imported:
    (folder / "model.zip").write_bytes(data)
    return read(folder / "model.zip", ImportOptions(**options))


def same(a: Imported, b: Imported) -> bool:
    x = torch.randn(20, a.network.spec.observation_size)
    return torch.equal(a.network(x), b.network(x)) and a.alpha == b.alpha and a.action_space == b.action_space


# ---- nothing runs


@pytest.mark.parametrize("name", ["sac", "a2c"])
def test_no_part_of_a_real_model_runs_anything(name: str, tmp_path: Path) -> None:
    """A payload in every pickle of a model that SB3 saved: before what it holds, and instead of it."""
    marker, case = tmp_path / "marker", trained(name)
    model, clean = case.path.read_bytes(), read(case.path, ImportOptions())
    vector = case.path.with_name("vecnormalize.pkl").read_bytes()
    (tmp_path / "vecnormalize.pkl").write_bytes(vector)
    pickles, torches = pickles_of(model), [part for part in parts_of(model) if part.endswith(".pth")]
    assert {"policy_class", "observation_space", "action_space", "lr_schedule"} <= set(pickles)
    assert {"policy.pth", "pytorch_variables.pth"} <= set(torches)
    instead = {key: with_data(model, **{key: payload(marker)}) for key in pickles}
    before = {key: with_data(model, **{key: smuggled(pickles[key], marker)}) for key in pickles}
    for part in torches:
        evil = smuggled_torch(parts_of(model)[part], marker)
        assert runs_in_torch(evil, marker)
        before[part] = with_parts(model, lambda name, data, p=part, e=evil: e if name == p else data)  # type: ignore[misc]
        old = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(Payload(marker), 2)  # the layout of before 1.6
        instead[part] = with_parts(model, lambda name, data, p=part, e=old: e if name == p else data)  # type: ignore[misc]
    for key, data in pickles.items():
        assert acts(smuggled(data, marker), marker), key
    for archive in before.values():
        assert same(imported(archive, tmp_path), clean)  # read as if it were not there
    essential = {"policy_class", "policy_kwargs", "observation_space", "action_space", "policy.pth"}
    for key, archive in instead.items():
        if key in essential or (key == "pytorch_variables.pth" and name == "sac"):
            with pytest.raises(PriorImportError):
                imported(archive, tmp_path)
        else:
            assert same(imported(archive, tmp_path), clean)
    (tmp_path / "vecnormalize.pkl").write_bytes(smuggled(vector, marker))
    assert same(imported(model, tmp_path), clean)
    (tmp_path / "vecnormalize.pkl").write_bytes(payload(marker))
    with pytest.raises(PriorImportError, match=r"holds \w+.exec, expected a VecNormalize"):
        imported(model, tmp_path)
    assert not marker.exists()


def runs_in_torch(data: bytes, marker: Path) -> bool:
    import io

    torch.load(io.BytesIO(data), weights_only=False)
    happened = marker.exists()
    marker.unlink(missing_ok=True)
    return happened


# ---- what is refused, and why

PPO, SAC, TD3 = (model_zip(kind) for kind in ("ppo", "sac", "td3"))


def policy_class(module: str, name: str) -> bytes:
    return with_data(PPO, policy_class=dumps(stub(module, name)))


def kwargs(**values: Any) -> bytes:
    return with_data(PPO, policy_kwargs=dumps(values))


def state(kind: str = "ppo", **changes: Any) -> bytes:
    """An archive with weights changed (a value), added, or left out (None); ``__`` stands for a dot."""
    weights: dict[str, Any] = dict(policy_state(kind))
    for name, value in changes.items():
        weights[name.replace("__", ".")] = value
    weights = {k: v for k, v in weights.items() if v is not None}
    return with_parts({"ppo": PPO, "sac": SAC}[kind], lambda n, part: saved(weights) if n == "policy.pth" else part)


def renamed(**names: str) -> bytes:
    parts = parts_of(PPO)
    return zipped({names.get(name.partition(".")[0], name): part for name, part in parts.items()})


def deep_json() -> bytes:
    return with_parts(PPO, lambda name, part: b"[" * 100_000 if name == "data" else part)


REFUSED: dict[str, tuple[bytes, str]] = {
    # not such an archive
    "text": (b"0.1 0.2 0.3\n" * 20, "not a zip archive: it looks like a text"),
    "truncated": (PPO[:-300], "truncated"),
    "half": (PPO[: len(PPO) // 2], "truncated: it has no directory"),
    "torch file": (saved(policy_state("ppo")), "a file of torch.save .* expected what model.save writes"),
    "another zip": (zipped({"readme.txt": b"x"}), "it holds readme.txt; expected data and policy.pth"),
    "empty zip": (zipped({}), "it holds nothing"),
    "zip in a zip": (zipped({"model.zip": PPO}), "it contains model.zip; unpack it first"),
    "in a folder": (zipped({f"run/{k}": v for k, v in parts_of(PPO).items()}), "stand in the folder run/"),
    "stable baselines 2": (zipped({"data": b"{}", "parameters": b"", "parameter_list": b"[]"}), "TensorFlow"),
    "no weights": (with_parts(PPO, lambda n, p: None if n == "policy.pth" else p), "expected data and policy.pth"),
    "escape sequences": (
        with_data(PPO, policy_class=dumps(stub("a\x1b[2Jb", "c\u202ed"))),
        r"a\\x1b\[2Jb\.c\\u202ed is not",
    ),
    "twice the same": (zipped({**parts_of(PPO), "policy.pth#": b""}), "two members named policy.pth"),
    "outside": (zipped({**parts_of(PPO), "../x": b""}), "points outside of the archive"),
    "bomb": (zipped({"data": bytes(64 << 20), "policy.pth": b""}, zipfile.ZIP_DEFLATED), "a zip bomb"),
    # damaged data
    "data is no json": (with_parts(PPO, lambda n, p: p[:-9] if n == "data" else p), "data: not JSON"),
    "data is deep": (deep_json(), "data: not JSON"),
    "data is a list": (with_parts(PPO, lambda n, p: b"[]" if n == "data" else p), "list, expected a JSON object"),
    "no base64": (with_data(PPO, action_space={":serialized:": "%%%"}), "action_space: damaged: not base64"),
    "no text": (with_data(PPO, action_space={":serialized:": 3}), "action_space: damaged: expected a pickle"),
    "pickle cut": (with_data(PPO, action_space=pickles_of(PPO)["action_space"][:-20]), "action_space: .*truncated"),
    "no action space": (with_data(PPO, action_space=None), "holds NoneType, expected a Box or Discrete"),
    # other policies
    "own policy": (with_data(PPO, policy_class=pickle.dumps(print)), "policy class builtins.print is not known"),
    "images": (policy_class("stable_baselines3.common.policies", "ActorCriticCnnPolicy"), "convolutional"),
    "dictionaries": (policy_class("stable_baselines3.sac.policies", "MultiInputPolicy"), "dictionary observations"),
    "dqn": (policy_class("stable_baselines3.dqn.policies", "DQNPolicy"), "DQN learns action values"),
    "lstm policy": (
        policy_class("sb3_contrib.common.recurrent.policies", "RecurrentActorCriticPolicy"),
        "a policy with memory .LSTM.: its action depends on earlier observations",
    ),
    "qr-dqn": (
        policy_class("sb3_contrib.qrdqn.policies", "QRDQNPolicy"),
        "QR-DQN learns action values",
    ),
    "ars of choices": (
        with_data(policy_class("sb3_contrib.ars.policies", "ARSPolicy"), action_space=dumps(discrete(2))),
        "ars of discrete actions takes the best of its outputs",
    ),
    "sbx of residual blocks": (policy_class("sbx.sac.policies", "SimbaSACPolicy"), "residual blocks .SimBa."),
    "sbx with torch's weights": (policy_class("sbx.sac.policies", "SACPolicy"), "with weights in policy.pth"),
    "no policy class": (with_data(PPO, policy_class=None), "policy class NoneType of the user's own"),
    "extractor": (
        kwargs(features_extractor_class=stub("stable_baselines3.common.torch_layers", "NatureCNN")),
        "features extractor stable_baselines3.common.torch_layers.NatureCNN",
    ),
    "extractor's weights": (
        state(features_extractor__cnn__0__weight=torch.ones(2)),
        r"its features extractor has weights \(features_extractor.cnn",
    ),
    "activation": (
        kwargs(activation_fn=stub("torch.nn.modules.activation", "Hardswish")),
        "activation torch.nn.modules.activation.Hardswish is not read; expected one of torch.nn: relu, .*--activation",
    ),
    "kwargs": (with_data(PPO, policy_kwargs=dumps([1])), "policy_kwargs: list, expected a dictionary"),
    "flag": (kwargs(use_sde=np.ones(3)), "use_sde, squash_output and use_expln are flags"),
    "sac says ppo": (
        with_data(SAC, policy_class=pickles_of(PPO)["policy_class"]),
        "has 'actor.latent_pi.0.weight', which",
    ),
    "ppo says sac": (with_data(PPO, policy_class=pickles_of(SAC)["policy_class"]), "which no such policy has"),
    # spaces
    "several choices": (
        with_data(
            PPO, action_space=dumps(instance("gym.spaces.multi_discrete", "MultiDiscrete", nvec=np.ones(2, int)))
        ),
        "a MultiDiscrete space, expected Box or Discrete: several discrete actions",
    ),
    "several bits": (
        with_data(PPO, action_space=dumps(instance("gymnasium.spaces.multi_binary", "MultiBinary", n=3))),
        "a MultiBinary space, expected Box or Discrete",
    ),
    "dictionary space": (
        with_data(PPO, observation_space=dumps(instance("gymnasium.spaces.dict", "Dict", spaces={}))),
        "a Dict space, .*FlattenObservation",
    ),
    "own space": (with_data(PPO, observation_space=dumps(instance("mine", "Box"))), "holds mine.Box, expected a Box"),
    "pixels": (
        with_data(PPO, observation_space=dumps(box(np.zeros((4, 4, 3)), np.full((4, 4, 3), 255), dtype=np.uint8))),
        "observes images",
    ),
    "bounds swapped": (with_data(PPO, action_space=dumps(box([1.0, 1.0], [0.0, 0.0]))), "bounds are no bounds"),
    "bounds nan": (with_data(PPO, action_space=dumps(box([np.nan, 1.0], [1.0, 1.0]))), "bounds are no bounds"),
    "bounds missing": (
        with_data(PPO, action_space=dumps(instance("gym.spaces.box", "Box", low=1.0))),
        "without its bounds",
    ),
    "matrix of actions": (
        with_data(PPO, action_space=dumps(box(np.zeros((2, 2)), np.ones((2, 2))))),
        "expected Box of one dimension",
    ),
    "actions counted from 1": (
        with_data(PPO, action_space=dumps(instance("gymnasium.spaces.discrete", "Discrete", n=2, start=1))),
        "counts from 0",
    ),
    "endless choices": (with_data(PPO, action_space=dumps(discrete(10**9))), "expected 1 to 100000 values"),
    "other space than weights": (
        with_data(PPO, observation_space=dumps(box([0.0] * 9, [1.0] * 9))),
        "takes 3 numbers, an observation has 9$",
    ),
    "other actions than weights": (with_data(PPO, action_space=dumps(box([0.0] * 3, [1.0] * 3))), "gives 2 numbers"),
    "sac of choices": (with_data(SAC, action_space=dumps(discrete(2))), "expected a Box for this algorithm"),
    # weights
    "weights are a list": (
        with_parts(PPO, lambda n, p: saved([1]) if n == "policy.pth" else p),
        "expected a state dict",
    ),
    "weights are text": (with_parts(PPO, lambda n, p: b"x = 1" if n == "policy.pth" else p), "it looks like a text"),
    "weights cut": (with_parts(PPO, lambda n, p: p[:-99] if n == "policy.pth" else p), "policy.pth: .*truncated"),
    "nan": (
        state(action_net__weight=torch.full((2, 5), torch.nan)),
        "action_net.weight has values that are not finite",
    ),
    "inf": (state(log_std=torch.tensor([0.0, torch.inf])), "log_std has values that are not finite"),
    "overflow": (state(log_std=torch.tensor([0.0, 1e300], dtype=torch.float64)), "log_std has values that are not"),
    "missing": (state(action_net__bias=None), "action_net.bias is nothing, expected a tensor"),
    "integers": (state(action_net__bias=torch.ones(2, dtype=torch.int64)), "expected a tensor of floats"),
    "shape": (state(action_net__weight=torch.ones(2, 5, 1)), "expected a linear layer"),
    "chain": (state(action_net__weight=torch.ones(2, 7)), "a layer with 5 outputs is followed by one with 7 inputs"),
    "log_std": (state(log_std=torch.ones(3)), "3 log standard deviations for 2"),
    "heads": (state("sac", actor__log_std__weight=torch.ones(2, 4)), "actor.mu has the shape|expected a linear layer"),
    "normalisation": (
        state(
            **layers("mlp_extractor.policy_net.", (3, 4), torch.Generator(), 1),
            **{"mlp_extractor.policy_net.1.weight": torch.ones(4)},
        ),
        "has layers .*, expected 0, 2, 4",
    ),
    "lstm": (
        state(lstm_actor__weight_ih_l0=torch.ones(4, 4)),
        "has 'lstm_actor.weight_ih_l0', which no such policy has",
    ),
    "temperature": (
        with_parts(SAC, lambda n, p: saved({"log_ent_coef": torch.tensor([torch.nan])}) if "variables" in n else p),
        "log_ent_coef is nan",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_each_has_its_own_reason(name: str, tmp_path: Path) -> None:
    data, message = REFUSED[name]
    with pytest.raises(PriorImportError, match=message) as caught:
        imported(data, tmp_path)
    assert str(caught.value).startswith(str(tmp_path / "model.zip"))
    assert len(str(caught.value)) < 700


def test_the_unchanged_ones_are_read(tmp_path: Path) -> None:
    """So that each refusal above is that of its change."""
    assert imported(with_data(PPO, gamma=0.5), tmp_path).facts["gamma"] == 0.5
    assert imported(state("sac"), tmp_path).format == "sb3/sac"
    assert imported(state(), tmp_path).format == "sb3/ppo"
    assert imported(kwargs(optimizer_kwargs={"eps": 1.0}), tmp_path).format == "sb3/ppo"
    assert imported(TD3, tmp_path, std=0.1).format == "sb3/td3"
    hard = kwargs(activation_fn=stub("somewhere", "MyTanh"))
    assert imported(hard, tmp_path, activation="tanh").network.spec.activation == "tanh"
    trpo = with_parts(PPO, lambda n, p: p.replace(b"clip_range", b"cg_max_steps") if n == "data" else p)
    assert imported(trpo, tmp_path).format == "sb3/trpo"


def test_a_claimed_tensor_of_terabytes_takes_no_memory(tmp_path: Path) -> None:
    class Lie:
        def __reduce__(self) -> tuple[Any, ...]:
            storage = torch.storage.TypedStorage(wrap_storage=torch.ones(4).untyped_storage(), dtype=torch.float32)
            return torch._utils._rebuild_tensor_v2, (storage, 0, (1 << 20, 1 << 20), (0, 0), False, OrderedDict())

    with pytest.raises(PriorImportError, match=r"policy.pth: .* more than \d+ bytes of memory"):
        imported(state(action_net__weight=Lie()), tmp_path)


def test_facts_are_plain_whatever_is_stored(tmp_path: Path) -> None:
    data = with_data(PPO, num_timesteps=[1], gamma="x" * 500, seed=2**80, n_envs=True, learning_rate={"a": 1})
    data = with_parts(data, lambda n, p: b"\x1b[31m1.0\n\xff" if n == "_stable_baselines3_version" else p)
    facts = imported(data, tmp_path).facts
    assert json.loads(json.dumps(facts)) == facts
    assert facts == {"library": "stable-baselines3", "version": "\\x1b[31m1.0\n�", "gamma": "x" * 80}


def rms(mean: Any, var: Any) -> Any:
    return instance("stable_baselines3.common.running_mean_std", "RunningMeanStd", mean=mean, var=var, count=1.0)


def moments(mean: Any, var: Any) -> bytes:
    return vecnormalize(obs_rms=rms(mean, var))


BAD_NORMALISERS: dict[str, tuple[bytes, str]] = {
    "text": (b"mean 0 var 1", "not a pickle, or a damaged one"),
    "empty": (b"", "truncated"),
    "cut": (vecnormalize()[:-30], "truncated"),
    "zip": (PPO, "not a pickle|damaged"),
    "dictionary": (pickle.dumps({"mean": 0}), "holds dict, expected a VecNormalize"),
    "another object": (dumps(instance("mine", "VecNormalize")), "holds mine.VecNormalize, expected a VecNormalize"),
    "of dictionaries": (
        vecnormalize(obs_rms={"a": rms(np.ones(2), np.ones(2)), "observation": rms(np.ones(3), np.ones(3))}),
        r"dictionary observations \(a 2, observation 3\), and the policy observes .* --normalizer stats.npz",
    ),
    "no moments": (vecnormalize(obs_rms=None), "without its running mean"),
    "nan": (moments(np.full(3, np.nan), np.ones(3)), "obs_rms.mean has values that are not finite"),
    "negative": (moments(np.ones(3), -np.ones(3)), "obs_rms.var has negative values"),
    "shapes": (moments(np.ones(3), np.ones(4)), "obs_rms.mean has the shape"),
    "text for numbers": (moments("a", np.ones(4)), "expected an array of numbers"),
    "clip": (vecnormalize(clip_obs=-1.0), "clip_obs is -1.0"),
    "clip to nothing": (vecnormalize(clip_obs=0.0), "clips to 0"),
    "epsilon": (vecnormalize(epsilon=10**400), "epsilon is inf"),
    "epsilon of text": (vecnormalize(epsilon="1e-8"), "epsilon is str"),
}


@pytest.mark.parametrize("name", BAD_NORMALISERS)
def test_bad_normalisers(name: str, tmp_path: Path) -> None:
    data, message = BAD_NORMALISERS[name]
    path = tmp_path / "vecnormalize.pkl"
    path.write_bytes(data)
    with pytest.raises(PriorImportError, match=message):
        read_vecnormalize(path)
    with pytest.raises(
        PriorImportError,
        match=r"beside model\.zip: name the one that belongs to it with --normalizer",
    ):
        imported(PPO, tmp_path)
    path.unlink()
    assert imported(PPO, tmp_path).network.normalizer is None
    with pytest.raises(PriorImportError, match="no such file"):
        imported(PPO, tmp_path, normalizer=path)


def test_a_normaliser_of_another_size(tmp_path: Path) -> None:
    path = tmp_path / "vecnormalize.pkl"
    path.write_bytes(vecnormalize(4))
    with pytest.raises(PriorImportError, match=r"normalises 4 numbers; the policy observes 3; it stands"):
        imported(PPO, tmp_path)
    assert imported(PPO, tmp_path, unnormalized=True).network.normalizer is None
    with pytest.raises(PriorImportError, match="normalises 4 numbers; the policy observes 3"):
        imported(PPO, tmp_path, normalizer=path)
    path.write_bytes(vecnormalize(3, norm_obs=False))
    assert "normalises rewards alone" in imported(PPO, tmp_path).notes[0]
    path.write_bytes(vecnormalize(3, clip_obs=np.inf))
    assert imported(PPO, tmp_path).network.spec.observation_clip is None
