"""A TCP line to a server that can be cut and mended: what a laptop's network does to a long connection."""

from __future__ import annotations

import selectors
import socket
import threading
from collections.abc import Callable
from contextlib import suppress


class Line:
    """Passes bytes between a loopback port and a target port, until ``cut`` closes all that is open.

    Args:
        target: port of the server.
        edit: changes what goes to the server.

    Attributes:
        port: where it listens.
        opened: connections so far.
    """

    def __init__(self, target: int, edit: Callable[[bytes], bytes] = lambda data: data) -> None:
        self._edit = edit
        self._target, self._open, self._is_cut = target, set[socket.socket](), False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port, self.opened = self._listener.getsockname()[1], 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._is_cut:
                client.close()
                continue
            self.opened += 1
            threading.Thread(target=self._pass, args=(client,), daemon=True).start()

    def _pass(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(("127.0.0.1", self._target))
        except OSError:
            client.close()
            return
        pair = {client: server, server: client}
        self._open |= set(pair)
        with client, server, selectors.DefaultSelector() as ready, suppress(OSError):
            for each in pair:
                ready.register(each, selectors.EVENT_READ)
            while True:
                for key, _ in ready.select():
                    data = key.fileobj.recv(65536)  # type: ignore[union-attr]
                    if not data:
                        return
                    pair[key.fileobj].sendall(self._edit(data) if key.fileobj is client else data)  # type: ignore[index]

    def cut(self) -> None:
        """Closes every connection; new ones are closed at once."""
        self._is_cut = True
        for each in list(self._open):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self._open.clear()

    def mend(self) -> None:
        """New connections pass again."""
        self._is_cut = False

    def close(self) -> None:
        """Ends it."""
        self.cut()
        self._listener.close()
