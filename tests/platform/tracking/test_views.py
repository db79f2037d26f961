"""MLflow's own dashboard on a finished sweep: a real server, opened in a browser as ``rpg ui`` says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect
from tests.browser import chromium, look
from tests.platform.resolved import resolved
from tests.platform.review.made_sweep import figures, made_sweep, record
from tests.platform.servers import TrackedSweep, read_sweep

from rpg_platform.results.colours import Colours
from rpg_platform.search.proposals import known_trials
from rpg_platform.storage.location import default_tracking_uri
from rpg_platform.storage.sweep_folder import SweepFolder
from rpg_platform.tracking.policies import model_name
from rpg_platform.tracking.spool import spool_folder
from rpg_platform.tracking.tracker import MlflowTracker

LIMIT_S = 120
WAIT_MS = 30_000
OUTSIDE: list[str] = []
"""Requests of other hosts."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> SweepFolder:
    """A finished sweep in a storage whose own store has it."""
    folder = made_sweep(tmp_path_factory.mktemp("results"), reports=6, seeds=1)
    record(folder, files={"summary/report.html": b"<p>a report</p>"})
    return folder


@pytest.fixture(scope="module")
def tracked(folder: SweepFolder) -> TrackedSweep:
    return read_sweep(default_tracking_uri(folder.storage), "made")


@pytest.fixture(scope="module")
def address(folder: SweepFolder) -> Iterator[str]:
    """What ``rpg ui made`` prints, while it serves; the browser that it opens is a script that notes the address."""
    noted = Path(folder.storage) / "opened"
    browser = Path(folder.storage) / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > "{noted}"\n')
    browser.chmod(0o755)
    command = [sys.executable, "-m", "rpg_platform.cli", "ui", "made", "--storage", folder.storage, "--port", "0"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "BROWSER": str(browser)}
    process = subprocess.Popen([*command, "--open"], stdout=subprocess.PIPE, text=True, env=environment)
    timer = threading.Timer(LIMIT_S, process.terminate)
    timer.start()
    try:
        assert process.stdout is not None
        lines = iter(process.stdout)
        found = next(match.group() for line in lines if (match := re.search(r"http://\S+", line)))
        timer.cancel()  # the tests may take longer
        for _ in range(100):
            if noted.exists() and noted.read_text():
                break
            threading.Event().wait(0.1)
        assert noted.read_text().strip() == found
        yield found
    finally:
        timer.cancel()
        process.terminate()
        process.wait(LIMIT_S)


@pytest.fixture(scope="module")
def page(address: str) -> Iterator[Page]:
    with chromium() as browser:
        context = browser.new_context(viewport={"width": 1600, "height": 1000})
        context.set_default_timeout(WAIT_MS)
        # MLflow's assistant covers a third of the page when a browser comes for the first time.
        context.add_init_script("localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')")
        page = context.new_page()
        page.on("request", lambda request: OUTSIDE.append(request.url) if is_outside(request.url, address) else None)
        yield page


def is_outside(url: str, address: str) -> bool:
    return url.startswith("http") and not url.startswith(address.split("#")[0])


def test_the_printed_address_is_the_trade_off_and_a_run_is_one_click_away(
    page: Page, address: str, tracked: TrackedSweep
) -> None:
    page.goto(address)
    for title in ("addon vs. basic", "kl vs. total", "omega_prime vs. alpha_hat"):
        expect(page.get_by_text(title).first).to_be_visible(timeout=WAIT_MS)
    count = len(tracked.children)
    expect(page.get_by_text(re.compile(rf"^{count} matching runs"))).to_be_visible(timeout=WAIT_MS)
    points = page.locator(".scatterlayer .point")
    expect(points.nth(count - 1)).to_be_attached(timeout=WAIT_MS)
    colours = set(re.findall(r"rgb\([^)]*\)", " ".join(p.get_attribute("style") or "" for p in points.all())))
    ends = [Colours("omega_prime", 0.05, 0.8).of("rpg", {"omega_prime": value}) for value in (0.05, 0.8)]
    assert {f"rgb({int(c[1:3], 16)}, {int(c[3:5], 16)}, {int(c[5:7], 16)})" for c in ends} <= colours
    assert "traces" not in page.url.lower()
    assert page.get_by_text("Detect issues").count() == 0, "a page of the GenAI mode"
    look(page, "dashboard-trade-off")
    run = next(run for run in tracked.children.values() if run.data.params["method"] == "rpg")
    page.get_by_role("link", name=str(run.info.run_name), exact=True).first.click()
    expect(page.get_by_role("heading", name=str(run.info.run_name))).to_be_visible(timeout=WAIT_MS)
    look(page, "dashboard-run")
    # MLflow forgets a view on the browser's own way back; the links in the run's description lead to it, in a new tab.
    with page.expect_popup() as popup:
        page.get_by_role("link", name="Trade-off", exact=True).first.click()
    back = popup.value
    expect(back.get_by_text("addon vs. basic").first).to_be_visible(timeout=WAIT_MS)
    expect(back.get_by_text(re.compile(rf"^{count} matching runs"))).to_be_visible(timeout=WAIT_MS)
    expect(back.locator(".scatterlayer .point").nth(count - 1)).to_be_attached(timeout=WAIT_MS)
    back.close()
    with page.expect_popup() as popup:
        page.get_by_role("link", name="Policies", exact=True).first.click()
    policies = popup.value
    expect(policies.get_by_text(model_name(str(run.info.run_name))).first).to_be_visible(timeout=WAIT_MS)
    look(policies, "policies")
    policies.close()
    assert OUTSIDE == [], "nothing is asked of other hosts"


@pytest.mark.parametrize(("view", "chart"), [("Learning curves", "train/total_return"), ("Health", "health/approx_kl")])
def test_the_description_leads_to_the_other_views(
    page: Page, address: str, tracked: TrackedSweep, view: str, chart: str
) -> None:
    link = re.search(rf"\[{view}\]\((\S+)\)", tracked.parent.data.tags["mlflow.note.content"])
    assert link is not None
    page.goto("about:blank")
    page.goto(address.split("#")[0] + link.group(1))
    expect(page.get_by_text(chart).first).to_be_visible(timeout=WAIT_MS)
    look(page, "dashboard-" + view.lower().replace(" ", "-"))


def test_the_sweeps_run_begins_with_the_verdict(page: Page, address: str, tracked: TrackedSweep) -> None:
    run = tracked.parent
    page.goto(f"{address.split('#')[0]}#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}")
    note = run.data.tags["mlflow.note.content"]
    assert note.startswith("★ ω′ ")
    expect(page.get_by_text(note.partition("\n")[0]).first).to_be_visible(timeout=WAIT_MS)
    picture = page.locator("img[src*='summary/overview.png']")
    page.get_by_text("Show more").click()
    expect(picture).to_be_visible(timeout=WAIT_MS)
    assert picture.evaluate("image => image.naturalWidth") == 800
    assert picture.evaluate("image => image.getBoundingClientRect().width") <= 800
    look(page, "dashboard-sweep")
    link = page.get_by_role("link", name="Trade-off").first.get_attribute("href")
    assert link == "#" + address.partition("#")[2]
    experiment = tracked.client.get_experiment(run.info.experiment_id)
    assert experiment.tags["mlflow.note.content"] == note


def test_every_figure_of_the_headline_is_the_trials_own(folder: SweepFolder, tracked: TrackedSweep) -> None:
    spec = folder.spec()
    for trial in known_trials(spec, folder):
        of, metrics = figures(trial), tracked.children[trial.trial_id].data.metrics
        expected = {**of, "total": of["basic"] + of["addon"], "kept_pct": of["basic"] / 68}
        assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    parent = tracked.parent.data.metrics
    assert set(parent) == {"best", "prior", "gain", "kept_pct", "kl", "seeds", "failures"}
    totals = [run.data.metrics["total"] for run in tracked.children.values()]
    assert parent["prior"] == 6800 - 3250
    assert parent["prior"] < parent["best"] <= max(totals)
    assert parent["gain"] == pytest.approx(parent["best"] - parent["prior"])
    assert (parent["seeds"], parent["failures"]) == (1, 0)


def test_a_sweep_that_is_recorded_again_changes_nothing(folder: SweepFolder, tracked: TrackedSweep) -> None:
    """Also what a user made of its views and of the experiment's description stays."""
    experiment = tracked.parent.info.experiment_id
    [view, *_] = [name for name in tracked.client.get_experiment(experiment).tags if "sharedViewState" in name]
    own = {view: "mine", "mlflow.note.content": "my words"}
    for name, value in own.items():
        tracked.client.set_experiment_tag(experiment, name, value)
    before = {name: tracked.points(run) for name, run in tracked.children.items()}
    spec, trials, states = folder.spec(), known_trials(folder.spec(), folder), folder.trials()
    assert spool_folder(folder.storage, "made").is_dir()
    tracker = MlflowTracker(resolved(spec, folder.storage, prior_hash="a" * 64, resume=True), trials)
    tracker.start()
    for trial in trials:
        tracker.adopt(trial, states[trial.trial_id])
    tracker.finish([(trial, states[trial.trial_id].report, None) for trial in trials])
    assert {name: tracked.points(run) for name, run in tracked.children.items()} == before
    after = tracked.client.get_experiment(experiment).tags
    assert {name: after[name] for name in own} == own
