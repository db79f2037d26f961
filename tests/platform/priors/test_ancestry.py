"""The line of ancestors as text."""

from __future__ import annotations

from typing import Any

from rpg_algorithms.policies.bundle import PriorCard, load_card
from rpg_platform.bundles import SHIPPED
from rpg_platform.priors.ancestry import lineage_lines, lineage_text

SHIPPED_LINE = (
    "halfcheetah-spg fd242f12063c · HalfCheetah-v5 · spg alpha=0.1 · "
    "basic 9,005, add-on -3,229, total 5,776 (deterministic)"
)


def child(parent: PriorCard, name: str, **made_by: Any) -> PriorCard:
    update = {"name": name, "content_hash": name * 64, "made_by": made_by, "returns": {}, **parent.descent()}
    return PriorCard.model_validate(parent.model_copy(update=update).model_dump())


def test_the_shipped_prior_is_its_own_line() -> None:
    assert lineage_lines(load_card(SHIPPED["halfcheetah-spg"])) == [SHIPPED_LINE]


def test_a_chain_is_told_from_the_policy_back() -> None:
    schedule = {"omega_prime": [[0, 0.1], [1000, 0.2]], "alpha_hat": 0.02}
    first = child(load_card(SHIPPED["halfcheetah-spg"]), "a", method="rpg", task="foot", weights=schedule)
    second = child(first, "b", **{"import": {"format": "sb3/ppo"}})
    assert lineage_lines(second) == [
        "b bbbbbbbbbbbb · HalfCheetah-v5 · import sb3/ppo",
        "← a aaaaaaaaaaaa · HalfCheetah-v5, foot · rpg omega_prime=[[0, 0.1], [1000, 0.2]] alpha_hat=0.02",
        f"← {SHIPPED_LINE}",
    ]
    assert lineage_text(second).splitlines() == lineage_lines(second)


def test_parents_of_an_older_card_are_known_by_hash_alone() -> None:
    card = load_card(SHIPPED["halfcheetah-spg"]).model_copy(update={"parents": ["f" * 64]})
    assert lineage_lines(card) == [SHIPPED_LINE, "← ffffffffffff (nothing else is recorded)"]
