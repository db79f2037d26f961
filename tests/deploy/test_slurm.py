"""deploy/slurm/sweep.sbatch. There is no Slurm here: `sbatch`, `srun` and `scontrol` are fakes in every test."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import yaml
from tests.deploy.hosts import Hosts, hosts
from tests.deploy.manifests import DEPLOY, ROOT
from tests.deploy.pages import Shell, blocks

SCRIPT = DEPLOY / "slurm" / "sweep.sbatch"
LIMIT_S = 400


def directives() -> dict[str, str]:
    return dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", SCRIPT.read_text(), re.MULTILINE))


def wait_for(condition: object, what: str, limit_s: float = 60) -> None:
    end = time.monotonic() + limit_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, what
        time.sleep(0.05)


def test_slurm_gives_time_to_save_and_queues_again() -> None:
    done = subprocess.run(
        [Path(sys.executable).parent / "shellcheck", SCRIPT], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == ""
    asked = directives()
    assert asked["signal"] == "B:USR1@300"
    assert {"requeue", "exclusive"} <= set(asked)
    assert asked["mem"] == "0"  # else a job has the memory of its CPUs alone
    assert asked["open-mode"] == "append"  # the log of what was before stays


# ---- quickly, with fakes of Ray and rpg too -----------------------------------------------------
@pytest.fixture
def job(tmp_path: Path) -> Shell:
    """The repository's deploy/ and fakes, with the variables of a job of two nodes."""
    shell = Shell(tmp_path)
    shell.fake("scontrol", 'if [ "$1" = show ]; then printf "one\\ntwo\\n"; fi')
    shell.fake("getent", 'printf "127.0.1.1 STREAM\\n10.0.0.7 STREAM $2\\n"')
    for each in ("python", "ray", "rpg-node"):
        shell.fake(each)
    shell.fake("srun", f"stat -c '%a %s' $RAY_AUTH_TOKEN_PATH >> {tmp_path}/token; exec sleep 1000")
    # Ends when it is told to, having something left to do, or by itself with the code in the file `code`.
    shell.fake(
        "rpg",
        f"trap 'exit 1' TERM; touch {tmp_path}/begun; until [ -f {tmp_path}/code ]; do sleep 0.05; done;"
        f" exit $(cat {tmp_path}/code)",
    )
    shell.environment |= {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "[one-two]", "SLURM_CPUS_PER_TASK": "3"}
    return shell


def begin(shell: Shell) -> subprocess.Popen[str]:
    command = ["bash", "deploy/slurm/sweep.sbatch", "level.yaml", "--name", "level"]
    running = subprocess.Popen(
        command, cwd=shell.folder, env=shell.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    wait_for((shell.folder.parent / "begun").exists, "the sweep did not begin")
    return running


def finish(running: subprocess.Popen[str], code: int) -> str:
    output, _ = running.communicate(timeout=60)
    assert running.returncode == code, output
    return output


def test_head_on_the_first_node_and_workers_on_the_others(job: Shell, tmp_path: Path) -> None:
    running = begin(job)
    wait_for(lambda: (tmp_path / "token").read_text().count("\n") == 2, "a step for each node")
    assert (tmp_path / "token").read_text() == "600 64\n" * 2
    (tmp_path / "code").write_text("0")
    finish(running, 0)
    head, worker = sorted(job.asked("srun"), key=lambda each: each[2])
    whole = ["--cpus-per-task=3", "--cpu-bind=none"]
    assert head[:5] == ["--nodes=1", "--ntasks=1", "--nodelist=one", *whole]
    assert head[-4:] == ["node", "head", "--node-ip-address=10.0.0.7", "--num-cpus=3"]
    assert worker[:5] == ["--nodes=1", "--ntasks=1", "--nodelist=two", *whole]
    assert worker[-4:] == ["node", "worker", "10.0.0.7", "--num-cpus=3"]
    (sweep,) = job.asked("rpg")
    assert sweep == ["sweep", "level.yaml", "--resume-or-start", "--address", "10.0.0.7:6379", "--name", "level"]
    assert job.asked("scontrol") == [["show", "hostnames", "[one-two]"]]
    assert not list((tmp_path / ".rpg").iterdir())  # the token is gone


@pytest.mark.parametrize(
    ("told", "code", "requeued"),
    [(signal.SIGUSR1, None, True), (signal.SIGTERM, None, False), (None, "1", False), (signal.SIGUSR1, "0", False)],
    ids=["time is nearly up", "told to end", "trials failed", "time is nearly up as it finishes"],
)
def test_it_is_queued_again_only_when_its_time_was_up(
    job: Shell, tmp_path: Path, told: signal.Signals | None, code: str | None, requeued: bool
) -> None:
    running = begin(job)
    if code is not None:
        (tmp_path / "code").write_text(code)
        time.sleep(0.3)
    if told is not None and running.poll() is None:
        running.send_signal(told)
    finish(running, 1 if code is None else int(code))
    assert (["requeue", "7"] in job.asked("scontrol")) == requeued
    assert not list((tmp_path / ".rpg").iterdir())


def test_it_is_queued_again_in_time_though_the_sweep_does_not_end(job: Shell, tmp_path: Path) -> None:
    job.environment |= {"RPG_STOP_WITHIN_S": "1"}
    job.fake("rpg", f"trap '' TERM; touch {tmp_path}/begun; until [ -f {tmp_path}/code ]; do sleep 0.05; done; exit 1")
    running = begin(job)
    running.send_signal(signal.SIGUSR1)
    wait_for(lambda: ["requeue", "7"] in job.asked("scontrol"), "queued again")
    assert running.poll() is None
    (tmp_path / "code").touch()  # Slurm would kill it
    running.communicate(timeout=60)


def test_a_shell_without_the_environment_is_told_so(job: Shell) -> None:
    (job.folder.parent / "bin" / "rpg-node").unlink()
    said = job.run("bash deploy/slurm/sweep.sbatch level.yaml", code=2)
    assert "no rpg-node on the PATH" in said


def test_a_user_does_not_meet_another_ones_ray(job: Shell, tmp_path: Path) -> None:
    job.environment["RPG_NODE_TMP"] = str(tmp_path)
    job.fake("srun", f'echo "$RAY_TMPDIR" >> {tmp_path}/at; shift 5; exec "$@"')
    job.fake("rpg-node", f"stat -c %a $RAY_TMPDIR >> {tmp_path}/mode; exec sleep 1000")
    running = begin(job)
    wait_for(lambda: (tmp_path / "mode").exists() and (tmp_path / "mode").read_text().count("\n") == 2, "two nodes")
    (tmp_path / "code").write_text("0")
    finish(running, 0)
    assert (tmp_path / "at").read_text() == f"{tmp_path}/rpg-{os.getuid()}-7\n" * 2
    assert (tmp_path / "mode").read_text() == "700\n" * 2
    wait_for(lambda: not list(tmp_path.glob("rpg-*")), "a job leaves nothing on its nodes")


def test_the_commands_of_the_page(tmp_path: Path) -> None:
    """Run as printed, with fakes of what a Slurm cluster has; MLflow itself is started by test_mlflow_server.py."""
    page = blocks(DEPLOY / "slurm" / "README.md")
    shell = Shell(tmp_path)
    (shell.folder / ".venv" / "bin").mkdir(parents=True)
    (shell.folder / ".venv" / "bin" / "activate").touch()
    shell.fake("sbatch", "command -v rpg-node > /dev/null")
    for name in ("rpg", "squeue", "scancel"):
        shell.fake(name)
    shell.run("".join(page.pop(name) for name in ("submit", "look", "stop")))
    ((*options, script, _),) = shell.asked("sbatch")
    assert (shell.folder / script).is_file()
    assert {option.split("=")[0].removeprefix("--") for option in options} <= set(directives())
    assert shell.asked("scancel") == [["--signal=TERM", "--batch", "JOBID"]]
    for words in shell.asked("rpg"):
        help_of_it = subprocess.run(
            [sys.executable, "-m", "rpg_platform.cli", words[0], "--help"], capture_output=True, text=True, timeout=60
        )
        assert all(word in help_of_it.stdout for word in words if word.startswith("--")), words
    # A virtual environment of fakes, so that the page's server is what starts.
    shell.fake("python", f'mkdir -p "$3/bin"; for each in pip mlflow; do cp {tmp_path}/bin/squeue "$3/bin/$each"; done')
    shell.environment |= {"USER": f"rpg-{os.getpid()}"}
    shell.run(page.pop("mlflow").replace("read -rsp", "read -rp") + "\n", stdin="a long password\n")
    assert shell.asked("squeue")[-1:] == [["server", "--app-name", "basic-auth"]]
    assert not page


# ---- two hosts, the real Ray and a real sweep ---------------------------------------------------
SWEEP = {
    "name": "short",
    "task": "halfcheetah-foot-angle",
    "prior": "halfcheetah-spg",
    "algorithm": "rpg",
    "weights": {"omega_prime": {"grid": [0.1, 0.2]}, "alpha_hat": 0.02},
    "budget": {"env_steps": 200_000},
    "checkpoint": {"every_env_steps": 10_000},
    "training": {"rollout_length": 64, "minibatch_size": 128, "num_epochs": 2, "critic_warmup_iterations": 0},
    "evaluation": {"episodes": 1, "validations": 0},
}


class Slurm:
    """Runs sweep.sbatch as Slurm would on two hosts, by fakes of `srun`, `scontrol` and `getent`."""

    def __init__(self, folder: Path, machines: Hosts) -> None:
        self.folder, fakes = folder, folder / "bin"
        fakes.mkdir()
        disk = "export RAY_TMPDIR=${RAY_TMPDIR/tmp/t$n}"  # each host's own
        enter = "\n".join(f'  host{n}) n={n}; {disk}; exec {" ".join(machines.command(n))} "$@";;' for n in (1, 2))
        scripts = {
            "scontrol": f'case $1 in show) printf "host1\\nhost2\\n";; requeue) echo "$2" >> {folder}/requeued;; esac',
            "srun": f"host=${{3#--nodelist=}}; shift 5\ncase $host in\n{enter}\nesac",
            "getent": f'echo "{machines.address(1)} STREAM $2"',
        }
        for name, script in scripts.items():
            (fakes / name).write_text(f"#!/bin/bash\n{script}\n")
            (fakes / name).chmod(0o755)
        shutil.copy(DEPLOY / "rpg-node", fakes)
        (folder / "short.yaml").write_text(yaml.safe_dump(SWEEP | {"storage": str(folder / "results")}))
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "SLURM", "MLFLOW", "XDG"))}
        path = os.pathsep.join([str(ROOT / "platform"), str(ROOT / "algorithms")])
        self.environment = (
            clean
            | machines.mark
            | {
                "PYTHONPATH": path,
                "PYTHONUNBUFFERED": "1",
                "PATH": f"{fakes}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                "HOME": str(folder),
                "RPG_NODE_TMP": str(folder / "tmp"),
                "RAY_USAGE_STATS_ENABLED": "0",
                "SLURM_JOB_ID": "7",
                "SLURM_JOB_NODELIST": "host[1-2]",
                "SLURM_CPUS_PER_TASK": "1",
            }
        )
        self._enter = machines.command(1)

    def sbatch(self) -> subprocess.Popen[str]:
        command = [*self._enter, "bash", str(SCRIPT), "short.yaml"]
        log = (self.folder / "log").open("a")
        return subprocess.Popen(
            command, cwd=self.folder, env=self.environment, text=True, stdout=log, stderr=log, start_new_session=True
        )

    def log(self) -> str:
        return (self.folder / "log").read_text()


@pytest.mark.slow
@pytest.mark.timeout(6 * LIMIT_S)
def test_a_sweep_whose_time_is_up_goes_on_when_it_is_queued_again() -> None:
    folder = Path(tempfile.mkdtemp(prefix="rpg", dir="/tmp"))  # short: Ray's sockets lie in it
    try:
        with hosts(2, folder) as machines:
            slurm = Slurm(folder, machines)
            results = folder / "results" / "short"
            job = slurm.sbatch()

            def saved() -> bool:
                assert job.poll() is None, slurm.log()
                return len({path.parts[-3] for path in results.glob("rpg-*/checkpoint_*/trial.json")}) == 2

            wait_for(saved, "both hosts have a CPU, so both trials run", 2 * LIMIT_S)
            token = next((folder / ".rpg").glob("*/token"))
            assert token.stat().st_mode & 0o077 == 0
            assert token.read_text() not in slurm.log()
            job.send_signal(signal.SIGUSR1)
            assert job.wait(LIMIT_S) == 1, slurm.log()
            assert (folder / "requeued").read_text() == "7\n"
            assert not list((folder / ".rpg").iterdir())
            job = slurm.sbatch()
            assert job.wait(2 * LIMIT_S) == 0, slurm.log()
            assert "go on from a checkpoint" in slurm.log()
            assert '"finished"' in (results / "status.json").read_text()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
