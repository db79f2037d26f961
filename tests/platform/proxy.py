"""A real HTTP proxy before a server: counts what passes, and can fail in the ways in which proxies and servers fail."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

Fate = int | Literal["pass", "lose", "swallow"]
"""What happens to a request: it passes; its answer is lost; nobody ever answers; or an HTTP status instead of it."""


@dataclass
class Proxy:
    """Listens on a loopback port and hands requests on to another one, unless ``fate`` says otherwise."""

    port: int
    target: int
    fate: Callable[[str, bytes], Fate] = lambda path, body: "pass"
    seen: list[str] = field(default_factory=list)  # "METHOD path", without the query
    lost: int = 0

    def open(self) -> None:
        proxy, self.released = self, threading.Event()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _handle(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                path = self.path.partition("?")[0]
                proxy.seen.append(f"{self.command} {path}")
                fate = proxy.fate(path, body)
                if fate == "swallow":
                    proxy.released.wait(60)
                    self.close_connection = True
                elif isinstance(fate, int):
                    self._answer(fate, b"<html>said the proxy</html>")
                else:
                    self._pass_on(body, lose=fate == "lose")

            def _pass_on(self, body: bytes, *, lose: bool) -> None:
                server = http.client.HTTPConnection("127.0.0.1", proxy.target, timeout=30)
                try:
                    headers = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "connection")}
                    server.request(self.command, self.path, body, headers)
                    answer = server.getresponse()
                    content = answer.read()
                except OSError:
                    self._answer(502, b"the server is away")
                    return
                finally:
                    server.close()
                if lose:  # the server has done it, and nobody hears of it
                    proxy.lost += 1
                    self.close_connection = True
                    return
                self._answer(answer.status, content)

            def _answer(self, status: int, content: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *arguments: object) -> None:
                pass

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _handle  # noqa: N815

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                pass

        self.server = Quiet(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        self.released.set()
        with suppress(OSError):
            self.server.shutdown()
            self.server.server_close()

    def count(self, request: str) -> int:
        """How often a request of this kind came by, e.g. ``runs/create``."""
        return sum(each.endswith(request) for each in self.seen)
