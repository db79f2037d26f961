"""What a search has decided is read back from its storage alone, a file system or an object store."""

from __future__ import annotations

import pytest

from rpg_platform.search.judge import Verdict
from rpg_platform.spec.sweep import SweepSpec
from rpg_platform.storage.sweep_folder import SweepFolder


@pytest.mark.parametrize("place", ["tmp_path", "bucket"])
def test_proposals_and_verdicts_are_read_back_in_order(place: str, request: pytest.FixtureRequest) -> None:
    storage = str(request.getfixturevalue(place))
    raw = {"name": "kept", "task": "hopper-height", "algorithm": "ppo", "budget": {"env_steps": 100_000}}
    folder = SweepFolder(storage, "kept")
    folder.create(SweepSpec.model_validate(raw), None)
    assert folder.proposals() == folder.verdicts() == []
    proposals = [{"number": n, "setting": {"alpha": [[0, n / 3], [5, 1.0]]}} for n in range(12)]
    for proposal in reversed(proposals):
        folder.keep_proposal(int(str(proposal["number"])), proposal)
    verdicts = [
        Verdict(f"rpg-omega_prime={w:g}-alpha_hat=1e-05", 1_000, "asha", w > 0.1, {"total_return": None}, {"x": w})
        for w in (0.1, 0.2)
    ]
    for verdict in verdicts:
        folder.keep_verdict(verdict.to_json())
    again = SweepFolder(storage, "kept")
    assert again.proposals() == proposals
    assert list(map(Verdict.from_json, again.verdicts())) == verdicts
    assert again.trials() == {}, "none of these files is a trial"
