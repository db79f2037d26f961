"""The message at a sweep's end, to a real HTTP server."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.platform.run.brief import BRIEF

from rpg_platform.run.notice import WEBHOOK, notify
from rpg_platform.run.run import SweepOutcome, run_sweep
from rpg_platform.spec.sweep import SweepSpec
from rpg_platform.storage.sweep import Sweep


def run(storage: Path, name: str) -> tuple[SweepOutcome, str]:
    text = io.StringIO()
    sweep = Sweep.resolve(SweepSpec.model_validate(BRIEF | {"name": name, "storage": str(storage)}))
    return run_sweep(sweep, console=Console(file=text, width=200)), text.getvalue()


@contextmanager
def hook(status: int = 200) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Address of a server that answers everything with ``status``, and what it was sent."""
    got: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.headers["Content-Type"] == "application/json"
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(status)
            self.send_header("Location", "/elsewhere")
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/services/s3cr3t", got
    finally:
        server.shutdown()
        server.server_close()


def test_the_end_of_a_sweep_is_told_and_a_hook_that_fails_ends_nothing(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hook() as (address, got):
        monkeypatch.setenv(WEBHOOK, address)
        outcome, said = run(tmp_path, "told")
    [body] = got
    assert (body["sweep"], body["state"], body["folder"]) == ("told", "finished", outcome.sweep.folder.uri)
    assert (body["trials"]["total"], body["trials"]["finished"], body["failures"]) == (2, 2, [])
    assert body["best"]["setting"].startswith("greedy")
    assert body["best"]["text"] in body["text"]
    assert body["text"].startswith("told finished after ")
    assert (body["unsent"], body["env_steps"]) == (0, 1024)
    assert 0 < body["duration_s"] < 3600
    assert "Notified    127.0.0.1 of RPG_WEBHOOK_URL" in said

    with hook(302) as (address, got):
        monkeypatch.setenv(WEBHOOK, address)
        outcome, said = run(tmp_path, "moved")
    assert (outcome.failed, len(got)) == (0, 1), "an address is not followed elsewhere"
    assert "Notified    nobody: 127.0.0.1 of RPG_WEBHOOK_URL: it answered 302" in said
    assert "s3cr3t" not in said + json.dumps(body)


def test_no_message_repeats_the_address(monkeypatch: pytest.MonkeyPatch, unused_port: int) -> None:
    said: list[str] = []
    notify({}, said.append)
    assert said == [], "nobody asked for one"
    for address, why in (
        (f"http://127.0.0.1:{unused_port}/s3cr3t", "127.0.0.1 of RPG_WEBHOOK_URL: ConnectionError"),
        ("hooks.example/s3cr3t", "the address of RPG_WEBHOOK_URL: MissingSchema"),
        ("http://[s3cr3t", "the address of RPG_WEBHOOK_URL: ValueError"),
    ):
        monkeypatch.setenv(WEBHOOK, address)
        notify({}, said.append)
        assert said.pop() == f"Notified    nobody: {why}"
