"""What leaves by ``rpg export`` comes back by ``rpg priors import``: the same policy, with one parent more."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.algorithms.policies.graph_priors import make_graph_prior
from tests.algorithms.registry import make_prior
from tests.platform.priors.graph_modules import assert_same_policy
from torch import nn
from typer.testing import CliRunner

from rpg_algorithms import load_bundle, save_bundle
from rpg_platform.bundles import SHIPPED
from rpg_platform.cli.main import app
from rpg_platform.export import onnx_model
from rpg_platform.export import torchscript as torchscript_export
from rpg_platform.priors.formats.onnx import model as onnx_models
from rpg_platform.priors.formats.torchscript import archive as torchscript
from rpg_platform.priors.imported import ImportOptions

FORMATS = {
    "policy.pt": (torchscript_export.save, torchscript.read),
    "policy.onnx": (onnx_model.save, onnx_models.read),
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("family", ["gaussian", "state-dependent", "squashed", "categorical"])
def test_an_export_is_the_policy_that_it_was(name: str, family: str, tmp_path: Path) -> None:
    save, read = FORMATS[name]
    activation = {"gaussian": "tanh", "state-dependent": "elu", "squashed": "silu"}.get(family, "relu")
    plain = make_prior(tmp_path / "plain", family, hidden=(8, 6), activation=activation)
    for folder, graph in ((plain, False), (make_graph_prior(tmp_path, family), True)):
        bundle = load_bundle(folder)
        save(bundle, tmp_path / name)
        result = read(tmp_path / name, ImportOptions())
        obs = 2.0 * torch.randn(1_000, 2)
        with torch.no_grad():
            assert_same_policy(result.network, bundle.build()(obs), obs)
        spec = result.network.spec
        assert (spec.graph is not None) == graph
        if not graph:
            kept = ("hidden", "activation", "distribution", "state_dependent_std", "observation_clip", "action_low")
            assert [getattr(spec, each) for each in kept] == [getattr(bundle.network_spec, each) for each in kept]
        assert result.parents == (bundle.card.content_hash,)
        assert (result.alpha, result.env_id) == (bundle.card.alpha, bundle.card.env_id)
        assert result.lineage[0].name == bundle.card.name


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_priors_keep_their_hash(name: str, tmp_path: Path) -> None:
    bundle = load_bundle(SHIPPED[name])
    assert save_bundle(tmp_path, bundle.build(), bundle.card).content_hash == bundle.card.content_hash


def test_from_the_command_line(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 8), nn.GELU(), nn.Linear(8, 2))
    torch.jit.save(torch.jit.trace(module, torch.randn(2, 3)), str(tmp_path / "policy.pt"))
    command = [
        "priors",
        "import",
        str(tmp_path / "policy.pt"),
        "--env",
        "Pendulum-v1",
        "--out",
        str(tmp_path / "prior"),
    ]
    done = CliRunner().invoke(app, [*command, "--distribution", "squashed_gaussian", "--json"])
    assert done.exit_code == 0, done.output
    card = json.loads(done.stdout)["card"]
    assert card["network"]["distribution"] == "squashed_gaussian"
    assert [node["op"] for node in card["network"]["graph"]["nodes"]] == ["linear", "gelu", "linear", "slice", "slice"]
    network = load_bundle(tmp_path / "prior").build()
    obs = torch.randn(100, 3)
    with torch.no_grad():
        torch.testing.assert_close(network(obs), module(obs))
    wrong = CliRunner().invoke(
        app, ["priors", "import", str(tmp_path / "policy.pt"), "--env", "CartPole-v1", "--out", "x"]
    )
    assert wrong.exit_code == 2
    assert "torch.linear: input [B, 4], weight and bias" in " ".join(wrong.output.split())
