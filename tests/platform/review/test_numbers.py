"""Every number on the report, section by section, against the trials' files, by other code than the report's."""

from __future__ import annotations

import json
import math
import random
import re
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from playwright.sync_api import Page
from scipy import stats
from tests.browser import chromium
from tests.platform.review.made_sweep import made_sweep

from rpg_platform.review.found import found_in
from rpg_platform.review.report import write_report
from rpg_platform.storage.sweep_folder import SweepFolder

EPISODES = 20
RETURNS = {"total_return": 0, "addon_return": 1, "basic_return": 2}
MEASURES = [*(f"eval/deterministic/{name}_mean" for name in RETURNS), "eval/kl_to_prior"]
CHARTS = [*RETURNS, "kl_to_prior"]


@dataclass(frozen=True)
class Files:
    """What the trials left.

    Attributes:
        last: a row a trial: its last report, and ``group``, ``omega``, ``alpha``, ``seed``.
        training: a row a report before it, likewise.
    """

    last: pd.DataFrame
    training: pd.DataFrame

    def mean(self, group: str, key: str) -> float:
        return float(self.last[self.last.group == group][key].mean())


def rough(file: Path) -> None:
    """Gives a trial's training reports figures that differ in every line; a few are faults and spikes."""
    chance = random.Random(file.parent.name)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines[:-1]:
        for key in line.keys() - {"env_steps", "nonfinite_values", "env_failures"}:
            line[key] *= chance.uniform(0.7, 1.3)
        if chance.random() < 0.05:
            line |= {"env_failures": 1.0, "kl_to_prior": chance.uniform(20, 90), "approx_kl": chance.uniform(0.5, 2)}
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def read(folder: Path) -> Files:
    last, training = [], []
    for file in folder.glob("*/result.json"):
        group, _, seed = file.parent.name.rpartition("-seed=")
        weights = {name: float(value) for name, value in re.findall(r"(omega|alpha)\w*=([\d.]+)", file.parent.name)}
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        own = {"group": group or "prior", "seed": int(seed) if group else 0, **weights}
        last.append({**lines[-1], **own})
        training += [{**line, **own} for line in lines[:-1]]
    return Files(pd.DataFrame(last), pd.DataFrame(training))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> SweepFolder:
    folder = made_sweep(tmp_path_factory.mktemp("storage"))
    for file in Path(folder.uri).glob("rpg-*/result.json"):
        rough(file)
    return folder


@pytest.fixture(scope="module")
def files(folder: SweepFolder) -> Files:
    return read(Path(folder.uri))


@pytest.fixture(scope="module")
def page(folder: SweepFolder) -> Iterator[Page]:
    write_report(found_in(folder), {})
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(Path(folder.uri, "report.html").as_uri())
        page.wait_for_selector("#terms .main-svg")
        yield page


def number(text: str) -> float:
    return float(re.sub(r"[^\d.-]", "", text.replace("−", "-")))


def traces(page: Page, chart: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = page.evaluate(f"document.getElementById('{chart}').data")
    return found


def by_group(page: Page, chart: str) -> dict[str, dict[str, float]]:
    """Group → its point's ``x`` and ``y`` and the ends of its bars."""
    found = {}
    for trace in traces(page, chart):
        for i, group in enumerate(trace.get("customdata") or []):
            point = {"x": trace["x"][i], "y": trace["y"][i]}
            for axis in "xy":
                if bars := trace.get(f"error_{axis}"):
                    point |= {f"{axis}_low": point[axis] - bars["arrayminus"][i]}
                    point |= {f"{axis}_high": point[axis] + bars["array"][i]}
            found[group] = point
    return found


def best_of(files: Files) -> str:
    return str(files.last.groupby("group")["eval/deterministic/total_return_mean"].mean().idxmax())


def test_head_and_verdict(page: Page, files: Files) -> None:
    """The differences' intervals are Welch's; the prior's spread is over its episodes."""
    best, state = best_of(files), page.locator("#state").inner_text()
    assert state.startswith(f"{len(files.last)} of {len(files.last)} trials finished · 3 seeds · 100,000 env steps")
    assert f"{int(files.last.env_steps.sum()):,} env steps trained" in page.locator("#use").inner_text()
    figures = page.locator("#verdict .figure")
    assert figures.count() == 6
    for i, name in enumerate(("total_return", "addon_return", "basic_return"), 1):
        lines = figures.nth(i).inner_text().split("\n")
        key = f"eval/deterministic/{name}"
        own = files.last[files.last.group == best][f"{key}_mean"]
        prior = files.last[files.last.group == "prior"].iloc[0]
        value, gap = re.fullmatch(r"(\S+?)\s*([+−][\d,.]+)", lines[1]).groups()  # type: ignore[union-attr]
        assert number(value) == pytest.approx(own.mean(), abs=0.51)
        expected = own.mean() - prior[f"{key}_mean"]
        assert number(gap) == pytest.approx(expected, abs=0.51)
        parts = [own.var() / len(own), prior[f"{key}_std"] ** 2 / EPISODES]
        freedom = sum(parts) ** 2 / (parts[0] ** 2 / (len(own) - 1) + parts[1] ** 2 / (EPISODES - 1))
        reach = stats.t.ppf(0.975, freedom) * math.sqrt(sum(parts))
        ends = [number(end) for end in lines[2].removeprefix("95 %:").split(" to ")]
        assert ends == pytest.approx([expected - reach, expected + reach], abs=0.51)
    kept = files.mean(best, MEASURES[2]) / files.mean("prior", MEASURES[2])
    assert number(figures.nth(4).inner_text().split("\n")[1]) == pytest.approx(100 * kept, abs=0.51)
    kl = number(figures.nth(5).inner_text().split("\n")[1])
    assert kl == pytest.approx(files.mean(best, MEASURES[3]), abs=0.006)


def test_trade_off_and_map(page: Page, files: Files) -> None:
    """Of three seeds the bootstrap's 95 % ends are the lowest and the highest: they come in 1 of 27 draws each."""
    points = by_group(page, "tradeoff")
    assert points.keys() == set(files.last.group)
    for group, point in points.items():
        own = files.last[files.last.group == group]
        for axis, key in (("x", MEASURES[1]), ("y", MEASURES[2])):
            spread = own[key.replace("_mean", "_std")].iloc[0] if len(own) == 1 else 0
            ends = [own[key].min() - spread, own[key].max() + spread]
            assert point[axis] == pytest.approx(own[key].mean(), rel=1e-6)
            assert [point[f"{axis}_low"], point[f"{axis}_high"]] == pytest.approx(ends, rel=1e-6)
    front = traces(page, "tradeoff")[0]
    means = files.last.groupby("group")[MEASURES[1:3]].mean().to_numpy()
    on_it = [a for a in means if not any((b >= a).all() and (b > a).any() for b in means)]
    assert sorted(zip(front["x"], front["y"], strict=True)) == [
        pytest.approx(tuple(each), rel=1e-6) for each in sorted(map(tuple, on_it))
    ]
    [cells] = [trace for trace in traces(page, "map") if trace["type"] == "heatmap"]
    for groups, values, words in zip(cells["customdata"], cells["z"], cells["text"], strict=True):
        for group, value, said in zip(groups, values, words, strict=True):
            assert value == pytest.approx(files.mean(group, MEASURES[0]), rel=1e-6)
            kept = 100 * files.mean(group, MEASURES[2]) / files.mean("prior", MEASURES[2])
            lines = [number(line) for line in said.split("<br>")]
            expected = [value, kept, files.mean(group, MEASURES[3])]
            assert lines == [pytest.approx(e, abs=a) for e, a in zip(expected, (0.51, 0.51, 0.051), strict=True)]


def test_what_each_weight_does(page: Page, files: Files) -> None:
    """The shares are those of a one-way analysis of variance: 1 - (variance within levels) / (variance)."""
    rpg = files.last[files.last.omega.notna()]
    for name, key in zip(CHARTS, MEASURES, strict=True):
        points = by_group(page, f"responses-{name}")
        assert points.keys() == set(rpg.group)
        for group, point in points.items():
            own = rpg[rpg.group == group]
            assert point["x"] == own.omega.iloc[0]
            assert point["y"] == pytest.approx(own[key].mean(), rel=1e-5)
            assert [point["y_low"], point["y_high"]] == pytest.approx([own[key].min(), own[key].max()], rel=1e-5)
        dashed = page.evaluate(f"document.getElementById('responses-{name}').layout.shapes[0].y0")
        assert dashed == pytest.approx(files.mean("prior", key), rel=1e-6)
    settings = rpg.groupby("group")[[*MEASURES, "omega", "alpha"]].mean()
    rows = page.locator("#importance tbody tr").all()
    for row, key in zip(rows, MEASURES, strict=True):
        shown = [number(cell) for cell in row.locator("td").all_inner_texts()]
        within = [((settings[key] - settings.groupby(w)[key].transform("mean")) ** 2).sum() for w in ("omega", "alpha")]
        whole = ((settings[key] - settings[key].mean()) ** 2).sum()
        assert shown == pytest.approx([100 * (1 - each / whole) for each in within], abs=0.51)


def test_learning_curves_and_terms(page: Page, files: Files) -> None:
    best = best_of(files)
    for name in CHARTS:
        drawn = traces(page, f"curves-{name}")
        lines = {trace["customdata"][0]: trace for trace in drawn if trace.get("customdata")}
        assert lines.keys() == set(files.training.group)
        for group, line in lines.items():
            expected = files.training[files.training.group == group].groupby("env_steps")[name].mean().dropna()
            assert line["x"] == list(expected.index)
            assert line["y"] == pytest.approx(list(expected), rel=1e-4)
        [band] = [trace for trace in drawn if trace.get("fill")]
        own = files.training[files.training.group == best].groupby("env_steps")[name].agg(["max", "min"]).dropna()
        assert band["y"] == pytest.approx([*own["max"], *reversed(list(own["min"]))], rel=1e-4)
        if name not in RETURNS:
            continue
        rings = [trace for trace in drawn if trace.get("marker", {}).get("symbol") == "circle-open"]
        key = f"validation/deterministic/{name}_mean"
        expected = files.training[["env_steps", key]].dropna()
        shown = [point for ring in rings for point in zip(ring["x"], ring["y"], strict=True)]
        assert sorted(x for x, _ in shown) == sorted(expected.env_steps)
        assert sorted(y for _, y in shown) == pytest.approx(sorted(expected[key]), rel=1e-4)
    terms = traces(page, "terms")
    names = {"add-on": "addon", "ω′ log π(prior)": "prior", "−α̂ log π": "entropy"}
    assert [trace["name"] for trace in terms] == list(names)
    for trace in terms:
        key = f"reward_{names[trace['name']]}_term"
        expected = files.training[files.training.group == best].groupby("env_steps")[key].mean()
        assert trace["y"] == pytest.approx(list(expected), rel=1e-4)


def test_health(page: Page, files: Files) -> None:
    """Of each figure the worst seed's; what is bad is marked."""
    worst: dict[str, list[float]] = {}
    for (group, _), own in files.training.groupby(["group", "seed"]):
        moved, total = own[own.approx_kl != 0], own.total_return.dropna()
        dip = (total.cummax() - total).max() / (total.max() - total.min())
        late = own.explained_variance.tail(len(own) // 10 or 1).median()
        faults = own.nonfinite_values.sum() + own.env_failures.sum()
        row = [own.kl_to_prior.max(), own.approx_kl.max(), moved.clip_fraction.median(), -late, dip, faults]
        worst[str(group)] = list(map(max, row, worst.get(str(group), row)))
    shown = [row.locator("td").all_inner_texts() for row in page.locator("#health tbody tr").all()]
    assert len(shown) == len(worst)
    marks = 0
    for name, *cells in shown:
        [figures] = [
            row for group, row in worst.items() if re.findall(r"\d+\.\d+", group) == re.findall(r"\d+\.\d+", name)
        ]
        expected = [figures[0], figures[1], 100 * figures[2], -100 * figures[3], 100 * figures[4], figures[5]]
        reach = (0.051, 0.00051, 0.51, 0.51, 0.51, 0.01)
        assert [number(cell) for cell in cells] == [
            pytest.approx(value, abs=slack) for value, slack in zip(expected, reach, strict=True)
        ]
        bad = [figures[0] > 50, figures[1] > 1, False, figures[3] > -0.3, figures[4] > 0.9, figures[5] > 0]
        assert [cell.startswith("⚠") for cell in cells] == bad
        marks += sum(bad)
    assert 5 < marks < 30


def test_table(page: Page, files: Files) -> None:
    """The columns that another test does not look at: seeds and the task's metric."""
    for row in page.locator("#table tbody tr").all():
        group, cells = row.get_attribute("data-group"), row.locator("td").all_inner_texts()
        own = files.last[files.last.group == group]
        assert int(cells[2]) == len(own)
        metric = statistics.fmean(own["eval/deterministic/task_metric_mean"])
        assert number(cells[7]) == pytest.approx(metric, abs=0.00051)
