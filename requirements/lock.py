"""Write dev.lock, runtime.lock, mlflow.lock and bench.lock: the newest versions that pyproject.toml allows.

Run by `make lock`. pip resolves in a fresh, empty environment without installing anything; what it chose is
written as `name==version`, without build tags, hosts or paths, so that a lock means the same on every machine
and mirror. The others are resolved under the development lock: what is tested is what is shipped and measured.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
CONSTRAINTS = HERE / "constraints.txt"
LOCKED_PYTHON = (3, 11)

HEADER = """\
# {what}
# Made by `make lock` from pyproject.toml and requirements/constraints.txt; do not edit.
# Resolved by pip for CPython {python} on Linux. Install it with dependencies (no --no-deps): a platform whose
# torch build needs further packages (CUDA libraries) then gets them beside these versions.
"""


def resolve(python: Path, requirements: list[str], constraints: list[Path]) -> list[str]:
    """Resolve requirements to exact versions.

    Args:
        python: Interpreter of an empty environment that has pip.
        requirements: PEP 508 requirements.
        constraints: Constraint files to respect.

    Returns:
        `name==version` lines, names normalised and sorted.

    Raises:
        subprocess.CalledProcessError: if pip finds no solution; its message is on standard error.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [str(python), "-m", "pip", "install", "--dry-run", "--ignore-installed", "-qq"]
        command += ["--report", str(report)]
        for file in constraints:
            command += ["--constraint", str(file)]
        subprocess.run([*command, *requirements], check=True)
        installs = json.loads(report.read_text())["install"]
    pins: dict[str, str] = {}
    for install in installs:
        name = re.sub(r"[-_.]+", "-", install["metadata"]["name"]).lower()
        # 2.13.0+cpu -> 2.13.0: the build tag belongs to a mirror, the version to everybody.
        pins[name] = install["metadata"]["version"].partition("+")[0]
    return [f"{name}=={version}" for name, version in sorted(pins.items())]


def write_lock(path: Path, what: str, pins: list[str]) -> None:
    """Write one lock file.

    Args:
        path: The file.
        what: Its first line: what the lock is for.
        pins: `name==version` lines.
    """
    header = HEADER.format(what=what, python=".".join(map(str, LOCKED_PYTHON)))
    path.write_text(header + "\n".join(pins) + "\n")
    print(f"{path.name}: {len(pins)} packages")


def main() -> None:
    """Resolve and write the locks."""
    if sys.version_info[:2] != LOCKED_PYTHON:
        raise SystemExit(f"make lock: needs Python {LOCKED_PYTHON}, this is {sys.version_info[:2]}")
    pyproject = tomllib.loads((HERE.parent / "pyproject.toml").read_text())
    runtime: list[str] = pyproject["project"]["dependencies"]
    development = [
        *runtime,
        *pyproject["project"]["optional-dependencies"]["dev"],
        *pyproject["build-system"]["requires"],
    ]
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder) / "bin" / "python"
        dev_lock, runtime_lock = HERE / "dev.lock", HERE / "runtime.lock"
        write_lock(
            dev_lock,
            "Everything the Makefile and CI use: the package, its tests, its tools, its build backend.",
            resolve(python, development, [CONSTRAINTS]),
        )
        write_lock(
            HERE / "bench.lock",
            "What `make bench` installs beside the development lock: the peers.",
            resolve(
                python,
                [*development, *pyproject["project"]["optional-dependencies"]["bench"]],
                [CONSTRAINTS, dev_lock],
            ),
        )
        write_lock(
            runtime_lock,
            "What the package needs to run: the image and Ray jobs.",
            resolve(python, runtime, [CONSTRAINTS, dev_lock]),
        )
        write_lock(
            HERE / "mlflow.lock",
            "What the tracking server of deploy/ needs: an image of its own.",
            resolve(python, pyproject["project"]["optional-dependencies"]["server"], [CONSTRAINTS, dev_lock]),
        )


if __name__ == "__main__":
    main()
