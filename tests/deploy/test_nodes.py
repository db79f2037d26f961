"""deploy/rpg-node on three hosts with the real Ray: a head, a worker, and one outside that submits."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from tests.deploy.hosts import hosts
from tests.deploy.machines import LIMIT_S, Machines
from tests.deploy.manifests import DEPLOY, page_ports
from tests.deploy.pages import blocks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(4 * LIMIT_S)]


def test_hosts_form_a_cluster_that_only_the_token_opens() -> None:
    page = blocks(DEPLOY / "README.md")
    folder = Path(tempfile.mkdtemp(prefix="rpg", dir="/tmp"))  # short: Ray's sockets lie in it
    head, worker = (line.split("#")[0].strip() for line in page["several"].splitlines())
    try:
        with hosts(3, folder) as made:
            machines = Machines(made, folder)
            code, said = machines.run(1, head)
            assert code == 2
            assert "there is no token" in said
            code, said = machines.run(1, page["token"])
            assert code == 0, said
            token = machines.home(1) / ".ray" / "auth_token"
            assert token.stat().st_mode & 0o077 == 0
            (machines.home(2) / ".ray").mkdir()
            shutil.copy(token, machines.home(2) / ".ray" / "auth_token")

            first = machines.up(1, f"{head} --node-ip-address=$HEAD --num-cpus=0")
            machines.up(2, f"{worker} --num-cpus=1")
            count = "import ray; ray.init(); print(len(ray.nodes()))"
            submit = f"ray job submit --address http://$HEAD:8265 -- python -c '{count}'"
            secret = token.read_text().strip()
            for given, status in (({}, "401"), ({"RAY_AUTH_TOKEN": "x" * 64}, "403")):
                code, said = machines.run(3, submit, **given)
                assert code != 0
                assert status in said or "token" in said.lower(), said
                assert "submitted successfully" not in said
            code, said = machines.run(3, submit, RAY_AUTH_TOKEN=secret)
            assert code == 0, said
            assert "\n2\n" in said
            logs = [path.read_text() for path in folder.glob("log*")]
            assert not any(secret in each for each in logs)

            # MLflow, as the page starts it, answers another host by the name that it was told, and by no other.
            machines.start(2, page["mlflow"], cwd=folder, HOST=made.address(2))
            address = f"http://{made.address(2)}:5000/api/2.0/mlflow/experiments/search?max_results=1"
            ask = f"curl -s -o /dev/null -w '%{{http_code}}' '{address}'"
            code, said = machines.run(1, f'until [ "$({ask})" = 200 ]; do sleep 1; done')
            assert code == 0, said
            code, said = machines.run(1, f"{ask} -H 'Host: other:5000'")
            assert said == "403"

            # Only the ports of the page are open to the other hosts.
            listening = subprocess.run(
                [*made.command(1), "ss", "-Hltn"], capture_output=True, text=True, timeout=60, check=True
            ).stdout.split("\n")
            local = [line.split()[3] for line in listening if line.strip()]
            ports = {int(each.rpartition(":")[2]) for each in local if not each.startswith(("127.", "[::1]"))}
            assert ports <= page_ports()
            assert first.poll() is None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
