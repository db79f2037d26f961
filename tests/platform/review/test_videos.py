"""Videos show what the policy does, browsers can play them, and where there can be none a line says why."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import gymnasium as gym
import numpy as np
import pytest
import torch
from tests.platform import own_tasks
from tests.platform.commands import here, refused
from tests.platform.results.trials import evaluated

from rpg_algorithms.policies.bundle import PriorCard, load_bundle, save_bundle
from rpg_algorithms.policies.network import PolicyNetwork, spec_for_spaces
from rpg_platform.bundles import SHIPPED
from rpg_platform.review.drawing import Pane, Shot, draw
from rpg_platform.review.found import found_in
from rpg_platform.review.videos import VIDEOS_FILE, read_videos, sweep_videos
from rpg_platform.spec.sweep import SweepSpec
from rpg_platform.spec.task import as_task_spec
from rpg_platform.storage.sweep_folder import SweepFolder
from rpg_platform.storage.trial_state import read_state, write_state

CHEETAH = SHIPPED["halfcheetah-spg"]
OWN = own_tasks.__name__
EGL = "libegl1 libegl-mesa0 libgl1-mesa-dri"


def decoded(file: Path | str) -> tuple[list[Any], Any]:
    """Every picture of a video, and its stream's head."""
    with av.open(str(file)) as container:
        [stream] = container.streams
        return [
            frame.to_ndarray(format="rgb24").astype(int) for frame in container.decode(stream)
        ], stream.codec_context


def moved(pictures: Sequence[Any]) -> bool:
    return all(np.abs(after - before).max() > 50 for before, after in pairwise(pictures))


@torch.no_grad()
def foot_angles(steps: int, seed: int) -> list[float]:
    """|front foot angle| after each step of the shipped prior, in the plainest loop there is."""
    policy = load_bundle(CHEETAH).build()
    env = gym.make("HalfCheetah-v5")
    obs, _ = env.reset(seed=seed)
    found = []
    for _ in range(steps):
        mean, _ = policy(torch.as_tensor(obs, dtype=torch.float32)[None]).chunk(2, dim=-1)
        obs, *_ = env.step(np.clip(mean[0].numpy(), -1.0, 1.0))
        found.append(abs(float(obs[7])))
    env.close()
    return found


def test_a_cheetah_runs_in_its_video(tmp_path: Path) -> None:
    alone, pair = (str(tmp_path / name) for name in ("alone.mp4", "pair.mp4"))
    pane = Pane(str(CHEETAH), "the prior")
    shots = [Shot(alone, (replace(pane, caption=""),)), Shot(pair, (pane, pane))]
    made, problem = draw("halfcheetah-foot-angle", shots, seed=7, steps=9, every=3)
    if problem is not None and EGL in problem:
        pytest.skip(problem)
    assert problem is None
    assert [(each.out, each.width, each.height, each.fps, each.every) for each in made] == [
        (alone, 384, 288, 20 / 3, 3),
        (pair, 772, 314, 20 / 3, 3),
    ]
    # What it draws of the floor and without shadows is no other physics.
    expected = pytest.approx(foot_angles(9, 7), abs=1e-4)
    assert [list(trace) for each in made for trace in each.traces] == [expected] * 3
    assert made[0].metric == "|foot angle| rad"
    for each in made:
        pictures, codec = decoded(each.out)
        assert (len(pictures), codec.name, codec.pix_fmt) == (3, "h264", "yuv420p")
        assert {picture.shape for picture in pictures} == {(each.height, each.width, 3)}
        assert all(picture.std() > 30 for picture in pictures)
        assert moved(pictures)
        data = Path(each.out).read_bytes()
        assert data.index(b"moov") < data.index(b"mdat"), "a browser plays it before it has all of it"
    left, right = np.split(decoded(pair)[0][2][26:, :], [386], axis=1)
    assert np.abs(left[:, :384] - right[:, 2:]).mean() < 3, "both panes start alike, and do the same"


# ---- a sweep's ----------------------------------------------------------------------------------
TASK = {"env": f"{OWN}:Drawn", "addons": {"middle": "-abs(next_obs[0])"}, "metric": {"expression": "next_obs[0]"}}
RAW = {
    "name": "mine",
    "task": TASK,
    "prior": "/priors/mine",
    "algorithm": "rpg",
    "weights": {"omega_prime": {"grid": [0.1, 0.2, 0.4]}, "alpha_hat": 0.02},
    "seeds": [0, 1],
    "evaluation": {"seed": 500},
    "budget": {"env_steps": 200_000},
}
TRIAL = "rpg-omega_prime={}-alpha_hat=0.02-seed={}"


def bundle(folder: Path, push: float) -> Path:
    """A policy that pushes the point by ``push`` in every step."""
    env = own_tasks.Drawn()
    spec = spec_for_spaces(env.observation_space, env.action_space, hidden=())
    network = PolicyNetwork(spec)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        [bias] = [each for name, each in network.named_parameters() if name.endswith("bias")]
        bias[0] = push
    card = PriorCard.describe("mine", TASK["env"], env.observation_space, env.action_space, spec)
    save_bundle(folder, network, card)
    return folder


def sweep_in(storage: Path, **task: Any) -> SweepFolder:
    """A sweep of three settings: 0.1 has the most add-on return, 0.2 the most of both."""
    spec = SweepSpec.model_validate(RAW | {"task": TASK | task})
    folder = SweepFolder(str(storage), "mine")
    folder.create(spec, None, load_bundle(bundle(storage / "prior", 0.0)))
    returns = {0.1: (100.0, 90.0), 0.2: (500.0, 50.0), 0.4: (300.0, 10.0)}
    for number, (omega, (basic, addon)) in enumerate(returns.items(), 1):
        for seed in (0, 1):  # the second seed is better
            checkpoint = Path(folder.uri, TRIAL.format(omega, seed), "checkpoint_000000")
            bundle(checkpoint / "bundle", 0.1 * number + 0.05 * seed)
            write_state(checkpoint, 200_000, evaluated(basic + seed, addon) | {"finished": True})
    return folder


def train_further(folder: SweepFolder, trial: str, push: float) -> None:
    checkpoint = Path(folder.uri, trial, "checkpoint_000000")
    report = read_state(checkpoint)["report"]
    bundle(checkpoint / "bundle", push)
    write_state(checkpoint, 200_000, report)


def test_a_sweep_has_a_video_of_prior_best_and_most_addon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = sweep_in(tmp_path)
    said: list[str] = []
    found = found_in(folder)
    videos = sweep_videos(found, tell=said.append)
    assert said == []
    assert [(each.role, each.label, each.trial, each.path) for each in videos] == [
        ("prior", "prior", "", "videos/prior.mp4"),
        ("best", "ω′ 0.2 · α̂ 0.02", TRIAL.format(0.2, 1), "videos/best.mp4"),
        ("most-addon", "ω′ 0.1 · α̂ 0.02", TRIAL.format(0.1, 1), "videos/most-addon.mp4"),
    ]
    # 12 steps at 50 a second, of which 25 are drawn; the episode ends in its last one, whose picture is gone.
    assert {(e.width, e.height, e.fps, e.every, e.seed, e.steps, e.terminated) for e in videos} == {
        (160, 90, 25.0, 2, 500, 12, True)
    }
    start = own_tasks.Slide().reset(seed=500)[0][0]
    for each, push in zip(videos, (0.0, 0.25, 0.15), strict=True):
        assert each.trace == pytest.approx([start + 0.1 * push * (step + 1) for step in range(12)], abs=1e-5)
        pictures, _ = decoded(Path(folder.uri, each.path))
        assert len(pictures) == 6
        places = [np.flatnonzero(picture.mean((0, 2)) > 200).mean() for picture in pictures]
        expected = [80 + 70 * value for value in each.trace[::2][: len(places)]]
        assert places == pytest.approx(expected, abs=1.5)
    assert read_videos(folder) == videos
    assert "NaN" not in (folder.read_text(VIDEOS_FILE) or "NaN")

    # The same policies are not drawn again; another best one is, and only that.
    written = {each.path: Path(folder.uri, each.path).stat().st_mtime_ns for each in videos}
    train_further(folder, TRIAL.format(0.2, 1), 1.0)
    again = sweep_videos(found, tell=said.append)
    new = [each for each in again if Path(folder.uri, each.path).stat().st_mtime_ns != written[each.path]]
    assert [each.role for each in new] == ["best"]
    assert (again[0], again[2]) == (videos[0], videos[2])
    assert new[0].trace[0] == pytest.approx(start + 0.1, abs=1e-5)

    # Where the new best one can't be drawn, the video of the one before is no longer its video.
    train_further(folder, TRIAL.format(0.2, 1), 0.5)
    monkeypatch.setitem(sys.modules, "av", None)  # as where it is not installed
    assert sweep_videos(found, tell=said.append) == read_videos(folder) == [again[0], again[2]]
    assert said == [
        "No video of best: the package av, which encodes videos, is not installed: "
        "pip install 'residual-policy-gradient[video]'"
    ]


# ---- where there can be none --------------------------------------------------------------------
@pytest.mark.parametrize(
    ("task", "limit_s", "message"),
    [
        ({"env": f"{OWN}:Slide"}, 60.0, f"{OWN}:Slide cannot be drawn: {OWN}:Slide takes no argument 'render_mode'"),
        ({"env": f"{OWN}:Drawn", "kwargs": {"crash": True}}, 60.0, "the process that draws was ended by SIGSEGV"),
        ({"env": f"{OWN}:Drawn"}, 0.2, "drawing took more than 0.2 s"),
    ],
)
def test_one_line_says_why(task: dict[str, Any], limit_s: float, message: str, tmp_path: Path) -> None:
    shots = [Shot(str(tmp_path / "x.mp4"), (Pane(str(bundle(tmp_path, 0.1))),))]
    made, problem = draw(as_task_spec(task), shots, seed=0, limit_s=limit_s)
    assert made == []
    assert problem is not None
    assert problem.startswith(message)
    assert "\n" not in problem


def test_without_egl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", "99")
    out = tmp_path / "x.mp4"
    said = refused("render", "halfcheetah-spg", "--out", str(out))
    assert said.startswith("No video: ")
    assert EGL in said
    assert said.count("\n") == 1
    assert not out.exists()


def test_render_of_a_sweeps_setting_beside_its_prior(tmp_path: Path) -> None:
    folder, out = sweep_in(tmp_path), tmp_path / "new" / "x.mp4"
    command = ("render", "mine#3", "--storage", str(tmp_path), "--beside", str(tmp_path / "prior"))
    told = here(*command, "--out", str(out), "--steps", "5", "--every", "1", "--json")
    assert TRIAL.format(0.1, 1) in told.stderr
    recording = json.loads(told.stdout)
    assert (recording["out"], recording["fps"], recording["terminated"]) == (str(out), 50.0, [False, False])
    [ours, priors] = recording["traces"]
    assert ours[-1] - ours[0] == pytest.approx(4 * 0.1 * 0.15, abs=1e-5)
    assert priors[-1] == pytest.approx(priors[0])
    pictures, _ = decoded(out)
    assert (len(pictures), pictures[0].shape) == (5, (116, 326, 3))
    assert refused(*command, "--out", str(out)).endswith("nothing is overwritten without --overwrite\n")
    assert "ends in .mp4" in refused(*command, "--out", str(tmp_path / "x.avi"))
    # A card's word makes no environment of the user's.
    trial = str(Path(folder.uri, TRIAL.format(0.4, 0)))
    assert "not made on a card's word" in refused("render", trial, "--out", str(tmp_path / "y.mp4"))
