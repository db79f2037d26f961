"""Learning curves: return over env steps, its mean over seeds and the span from the lowest to the highest seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from benchmarks.reproduction.figures import BASIC, NAMES, TOTAL, Group, reported
from benchmarks.reproduction.plan import ENTROPY_BONUS, ENVIRONMENTS, SCRATCH
from benchmarks.reproduction.records import Store
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from rpg_algorithms.addons import Array
from rpg_platform.results.colours import Colours

POINTS = 100
_BAND, _LEGEND_COLUMNS = 0.18, 4
_OURS = "#0072b2"  # Okabe and Ito's blue, for the method that a picture is about
_COLOURS = {
    **{name: Colours().of(name, {}) for name in ("prior", "greedy", "kl", "full")},
    SCRATCH: Colours().of("full", {}),
    "rpg": _OURS,
    "spg": _OURS,
    "ppo": "#9a9a9a",
    ENTROPY_BONUS: "#e69f00",
    "repeat-entropy": "#d55e00",
}


def curve(store: Store, group: Group, measure: str) -> tuple[Array, Array] | None:
    """A group's training returns: ``[T]`` env steps and ``[S, T]`` returns; None where nothing is reported.

    A seed's returns are interpolated between its reports and are NaN before its first and after its last one.
    """
    found = [known for trial in group.trials if (known := reported(store, trial, measure)) is not None]
    if not found:
        return None
    grid = np.linspace(0, max(steps[-1] for steps, _ in found), POINTS)
    seeds = [np.interp(grid, steps, values, left=np.nan, right=np.nan) for steps, values in found]
    return grid, np.array(seeds)


def _draw(axes: Axes, store: Store, group: Group, measure: str) -> None:
    found = curve(store, group, measure)
    if found is None:
        return
    steps, seeds = found
    known = np.isfinite(seeds).any(axis=0)
    steps, seeds = steps[known], seeds[:, known]
    style = "--" if group.method == SCRATCH else "-"
    colour, label = _COLOURS[group.method], NAMES[group.method]
    axes.plot(steps, np.nanmean(seeds, axis=0), style, color=colour, label=label, linewidth=1.6)
    axes.fill_between(steps, np.nanmin(seeds, axis=0), np.nanmax(seeds, axis=0), color=colour, alpha=_BAND, linewidth=0)


def draw_entropy(store: Store, environment: str, groups: Sequence[Group], file: Path) -> bool:
    """Draws the first experiment on one environment, a panel a temperature; returns whether there is anything."""
    values = sorted({value for group in groups for value in group.weights.values()})
    if not any(group.trials for group in groups):
        return False
    figure = Figure(figsize=(3 * len(values), 3.2), dpi=150, layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(values), sharey=True))
    for axes, value in zip(panels, values, strict=True):
        for group in groups:
            if not group.weights or value in group.weights.values():
                _draw(axes, store, group, BASIC)
        _finish(axes, f"α = {value:g}")
    panels[0].set_ylabel("basic return while training")
    _legend(figure, panels[0], ENVIRONMENTS[environment])
    return _save(figure, file)


def draw_final(store: Store, environment: str, groups: Mapping[str, Group], file: Path) -> bool:
    """Draws the second experiment on one environment; returns whether there is anything."""
    if not any(group.trials for group in groups.values()):
        return False
    figure = Figure(figsize=(7.5, 4), dpi=150, layout="constrained")
    axes = figure.subplots()
    for name, group in groups.items():
        if name != "prior":
            _draw(axes, store, group, TOTAL)
    prior = groups["prior"].mean(TOTAL, "sampled").value
    if np.isfinite(prior):
        axes.axhline(prior, color=_COLOURS["prior"], linestyle=":", linewidth=1.4, label="prior, untouched")
    _finish(axes, "")
    axes.set_ylabel("total return while training")
    _legend(figure, axes, ENVIRONMENTS[environment])
    return _save(figure, file)


def _finish(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=9)
    axes.set_xlabel("env steps")
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.grid(color="#e5e5e5", linewidth=0.6)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _legend(figure: Figure, axes: Axes, title: str) -> None:
    figure.suptitle(title, fontsize=11)
    handles, labels = axes.get_legend_handles_labels()
    columns = max(1, min(_LEGEND_COLUMNS, len(labels)))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)


def _save(figure: Figure, file: Path) -> bool:
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, metadata={"Software": None})
    return True
