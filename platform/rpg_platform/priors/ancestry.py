"""Writes the line of ancestors of a policy as text: the policy, then its parents, the nearest first."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rpg_algorithms.policies.bundle import Ancestor, PriorCard
from rpg_platform.spec.methods import METHODS, WEIGHTS

HASH_DIGITS = 12
_RETURNS = ("basic", "addon", "total")


def lineage_lines(card: PriorCard) -> list[str]:
    """Returns one line per policy: the card's own, then each parent's; only the hash of a parent without a record."""
    lines = [_line(Ancestor.of(card))]
    lines += [f"← {_line(each)}" for each in card.lineage]
    lines += [f"← {each[:HASH_DIGITS]} (nothing else is recorded)" for each in card.parents[len(card.lineage) :]]
    return lines


def lineage_text(card: PriorCard) -> str:
    """Returns the lines of ``lineage_lines`` as one text."""
    return "\n".join(lineage_lines(card))


def weights_text(weights: Mapping[str, Any]) -> str:
    """Writes a training's weights as ``name=value``, in the order of trials' names; a schedule becomes JSON."""
    known = [name for name in WEIGHTS if name in weights]
    return " ".join(
        f"{name}={value:g}" if isinstance(value, int | float) else f"{name}={json.dumps(value, default=str)}"
        for name in (*known, *(each for each in weights if each not in known))
        for value in (weights[name],)
    )


def _line(policy: Ancestor) -> str:
    parts = [f"{policy.name} {policy.content_hash[:HASH_DIGITS] or 'unsaved'}"]
    knows_addon = any(policy.method == each.name and "addon_weight" in each.takes for each in METHODS.values())
    parts.append(f"{policy.env_id}, {policy.task}" if knows_addon and policy.task else policy.env_id)
    if policy.method is not None:
        parts.append(f"{policy.method} {weights_text(policy.weights)}".strip())
    for mode in ("deterministic", "sampled"):
        means = [(name, policy.returns.get(f"{name}/{mode}")) for name in _RETURNS]
        stated = [f"{name} {mean:,.0f}" for name, mean in means if mean is not None]
        if stated:
            parts.append(f"{', '.join(stated)} ({mode})".replace("addon", "add-on"))
            break
    return " · ".join(parts)
