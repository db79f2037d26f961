"""deploy/README.md as printed: every command is run, on hosts that are network namespaces of this machine."""

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
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
README = ROOT / "deploy" / "README.md"
BLOCK = re.compile(r"^<!-- test: (\S+) -->\n+```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FENCE = re.compile(r"^```(\w+)$", re.MULTILINE)
LIMIT_S = 400  # for what takes seconds where nothing else runs
MARK = "RPG_TEST_HOST"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(8 * LIMIT_S)]


def blocks() -> dict[str, str]:
    text = README.read_text(encoding="utf-8")
    found = dict(BLOCK.findall(text))
    assert len(found) == len(FENCE.findall(text)), "a block of commands without a name, which nobody would run"
    return found


class Host:
    """A network of its own, in which Ray's usual ports are free, and a user's home."""

    def __init__(self, folder: Path, checkout: Path) -> None:
        self.home, self.checkout = folder / "home", checkout
        self.home.mkdir()
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "PYTHON", "MLFLOW", "XDG"))}
        self.environment = clean | {
            MARK: str(folder),
            "HOME": str(self.home),
            "HEAD": "127.0.0.1",
            "PYTHONUNBUFFERED": "1",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "RAY_TMPDIR": str(folder),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        self.exports: list[str] = []  # of the blocks so far: a reader types all of them into one shell
        command = ["unshare", "--net", "sh", "-c", "ip link set lo up && echo up && exec sleep 100000"]
        self._network = subprocess.Popen(command, env=self.environment, stdout=subprocess.PIPE, text=True)
        assert self._network.stdout is not None
        if self._network.stdout.readline() != "up\n":
            pytest.skip("no network namespace can be made here")

    def start(self, text: str, before: str = "") -> subprocess.Popen[str]:
        """Begins to run some lines of the page in a new shell of the host."""
        shell = "\n".join([*self.exports, text])
        self.exports += [line for line in text.splitlines() if line.startswith("export ")]
        inside = ["nsenter", "--target", str(self._network.pid), "--net", *shlex.split(before), "bash", "-euc", shell]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(inside, cwd=self.checkout, env=self.environment, start_new_session=True, **pipes)  # type: ignore[call-overload,no-any-return]

    def run(self, text: str, code: int = 0) -> str:
        running = self.start(text)
        output, _ = running.communicate(timeout=LIMIT_S)
        assert running.returncode == code, f"{text}\n--- exit {running.returncode}\n{output}"
        return output

    def end(self) -> None:
        """Kills what it has started, known by a variable of its environment."""
        needle = f"{MARK}={self.environment[MARK]}".encode()
        while True:
            found = []
            for process in Path("/proc").iterdir():
                with suppress(OSError):
                    if process.name.isdigit() and needle in (process / "environ").read_bytes().split(b"\0"):
                        os.kill(int(process.name), signal.SIGKILL)
                        found += [] if (process / "stat").read_text().rsplit(")", 1)[1].split()[0] == "Z" else [1]
            self._network.poll()
            if not found:
                return
            time.sleep(0.2)


@pytest.fixture
def host() -> Iterator[Host]:
    folder = Path(tempfile.mkdtemp(prefix="rpg", dir="/tmp"))  # short: Ray's sockets lie in it
    checkout = folder / "checkout"
    for name in ("algorithms", "platform", "tune_configs", "deploy", "requirements"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    quickstart = yaml.safe_load((ROOT / "tune_configs/quickstart.yaml").read_text())
    quickstart |= {
        "weights": {"omega_prime": 0.2, "alpha_hat": 0.02},
        "budget": {"env_steps": 300_000},
        "checkpoint": {"every_env_steps": 10_000},
        "training": {"rollout_length": 64, "minibatch_size": 128, "num_epochs": 2, "critic_warmup_iterations": 0},
        "evaluation": {"episodes": 1, "validations": 0},
    }
    (checkout / "tune_configs/quickstart.yaml").write_text(yaml.safe_dump(quickstart))
    found = None
    try:
        found = Host(folder, checkout)
        yield found
    finally:
        if found is not None:
            found.end()
        shutil.rmtree(folder, ignore_errors=True)


def wait_for(what: str, said: subprocess.Popen[str]) -> None:
    """Reads what a command says until ``what`` stands in it."""
    assert said.stdout is not None
    lines = []
    for line in said.stdout:
        lines.append(line)
        if what in line:
            return
    raise AssertionError("".join(lines))


def test_every_command_of_the_page_does_what_it_says(host: Host) -> None:
    """What it can't be here: several machines. The second node has a network in common with the head, and no disk."""
    page = blocks()
    for elsewhere in ("several", "mlflow"):  # tests/deploy/test_nodes.py, where each host has a network of its own
        page.pop(elsewhere)
    host.run(page.pop("token"))
    assert (host.home / ".ray" / "auth_token").stat().st_mode & 0o077 == 0
    head = host.start(page.pop("head"))
    wait_for("This command will now block", head)

    # By name: submit, look, stop, submit again.
    results, named = host.home / "rpg_results", page.pop("rpg-submit")
    submitted = host.start(named)
    while not list(results.glob("quickstart/rpg-*/checkpoint_*/trial.json")):
        assert submitted.poll() is None, submitted.communicate()[0]
        time.sleep(0.1)
    looking = host.start(page.pop("rpg-look"))
    wait_for("Running entrypoint for job quickstart-1", looking)
    assert "quickstart-1: stopped" in host.run(page.pop("rpg-stop"))
    for each in (submitted, looking):
        said = each.communicate(timeout=LIMIT_S)[0]
        assert (each.returncode, "quickstart-1 was stopped" in said) == (1, True), said
    said = host.run(named)
    assert "go on from a checkpoint" in said
    assert re.search(r"^quickstart-2: succeeded .* exit code 0: all went well$", said, re.MULTILINE)

    # By hand: submit, stop, follow, resume.
    submit = page.pop("submit")
    following = host.start(submit)
    results /= "by-hand"
    while not list(results.glob("rpg-*/checkpoint_*/trial.json")):
        assert following.poll() is None, following.communicate()[0]
        time.sleep(0.1)
    host.run(page.pop("stop"))
    said = host.run(page.pop("follow"))
    assert "Job 'by-hand-1' was stopped" in said
    assert "rpg resume by-hand" in said
    state = json.loads((results / "status.json").read_text())
    assert (state["state"], state["trials"]["stopped"], state["job"]) == ("stopped", 1, "by-hand-1")
    said = host.run(page.pop("resume"))
    assert "go on from a checkpoint" in said
    assert "Job 'by-hand-2' succeeded" in said
    assert json.loads((results / "status.json").read_text())["state"] == "finished"
    following.communicate(timeout=LIMIT_S)

    # Another machine joins, which does not see the head's disk.
    hidden = f"unshare --mount sh -c 'mount -t tmpfs tmpfs {host.home}/rpg_results && exec \"$@\"' sh"
    joined = host.start("ray start --address=$HEAD:6379 --block", before=hidden)
    wait_for("This command will now block", joined)
    said = host.run(submit.replace("by-hand", "elsewhere"), code=1)
    assert re.search(r"storage='\S+/rpg_results' is not shared by all nodes", said)
    assert not list((host.home / "rpg_results").glob(".rpg-probe*"))
    assert not page, "commands that are not run"
