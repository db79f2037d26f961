"""deploy/kubernetes: every object fits its published schema, and what it refers to is there."""

from __future__ import annotations

import copy
import functools
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import ray
import yaml
from tests.deploy.manifests import DEPLOY, SCHEMAS, Manifest, closed, kustomize, node_ports, secret_names
from tests.deploy.pages import Shell, blocks

from rpg_platform.bundles import SHIPPED
from rpg_platform.spec.checks import check
from rpg_platform.spec.yaml_file import load_spec

FOLDER = DEPLOY / "kubernetes"
OVERLAYS = sorted(path.name for path in (FOLDER / "overlays").iterdir())
each_overlay = pytest.mark.parametrize("overlay", OVERLAYS)


@functools.cache
def _made(overlay: str) -> list[Manifest]:
    return kustomize(FOLDER / "overlays" / overlay)


def made(overlay: str) -> list[Manifest]:
    return copy.deepcopy(_made(overlay))


def ray_specs(overlay: str) -> list[dict[str, Any]]:
    """The clusters' specifications."""
    found = [each["spec"] for each in made(overlay) if each["apiVersion"] == "ray.io/v1"]
    return [spec.get("rayClusterSpec", spec) for spec in found]


def walk(value: Any) -> Iterator[dict[str, Any]]:
    """Every mapping in a document."""
    if isinstance(value, dict):
        yield value
        for each in value.values():
            yield from walk(each)
    elif isinstance(value, list):
        for each in value:
            yield from walk(each)


def pods(document: Manifest) -> list[dict[str, Any]]:
    """Templates of pods: `metadata` and `spec`."""
    return [each for each in walk(document) if "containers" in each.get("spec", {})]


def labels_of(pod: dict[str, Any]) -> dict[str, str]:
    found: dict[str, str] = pod.get("metadata", {}).get("labels", {})
    return found


def faults(document: Manifest) -> list[str]:
    """What a published schema says against an object."""
    if document["apiVersion"] == "ray.io/v1":
        schema = json.loads((SCHEMAS / f"{document['kind'].lower()}.v1.schema.json").read_text())
        errors = jsonschema.Draft7Validator(closed(schema)).iter_errors(document)
        return [f"{error.json_path}: {error.message}" for error in errors]
    try:
        kubernetes_validate.validate(document, "1.34", strict=True)
    except kubernetes_validate.ValidationError as error:
        return [str(error)]
    return []


@each_overlay
def test_every_object_fits_its_schema(overlay: str) -> None:
    assert {f"{each['kind']}: {fault}" for each in made(overlay) for fault in faults(each)} == set()


def test_the_schemas_refuse_what_is_misspelt() -> None:
    for document in made("s3"):
        wrong = copy.deepcopy(document) | {"speck": {}}
        assert faults(wrong), document["kind"]
    (job,) = [each for each in made("s3") if each["kind"] == "RayJob"]
    job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["terminationGracePeriod"] = 60
    job["spec"]["backoffLimit"] = "five"
    assert len(faults(job)) == 2


@each_overlay
def test_kubectl_makes_of_it_what_these_tests_read(overlay: str) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl")
    command = ["kubectl", "kustomize", str(FOLDER / "overlays" / overlay)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr

    def by_name(documents: list[Manifest]) -> dict[tuple[str, str], Manifest]:
        return {(each["kind"], each["metadata"]["name"]): each for each in documents}

    assert by_name(list(yaml.safe_load_all(done.stdout))) == by_name(made(overlay))


@each_overlay
def test_what_an_object_refers_to_is_there(overlay: str) -> None:
    documents = made(overlay)
    named = {(each["kind"], each["metadata"]["name"]): each for each in documents}
    secrets = {"rpg": set(secret_names()) - {"RAY_AUTH_TOKEN"}, "rpg-ray": {"auth_token"}}  # as deploy/README.md makes
    for document in documents:
        for each in walk(document):
            if "secretKeyRef" in each:
                assert each["secretKeyRef"]["key"] in secrets[each["secretKeyRef"]["name"]]
            if "configMapRef" in each:
                assert ("ConfigMap", each["configMapRef"]["name"]) in named
            if "persistentVolumeClaim" in each:
                assert ("PersistentVolumeClaim", each["persistentVolumeClaim"]["claimName"]) in named
            if isinstance(each.get("configMap"), dict):
                assert ("ConfigMap", each["configMap"]["name"]) in named
            if "serviceName" in each:
                assert ("Service", each["serviceName"]) in named
            assert each.get("secretName", "rpg-ray") in secrets
        for pod in pods(document):
            claims = document["spec"].get("volumeClaimTemplates", [])
            volumes = {each["name"] for each in pod["spec"].get("volumes", [])} | {
                c["metadata"]["name"] for c in claims
            }
            mounts = {m["name"] for c in pod["spec"]["containers"] for m in c.get("volumeMounts", [])}
            assert mounts == volumes, document["metadata"]["name"]
    for service in (each for each in documents if each["kind"] == "Service"):
        selector = service["spec"]["selector"].items()
        hits = [pod for each in documents for pod in pods(each) if selector <= labels_of(pod).items()]
        (container,) = [c for pod in hits for c in pod["spec"]["containers"]]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert [ports[each["targetPort"]] for each in service["spec"]["ports"]] == [
            each["port"] for each in service["spec"]["ports"]
        ]
    for each in documents:
        if each["kind"] in ("Deployment", "StatefulSet"):
            labels = each["spec"]["template"]["metadata"]["labels"]
            assert each["spec"]["selector"]["matchLabels"].items() <= labels.items()


@each_overlay
def test_policies_let_through_what_is_needed_and_nothing_else(overlay: str) -> None:
    documents = made(overlay)
    policies = {each["metadata"]["name"]: each["spec"] for each in documents if each["kind"] == "NetworkPolicy"}
    assert policies["nothing-by-default"] == {"podSelector": {}, "policyTypes": ["Ingress"]}
    labels = [labels_of(pod) for each in documents for pod in pods(each)]
    labels.append({"ray.io/is-ray-node": "yes"})  # KubeRay's own, on every pod of a cluster
    for name in ("mlflow", "postgres"):
        spec = policies[name]
        assert spec["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": name}
        (rule,) = spec["ingress"]
        (service,) = [e for e in documents if e["kind"] == "Service" and e["metadata"]["name"] == name]
        assert [each["port"] for each in rule["ports"]] == [each["port"] for each in service["spec"]["ports"]]
        for peer in rule["from"]:
            assert any(peer["podSelector"]["matchLabels"].items() <= each.items() for each in labels), peer
    allowed = set()
    for rule in policies["ray"]["ingress"]:
        for port in rule["ports"]:
            allowed |= set(range(port["port"], port.get("endPort", port["port"]) + 1))
    ports = {key: int(value) for key, value in node_ports().items()}
    workers = set(range(ports.pop("min-worker-port"), ports.pop("max-worker-port") + 1))
    assert allowed == workers | set(ports.values())


@each_overlay
def test_nobody_is_root_and_everybody_gets_time_to_stop(overlay: str) -> None:
    for document in made(overlay):
        for pod in pods(document):
            spec = pod["spec"]
            assert spec["securityContext"]["runAsNonRoot"] is True
            assert spec["securityContext"]["runAsUser"] > 0
            assert spec.get("terminationGracePeriodSeconds", 60) >= 60 or "submitter" in labels_of(pod).values()
            for container in spec["containers"]:
                context = container["securityContext"] | {
                    "seccompProfile": container["securityContext"].get(
                        "seccompProfile", spec["securityContext"].get("seccompProfile")
                    )
                }
                assert context["allowPrivilegeEscalation"] is False
                assert context["capabilities"] == {"drop": ["ALL"]}
                assert context["seccompProfile"] == {"type": "RuntimeDefault"}
                assert {"requests", "limits"} <= set(container["resources"])
                assert ":" in container["image"]
                assert not container["image"].endswith(":latest")
    for spec in ray_specs(overlay):
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            assert group["template"]["spec"]["terminationGracePeriodSeconds"] >= 60


@each_overlay
def test_a_cluster_asks_for_a_token_and_keeps_to_the_ports(overlay: str) -> None:
    ports = node_ports()
    only_head = {key: ports.pop(key) for key in ("port", "dashboard-port", "ray-client-server-port")}
    for spec in ray_specs(overlay):
        assert spec["authOptions"] == {"mode": "token", "secretName": "rpg-ray"}
        assert spec["rayVersion"] == ray.__version__
        head = spec["headGroupSpec"]
        assert head["rayStartParams"] == ports | only_head | {"num-cpus": "0", "dashboard-host": "0.0.0.0"}
        for group in spec["workerGroupSpecs"]:
            assert group["rayStartParams"] == ports
            assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        (container,) = head["template"]["spec"]["containers"]
        environment = {each["name"]: each.get("value") for each in container["env"]}
        stop_wait = float(environment["RAY_JOB_STOP_WAIT_TIME_S"])
        assert 60 <= stop_wait < head["template"]["spec"]["terminationGracePeriodSeconds"]


@pytest.mark.parametrize("overlay", [each for each in OVERLAYS if each != "cluster"])
def test_a_sweep_that_lost_its_cluster_goes_on(overlay: str) -> None:
    (job,) = [each["spec"] for each in made(overlay) if each["kind"] == "RayJob"]
    assert job["entrypoint"] == "rpg sweep /sweeps/sweep.yaml --resume-or-start"
    assert job["backoffLimit"] > 0  # a new cluster, and the same command
    assert job["shutdownAfterJobFinishes"] is True
    assert job["ttlSecondsAfterFinished"] > 0
    assert job["activeDeadlineSeconds"] > 0
    (sweeps,) = [each for each in made(overlay) if each["metadata"]["name"] == "rpg-sweeps"]
    (container,) = job["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
    mounts = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
    assert f"{mounts['sweeps']}/{next(iter(sweeps['data']))}" in job["entrypoint"]


@pytest.mark.parametrize("overlay", ["pvc", "s3"])
def test_the_sweeps_of_the_overlays_are_sweeps(overlay: str) -> None:
    spec = load_spec(FOLDER / "overlays" / overlay / "sweep.yaml")
    assert spec.tracking.uri == "http://mlflow:5000"
    assert str(spec.storage).startswith("s3://" if overlay == "s3" else "/results/")
    properties = (FOLDER / "overlays" / overlay / "storage.properties").read_text()
    assert f"MLFLOW_ARTIFACTS_DESTINATION={str(spec.storage).rpartition('/')[0]}/mlflow" in properties


def test_a_pvc_is_what_every_node_mounts() -> None:
    (spec,) = ray_specs("pvc")
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        volumes = {each["name"]: each for each in group["template"]["spec"]["volumes"]}
        assert volumes["results"]["persistentVolumeClaim"] == {"claimName": "results"}


def test_kueue_admits_a_fixed_size() -> None:
    (job,) = [each for each in made("kueue") if each["kind"] == "RayJob"]
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "sweeps"
    assert job["spec"]["suspend"] is True
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"] is False
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] == group["replicas"] == group["maxReplicas"]


def test_the_cluster_that_stays_is_the_cluster_of_a_sweep() -> None:
    (job,), (cluster,) = (kustomize(FOLDER / name) for name in ("sweep", "cluster"))
    assert cluster["spec"] == job["spec"]["rayClusterSpec"]
    assert ray_specs("cluster") == ray_specs("s3")
    assert cluster["spec"]["enableInTreeAutoscaling"] is True


def test_the_commands_of_the_page(tmp_path: Path) -> None:
    """Run as printed, with a fake `kubectl`, which records what it is asked and keeps the files that it is given."""
    page = blocks(FOLDER / "README.md")
    shell = Shell(tmp_path)
    shell.fake(
        "kubectl", 'for each in "$@"; do case $each in --from-env-file=*) cat "${each#*=}" >> given;; esac; done'
    )
    lines = [f"{name}={number}" for number, name in enumerate(secret_names())]
    (shell.folder / "deploy" / ".env").write_text("\n".join(["# a remark", *lines]) + "\n")
    shell.run(page.pop("secrets"))
    given = [line for line in (shell.folder / "given").read_text().splitlines() if "=" in line]
    assert given == [line.replace("RAY_AUTH_TOKEN", "auth_token") for line in [*lines[1:], lines[0]]]
    asked = shell.asked("kubectl")
    assert asked[0][:2] == ["apply", "--filename"]
    assert (FOLDER.parents[1] / asked[0][2]).is_file()
    assert [each[:6] for each in asked[1:]] == [
        ["--namespace", "rpg", "create", "secret", "generic", name] for name in ("rpg", "rpg-ray")
    ]
    shell.fake("kubectl", 'case "$*" in *"get pod"*) echo pod/head-1;; *"get rayjob"*) echo rayjob-2;; esac')
    shell.run("".join(page.pop(name) for name in ("start", "stop", "delete", "look")))
    start, wait, logs, pod, _, stop, delete, look = shell.asked("kubectl")[3:]
    assert start == ["apply", "--kustomize", "deploy/kubernetes/overlays/s3"]
    names = {(each["kind"].lower(), each["metadata"]["name"]) for each in made("s3")}
    assert delete[-1] == wait[3].split("/")[1] == "sweep"
    assert ("rayjob", "sweep") in names
    (job,) = [each["spec"] for each in made("s3") if each["kind"] == "RayJob"]
    key, _, value = logs[-1].removeprefix("--selector=").partition("=")
    assert job["submitterPodTemplate"]["metadata"]["labels"][key] == value
    assert "--selector=ray.io/node-type=head" in pod  # KubeRay's label
    container = job["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["name"]
    assert stop[2:5] == ["exec", "pod/head-1", f"--container={container}"]
    assert stop[-1] == "rayjob-2"
    assert look[-2:] == ["service/mlflow", "5000:5000"]
    assert not page


def test_a_prior_beside_the_sweep_is_found(tmp_path: Path) -> None:
    """As the page says: the files of a ConfigMap lie flat beside the sweep."""
    text = (FOLDER / "overlays" / "pvc" / "sweep.yaml").read_text()
    (tmp_path / "sweep.yaml").write_text(text.replace("prior: halfcheetah-spg", "prior: ./"))
    [page_line] = re.findall(r"files: \[sweep.yaml, .*?\]", (FOLDER / "README.md").read_text(), re.DOTALL)
    for name, source in re.findall(r"(\S+)=prior/([^,\]]+)", page_line):
        shutil.copy(SHIPPED["halfcheetah-spg"] / source, tmp_path / name)
    spec = load_spec(tmp_path / "sweep.yaml")
    assert check(spec) == []
