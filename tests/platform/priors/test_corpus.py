"""Every format and variant that the import reads: action log-probabilities are the source's own, to 1e-5.

(RLlib's own algorithms, which need Ray, are held to theirs in formats/test_rllib.py.)
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.platform.priors.corpus import Entry
from tests.platform.priors.corpus_checkpoints import CHECKPOINTS
from tests.platform.priors.corpus_graphs import GRAPHS
from tests.platform.priors.corpus_sb3 import SB3

from rpg_platform.priors.sources import read_source

CORPUS: dict[str, Entry] = {**SB3, **CHECKPOINTS, **GRAPHS}
LEAST = 500  # states to compare on


@pytest.mark.parametrize("name", CORPUS)
def test_log_probabilities_are_the_sources_own(name: str, tmp_path: Path) -> None:
    entry = CORPUS[name](tmp_path)
    imported = read_source(str(entry.source), entry.options)
    assert entry.form in ("", imported.format)
    network = imported.network
    torch.manual_seed(4)
    with torch.no_grad():
        policy = network.distribution(entry.states)
        actions = policy.sample()
        found, expected = policy.log_prob(actions), entry.log_prob(entry.states, actions)
    assert expected.shape == found.shape == (len(entry.states),)
    if entry.exact is not None:
        exact = entry.exact(actions)
        found, expected = found[exact], expected[exact]
    assert len(found) >= LEAST
    assert expected.std() > 0.01, "there is something to get wrong"
    # Networks of float32 round their sums in another order on another processor.
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=3e-5)
    assert (network.spec.graph is None) == entry.perceptron
