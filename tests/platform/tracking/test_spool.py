"""The spool on disk: nothing that was appended is lost, whatever dies; what is damaged is skipped and counted."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rpg_platform.tracking import spool as spool_module
from rpg_platform.tracking.spool import Position, Spool, SpoolBusyError, Window, decode, encode, spool_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "tracking"


@pytest.fixture
def spool(folder: Path) -> Iterator[Spool]:
    opened = Spool(folder)
    opened.open()
    yield opened
    opened.close()


def read_all(spool: Spool, position: Position | None = None) -> list[dict[str, Any]]:
    position, found = position or spool.acknowledged, []
    while (window := spool.read(position)).records or window.damaged:
        found += [payload for _, payload in window.records]
        position = window.end
    return found


def reopened(folder: Path) -> Spool:
    spool = Spool(folder)
    spool.open()
    return spool


def test_what_is_not_acknowledged_is_there_for_the_next_process(folder: Path) -> None:
    first = reopened(folder)
    for i in range(10):
        first.append({"i": i, "text": "ü\n" * i})
    window = first.read(first.acknowledged)
    first.acknowledge(Window(window.records[:4], first.read(Position()).end))  # all of it, in one window
    first.append({"i": 10})
    first.close()
    second = reopened(folder)
    assert (second.waiting, second.appended) == (1, 11)
    second.append({"i": 11})
    window = second.read(second.acknowledged)
    assert [(n, payload["i"]) for n, payload in window.records] == [(11, 10)]
    assert [payload["i"] for payload in read_all(second)] == [10, 11]
    second.close()


def test_segments_are_rotated_and_removed_once_they_are_acknowledged(
    folder: Path, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_module, "SEGMENT_BYTES", 4_000)
    monkeypatch.setattr(spool_module, "WINDOW_BYTES", 1_000)
    for i in range(500):
        spool.append({"i": i, "pad": "x" * 100})
    assert len(list(folder.glob("0*.log"))) > 10
    seen, largest = [], 0
    while (window := spool.read(spool.acknowledged)).records:
        seen += [payload["i"] for _, payload in window.records]
        largest = max(largest, len(window.records))
        spool.acknowledge(window)
        first = min(int(file.stem) for file in folder.glob("0*.log"))
        assert first == window.end.segment, "acknowledged segments are removed, others are not"
    assert seen == list(range(500))
    assert largest < 10
    assert spool.waiting == 0
    spool.close()
    assert not list(folder.glob("0*.log"))
    again = reopened(folder)
    assert again.appended == 500
    again.append({"i": 500})
    assert [payload["i"] for payload in read_all(again)] == [500]
    again.close()


def test_damage_is_skipped_and_counted_and_a_torn_end_is_no_damage(folder: Path, spool: Spool) -> None:
    for i in range(20):
        spool.append({"i": i})
    spool.close()
    [segment] = folder.glob("0*.log")
    lines = segment.read_bytes().splitlines(keepends=True)
    lines[3] = lines[3].replace(b'"i":3', b'"i":9')  # a flipped bit
    lines[7] = lines[7][:-1] + lines[8]  # a lost line end: two records in one line
    del lines[8]
    lines[11] = bytes(64) + lines[11]  # what a power failure leaves of a block
    segment.write_bytes(b"".join(lines) + encode({"n": 21, "i": 20})[:-3])
    again = reopened(folder)
    again.append({"i": 100})
    position, found, damaged = again.acknowledged, [], 0
    while (window := again.read(position)).records or window.damaged:
        found += [payload["i"] for _, payload in window.records]
        damaged += window.damaged
        again.acknowledge(window)
        position = window.end
    assert found == [*(i for i in range(20) if i not in (3, 7, 8)), 100]
    assert damaged == again.damaged == 2
    assert again.waiting == 0
    again.close()


def test_a_damaged_acknowledgement_costs_a_repetition(folder: Path, spool: Spool) -> None:
    for i in range(3):
        spool.append({"i": i})
    spool.acknowledge(spool.read(spool.acknowledged))
    spool.append({"i": 3})
    spool.close()
    whole = (folder / "acknowledged").read_bytes()
    for damaged in (b"", whole[:-1], whole.replace(b'"number":3', b'"number":4')):
        (folder / "acknowledged").write_bytes(damaged)
        again = reopened(folder)
        assert [payload["i"] for payload in read_all(again)] == [0, 1, 2, 3]
        again.close()


def test_one_process_at_a_time_and_a_killed_one_lets_go(folder: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from rpg_platform.tracking.spool import Spool\n"
        "spool = Spool(Path(sys.argv[1])); spool.open(); spool.append({'i': 1}); print('open', flush=True)\n"
        "import subprocess; child = subprocess.Popen(['sleep', '60']); print(child.pid, flush=True); time.sleep(60)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(each for each in sys.path if each)}
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "open\n"
    child = int(other.stdout.readline())
    try:
        with pytest.raises(SpoolBusyError, match=rf"in use by process {other.pid}"):
            Spool(folder).open()
        other.kill()
        other.wait()
        mine = reopened(folder)  # although its child lives on
        assert [payload["i"] for payload in read_all(mine)] == [1]
        mine.close()
    finally:
        other.kill()
        os.kill(child, signal.SIGKILL)


def test_a_full_disk_loses_nothing_that_memory_can_hold(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    spool.append({"i": 0})
    real = os.write

    def full(descriptor: int, line: bytes) -> int:
        if b'"i"' not in line:
            return real(descriptor, line)
        if random.Random(len(line)).random() < 0.5:
            return real(descriptor, line[: len(line) // 2])  # the last block
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(spool_module, "MAX_UNWRITTEN", 50)
    with monkeypatch.context() as disk:
        disk.setattr("os.write", full)
        for i in range(1, 61):
            spool.append({"i": i, "pad": "x" * (i % 7)})
    assert [payload["i"] for payload in read_all(spool)] == [0]
    assert spool.lost == 10
    spool.append({"i": 61})
    assert [payload["i"] for payload in read_all(spool)] == [*range(51), 61]
    assert spool.waiting == 52


def test_only_json_is_taken_and_only_finite(spool: Spool) -> None:
    for payload in ({"x": float("nan")}, {"x": float("inf")}):
        with pytest.raises(ValueError, match="JSON compliant"):
            spool.append(payload)
    with pytest.raises(TypeError):
        spool.append({"x": object()})
    assert spool.waiting == 0
    exact = [0.1 + 0.2, 1e-320, 1.7976931348623157e308, -0.0, 2**53 + 1]
    spool.append({"x": exact})
    assert json.dumps(read_all(spool)[0]["x"]) == json.dumps(exact)
    for line in (b"", b"\n", b"00000000 {}\n", b"zzzzzzzz {}\n", encode({"a": 1})[:-1], encode({"a": 1})[1:]):
        assert decode(line) is None


def test_appended_records_reach_the_disk_within_a_second(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[float] = []
    real = os.fsync
    monkeypatch.setattr("os.fsync", lambda fd: (synced.append(time.monotonic()), real(fd))[1])
    started = time.monotonic()
    spool.append({"i": 1})
    while not synced:
        assert time.monotonic() < started + 5
        time.sleep(0.05)
    count = len(synced)
    time.sleep(1.2)
    assert len(synced) <= count + 1, "nothing new, nothing to sync"


def test_memory_does_not_grow_with_what_waits(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """5,000 reports, 8 MB on disk."""
    monkeypatch.setattr(spool_module, "WINDOW_BYTES", 100_000)
    tracemalloc.start()
    try:
        for i in range(5_000):
            spool.append({"i": i, "values": {f"metric_{k}": 0.1 * i + k for k in range(40)}})
        position, count = spool.acknowledged, 0
        while (window := spool.read(position)).records:
            count += len(window.records)
            position = window.end
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 5_000
    assert peak < 3e6


def test_where_a_spool_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert spool_folder(str(tmp_path), "s") == spool_folder(f"file://{tmp_path}", "s") == tmp_path / "s" / "tracking"
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    remote = spool_folder("s3://bucket/x", "s")
    assert remote.parent == tmp_path / "rpg" / "tracking"
    assert remote.name.startswith("s-")
    assert remote == spool_folder("s3://bucket/x/", "s") != spool_folder("s3://bucket/y", "s")
    monkeypatch.delenv("XDG_STATE_HOME")
    assert spool_folder("s3://bucket/x", "s").is_relative_to(Path("~/.local/state/rpg").expanduser())
