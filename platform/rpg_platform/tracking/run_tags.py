"""Makes the tags that say who ran which code; every run carries them."""

from __future__ import annotations

import functools
import getpass
import importlib.metadata
import platform
import subprocess
from pathlib import Path

import rpg_platform

PACKAGE = "residual-policy-gradient"
# What a policy's returns depend on.
_VERSIONS = ("ray", "torch", "numpy", "gymnasium", "mujoco", "mlflow")


@functools.cache
def provenance() -> dict[str, str]:
    """Gives user, versions and commit as MLflow tags, and no host names, because tracking servers are shared.

    The commit is that of the repository in which the user started the sweep (the working directory); without one, that
    of the checkout which this package runs from. ``git_changed`` says whether tracked files differ from the commit.
    """
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without an entry
        user = "unknown"
    tags = {"mlflow.user": user, "mlflow.source.name": "rpg sweep", "mlflow.source.type": "LOCAL"}
    tags |= {f"version.{PACKAGE}": rpg_platform.__version__, "version.python": platform.python_version()}
    for name in _VERSIONS:
        try:
            tags[f"version.{name}"] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return tags | (git_tags(Path.cwd()) or git_tags(Path(__file__).resolve()))


def git_tags(place: Path) -> dict[str, str]:
    """Gives commit and state of the repository that ``place`` belongs to; empty if it belongs to none.

    Args:
        place: a folder inside a repository, or a file that the repository tracks: a wheel in an environment inside
            somebody's repository is not of that repository.
    """
    folder = place if place.is_dir() else place.parent

    def git(*arguments: str) -> str | None:
        command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if not place.is_dir() and git("ls-files", "--error-unmatch", place.name) is None:
        return {}
    commit = git("rev-parse", "HEAD")
    if not commit:
        return {}
    changed = bool(git("status", "--porcelain", "--untracked-files=no"))
    return {"mlflow.source.git.commit": commit, "git_changed": str(changed).lower()}
