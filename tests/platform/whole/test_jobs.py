"""A sweep by plain ``ray job submit`` on a head that asks for a token: the code that runs is the code submitted."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

import pytest
import yaml
from mlflow.entities import Run
from ray.runtime_env import RuntimeEnv
from tests.platform import own_tasks
from tests.platform.line import Line
from tests.platform.servers import free_port

import rpg_platform
from rpg_platform.bundles import SHIPPED
from rpg_platform.spec.yaml_file import load_spec
from rpg_platform.storage.location import default_tracking_uri

if TYPE_CHECKING:
    from tests.platform.servers import TrackedSweep

    ReadSweep = Callable[[str, str], TrackedSweep]

ROOT = Path(__file__).resolve().parents[3]
BIN = Path(sys.executable).parent
MARK = "RPG_TEST_HEAD"
VERSION = f"{rpg_platform.__version__}+submitted"
TERMINAL = ("SUCCEEDED", "FAILED", "STOPPED")
START_S, JOB_S = 240, 400  # a head starts in seconds where nothing else runs

pytestmark = pytest.mark.timeout(2 * (START_S + JOB_S))


@dataclass(frozen=True)
class Head:
    """A Ray head on loopback, and what a client of it needs."""

    address: str
    token: str
    home: Path

    def client(self, *arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
        """``ray <arguments>`` from a shell that has the token and nothing of ours on its path."""
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "PYTHON"))}
        own = {"HOME": str(self.home), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}
        return subprocess.run(
            [str(BIN / "ray"), *arguments],
            cwd=cwd,
            env=clean | own | {"RAY_API_SERVER_ADDRESS": self.address} | env,
            capture_output=True,
            text=True,
            timeout=JOB_S,
            check=False,
        )

    def rpg(
        self, *arguments: str, cwd: Path, stdout: int | IO[str] = subprocess.PIPE, **env: str
    ) -> subprocess.Popen[str]:
        """``rpg <arguments>`` of this checkout, on a machine that has the token alone."""
        clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        own = {"HOME": str(cwd), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}
        path = os.pathsep.join(str(ROOT / root) for root in ("algorithms", "platform"))
        return subprocess.Popen(
            [sys.executable, "-m", "rpg_platform.cli", *arguments],
            cwd=cwd,
            env=clean | own | {"RAY_API_SERVER_ADDRESS": self.address, "PYTHONPATH": path, "COLUMNS": "160"} | env,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
        )

    def said(self, *arguments: str, cwd: Path, code: int = 0, **env: str) -> tuple[str, str]:
        """Standard output and standard error of ``rpg <arguments>``, which ends with ``code``."""
        running = self.rpg(*arguments, cwd=cwd, **env)
        stdout, stderr = running.communicate(timeout=JOB_S)
        assert running.returncode == code, stdout + stderr
        return stdout, stderr

    def status(self, job: str) -> str:
        request = urllib.request.Request(
            f"{self.address}/api/jobs/{job}", headers={"Authorization": f"Bearer {self.token}"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return str(json.load(answer)["status"])

    def wait(self, job: str, *, until: tuple[str, ...] = TERMINAL) -> str:
        """The status once it is one of ``until``. A tail that ended says nothing: the connection may have closed."""
        deadline = time.monotonic() + JOB_S
        while (status := self.status(job)) not in until:
            assert time.monotonic() < deadline, f"{job} is {status} after {JOB_S} s"
            time.sleep(0.2)
        return status


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A head of our own, with an older version of the package importable on it; ended by the ids of its processes."""
    folder = Path(tempfile.mkdtemp(prefix="rpg", dir="/tmp"))  # short: Ray's sockets lie in it
    mark, token, port = uuid.uuid4().hex, uuid.uuid4().hex, free_port()
    (folder / "token").write_text(token)
    (folder / "home").mkdir()
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {
        MARK: mark,
        "HOME": str(folder / "home"),
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",  # an entrypoint's `python` is the head's
        "PYTHONPATH": os.pathsep.join(str(ROOT / root) for root in ("algorithms", "platform")),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_JOB_STOP_WAIT_TIME_S": "300",  # three seconds by default, too few to stop in order
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    ports = {
        name: free_port()
        for name in (
            *("port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port", "runtime-env-agent-port"),
            *("metrics-export-port", "ray-client-server-port", "node-manager-port", "object-manager-port"),
        )
    }
    command = [
        *(str(BIN / "ray"), "start", "--head", "--block", f"--temp-dir={folder / 'ray'}", "--num-cpus=2"),
        *("--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--dashboard-port={port}"),
        *("--min-worker-port=0", "--max-worker-port=0", f"--object-store-memory={200 * 2**20}"),
        *(f"--{name}={value}" for name, value in ports.items()),
    ]
    with (folder / "log").open("w") as log:
        started = subprocess.Popen(command, env=env, stdout=log, stderr=log, cwd=folder, start_new_session=True)
    try:
        found = Head(f"http://127.0.0.1:{port}", token, folder / "home")
        deadline = time.monotonic() + START_S
        while not _answers(found):
            assert started.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.2)
        yield found
    finally:
        started.terminate()
        with suppress(subprocess.TimeoutExpired):
            started.wait(10)
        _end_processes(mark)
        started.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


def _answers(head: Head) -> bool:
    try:
        head.status("none")
    except urllib.error.HTTPError as error:
        return error.code == 404  # it knows no such job, and it took the token
    except OSError:
        return False
    return True


def _end_processes(mark: str) -> None:
    """Kills what the head has started, known by a variable of its environment: workers have sessions of their own."""
    needle = f"{MARK}={mark}".encode()
    deadline = time.monotonic() + START_S
    while True:
        found = []
        for process in Path("/proc").iterdir():
            with suppress(OSError):
                if process.name.isdigit() and needle in (process / "environ").read_bytes().split(b"\0"):
                    found.append(int(process.name))
        if not found:
            return
        assert time.monotonic() < deadline, f"still there: {found}"
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.2)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources under another version, with a quickstart that takes seconds."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("algorithms", "platform", "tune_configs", "deploy", "requirements"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for package in ("algorithms/rpg_algorithms", "platform/rpg_platform"):
        file = copy / package / "__init__.py"
        text, count = re.subn(r'__version__ = ".*"', f'__version__ = "{VERSION}"', file.read_text())
        assert count == 1
        file.write_text(text)
    for name, env_steps in (("tiny", 1024), ("endless", 50_000_000)):
        quickstart = yaml.safe_load((ROOT / "tune_configs/quickstart.yaml").read_text())
        quickstart |= {
            "weights": {"omega_prime": 0.2, "alpha_hat": {"grid": [0.02, 0.1]}},
            "budget": {"env_steps": env_steps},
            "training": {"rollout_length": 64, "minibatch_size": 128, "num_epochs": 1, "critic_warmup_iterations": 0},
            "evaluation": {"episodes": 2},
        }
        (copy / f"tune_configs/{name}.yaml").write_text(yaml.safe_dump(quickstart))
        load_spec(copy / f"tune_configs/{name}.yaml")
    (copy / "tests").mkdir()
    (copy / "tests/large.bin").write_bytes(os.urandom(1000))
    return copy


def test_runtime_env_leaves_the_sources_tests_and_results_out_and_installs_nothing() -> None:
    env = yaml.safe_load((ROOT / "deploy/runtime_env.yaml").read_text())
    assert env["py_modules"] == ["algorithms/rpg_algorithms", "platform/rpg_platform"]
    assert all((ROOT / module / "__init__.py").is_file() for module in env["py_modules"])
    assert not {"pip", "uv", "conda", "image_uri"} & set(env)
    assert {"/.venv/", "/.git/", "/tests/", "/rpg_results/"} <= set(env["excludes"])
    for installer in ("pip", "uv"):  # the variants that the file offers
        line = f"{installer}: requirements/runtime.lock"
        assert f"# {line}\n" in (ROOT / "deploy/runtime_env.yaml").read_text()
        packages = RuntimeEnv(**{installer: str(ROOT / "requirements/runtime.lock")})[installer]["packages"]
        assert any(package.startswith("mlflow==") for package in packages)


def test_submitted_sweep_runs_the_submitted_code(head: Head, checkout: Path, read_sweep: ReadSweep) -> None:
    submit = ("job", "submit", "--submission-id=tiny", "--runtime-env=deploy/runtime_env.yaml", "--")
    submitted = head.client(
        *submit, "python", "-m", "rpg_platform.cli", "sweep", "tune_configs/tiny.yaml", cwd=checkout
    )
    status = head.wait("tiny")
    logs = head.client("job", "logs", "tiny", cwd=checkout).stdout
    assert status == "SUCCEEDED", logs + submitted.stderr
    assert submitted.returncode == 0, submitted.stderr

    codes = re.findall(r"^rpg (\S+) from (\S+) \((driver|trial)\)$", logs, re.MULTILINE)
    assert [who for _, _, who in codes] == ["driver", "trial"], logs  # once each: all trials ran the same code
    for version, folder, _ in codes:
        assert version == VERSION
        assert re.search(r"/runtime_resources/py_modules_files/_ray_pkg_\w+/rpg_platform$", folder)
        assert not Path(folder).is_relative_to(checkout)

    results = head.home / "rpg_results"  # the default storage is the head's home
    runs = read_sweep(default_tracking_uri(str(results)), "tiny")
    assert (runs.parent.info.status, set(runs.children)) == (
        "FINISHED",
        {"prior", *(f"rpg-omega_prime=0.2-alpha_hat={a}-seed=0" for a in (0.02, 0.1))},
    )
    assert {run.info.status for run in runs.children.values()} == {"FINISHED"}
    # The working directory has the sweeps, and not the rest of the checkout.
    packages = head.home.parent.glob("ray/session_2*/runtime_resources/working_dir_files/_ray_pkg_*")
    [upload] = [package for package in packages if package.is_dir()]
    assert {"tune_configs", "deploy"} <= (names := {path.name for path in upload.iterdir()})
    assert not {"algorithms", "platform", "tests"} & names
    # The algorithms too are the submitted ones.
    *_, card = sorted(results.glob("tiny/rpg-*alpha_hat=0.1*/checkpoint_*/bundle/card.json"))
    assert json.loads(card.read_text())["made_by"]["versions"]["residual-policy-gradient"] == VERSION


@pytest.mark.slow
def test_stopped_job_ends_its_runs(head: Head, checkout: Path, read_sweep: ReadSweep) -> None:
    submit = ("job", "submit", "--no-wait", "--submission-id=endless", "--runtime-env=deploy/runtime_env.yaml", "--")
    command = ("python", "-m", "rpg_platform.cli", "sweep", "tune_configs/endless.yaml")
    assert head.client(*submit, *command, cwd=checkout).returncode == 0
    deadline = time.monotonic() + JOB_S
    while not list(head.home.glob("rpg_results/endless/rpg-*/result.json")):
        assert head.status("endless") in ("PENDING", "RUNNING")
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert head.client("job", "stop", "endless", cwd=checkout).returncode == 0
    assert head.wait("endless") == "STOPPED"
    runs = read_sweep(default_tracking_uri(str(head.home / "rpg_results")), "endless")
    assert runs.parent.info.status == "KILLED"
    assert not [name for name, run in runs.children.items() if _is_open(run)]


def _is_open(run: Run) -> bool:
    return run.info.status not in ("FINISHED", "FAILED", "KILLED")


@pytest.mark.slow
def test_a_sweep_is_run_by_its_name_from_a_laptop(head: Head, checkout: Path, tmp_path: Path) -> None:
    """Submitted, followed over a line that is cut, asked after, stopped, submitted again; and by hand, as printed."""
    file, line = "tune_configs/named.yaml", Line(int(head.address.rpartition(":")[2]))
    task = {"env": "my_world:Faulty", "kwargs": {"folder": str(tmp_path)}, "addons": {"middle": "-abs(next_obs[0])"}}
    raw = {
        "task": task,
        "algorithm": "full",
        "weights": {"alpha": 0.01},
        "budget": {"env_steps": 60 * 512},
        "training": {"rollout_length": 64, "minibatch_size": 256, "num_epochs": 1},
        "checkpoint": {"every_env_steps": 512},
        "evaluation": {"episodes": 1, "validations": 0},
    }
    (checkout / file).write_text(yaml.safe_dump(raw))
    (checkout / "tune_configs/my_world.py").write_text(Path(own_tasks.__file__).read_text())
    results = head.home / "rpg_results/named"
    with (tmp_path / "log").open("w") as log:
        address = f"http://127.0.0.1:{line.port}"
        following = head.rpg("submit", file, "--address", address, cwd=checkout, stdout=log)
    try:
        while not list(results.glob("full-*/checkpoint_*/trial.json")):
            assert following.poll() is None, following.communicate()
            time.sleep(0.05)
        (tmp_path / "hang").touch()
        line.cut()
        shown = head.said("status", "named", "--address", head.address, cwd=checkout)[0]
        assert re.search(r"State +running \(process \d+ on \S+, Ray job named-1\)", shown), shown
        looking = head.rpg("logs", "named", "--follow", cwd=checkout)
        assert looking.stdout is not None
        assert looking.stdout.readline()
        looking.send_signal(signal.SIGINT)
        assert "named-1 goes on. Follow it: rpg logs named --follow" in looking.communicate(timeout=JOB_S)[1]
        assert looking.returncode == 130
        stopping = head.rpg("stop", "named", cwd=checkout)
        assert stopping.stderr is not None
        assert stopping.stderr.readline().startswith("named-1 is asked to stop")
        line.mend()
        (tmp_path / "hang").unlink()
        assert "named-1: stopped" in stopping.communicate(timeout=JOB_S)[1]
        assert stopping.returncode == 0
        _, about = following.communicate(timeout=JOB_S)
    finally:
        following.kill()
        line.close()
    assert following.returncode == 1, about
    assert head.status("named-1") == "STOPPED"
    assert "no Ray dashboard answers" in about
    assert "named-1 was stopped: submit the same file again to go on" in about
    followed = (tmp_path / "log").read_text()
    assert followed == head.said("logs", "named", cwd=checkout)[0], "each line once"
    assert "1 running trials save their state" in followed

    # The same command again goes on with it; then there is nothing left to do, by hand too.
    log_of_2, about = head.said("submit", file, cwd=checkout)
    assert "go on from a checkpoint" in log_of_2
    assert "named-2: succeeded" in about
    [plain] = re.findall(r"^The same by hand: (ray job submit .*)$", about, re.MULTILINE)
    words = shlex.split(plain.replace("named-2", "named-3"))
    by_hand = head.client(*words[1:], cwd=checkout)
    assert head.wait("named-3") == "SUCCEEDED", by_hand.stdout + by_hand.stderr
    assert "named is finished: nothing is left to run" in head.said("logs", "named", cwd=checkout)[0]
    listed = json.loads(head.said("jobs", "--json", cwd=checkout)[0])
    assert [(e["job"], e["status"], e["exit_code"]) for e in listed if e["sweep"] == "named"] == [
        ("named-3", "SUCCEEDED", 0),
        ("named-2", "SUCCEEDED", 0),
        ("named-1", "STOPPED", None),
    ]
    found = json.loads(head.said("status", "named", "--address", head.address, "--json", cwd=checkout)[0])
    assert (found["state"], found["job"], found["trials"]["finished"]) == ("finished", "named-2", 1)


def test_what_can_not_run_there_is_refused_before_anything_is_sent(head: Head, checkout: Path) -> None:
    def refused(*arguments: str, **env: str) -> str:
        return head.said(*arguments, cwd=checkout, code=2, **env)[1]

    file, before = "tune_configs/refused.yaml", len(head.said("jobs", "--json", cwd=checkout)[0])
    raw = yaml.safe_load((checkout / "tune_configs/tiny.yaml").read_text())

    def write(**changes: object) -> None:
        (checkout / file).write_text(yaml.safe_dump(raw | changes))

    write(weights={"omega_prim": 0.1})
    assert "did you mean 'omega_prime'?" in refused("submit", file)
    write(storage="results")
    assert "storage: 'results' is relative, and would lie in the job's own folder" in refused("submit", file)
    write(resources={"cpus_per_trial": 64})
    assert "a trial asks for 64 CPU (resources), the cluster has 2" in refused("submit", file)
    shutil.copytree(SHIPPED["halfcheetah-spg"], checkout / "priors" / "mine")
    (checkout / ".gitignore").write_text("*.safetensors\n")
    write(prior="../priors/mine")
    said = refused("submit", file)
    assert f"its prior: {checkout}/priors/mine/weights.safetensors (left out by .gitignore" in said
    (checkout / ".gitignore").unlink()
    with (checkout / "tune_configs/data.bin").open("wb") as large:
        large.truncate(101 * 2**20)
    assert re.search(r"takes less than 100\.0 MiB. Largest: tune_configs \(101\.\d MiB\)", refused("submit", file))
    (checkout / "tune_configs/data.bin").unlink()
    write()
    (checkout / "in_image.yaml").write_text("working_dir: .\nexcludes: [/algorithms/, /platform/]\n")
    newer = os.pathsep.join(str(checkout / root) for root in ("algorithms", "platform"))
    said = refused("submit", file, "--runtime-env", "in_image.yaml", PYTHONPATH=newer)
    assert f"residual-policy-gradient {rpg_platform.__version__}, expected {VERSION}, which runs here" in said
    no_token = {"RAY_AUTH_MODE": "disabled"}
    for command in (("submit", file), ("jobs",), ("logs", "named"), ("stop", "named")):
        said = refused(*command, **no_token)
        assert "asks for a token (401), and RAY_AUTH_MODE is 'disabled' here" in said
    no_file = {"RAY_AUTH_TOKEN": "", "HOME": str(checkout / "nobody")}
    assert "RAY_AUTH_MODE is 'token' here, and no token was found. The cluster's token" in refused("jobs", **no_file)
    assert "does not take the token in RAY_AUTH_TOKEN (403)" in refused("jobs", RAY_AUTH_TOKEN="0" * 32)
    assert "no Ray dashboard answers at http://127.0.0.1:9" in refused("jobs", "--address", "http://127.0.0.1:9")
    assert "has no job of a sweep 'tinny'" in refused("logs", "tinny")
    assert len(head.said("jobs", "--json", cwd=checkout)[0]) == before


@pytest.mark.parametrize(
    ("env", "code", "message"),
    [
        ({"RAY_AUTH_MODE": "disabled"}, 401, "Missing authentication token"),
        ({"RAY_AUTH_TOKEN": "0" * 32}, 403, "Invalid authentication token"),
    ],
    ids=["no token", "wrong token"],
)
def test_submission_without_the_token_is_refused(
    head: Head, checkout: Path, env: dict[str, str], code: int, message: str
) -> None:
    refused = head.client("job", "submit", "--submission-id=refused", "--", "python", "--version", cwd=checkout, **env)
    assert refused.returncode != 0
    assert message in refused.stdout + refused.stderr
    with pytest.raises(urllib.error.HTTPError, match="404"):
        head.status("refused")
    # The same, without a client that knows of tokens.
    request = urllib.request.Request(
        f"{head.address}/api/jobs/",
        data=json.dumps({"entrypoint": "true", "submission_id": "refused"}).encode(),
        headers={"Content-Type": "application/json"}
        | ({"Authorization": f"Bearer {env['RAY_AUTH_TOKEN']}"} if "RAY_AUTH_TOKEN" in env else {}),
    )
    with pytest.raises(urllib.error.HTTPError) as answer:
        urllib.request.urlopen(request, timeout=60)
    assert answer.value.code == code
