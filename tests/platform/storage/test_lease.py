"""One driver at a time for a sweep in an object store: by conditional writes on a real S3 server."""

from __future__ import annotations

import json
import pickle
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from tests.platform.buckets import new_bucket
from tests.platform.line import Line

from rpg_platform.storage import lease as lease_module
from rpg_platform.storage.heartbeat import STATUS_FILE, this_process
from rpg_platform.storage.lease import LEASE_FILE, Lease, LeaseHeldError, LeaseLostError, NoLeaseError
from rpg_platform.storage.sweep_folder import SweepFolder, SweepFolderError

LASTS_S = 3.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch, new_bucket(tmp_path_factory.mktemp("s3"), patch) as storage:
        yield storage


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other driver is on another machine: that its process is gone can't be seen."""
    monkeypatch.setattr(
        lease_module, "this_process", lambda: this_process() | {"host": "head-2", "pid": 7, "job": "a-1"}
    )
    monkeypatch.setenv("RPG_LEASE_S", str(LASTS_S))


def silence(lease: Lease) -> None:
    """Its driver is held up: it renews nothing any more."""
    lease._ended.set()
    assert lease._thread is not None
    lease._thread.join(10)


def take_when_free(address: str) -> Lease:
    end = time.monotonic() + 20 * LASTS_S
    while True:
        lease = Lease(address)
        with suppress(LeaseHeldError):
            lease.take()
            return lease
        assert time.monotonic() < end
        time.sleep(0.1)


def at(server: str, name: str) -> str:
    place, _, query = server.partition("?")
    return f"{place}/{name}?{query}"


def test_of_many_that_begin_at_once_one_gets_it_and_keeps_it(server: str) -> None:
    address, gate = at(server, "race"), threading.Barrier(6)

    def contend(number: int) -> Lease | None:
        lease = Lease(address)
        gate.wait(30)
        try:
            lease.take()
        except LeaseHeldError:
            return None
        return lease

    with ThreadPoolExecutor(6) as pool:
        [winner] = [lease for lease in pool.map(contend, range(6)) if lease is not None]
    time.sleep(1.5 * LASTS_S)  # it is renewed
    assert winner.is_sure
    with pytest.raises(LeaseHeldError, match=r"process 7 on head-2, Ray job a-1 \(last heard of \d s ago; .*after 3 s"):
        Lease(address).take()
    winner.check()
    winner.give_back()
    follower = Lease(address)
    assert not follower.take(), "nobody has died"
    follower.give_back()


def test_a_driver_that_falls_silent_loses_it_and_knows(server: str) -> None:
    first = Lease(at(server, "silent"))
    assert not first.take()
    silence(first)
    began = time.monotonic()
    second = take_when_free(first.address)
    assert time.monotonic() - began > LASTS_S - 1, "not before it has run out"
    assert not first.is_sure, "it knows by itself that it may have lost it"
    with pytest.raises(LeaseLostError, match=r"driver\.lease could not be renewed for \d+ s"):
        first.check()
    first._renew()
    assert first.is_lost
    for ask in (first.check, lambda: first.wait(lambda: False, print)):
        with pytest.raises(LeaseLostError, match="not this driver's any more: process 7 on head-2, Ray job a-1 has it"):
            ask()
    first.give_back()
    assert second.is_sure, "the first gave back nothing that is the second's"
    second.give_back()


def test_a_storage_that_is_away_holds_a_driver_up_and_no_more(server: str) -> None:
    port = int(re.findall(r"127\.0\.0\.1:(\d+)", server)[0])
    line = Line(port)
    lease, told = Lease(at(server, "away").replace(f":{port}", f":{line.port}")), list[str]()
    lease.take()
    try:
        lease.wait(lambda: False, told.append)
        assert told == []
        line.cut()
        while lease.is_sure:
            time.sleep(0.05)
        going_on = threading.Timer(1.0, line.mend)
        going_on.start()
        lease.wait(lambda: False, told.append)
        lease.check()
        assert re.search(r"could not be renewed for \d+ s \(.*\)\. The sweep waits until", told[0])
        assert "goes on" in told[1]
        line.cut()
        while lease.is_sure:
            time.sleep(0.05)
        with pytest.raises(LeaseLostError, match="the sweep was asked to end: nothing more was saved"):
            lease.wait(lambda: True, told.append)  # the user has no more patience
    finally:
        lease.give_back()
        line.close()


def test_an_answer_that_is_lost_costs_nothing(server: str) -> None:
    lease = Lease(at(server, "answer"))
    lease.take()
    silence(lease)
    before = lease._version
    lease._write()
    lease._version = before  # the storage has the write, and the driver has not heard of it
    lease._renew()
    lease.check()
    lease._renew()
    lease.check()


@contextmanager
def ignoring(server: str, *headers: bytes) -> Iterator[str]:
    """A server that takes no notice of some conditions, as not every one that speaks S3 does."""
    port = int(re.findall(r"127\.0\.0\.1:(\d+)", server)[0])

    def edit(data: bytes) -> bytes:
        for header in headers:
            data = re.sub(header, b"x" * len(header), data, flags=re.IGNORECASE)
        return data

    line = Line(port, edit)
    try:
        yield server.replace(f":{port}", f":{line.port}")
    finally:
        line.close()


def test_where_there_can_be_no_lease_the_heartbeat_has_to_do_and_this_is_said(server: str, tmp_path: Path) -> None:
    for name, header in (("create", b"if-none-match"), ("update", b"if-match")):
        with ignoring(server, header) as storage:
            folder, told = SweepFolder(storage, name), list[str]()
            with folder.lock(told.append):
                assert folder.lease is None
                folder.write_text(STATUS_FILE, json.dumps(status("running")))
            [line] = told
            assert "No lease on the storage: the storage ignores the condition of a conditional write" in line
            assert "Two drivers that begin within the same seconds do not see each other" in line
            other = SweepFolder(server, name)  # it can have a lease, and still sees the one that has none
            with pytest.raises(SweepFolderError, match="being run by process 7 on head-2"), other.lock():
                pass
    with pytest.raises(NoLeaseError, match="hdfs:// has no conditional writes"):
        Lease("hdfs://lab/sweeps")
    folder = SweepFolder(server, "left")
    with folder.lock(told.append):
        pass
    with ignoring(server, b"if-match") as storage:  # another driver may have one there
        said = pytest.raises(SweepFolderError, match=r"it can't be renewed from here.*delete that file")
        with said, SweepFolder(storage, "left").lock():
            pass


def status(state: str) -> dict[str, Any]:
    return {"state": state, "host": "head-2", "pid": 7, "heartbeat": time.time(), "every_s": 5.0}


def test_a_sweeps_folder_is_written_by_whoever_surely_has_it(server: str) -> None:
    folder = SweepFolder(server, "mine")
    with ExitStack() as held:
        held.enter_context(folder.lock(print))
        lease = folder.lease
        assert lease is not None
        folder.check_free()  # the lease alone takes no name
        folder.write_text("sweep.yaml", "by the first")
        assert pickle.loads(pickle.dumps(folder)).lease is None
        with pytest.raises(SweepFolderError, match=r"mine.*is being run by process 7 on head-2"):
            held.enter_context(SweepFolder(server, "mine").lock(print))
        silence(lease)
        other = take_when_free(folder.uri)
        assert (folder.is_ours(), folder.is_lost) == (False, False)
        with pytest.raises(LeaseLostError):
            folder.write_text("sweep.yaml", "by the first, too late")
        assert folder.read_text("sweep.yaml") == "by the first"
        other.give_back()
    assert folder.is_ours(), "it holds nothing any more"


def test_the_login_is_the_one_that_pyarrow_uses(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = "http://" + re.findall(r"127\.0\.0\.1:\d+", server)[0]
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)  # as deploy/ sets it: nothing of it stands in the address
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    (tmp_path / "logins").write_text("[lab]\naws_access_key_id = somebody\naws_secret_access_key = something\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "logins"))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    folder, told = SweepFolder("s3://sweeps/lab", "profile"), list[str]()
    with folder.lock(told.append):
        assert told == []
        assert folder.read_text(LEASE_FILE)
    monkeypatch.setenv("RPG_LEASE_S", "soon")
    with pytest.raises(ValueError, match="RPG_LEASE_S='soon': expected a number of seconds, 2 at least"):
        Lease("s3://sweeps/lab/profile")
