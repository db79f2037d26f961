"""Reads the card that ``rpg export`` puts into TorchScript files and ONNX models, as weights say too little alone."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from rpg_algorithms.policies.bundle import MAX_CARD_BYTES, PriorCard
from rpg_algorithms.policies.discount import recorded_gamma
from rpg_algorithms.policies.network import NetworkSpec
from rpg_algorithms.policies.spaces import space_from_json
from rpg_platform.priors.imported import Imported, ImportOptions


def read_card(text: str | bytes | None) -> PriorCard | None:
    """Reads the card in a file's metadata; None where there is none of ours. Like all of a file, a card is a claim."""
    if text is None or len(text) > MAX_CARD_BYTES:
        return None
    try:
        card = PriorCard.model_validate(json.loads(text))
        NetworkSpec.from_dict(card.network)
        space_from_json(card.observation_space)
        space_from_json(card.action_space)
    except (ValueError, TypeError, KeyError, RecursionError):  # a ValidationError is a ValueError
        return None
    return card


def with_card(options: ImportOptions, card: PriorCard | None) -> ImportOptions:
    """Fills the options that the user left open from the card."""
    if card is None:
        return options
    changes: dict[str, Any] = {}
    if None in options.spaces:
        changes["observation_space"] = space_from_json(card.observation_space)
        changes["action_space"] = space_from_json(card.action_space)
    distribution = card.network.get("distribution")
    if options.distribution is None and options.std is None and distribution in ("gaussian", "squashed_gaussian"):
        changes["distribution"] = distribution
    return replace(options, **changes)


def with_origin(imported: Imported, card: PriorCard | None) -> Imported:
    """Adds to an import the card that its file holds, as ``described_by`` does; None adds nothing."""
    if card is None:
        return imported
    facts = {**imported.facts, "exported_from": card.content_hash, "name": card.name}
    note = f"exported from {card.name!r} ({card.content_hash[:12]}), whose card it holds"
    return described_by(card, replace(imported, facts=facts, notes=(note, *imported.notes)))


def described_by(card: PriorCard, imported: Imported) -> Imported:
    """Adds to an import what a card says of spaces, environment, temperature, discount and descent."""
    descent, gamma = card.descent(), recorded_gamma(card.made_by)
    return replace(
        imported,
        observation_space=space_from_json(card.observation_space),
        action_space=space_from_json(card.action_space),
        env_id=card.env_id,
        env_kwargs=card.env_kwargs,
        alpha=card.alpha,
        facts=imported.facts if gamma is None else {**imported.facts, "gamma": gamma},
        parents=tuple(descent["parents"]),
        lineage=tuple(descent["lineage"]),
    )
