"""A sweep on hosts of its own, submitted from outside, and what may happen to it: each fault, and its end."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import yaml
from tests.deploy.hosts import Hosts
from tests.deploy.machines import LIMIT_S, Machines
from tests.deploy.manifests import ROOT
from tests.deploy.services import Postgres, mlflow_environment, serving
from tests.platform import own_tasks
from tests.platform.buckets import LOGIN
from tests.platform.reports import Report, Reports, Stored

NAME, FILE = "fire", "tune_configs/fire.yaml"
SUBMIT = f"python -m rpg_platform.cli submit {FILE}"
HEAD, WORKER, OTHER, FRESH, OUTSIDE, MLFLOW, DATABASE, BUCKET = range(1, 9)
HOSTS = 8
PER_REPORT, REPORTS, REPORTS_A_SAVE = 512, 24, 6
BUDGET = range(PER_REPORT, REPORTS * PER_REPORT + 1, PER_REPORT)
LOST_AFTER_S = 30
PLACES = 2
_LOOK_EVERY_S = 0.25
_RECENT_S = 15  # a trial that waits to be started again reports nothing
_REPORTS = f"disk{HEAD}/session_2*/artifacts/*/*/driver_artifacts/*/result.json"  # before Tune copies them
_PACED = '''
import os


class Paced(Faulty):
    """Takes its time, so that a trial lasts long enough for something to happen to it; a trial waits while ``held``."""

    def __init__(self, folder, pace_s):
        super().__init__(folder)
        self.pace_s = pace_s

    def step(self, action):
        time.sleep(self.pace_s)
        while "RAY_RAYLET_PID" in os.environ and (self.folder / "held").exists():  # a driver tries the task, too
            time.sleep(0.05)
        return super().step(action)
'''


class Fire:
    """Runs the servers, the nodes and the sweep, and knows what the trials have reported.

    Args:
        kind: of storage, ``path`` or ``s3``.
        made: at least ``HOSTS`` hosts.
        folder: on the disk that all hosts share; its path is short, as Ray's sockets lie in it.
        stack: ends what is started here.
        temporary: a small disk for the temporary files of ``FRESH``.
    """

    def __init__(self, kind: str, made: Hosts, folder: Path, stack: ExitStack, temporary: Path) -> None:
        self.kind, self.hosts, self.folder, self.stack, self.temporary = kind, made, folder, stack, temporary
        self.machines = Machines(made, folder)
        self.machines.environment["RAY_worker_niceness"] = "0"  # on a busy machine trials would hardly run
        self.token, self.password = secrets.token_hex(32), secrets.token_hex(16)
        self.uri = f"http://{made.address(MLFLOW)}:5000"
        self.reports = Reports(folder, _REPORTS)
        self.storage = str(folder / "storage")
        self.login: dict[str, str] = {}
        self.checkout = folder / "checkout"
        for name in ("algorithms", "platform", "deploy", "tune_configs"):
            shutil.copytree(ROOT / name, self.checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
        world = Path(own_tasks.__file__).read_text() + _PACED
        (self.checkout / "tune_configs" / "my_world.py").write_text(world)

    # ---- servers

    def serve(self, locked: Path) -> None:
        """Starts PostgreSQL, and MLflow with a login on it; each on its host."""
        address = self.hosts.address
        network = f"{address(HEAD).rpartition('.')[0]}.0/24"
        keys = {name: secrets.token_hex(32) for name in ("PGPASSWORD", "MLFLOW_FLASK_SERVER_SECRET_KEY")}
        self.postgres = Postgres(
            keys["PGPASSWORD"], self.hosts.command(DATABASE), address(DATABASE), network, port=5432
        )
        self.stack.callback(self.postgres.end)
        self.postgres.start()
        home = self.folder / "mlflow"
        home.mkdir()
        environment = (
            mlflow_environment(locked, home, f"{address(MLFLOW)}:5000", f"{address(DATABASE)}:5432", [])
            | self.hosts.mark
        )
        environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # more processes, and none is used
        environment |= keys | {"MLFLOW_AUTH_ADMIN_PASSWORD": self.password}
        outside = self.stack.enter_context(self.hosts.inside(OUTSIDE))
        self.ask = lambda function, *arguments: outside.submit(function, *arguments).result()
        health = f"{self.uri}/health"
        server = serving(
            environment,
            self.folder / "log-mlflow",
            health,
            enter=self.hosts.command(MLFLOW),
            ask=lambda url: self.ask(lambda: urlopen(url, timeout=10).close()),
        )
        self.stack.enter_context(server)

    def serve_bucket(self) -> None:
        """Starts an S3 server on its host; it becomes the storage."""
        at = f"{self.hosts.address(BUCKET)}:9000"
        self.login = LOGIN
        self.machines.start(BUCKET, f"exec python -m moto.server -H {at.partition(':')[0]} -p 9000")
        make = (
            "from pyarrow import fs; fs.S3FileSystem("
            f"endpoint_override='{at}', scheme='http', region='us-east-1', allow_bucket_creation=True"
            ").create_dir('sweeps')"
        )
        self.wait(lambda: self.machines.run(BUCKET, f'python -c "{make}"', **LOGIN)[0] == 0, job=False)
        self.storage = f"s3://sweeps/lab?endpoint_override={at}&scheme=http&region=us-east-1"

    def stored(self) -> dict[str, Counter[Stored]]:
        """MLflow's run → its points, as the database has them."""
        found: defaultdict[str, Counter[Stored]] = defaultdict(Counter)
        for run, key, step, timestamp, value in self.postgres.rows(
            "SELECT run_uuid, key, step, timestamp, value FROM metrics WHERE NOT is_nan"
        ):
            found[run][key, int(step), int(timestamp), float(value)] += 1
        return found

    # ---- nodes

    def node(self, host: int, role: str, cpus: int = 1, **environment: str) -> None:
        """Starts a node; a worker comes back, as deploy/systemd has it."""
        home = self.machines.home(host)
        (home / ".ray").mkdir(exist_ok=True)
        (home / ".ray" / "auth_token").write_text(self.token)
        options = f"--num-cpus={cpus} --node-ip-address={self.hosts.address(host)}"
        options += f" --object-store-memory={200 * 2**20}"
        command = f"deploy/rpg-node {role} {'$HEAD' if role == 'worker' else ''} {options}"
        again = f"while :; do {command} || true; sleep 5; done" if role == "worker" else f"exec {command}"
        self.machines.up(host, again, **self.login, **environment)

    def head(self) -> None:
        """Starts the head, which has MLflow's login."""
        login = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": self.password}
        said = {"RPG_DASHBOARD_HOST": "0.0.0.0", "RPG_NODE_LOST_AFTER_S": str(LOST_AFTER_S)}
        self.node(HEAD, "head", 0, **login, **said)

    # ---- the sweep

    def write(self, pace_s: float = 0.0025, **changes: Any) -> None:
        """Writes the sweep's file; a trial takes so long for each step of each environment."""
        raw: dict[str, Any] = {
            "name": NAME,
            "task": {
                "env": "my_world:Paced",
                "kwargs": {"folder": str(self.folder), "pace_s": pace_s},
                "addons": {"middle": "-abs(next_obs[0])"},
            },
            "algorithm": "full",
            "weights": {"alpha": {"grid": [0.005, 0.01, 0.02, 0.05]}},
            "seeds": 4,
            "budget": {"env_steps": BUDGET[-1]},
            "checkpoint": {"every_env_steps": REPORTS_A_SAVE * PER_REPORT},
            "training": {"rollout_length": 64, "minibatch_size": 256, "num_epochs": 1},
            "evaluation": {"episodes": 1, "validations": 2, "validation_episodes": 1},
            "faults": {"retries": 1},  # a trial may meet the full disk once; whatever else counted would end it
            "storage": self.storage,
            "tracking": {"uri": self.uri},
        }
        raw = {key: value for key, value in (raw | changes).items() if value is not None}
        (self.checkout / FILE).write_text(yaml.safe_dump(raw))

    def submit(self) -> None:
        """Submits the sweep, again while the cluster has no worker yet, and follows it from now on."""
        while (refused := self._submit()) is not None:
            assert "no trial could ever start" in refused, refused

    def _submit(self) -> str | None:
        """None once the sweep is submitted, or what was said where it was refused."""
        before, self.following = len(self.heard()), self.outside(SUBMIT)
        self.wait(lambda: "Submitted as" in self.heard()[before:] or self.following.poll() is not None, job=False)
        return None if self.following.poll() is None else self.heard()[before:]

    def outside(self, command: str, **environment: str) -> subprocess.Popen[str]:
        """Starts a command on the machine of who submits."""
        own = {
            "RAY_AUTH_TOKEN": self.token,
            "RAY_API_SERVER_ADDRESS": f"http://{self.hosts.address(HEAD)}:8265",
            "PYTHONPATH": os.pathsep.join(str(ROOT / root) for root in ("algorithms", "platform")),
            "COLUMNS": "160",
        }
        return self.machines.start(OUTSIDE, f"exec {command}", cwd=self.checkout, **own | environment)

    def said(self, command: str, **environment: str) -> tuple[int, str]:
        """Exit code of a command there, and what was said there meanwhile."""
        before, running = len(self.heard()), self.outside(command, **environment)
        self.wait(lambda: running.poll() is not None, job=False)
        return running.returncode, self.heard()[before:]

    def heard(self) -> str:
        """All that was said to who submits."""
        return self.machines.log(OUTSIDE)

    def driver(self) -> int:
        """The process of the sweep's driver on the head."""
        for pid in self.hosts.processes(HEAD):
            with suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
                if "rpg_platform.cli" in words and "sweep" in words:
                    return pid
        raise AssertionError("no driver")

    # ---- what the trials do

    def midway(self, host: int | None = None) -> list[Report]:
        """Last reports of trials that run (on a host), have saved, and are far from their end."""
        recent = [each for each in self.reports.running() if time.time() - each["timestamp"] < _RECENT_S]
        found = [each for each in recent if 1.2 < each["env_steps"] / PER_REPORT / REPORTS_A_SAVE < 3]
        return [each for each in found if host is None or each["node_ip"] == self.hosts.address(host)]

    def since(self, moment: float, host: int | None = None) -> list[Report]:
        """Reports that were made (on a host) after a moment."""
        late = [each for lines in self.reports.read().values() for each in lines if each["timestamp"] > moment]
        return [each for each in late if host is None or each["node_ip"] == self.hosts.address(host)]

    def both_since(self, moment: float) -> bool:
        """Whether as many trials as there are places have reported after a moment."""
        return len({(each["node_ip"], each["pid"]) for each in self.since(moment)}) >= PLACES

    def wait(self, condition: Callable[[], Any], *, job: bool = True) -> Any:
        """Waits for something, meanwhile reads the reports, and returns it.

        Args:
            condition: what is waited for.
            job: the sweep's job must not end meanwhile.
        """
        end = time.monotonic() + LIMIT_S
        while not (found := condition()):
            self.reports.read()
            assert not job or self.following.poll() is None, self.heard()[-5000:]
            assert time.monotonic() < end, self.heard()[-5000:]
            time.sleep(_LOOK_EVERY_S)
        return found

    def hold(self) -> None:
        """Makes all trials wait."""
        (self.folder / "hang").touch()

    def release(self) -> None:
        """Lets them go on."""
        (self.folder / "hang").unlink()
