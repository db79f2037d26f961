"""Standard output and error that never fail: a closed pipe or a full disk behind them must not reach a sweep.

What can't be written is dropped; whoever ends the command learns of it from ``lost``.
"""

from __future__ import annotations

import errno
import io
import os
import sys

_GONE = (errno.EPIPE, errno.EIO, errno.ENXIO, errno.EBADF)  # the reader ended, as `| head` does, or the terminal did


_data: io.TextIOWrapper | None = None  # the real standard output, where it holds data alone


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


def data_only() -> None:
    """Keeps standard output for ``data``, for ``--json``.

    Whatever else is printed, by libraries and native code too, goes to standard error.
    """
    global _data
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.flush()
        _data = io.TextIOWrapper(io.BufferedWriter(_Forgiving(os.dup(1))), encoding="utf-8")
        os.dup2(2, 1)


def data(text: str) -> None:
    """Prints what a program reads, a line."""
    print(text, file=_data or sys.stdout)


def lost() -> OSError | None:
    """Why standard output is not complete, flushed; None if it is, or if its reader wanted no more of it."""
    stream = _data or sys.stdout
    if not isinstance(stream, io.TextIOWrapper):
        return None
    stream.flush()
    raw = getattr(stream.buffer, "raw", None)
    error = raw.error if isinstance(raw, _Forgiving) else None
    return None if error is None or error.errno in _GONE else error
