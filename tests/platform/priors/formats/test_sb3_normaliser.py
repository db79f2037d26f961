"""Which statistics a Stable-Baselines3 policy's observations are normalised by: found, asked for, never guessed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.platform.priors.archives import with_data
from tests.platform.priors.sb3_zips import box, discrete, dumps, instance, model_zip, policy_state, vecnormalize

from rpg_platform.priors.formats.sb3 import read
from rpg_platform.priors.imported import ImportOptions, PriorImportError

PPO, SAC = model_zip("ppo"), model_zip("sac")
ORDERED = "!!python/object/apply:collections.OrderedDict\n- - - batch_size\n    - 64\n  - - normalize\n    - {}\n"


def statistics(mean: float, size: int = 3) -> Any:
    name = "stable_baselines3.common.running_mean_std", "RunningMeanStd"
    return instance(*name, mean=np.full(size, mean), var=np.ones(size), count=1.0)


def pkl(mean: float) -> bytes:
    return vecnormalize(obs_rms=statistics(mean))


def laid_out(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def mean_of(path: Path, **options: Any) -> float | None:
    """The first mean of the normaliser that the import takes; None for none."""
    normalizer = read(path, ImportOptions(**options)).network.normalizer
    return None if normalizer is None else float(normalizer.mean[0])


FOUND: dict[str, tuple[str, dict[str, bytes], float | None]] = {
    "beside": ("a.zip", {"a.zip": PPO, "vecnormalize.pkl": pkl(1)}, 1),
    "what is no model does not count": (
        "a.zip",
        {"a.zip": PPO, "vec_normalize.pkl": pkl(1), "train_eval_metrics.zip": b"PK\3\4", "replay.mp4": b""},
        1,
    ),
    "RL Zoo, the model": ("E-v1.zip", {"E-v1.zip": PPO, "best_model.zip": PPO, "E-v1/vecnormalize.pkl": pkl(1)}, 1),
    "RL Zoo, the best": (
        "best_model.zip",
        {"E-v1.zip": PPO, "best_model.zip": PPO, "E-v1/vecnormalize.pkl": pkl(1), "E-v1/args.yml": b""},
        1,
    ),
    "RL Zoo, a checkpoint": (
        "rl_model_9_steps.zip",
        {"E-v1.zip": PPO, "rl_model_9_steps.zip": PPO, "E-v1/vecnormalize.pkl": pkl(1)},
        1,
    ),
    "one folder down": ("a.zip", {"a.zip": PPO, "stats/vecnormalize.pkl": pkl(1)}, 1),
    "a checkpoint's own": (
        "x_9_steps.zip",
        {"x_9_steps.zip": PPO, "x_vecnormalize_9_steps.pkl": pkl(2), "x_8_steps.zip": PPO, "vecnormalize.pkl": pkl(1)},
        2,
    ),
    "the own folder first": ("a.zip", {"a.zip": PPO, "a/vecnormalize.pkl": pkl(2), "vecnormalize.pkl": pkl(1)}, 2),
    "none": ("a.zip", {"a.zip": PPO}, None),
    "rewards alone": ("a.zip", {"a.zip": PPO, "vecnormalize.pkl": vecnormalize(norm_obs=False)}, None),
    "choices are not normalised": (
        "a.zip",
        {
            "a.zip": model_zip("ppo", policy_state("ppo", 4), observation_space=discrete(4)),
            "vecnormalize.pkl": pkl(1),
            "b.zip": PPO,
        },
        None,
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_the_file_that_belongs_to_it(name: str, tmp_path: Path) -> None:
    model, files, mean = FOUND[name]
    path = laid_out(tmp_path, files) / model
    assert mean_of(path) == mean
    if mean is not None:
        assert any("observations are normalised as in" in note for note in read(path, ImportOptions()).notes)
        assert mean_of(path, unnormalized=True) is None
        (tmp_path / "other").write_bytes(pkl(7))
        assert mean_of(path, normalizer=tmp_path / "other") == 7


ASKED: dict[str, tuple[str, dict[str, bytes], str]] = {
    "beside two models": (
        "a.zip",
        {"a.zip": PPO, "b.zip": SAC, "vecnormalize.pkl": pkl(1)},
        "vecnormalize.pkl may belong to it, or to b.zip beside it",
    ),
    "two beside": ("a.zip", {"a.zip": PPO, "x_vecnormalize.pkl": pkl(1), "vec_normalize.pkl": pkl(2)}, "several"),
    "another checkpoint's": (
        "x_9_steps.zip",
        {"x_9_steps.zip": PPO, "x_vecnormalize_8_steps.pkl": pkl(1)},
        "x_vecnormalize_8_steps.pkl beside it is named for another checkpoint",
    ),
    "in another model's folder": (
        "b.zip",
        {"a.zip": PPO, "b.zip": PPO, "a/vecnormalize.pkl": pkl(1)},
        "a/vecnormalize.pkl may belong to it, or to a.zip",
    ),
    "in two folders": (
        "b.zip",
        {"b.zip": PPO, "a/vecnormalize.pkl": pkl(1), "c/vecnormalize.pkl": pkl(1)},
        r"several VecNormalize files beside it \(a/vecnormalize.pkl, c/",
    ),
    "of another size": (
        "a.zip",
        {"a.zip": PPO, "vecnormalize.pkl": vecnormalize(4)},
        "normalises 4 numbers; the policy observes 3",
    ),
    "settings of RL Zoo": (
        "E.zip",
        {"E.zip": SAC, "E/config.yml": ORDERED.format("true").encode()},
        "E/config.yml beside it says `normalize`, so the policy was trained with normalised observations",
    ),
    "settings beside it": (
        "a.zip",
        {"a.zip": SAC, "config.yml": ORDERED.format("'dict(norm_obs=True, norm_reward=False)'").encode()},
        "config.yml beside it says",
    ),
    "its own last observations": (
        "a.zip",
        {"a.zip": with_data(PPO, _last_original_obs=dumps(np.zeros((1, 3), np.float32)))},
        "it stores observations as they were before VecNormalize, so",
    ),
    "their types": (
        "a.zip",
        {"a.zip": with_data(SAC, _last_original_obs=dumps(np.zeros((1, 3))))},
        "both as the environment gave them and as VecNormalize made them",
    ),
    "their bounds": (
        "a.zip",
        {
            "a.zip": with_data(
                SAC,
                _last_original_obs=dumps(np.zeros((1, 3), np.float32)),
                _last_obs=dumps(np.full((1, 3), -1.5, np.float32)),
            ),
        },
        "outside of its observation space",
    ),
}


@pytest.mark.parametrize("name", ASKED)
def test_what_is_not_clear_is_asked(name: str, tmp_path: Path) -> None:
    """Unnormalised, such policies earn a fraction; the answer may be none."""
    model, files, message = ASKED[name]
    path = laid_out(tmp_path, files) / model
    with pytest.raises(PriorImportError, match=message) as caught:
        read(path, ImportOptions())
    assert "--normalizer FILE, or say --normalizer none" in str(caught.value)
    source = read(path, ImportOptions(unnormalized=True))
    assert source.network.normalizer is None
    assert "as --normalizer none says" in source.notes[0]
    np.savez(tmp_path / "stats.npz", mean=np.full(3, 5.0), var=np.ones(3))
    assert mean_of(path, normalizer=tmp_path / "stats.npz") == 5


@pytest.mark.parametrize(
    "files",
    [
        {"a.zip": SAC, "config.yml": ORDERED.format("false").encode()},
        {"a.zip": SAC, "config.yml": ORDERED.format("\"{{'norm_obs': False}}\"").encode()},
        {"a.zip": SAC, "config.yml": b"normalize: [" + b"[" * 5_000},
        {"a.zip": SAC, "E/config.yml": ORDERED.format("true").encode(), "F/config.yml": b""},
        {"a.zip": with_data(SAC, _last_original_obs=dumps(np.ones((1, 3), np.float32)))},
        {"a.zip": with_data(SAC, _last_original_obs=b"no pickle")},
        {"a.zip": with_data(PPO, _last_original_obs=dumps({"observation": np.ones((1, 3))}))},
    ],
)
def test_what_was_trained_without_is_not_asked(files: dict[str, bytes], tmp_path: Path) -> None:
    assert mean_of(laid_out(tmp_path, files) / "a.zip") is None


def test_a_file_one_folder_up_is_named(tmp_path: Path) -> None:
    asked = ASKED["their types"][1]["a.zip"]
    path = laid_out(tmp_path, {"best/a.zip": asked, "vecnormalize.pkl": pkl(1)}) / "best" / "a.zip"
    with pytest.raises(PriorImportError, match=r"no VecNormalize file is beside it \(\.\./vecnormalize\.pkl\?\)"):
        read(path, ImportOptions())


def test_statistics_of_a_goal_dictionary(tmp_path: Path) -> None:
    """The HER of Stable-Baselines3 before 1.1 observes the observation, then the desired goal."""
    parts = {"observation": statistics(1.0, 3), "achieved_goal": statistics(2.0, 2), "desired_goal": statistics(3.0, 2)}
    her = model_zip("sac", policy_state("sac", 5), observation_space=box([-1.0] * 5, [1.0] * 5))
    laid_out(tmp_path, {"a.zip": her, "vecnormalize.pkl": vecnormalize(obs_rms=parts)})
    source = read(tmp_path / "a.zip", ImportOptions())
    assert source.network.normalizer is not None
    assert source.network.normalizer.mean.tolist() == [1.0, 1.0, 1.0, 3.0, 3.0]
    assert any("FlattenObservation puts desired_goal first" in note for note in source.notes)
    for files in (
        {"a.zip": PPO},
        {"vecnormalize.pkl": vecnormalize(obs_rms=parts, norm_obs_keys=["observation"]), "a.zip": her},
    ):
        laid_out(tmp_path, files)
        with pytest.raises(
            PriorImportError, match=r"\(observation 3, achieved_goal 2, desired_goal 2\), .* --normalizer stats.npz"
        ):
            read(tmp_path / "a.zip", ImportOptions())


def test_alpha_is_of_the_environments_own_reward(tmp_path: Path) -> None:
    """Where VecNormalize divided the rewards of a SAC by 3, its alpha of them is a third of that of the real ones."""
    returns = instance("stable_baselines3.common.running_mean_std", "RunningMeanStd", mean=0.0, var=9.0, count=1.0)
    found = {}
    for name, changes in (
        ("as they are", {"norm_reward": False}),
        ("divided", {"ret_rms": returns}),
        ("unknown", {}),
    ):
        folder = laid_out(tmp_path / name, {"a.zip": SAC, "vecnormalize.pkl": vecnormalize(**changes)})
        found[name] = read(folder / "a.zip", ImportOptions())
        named = read(folder / "a.zip", ImportOptions(normalizer=folder / "vecnormalize.pkl"))
        assert named.alpha == found[name].alpha
    assert found["as they are"].alpha is not None
    assert found["divided"].alpha == pytest.approx(3 * found["as they are"].alpha)
    assert any("divides by 3: of the environment's own it is" in note for note in found["divided"].notes)
    assert found["unknown"].alpha is None
    assert any("alpha is unknown" in note for note in found["unknown"].notes)
    assert read(tmp_path / "divided/a.zip", ImportOptions(unnormalized=True)).alpha == found["as they are"].alpha
