"""Rollouts side by side and split again: trajectories stay whole and truncated steps keep their observations."""

from __future__ import annotations

import numpy as np
import pytest

from rpg_algorithms.rllib.rollout import NonFinite, Rollout, RolloutBatch, TensorRollout, merge_rollouts

T, D = 5, 3


def make_rollout(seed: int, n: int = 4, t: int = T, truncated: tuple[tuple[int, int], ...] = ()) -> Rollout:
    rng = np.random.default_rng(seed)
    cut = np.zeros((t, n), bool)
    for index in truncated:
        cut[index] = True
    final_index = np.argwhere(cut)
    return Rollout(
        obs=rng.standard_normal((t, n, D)).astype(np.float32),
        actions=rng.integers(0, 3, (t, n)),
        logp=rng.standard_normal((t, n)).astype(np.float32),
        basic=rng.standard_normal((t, n)).astype(np.float32),
        addon=rng.standard_normal((t, n)).astype(np.float32),
        terminated=rng.random((t, n)) < 0.2,
        truncated=cut,
        last_obs=rng.standard_normal((n, D)).astype(np.float32),
        final_index=final_index,
        final_obs=rng.standard_normal((len(final_index), D)).astype(np.float32),
    )


def column(rollout: Rollout, n: int) -> dict[str, object]:
    """Everything that belongs to one environment, whatever its place."""
    names = ("obs", "actions", "logp", "basic", "addon", "terminated", "truncated")
    finals = {
        int(t): obs.tolist()
        for (t, m), obs in zip(rollout.final_index.tolist(), rollout.final_obs, strict=True)
        if m == n
    }
    arrays = {name: getattr(rollout, name)[:, n].tolist() for name in names}
    return arrays | {"last_obs": rollout.last_obs[n].tolist(), "finals": finals}


def columns(rollout: Rollout) -> list[dict[str, object]]:
    return [column(rollout, n) for n in range(rollout.basic.shape[1])]


PARTS = (
    make_rollout(0, n=4, truncated=((1, 0), (3, 2), (4, 3))),
    make_rollout(1, n=2),
    make_rollout(2, n=6, truncated=((0, 5), (2, 0), (2, 5))),
)


def test_merging_keeps_every_environment_whole() -> None:
    merged = merge_rollouts(PARTS)
    assert columns(merged) == [c for part in PARTS for c in columns(part)]
    assert len(merged) == merged.env_steps() == merged.agent_steps() == T * 12 == RolloutBatch(PARTS).env_steps()
    assert merge_rollouts(PARTS[:1]) is PARTS[0]


@pytest.mark.parametrize("shards", [1, 2, 3, 5])
def test_sharding_cuts_no_trajectory(shards: int) -> None:
    pieces = RolloutBatch(PARTS).shard(shards, minibatch_size=7, len_lookback_buffer=1)
    assert len(pieces) == shards
    found = [c for batch, _ in pieces for rollout in batch.rollouts for c in columns(rollout)]
    assert found == columns(merge_rollouts(PARTS))
    sizes = [batch.env_steps() for batch, _ in pieces]
    assert max(sizes) - min(sizes) <= T
    # Every learner takes the same number of minibatches, as many as the smallest shard fills.
    assert {options["num_total_minibatches"] for _, options in pieces} == {min(sizes) // 7}


def test_sharding_into_more_learners_than_environments_is_refused() -> None:
    with pytest.raises(ValueError, match="2 environments cannot be split between 3 learners"):
        RolloutBatch(PARTS[1:2]).shard(3)


def test_what_cannot_be_learned_from_is_refused() -> None:
    with pytest.raises(ValueError, match=r"rollouts=\[\]: nothing to learn from"):
        RolloutBatch([]).validate()
    with pytest.raises(ValueError, match=r"different numbers of time steps \[4, 5\]"):
        RolloutBatch([make_rollout(0), make_rollout(1, t=4)]).validate()
    RolloutBatch(PARTS).validate()


def test_tensors_share_the_arrays_memory() -> None:
    tensors = TensorRollout.from_rollout(PARTS[0], "cpu")
    assert tensors.obs.data_ptr() == PARTS[0].obs.ctypes.data
    assert np.array_equal(tensors.done.numpy(), PARTS[0].terminated | PARTS[0].truncated)


def test_a_report_of_what_is_not_finite_names_it() -> None:
    text = str(NonFinite("reward", 1234, "Hopper-v5 (env runner 2), sub-environment 3", 2))
    assert text == (
        "reward is NaN or infinite at env step 1234 of Hopper-v5 (env runner 2), sub-environment 3 "
        "(2 value(s) in this rollout)"
    )
