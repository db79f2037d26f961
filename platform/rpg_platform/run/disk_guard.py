"""Stopping a sweep in order before one of the driver's disks is full."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ray.tune import Callback

from rpg_platform.trial.room import by_disk, free_bytes, free_text, size_text

logger = logging.getLogger(__name__)
CHECK_EVERY_S = 2.0


class DiskGuard(Callback):
    """Stops a sweep, every running trial saved, while the driver's disks still have room for that.

    Args:
        needs: folders, each with the bytes that must stay free in it.
        stop: asks the sweep to end.
        tell: called with a line for the user.
        advice: what to do once there is room again.
    """

    def __init__(
        self,
        needs: Sequence[tuple[str | Path, int]],
        stop: Callable[[], None],
        tell: Callable[[str], None],
        advice: str,
    ) -> None:
        self._needs, self._stop, self._tell, self._advice = needs, stop, tell, advice
        self._checked = -math.inf
        self.reason: str | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks; what belongs to this process stays here."""
        return {"reason": self.reason}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__((), lambda: None, logger.warning, "")  # type: ignore[misc]
        self.reason = state["reason"]

    def shortage(self) -> str | None:
        """Says which folder is too full, and by how much; None where all have room."""
        for folder, needed in by_disk(self._needs):
            if free_bytes(folder) < needed:
                detail = f"{size_text(needed)} are needed to save the running trials"
                return f"{folder} is nearly full: {free_text(folder)}, and {detail}"
        return None

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Looks every few seconds."""
        now = time.monotonic()
        if self.reason is not None or now - self._checked < CHECK_EVERY_S:
            return
        self._checked = now
        try:
            self.reason = self.shortage()
        except OSError as error:  # a network file system that is away for a moment
            logger.debug("disk space could not be read: %s", error)
        if self.reason is not None:
            self._tell(f"{self.reason}. The sweep stops and keeps what it has. {self._advice}")
            self._stop()
