"""Every format and variant that the import reads: action log-probabilities are the source's own, to 1e-5."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.platform.priors.corpus import Entry
from tests.platform.priors.corpus_graphs import GRAPHS

from rpg_platform.priors.sources import read_source

CORPUS: dict[str, Entry] = {**GRAPHS}


@pytest.mark.parametrize("name", CORPUS)
def test_log_probabilities_are_the_sources_own(name: str, tmp_path: Path) -> None:
    entry = CORPUS[name](tmp_path)
    network = read_source(str(entry.source), entry.options).network
    torch.manual_seed(4)
    with torch.no_grad():
        policy = network.distribution(entry.states)
        actions = policy.sample()
        found, expected = policy.log_prob(actions), entry.log_prob(entry.states, actions)
    assert expected.shape == found.shape == (len(entry.states),)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert (network.spec.graph is None) == entry.perceptron
