"""Whether a driver that has written a sign of life is still there."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from rpg_platform.storage.heartbeat import has_ended, this_process


def test_a_driver_that_ended_is_gone_although_nobody_has_asked_how() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    driver = this_process() | {"pid": process.pid}
    assert not has_ended(driver)
    process.kill()
    end = time.monotonic() + 60
    while ") Z" not in Path(f"/proc/{process.pid}/stat").read_text():
        assert time.monotonic() < end
    assert has_ended(driver), "as in a container whose first process reaps nothing"
    process.wait()
    assert has_ended(driver)
    assert not has_ended(driver | {"boot": "another machine of that name"})
