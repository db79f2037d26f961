"""Pictures of a sweep."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from rpg_platform.report import Mode, Row

MOST_NUMBERED = 24  # points that can still be told apart
_SYMBOLS = {"omega_prime": "ω′", "alpha_hat": "α̂", "omega": "ω", "alpha": "α", "kl_coefficient": "β"}
_MARKERS = {"rpg": "o", "kl": "s", "greedy": "^", "full": "D", "spg": "v", "ppo": "P", "repeat-entropy": "X"}


def tradeoff_png(rows: Sequence[Row], *, mode: Mode = "deterministic", title: str = "") -> bytes | None:
    """Draws every setting's add-on return against its basic return, the prior as a star, lines of equal total return.

    What keeps the prior's behaviour is high, what fulfils the added requirement is to the right; bars are the spread.
    Points are numbered as the table's rows are ordered, best total first; the settings stand beside the picture.

    Args:
        rows: from ``report.summarise``.
        mode: which evaluation to show.
        title: heading.

    Returns:
        A PNG, or None where no setting has a final evaluation.
    """
    shown = [r for r in rows if r.seeds and math.isfinite(r.evaluation(mode).total_return.mean)]
    if not shown:
        return None
    figure = Figure(figsize=(9.0, 5.0), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    colours = {method: f"C{i}" for i, method in enumerate(dict.fromkeys(r.method for r in shown if not r.is_prior))}
    lines = []
    for rank, row in enumerate(shown, 1):
        basic, addon = row.evaluation(mode).basic_return, row.evaluation(mode).addon_return
        colour = "black" if row.is_prior else colours[row.method]
        place = (addon.mean, basic.mean)
        axes.errorbar(
            *place, xerr=_bar(addon.std), yerr=_bar(basic.std), fmt="none", ecolor=colour, elinewidth=0.8, alpha=0.6
        )
        marker = "*" if row.is_prior else _MARKERS.get(row.method, "o")
        point = axes.plot(*place, marker, color=colour, markersize=17 if row.is_prior else 11, zorder=3)[0]
        if not row.is_prior and len(shown) <= MOST_NUMBERED:
            axes.annotate(
                str(rank), place, ha="center", va="center", fontsize=6.5, color="white", weight="bold", zorder=4
            )
        lines.append((point, f"{rank}  {_setting(row)}"))
    axes.set_xlabel(f"add-on return ({mode}, undiscounted)  →  more of what was added")
    axes.set_ylabel("basic return  →  more of the prior kept")
    axes.margins(0.12)
    _total_lines(figure, shown, mode)
    if len(lines) <= MOST_NUMBERED:
        figure.legend(
            *zip(*lines, strict=True),
            loc="outside right upper",
            fontsize=7.5,
            frameon=False,
            markerscale=0.6,
            labelspacing=0.8,
        )
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.25)
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()


def _total_lines(figure: Figure, rows: Sequence[Row], mode: Mode) -> None:
    """Thin lines on which basic + add-on return is the same."""
    axes = figure.axes[0]
    (x0, x1), (y0, y1) = axes.get_xlim(), axes.get_ylim()
    x, y = np.meshgrid(np.linspace(x0, x1, 40), np.linspace(y0, y1, 40))
    lines = axes.contour(x, y, x + y, levels=8, colors="0.75", linewidths=0.7, zorder=1)
    axes.clabel(lines, fmt=lambda total: f"total {total:,.0f}", fontsize=7)
    axes.set_xlim(x0, x1)
    axes.set_ylim(y0, y1)


def _bar(std: float) -> float | None:
    return std if math.isfinite(std) and std > 0 else None


def _setting(row: Row) -> str:
    if row.is_prior:
        return "prior, untouched"
    values = (
        f"{_SYMBOLS.get(name, name)} {value:g}" if isinstance(value, (int, float)) else f"{_SYMBOLS.get(name, name)}(t)"
        for name, value in row.weights.items()
    )
    return " ".join((row.method, *values))
