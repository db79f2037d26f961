"""What a sweep found, to read: its rows as a terminal table, JSON or Markdown.

One table of every setting's figures; below it, by the settings' numbers, intervals over seeds and the best checkpoints,
and probabilities of improvement. Free of Ray, torch and MLflow.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rpg_platform.results.choosing import Improvement
from rpg_platform.results.difference import certainty_words, choosing_words
from rpg_platform.results.names import at_words, short_name, steps_words
from rpg_platform.results.report import Mode, as_json
from rpg_platform.results.rows import KL, Estimate, Failure, J, Row
from rpg_platform.results.statistics import MANY_RUNS, Interval
from rpg_platform.spec.measures import BY_NAME, MEASURES, Measure

NOTHING = "–"
IS_BEST, IS_PARETO, IS_INFEASIBLE, IS_BOUND = "★", "◇", "✗", "△"
MOST_EXPLAINED = 8
"""Settings whose broken constraints, or early ends, are spelled out; --json has all."""
_NO_RESULT = "No trial has a final evaluation."
_LEFT = ("#", "setting")
_COLUMNS = tuple(measure for measure in MEASURES if measure.heading and measure.bounds)


@dataclass(frozen=True)
class _Grid:
    """A table as text: ``head`` and each of ``lines`` are of one length; the columns ``wide`` may wrap at spaces."""

    head: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    caption: str
    wide: frozenset[int] = frozenset()


def render_table(rows: Sequence[Row], *, mode: Mode | None = None, metric_name: str = "task metric") -> RenderableType:
    """The rows for a terminal or a pipe of 80 columns and up; what has no figures stands below, with why.

    Args:
        rows: from ``summarise``; they keep their order.
        mode: which evaluation to show; None: the objective's.
        metric_name: heading of the task's readable metric.
    """
    shown = [row for row in rows if row.seeds]
    parts: list[RenderableType] = []
    for grid in _grids(shown, mode, metric_name):
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, padding=(0, 1))
        for i, heading in enumerate(grid.head):
            words = [word for cell in (heading, *(line[i] for line in grid.lines)) for word in cell.split()]
            table.add_column(
                heading,
                justify="left" if heading in _LEFT else "right",
                no_wrap=i not in grid.wide,
                overflow="fold",
                min_width=12 if heading == "setting" else max(map(len, words)) if i in grid.wide else None,
                max_width=max(map(len, words)) if heading == metric_name else None,
            )
        for row, line in zip(shown, grid.lines, strict=True):
            table.add_row(*line, style="bold cyan" if row.is_prior else "dim" if row.violations else None)
        parts += [table, Text(grid.caption, style="dim")]
    if not shown:
        parts.append(Text(_NO_RESULT))
    parts += [
        Text(line, style="yellow") for line in (*_certainty(shown), *_infeasible(shown), *_collapses(shown, mode))
    ]
    parts += [Text(line, style="dim") for line in _stopped(rows)]
    failures = _failures(rows)
    if failures:
        parts.append(Text(f"\n{len(failures)} without a result:", style="bold red"))
        parts += [Text(f"  {each.trial_id}: {each.error}", style="red") for each in failures]
    return Group(*parts)


def rows_to_json(rows: Sequence[Row]) -> str:
    """Everything in the rows as strict JSON: a list in the rows' order, NaN and infinite as null."""
    return json.dumps(as_json([asdict(row) for row in rows]), indent=2, allow_nan=False)


def rows_to_markdown(rows: Sequence[Row], *, mode: Mode | None = None, metric_name: str = "task metric") -> str:
    """The same tables as ``render_table`` in GitHub's Markdown."""
    shown = [row for row in rows if row.seeds]
    blocks: list[str] = [] if shown else [_NO_RESULT]
    for grid in _grids(shown, mode, metric_name):
        align = ["---" if heading in _LEFT else "---:" for heading in grid.head]
        lines = [_markdown_row(grid.head), _markdown_row(align)]
        for row, line in zip(shown, grid.lines, strict=True):
            safe = [cell.replace("|", "\\|") for cell in line]
            lines.append(_markdown_row([f"**{cell}**" for cell in safe] if row.is_prior else safe))
        blocks += ["\n".join(lines), grid.caption]
    said = [*_certainty(shown), *_infeasible(shown), *_collapses(shown, mode)]
    blocks += ["\n".join(f"- {line}" for line in said)] if said else []
    blocks += ["\n".join(f"- {line}" for line in _stopped(rows))] if _stopped(rows) else []
    failures = _failures(rows)
    if failures:
        blocks += [f"{len(failures)} without a result:"]
        blocks += ["\n".join(f"- `{each.trial_id}`: {each.error}" for each in failures)]
    return "\n\n".join(blocks) + "\n"


def figures_to_markdown(rows: Sequence[Row], most: int) -> str:
    """The first table alone, its first rows and the prior's, with the short names of settings; empty without rows."""
    shown = [row for row in rows if row.seeds]
    if not shown:
        return ""
    grid = _figures(shown, shown[0].objective["mode"], "task metric")
    lines = [grid.head, ["---" if heading in _LEFT else "---:" for heading in grid.head]]
    for i, (row, line) in enumerate(zip(shown, grid.lines, strict=True)):
        if i < most or row.is_prior:
            lines.append([line[0], short_name(row), *line[2:]])
    hidden = len(shown) + 2 - len(lines)
    return "\n".join(map(_markdown_row, lines)) + (f"\n\n{hidden} more settings are in summary.md." if hidden else "")


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


# ---- the tables --------------------------------------------------------------------------------


def _grids(rows: Sequence[Row], mode: Mode | None, metric_name: str) -> list[_Grid]:
    if not rows:
        return []
    mode = mode or rows[0].objective["mode"]
    grids = [
        _figures(rows, mode, metric_name),
        _addon_parts(rows, mode),
        _over_seeds(rows, mode),
        _improvements(rows, mode),
    ]
    return [grid for grid in grids if len(grid.head) > 1]


def _figures(rows: Sequence[Row], mode: Mode, metric_name: str) -> _Grid:
    columns = [_measured(measure, rows, mode) for measure in _COLUMNS]
    lines = [
        (
            _marks(i, row),
            f"» {row.setting}" if row.is_prior else f"{row.setting}{at_words(row)}",
            str(len(row.seeds)),
            *(column[i] for column in columns),
            NOTHING if row.basic_kept is None else f"{100 * row.basic_kept:.0f} %",
        )
        for i, row in enumerate(rows)
    ]
    headings = [metric_name if measure.name == "task_metric" else measure.heading for measure in _COLUMNS]
    head = ("#", "setting", "n", *headings, "kept")
    return _Grid(head, tuple(lines), _caption(rows, mode), frozenset({1, head.index(metric_name)}))


def _measured(measure: Measure, rows: Sequence[Row], mode: Mode) -> list[str]:
    """One measure's column; an estimated KL is marked."""
    cells = _column([row.figure(measure.name, mode) for row in rows], rows)
    if not measure.shows_spread:
        cells = [cell.partition(" ")[0] for cell in cells]
    return (
        ["≈" * row.kl_estimated + cell for row, cell in zip(rows, cells, strict=True)] if measure.name == KL else cells
    )


def _marks(i: int, row: Row) -> str:
    marks = [mark for mark, has in ((IS_BEST, row.is_best), (IS_PARETO, row.is_pareto)) if has]
    marks += [mark for mark, has in ((IS_INFEASIBLE, row.violations), (IS_BOUND, not row.is_deployable)) if has]
    return f"{i + 1} {''.join(marks)}".rstrip()


def _addon_parts(rows: Sequence[Row], mode: Mode) -> _Grid:
    """Each add-on reward's return where the task has several."""
    names = dict.fromkeys(name for row in rows for name in row.addon_parts.get(mode, {}))
    nothing = Estimate(math.nan, math.nan, 0)
    columns = {n: _column([row.addon_parts.get(mode, {}).get(n, nothing) for row in rows], rows) for n in names}
    return _numbered(rows, columns, "Each add-on reward's return, times its weight; their sum is the add-on return.")


def _over_seeds(rows: Sequence[Row], mode: Mode) -> _Grid:
    """Intervals of the objective where a setting has several seeds, and the best checkpoints where there are any."""
    measure = rows[0].objective["maximize"]
    word = BY_NAME[measure].heading
    figures = [row.evaluation(mode)[measure] for row in rows]
    decimals = _decimals([each.mean for each in figures])
    columns: dict[str, list[str]] = {}
    words: list[str] = []
    if any(row.trained_on.n for row in rows):
        columns[BY_NAME[J].heading] = [
            cell.partition(" ")[0] for cell in _column([row.trained_on for row in rows], rows)
        ]
        words.append("J: sum per episode of the reward that the setting trains on (sampled); no two settings' compare.")
    if any(each.n > 1 for each in figures):
        columns[f"{word}: mean [95 %]"] = [_span(each.mean, each.mean_interval, decimals) for each in figures]
        words.append("[ ]: 95 % stratified-bootstrap interval over seeds.")
        if any(each.iqm != each.mean for each in figures if each.n):
            columns["IQM [95 %]"] = [_span(each.iqm, each.iqm_interval, decimals) for each in figures]
            words.append("IQM: interquartile mean.")
        if any(len(row.seeds) < MANY_RUNS for row in rows if not row.is_prior):
            words.append(f"Intervals of fewer than {MANY_RUNS} seeds are too narrow, and one seed has none.")
    if any(row.best_checkpoint is not None for row in rows):
        columns[f"best checkpoint: {word}"] = [_best(row, mode, measure, decimals) for row in rows]
        words.append(
            "Best checkpoint: chosen on validation seeds, evaluated on the same seeds as all others, @env steps."
        )
    return _numbered(rows, columns, " ".join(words))


def _improvements(rows: Sequence[Row], mode: Mode) -> _Grid:
    """Probabilities of improvement; none where every setting has one seed, as they would be 0 or 1."""
    columns: dict[str, list[str]] = {}
    if any(len(row.seeds) > 1 for row in rows):
        # The prior's own probabilities stand in columns that other methods have anyway.
        for other in dict.fromkeys(each.over for row in rows if not row.is_prior for each in row.improvement):
            found = [next((each for each in row.improvement if each.over == other), None) for row in rows]
            columns[f"P > {other} %"] = [_percent(each) for each in found]
    objective = rows[0].objective
    which = f"{objective['mode']} {BY_NAME[objective['maximize']].heading} return"
    caption = f"P > x: probability that a seed's {which} is above that of x, of a method at its best setting here."
    if any(each.is_cross_fitted for row in rows for each in row.improvement):
        caption += (
            " What is a method's best is chosen by one half of the training seeds and judged by the other, both ways."
        )
    return _numbered(rows, columns, caption)


def _numbered(rows: Sequence[Row], columns: Mapping[str, Sequence[str]], caption: str) -> _Grid:
    lines = zip((_marks(i, row) for i, row in enumerate(rows)), *columns.values(), strict=True)
    return _Grid(("#", *columns), tuple(lines), caption, frozenset(range(1, 1 + len(columns))))


def _percent(improvement: Improvement | None) -> str:
    if improvement is None:
        return NOTHING
    interval = improvement.interval
    ends = None if interval is None else (100 * interval[0], 100 * interval[1])
    return _span(100 * improvement.probability, ends, 0)


def _best(row: Row, mode: Mode, measure: str, decimals: int) -> str:
    best = row.best_checkpoint
    if best is None:
        return NOTHING
    figure = best.evaluation(mode)[measure]
    if not math.isfinite(figure.mean):
        return NOTHING
    return f"{_span(figure.mean, figure.mean_interval, decimals)} @{steps_words(best.env_steps.mean)}"


def _span(value: float, interval: Interval | None, decimals: int) -> str:
    if not math.isfinite(value):
        return NOTHING
    ends = "" if interval is None else f" [{interval[0]:.{decimals}f},{interval[1]:.{decimals}f}]"
    return f"{value:.{decimals}f}{ends}"


def _decimals(figures: Sequence[float]) -> int:
    largest = max((abs(each) for each in figures if math.isfinite(each)), default=0.0)
    return 0 if largest >= 1000 else 1 if largest >= 100 else 2 if largest >= 10 else 3


def _column(estimates: Sequence[Estimate], rows: Sequence[Row]) -> list[str]:
    """One column with the same number of decimals throughout."""
    decimals = _decimals([each.mean for each in estimates])
    cells = []
    for each, row in zip(estimates, rows, strict=True):
        if not math.isfinite(each.mean):
            cells.append(NOTHING)
            continue
        cell = f"{each.mean:.{decimals}f}"
        if math.isfinite(each.std):
            cell += f" ±{each.std:.{decimals}f}"
        if each.n < len(row.seeds):
            cell += f" ({each.n}/{len(row.seeds)})"
        cells.append(cell)
    return cells


# ---- what is said of them ----------------------------------------------------------------------


def _caption(rows: Sequence[Row], mode: Mode) -> str:
    spreads = {row.spread for row in rows}
    over = {
        frozenset({"seeds"}): "seeds",
        frozenset({"episodes"}): "evaluation episodes",
    }.get(frozenset(spreads), "seeds, or where n = 1 over evaluation episodes")
    words = [
        f"Undiscounted returns per episode of the {mode} policy; ± is the standard deviation over {over}; "
        "n = seeds; KL to the prior in nats.",
    ]
    if any(row.kl_estimated for row in rows):
        words.append("≈: KL estimated, as policy and prior are of different families.")
    if any(row.is_prior for row in rows):
        words.append("» marks the prior itself, untouched; kept = share of its basic return.")
    if any(row.is_best for row in rows):
        objective = rows[0].objective
        which = f"{objective['mode']} {BY_NAME[objective['maximize']].heading} return"
        words.append(f"{IS_BEST} best: highest {which}{' within the constraints' if objective['constraints'] else ''}.")
    if any(row.chosen_apart for row in rows):
        words.append("Ranked by other episodes than those shown (evaluation.selection_episodes).")
    else:
        words.append("Chosen and judged on the same episodes, which flatters what ranks high.")
    if any(not row.is_deployable for row in rows):
        words.append(f"{IS_BOUND} is trained on the basic reward, an upper bound: never {IS_BEST}.")
    if any(row.is_pareto for row in rows):
        words.append(f"{IS_PARETO} Pareto front of basic and add-on return.")
    if budgets := {row.env_steps for row in rows if at_words(row)}:
        words.append(f"@: after so many env steps; its extension to {max(budgets):,} has not been evaluated yet.")
    if any(estimate.n < len(row.seeds) for row in rows for estimate in row.evaluation(mode).values()):
        words.append("(k/n): only k of n seeds have a finite figure.")
    if cut := sum(row.cut_episodes for row in rows):
        words.append(f"{cut} evaluated episodes did not end, and count as far as they went (evaluation.max_steps).")
    return " ".join(words)


def _certainty(rows: Sequence[Row]) -> list[str]:
    """How sure it is that the best setting is the best: a higher figure alone is no improvement."""
    numbers = {row.group: str(i + 1) for i, row in enumerate(rows)}
    words = certainty_words(rows, lambda row: numbers[row.group], ", ")
    best = next((row for row in rows if row.is_best), None)
    lines = [f"{IS_BEST} {numbers[best.group]}: {', '.join(words)}."] if best is not None and words else []
    cost = choosing_words(rows)
    return lines + ([cost] if cost else [])


def _collapses(rows: Sequence[Row], mode: Mode | None) -> list[str]:
    """The settings some of whose episodes collapsed, most first."""
    found = [
        (row.collapsed.get(mode or row.objective["mode"]) or 0, i + 1, row.episodes * len(row.seeds))
        for i, row in enumerate(rows)
    ]
    some = sorted((each for each in found if each[0]), key=lambda each: (-each[0], each[1]))
    if not some:
        return []
    words = [f"{number}: {count} of {of}" for count, number, of in some[:MOST_EXPLAINED]]
    more = [f"{len(some) - MOST_EXPLAINED} more settings, see --json"] if len(some) > MOST_EXPLAINED else []
    return [f"Collapsed episodes (total return far below the prior's worst): {'; '.join(words + more)}."]


def _infeasible(rows: Sequence[Row]) -> list[str]:
    """Which constraints are broken by which row, nearest first; and whether anything that was trained is feasible."""
    numbered = [(i + 1, row) for i, row in enumerate(rows) if row.violations]
    if not numbered:
        return []
    lines = [
        f"{IS_INFEASIBLE} {number}: {'; '.join(map(str, row.violations))}" for number, row in numbered[:MOST_EXPLAINED]
    ]
    if len(numbered) > MOST_EXPLAINED:
        lines.append(f"{IS_INFEASIBLE} {len(numbered) - MOST_EXPLAINED} more, see --json")
    trained = [row for row in rows if not row.is_prior]
    nearest = next((number for number, row in numbered if not row.is_prior), None)
    if nearest is not None and all(row.violations for row in trained):
        lines.insert(0, f"No trained setting satisfies the constraints; {nearest} comes nearest.")
    return lines


def _stopped(rows: Sequence[Row]) -> list[str]:
    """The settings that were ended early, those that came furthest first."""
    ended = sorted((row for row in rows if row.stopped), key=lambda row: -max(e.env_steps for e in row.stopped))
    if not ended:
        return []
    trials = sum(len(row.stopped) for row in ended)
    lines = [f"{len(ended)} settings ({trials} trials) were ended early and are not compared:"]
    for row in ended[:MOST_EXPLAINED]:
        steps = sorted({f"{each.env_steps:,.0f}": each.env_steps for each in row.stopped}.items(), key=lambda s: s[1])
        lines.append(f"{row.setting}: stopped by {row.stopped[0].by} at {' and '.join(s for s, _ in steps)} env steps")
    return lines + ([f"{len(ended) - MOST_EXPLAINED} more, see --json"] if len(ended) > MOST_EXPLAINED else [])


def _failures(rows: Sequence[Row]) -> list[Failure]:
    return sorted((each for row in rows for each in row.failures), key=lambda each: each.trial_id)
