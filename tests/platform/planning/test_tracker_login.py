"""A server that does not take the driver's login is told from one that is away, before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.platform.proxy import Proxy
from typer.testing import CliRunner

from rpg_platform.cli.main import app

SWEEP = """
task: halfcheetah-foot-angle
prior: halfcheetah-spg
algorithm: rpg
weights: {{omega_prime: 0.1, alpha_hat: 0.02}}
budget: {{env_steps: 4_096}}
training: {{critic_warmup_iterations: 0}}
tracking: {{uri: "http://somebody:secret@127.0.0.1:{port}"}}
"""


@pytest.mark.parametrize("status", [401, 403])
def test_a_login_that_mlflow_does_not_take_starts_nothing(
    local_ray: None, tmp_path: Path, unused_port: int, status: int
) -> None:
    server = Proxy(unused_port, target=0, fate=lambda path, body: status)
    server.open()
    (tmp_path / "locked.yaml").write_text(SWEEP.format(port=unused_port))
    try:
        command = ["sweep", str(tmp_path / "locked.yaml"), "--storage", str(tmp_path / "results")]
        ended = CliRunner().invoke(app, command, env={"COLUMNS": "400"})
    finally:
        server.close()
    assert ended.exit_code == 2
    assert f"MLflow at http://127.0.0.1:{unused_port} answers {status}: <html>said the proxy</html>" in ended.stderr
    assert "needs MLFLOW_TRACKING_USERNAME" in ended.stderr
    assert f"--allowed-hosts needs 127.0.0.1:{unused_port}" in ended.stderr
    assert "secret" not in ended.output
    assert not list((tmp_path / "results").glob("*"))
    assert server.seen == ["GET /api/2.0/mlflow/experiments/search"]
