"""Trials of a list are handed out one by one; what Tune copies and keeps does not grow with the list."""

from __future__ import annotations

import copy
import pickle

from ray.tune.experiment import Experiment

from rpg_platform.search.listed import ListedTrials


class Counted(dict[str, object]):
    """A configuration that counts how often it is copied."""

    copies = 0

    def __deepcopy__(self, memo: dict[int, object]) -> dict[str, object]:
        Counted.copies += 1
        return copy.deepcopy(dict(self), memo)


def test_each_configuration_is_a_trial_in_order_and_is_copied_for_itself_alone() -> None:
    configs = [{"trial": Counted(trial_id=f"t{i}", weights={"omega_prime": i / 10})} for i in range(300)]
    searcher = ListedTrials(configs, max_concurrent=2)
    searcher.add_configurations([Experiment("many", lambda config: None, config={"kept": 1})])
    assert searcher.total_samples == 300
    first, second = searcher.next_trial(), searcher.next_trial()
    assert searcher.next_trial() is None
    assert not searcher.is_finished()
    searcher.on_trial_complete(second.trial_id)
    third = searcher.next_trial()
    found = [first, second, third]
    for last in (first, third):
        searcher.on_trial_complete(last.trial_id)
    while (trial := searcher.next_trial()) is not None:
        searcher.on_trial_complete(trial.trial_id)
        found.append(trial)
    assert searcher.is_finished()
    assert [trial.config for trial in found] == [{"kept": 1, **config} for config in configs]
    assert len({trial.trial_id for trial in found}) == 300
    assert Counted.copies <= 2 * 300, "the list must not be copied for each of its trials"
    assert len(pickle.dumps(searcher)) < 1_000
