"""Policies of this package as sources: equal weights, and the line of parents kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from ray import tune
from tests.algorithms.registry import CASES, built, make_prior
from tests.platform.priors.payloads import acts, payload, refusal
from tests.platform.trial.small import trial_spec

from rpg_algorithms.policies.bundle import load_bundle, load_card
from rpg_platform.bundles import resolve_prior
from rpg_platform.priors.imported import ImportOptions, PriorImportError
from rpg_platform.priors.recognise import recognise
from rpg_platform.priors.sources import import_prior, read_source
from rpg_platform.trial.trainable import CustomizationTrial

MODULE = Path("learner_group", "learner", "rl_module", "default_policy")
WALK = ImportOptions(env_id="tests.algorithms.environments:WalkEnv", env_kwargs={"context": {"discrete": False}})


def test_a_bundle_of_a_bundle_names_its_parent(tmp_path: Path) -> None:
    source = resolve_prior("halfcheetah-spg")
    done = import_prior(str(source), tmp_path / "copy", name="copy")
    original = load_bundle(source)
    assert done.card.parents == [original.card.content_hash]
    assert done.card.lineage[0].name == "halfcheetah-spg"
    assert (done.card.alpha, done.card.env_id) == (original.card.alpha, "HalfCheetah-v5")
    copied = load_bundle(tmp_path / "copy").build().state_dict()
    assert all(torch.equal(copied[key], value) for key, value in original.build().state_dict().items())
    grandchild = import_prior(str(tmp_path / "copy"), tmp_path / "grandchild")
    assert grandchild.card.parents == [done.card.content_hash, original.card.content_hash]


def test_a_changed_bundle_is_refused(tmp_path: Path) -> None:
    folder = make_prior(tmp_path / "prior")
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps(card | {"alpha": 0.9}))
    with pytest.raises(
        PriorImportError, match=r"content hash is .*…, the card says .*…: the bundle was changed or damaged"
    ):
        read_source(str(folder))


def test_a_trials_checkpoint(local_ray: None, tmp_path: Path) -> None:
    """As a sweep leaves it: the bundle in it is what is read, and the checkpoint beside it says the same."""
    prior = load_bundle(resolve_prior("halfcheetah-spg"))
    trainable = tune.with_parameters(CustomizationTrial, prior=prior)
    trial = trainable(config={"trial": trial_spec("rpg").model_dump(mode="json")})
    try:
        trial.save_checkpoint(str(tmp_path / "checkpoint"))
    finally:
        trial.stop()
    shutil.copytree(tmp_path / "checkpoint" / "bundle", tmp_path / "trial" / "checkpoint_000001" / "bundle")
    assert read_source(str(tmp_path / "trial")).format == "trial", "a trial's newest checkpoint"
    done = import_prior(str(tmp_path / "checkpoint"), tmp_path / "policy")
    bundle = load_card(tmp_path / "checkpoint" / "bundle")
    assert done.imported.format == "trial"
    assert done.card.parents == [bundle.content_hash, prior.card.content_hash]
    shutil.rmtree(tmp_path / "checkpoint" / "bundle")
    beside = read_source(str(tmp_path / "checkpoint"))
    assert (beside.format, beside.env_id, beside.alpha) == ("rllib/rpg", "HalfCheetah-v5", bundle.alpha)
    assert beside.parents == (prior.card.content_hash,)
    expected = done.imported.network.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in beside.network.state_dict().items())


@pytest.mark.parametrize(
    "name",
    [
        "spg-state-dependent",
        "rpg-squashed",
        "kl",
        "rpg-squashed-to-gaussian-prior",
        "spg-categorical",
        "repeat-entropy",
    ],
)
def test_checkpoints_of_spg_and_rpg(name: str, local_ray: None, tmp_path: Path) -> None:
    with built(CASES[name].build_config(tmp_path)) as algorithm:
        algorithm.train()
        algorithm.save_to_path(str(tmp_path / "checkpoint"))
        policy = algorithm.learner_group._learner.module["default_policy"].policy
        expected = {key: value.clone() for key, value in policy.state_dict().items()}
        spec = policy.spec
    assert recognise(tmp_path / "checkpoint").name == "bundle"
    imported = read_source(str(tmp_path / "checkpoint"))
    found = imported.network.state_dict()
    assert imported.network.spec == spec
    assert set(found) == set(expected)
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    if CASES[name].prior:
        prior = load_card(tmp_path / "prior")
        assert imported.parents == (prior.content_hash,)
        assert [each.name for each in imported.lineage] == ["random"]
    else:
        assert imported.parents == ()
    alphas = {"spg": 0.05, "rpg": 0.1, "kl": None, "repeat": None}  # kl's ends at zero, repeat-entropy's is no alpha
    assert imported.alpha == alphas[name.partition("-")[0]]
    assert (imported.facts["env_steps"], imported.facts["gamma"]) == (128, 0.99)


def test_no_pickle_is_executed(local_ray: None, tmp_path: Path) -> None:
    with built(CASES["rpg-gaussian"].build_config(tmp_path)) as algorithm:
        algorithm.save_to_path(str(tmp_path / "checkpoint"))
    folder, marker = tmp_path / "checkpoint", tmp_path / "executed"
    for file in sorted(folder.rglob("*.pkl")):
        whole, data = file.read_bytes(), payload(marker)
        assert acts(data, marker)
        file.write_bytes(data)
        assert str(file.parent) in (refusal(read_source, str(folder)) or str(file.parent))
        assert not marker.exists(), file
        file.write_bytes(whole)


def test_weights_of_another_shape(local_ray: None, tmp_path: Path) -> None:
    import pickle

    with built(CASES["spg-gaussian"].build_config(tmp_path)) as algorithm:
        algorithm.save_to_path(str(tmp_path / "checkpoint"))
    file = tmp_path / "checkpoint" / MODULE / "module_state.pkl"
    state = pickle.loads(file.read_bytes())
    file.write_bytes(pickle.dumps(state | {"policy.log_std": np.zeros(7, np.float32)}))
    with pytest.raises(PriorImportError, match=r"policy.log_std has shape \[7\], expected finite values of \[1\]"):
        read_source(str(tmp_path / "checkpoint"))
    state.pop("policy.mlp.0.weight")
    file.write_bytes(pickle.dumps(state))
    with pytest.raises(PriorImportError, match=r"holds no array policy\.mlp\.0\.weight"):
        read_source(str(tmp_path / "checkpoint"))
