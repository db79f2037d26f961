"""The prior bundle: a folder with a JSON card and safetensors weights, and nothing that is ever executed.

    bundle/card.json             describes the policy, its origin and its returns
    bundle/weights.safetensors   state of one ``PolicyNetwork``, its observation normaliser included

The card's ``content_hash`` covers the weights and everything else in the card, so a bundle's hash identifies it.
A customised policy is saved in the same format; ``parents`` holds the hashes of the bundles that it was made from, and
``lineage`` a summary of each, for readers who do not have these bundles.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)
from safetensors import SafetensorError
from safetensors.torch import load as safetensors_load
from safetensors.torch import save as safetensors_save

from rpg_algorithms.policies.network import NetworkSpec, PolicyNetwork, spec_for_spaces
from rpg_algorithms.policies.spaces import same_observations, same_space, space_from_json, space_to_json

FORMAT_VERSION = 1
CARD_FILE = "card.json"
WEIGHTS_FILE = "weights.safetensors"
MAX_CARD_BYTES = 1_000_000
MAX_WEIGHTS_BYTES = 512_000_000
MAX_LINEAGE = 64
_MAX_TEXT = 200
_MAX_WEIGHTS_TEXT = 2_000


class BundleError(ValueError):
    """A prior bundle that is missing, damaged, or does not fit where it is used."""


class ReturnStatistics(BaseModel):
    """Undiscounted episode returns of one evaluation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mean: float
    std: float
    episodes: int = Field(ge=1)


class Ancestor(BaseModel):
    """The summary that a card keeps of a bundle from which its policy was made.

    Attributes:
        name, env_id, alpha: as on the ancestor's card.
        content_hash: identifies the ancestor.
        task, method, weights: the training that made the ancestor, or ``import`` and the format, if its card says so.
        returns: mean returns by evaluation, such as ``basic/deterministic``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    content_hash: str
    env_id: str
    task: str | None = None
    method: str | None = None
    weights: dict[str, Any] = {}
    alpha: float | None = None
    returns: dict[str, float] = {}

    @classmethod
    def of(cls, card: PriorCard) -> Ancestor:
        """Summarises ``card``; the summary has a bounded size, because ``made_by`` may hold anything."""
        weights = card.made_by.get("weights")
        method, imported = card.made_by.get("method"), card.made_by.get("import")
        if method is None and isinstance(imported, dict) and "format" in imported:
            method = f"import {imported['format']}"
        fits = isinstance(weights, dict) and len(json.dumps(weights, default=str)) <= _MAX_WEIGHTS_TEXT
        return cls(
            name=card.name[:_MAX_TEXT],
            content_hash=card.content_hash,
            env_id=card.env_id[:_MAX_TEXT],
            task=_short_text(card.made_by.get("task")),
            method=_short_text(method),
            weights=weights if fits and weights else {},
            alpha=card.alpha,
            returns={name: statistics.mean for name, statistics in sorted(card.returns.items())[:12]},
        )


class PriorCard(BaseModel):
    """The card of a bundle, which describes its policy.

    Attributes:
        format_version: version of the bundle format.
        name: short name.
        env_id: gymnasium id of the environment in which the policy acts; empty where it was imported by its spaces
            alone and has met none.
        env_kwargs: keyword arguments of ``gymnasium.make``.
        observation_space, action_space: spaces as JSON (see ``spaces``).
        network: fields of ``NetworkSpec``.
        alpha: entropy temperature that the policy was trained at, reward per nat; None where unknown (then ``omega``
            cannot be used, only ``omega_prime``).
        returns: evaluations, such as ``basic/deterministic``.
        made_by: how the policy was made: versions, method, settings, seed, env steps.
        parents: content hashes of the bundles from which the policy was made, nearest first.
        lineage: summaries of the parents in the same order, as many as are known, at most ``MAX_LINEAGE``. An empty
            lineage is not written, so cards without one keep their hash.
        created: UTC time, ISO 8601.
        content_hash: SHA-256 of the card without this field and of the weights.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: int = FORMAT_VERSION
    name: str
    env_id: str
    env_kwargs: dict[str, Any] = {}
    observation_space: dict[str, Any]
    action_space: dict[str, Any]
    network: dict[str, Any]
    alpha: float | None = None
    returns: dict[str, ReturnStatistics] = {}
    made_by: dict[str, Any] = {}
    parents: list[str] = []
    lineage: list[Ancestor] = Field(default=[], max_length=MAX_LINEAGE)
    created: str = ""
    content_hash: str = ""

    @model_validator(mode="after")
    def _lineage_is_of_the_parents(self) -> PriorCard:
        if [each.content_hash for each in self.lineage] != self.parents[: len(self.lineage)]:
            raise ValueError("lineage does not name the parents in their order")
        return self

    @model_serializer(mode="wrap")
    def _without_empty_lineage(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data: dict[str, Any] = handler(self)
        if not data.get("lineage"):
            data.pop("lineage", None)
        return data

    def descent(self) -> dict[str, Any]:
        """Returns ``parents`` and ``lineage`` for a policy that is made from this bundle, for ``describe``."""
        return {
            "parents": [self.content_hash, *self.parents],
            "lineage": [Ancestor.of(self), *self.lineage][:MAX_LINEAGE],
        }

    @classmethod
    def describe(
        cls,
        name: str,
        env_id: str,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        network: NetworkSpec,
        **details: Any,
    ) -> PriorCard:
        """Builds a card from live spaces and a network specification; ``details`` are the remaining fields."""
        return cls(
            name=name,
            env_id=env_id,
            observation_space=space_to_json(observation_space),
            action_space=space_to_json(action_space),
            network=network.to_dict(),
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            **details,
        )


class PriorBundle:
    """An immutable prior: its card and its weights as numpy arrays.

    Copies of a configuration share one instance, and a checkpoint carries all of its data, so a restored run does not
    depend on the folder from which the prior came.
    """

    def __init__(self, card: PriorCard, weights: Mapping[str, NDArray[Any]]) -> None:
        self.card = card
        self.weights = dict(weights)
        self.network_spec = NetworkSpec.from_dict(card.network)

    def __repr__(self) -> str:
        return f"PriorBundle({self.card.name!r}, {self.card.content_hash[:12]})"

    def __deepcopy__(self, memo: dict[int, Any]) -> PriorBundle:
        return self

    def build(self) -> PolicyNetwork:
        """Builds the frozen policy network, in evaluation mode and without gradients."""
        network = PolicyNetwork(self.network_spec)
        network.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in self.weights.items()})
        network.requires_grad_(False)
        return network.eval()

    def check_spaces(self, observation_space: gym.Space[Any], action_space: gym.Space[Any], env: str) -> None:
        """Raises BundleError unless the prior acts in these spaces."""
        for what, mine, theirs, same in (
            ("observation", self.card.observation_space, observation_space, same_observations),
            ("action", self.card.action_space, action_space, same_space),
        ):
            own = space_from_json(mine)
            if not same(own, theirs):
                raise BundleError(
                    f"prior {self.card.name!r} ({self.card.env_id}): its {what} space {own} is not that of {env}: "
                    f"{theirs}"
                )


def save_bundle(path: str | Path, network: PolicyNetwork, card: PriorCard) -> PriorCard:
    """Writes a bundle and returns its card with the content hash filled in.

    Args:
        path: folder to write; made when missing, its two files are replaced.
        network: the policy, its normaliser included.
        card: the policy's card; its field ``network`` is replaced by the network's specification.

    Raises:
        BundleError: the weights are not finite, or the card is too large to be read again.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
    _check_finite(state, folder)
    weights = safetensors_save(state)
    card = card.model_copy(update={"network": network.spec.to_dict(), "content_hash": ""})
    card = card.model_copy(update={"content_hash": _content_hash(card, weights)})
    text = json.dumps(card.model_dump(), indent=2, sort_keys=True, allow_nan=False) + "\n"
    if len(text) > MAX_CARD_BYTES:  # ASCII: bytes
        raise BundleError(f"{folder}: the card takes {len(text)} bytes, more than the {MAX_CARD_BYTES} that are read")
    (folder / WEIGHTS_FILE).write_bytes(weights)
    (folder / CARD_FILE).write_text(text, encoding="utf-8")
    return card


def load_card(path: str | Path) -> PriorCard:
    """Reads and checks only a bundle's card, without its hash.

    Raises:
        BundleError: there is no bundle, or its card does not have this format.
    """
    file = Path(path) / CARD_FILE
    if not file.is_file():
        raise BundleError(f"{path}: no prior bundle there (expected a folder with {CARD_FILE} and {WEIGHTS_FILE})")
    try:
        data = json.loads(_read(file, MAX_CARD_BYTES))
        version = data.get("format_version") if isinstance(data, dict) else None
        if version != FORMAT_VERSION:
            raise BundleError(f"{file}: format_version is {version!r}, this version reads {FORMAT_VERSION}")
        return PriorCard.model_validate(data)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{file}: not JSON: {error}") from error
    except ValidationError as error:
        details = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise BundleError(f"{file}: {details}") from error


def load_bundle(path: str | Path) -> PriorBundle:
    """Reads a bundle and checks its hash and its weights' names, shapes and finiteness. Executes nothing in it.

    Raises:
        BundleError: the message names the file, the fault and the expected value.
    """
    folder = Path(path)
    card = load_card(folder)
    file = folder / WEIGHTS_FILE
    if not file.is_file():
        raise BundleError(f"{file}: missing")
    raw = _read(file, MAX_WEIGHTS_BYTES)
    expected_hash = _content_hash(card.model_copy(update={"content_hash": ""}), raw)
    if card.content_hash != expected_hash:
        raise BundleError(
            f"{folder}: content hash is {expected_hash[:12]}…, the card says {card.content_hash[:12] or 'nothing'}…: "
            "the bundle was changed or damaged"
        )
    try:
        state = safetensors_load(raw)
        spec = NetworkSpec.from_dict(card.network)
        spaces = space_from_json(card.observation_space), space_from_json(card.action_space)
        spec_for_spaces(*spaces, spec.distribution).check_compatible(spec, "the card's network does not fit its spaces")
    except (SafetensorError, ValueError) as error:
        raise BundleError(f"{folder}: {error}") from error
    with torch.device("meta"):  # shapes alone: a card may claim a network larger than the memory
        expected = PolicyNetwork(spec).state_dict()
    if set(state) != set(expected):
        raise BundleError(f"{file}: weights {sorted(state)} do not match the card's network {sorted(expected)}")
    for name, tensor in expected.items():
        if state[name].shape != tensor.shape or state[name].dtype != tensor.dtype:
            found, wanted = (f"{t.dtype} {list(t.shape)}" for t in (state[name], tensor))
            raise BundleError(f"{file}: {name} is {found}, the card's network has {wanted}")
    _check_finite(state, folder)
    return PriorBundle(card, {k: v.numpy() for k, v in state.items()})


def _short_text(value: object) -> str | None:
    """Returns a name unchanged and anything else, such as a task in YAML, by its name or as JSON; cuts long text."""
    if isinstance(value, dict) and isinstance(value.get("name"), str):
        value = value["name"]
    if value is None:
        return None
    return (value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str))[:_MAX_TEXT]


def _content_hash(card_without_hash: PriorCard, weights: bytes) -> str:
    canonical = json.dumps(card_without_hash.model_dump(), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode() + b"\0" + weights).hexdigest()


def _check_finite(state: Mapping[str, torch.Tensor], where: Path) -> None:
    bad = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise BundleError(f"{where}: non-finite values in {bad}")


def _read(file: Path, limit: int) -> bytes:
    size = file.stat().st_size
    if size > limit:
        raise BundleError(f"{file}: {size} bytes, more than the {limit} that are read")
    return file.read_bytes()
