"""What a sweep's own run says in MLflow at its end: a description that begins with the verdict, and its figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rpg_platform.results.difference import certainty_words, choosing_words, objective_of
from rpg_platform.results.names import at_words, short_name
from rpg_platform.results.report import KEPT
from rpg_platform.results.rows import Row
from rpg_platform.results.table import figures_to_markdown, rows_to_json, rows_to_markdown
from rpg_platform.spec.measures import BY_NAME
from rpg_platform.tracking.runs import EXPERIMENT_ID, RUN_ID
from rpg_platform.tracking.views import HEALTH, LEARNING, TRADE_OFF, models_address, view_address

PICTURE = "summary/overview.png"
PICTURE_WIDTH = 800
"""Pixels; a description in MLflow cuts a wider picture off."""
REPORT = "summary/report.html"
_MOST_ROWS = 12


def figures_of(rows: Sequence[Row], failures: int) -> dict[str, float]:
    """The metrics of a sweep's own run: ``best`` and ``prior`` are of the objective, ``gain`` is what lies between.

    Args:
        rows: from ``rows.summarise``.
        failures: trials without a result.
    """
    best, prior = _best(rows), _prior(rows)
    found: dict[str, float] = {}
    if best is not None:
        found["best"] = objective_of(best).mean
    if prior is not None:
        found["prior"] = objective_of(prior).mean
    if len(found) == 2:
        found["gain"] = found["best"] - found["prior"]
    if best is not None:
        found[KEPT] = math.nan if best.basic_kept is None else 100 * best.basic_kept
        found |= {"kl": best.kl_to_prior.mean, "seeds": len(best.seeds)}
    found["failures"] = failures
    return {name: float(value) for name, value in found.items() if math.isfinite(value)}


def tags_of(rows: Sequence[Row]) -> dict[str, str]:
    """The tags of a sweep's own run that its results give."""
    best = _best(rows)
    return {} if best is None else {"best_setting": best.setting + at_words(best)}


def note_of(rows: Sequence[Row], spec: dict[str, Any], failures: int, files: set[str]) -> str:
    """The description, in Markdown: the verdict, the table, the picture, and where to go on.

    Args:
        rows: from ``rows.summarise``.
        spec: the sweep's specification, as data.
        failures: trials without a result.
        files: paths of the artifacts that the run has.
    """
    links = []
    if REPORT in files:
        links.append(f"[Report](#/experiments/{EXPERIMENT_ID}/runs/{RUN_ID}/artifacts/{REPORT})")
    links += _links(spec["name"])
    picture = f"![trade-off](get-artifact?path={PICTURE}&run_uuid={RUN_ID})" if PICTURE in files else ""
    table = figures_to_markdown(rows, _MOST_ROWS)
    failed = f"{failures} trials have no result." if failures else ""
    # MLflow shows the first lines and hides the rest behind "Show more".
    parts = [verdict(rows), " · ".join(links), choosing_words(rows), failed, spec.get("description")]
    return "\n\n".join(part for part in [*parts, table, picture] if part)


def links_back(sweep: str) -> str:
    """A trial's description: the ways to the views and to the sweep's run, as MLflow's own way back forgets a view."""
    return " · ".join([*_links(sweep), f"[The sweep](#/experiments/{EXPERIMENT_ID}/runs/{RUN_ID})"])


def _links(sweep: str) -> list[str]:
    views = (TRADE_OFF, LEARNING, HEALTH)
    links = [f"[{view}]({view_address(EXPERIMENT_ID, sweep, view)})" for view in views]
    return [*links, f"[Policies]({models_address(EXPERIMENT_ID)})"]


def summary_files(rows: Sequence[Row], title: str) -> dict[str, bytes]:
    """Artifacts of the sweep's run, by path: the table as JSON and as Markdown, and the trade-off at two sizes."""
    from rpg_platform.results.picture import tradeoff_png  # matplotlib, which nothing needs before the end

    made: dict[str, bytes | None] = {
        "summary/summary.json": rows_to_json(rows).encode(),
        "summary/summary.md": rows_to_markdown(rows).encode(),
        "summary/tradeoff.png": tradeoff_png(rows, title=title),
        PICTURE: tradeoff_png(rows, title=title, width=PICTURE_WIDTH),
    }
    return {path: content for path, content in made.items() if content is not None}


def verdict(rows: Sequence[Row]) -> str:
    """What a sweep found, in one line.

    Args:
        rows: from ``rows.summarise``.
    """
    best, prior = _best(rows), _prior(rows)
    if best is None:
        done = any(row.seeds for row in rows)
        return "No setting satisfies the constraints." if done else "No trial has a final evaluation."
    measure = BY_NAME[best.objective["maximize"]].heading
    mean = objective_of(best).mean
    certain = certainty_words(rows, short_name, "; ")
    if best.is_prior:
        said = f"★ The prior, untouched: no setting has a higher {measure} return than its {mean:,.0f}"
        return ", ".join([said, *certain]) + "."
    words = [f"★ {short_name(best)}: {measure} {mean:,.0f}"]
    if prior is not None:
        before = objective_of(prior).mean
        share = f", {100 * (mean - before) / abs(before):+.0f} %" if before else ""
        words[0] += f" (prior {before:,.0f}{share})"
    words += [] if best.basic_kept is None else [f"keeps {100 * best.basic_kept:.0f} % of the prior's basic return"]
    words += [f"KL {best.kl_to_prior.mean:.2f} nats"] if math.isfinite(best.kl_to_prior.mean) else []
    return ", ".join([*words, *certain]) + "."


def _best(rows: Sequence[Row]) -> Row | None:
    return next((row for row in rows if row.is_best), None)


def _prior(rows: Sequence[Row]) -> Row | None:
    return next((row for row in rows if row.is_prior and row.seeds), None)
