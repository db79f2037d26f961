"""A headless Chromium for tests of pages: the system's own, as Playwright's are not in a package registry."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARTIFACTS = Path(__file__).resolve().parents[1] / "test-artifacts"
"""What tests leave for people to look at, and for a CI to keep; git ignores it."""


@contextmanager
def chromium() -> Iterator[Browser]:
    """Starts it; skips the test where there is none."""
    path = os.environ.get("RPG_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("needs Chromium: apt-get install chromium, or RPG_CHROMIUM=/path/to/it")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


def look(page: Page, name: str, *, whole: bool = False) -> bytes:
    """Leaves a picture of a page as ``test-artifacts/screenshots/NAME.png``, and returns it.

    Args:
        page: the page.
        name: the file's.
        whole: from its top to its bottom, not only what is in view.
    """
    file = ARTIFACTS / "screenshots" / f"{name}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    return page.screenshot(path=file, full_page=whole)
