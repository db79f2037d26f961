"""The bundle on disk: what comes back, and what is refused with which message. Nothing in it is executed."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from rpg_algorithms import BundleError, NetworkSpec, PolicyNetwork, PriorCard, load_bundle, load_card, save_bundle
from rpg_algorithms.policies.bundle import (
    CARD_FILE,
    MAX_CARD_BYTES,
    MAX_LINEAGE,
    WEIGHTS_FILE,
    Ancestor,
    ReturnStatistics,
)

OBSERVATIONS = gym.spaces.Box(-np.inf, np.inf, (4,), np.float64)
ACTIONS = gym.spaces.Box(np.array([-1.0, -2.0], np.float32), np.array([1.0, 0.5], np.float32))


def make_network(**options: Any) -> PolicyNetwork:
    torch.manual_seed(3)
    settings = {"distribution": "gaussian", "hidden": (8, 6), "action_low": (-1.0, -2.0), "action_high": (1.0, 0.5)}
    network = PolicyNetwork(NetworkSpec(4, 2, **(settings | options)))
    if network.normalizer is not None:
        network.normalizer.update(torch.randn(50, 4) * 3 + 1)
    return network


def save(path: Path, network: PolicyNetwork | None = None, **details: Any) -> PriorCard:
    network = network or make_network()
    card = PriorCard.describe("walker", "Walker-v0", OBSERVATIONS, ACTIONS, network.spec, **details)
    return save_bundle(path, network, card)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(tmp_path / "bundle", alpha=0.1)
    return tmp_path / "bundle"


# --- what comes back


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"normalize_observations": False},
        {"state_dependent_std": True},
        {"hidden": ()},
        {"distribution": "squashed_gaussian", "observation_clip": None},
    ],
)
def test_round_trip(tmp_path: Path, options: dict[str, Any]) -> None:
    network = make_network(**options)
    details = {
        "alpha": 0.25,
        "env_kwargs": {"include": False},
        "returns": {"basic/deterministic": {"mean": 5.0, "std": 0.5, "episodes": 20}},
        "made_by": {"method": "spg", "seed": 1},
        "parents": ["a" * 64],
    }
    card = save(tmp_path, network, **details)
    bundle = load_bundle(tmp_path)
    assert bundle.card == card == load_card(tmp_path)
    assert bundle.card.returns["basic/deterministic"].mean == 5.0
    assert bundle.network_spec == network.spec
    rebuilt = bundle.build()
    obs = torch.randn(10, 4)
    assert torch.equal(rebuilt(obs), network(obs))
    assert not any(p.requires_grad for p in rebuilt.parameters())
    assert not rebuilt.training
    for name, tensor in network.state_dict().items():
        assert torch.equal(rebuilt.state_dict()[name], tensor), name


def test_saving_again_gives_the_same_hash_and_another_policy_another(tmp_path: Path) -> None:
    network = make_network()
    card = PriorCard.describe("walker", "Walker-v0", OBSERVATIONS, ACTIONS, network.spec)
    first, again = save_bundle(tmp_path / "a", network, card), save_bundle(tmp_path / "b", network, card)
    assert len(first.content_hash) == 64
    assert first.content_hash == again.content_hash
    assert card.content_hash == ""  # the caller's card is left alone
    with torch.no_grad():
        network.mlp[0].bias[0] += 1e-3
    assert save_bundle(tmp_path / "c", network, card).content_hash != first.content_hash
    renamed = card.model_copy(update={"name": "other"})
    assert save_bundle(tmp_path / "d", make_network(), renamed).content_hash != first.content_hash


def test_a_bundle_of_what_was_built_from_one_is_that_one(folder: Path, tmp_path: Path) -> None:
    bundle = load_bundle(folder)
    assert save_bundle(tmp_path / "copy", bundle.build(), bundle.card).content_hash == bundle.card.content_hash


def test_building_gives_independent_networks(folder: Path) -> None:
    bundle = load_bundle(folder)
    one = bundle.build()
    with torch.no_grad():
        one.mlp[0].weight.zero_()
    assert bundle.build().mlp[0].weight.abs().max() > 0


def test_the_card_is_json_that_names_everything(folder: Path) -> None:
    data = json.loads((folder / CARD_FILE).read_text())
    assert data["observation_space"] == {
        "type": "Box",
        "shape": [4],
        "dtype": "float64",
        "low": "-inf",
        "high": "inf",
    }
    assert data["alpha"] == 0.1
    assert set(data["network"]) == set(NetworkSpec.__dataclass_fields__) - {"graph", "context"}
    assert sorted(p.name for p in folder.iterdir()) == [CARD_FILE, WEIGHTS_FILE]


# --- what is refused


def edit_card(folder: Path, **changes: Any) -> None:
    data = json.loads((folder / CARD_FILE).read_text())
    (folder / CARD_FILE).write_text(json.dumps(data | changes))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None], rehash: bool = True) -> None:
    """Changes the tensors; with ``rehash`` the hash is made to fit, as an attacker or a buggy tool would."""
    state = load_file(folder / WEIGHTS_FILE)
    change(state)
    save_file(state, folder / WEIGHTS_FILE)
    if rehash:
        refresh_hash(folder)


def refresh_hash(folder: Path) -> None:
    """Takes the right hash from the loader's own complaint."""
    from rpg_algorithms.policies.bundle import _content_hash

    card = load_card(folder).model_copy(update={"content_hash": ""})
    edit_card(folder, content_hash=_content_hash(card, (folder / WEIGHTS_FILE).read_bytes()))


def set_nan(state: dict[str, torch.Tensor]) -> None:
    state["mlp.0.bias"][2] = torch.nan


def set_inf(state: dict[str, torch.Tensor]) -> None:
    state["normalizer.var"][0] = torch.inf


def drop(state: dict[str, torch.Tensor]) -> None:
    del state["log_std"]


def add(state: dict[str, torch.Tensor]) -> None:
    state["extra"] = torch.zeros(3)


def reshape(state: dict[str, torch.Tensor]) -> None:
    state["mlp.0.weight"] = torch.zeros(8, 5)


def retype(state: dict[str, torch.Tensor]) -> None:
    state["mlp.0.weight"] = state["mlp.0.weight"].double()


def spec_with(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        network = json.loads((folder / CARD_FILE).read_text())["network"]
        edit_card(folder, network=network | changes)
        refresh_hash(folder)

    return edit


def nudge(state: dict[str, torch.Tensor]) -> None:
    state["mlp.0.bias"][0] += 1e-3


def weights_of_another(folder: Path) -> None:
    save(folder.parent / "other", make_network(hidden=(16, 16)))
    (folder / WEIGHTS_FILE).write_bytes((folder.parent / "other" / WEIGHTS_FILE).read_bytes())
    refresh_hash(folder)


def truncate(folder: Path, rehash: bool) -> None:
    file = folder / WEIGHTS_FILE
    file.write_bytes(file.read_bytes()[:-40])
    if rehash:
        refresh_hash(folder)


def remove_network_key(folder: Path) -> None:
    network = json.loads((folder / CARD_FILE).read_text())["network"]
    del network["action_size"]
    edit_card(folder, network=network)
    refresh_hash(folder)


def edit_space(folder: Path) -> None:
    edit_card(folder, action_space={"type": "Dict"})
    refresh_hash(folder)


REFUSALS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "card edited": (
        lambda f: edit_card(f, alpha=0.5),
        r"content hash is .{12}…, the card says .{12}….*changed or damaged",
    ),
    "hash removed": (lambda f: edit_card(f, content_hash=""), r"the card says nothing…"),
    "weights edited": (lambda f: edit_weights(f, nudge, rehash=False), r"changed or damaged"),
    "weights truncated": (lambda f: truncate(f, rehash=False), r"changed or damaged"),
    "truncated, hash made to fit": (lambda f: truncate(f, rehash=True), r"(?i)(incomplete|invalid|header)"),
    "weights missing": (lambda f: (f / WEIGHTS_FILE).unlink(), r"weights\.safetensors: missing"),
    "card missing": (lambda f: (f / CARD_FILE).unlink(), r"no prior bundle there \(expected a folder with card\.json"),
    "card not JSON": (lambda f: (f / CARD_FILE).write_text("{alpha: 1"), r"card\.json: not JSON"),
    "card not text": (lambda f: (f / CARD_FILE).write_bytes(b"\xff\xfe\x00"), r"card\.json: not JSON"),
    "card too deep": (lambda f: (f / CARD_FILE).write_text("[" * 100_000), r"card\.json: not JSON"),
    "card a list": (lambda f: (f / CARD_FILE).write_text("[]"), r"format_version is None, this version reads 1"),
    "card huge": (
        lambda f: (f / CARD_FILE).write_text(" " * (MAX_CARD_BYTES + 1)),
        r"1000001 bytes, more than the 1000000 that are read",
    ),
    "version": (lambda f: edit_card(f, format_version=2), r"format_version is 2, this version reads 1"),
    "unknown key": (lambda f: edit_card(f, reward="x"), r"card\.json: reward: Extra inputs are not permitted"),
    "wrong type": (lambda f: edit_card(f, alpha="much"), r"card\.json: alpha: .*valid number"),
    "NaN weights": (lambda f: edit_weights(f, set_nan), r"non-finite values in \['mlp\.0\.bias'\]"),
    "infinite normaliser": (lambda f: edit_weights(f, set_inf), r"non-finite values in \['normalizer\.var'\]"),
    "weights lack one": (lambda f: edit_weights(f, drop), r"do not match the card's network .*'log_std'"),
    "weights have another": (lambda f: edit_weights(f, add), r"'extra'.* do not match the card's network"),
    "wrong shape": (
        lambda f: edit_weights(f, reshape),
        r"mlp\.0\.weight is torch\.float32 \[8, 5\], the card's network has torch\.float32 \[8, 4\]",
    ),
    "wrong dtype": (lambda f: edit_weights(f, retype), r"mlp\.0\.weight is torch\.float64 \[8, 4\]"),
    "weights of another network": (weights_of_another, r"mlp\.0\.weight is torch\.float32 \[16, 4\]"),
    "network beyond any memory": (
        spec_with(hidden=[10**7, 10**7]),
        r"mlp\.0\.weight is .*network has .* \[10000000, 4\]",
    ),
    "network of other spaces": (
        spec_with(observation_size=5),
        r"the card's network does not fit its spaces: observation_size is 5, expected 4",
    ),
    "unknown network key": (spec_with(depth=3), r"network specification has unknown keys \['depth'\]"),
    "network incomplete": (remove_network_key, r"network specification is incomplete: .*action_size"),
    "unknown activation": (spec_with(activation="gelu"), r"activation='gelu': expected one of"),
    "unknown family": (spec_with(distribution="beta"), r"distribution='beta': expected one of"),
    "space": (edit_space, r"space of type 'Dict': expected Box or Discrete"),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_refused_with_its_message(folder: Path, what: str) -> None:
    load_bundle(folder)  # good before
    spoil, message = REFUSALS[what]
    spoil(folder)
    with pytest.raises(BundleError, match=message):
        load_bundle(folder)


def test_non_finite_weights_are_not_saved(tmp_path: Path) -> None:
    network = make_network()
    with torch.no_grad():
        network.mlp[0].bias[0] = torch.nan
    with pytest.raises(BundleError, match=r"non-finite values in \['mlp\.0\.bias'\]"):
        save(tmp_path, network)
    assert not (tmp_path / WEIGHTS_FILE).exists()


@pytest.mark.parametrize(
    ("observations", "actions", "message"),
    [
        (
            gym.spaces.Box(-np.inf, np.inf, (5,)),
            ACTIONS,
            r"its observation space Box.*is not that of Other-v0: Box.*\(5,\)",
        ),
        (OBSERVATIONS, gym.spaces.Box(-1.0, 1.0, (2,)), r"its action space Box.*is not that of Other-v0"),
        (OBSERVATIONS, gym.spaces.Discrete(2), r"its action space Box.*is not that of Other-v0: Discrete\(2\)"),
    ],
)
def test_other_spaces_are_refused(folder: Path, observations: Any, actions: Any, message: str) -> None:
    with pytest.raises(BundleError, match=rf"prior 'walker' \(Walker-v0\): {message}"):
        load_bundle(folder).check_spaces(observations, actions, "Other-v0")


def test_equal_spaces_of_another_float_width_are_not(folder: Path) -> None:
    load_bundle(folder).check_spaces(gym.spaces.Box(-np.inf, np.inf, (4,), np.float32), ACTIONS, "Walker-v0")


class Payload:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("make", [lambda p: pickle.dumps(p), None])
def test_a_pickle_in_the_place_of_weights_is_not_executed(
    folder: Path, tmp_path: Path, make: Callable[[Any], bytes] | None
) -> None:
    mark = tmp_path / "executed"
    if make is None:  # as torch.save writes it
        torch.save({"mlp.0.weight": Payload(mark)}, folder / WEIGHTS_FILE)
    else:
        (folder / WEIGHTS_FILE).write_bytes(make(Payload(mark)))
    with pytest.raises(BundleError):
        load_bundle(folder)
    refresh_hash(folder)  # and neither when its hash fits
    with pytest.raises(BundleError):
        load_bundle(folder)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Payload(mark)))  # the payload does work
    assert mark.exists()


# --- the line of ancestors


def generations(tmp_path: Path, n: int) -> list[PriorCard]:
    """Bundles each of which was made from the one before, the last first."""
    cards = [save(tmp_path / "0")]
    for i in range(1, n):
        made_by = {"method": "rpg", "weights": {"omega_prime": i}, "task": {"name": f"task{i}", "env": "Walker-v0"}}
        returns = {"total/sampled": ReturnStatistics(mean=i, std=1.0, episodes=3)}
        descent = load_bundle(tmp_path / str(i - 1)).card.descent()
        cards.insert(0, save(tmp_path / str(i), alpha=0.1 * i, made_by=made_by, returns=returns, **descent))
    return cards


def test_a_card_names_its_whole_line_nearest_first(tmp_path: Path) -> None:
    last, *earlier = generations(tmp_path, 4)
    assert last == load_bundle(tmp_path / "3").card  # through the disk and its hash
    assert last.parents == [card.content_hash for card in earlier]
    assert [each.content_hash for each in last.lineage] == last.parents
    assert last.lineage[0].model_dump() == {
        "name": "walker",
        "content_hash": earlier[0].content_hash,
        "env_id": "Walker-v0",
        "task": "task2",
        "method": "rpg",
        "weights": {"omega_prime": 2},
        "alpha": 0.2,
        "returns": {"total/sampled": 2.0},
    }


def test_a_line_does_not_grow_a_card_without_end(tmp_path: Path) -> None:
    last, *earlier = generations(tmp_path, MAX_LINEAGE + 4)
    assert [each.content_hash for each in last.lineage] == last.parents[:MAX_LINEAGE]
    assert last.parents == [card.content_hash for card in earlier]
    huge = {"method": ["m" * 10_000], "task": "t" * 10_000, "weights": {"x": [[0, 1]] * 10_000}}
    ancestor = Ancestor.of(last.model_copy(update={"made_by": huge, "name": "n" * 10_000}))
    assert len(ancestor.model_dump_json()) < 2_000
    assert ancestor.weights == {}


def test_a_card_without_ancestors_is_written_as_before_there_were_any(folder: Path) -> None:
    assert "lineage" not in json.loads((folder / CARD_FILE).read_text())
    assert load_card(folder).lineage == []


def test_a_line_that_is_not_that_of_the_parents_is_refused(tmp_path: Path) -> None:
    generations(tmp_path, 3)
    lineage = json.loads((tmp_path / "2" / CARD_FILE).read_text())["lineage"]
    edit_card(tmp_path / "2", lineage=lineage[::-1])
    with pytest.raises(BundleError, match="lineage does not name the parents in their order"):
        load_card(tmp_path / "2")
