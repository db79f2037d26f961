"""Whether a cluster can run what is submitted: Python and packages on its head, modules, and room for a trial."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from ray.util.state import list_nodes
from ray.util.state.exception import RayStateApiException

import rpg_platform
from rpg_platform.jobs.client import ADDRESS, Client, JobError
from rpg_platform.jobs.question import MARK, ask
from rpg_platform.jobs.upload import Upload
from rpg_platform.tracking.variables import variables

OURS = "residual-policy-gradient"
_FIRST_NODE_S, _MOST_NODES = 30.0, 10_000
_LOCK = "requirements/runtime.lock"
_PROGRAM = f"""
import importlib.metadata, importlib.util, json, platform, sys
def version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
names, modules = json.loads(sys.argv[1])
missing = [each for each in modules if importlib.util.find_spec(each) is None]
found = dict(python=platform.python_version(), executable=sys.executable, missing=missing)
print({MARK!r} + json.dumps(dict(found, versions=dict((name, version(name)) for name in names))))
"""


def check_versions(client: Client, upload: Upload, modules: Sequence[str]) -> str:
    """Refuses a cluster whose head has another Python, or lacks a package, a version or a module that the job needs.

    Ray itself holds the workers to the Python and the Ray of the head.

    Args:
        client: of the cluster.
        upload: of the job; packages that its runtime environment brings are not compared.
        modules: what the sweep imports that is not uploaded.

    Returns:
        A line that says what runs there.

    Raises:
        JobError: names everything that does not fit, with what is expected.
    """
    python, needed = _needed()
    found = ask(client, _PROGRAM, json.dumps([[*needed, OURS], list(modules)]))
    where = f"{client.get_address()} ({found['executable']})"
    if upload.brings_packages:
        return f"Python {found['python']} on the head; packages are those of the job's own environment"
    wrong = []
    if found["python"] not in python:
        wrong.append(f"Python {found['python']}, expected {python}")
    wrong += _unfit(found["versions"], needed)
    if not upload.has_the_package and found["versions"][OURS] != rpg_platform.__version__:
        there = found["versions"][OURS] or "none"
        wrong.append(
            f"{OURS} {there}, expected {rpg_platform.__version__}, which runs here: install it there, or let the job "
            "take it along (py_modules, see deploy/runtime_env.yaml)"
        )
    wrong += [
        f"no module {name!r}, which the sweep imports and the job does not take along" for name in found["missing"]
    ]
    if wrong:
        lines = "\n".join(f"  {each}" for each in wrong)
        raise JobError(f"{where} can't run this sweep:\n{lines}\nIts nodes need what {_LOCK} lists")
    return f"Python {found['python']}, Ray {found['versions'].get('ray')}, {len(needed)} packages fit"


def _needed() -> tuple[SpecifierSet, Mapping[str, SpecifierSet]]:
    """The Pythons and the packages that our own metadata asks for."""
    try:
        about = metadata.metadata(OURS)
        needs = [Requirement(each) for each in metadata.requires(OURS) or ()]
    except metadata.PackageNotFoundError as error:
        raise JobError(f"{OURS} is not installed here, so nobody can say what the cluster needs: make setup") from error
    plain = {each.name: each.specifier for each in needs if each.marker is None or each.marker.evaluate({"extra": ""})}
    return SpecifierSet(about["Requires-Python"]), plain


def _unfit(versions: Mapping[str, str | None], needed: Mapping[str, SpecifierSet]) -> list[str]:
    wrong = []
    for name, expected in needed.items():
        there = versions[name]
        if there is None:
            wrong.append(f"no {name}, expected {name} {expected}")
        elif not expected.contains(there, prereleases=True):
            wrong.append(f"{name} {there}, expected {expected}")
    return wrong


def nodes_at(client: Client) -> list[dict[str, float]]:
    """Resources of each live node of a cluster; one that has just started tells of its first after a moment.

    Raises:
        JobError: it has none.
    """
    deadline, address = time.monotonic() + _FIRST_NODE_S, client.get_address()
    while True:
        nodes, why = [], ""
        try:
            with variables({ADDRESS: address}):  # which Ray lets go before the argument
                found: list[Any] = list_nodes(address=address, detail=True, limit=_MOST_NODES)
            nodes = [dict(node.resources_total or {}) for node in found if node.state == "ALIVE"]
        except (RayStateApiException, RuntimeError, OSError) as error:
            why = f" ({' '.join(str(error).split())[:200]})"
        if any(nodes):
            return nodes
        if time.monotonic() > deadline:
            raise JobError(f"{address} tells of no node that is alive{why}")
        time.sleep(0.5)
