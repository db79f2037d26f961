"""One sweep, submitted from outside, while workers, network, servers, driver and head fail: each report once.

`make test-cluster` runs it, a quarter of an hour for each storage, and docs/reliability.md has what it measures.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from tests.deploy.fire import (
    BUDGET,
    FILE,
    FRESH,
    HEAD,
    HOSTS,
    LOST_AFTER_S,
    MLFLOW,
    NAME,
    OTHER,
    REPORTS_A_SAVE,
    SUBMIT,
    WORKER,
    Fire,
)
from tests.deploy.hosts import hosts
from tests.deploy.machines import LIMIT_S
from tests.deploy.manifests import ROOT
from tests.platform.disks import fill, small_disk
from tests.platform.reports import Report, check_points, kept_of
from tests.platform.servers import TrackedSweep, read_sweep

from rpg_platform.storage.location import default_tracking_uri

CUT_S = 60.0
MEASURED = ROOT / "test-artifacts" / "reliability"
READABLE = """
import json, sys, tempfile
from rpg_algorithms.policies.bundle import load_bundle
from rpg_platform.storage.sweep_folder import SweepFolder
folder = SweepFolder(*sys.argv[1:])
for state in folder.trials().values():
    assert state.finished, state
    with tempfile.TemporaryDirectory() as here:
        load_bundle(folder.fetch_bundle(__import__("pathlib").Path(here), state.checkpoint)).build()
print("readable:", len(folder.trials()))
"""


@dataclass
class Measured:
    """One fault and what it came to.

    Attributes:
        fault: what broke, as the page names it.
        how: how it was made.
        at: when, seconds since the epoch.
        recovered_s: seconds from the end of the outage until the sweep was as before.
        noticed_s: seconds from its beginning until the driver gave the trial up; None: it does not come to that.
        points: points that trials reported from then until the next fault.
        lost, doubled: of them those that MLflow has not, and has twice.
    """

    fault: str
    how: str
    at: float
    recovered_s: float | None = None
    noticed_s: float | None = None
    points: int = 0
    lost: int = 0
    doubled: int = 0


class Faults:
    """What happens to a sweep that runs, one after the other; each waits until the sweep has recovered."""

    def __init__(self, fire: Fire) -> None:
        self.fire, self.measured = fire, list[Measured]()
        self.cut_off: set[str] = set()  # trials that ran when a driver died

    @contextmanager
    def fault(self, name: str, how: str) -> Iterator[Measured]:
        found = Measured(name, how, time.time())
        self.measured.append(found)
        yield found
        times = f"noticed after {found.noticed_s} s, recovered after {found.recovered_s} s"
        sys.stdout.write(f"{self.fire.kind}: {name}: {times}\n")
        sys.stdout.flush()

    def second_driver(self) -> None:
        """By hand, under an id of its own: `rpg submit` would follow the first."""
        with self.fault("second driver", "`ray job submit` of the same command under another id"):
            command = f"python -m rpg_platform.cli sweep {FILE} --resume-or-start"
            submit = f"ray job submit --submission-id second --runtime-env deploy/runtime_env.yaml -- {command}"
            code, said = self.fire.said(submit)
            assert code != 0
            assert "is being run by process" in said, said
            assert "Ray job fire-1" in said, said

    def worker_killed(self) -> None:
        with self.fault("worker killed", "SIGKILL to everything on its host; a fresh host joins") as found:
            self.fire.wait(lambda: self.fire.midway(WORKER))
            found.at = time.time()
            self.fire.hosts.kill(WORKER)
            self.fire.node(FRESH, "worker", TMPDIR=str(self.fire.temporary))
            self.fire.wait(lambda: self.fire.since(found.at, FRESH))
            found.recovered_s = time.time() - found.at

    def worker_cut(self) -> None:
        with self.fault(
            "worker cut off", f"its link is down for 60 s; the node is lost after {LOST_AFTER_S} s, and comes back"
        ) as found:
            [hurt] = self.fire.wait(lambda: self.fire.midway(OTHER))
            before, found.at = len(self.fire.heard()), time.time()
            self.fire.hosts.cut(OTHER)
            self.fire.wait(lambda: f"{trial_of(hurt)}: restarting" in self.fire.heard()[before:])
            found.noticed_s = time.time() - found.at
            self.fire.wait(lambda: time.time() - found.at > CUT_S)
            self.fire.hosts.mend(OTHER)
            back = time.time()
            self.fire.wait(lambda: self.fire.since(back, OTHER))
            found.recovered_s = time.time() - back

    def mlflow_cut(self) -> None:
        with self.fault("MLflow cut off", "its link is down for 60 s") as found:
            self.fire.wait(self.fire.midway)
            found.at = time.time()
            self.fire.hosts.cut(MLFLOW)
            self.fire.wait(lambda: len(self.fire.since(found.at)) >= 8)
            self.fire.hold()
            self.fire.wait(lambda: time.time() - found.at > CUT_S)
            self.fire.hosts.mend(MLFLOW)
            self._recorded(found, time.time())
            self.fire.release()

    def database_restarted(self) -> None:
        with self.fault(
            "database crashed", "PostgreSQL's immediate shutdown; started again after some reports"
        ) as found:
            self.fire.wait(self.fire.midway)
            found.at = time.time()
            self.fire.postgres.crash()
            self.fire.wait(lambda: len(self.fire.since(found.at)) >= 4)
            back = time.time()
            self.fire.postgres.start()
            self._recorded(found, back)

    def _recorded(self, found: Measured, back: float) -> None:
        """Waits until MLflow has what was reported until the outage ended."""
        until_then = [each for each in self.fire.since(found.at) if each["timestamp"] <= back]
        assert until_then

        def there() -> bool:
            try:
                tracked = self.fire.ask(read_sweep, self.fire.uri, NAME)
                steps = {trial: self._steps(tracked, trial) for trial in {trial_of(each) for each in until_then}}
            except MlflowException:  # it has just come back
                return False
            return all(int(each["env_steps"]) in steps[trial_of(each)] for each in until_then)

        self.fire.wait(there)
        found.recovered_s = time.time() - back

    def _steps(self, tracked: TrackedSweep, trial: str) -> set[int]:
        """The steps that MLflow has of a trial."""
        if (run := tracked.children.get(trial)) is None or not run.data.metrics:
            return set()
        return {step for step, _ in self.fire.ask(tracked.history, run, "train/entropy")}

    def driver_killed(self) -> None:
        with self.fault("driver killed", "SIGKILL; the same `rpg submit` again") as found:
            self.fire.wait(self.fire.midway)
            self._cut_off()
            found.at = time.time()
            os.kill(self.fire.driver(), signal.SIGKILL)
            self.fire.wait(lambda: self.fire.following.poll() is not None, job=False)
            assert self.fire.following.returncode == 1
            self.fire.submit()
            self.fire.wait(lambda: self.fire.both_since(found.at))
            found.recovered_s = time.time() - found.at

    def head_killed(self) -> None:
        with self.fault(
            "head killed",
            "SIGKILL to everything on its host, the driver too; started again, the same `rpg submit` again",
        ) as found:
            self.fire.wait(self.fire.midway)
            self._cut_off()
            found.at, before = time.time(), self.fire.following
            self.fire.hosts.kill(HEAD)
            self.fire.head()
            self.fire.wait(lambda: before.poll() is not None, job=False)
            assert before.returncode == 2
            assert "If that cluster was started anew since, submit the file again" in self.fire.heard()
            self.fire.submit()
            self.fire.wait(lambda: self.fire.both_since(found.at))
            found.recovered_s = time.time() - found.at

    def _cut_off(self) -> None:
        self.cut_off |= {trial_of(each) for each in self.fire.reports.running()}

    def disk_filled(self) -> None:
        """That of a worker's temporary files; a trial that can't save there goes on elsewhere."""
        with self.fault(
            "worker's disk full", "the file system of its temporary files is filled until a trial can't save"
        ) as found:
            [hurt] = self.fire.wait(lambda: self.fire.midway(FRESH))
            found.at, before = time.time(), len(self.fire.heard())
            ballast = fill(self.fire.temporary, 100_000)
            self.fire.wait(lambda: f"{trial_of(hurt)}: restarting" in self.fire.heard()[before:])
            found.noticed_s = time.time() - found.at
            assert f"{self.fire.temporary}" in self.fire.heard()[before:]
            ballast.unlink()
            room = time.time()
            self.fire.wait(lambda: self.fire.since(room, FRESH))
            found.recovered_s = time.time() - room


def trial_of(report: Report) -> str:
    return str(report["config"]["trial"]["trial_id"])


def check_everything(fire: Fire, faults: Faults) -> int:
    """Each report is in MLflow once, whatever happened; returns how many points there are."""
    tracked: TrackedSweep = fire.ask(read_sweep, fire.uri, NAME)
    assert {run.info.status for run in (tracked.parent, *tracked.children.values())} == {"FINISHED"}
    reported, total = fire.reports.read(), 0
    assert set(reported) == set(tracked.children)
    assert len(reported) == 16
    ends = [each.at for each in faults.measured[1:]] + [float("inf")]
    stored = fire.stored()
    for trial, lines in reported.items():
        points = stored[tracked.children[trial].info.run_id]
        check_points(lines, points, BUDGET, REPORTS_A_SAVE if trial in faults.cut_off else 0)
        total += len(points)
        for found, end in zip(faults.measured, ends, strict=True):
            of_it = [each for each in lines if int(found.at) <= each["timestamp"] < end]
            kept = kept_of(of_it, points, range(0))
            found.points += kept.reported
            found.lost += len(kept.lost)
            found.doubled += sum(n - 1 for (_, _, at, _), n in points.items() if found.at <= at / 1000 < end)
    again = [len(lines) - len({line["env_steps"] for line in lines}) for lines in reported.values()]
    assert sum(again) > 0, "trials have to report steps a second time, or this shows nothing"
    return total


def check_tokens(fire: Fire) -> None:
    """Without the token and with another nothing starts."""
    code, said = fire.said(SUBMIT, RAY_AUTH_TOKEN="", HOME=str(fire.folder / "nobody"))
    assert (code, "no token was found" in said) == (2, True), said
    code, said = fire.said(SUBMIT, RAY_AUTH_TOKEN="0" * 64)
    assert (code, "does not take the token" in said) == (2, True), said
    code, said = fire.said("python -m rpg_platform.cli jobs --json")
    assert (code, json.loads(said)) == (0, [])


def check_password(fire: Fire) -> None:
    """With another password for MLflow nothing starts."""
    wrong = yaml.safe_load((fire.checkout / "deploy" / "runtime_env.yaml").read_text())
    wrong |= {"env_vars": wrong.get("env_vars", {}) | {"MLFLOW_TRACKING_PASSWORD": "wrong"}}
    (fire.checkout / "wrong.yaml").write_text(yaml.safe_dump(wrong))
    code, said = fire.said(f"{SUBMIT} --name other --runtime-env wrong.yaml")
    assert (code, f"MLflow at {fire.uri} answers 401" in said) == (2, True), said
    assert fire.ask(MlflowClient(fire.uri).get_experiment_by_name, "other") is None


@contextmanager
def fire_on(kind: str, count: int = HOSTS) -> Iterator[Fire]:
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="rpg", dir="/tmp"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        temporary = stack.enter_context(small_disk(folder / "small"))
        yield Fire(kind, stack.enter_context(hosts(count, folder)), folder, stack, temporary)


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(8 * LIMIT_S)
@pytest.mark.parametrize("kind", ["path", "s3"])
def test_each_report_is_recorded_once(kind: str, locked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with fire_on(kind) as fire:
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", fire.password)
        serving = ThreadPoolExecutor(1).submit(fire.serve, locked)
        if kind == "s3":
            fire.serve_bucket()
        fire.head()
        for host in (WORKER, OTHER):
            fire.node(host, "worker")
        fire.write()
        check_tokens(fire)
        serving.result()
        check_password(fire)
        fire.submit()
        faults, began = Faults(fire), time.time()
        faults.worker_killed()
        faults.second_driver()
        faults.worker_cut()
        faults.mlflow_cut()
        faults.database_restarted()
        faults.driver_killed()
        faults.disk_filled()
        faults.head_killed()
        fire.wait(lambda: fire.following.poll() is not None, job=False)
        assert fire.following.returncode == 0, fire.heard()[-5000:]
        took = time.time() - began
        points = check_everything(fire, faults)
        code, said = fire.said(f"python -c '{READABLE}' '{fire.storage}' {NAME}", **fire.login)
        assert (code, "readable: 16" in said) == (0, True), said
        versions = {each: version(each) for each in ("ray", "mlflow", "torch")} | {"python": platform.python_version()}
        MEASURED.mkdir(parents=True, exist_ok=True)
        found = {"storage": kind, "seconds": took, "points": points, "cores": os.cpu_count(), "versions": versions}
        found["faults"] = [asdict(each) for each in faults.measured]
        (MEASURED / f"{kind}.json").write_text(json.dumps(found, indent=1))


@pytest.mark.slow
@pytest.mark.timeout(2 * LIMIT_S)
def test_a_worker_is_killed_and_a_second_driver_refused() -> None:
    """The short form: a head that trains too and a worker, a path, and MLflow's own store beside the results."""
    with fire_on("path", 2) as fire:
        fire.node(HEAD, "head")
        fire.node(WORKER, "worker")
        fire.write(0.0005, tracking=None, weights={"alpha": 0.01}, seeds=2, faults={"retries": 0})
        sweep = f"exec python -m rpg_platform.cli sweep {FILE} --resume-or-start --address $HEAD:6379"
        own = {"PYTHONPATH": os.pathsep.join(str(ROOT / root) for root in ("algorithms", "platform"))}
        fire.following = fire.machines.start(HEAD, sweep, cwd=fire.checkout, **own)
        fire.wait((Path(fire.storage) / NAME / "status.json").exists)
        (held := fire.folder / "held").touch()  # a busy machine takes longer for the second driver than for the trials
        second = fire.machines.start(WORKER, sweep, cwd=fire.checkout, **own)
        fire.wait(lambda: second.poll() is not None)
        held.unlink()
        assert second.returncode == 2
        assert "is being run by process" in fire.machines.log(WORKER)
        [hurt] = fire.wait(lambda: fire.midway(WORKER))
        fire.hosts.kill(WORKER)
        fire.wait(lambda: fire.following.poll() is not None, job=False)
        assert fire.following.returncode == 0, fire.machines.log(HEAD)[-5000:]
        tracked = read_sweep(default_tracking_uri(fire.storage), NAME)
        assert {run.info.status for run in (tracked.parent, *tracked.children.values())} == {"FINISHED"}
        assert tracked.children[trial_of(hurt)].data.tags["restarts"] == "1"
        reported = fire.reports.read()
        assert set(reported) == set(tracked.children)
        for trial, lines in reported.items():
            check_points(lines, tracked.points(tracked.children[trial]), BUDGET, 0)
        assert len(reported[trial_of(hurt)]) > len(BUDGET) + 1, "it has to report steps a second time"
