"""A sweep's gauges as Prometheus scrapes them, and the dashboard that shows them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.platform.run.many import MANY
from tests.platform.servers import free_port

from rpg_platform.run.gauges import GAUGES

ROOT = Path(__file__).resolve().parents[3]
DASHBOARD = ROOT / "deploy" / "grafana" / "sweeps.json"
PROGRAM = """
import sys, time, urllib.request
import ray
from rich.console import Console
from rpg_platform.spec.checks import expand
from rpg_platform.spec.sweep import SweepSpec
from rpg_platform.run.gauges import Gauges
from rpg_platform.run.progress import Progress
from rpg_platform.tracking.sender import TrackerState

ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, _metrics_export_port={port})
trials = expand(SweepSpec.model_validate({sweep}))
state = lambda: TrackerState(sent=7, spooled=3)
progress = Progress(trials, Console(quiet=True), state, {{}}, {{trials[-1].trial_id: 2000}})
gauges = Gauges("many")
end = time.monotonic() + 200
text = ""
while time.monotonic() < end and "ray_rpg_tracker_unreachable_s" not in text:
    gauges.show(progress.snapshot().as_json())
    time.sleep(1)
    try:
        text = urllib.request.urlopen("http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
    except OSError:
        pass
print("\\n".join(line for line in text.splitlines() if line.startswith("ray_rpg_")))
"""


@pytest.mark.slow
def test_prometheus_scrapes_what_a_sweep_is_doing() -> None:
    """In a process of its own: the Ray that other tests share exports nothing."""
    program = PROGRAM.format(port=free_port(), sweep=MANY)
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(each for each in sys.path if each)},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    found = {}
    for line in done.stdout.splitlines():
        name, tags, value = re.fullmatch(r"ray_(\w+)\{(.*)\} (\S+)", line).groups()  # type: ignore[union-attr]
        told = dict(re.findall(r'(\w+)="([^"]*)"', tags))
        assert told["sweep"] == "many"
        found[name, told.get("state") or told.get("where")] = float(value)
    assert found["rpg_trials", "pending"] == 5  # two settings and two seeds, and the prior
    assert found["rpg_trials", "failed"] == 0
    assert found["rpg_env_steps", None] == 2000
    assert found["rpg_env_steps_total", None] == 400_000
    assert (found["rpg_tracker_records", "sent"], found["rpg_tracker_records", "spooled"]) == (7, 3)
    assert found["rpg_tracker_unreachable_s", None] == 0


def test_the_dashboard_shows_every_gauge_and_no_other() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    queries += [each["query"]["query"] for each in dashboard["templating"]["list"] if each["type"] == "query"]
    named = {name for query in queries for name in re.findall(r"ray_(rpg_\w+)", query)}
    assert named == set(GAUGES)
    tags = {tag for query in queries for tag in re.findall(r"(\w+)(?:=~?|!=)\"", query)}
    tags |= {tag for query in queries for tag in re.findall(r"by \((\w+)\)", query)}
    assert tags <= {"sweep", *(tag for _, tag in GAUGES.values() if tag)}
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    for panel in dashboard["panels"]:
        assert panel["datasource"]["uid"] == "${source}"  # no machine's own
