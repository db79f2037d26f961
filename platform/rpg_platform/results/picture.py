"""Pictures of a sweep."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rpg_platform.results.report import Mode
from rpg_platform.results.rows import Estimate, Row

MOST_NUMBERED = 24  # points that can still be told apart
_SYMBOLS = {"omega_prime": "ω′", "alpha_hat": "α̂", "omega": "ω", "alpha": "α", "kl_coefficient": "β"}
_MARKERS = {"rpg": "o", "kl": "s", "greedy": "^", "full": "D", "spg": "v", "ppo": "P", "repeat-entropy": "X"}
_BEST, _PARETO = "gold", "black"


def tradeoff_png(rows: Sequence[Row], *, mode: Mode | None = None, title: str = "") -> bytes | None:
    """``tradeoff_figure`` as a PNG."""
    figure = tradeoff_figure(rows, mode=mode, title=title)
    if figure is None:
        return None
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()


def tradeoff_figure(rows: Sequence[Row], *, mode: Mode | None = None, title: str = "") -> Figure | None:
    """Draws every setting's add-on return against its basic return, the prior as a star, lines of equal total return.

    What keeps the prior's behaviour is high, what fulfils the added requirement is to the right. Bars are the 95 %
    interval over seeds, or of a single seed the standard deviation over its episodes. A black rim marks the Pareto set
    of basic return, add-on return and KL, a golden disc the best, and what breaks a constraint is pale. Points have the
    numbers of the table's rows; the settings stand beside the picture.

    Args:
        rows: from ``rows.summarise``.
        mode: which evaluation to show; None: the objective's.
        title: heading.

    Returns:
        A figure, or None where no setting has a final evaluation.
    """
    numbered = list(enumerate((r for r in rows if r.seeds), 1))
    mode = mode or (numbered[0][1].objective["mode"] if numbered else "deterministic")
    shown = [(i, row) for i, row in numbered if math.isfinite(row.evaluation(mode).total_return.mean)]
    if not shown:
        return None
    figure = Figure(figsize=(9.0, 5.0), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    methods = dict.fromkeys(row.method for _, row in shown if not row.is_prior)
    colours = {method: f"C{i}" for i, method in enumerate(methods)} | {"prior": "dimgray"}
    few = len(shown) <= MOST_NUMBERED
    points = [_point(axes, row, mode, colours[row.method], str(number) if few else "") for number, row in shown]
    axes.set_xlabel(f"add-on return ({mode}, undiscounted)  →  more of what was added")
    axes.set_ylabel("basic return  →  more of the prior kept")
    axes.margins(0.12)
    _total_lines(figure)
    labels = [f"{number}  {_setting(row)}" for number, row in shown] if few else []
    rows_shown = [row for _, row in shown]
    extra = _key(rows_shown)
    figure.legend(
        [*points[: len(labels)], *(each for each, _ in extra)],
        [*labels, *(label for _, label in extra)],
        loc="outside right upper",
        fontsize=7.5,
        frameon=False,
        markerscale=0.6,
        labelspacing=0.8,
    )
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.25)
    figure.supxlabel(_bars(rows_shown), fontsize=7, color="0.4")
    return figure


def _point(axes: Any, row: Row, mode: Mode, colour: str, number: str) -> Line2D:
    """Draws one setting; returns what stands for it in the legend."""
    basic, addon = row.evaluation(mode).basic_return, row.evaluation(mode).addon_return
    place = (addon.mean, basic.mean)
    alpha = 0.35 if row.violations else 1.0
    bars = {"xerr": _bar(addon), "yerr": _bar(basic)}
    axes.errorbar(*place, **bars, fmt="none", ecolor=colour, elinewidth=0.9, capsize=2, alpha=0.6 * alpha, zorder=2)
    size = 17 if row.is_prior else 11
    if row.is_best:
        axes.plot(*place, "o", color=_BEST, markersize=size + 9, zorder=2.5)
    point: Line2D = axes.plot(
        *place,
        "*" if row.is_prior else _MARKERS.get(row.method, "o"),
        color=colour,
        markersize=size,
        alpha=alpha,
        markeredgecolor=_PARETO if row.is_pareto else colour,
        markeredgewidth=1.6 if row.is_pareto else 0.0,
        zorder=3,
    )[0]
    if not row.is_prior:
        style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 6.5, "weight": "bold", "zorder": 4}
        axes.annotate(number, place, color="0.3" if row.violations else "white", **style)
    return point


def _key(rows: Sequence[Row]) -> list[tuple[Line2D, str]]:
    """What the marks mean, of those that are drawn."""
    common: dict[str, Any] = {"linestyle": "none", "markersize": 13}
    key = []
    if any(row.is_best for row in rows):
        constrained = " within the constraints" if rows[0].objective["constraints"] else ""
        disc = Line2D([], [], marker="o", color=_BEST, **common)
        key.append((disc, f"best {rows[0].objective['maximize'].replace('_', ' ')}{constrained}"))
    if any(row.is_pareto for row in rows):
        rim = Line2D([], [], marker="o", markerfacecolor="none", markeredgecolor=_PARETO, markeredgewidth=1.6, **common)
        key.append((rim, "Pareto set (basic, add-on, KL)"))
    if any(row.violations for row in rows):
        pale = Line2D([], [], marker="o", color="gray", alpha=0.35, **common)
        key.append((pale, "breaks a constraint"))
    return key


def _bars(rows: Sequence[Row]) -> str:
    spreads = {row.spread for row in rows}
    words = {"seeds": "95 % interval over seeds", "episodes": "standard deviation over episodes"}
    if len(spreads) == 1:
        return f"bars: {words[spreads.pop()]}"
    return f"bars: {words['seeds']}; of a single seed {words['episodes']}"


def _total_lines(figure: Figure) -> None:
    """Thin lines on which basic + add-on return is the same."""
    axes = figure.axes[0]
    (x0, x1), (y0, y1) = axes.get_xlim(), axes.get_ylim()
    x, y = np.meshgrid(np.linspace(x0, x1, 40), np.linspace(y0, y1, 40))
    lines = axes.contour(x, y, x + y, levels=8, colors="0.75", linewidths=0.7, zorder=1)
    axes.clabel(lines, fmt=lambda total: f"total {total:,.0f}", fontsize=7, zorder=1)
    axes.set_xlim(x0, x1)
    axes.set_ylim(y0, y1)


def _bar(figure: Estimate) -> list[list[float]] | None:
    """Length of the bar below and above."""
    if figure.mean_interval is not None:
        low, high = figure.mean_interval
        return [[max(0.0, figure.mean - low)], [max(0.0, high - figure.mean)]]
    return [[figure.std], [figure.std]] if math.isfinite(figure.std) and figure.std > 0 else None


def _setting(row: Row) -> str:
    if row.is_prior:
        return "prior, untouched"
    values = (
        f"{_SYMBOLS.get(name, name)} {value:g}" if isinstance(value, (int, float)) else f"{_SYMBOLS.get(name, name)}(t)"
        for name, value in row.weights.items()
    )
    return " ".join((row.method, *values))
