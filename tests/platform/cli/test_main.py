"""The command line as its users meet it: its exit code and what it prints, some of it in a process of its own."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from tests.platform.commands import ROOT, here, refused, rpg

import rpg_platform
from rpg_platform.bundles import SHIPPED
from rpg_platform.cli.common import MEANINGS
from rpg_platform.cli.main import app
from rpg_platform.cli.sweep import write_picture
from rpg_platform.spec.yaml_file import load_spec
from rpg_platform.tasks.registry import TASKS

COMMANDS = (
    *("plan", "sweep", "resume", "extend", "train", "status", "evaluate", "tasks", "priors", "clone", "export"),
    *("promote", "track", "ui", "submit", "jobs", "logs", "stop"),
)
PRIOR, TASK = "halfcheetah-spg", "halfcheetah-foot-angle"


def write(folder: Path, text: str | dict[str, Any]) -> str:
    file = folder / "sweep.yaml"
    file.write_text(text if isinstance(text, str) else yaml.safe_dump(text))
    return str(file)


def test_help_lists_every_command() -> None:
    ended = rpg("--help")
    assert ended.returncode == 0
    assert [name for name in COMMANDS if re.search(rf"\b{name}\b", ended.stdout)] == list(COMMANDS)


def test_exit_codes_are_those_of_the_page() -> None:
    page = (ROOT / "deploy" / "README.md").read_text()
    [table] = re.findall(r"^\| exit code \|.*\n\|[- |]+\n((?:\|.*\n)+)", page, re.MULTILINE)
    codes = re.findall(r"^\| (\d+) \| ", table, re.MULTILINE)
    assert [int(code) for code in codes] == list(MEANINGS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of(command: str) -> None:
    ended = here(command, "--help")
    assert f"rpg {command}" in ended.stdout
    assert ended.stderr == ""


def test_version_says_which_copy_runs() -> None:
    assert rpg("--version").stdout == f"rpg {rpg_platform.__version__} ({Path(rpg_platform.__file__).parent})\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("swep",), "No such command 'swep'"),
        (("sweep",), "Missing argument 'FILE'"),
        (("sweep", "x.yaml", "--adress", "auto"), "No such option: --adress"),
        (("evaluate", PRIOR), "Missing option '--task'"),
        (("evaluate", PRIOR, "--task", TASK, "--episodes", "0"), "Invalid value for '--episodes'"),
        (("ui", "--port", "70000"), "Invalid value for '--port'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_usage(arguments: tuple[str, ...], message: str) -> None:
    assert message in refused(*arguments)


def test_tasks_and_priors() -> None:
    tasks, priors = here("tasks"), rpg("priors")
    assert priors.returncode == 0
    assert all(name in tasks.stdout and task.env_id in tasks.stdout for name, task in TASKS.items())
    assert all(name in priors.stdout for name in SHIPPED)
    listed = json.loads(here("tasks", "--json").stdout)
    assert {name: row["env"] for name, row in listed.items()} == {name: task.env_id for name, task in TASKS.items()}
    cards = json.loads(here("priors", "--json").stdout)
    assert set(cards) == set(SHIPPED)
    assert f"{cards[PRIOR]['returns']['basic/deterministic']['mean']:,.0f}" in priors.stdout


# ---- JSON ----------------------------------------------------------------------------------------
SWEEP = {
    "task": TASK,
    "prior": PRIOR,
    "algorithm": "greedy",
    "budget": {"env_steps": 1024},
    "training": {"rollout_length": 64, "minibatch_size": 128, "num_epochs": 1, "critic_warmup_iterations": 1},
    "evaluation": {"episodes": 1, "validations": 0},
}
AS_JSON: tuple[tuple[str, str], ...] = (
    ("plan", "plan {file} --storage {storage} --name another --no-calibrate --json"),
    ("sweep", "sweep {file} --storage {storage} --json"),
    ("resume", "resume sweep --storage {storage} --json"),
    ("extend", "extend sweep --seeds 2 --storage {storage} --json"),
    ("train", "train {scratch} --storage {storage} --out {folder}/policy --json"),
    ("status", "status sweep --storage {storage} --json"),
    ("status of all", "status --storage {storage} --json"),
    ("track", "track {storage}/sweep --json"),
    ("evaluate", "evaluate {prior} --task {task} --episodes 1 --json"),
    ("tasks", "tasks --json"),
    ("tasks show", "tasks show {task} --json"),
    ("tasks check", "tasks check {task} --json"),
    ("priors", "priors --json"),
    ("priors import", "priors import {folder}/policy --out {folder}/imported --task {task} --json"),
    ("priors show", "priors show {folder}/policy --json"),
    ("priors check", "priors check {prior} --task {task} --episodes 1 --steps 1000 --json"),
    ("clone", "clone {folder}/demonstrations.npz --env Pendulum-v1 --out {folder}/clone --epochs 1 --json"),
    ("export", "export {folder}/policy --out {folder}/exported --format torchscript --json"),
    ("promote", "promote {storage}/sweep/greedy-seed=0 --name mine --alias champion --json"),
)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Files for the commands above, which run in their order."""
    folder = tmp_path_factory.mktemp("json")
    write(folder, SWEEP)
    scratch = {key: value for key, value in SWEEP.items() if key != "prior"} | {"algorithm": "ppo"}
    (folder / "scratch.yaml").write_text(yaml.safe_dump(scratch))
    rng = np.random.default_rng(0)
    observations, actions = rng.normal(size=(400, 3)).astype(np.float32), rng.uniform(-2, 2, (400, 1))
    ends = np.arange(400) % 100 == 99
    np.savez(folder / "demonstrations.npz", observations=observations, actions=actions, truncations=ends)
    names = {"folder": folder, "file": folder / "sweep.yaml", "scratch": folder / "scratch.yaml"}
    return {name: str(path) for name, path in names.items()} | {
        "storage": str(folder / "results"),
        "prior": PRIOR,
        "task": TASK,
    }


@pytest.mark.parametrize("command", [each for _, each in AS_JSON], ids=[name for name, _ in AS_JSON])
def test_json_is_all_that_is_printed(
    command: str, places: dict[str, str], local_ray: None, capfd: pytest.CaptureFixture[str]
) -> None:
    """Standard output, of libraries and processes too, is one strict JSON document."""
    with pytest.raises(SystemExit) as ended:
        app(command.format(**places).split())
    printed = capfd.readouterr()
    assert ended.value.code == 0, printed.err
    document = json.loads(printed.out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert isinstance(document, dict | list)
    assert document


# ---- evaluate ------------------------------------------------------------------------------------
def test_evaluate() -> None:
    arguments = ("evaluate", PRIOR, "--task", TASK, "--episodes", "2", "--seed", "7")
    metrics = json.loads(here(*arguments, "--json").stdout)
    for mode in ("deterministic", "sampled"):
        basic, addon, total = (metrics[f"eval/{mode}/{name}_return_mean"] for name in ("basic", "addon", "total"))
        assert total == pytest.approx(basic + addon)
        assert metrics[f"eval/{mode}/episode_length_mean"] == 1000
    assert metrics["eval/deterministic/basic_return_mean"] > 5000  # the shipped prior's promise
    assert "eval/kl_to_prior" not in metrics  # there is nothing to compare with, and NaN is no JSON
    table = rpg(*arguments)
    assert table.returncode == 0
    assert f"{PRIOR} on {TASK}: 2 episodes" in " ".join(table.stdout.split()) or "2 episodes" in table.stdout
    assert f"{metrics['eval/deterministic/total_return_mean']:,.2f}" in table.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("halfcheetah-sgp", "--task", TASK), "did you mean 'halfcheetah-spg'?"),
        (("/no/such/folder", "--task", TASK), "neither a shipped prior nor a path that exists"),
        ((str(ROOT / "tune_configs"), "--task", TASK), "is not a prior bundle"),
        ((PRIOR, "--task", "hopper-hight"), "task='hopper-hight': no such task; did you mean 'hopper-height'?"),
        ((PRIOR, "--task", "hopper-height"), "Hopper-v5"),
    ],
    ids=["misspelt", "missing", "no bundle", "no task", "another environment"],
)
def test_evaluate_refuses(arguments: tuple[str, ...], message: str) -> None:
    said = refused("evaluate", *arguments)
    assert message in said
    assert len(said.splitlines()) == 1


# ---- sweep and train -----------------------------------------------------------------------------
MALFORMED = f"""\
task: {TASK}
prior: {PRIOR}
algorithm: rpg
weights: {{omega_prim: 0.1, alpha_hat: -1}}
budget: {{env_steps: many}}
"""


def test_malformed_sweep_is_refused_at_once_with_every_fault_and_its_line(tmp_path: Path) -> None:
    file = write(tmp_path, MALFORMED)
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    ended = rpg("sweep", file, "--storage", str(tmp_path / "out"))
    assert (ended.returncode, ended.stdout) == (2, "")
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 3, "seconds of a CPU, however busy it is"
    lines = ended.stderr.splitlines()
    assert [line.removeprefix(f"{file}:").split(":")[0] for line in lines] == ["4", "4", "5"]
    assert "unknown key; did you mean 'omega_prime'?" in lines[0]
    assert list(tmp_path.iterdir()) == [Path(file)]


def test_refusing_imports_nothing_slow(tmp_path: Path) -> None:
    """What makes a refusal fast, and proves that Ray was not started."""
    code = (
        "import sys\n"
        "from rpg_platform.cli.main import main\n"
        "try:\n"
        "    main()\n"
        "except SystemExit:\n"
        "    print(sorted({'ray', 'mlflow', 'torch'} & set(sys.modules)))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, "sweep", write(tmp_path, MALFORMED)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(each for each in sys.path if each)},
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    assert ended.stdout == "[]\n"


@pytest.mark.parametrize("command", ["sweep", "train"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file or directory"),
        ("task: [", "sweep.yaml:"),
        ("", "sweep.yaml:"),
    ],
    ids=["missing", "no YAML", "empty"],
)
def test_file_that_says_nothing(command: str, content: str | None, message: str, tmp_path: Path) -> None:
    file = str(tmp_path / "sweep.yaml") if content is None else write(tmp_path, content)
    assert message in refused(command, file)


def test_bad_name_and_taken_storage_are_refused(tmp_path: Path) -> None:
    spec = {"task": TASK, "prior": PRIOR, "algorithm": "greedy", "budget": {"env_steps": 100_000}}
    file = write(tmp_path, spec)
    said = refused("sweep", file, "--name", "a/b", "--storage", str(tmp_path))
    assert said == "--name: takes letters, digits, - and _, and starts with a letter or digit, got 'a/b'\n"
    (tmp_path / "taken").mkdir()
    assert "a sweep named 'taken' was run there" in refused(
        "sweep", file, "--name", "taken", "--storage", str(tmp_path)
    )


def test_train_refuses_several_trainings(tmp_path: Path) -> None:
    weights = {"alpha": {"grid": [0.05, 0.1]}}
    spec = {"task": TASK, "algorithm": "spg", "weights": weights, "budget": {"env_steps": 100_000}}
    said = refused("train", write(tmp_path, spec), "--storage", str(tmp_path / "out"))
    assert "describes 2 trainings; `rpg train` runs one, `rpg sweep` runs many" in said
    assert not (tmp_path / "out").exists()


def test_train_refuses_a_place_for_its_policy_before_it_trains(tmp_path: Path) -> None:
    file = write(tmp_path, {"task": TASK, "algorithm": "spg", "weights": {"alpha": 0.1}, "budget": {"env_steps": 4096}})
    (tmp_path / "taken").touch()
    for out, why in (
        ("s3://bucket/policy", "expected a folder of this machine"),
        (str(tmp_path / "taken"), f"{tmp_path / 'taken'} is a file, expected a folder"),
        (str(tmp_path / "taken" / "policy"), f"{tmp_path / 'taken'} is a file, expected a folder"),
    ):
        assert why in refused("train", file, "--out", out, "--storage", str(tmp_path / "results"))
    assert not (tmp_path / "results").exists()


def test_a_picture_that_cannot_be_written_costs_one_line(tmp_path: Path) -> None:
    (tmp_path / "tradeoff.png").mkdir()
    told: list[str] = []
    write_picture(tmp_path, lambda: b"picture", told.append)
    assert len(told) == 1
    assert told[0].startswith("Picture     none: IsADirectoryError")


def test_train_leaves_a_bundle_that_evaluate_takes(tmp_path: Path) -> None:
    spec = {
        "task": TASK,
        "algorithm": "spg",
        "weights": {"alpha": 0.1},
        "budget": {"env_steps": 1024},
        "training": {"rollout_length": 64, "minibatch_size": 128, "num_epochs": 1},
        "evaluation": {"episodes": 1},
    }
    out = tmp_path / "priors" / "mine"
    trained = rpg("train", write(tmp_path, spec), "--out", str(out), "--storage", str(tmp_path / "out"))
    assert trained.returncode == 0, trained.stderr
    assert f"The policy: {out}" in trained.stdout.replace("\n", "")
    assert trained.stderr == ""
    evaluated = here("evaluate", str(out), "--task", TASK, "--episodes", "1", "--json")
    card = json.loads((out / "card.json").read_text())
    found = json.loads(evaluated.stdout)["eval/deterministic/basic_return_mean"]
    assert card["returns"]["basic/deterministic"]["mean"] == pytest.approx(found)
    assert (card["alpha"], card["parents"]) == (0.1, [])


# ---- output that can't be written ----------------------------------------------------------------
@pytest.mark.parametrize(("target", "code"), [("pipe", 0), ("/dev/full", 1)])
def test_output_that_cannot_be_written_ends_nothing(target: str, code: int) -> None:
    """A reader that has ended is no fault; a full disk is one, said and in the exit code, without a traceback."""
    if target == "pipe":
        reading, writing = os.pipe()
        os.close(reading)
    else:
        writing = os.open(target, os.O_WRONLY)
    lines = "import sys; from rpg_platform.cli import main\nmain.app = lambda: print('–', *range(9999), sep='\\n')\n"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    ended = subprocess.run(
        [sys.executable, "-c", lines + "main.main()"],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    os.close(writing)
    assert (ended.returncode, "Traceback" in ended.stderr) == (code, False), ended.stderr
    assert ("could not be written: No space left on device" in ended.stderr) == (code == 1)


def test_json_is_data_whatever_a_task_prints(tmp_path: Path) -> None:
    """An environment's module prints at import, from Python and from below it: standard output stays one document."""
    (tmp_path / "loud_env.py").write_text(
        "import os\nprint('hello from python')\nos.write(1, b'hello from below\\n')\n"
        "import gymnasium\ndef make(**keywords):\n    return gymnasium.make('Pendulum-v1', **keywords)\n"
        "gymnasium.register('Loud-v0', 'loud_env:make')\n"
    )
    task = {"env": "loud_env:Loud-v0", "addons": {"turn": "0.2 * next_obs[2]"}}
    spec = {"task": task, "algorithm": "spg", "weights": {"alpha": 0.1}, "budget": {"env_steps": 4096}}
    file = write(tmp_path, spec)
    ended = rpg("plan", file, "--no-calibrate", "--json", cwd=tmp_path, PYTHONPATH=import_path(tmp_path))
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["trials"]
    assert "hello from python" in ended.stderr
    assert "hello from below" in ended.stderr


def import_path(folder: Path) -> str:
    return os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])


def test_a_specification_from_a_pipe(tmp_path: Path) -> None:
    """It is read once; a relative storage in it is the working directory's."""
    spec = {"name": "piped", "task": TASK, "algorithm": "spg", "weights": {"alpha": 0.1}}
    spec |= {"budget": {"env_steps": 1024}, "evaluation": {"episodes": 1, "validations": 0}, "storage": "results"}
    training = {"rollout_length": 64, "minibatch_size": 128, "num_epochs": 1}
    text = yaml.safe_dump(spec | {"training": training})
    code = f"cat <<'E' | {sys.executable} -m rpg_platform.cli plan /dev/stdin --no-calibrate\n{text}E\n"
    ended = subprocess.run(
        ["bash", "-c", code], cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"COLUMNS": "300"}
    )
    assert ended.returncode == 0, ended.stderr
    assert "1 setting x 1 seed" in ended.stdout
    assert f"in {tmp_path / 'results'}" in ended.stdout


def test_a_relative_storage_is_beside_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    spec = {"task": TASK, "algorithm": "spg", "weights": {"alpha": 0.1}, "budget": {"env_steps": 4096}}
    file = write(tmp_path, spec | {"storage": "results"})
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_spec(file).storage == str(tmp_path / "results")
    odd = refused("plan", write(tmp_path, spec), "--storage", str(tmp_path / "a?b"))
    assert "holds ?, which the address of an SQLite store can't hold" in odd
