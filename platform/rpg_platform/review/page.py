"""The report as one HTML file: no network, no server; it also runs inside MLflow's artifact pane."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from string import Template
from typing import Any

REPORT_FILE = "report.html"


def render(content: dict[str, Any]) -> str:
    """The page of ``content.content_of``'s figures."""
    data = json.dumps(content, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return Template(_asset("report.html")).substitute(
        title=html.escape(f"{content['about']['name']} · report"),
        style=_asset("report.css"),
        data=data.replace("<", "\\u003c"),  # no text of a user ends the element
        plotly=_asset("plotly-cartesian.min.js"),
        script=_asset("report.js") + _asset("charts.js"),
    )


@cache
def _asset(name: str) -> str:
    return (files("rpg_platform.review") / "page" / name).read_text(encoding="utf-8")


def index_page(lines: Sequence[str]) -> str:
    """A page of one table; ``lines`` are its rows, already HTML."""
    heads = ("sweep", "started", "task", "state", "finished", "best setting")
    head = "".join(f'<th class="left">{each}</th>' for each in heads) + "<th>total (above the prior)</th><th>kept</th>"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Sweeps</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<style>{_asset('report.css')}</style></head><body><main><h1>Sweeps</h1>"
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
        "</main></body></html>"
    )
