"""What Ray would upload for a job, by its own rules: how large it is, and whether it has all that a sweep reads."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ray._private.ray_constants import (
    DASHBOARD_CLIENT_MAX_SIZE,
    RAY_RUNTIME_ENV_IGNORE_GITIGNORE,
    get_runtime_env_default_excludes,
)
from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

from rpg_platform.jobs.client import JobError
from rpg_platform.spec.sweep import SweepSpec
from rpg_platform.spec.task import TaskSpec

PACKAGES = ("rpg_algorithms", "rpg_platform")
_MOST_NAMED = 5


def absolute(path: str | Path) -> Path:
    """A path as Ray walks it: links inside the working directory are uploaded as what they lead to."""
    return Path(os.path.abspath(path))  # noqa: PTH100


@dataclass(frozen=True)
class Upload:
    """A runtime environment whose paths are of this machine, relative to the working directory.

    Attributes:
        runtime_env: as Ray takes it.
        source: the option that gives the same to ``ray job submit``.
    """

    runtime_env: Mapping[str, Any]
    source: tuple[str, str]

    @cached_property
    def working_dir(self) -> Path | None:
        """The folder that becomes the job's working directory; None where none of this machine does."""
        given = self.runtime_env.get("working_dir")
        return None if given is None or "://" in str(given) else absolute(given)

    @cached_property
    def files(self) -> Mapping[Path, int]:
        """Each file of the working directory that is uploaded, with its size in bytes."""
        if self.working_dir is None:
            return {}
        if not self.working_dir.is_dir():
            raise JobError(f"working_dir: {self.working_dir} is no folder")
        given = [*get_runtime_env_default_excludes(), *(self.runtime_env.get("excludes") or ())]
        return _taken(self.working_dir, given)

    @cached_property
    def modules(self) -> Mapping[Path, Mapping[Path, int]]:
        """Each entry of ``py_modules`` of this machine, with its files and their sizes."""
        found: dict[Path, Mapping[Path, int]] = {}
        for module in self.runtime_env.get("py_modules") or ():
            path = absolute(module)
            if "://" in str(module):
                continue
            if not path.exists():
                raise JobError(f"py_modules: there is no {path}: its paths are relative to the folder you are in")
            one = {path: path.stat().st_size}
            found[path] = _taken(path, self.runtime_env.get("excludes") or ()) if path.is_dir() else one
        return found

    @property
    def has_the_package(self) -> bool:
        """Whether the job takes our code along, as modules, a wheel, a requirement or a path."""
        names = {path.name.partition("-")[0] for path in self.modules}
        installed = str([self.runtime_env.get(each) for each in ("pip", "uv", "conda")]).replace("_", "-")
        in_path = "PYTHONPATH" in (self.runtime_env.get("env_vars") or {})
        wheel = "residual_policy_gradient" in names
        return set(PACKAGES) <= names or wheel or in_path or "residual-policy-gradient" in installed

    @property
    def brings_packages(self) -> bool:
        """Whether the job's packages are not those of the nodes."""
        return any(self.runtime_env.get(each) for each in ("pip", "uv", "conda", "image_uri", "container"))


def _taken(folder: Path, excludes: Any) -> dict[Path, int]:
    taken: dict[Path, int] = {}

    def take(path: Path) -> None:
        if path.is_file():
            taken[path] = path.stat().st_size

    gitignore = os.environ.get(RAY_RUNTIME_ENV_IGNORE_GITIGNORE, "0") != "1"
    _dir_travel(folder, [_get_excludes(folder, list(excludes))], take, include_gitignore=gitignore, logger=_Quiet())
    return taken


class _Quiet:
    """Ray logs each ignore file that it reads."""

    def info(self, *_: object) -> None: ...

    def error(self, *_: object) -> None: ...


def check_size(upload: Upload) -> int:
    """The bytes that a job uploads.

    Raises:
        JobError: a part of it is larger than a cluster takes, with its largest entries.
    """
    parts: list[tuple[Path | None, Mapping[Path, int]]] = [(upload.working_dir, upload.files), *upload.modules.items()]
    for folder, files in parts:
        size = sum(files.values())
        if folder is None or size < DASHBOARD_CLIENT_MAX_SIZE:
            continue
        entries: Counter[str] = Counter()
        for file, each in files.items():
            entries[file.relative_to(folder).parts[0] if file != folder else file.name] += each
        largest = ", ".join(f"{name} ({_mib(count)})" for name, count in entries.most_common(_MOST_NAMED))
        raise JobError(
            f"{folder} would be uploaded with {_mib(size)}, and a cluster takes less than "
            f"{_mib(DASHBOARD_CLIENT_MAX_SIZE)}. Largest: {largest}. Name what the sweep does not need in `excludes` "
            "of the runtime environment, or in .rayignore"
        )
    return sum(sum(files.values()) for _, files in parts)


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"


def check_files(upload: Upload, file: Path, spec: SweepSpec) -> list[str]:
    """Refuses a sweep that reads what would not be uploaded.

    Args:
        upload: of the job.
        file: the specification's.
        spec: what it says, its paths absolute.

    Returns:
        Modules of the user's that are not uploaded, because they are installed here: the cluster has to have them.

    Raises:
        JobError: names every file that the job would miss, and why.
    """
    if upload.working_dir is None:
        raise JobError(
            f"{upload.source[1]}: has no working_dir of this machine, so the job would not have {file}: add "
            "`working_dir: .`, or use `ray job submit` with a file that the cluster has"
        )
    needed: list[tuple[str, Path]] = [("the specification", absolute(file))]
    for what, bundle in (("its prior", spec.prior), ("the policy that it starts from", spec.start)):
        if bundle is not None and Path(bundle).is_absolute():
            place = Path(bundle)
            needed += [(what, each) for each in sorted(place.iterdir() if place.is_dir() else [place])]
    installed = []
    for module in own_modules(spec):
        beside = list(_files_of(module, spec))
        needed += [(f"module {module!r}", each) for each in beside]
        installed += [] if beside else [module.partition(".")[0]]
    missing = [(what, path) for what, path in needed if path.is_file() and not _is_uploaded(path, upload)]
    if missing:
        lines = [f"  {what}: {path} ({_why_not(path, upload)})" for what, path in missing]
        raise JobError("\n".join(["the job would not have what the sweep reads:", *lines]))
    return sorted(set(installed))


def own_modules(spec: SweepSpec) -> list[str]:
    """The modules that a sweep's task names as ``module:name``."""
    if not isinstance(spec.task, TaskSpec):
        return []
    task = spec.task
    functions = [each.function for each in (*task.addons.values(), task.metric) if each is not None]
    named = [task.env_id, *(name for name, _ in task.wrappers), *functions]
    return list(dict.fromkeys(name.partition(":")[0] for name in named if name and ":" in name))


def _files_of(module: str, spec: SweepSpec) -> Iterator[Path]:
    """The files of a module, of its whole package, that lie beside the specification or in the working directory."""
    assert isinstance(spec.task, TaskSpec)
    top = module.partition(".")[0]
    for folder in filter(None, (spec.task.folder, os.getcwd())):  # noqa: PTH109 - as user_code has it
        root = Path(folder, top)
        if root.with_suffix(".py").is_file():
            yield absolute(root.with_suffix(".py"))
            return
        if root.is_dir() and any(root.glob("*.py")):
            yield from (absolute(each) for each in sorted(root.rglob("*.py")))
            return


def _is_uploaded(path: Path, upload: Upload) -> bool:
    return path in upload.files or any(path in files for files in upload.modules.values())


def _why_not(path: Path, upload: Upload) -> str:
    assert upload.working_dir is not None
    if not path.is_relative_to(upload.working_dir):
        return f"outside the working directory of the job, {upload.working_dir}"
    return "left out by .gitignore, .rayignore or the runtime environment's `excludes`"


def check_storage(given: str | None) -> None:
    """Refuses results in a relative folder: it would lie in the job's own folder, which Ray removes after the job.

    Args:
        given: the sweep's storage as its file or the command line has it; None: the default.

    Raises:
        JobError: says what to give instead.
    """
    if given is not None and "://" not in given and not given.startswith(("/", "~")):
        raise JobError(
            f"storage: {given!r} is relative, and would lie in the job's own folder, which Ray removes after the job. "
            "Give a path that every node sees (~ is the home of the nodes' user) or a URI such as s3://bucket/sweeps: "
            "--storage"
        )
