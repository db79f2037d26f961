"""Pictures of a sweep, in the encoding that its report has too."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rpg_platform.results.colours import LIGHTEST
from rpg_platform.results.names import at_words, main_method, short_name, varied_weights
from rpg_platform.results.ranking import pareto_set
from rpg_platform.results.report import Mode
from rpg_platform.results.rows import Estimate, Row

_SMALL_DPI = 110
MOST_NUMBERED = 24  # points that can still be told apart
_MARKERS = ("o", "D", "s", "^", "v", "p")
_METHODS = {"kl": "P", "greedy": "X", "full": "*", "spg": "h", "ppo": "<", "repeat-entropy": ">"}
_BEST, _PRIOR, _OTHER = "#d99a00", "0.25", "0.55"
_MAP = matplotlib.colormaps["cividis"]


def tradeoff_png(
    rows: Sequence[Row], *, mode: Mode | None = None, title: str = "", width: int | None = None
) -> bytes | None:
    """``tradeoff_figure`` as a PNG, of so many pixels' width if one is given."""
    figure = tradeoff_figure(rows, mode=mode, title=title)
    if figure is None:
        return None
    if width is not None:
        figure.set_size_inches(width / _SMALL_DPI, 0.625 * width / _SMALL_DPI)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi="figure" if width is None else _SMALL_DPI)
    return png.getvalue()


def tradeoff_figure(rows: Sequence[Row], *, mode: Mode | None = None, title: str = "") -> Figure | None:
    """Draws every setting's add-on return against its basic return, with lines of equal total return.

    What keeps the prior's behaviour is high, what fulfils the added requirement is to the right. Colour is the main
    weight, shape the second one (or the method), size the KL to the prior; the dashed line is the front of the two
    returns; a golden ring marks the best, and what breaks a constraint is pale. Bars are the 95 % interval over seeds,
    or of a single seed the standard deviation over its episodes. Up to 24 points have the numbers of the table's rows.

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
    of = [row for _, row in shown]
    looks = _Looks(of)
    _front(axes, of, mode)
    few = len(shown) <= MOST_NUMBERED
    for number, row in shown:
        _point(axes, row, mode, looks, str(number) if few else "")
    if not few:
        _name_best(axes, of, mode)
    axes.set_xlabel(f"add-on return ({mode}, undiscounted)  →  more of what was added")
    axes.set_ylabel("basic return  →  more of the prior kept")
    axes.margins(0.12)
    _total_lines(figure)
    key = [*looks.key(of), *_key(of)]
    lines = [(Line2D([], [], linestyle="none"), f"{number}  {short_name(row)}") for number, row in shown] if few else []
    both = [*lines, *key]
    figure.legend(
        [each for each, _ in both],
        [label for _, label in both],
        loc="outside right upper",
        fontsize=7.5,
        frameon=False,
        labelspacing=0.7,
        handlelength=1.2,
    )
    looks.colourbar(figure, axes)
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.25)
    figure.supxlabel(_bars(of), fontsize=7, color="0.4")
    return figure


class _Looks:
    """Colour, shape and size of points."""

    def __init__(self, rows: Sequence[Row]) -> None:
        weights = varied_weights(rows)
        self.method = main_method(rows)
        self.main: Mapping[str, Any] | None = weights[0] if weights else None
        self.second = next((each for each in weights[1:] if len(each["values"]) <= len(_MARKERS)), None)
        self.largest = max((row.kl_to_prior.mean for row in rows if math.isfinite(row.kl_to_prior.mean)), default=0.0)
        values = self.main["values"] if self.main else [0.0, 1.0]
        self.scale = (LogNorm if self.main and self.main["is_log"] else Normalize)(values[0], values[-1])

    def colour(self, row: Row) -> Any:
        if row.is_prior:
            return _PRIOR
        value = row.weights.get(self.main["name"]) if self.main else None
        if row.method != self.method or not isinstance(value, (int, float)):
            return _OTHER if self.main else "C0"
        return _MAP(LIGHTEST * float(self.scale(value)))

    def marker(self, row: Row) -> str:
        if row.is_prior:
            return "*"
        if row.method != self.method:
            return _METHODS.get(row.method, "o")
        values = self.second["values"] if self.second else []
        value = row.weights.get(self.second["name"]) if self.second else None
        return _MARKERS[values.index(value)] if value in values else "o"

    def size(self, row: Row) -> float:
        """Points across; the area grows with the KL."""
        if row.is_prior:
            return 15.0
        kl = row.kl_to_prior.mean
        return 7.0 + 7.0 * math.sqrt(max(0.0, kl) / self.largest) if self.largest > 0 and math.isfinite(kl) else 9.0

    def key(self, rows: Sequence[Row]) -> list[tuple[Line2D, str]]:
        """What the shapes mean."""
        common: dict[str, Any] = {"linestyle": "none", "markersize": 7, "color": _OTHER}
        found = [(Line2D([], [], marker="*", **{**common, "markersize": 10, "color": _PRIOR}), "prior")]
        if self.second:
            for value, marker in zip(self.second["values"], _MARKERS, strict=False):
                found.append((Line2D([], [], marker=marker, **common), f"{self.second['symbol']} {value:g}"))
        others = dict.fromkeys(row.method for row in rows if not row.is_prior and row.method != self.method)
        found += [(Line2D([], [], marker=_METHODS.get(name, "o"), **common), name) for name in others]
        return found if any(row.is_prior for row in rows) else found[1:]

    def colourbar(self, figure: Figure, axes: Any) -> None:
        if self.main is None:
            return
        mappable = matplotlib.cm.ScalarMappable(self.scale, _MAP)
        bar = figure.colorbar(mappable, ax=axes, shrink=0.5, aspect=25, pad=0.01)
        bar.ax.set_title(self.main["symbol"], fontsize=9)
        if len(self.main["values"]) <= len(_MARKERS):
            bar.ax.minorticks_off()
            bar.set_ticks(self.main["values"], labels=[f"{value:g}" for value in self.main["values"]])
        bar.ax.tick_params(labelsize=7)


def _front(axes: Any, rows: Sequence[Row], mode: Mode) -> None:
    """The settings that no other exceeds in both returns."""
    points = np.array(
        [(row.evaluation(mode).addon_return.mean, row.evaluation(mode).basic_return.mean) for row in rows]
    )
    front = points[pareto_set(points)]
    front = front[np.argsort(front[:, 0])]
    axes.plot(front[:, 0], front[:, 1], "--", color="0.5", linewidth=1, zorder=1.5)


def _point(axes: Any, row: Row, mode: Mode, looks: _Looks, number: str) -> None:
    basic, addon = row.evaluation(mode).basic_return, row.evaluation(mode).addon_return
    place = (addon.mean, basic.mean)
    alpha = 0.3 if row.violations else 1.0
    bars = {"xerr": _bar(addon), "yerr": _bar(basic)}
    axes.errorbar(*place, **bars, fmt="none", ecolor="0.5", elinewidth=0.8, capsize=2, alpha=0.7 * alpha, zorder=2)
    size = looks.size(row)
    if row.is_best:
        axes.plot(*place, "o", mfc="none", mec=_BEST, mew=3, markersize=size + 9, zorder=3.5)
    style: dict[str, Any] = {"mec": "white", "mew": 0.7, "alpha": alpha, "zorder": 3}
    axes.plot(*place, looks.marker(row), color=looks.colour(row), markersize=size, **style)
    if number and not row.is_prior:
        shift = (0.5 * size + 3, 0.5 * size + 1)
        axes.annotate(number, place, shift, textcoords="offset points", fontsize=7.5, color="0.35", zorder=4)


def _name_best(axes: Any, rows: Sequence[Row], mode: Mode) -> None:
    """Names the best and the prior where there are too many points for numbers."""
    for row in rows:
        if row.is_best or row.is_prior:
            figures = row.evaluation(mode)
            place = (figures.addon_return.mean, figures.basic_return.mean)
            axes.annotate(
                short_name(row), place, (0, 13), textcoords="offset points", ha="center", fontsize=8, zorder=5
            )


def _key(rows: Sequence[Row]) -> list[tuple[Line2D, str]]:
    """What the other marks mean, of those that are drawn."""
    key = [(Line2D([], [], linestyle="--", color="0.5", linewidth=1), "front of the two returns")]
    if any(row.is_best for row in rows):
        constrained = " within the constraints" if rows[0].objective["constraints"] else ""
        ring = Line2D([], [], marker="o", linestyle="none", markersize=9, mfc="none", mec=_BEST, mew=2)
        key.append((ring, f"best {rows[0].objective['maximize'].replace('_', ' ')}{constrained}"))
    if any(row.violations for row in rows):
        pale = Line2D([], [], marker="o", linestyle="none", markersize=8, color="gray", alpha=0.3)
        key.append((pale, "breaks a constraint"))
    return key


def _bars(rows: Sequence[Row]) -> str:
    spreads = {row.spread for row in rows}
    words = {"seeds": "95 % interval over seeds", "episodes": "standard deviation over episodes"}
    size = "size: KL to the prior; bars: "
    earlier = sum(bool(at_words(row)) for row in rows)
    end = f"; {earlier} settings at fewer env steps than their extended budget (@)" if earlier else ""
    if len(spreads) == 1:
        return f"{size}{words[spreads.pop()]}{end}"
    return f"{size}{words['seeds']}; of a single seed {words['episodes']}{end}"


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
