"""Drivers and servers killed between a write and its acknowledgement: nothing is lost, nothing is there twice."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from mlflow.entities import Run
from tests.platform.records import CARD, records_in
from tests.platform.servers import MlflowServer, free_port
from tests.platform.whole.crash_driver import CLEAN, DIED, KEYS, STEPS, TRIALS, specs

from rpg_platform.storage.location import default_tracking_uri

if TYPE_CHECKING:
    from tests.platform.servers import TrackedSweep

    ReadSweep = Callable[[str, str], TrackedSweep]

ROOT = Path(__file__).resolve().parents[3]


def driver(folder: Path, uri: str, experiment: str, mode: str, count: int, seed: int) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(ROOT), *(each for each in sys.path if each)])
    command = [sys.executable, "-m", "tests.platform.whole.crash_driver", str(folder), uri, experiment, mode]
    return subprocess.Popen(
        [*command, str(count), str(seed)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ends_of(process: subprocess.Popen[str], timeout_s: float = 600) -> dict[str, list[int]]:
    try:
        stdout, stderr = process.communicate(timeout=timeout_s)
    finally:
        process.kill()
    assert process.returncode == 0, stderr
    ends: dict[str, list[int]] = json.loads(stdout)
    return ends


def check_policy(found: TrackedSweep, run: Run, figure: tuple[str, int, int, float]) -> None:
    """A trial's policy is one model, whole, with the run's figures and the line of its parents."""
    [model] = found.client.search_logged_models(
        [run.info.experiment_id], f"source_run_id = '{run.info.run_id}'", max_results=10
    )
    assert model.status == "READY"
    card = json.loads(CARD)
    assert (model.tags["content_hash"], model.tags["parents"]) == (card["content_hash"], ",".join(card["parents"]))
    assert (model.params["alpha"], model.params["seed"]) == ("0.1", run.data.params["seed"])
    assert [(each.key, each.step, each.timestamp, each.value) for each in model.metrics] == [figure]
    outputs = found.client.get_run(run.info.run_id).outputs.model_outputs
    assert [each.model_id for each in outputs] == [model.model_id]


def check(folder: Path, found: TrackedSweep) -> None:
    """Every step of every figure is there once, as it was reported; no run is there twice; every status is right."""
    _, trials = specs()
    noted = (folder / "appended").read_text().splitlines()
    ids = [trial.trial_id for trial in trials]
    assert set(found.children) == set(ids)

    def points(word: str) -> dict[str, Counter[tuple[str, int, int, float]]]:
        by_trial: dict[str, Counter[tuple[str, int, int, float]]] = {trial: Counter() for trial in ids}
        for line in noted:
            kind, _, rest = line.partition(" ")
            what, _, now = rest.rpartition(" ")
            if kind != word or '"result"' not in what:
                continue
            _, index, step = json.loads(what)
            for key in range(KEYS):
                value = float(100 * index + step) + key / 10
                by_trial[ids[index]][f"train/m{key}", 10 * step, 1_000 * int(now), value] += 1
        return by_trial

    surely, perhaps = points("reported"), points("will")
    for trial in ids:
        run = found.children[trial]
        there = found.points(run)
        last = [point for point in there if not point[0].startswith("train/")]
        assert last == [("total", 10 * STEPS, 2_000_000_000, 7.0 + ids.index(trial))]
        check_policy(found, run, last[0])
        del there[last[0]]
        assert set(there.values()) == {1}
        assert set(there) <= set(perhaps[trial])
        # A step that was reported once more, as the notes did not say that it had been, has one point.
        assert len(there) == len({point[:2] for point in there})
        assert {point[:2] for point in surely[trial]} <= {point[:2] for point in there}
        assert len({step for _, step, _, _ in there}) == STEPS
        assert found.children[trial].info.status == "FINISHED"
        assert found.children[trial].data.params["seed"] in map(str, range(TRIALS))
        listed = found.client.list_artifacts(found.children[trial].info.run_id, "bundle")
        assert [file.path for file in listed] == ["bundle/card.json"]
    assert found.parent.info.status == "FINISHED"
    tags = found.parent.data.tags
    assert (tags["trials_finished"], tags["tracker_rejected"], tags["tracker_damaged"]) == (str(TRIALS), "0", "0")
    artifacts = {file.path for file in found.client.list_artifacts(found.parent.info.run_id)}
    assert {"sweep.yaml", "spec.json", "plan.json", "summary"} <= artifacts
    assert records_in(folder / "tracking") == 0, "everything is acknowledged"


@pytest.mark.timeout(900)
def test_a_driver_that_is_killed_again_and_again_and_a_server_too(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, read_sweep: ReadSweep
) -> None:
    """The driver when it has just made a run, then at random points; the server for a while, with SIGKILL."""
    server = MlflowServer(tmp_path_factory.mktemp("killed"), free_port())
    server.start()
    try:
        running = driver(tmp_path, server.uri, "chain", "chain", 4, 0)
        try:
            deadline = time.monotonic() + 240
            while (noted := tmp_path / "chain" / "appended").exists() is False or "result" not in noted.read_text():
                assert running.poll() is None, running.communicate()
                assert time.monotonic() < deadline
                time.sleep(0.02)
            server.kill()
            time.sleep(1.0)
            server.start()
            ends = ends_of(running)
        finally:
            running.kill()
        assert ends["chain"][-1] == CLEAN
        assert set(ends["chain"]) == {CLEAN, DIED}
        assert ends["chain"].count(DIED) > 3
        check(tmp_path / "chain", read_sweep(server.uri, "chain"))
    finally:
        server.kill()


@pytest.fixture
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URI of a PostgreSQL of this test alone; skips where there is none to start."""
    pytest.importorskip("psycopg2", reason="MLflow's driver for PostgreSQL")
    initdb, server = shutil.which("initdb"), shutil.which("postgres")
    if initdb is None or server is None:
        pytest.skip("no PostgreSQL on this machine")
    user: dict[str, Any] = {}
    if os.geteuid() == 0:  # as whom it refuses to run
        try:
            user = {"user": pwd.getpwnam("postgres").pw_uid}
        except KeyError:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
    folder, port = Path(tempfile.mkdtemp()), free_port()
    os.chown(folder, user.get("user", os.geteuid()), -1)
    data = folder / "data"
    subprocess.run([initdb, "-D", data, "-A", "trust", "-U", "rpg"], check=True, capture_output=True, cwd="/", **user)
    command = [server, "-D", str(data), "-p", str(port), "-k", str(folder), "-c", "listen_addresses=127.0.0.1"]
    with tempfile.TemporaryFile() as log:
        running = subprocess.Popen(command, stdout=log, stderr=log, cwd="/", **user)
        try:
            yield f"postgresql+psycopg2://rpg@127.0.0.1:{port}/postgres"
        finally:
            running.send_signal(signal.SIGINT)  # its "fast" way to stop
            running.wait(60)
            shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_same_over_postgresql(
    postgres: str, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, read_sweep: ReadSweep
) -> None:
    server = MlflowServer(tmp_path_factory.mktemp("postgres"), free_port(), postgres)
    server.start()
    try:
        ends = ends_of(driver(tmp_path, server.uri, "chain", "chain", 20, 1), timeout_s=600)
        assert ends["chain"].count(DIED) > 20
        check(tmp_path / "chain", read_sweep(server.uri, "chain"))
    finally:
        server.kill()


@pytest.mark.slow
@pytest.mark.timeout(3_600)
def test_a_driver_that_is_killed_at_every_point_there_is(tmp_path: Path, read_sweep: ReadSweep) -> None:
    uri = default_tracking_uri(tmp_path)
    ends = ends_of(driver(tmp_path, uri, "every", "every", 400, 0), timeout_s=3_000)
    killed = {name: codes for name, codes in ends.items() if codes != [CLEAN]}
    assert len(killed) > 60
    assert len(killed) < len(ends), "the last one passed every point"
    assert set(map(tuple, killed.values())) == {(DIED, CLEAN)}
    for name in ends:
        check(tmp_path / name, read_sweep(uri, name))
