"""Does the check notice a prior that does not do what its card says, and do the commands say so."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from typer.testing import CliRunner, Result

from rpg_algorithms.policies.bundle import ReturnStatistics, load_bundle, load_card, save_bundle
from rpg_algorithms.policies.discount import recorded_gamma
from rpg_platform.bundles import resolve_prior
from rpg_platform.cli.main import app
from rpg_platform.evaluation.prior_check import Returns, check_prior, returns_png, sparkline
from rpg_platform.priors.environment import bare_task, chosen_task, task_of_card

PRIOR = "halfcheetah-spg"
FEW = ("--episodes", "2", "--steps", "0")


def rpg(*arguments: str | Path, code: int = 0) -> Result:
    """``rpg <arguments>`` in this process."""
    result = CliRunner().invoke(app, [str(each) for each in arguments], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def pendulum(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle for Pendulum-v1, and the zip that it came from beside it."""
    folder = tmp_path_factory.mktemp("pendulum")
    PPO("MlpPolicy", "Pendulum-v1", policy_kwargs={"net_arch": [8]}, n_steps=64, device="cpu").save(folder / "ppo.zip")
    rpg("priors", "import", folder / "ppo.zip", "--env", "Pendulum-v1", "--out", folder / "prior")
    return folder / "prior"


# ---- the check ----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("values", "stated", "errors", "agrees"),
    [
        # pooled variance (3 * 8/3 + 8 * 9) / 11 = 80/11, times 1/4 + 1/9; the means are 12 and 10
        ([10.0, 14.0, 12.0, 12.0], (10.0, 3.0, 9), 2.0 / math.sqrt(80.0 / 11.0 * (1.0 / 4.0 + 1.0 / 9.0)), True),
        # (1 * 2 + 3 * 1) / 4 = 1.25, times 1/2 + 1/4; 1 and 100
        ([0.0, 2.0], (100.0, 1.0, 4), 99.0 / math.sqrt(1.25 * 0.75), False),
        ([5.0], (5.0, 0.0, 1), 0.0, True),
        ([5.0], (6.0, 0.0, 1), math.inf, False),
    ],
)
def test_distance_from_the_card(
    values: list[float], stated: tuple[float, float, int], errors: float, agrees: bool
) -> None:
    mean, std, episodes = stated
    returns = Returns(np.array(values), ReturnStatistics(mean=mean, std=std, episodes=episodes))
    assert returns.standard_errors == pytest.approx(errors)
    assert returns.agrees is agrees


def test_the_shipped_prior_agrees_with_its_card_and_a_damaged_one_does_not(tmp_path: Path) -> None:
    bundle = load_bundle(resolve_prior(PRIOR))
    done = check_prior(bundle, task_of_card(bundle.card), episodes=2)
    assert done.basic["deterministic"].agrees
    assert done.basic["deterministic"].mean > 5000
    assert done.addon == {}
    assert len(done.length["sampled"]) == 2
    network = bundle.build()
    with torch.no_grad():
        next(network.mlp.parameters()).mul_(0.0)
    save_bundle(tmp_path / "broken", network, bundle.card)
    broken = check_prior(load_bundle(tmp_path / "broken"), bare_task("HalfCheetah-v5"), episodes=2)
    assert broken.basic["deterministic"].agrees is False


def test_the_picture(pendulum: Path) -> None:
    bundle = load_bundle(pendulum)
    stated = {
        f"basic/{mode}": ReturnStatistics(mean=-1000, std=100, episodes=5) for mode in ("deterministic", "sampled")
    }
    bundle.card = bundle.card.model_copy(update={"returns": stated})
    done = check_prior(bundle, bare_task("Pendulum-v1"), episodes=3)
    png = returns_png(done)
    assert png.startswith(b"\x89PNG")
    assert struct.unpack(">II", png[16:24]) == (1200, 750)
    one = check_prior(bundle, bare_task("Pendulum-v1"), episodes=1)
    assert returns_png(one).startswith(b"\x89PNG")


def test_sparkline() -> None:
    assert sparkline(np.array([0.0, 0.0, 1.0]), 0.0, 1.0, width=4) == "█  ▅"
    assert sparkline(np.array([2.0, 2.0]), 2.0, 2.0) == "█"


def test_a_card_does_not_choose_what_is_imported() -> None:
    """An id of ``module:Env`` imports the module; text among the arguments may name a file."""
    card = load_card(resolve_prior(PRIOR))
    for changes in ({"env_id": "os:Env-v0"}, {"env_id": "Unknown-v0"}, {"env_kwargs": {"xml_file": "/etc/passwd"}}):
        with pytest.raises(
            ValueError, match=r"which is not made on a card's word; name it yourself: --env ID or --task"
        ):
            task_of_card(card.model_copy(update=changes))
    kept = task_of_card(card.model_copy(update={"env_kwargs": {"frame_skip": 5}}))
    assert kept.env_kwargs == {"frame_skip": 5}
    assert chosen_task(None, "HalfCheetah-v5", card, {"frame_skip": 4}).env_kwargs == {"frame_skip": 4}
    assert chosen_task("halfcheetah-foot-angle", None, card).name == "halfcheetah-foot-angle"
    with pytest.raises(ValueError, match="give one of them"):
        chosen_task("halfcheetah-foot-angle", "HalfCheetah-v5", card)
    with pytest.raises(ValueError, match="--env-kwargs without --env"):
        chosen_task(None, None, card, {"frame_skip": 4})


# ---- the commands -------------------------------------------------------------------------------
def test_import_says_what_it_read_and_what_comes_next(pendulum: Path, tmp_path: Path) -> None:
    source, out = pendulum.parent / "ppo.zip", tmp_path / "prior"
    said = rpg("priors", "import", source, "--env", "Pendulum-v1", "--out", out, "--name", "swing").stdout
    lines = dict(line.split(maxsplit=1) for line in said.splitlines())
    assert lines["read"].startswith("sb3/ppo from ppo.zip")
    assert lines["prior"] == "swing"
    assert lines["network"] == "8, tanh"
    assert lines["distribution"] == "gaussian, one std for all states"
    assert lines["next"] == f"rpg priors check {out}"
    assert "as they are" in lines["note"]
    refused = rpg("priors", "import", source, "--env", "Pendulum-v1", "--out", out, code=2)
    assert "a bundle is there; add --force" in refused.stderr
    assert refused.stdout == ""
    arguments = (
        "priors",
        "import",
        source,
        "--env",
        "Pendulum-v1",
        "--env-kwargs",
        '{"g": 9.0}',
        "--out",
        out,
        "--force",
    )
    data = json.loads(rpg(*arguments, "--json").stdout)
    assert data["card"]["env_kwargs"] == {"g": 9.0}
    assert data["content_hash"] == load_card(out).content_hash


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--env-kwargs", "{"), "not JSON"),
        (("--env-kwargs", "[1]"), "expected a JSON object"),
        (("--env", "Pendulum-v1", "--env-kwargs", '{"gravity": 1}'), "Pendulum-v1 takes no argument 'gravity'"),
        (("--env", "Pendulun-v1"), "did you mean 'Pendulum-v1'"),
        (("--env", "Pendulum-v1", "--std", "0.1"), "--std is for deterministic policies"),
        (("--task", "halfcheeta-foot-angle"), "did you mean 'halfcheetah-foot-angle'"),
        (("--format", "sb"), "format 'sb': no such format"),
    ],
)
def test_import_refuses(arguments: tuple[str, ...], message: str, pendulum: Path, tmp_path: Path) -> None:
    result = rpg("priors", "import", pendulum.parent / "ppo.zip", "--out", tmp_path / "out", *arguments, code=2)
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


def test_check_prints_compares_and_draws(pendulum: Path, tmp_path: Path) -> None:
    picture = tmp_path / "pictures" / "returns.png"
    said = rpg("priors", "check", pendulum, *FEW, "--out", picture).stdout
    assert "2 episodes of each mode" in said
    assert "says nothing" in said
    assert "█" in said
    assert picture.read_bytes().startswith(b"\x89PNG")
    data = json.loads(rpg("priors", "check", pendulum, *FEW, "--json").stdout)
    assert data["environment"] == "Pendulum-v1"
    assert data["basic"]["sampled"]["agrees_with_card"] is None
    assert len(data["basic"]["deterministic"]["returns"]) == 2


def test_check_against_a_card(tmp_path: Path) -> None:
    data: dict[str, Any] = json.loads(
        rpg("priors", "check", PRIOR, *FEW, "--task", "halfcheetah-foot-angle", "--json").stdout
    )
    assert data["basic"]["deterministic"]["agrees_with_card"] is True
    assert data["addon"]["deterministic"]["agrees_with_card"] is True, "its card speaks of this task"
    assert "is not that of Pendulum-v1" in rpg("priors", "check", PRIOR, "--env", "Pendulum-v1", code=2).stderr
    assert "a folder; name a PNG file" in rpg("priors", "check", PRIOR, "--out", tmp_path, code=2).stderr


def test_check_says_whether_rpg_can_rely_on_a_prior_and_import_takes_its_alpha(pendulum: Path, tmp_path: Path) -> None:
    arguments = ("priors", "check", pendulum, "--episodes", "1", "--steps", "15000")
    said = rpg(*arguments).stdout
    found = json.loads(rpg(*arguments, "--json").stdout)["log_prob"]
    assert found["alpha_of_card"] is None
    assert found["gamma"] == found["gamma_of_card"] == 0.99
    assert found["verdict"] != "good", "it is not trained"
    assert f"{'verdict':<28}{found['verdict']}: " in said
    assert all(f"{'because':<28}{text}" in said for text in found["reasons"])
    for each in found["prices"]:
        assert each["change"] in said
        assert each["value"] == pytest.approx(each["return"] / each["log_prob"])
        assert each["interval"][0] <= each["value"] <= each["interval"][1]
    rpg("priors", "import", pendulum, "--alpha", "0.25", "--out", tmp_path / "known")
    card = load_card(tmp_path / "known")
    assert (card.alpha, recorded_gamma(card.made_by)) == (0.25, 0.99)
    again = rpg("priors", "import", tmp_path / "known", "--alpha", "0.5", "--out", tmp_path / "other").stdout
    assert "the source was trained at alpha 0.25, you gave 0.5" in again
    for bad in ("0", "-1", "nan"):
        refused = rpg("priors", "import", pendulum, "--alpha", bad, "--out", tmp_path / "bad", code=2).stderr
        assert f"--alpha {bad}: expected a positive number" in refused
    assert not (tmp_path / "bad").exists()


def test_names_from_elsewhere_are_printed_and_not_acted_on(pendulum: Path, tmp_path: Path) -> None:
    bundle = load_bundle(pendulum)
    card = bundle.card.model_copy(update={"name": "a\x1b[2Jb[red]c"})
    save_bundle(tmp_path / "odd", bundle.build(), card)
    for arguments in (("show", tmp_path / "odd"), ("check", tmp_path / "odd", "--episodes", "1", "--steps", "2000")):
        said = rpg("priors", *arguments).stdout
        assert "\x1b[2J" not in said
        assert r"a\x1b[2Jb[red]c" in said


def test_show(pendulum: Path, tmp_path: Path) -> None:
    rpg("priors", "import", pendulum, "--out", tmp_path / "child", "--name", "child")
    said = rpg("priors", "show", tmp_path / "child").stdout
    parent, child = load_card(pendulum), load_card(tmp_path / "child")
    assert f"line                        child {child.content_hash[:12]}" in said
    assert f"← ppo {parent.content_hash[:12]}" in said
    assert "Box(-2.0, 2.0, (1,), float32)" in said
    assert json.loads(rpg("priors", "show", tmp_path / "child", "--json").stdout)["parents"] == [parent.content_hash]
    assert "did you mean 'halfcheetah-spg'" in rpg("priors", "show", "halfcheetah-spq", code=2).stderr
