"""Readers of deploy/ for its tests: Kubernetes manifests as kustomize makes them, ports, the names of secrets."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
SCHEMAS = ROOT / "tests" / "schemas"
Manifest = dict[str, Any]


def secret_names() -> list[str]:
    """The variables of deploy/.env.example."""
    lines = (DEPLOY / ".env.example").read_text().splitlines()
    return [line.removesuffix("=") for line in lines if not line.startswith("#")]


def node_ports() -> dict[str, str]:
    """Option of `ray start` → port, as deploy/rpg-node gives them."""
    return dict(re.findall(r"--([a-z-]*port)=(\d+)", (DEPLOY / "rpg-node").read_text()))


def page_ports() -> set[int]:
    """Every port in the table of deploy/README.md."""
    _, _, table = (DEPLOY / "README.md").read_text().partition("| port | of |")
    rows = re.findall(r"^\| ([\d, to]+) \|", table.partition("\n\n")[0], re.MULTILINE)
    spans = [span.split(" to ") for row in rows for span in row.split(", ")]
    return {port for span in spans for port in range(int(span[0]), int(span[-1]) + 1)}


def kustomize(folder: Path) -> list[Manifest]:
    """What `kubectl kustomize` makes of a folder: of its features those that deploy/ uses; any other is an error."""
    file = yaml.safe_load((folder / "kustomization.yaml").read_text())
    known = {"apiVersion", "kind", "namespace", "resources", "configMapGenerator", "patches"}
    assert set(file) <= known, f"{folder}: not read here: {set(file) - known}"
    found: list[Manifest] = []
    for name in file["resources"]:
        path = folder / name
        if path.is_dir():
            found += kustomize(path)
        else:
            found += [copy.deepcopy(each) for each in yaml.safe_load_all(path.read_text())]
    found += [_config_map(folder, each) for each in file.get("configMapGenerator", [])]
    for patch in file.get("patches", []):
        target = patch["target"]
        (hit,) = [each for each in found if (each["kind"], each["metadata"]["name"]) == tuple(target.values())]
        if "path" in patch:
            for operation in yaml.safe_load((folder / patch["path"]).read_text()):
                _apply(hit, operation)
        else:
            assert yaml.safe_load(patch["patch"])["$patch"] == "delete"
            found.remove(hit)
    for each in found:
        if "namespace" in file and each["kind"] != "Namespace":
            each["metadata"]["namespace"] = file["namespace"]
    return found


def _config_map(folder: Path, generator: dict[str, Any]) -> Manifest:
    assert generator["options"] == {"disableNameSuffixHash": True}
    data = {Path(name).name: (folder / name).read_text() for name in generator.get("files", [])}
    for name in generator.get("envs", []):
        lines = (folder / name).read_text().splitlines()
        data |= dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": generator["name"]}, "data": data}


def _apply(document: Any, operation: dict[str, Any]) -> None:
    """One operation of a JSON patch (RFC 6902): add, replace or remove."""
    *way, last = (part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:])
    for part in way:
        document = document[int(part) if isinstance(document, list) else part]
    kind, value = operation["op"], copy.deepcopy(operation.get("value"))
    if isinstance(document, list):
        if kind == "add":
            document.insert(len(document) if last == "-" else int(last), value)
            return
        key: int | str = int(last)
        assert int(last) < len(document), operation
    else:
        key = last
        assert kind == "add" or key in document, operation
    if kind == "remove":
        del document[key]
    else:
        assert kind in ("add", "replace")
        document[key] = value


def closed(schema: Any) -> Any:
    """A schema of Kubernetes that refuses unknown fields, which a cluster drops in silence."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: closed(value) for key, value in schema.items()}
    if isinstance(made.get("properties"), dict) and made.get("type") == "object":
        made.setdefault("additionalProperties", False)
    return made
