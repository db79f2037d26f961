"""What a prior's name or path stands for."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rpg_platform.bundles import SHIPPED, bundle_in, resolve_prior
from rpg_platform.spec.yaml_file import parse_spec

SPEC = "{{name: next, task: halfcheetah-foot-angle, prior: {prior}, algorithm: greedy, budget: {{env_steps: 100_000}}}}"


def test_what_a_policy_may_be_named_by(tmp_path: Path) -> None:
    assert resolve_prior("halfcheetah-spg") == SHIPPED["halfcheetah-spg"]
    bundle = tmp_path / "bundle"
    shutil.copytree(SHIPPED["halfcheetah-spg"], bundle)
    assert resolve_prior(str(bundle)) == resolve_prior("bundle", relative_to=tmp_path) == bundle
    sweep = tmp_path / "sweep"
    for trial, checkpoints in {"one": ("000000", "000002", "000010"), "two": ("000001",), "untrained": ()}.items():
        (sweep / trial).mkdir(parents=True)
        for number in checkpoints:
            shutil.copytree(bundle, sweep / trial / f"checkpoint_{number}" / "bundle")
    (sweep / "one" / "checkpoint_000011").mkdir()  # unfinished
    assert resolve_prior(str(sweep / "one" / "checkpoint_000002")) == sweep / "one" / "checkpoint_000002" / "bundle"
    assert resolve_prior(str(sweep / "one")) == sweep / "one" / "checkpoint_000010" / "bundle"
    spec = parse_spec(SPEC.format(prior=sweep / "one"))  # as the specification's checks have it, too
    assert spec.prior is not None
    assert resolve_prior(spec.prior) == sweep / "one" / "checkpoint_000010" / "bundle"
    with pytest.raises(ValueError, match=r"a sweep; name the folder of one of its trials: one, two$"):
        resolve_prior(str(sweep))
    with pytest.raises(ValueError, match="not a prior bundle"):
        resolve_prior(str(sweep / "untrained"))
    with pytest.raises(ValueError, match="did you mean 'halfcheetah-spg'"):
        resolve_prior("halfcheetah-sgp")


def test_a_trials_folder_means_its_newest_policy_in_whichever_attempt(tmp_path: Path) -> None:
    """What resumed or extended a sweep writes beside the first attempt's folders."""
    for place in ("t/checkpoint_000004", "attempt-2/t/checkpoint_000001", "attempt-10/t/checkpoint_000000"):
        (tmp_path / place / "bundle").mkdir(parents=True)
        (tmp_path / place / "bundle" / "card.json").touch()
        assert bundle_in(tmp_path / "t") == tmp_path / place / "bundle"
    assert bundle_in(tmp_path / "attempt-2/t") == tmp_path / "attempt-2/t/checkpoint_000001/bundle"
    assert bundle_in(tmp_path / "t/checkpoint_000004") == tmp_path / "t/checkpoint_000004/bundle"
    (tmp_path / "attempt-11/t").mkdir(parents=True)  # has not saved yet
    assert bundle_in(tmp_path / "t") == tmp_path / "attempt-10/t/checkpoint_000000/bundle"
