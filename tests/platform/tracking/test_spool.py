"""The spool on disk: nothing that was appended is lost, whatever dies; what is damaged is skipped and counted."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.platform.records import reopened

from rpg_platform.tracking import spool as spool_module
from rpg_platform.tracking.spool import Spool, SpoolBusyError, read_lines, spool_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "tracking"


@pytest.fixture
def spool(folder: Path) -> Iterator[Spool]:
    opened = reopened(folder)
    yield opened
    opened.close()


def read_all(spool: Spool) -> list[dict[str, Any]]:
    after, found = spool.acknowledged, []
    while rows := spool.read(after):
        found += [payload for _, payload in rows if payload is not None]
        after = rows[-1][0]
    return found


def taken(spool: Spool) -> list[int]:
    """Reads and acknowledges everything, as the sender does; returns each record's ``i``."""
    found = []
    while rows := spool.read(spool.acknowledged):
        found += [payload["i"] for _, payload in rows if payload is not None]
        spool.acknowledge(rows)
    assert spool.waiting == 0
    return found


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("spool.db*"))


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The operating system lets no file of this process grow beyond ``size`` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def full_disk(folder: Path) -> AbstractContextManager[None]:
    return files_of_at_most((folder / "spool.db-wal").stat().st_size + 1_000)


def replace_bytes(file: Path, old: bytes, new: bytes) -> None:
    content = file.read_bytes()
    assert content.count(old) == 1
    assert len(old) == len(new)
    file.write_bytes(content.replace(old, new))


def test_what_is_not_acknowledged_is_there_for_the_next_process(folder: Path) -> None:
    first = reopened(folder)
    for i in range(10):
        first.append({"i": i, "text": "ü\n" * i})
    first.acknowledge(first.read(0))
    first.append({"i": 10})
    first.remember("run", {"id": 1})
    first.remember("run", {"id": 2})
    first.close()
    second = reopened(folder)
    assert (second.waiting, second.appended, second.acknowledged) == (1, 11, 10)
    assert second.remembered() == {"run": {"id": 2}}
    second.append({"i": 11})
    assert [(number, payload["i"]) for number, payload in second.read(10) if payload] == [(11, 10), (12, 11)]
    assert taken(second) == [10, 11]
    second.close()


def test_an_outage_of_hours_takes_the_disk_that_its_records_need_and_gives_it_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_module, "WINDOW_BYTES", 20_000)
    monkeypatch.setattr(spool_module, "LOG_BYTES", 100_000)
    monkeypatch.setattr(spool_module, "UNUSED_BYTES", 100_000)
    monkeypatch.setattr(spool_module, "SYNC_EVERY_S", 0.02)
    spool = reopened(folder)
    for i in range(5_000):
        spool.append({"i": i, "pad": "x" * 1_000})
    wait_until(lambda: size(folder) < 15e6)
    assert size(folder) > 5e6
    largest = max(len(spool.read(0)), len(spool.read(2_500)))
    assert 10 < largest < 30
    assert taken(spool) == list(range(5_000))
    wait_until(lambda: size(folder) < 1e6)
    number = spool.appended
    spool.close()
    assert size(folder) < 20_000
    again = reopened(folder)
    assert again.appended == again.acknowledged == number
    again.append({"i": 5_000})
    assert taken(again) == [5_000]
    again.close()


def test_space_of_what_was_sent_is_used_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some records always wait, as in a long sweep."""
    monkeypatch.setattr(spool_module, "LOG_BYTES", 100_000)
    monkeypatch.setattr(spool_module, "SYNC_EVERY_S", 0.02)
    spool = reopened(folder)
    for i in range(5_000):
        spool.append({"i": i, "pad": "x" * 500})
        if i >= 100:
            spool.acknowledge([(i - 100, None)])
    wait_until(lambda: size(folder) < 300_000)
    spool.close()


KILLED = """
import os, sys
from pathlib import Path
from rpg_platform.tracking import spool as module
module.LOG_BYTES, module.SYNC_EVERY_S, module.WINDOW_BYTES = 50_000, 0.01, 5_000
spool = module.Spool(Path(sys.argv[1]))
spool.open()
while True:
    for _ in range(7):
        spool.append({"i": spool.appended + 1, "pad": "x" * 200})
        os.write(1, b"%d %d\\n" % (spool.appended, spool.acknowledged))
    spool.acknowledge(spool.read(spool.acknowledged)[:5])
"""


def test_a_process_that_is_killed_at_any_moment_loses_nothing(folder: Path) -> None:
    """It appends and acknowledges as fast as it can, and says so only after ``append`` has returned."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(each for each in sys.path if each)}
    chances, appended = random.Random(0), 0
    for _ in range(5):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(folder)], stdout=subprocess.PIPE, env=environment)
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(chances.randint(100, 2_000))]
        process.kill()
        said += process.stdout.read().splitlines(keepends=True)
        process.wait()
        appended, acknowledged = map(int, [line for line in said if line.endswith(b"\n")][-1].split())
        left = reopened(folder)
        assert left.appended >= appended
        assert left.acknowledged >= acknowledged
        assert (left.damaged, left.appended - appended < 2) == (0, True)
        assert [payload["i"] for payload in read_all(left)] == [*range(left.acknowledged + 1, left.appended + 1)]
        left.close()
    assert appended > 500


# ---- damage --------------------------------------------------------------------------------------
def test_a_damaged_record_is_skipped_and_counted(folder: Path, spool: Spool) -> None:
    for i in range(20):
        spool.append({"i": i, "pad": "x" * 100})
    spool.close()
    replace_bytes(folder / "spool.db", b'{"i":3,', b'{"i":9,')
    replace_bytes(folder / "spool.db", b'{"i":11,', b'{"i":1\xff,')
    again = reopened(folder)
    again.append({"i": 100})
    assert taken(again) == [*(i for i in range(20) if i not in (3, 11)), 100]
    assert again.damaged == 2
    again.close()


def test_a_damaged_sector_costs_the_records_in_it(folder: Path, spool: Spool) -> None:
    for i in range(200):
        spool.append({"i": i, "pad": "x" * 100})
    spool.acknowledge(spool.read(0)[:10])
    spool.remember("run", {"id": 1})
    spool.close()
    content = bytearray((folder / "spool.db").read_bytes())
    start = content.index(b'{"i":100,') // 2048 * 2048
    content[start : start + 512] = bytes(512)
    (folder / "spool.db").write_bytes(content)
    with files_of_at_most(30_000), pytest.raises(OSError, match="can't be used"):
        reopened(folder)  # no room for what can be read
    again = reopened(folder)
    assert again.remembered() == {"run": {"id": 1}}
    again.append({"i": 200})
    found = taken(again)
    lost = sorted(set(range(10, 201)) - set(found))
    assert found == sorted(found)
    assert 100 in lost
    assert len(lost) == again.damaged < 20
    again.close()
    assert reopened_and_closed(folder).damaged == 0, "the damage is behind"


def test_a_file_that_is_no_database_is_begun_anew(folder: Path, spool: Spool) -> None:
    spool.append({"i": 0})
    spool.close()
    (folder / "spool.db").write_bytes(b"\xff" * 10_000)
    again = reopened(folder)
    again.append({"i": 1})
    assert (taken(again), again.damaged) == ([1], 1)
    again.close()


def test_damage_in_the_log_of_a_killed_process_is_counted(folder: Path, spool: Spool, tmp_path: Path) -> None:
    for i in range(20):
        spool.append({"i": i})
    shutil.copytree(folder, tmp_path / "killed")  # what a kill leaves at this moment
    (tmp_path / "killed" / "lock").unlink()
    log = tmp_path / "killed" / "spool.db-wal"
    content = log.read_bytes()
    at = content.rindex(b'{"i":14}', 0, content.rindex(b'{"i":15}'))  # in the frame of its own append
    log.write_bytes(content[:at] + b"?" + content[at + 1 :])
    again = reopened(tmp_path / "killed")
    found = taken(again)
    assert found == list(range(len(found)))
    assert again.damaged == 20 - len(found) > 0
    again.append({"i": 100})
    assert taken(again) == [100]
    again.close()


def reopened_and_closed(folder: Path) -> Spool:
    spool = reopened(folder)
    spool.close()
    return spool


# ---- processes, disks, content -------------------------------------------------------------------
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


def test_a_full_disk_loses_nothing_that_memory_can_hold(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(spool_module, "SYNC_EVERY_S", 3_600.0)
    monkeypatch.setattr(spool_module, "MAX_UNWRITTEN", 50)
    spool = reopened(folder)
    for i in range(101):
        spool.append({"i": i, "pad": "x" * 1_000})
    with full_disk(folder):
        for i in range(101, 161):
            spool.append({"i": i, "pad": "x" * (i % 7)})
        assert [payload["i"] for payload in read_all(spool)] == list(range(101))
        rows = spool.read(0)
        spool.acknowledge(rows[:1])  # which can't be written either
        assert [payload["i"] for payload in read_all(spool)] == list(range(1, 101))
    assert spool.lost == 10
    assert len(caplog.records) == 1, "said once"
    spool.append({"i": 161})
    assert spool.waiting == 151
    assert taken(spool) == [*range(1, 151), 161]
    spool.close()


def test_a_full_disk_has_room_again_once_the_log_begins_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "SYNC_EVERY_S", 0.2)
    spool = reopened(folder)
    for i in range(200):
        spool.append({"i": i, "pad": "x" * 500})
    taken(spool)
    with full_disk(folder):
        for i in range(20):
            spool.append({"i": i, "pad": "x" * 500})
        assert len(read_all(spool)) < 20

        def written() -> bool:
            spool.append({"i": 20})
            return len(read_all(spool)) > 20

        wait_until(written)
    assert taken(spool)[:20] == list(range(20))
    assert spool.lost == 0
    spool.close()


def test_a_database_that_someone_else_holds_is_refused_and_let_go(folder: Path) -> None:
    reopened_and_closed(folder)
    with closing(sqlite3.connect(folder / "spool.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(OSError, match=r"spool\.db can't be used: database is locked"):
            reopened(folder)
    assert reopened_and_closed(folder).waiting == 0


def test_a_file_system_without_locks_is_used_with_a_warning(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", refuse)
    spool = reopened(folder)
    assert "run one process at a time on it" in caplog.text
    spool.append({"i": 1})
    assert not (folder / "spool.db-shm").exists(), "nor shared memory"
    spool.close()
    again = reopened(folder)
    assert taken(again) == [1]
    again.close()


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


def test_a_line_that_a_kill_cut_costs_itself(spool: Spool) -> None:
    for text in ("first", "second", "third"):
        spool.reject({"why": text})
        if text == "second":
            os.truncate(spool.rejected_file, spool.rejected_file.stat().st_size - 4)
    assert [payload["why"] for payload in read_lines(spool.rejected_file)] == ["first", "third"]


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
        after, count = spool.acknowledged, 0
        while rows := spool.read(after):
            count += len(rows)
            after = rows[-1][0]
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
