"""The report in a real browser: its figures, its sliders, its table, and what it must not do."""

from __future__ import annotations

import json
import math
import re
import shlex
import statistics
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page
from tests.browser import chromium, look
from tests.platform.review.made_sweep import made_sweep

from rpg_platform.results.difference import within_noise
from rpg_platform.results.names import short_name
from rpg_platform.results.rows import summarise
from rpg_platform.review.found import found_in
from rpg_platform.review.report import write_report
from rpg_platform.spec.extension import extended
from rpg_platform.spec.sections import Objective
from rpg_platform.storage.sweep_folder import SweepFolder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> SweepFolder:
    folder = made_sweep(tmp_path_factory.mktemp("storage"))
    write_report(found_in(folder), {"": "parent", "rpg-omega_prime=0.2-alpha_hat=0.1-seed=0": "0123abcd"})
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


class Opened:
    """A page, and what it asked for and complained of."""

    def __init__(self, page: Page) -> None:
        self.page, self.requests, self.complaints = page, [], []  # type: ignore[var-annotated]
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", lambda said: self.complaints.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))


def opened(browser: Browser, folder: SweepFolder, width: int = 1280, scheme: str = "light") -> Opened:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
    found = Opened(page)
    page.goto(Path(folder.uri, "report.html").as_uri())
    page.wait_for_selector("#tradeoff .main-svg")
    return found


def number(text: str) -> float:
    return float(text.replace("−", "-").replace(",", "").strip(" %≈"))


def cells(page: Page) -> dict[str, list[str]]:
    """Setting → the texts of its row in the table."""
    rows = [row.locator("td").all_inner_texts() for row in page.locator("#table tbody tr").all()]
    return {row[1]: row for row in rows}


def test_every_figure_is_that_of_the_trials_files(browser: Browser, folder: SweepFolder) -> None:
    """Computed here from the files alone; and the page asks for nothing and complains of nothing."""
    found = opened(browser, folder)
    by_setting: defaultdict[str, list[dict[str, float]]] = defaultdict(list)
    for file in Path(folder.uri).glob("*/result.json"):
        by_setting[file.parent.name.rpartition("-seed=")[0] or "prior"].append(
            json.loads(file.read_text().splitlines()[-1])
        )
    table = cells(found.page)
    assert len(table) == len(by_setting) == 8
    [prior] = by_setting["prior"]
    for setting, reports in by_setting.items():
        [row] = [row for name, row in table.items() if words(name) == words_of_id(setting)]
        for column, key in ((3, "total_return"), (4, "addon_return"), (5, "basic_return")):
            values = [report[f"eval/deterministic/{key}_mean"] for report in reports]
            shown = row[column].split("±")
            assert number(shown[0]) == pytest.approx(statistics.fmean(values), abs=0.51)
            if len(values) > 1:
                assert number(shown[1]) == pytest.approx(statistics.stdev(values), abs=0.51)
        kls = [report["eval/kl_to_prior"] for report in reports]
        assert number(row[6]) == pytest.approx(statistics.fmean(kls), abs=0.006)
        basic = statistics.fmean(report["eval/deterministic/basic_return_mean"] for report in reports)
        kept = 100 * basic / prior["eval/deterministic/basic_return_mean"]
        assert number(row[8]) == pytest.approx(kept, abs=0.51)
    assert found.complaints == []
    assert [url for url in found.requests if not url.startswith(("file:", "data:", "blob:"))] == []
    assert "<b>markup</b>" in found.page.locator("#subtitle").inner_text()  # as text
    # What is the same for all trials is not there thousands of times.
    assert Path(folder.uri, "report.html").read_text().count(folder.uri) == 1
    found.page.close()


def words(name: str) -> list[str]:
    return re.findall(r"[a-z]*prior[a-z]*|kl|\d+\.\d+", name)


def words_of_id(setting: str) -> list[str]:
    return re.findall(r"^prior|^kl|\d+\.\d+", setting)


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> SweepFolder:
    """A sweep chosen by other episodes than are shown, in which what sees the hidden reward comes out best."""
    baselines = [{"kl": {"kl_coefficient": 0.1}}, {"full": {"alpha": 0.1}}]
    folder = made_sweep(tmp_path_factory.mktemp("storage"), apart=True, baselines=baselines)
    write_report(found_in(folder), {})
    return folder


def test_what_is_chosen_apart_is_shown_so(browser: Browser, apart: SweepFolder) -> None:
    """Medians and collapsed episodes stand in the table; the upper bound is first, and is not ★."""
    page = opened(browser, apart).page
    rows = found_in(apart).rows
    assert rows[0].method == "full"
    heads = page.locator("#table thead th").all_inner_texts()
    median, fallen = heads.index("median total"), heads.index("collapsed")
    table = [row.locator("td").all_inner_texts() for row in page.locator("#table tbody tr").all()]
    for row, shown in zip(rows, table, strict=True):
        assert number(shown[median]) == pytest.approx(row.medians["deterministic"]["total_return"], abs=0.51)
        assert shown[fallen] == f"{len(row.seeds) * (row.method == 'kl')} of {20 * len(row.seeds)}"
        assert ("★" in shown[0], "△" in shown[0]) == (row.is_best, row.method == "full")
    assert page.locator("#choosing").inner_text().startswith("★ is the best of 8, chosen by the training seeds")
    page.close()


@pytest.mark.parametrize("which", ["folder", "apart"])
def test_sliders_choose_as_the_table_of_the_command_does(
    browser: Browser, which: str, request: pytest.FixtureRequest
) -> None:
    """★, what is within noise of it and the YAML, for bounds at which another setting is best each time."""
    folder: SweepFolder = request.getfixturevalue(which)
    found = opened(browser, folder)
    page, results = found.page, found_in(folder).results
    stars = set()
    for kept, kl, maximize, mode in (
        (0, None, "total_return", "deterministic"),
        (0.95, None, "total_return", "deterministic"),
        (0, 2.5, "addon_return", "sampled"),
        (0.99, 1.0, "basic_return", "deterministic"),
    ):
        for control, value in (("#kept", 100 * kept), ("#kl", kl)):
            box = page.locator(control)
            wanted = box.get_attribute("min" if control == "#kept" else "max") if not value else str(value)
            box.evaluate("(box, value) => { box.value = value; box.dispatchEvent(new Event('input')); }", wanted)
        page.select_option("#maximize", maximize)
        page.select_option("#mode", mode)
        constraints: dict[str, dict[str, float]] = {}
        if kept:
            constraints["basic_return"] = {"min_fraction_of_prior": round(float(page.input_value("#kept"))) / 100}
        if kl:
            constraints["kl_to_prior"] = {"max": float(page.input_value("#kl"))}
        objective = Objective.model_validate({"maximize": maximize, "mode": mode, "constraints": constraints})
        rows = summarise(results, objective)
        [best] = [row for row in rows if row.is_best]
        assert page.locator("#star").inner_text() == f"★ {short_name(best)}"
        stars.add(best.group)
        near = [short_name(row) for row in within_noise(rows)]
        said = page.locator("#near").inner_text()
        assert [name for name in near if name in said] == near
        assert bool(near) == said.startswith("Within noise")
        assert ("min_fraction_of_prior" in page.locator("#objective").text_content()) == bool(kept)  # type: ignore[operator]
        pale = page.locator("#table tbody tr.breaks").count()
        assert pale == sum(bool(row.violations) for row in rows)
    assert len(stars) >= 3
    assert found.complaints == []
    page.close()


def test_the_table_sorts_and_leads_to_runs(browser: Browser, folder: SweepFolder) -> None:
    found = opened(browser, folder)
    page = found.page
    for _ in range(2):
        page.get_by_role("button", name=re.compile("^add-on")).click()
        sort = page.locator("th[aria-sort]:not([aria-sort=none])").get_attribute("aria-sort")
        shown = [number(row[4].split("±")[0]) for row in cells(page).values()]
        assert shown == sorted(shown, reverse=sort == "descending")
    page.locator("#table tbody tr", has_text="ω′ 0.2 · α̂ 0.1").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("#chosen a.run").get_attribute("href") == "http://127.0.0.1:5000/#/runs/0123abcd"
    page.close()


def test_a_point_leads_to_its_run(browser: Browser, folder: SweepFolder) -> None:
    found = opened(browser, folder)
    page = found.page
    page.evaluate(
        """() => { const box = document.getElementById("tradeoff");
        const at = box.data.flatMap((trace, c) => (trace.customdata || []).map((group, p) => [group, c, p]))
          .find(([group]) => group === "rpg-omega_prime=0.2-alpha_hat=0.1");
        const trace = box.data[at[1]], x = trace.x[at[2]], y = trace.y[at[2]], area = box.getBoundingClientRect();
        const full = box._fullLayout;
        window.place = [area.left + full._size.l + full.xaxis.l2p(x), area.top + full._size.t + full.yaxis.l2p(y)]; }"""
    )
    x, y = page.evaluate("window.place")
    page.mouse.move(x, y)
    page.wait_for_timeout(100)
    page.mouse.click(x, y)
    page.wait_for_selector("#chosen a.run")
    assert "ω′ 0.2 · α̂ 0.1" in page.locator("#chosen strong").inner_text()
    page.close()


@pytest.mark.parametrize(("width", "scheme"), [(400, "light"), (1280, "light"), (1280, "dark")])
def test_narrow_and_dark(browser: Browser, folder: SweepFolder, width: int, scheme: str) -> None:
    """Nothing sticks out of a narrow window; the contrast is 7 to 1; charts have words for a screen reader.

    The whole page is left as a picture, every chart of it drawn.
    """
    found = opened(browser, folder, width, scheme)
    page = found.page
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    light = [page.evaluate(f"getComputedStyle(document.body).{name}") for name in ("color", "backgroundColor")]
    ink, paper = (luminance(colour) for colour in light)
    assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) > 7
    assert (paper < ink) == (scheme == "dark")
    for chart in page.locator(".chart:visible").all():
        assert len(chart.get_attribute("aria-label") or "") > 20
    page.wait_for_selector("#terms .main-svg")
    assert page.locator(".chart:visible").count() == page.locator(".chart:visible:has(.main-svg)").count() == 13
    width_of_png = int.from_bytes(look(page, f"report-{width}-{scheme}", whole=True)[16:20])
    assert width_of_png == width
    assert found.complaints == []
    page.close()


def luminance(colour: str) -> float:
    """WCAG's relative luminance of ``rgb(…)``."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_a_sweep_of_one_setting_and_one_without_a_result(browser: Browser, tmp_path: Path) -> None:
    tmp_path = tmp_path / "it's here"  # a command that can be pasted quotes it
    one = made_sweep(tmp_path, name="one", weights={"omega_prime": 0.2, "alpha_hat": 0.02}, baselines=[], seeds=1)
    none = made_sweep(tmp_path, name="none", seeds=1)
    for file in [*Path(none.uri).glob("*/result.json"), *Path(none.uri).glob("*/checkpoint_*/trial.json")]:
        file.unlink()
    for folder, said in ((one, "★ ω′ 0.2 · α̂ 0.02"), (none, "No trial has a final evaluation yet.")):
        write_report(found_in(folder), {})
        page = browser.new_page()
        found = Opened(page)
        page.goto(Path(folder.uri, "report.html").as_uri())
        page.wait_for_selector("#verdict *")
        assert said in page.locator("#verdict").inner_text()
        if folder is one:
            export, promote = page.locator("#use pre").first.inner_text().splitlines()
            checkpoint = f"{one.uri}/rpg-omega_prime=0.2-alpha_hat=0.02-seed=0/checkpoint_000000"
            assert (shlex.split(export)[2], shlex.split(promote)[2]) == (checkpoint, checkpoint)
        assert found.complaints == []
        page.close()


def test_figures_of_a_smaller_budget_say_so(browser: Browser, tmp_path: Path) -> None:
    """An extension that was stopped before it began: every setting but the prior is marked, and a line says why."""
    folder = made_sweep(tmp_path)
    folder.go_on_with(extended(folder.spec(), env_steps=400_000))
    write_report(found_in(folder), {})
    found = opened(browser, folder)
    assert {name.endswith(" @100k") for name in cells(found.page) if name != "prior, untouched"} == {True}
    assert len(cells(found.page)) == 8
    said = found.page.locator("#verdict").inner_text()
    assert "7 settings are shown as of fewer env steps than the rest (marked @)" in said
    assert "the extension to 400,000 has not ended" in said
    assert found.page.locator("#star").inner_text().endswith(" @100k")
    assert found.complaints == []
    found.page.close()


def test_the_slider_reads_off_between_the_settings_of_a_range(tmp_path: Path, browser: Browser) -> None:
    told = {"omega_prime": {"conditioned": [0.05, 0.8]}, "alpha_hat": {"conditioned": [0.02, 0.1]}}
    folder = made_sweep(tmp_path, name="range", weights=told, baselines=[])
    found = found_in(folder)
    write_report(found)
    page = opened(browser, folder)
    page.page.locator("#weight").evaluate("(e) => { e.value = 750; e.dispatchEvent(new Event('input')); }")
    page.page.locator("#line").select_option("0.1")
    weight = float(page.page.locator("#weight-value").inner_text())
    assert weight == pytest.approx(0.05 * 16**0.75, rel=1e-2)
    rows = {row.weights["omega_prime"]: row for row in found.rows if row.weights.get("alpha_hat") == 0.1}
    below, above = (rows[each] for each in sorted(rows)[1:])
    share = math.log(weight / 0.2) / math.log(4)
    ends = [row.deterministic.total_return.mean for row in (below, above)]
    says = page.page.locator("#weight-says").inner_text()
    said = re.search(r"Total ≈ ([\d,−]+)", says)
    assert said is not None
    assert number(said[1]) == pytest.approx(ends[0] + share * (ends[1] - ends[0]), abs=1)
    command = page.page.locator("#weight-command pre").inner_text()
    assert f"rpg export range --out policy --weights omega_prime={weight:g},alpha_hat=0.1 --storage" in command
    assert "9 of 9 trials" not in page.page.inner_text("body")
    assert f"{len(found.trained)} of {len(found.trained)} trials finished" in page.page.inner_text("body")
    assert page.complaints == []
    look(page.page, "range")
