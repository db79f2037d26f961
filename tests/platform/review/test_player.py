"""The report's videos in a real browser: it decodes what our encoder writes, and plays all of it in step."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, Page
from tests.browser import chromium, look
from tests.platform.review.made_sweep import made_sweep

from rpg_platform.review.episode import Picture
from rpg_platform.review.found import found_in
from rpg_platform.review.report import write_report
from rpg_platform.review.video_file import write_mp4
from rpg_platform.review.videos import FORMAT, VIDEOS_FILE, Role, Video

FPS, EVERY = 25.0, 2  # 50 env steps a second
WIDTH, HEIGHT = 160, 120
LASTS_S = {"prior": 2.0, "best": 4.0, "most-addon": 3.0}  # the prior falls first
STATES = """() => [...document.querySelectorAll("#videos video")].map((v) =>
  ({ time: v.currentTime, lasts: v.duration, paused: v.paused, width: v.videoWidth, wrong: v.error }))"""
# Where the bar is in the picture that a video shows, as a share of the width.
BAR = f"""(i) => {{ const canvas = document.createElement("canvas"); canvas.width = {WIDTH}; canvas.height = {HEIGHT};
  const draw = canvas.getContext("2d"); draw.drawImage(document.querySelectorAll("#videos video")[i], 0, 0);
  const row = draw.getImageData(0, {HEIGHT // 2}, {WIDTH}, 1).data, light = [];
  for (let x = 0; x < {WIDTH}; x++) if (row[4 * x] > 128) light.push(x);
  return light.reduce((a, b) => a + b, 0) / light.length / {WIDTH}; }}"""


def pictures(seconds: float) -> Iterator[Picture]:
    """A bar that moves to the right by an eighth of the picture a second."""
    for i in range(round(FPS * seconds)):
        picture = np.full((HEIGHT, WIDTH, 3), 20, np.uint8)
        middle = round(WIDTH * (0.1 + i / FPS / 8))
        picture[:, middle - 4 : middle + 4] = 240
        yield picture


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    storage = tmp_path_factory.mktemp("storage")
    folder = made_sweep(storage)
    videos = []
    roles: list[Role] = ["most-addon", "prior", "best"]
    for role in sorted(roles, key=list(LASTS_S).index):
        file = storage / f"{role}.mp4"
        width, height = write_mp4(pictures(LASTS_S[role]), file, FPS)
        folder.write_bytes(f"videos/{role}.mp4", file.read_bytes())
        steps = round(LASTS_S[role] * FPS * EVERY)
        trace = tuple(0.3 + 0.1 * np.sin(step / 9) for step in range(steps))
        label, group = ("prior", "") if role == "prior" else ("ω′ 0.2 · α̂ 0.02", "rpg-omega_prime=0.2-alpha_hat=0.02")
        videos.append(
            Video(role, label, group, "", "", f"videos/{role}.mp4", width, height, FPS, EVERY, 500, steps,
                  role != "best", "|foot angle| rad", trace)
        )  # fmt: skip
    folder.write_bytes(
        VIDEOS_FILE, json.dumps({"format": FORMAT, "videos": [asdict(each) for each in videos]}).encode()
    )
    write_report(found_in(folder), {})
    with chromium() as browser:
        yield opened(browser, Path(folder.uri, "report.html"))


def opened(browser: Browser, file: Path) -> Page:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(file.as_uri())
    page.wait_for_function(
        "[...document.querySelectorAll('#videos video')].filter((v) => v.readyState === 4 || v.error).length === 3"
    )
    page.locator("#move-section").scroll_into_view_if_needed()
    page.wait_for_selector("#trace .main-svg")
    return page


def trace_step(page: Page) -> float:
    """Env step at which the line in the trace stands."""
    return float(page.evaluate("document.getElementById('trace')._fullLayout.shapes[0].x0"))


def test_they_play_in_step_from_one_button(page: Page) -> None:
    states = page.evaluate(STATES)
    assert [each["wrong"] for each in states] == [None] * 3, "Chromium decodes them"
    assert [(each["width"], each["lasts"]) for each in states] == [
        (WIDTH, pytest.approx(seconds, abs=0.05)) for seconds in LASTS_S.values()
    ]
    words = page.locator("#videos figcaption").all_inner_texts()
    assert [line.split()[0] for line in words] == ["prior,", "★", "most"]
    assert page.locator("#move-section button").count() == page.locator("#move-section input").count() == 1

    page.evaluate(f"() => {{ window.seen = []; setInterval(() => window.seen.push(({STATES})()), 20); }}")
    page.get_by_role("button", name="Play").click()
    page.wait_for_function("document.querySelectorAll('#videos video')[1].currentTime > 1.5")
    seen = [states for states in page.evaluate("window.seen") if 0.3 < states[1]["time"] < 1.5]  # all still play
    assert not any(each["paused"] for states in seen for each in states)
    times = [[each["time"] for each in states] for states in seen]
    assert statistics.median(max(each) - min(each) for each in times) < 0.15
    assert times[-1][1] > times[0][1] + 0.3, "they go on"
    page.get_by_role("button", name="Pause").click()
    page.wait_for_timeout(150)
    states = page.evaluate(STATES)
    now = states[1]["time"]
    assert all(each["paused"] for each in states)
    assert [each["time"] for each in states] == pytest.approx([min(now, lasts) for lasts in LASTS_S.values()], abs=0.02)
    assert float(page.input_value("#seek")) == pytest.approx(1000 * now / 4, abs=50)
    assert trace_step(page) == pytest.approx(now * FPS * EVERY, abs=10)

    # To its end: those that are shorter stay at their last picture, and all begin again together.
    page.locator("#seek").fill("900")
    page.get_by_role("button", name="Play").click()
    page.wait_for_function("document.querySelectorAll('#videos video')[1].currentTime < 1")
    states = page.evaluate(STATES)
    assert max(each["time"] for each in states) - min(each["time"] for each in states) < 0.15
    page.get_by_role("button", name="Pause").click()


def test_the_seek_bar_moves_all_of_them_and_the_trace(page: Page) -> None:
    for place, times in ((375, [1.5, 1.5, 1.5]), (625, [2.0, 2.5, 2.5]), (125, [0.5, 0.5, 0.5])):
        page.locator("#seek").fill(str(place))
        page.wait_for_function("[...document.querySelectorAll('#videos video')].every((v) => !v.seeking)")
        page.wait_for_timeout(100)
        states = page.evaluate(STATES)
        assert all(each["paused"] for each in states)
        assert [each["time"] for each in states] == pytest.approx(times, abs=0.01)
        bars = [page.evaluate(BAR, i) for i in range(3)]
        assert bars == pytest.approx([0.1 + time / 8 for time in times], abs=0.02), "what is seen is of that time"
        assert trace_step(page) == pytest.approx(place / 1000 * 4 * FPS * EVERY, abs=0.5)
        assert page.get_attribute("#seek", "aria-valuetext") == f"{place / 250:.1f} s of 4.0 s"
    look(page, "report-videos")
