"""The report's pictures as files for a paper: PNG and SVG by matplotlib, in the report's encoding."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from rpg_platform.results.names import SYMBOLS, at_words, varied_weights
from rpg_platform.results.picture import tradeoff_figure
from rpg_platform.results.rows import Estimate, Row
from rpg_platform.review.content import MOST_CURVES
from rpg_platform.review.curves import RETURNS
from rpg_platform.review.found import Found

_TITLES = {
    "total_return": "total return",
    "addon_return": "add-on return",
    "basic_return": "basic return",
    "kl_to_prior": "KL to the prior, nats",
}
_MOST_LINES = 6
_DASHES = ("-", ":", "--", "-.", (0, (5, 1)), (0, (1, 1)))
_MARKS = ("o", "D", "s", "^", "v", "p")


def write_figures(found: Found, folder: Path, metric_name: str) -> list[Path]:
    """Writes ``tradeoff``, ``weights`` and ``curves`` as PNG (200 dpi) and SVG (text as text).

    Args:
        found: the sweep.
        folder: made if it is missing.
        metric_name: heading of the task's readable metric.

    Returns:
        The files; a figure of which the sweep has nothing is left out.

    Raises:
        ValueError: the folder can't be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--figures {folder}: {error.strerror}") from error
    written = []
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "rpg", "font.size": 9}):
        for name, figure in _figures(found):
            for kind in ("png", "svg"):
                file = folder / f"{name}.{kind}"
                figure.savefig(file, dpi=200, metadata={"Date": None} if kind == "svg" else {})
                written.append(file)
    return written


def _figures(found: Found) -> Iterator[tuple[str, Figure]]:
    rows = [row for row in found.rows if row.seeds]
    made = tradeoff_figure(rows, title=found.spec.description)
    if made is not None:
        yield "tradeoff", made
    weights = varied_weights(rows)
    if weights:
        yield "weights", _responses(rows, weights)
    one_each = {found.lines[row.group]: row for row in reversed(rows) if not row.is_prior}
    drawn = {group: one_each[group] for group in reversed(one_each) if group in found.lines_of}
    if drawn:
        yield "curves", _curves(found, dict(itertools.islice(drawn.items(), MOST_CURVES)))


def _axes(count: int = 4) -> tuple[Figure, list[Any]]:
    figure = Figure(figsize=(3.1 * count, 2.9), layout="constrained")
    axes = [figure.add_subplot(1, count, i + 1) for i in range(count)]
    for each, title in zip(axes, _TITLES.values(), strict=True):
        each.set_title(title, fontsize=9)
        each.grid(alpha=0.25)
        each.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _responses(rows: Sequence[Row], weights: Sequence[Mapping[str, Any]]) -> Figure:
    """Each measure against the first weight that varies, a line for each value of the second."""
    figure, axes = _axes()
    main = weights[0]["name"]
    second = next((each for each in weights[1:] if len(each["values"]) <= _MOST_LINES), None)
    own = [
        row for row in rows if isinstance(row.weights.get(main), (int, float)) and row.method == weights[0]["method"]
    ]
    prior = next((row for row in rows if row.is_prior), None)
    for axis, measure in zip(axes, _TITLES, strict=True):
        for i, value in enumerate([None] if second is None else second["values"]):
            of = [row for row in own if second is None or row.weights.get(second["name"]) == value]
            of.sort(key=lambda row: float(row.weights[main]))
            x = [float(row.weights[main]) for row in of]
            y = [row.figure(measure) for row in of]
            label = None if second is None else f"{SYMBOLS[second['name']]} {value:g}"
            line = _DASHES[i] if len(set(x)) == len(x) and len(x) <= 40 else "none"
            axis.errorbar(
                x,
                [e.mean for e in y],
                yerr=_bars(y),
                linestyle=line,
                marker=_MARKS[i],
                markersize=4,
                capsize=2,
                label=label,
            )
        if prior is not None and math.isfinite(prior.figure(measure).mean):
            axis.axhline(prior.figure(measure).mean, linestyle="--", color="0.3", linewidth=1, label="prior")
        values = weights[0]["values"]
        if weights[0]["is_log"]:
            axis.set_xscale("log")
            axis.minorticks_off()
            if len(values) <= _MOST_LINES:
                axis.set_xticks(values, [f"{value:g}" for value in values])
        axis.set_xlabel(SYMBOLS.get(main, main))
    axes[0].legend(fontsize=7, frameon=False)
    return figure


def _bars(figures: Sequence[Estimate]) -> Any:
    """``[2, N]``: the 95 % interval over seeds, or of one seed the deviation over its episodes."""
    ends = [
        (f.mean - f.mean_interval[0], f.mean_interval[1] - f.mean) if f.mean_interval else (f.std, f.std)
        for f in figures
    ]
    return np.maximum(0.0, np.nan_to_num(np.array(ends).T))


def _curves(found: Found, rows: Mapping[str, Row]) -> Figure:
    """Mean over seeds at each report, and the range over seeds, of trainings by their group."""
    figure, axes = _axes()
    colours = matplotlib.colormaps["cividis"](np.linspace(0.0, 0.9, max(2, len(rows))))
    for (group, row), colour in zip(rows.items(), colours, strict=False):
        own, told = list(found.lines_of[group].values()), found.told.get(row.group)
        for axis, measure in zip(axes, (*RETURNS, "kl_to_prior"), strict=True):
            lines = [(each.steps, each.values[measure]) for each in own]
            lines = [(x[np.isfinite(y)], y[np.isfinite(y)]) for x, y in lines if np.isfinite(y).any()]
            if not lines:
                continue
            steps = max((x for x, _ in lines), key=len)
            both = np.array([np.interp(steps, x, y, left=np.nan, right=np.nan) for x, y in lines])
            with np.errstate(invalid="ignore"):
                label = found.line_names[group] if told else row.setting + at_words(row)
                axis.plot(steps, np.nanmean(both, axis=0), color=colour, linewidth=1.2, label=label)
                if len(lines) > 1:
                    low, high = np.nanmin(both, axis=0), np.nanmax(both, axis=0)
                    axis.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
            axis.set_xlabel("env steps")
    if len(rows) <= 12:
        figure.legend(
            *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=7, frameon=False
        )
    return figure
