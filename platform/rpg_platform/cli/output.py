"""Standard output and error that never fail: a closed pipe or a full disk behind them must not reach a sweep.

What can't be written is dropped; whoever ends the command learns of it from ``lost``.
"""

from __future__ import annotations

import errno
import io
import os
import sys

_GONE = (errno.EPIPE, errno.EIO, errno.ENXIO, errno.EBADF)  # the reader ended, as `| head` does, or the terminal did


class _Forgiving(io.RawIOBase):
    """A file descriptor that takes every write."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        try:
            return os.isatty(self._descriptor)
        except OSError:
            return False

    def write(self, data: object, /) -> int:
        view = memoryview(data)  # type: ignore[arg-type]
        try:
            return os.write(self._descriptor, view)
        except OSError as error:
            self.error = self.error or error
            return view.nbytes


def guard() -> None:
    """Puts streams that never fail in the place of standard output and error; characters that an encoding lacks: ?."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, io.TextIOWrapper):  # closed, or somebody else's
            continue
        raw = _Forgiving(stream.fileno())
        interactive = raw.isatty() or name == "stderr"
        text = io.TextIOWrapper(
            io.BufferedWriter(raw), encoding=stream.encoding, errors="replace", line_buffering=interactive
        )
        setattr(sys, name, text)


def lost() -> OSError | None:
    """Why standard output is not complete, flushed; None if it is, or if its reader wanted no more of it."""
    if not isinstance(sys.stdout, io.TextIOWrapper):
        return None
    sys.stdout.flush()
    raw = getattr(sys.stdout.buffer, "raw", None)
    error = raw.error if isinstance(raw, _Forgiving) else None
    return None if error is None or error.errno in _GONE else error
