"""The wait at a sweep's end for what MLflow has not got yet, and what is said of the rest."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from shlex import quote
from typing import TypeAlias

from rpg_platform.tracking.sender import Sender
from rpg_platform.tracking.spool import FOLDER

Tell: TypeAlias = Callable[[str], None]

FINAL_PATIENCE_S = 30.0
SILENT_PATIENCE_S = 3.0  # of which nothing is said


def wait_for_the_rest(sender: Sender, folder: Path, uri: str, tell: Tell) -> None:
    """Waits until everything is sent, or nothing has passed for a while; then says what is left.

    Args:
        sender: of the sweep's records.
        folder: of its spool.
        uri: where they go.
        tell: what is said to the user, a line at a time.
    """
    with contextlib.suppress(KeyboardInterrupt):  # the user's answer to that line
        if not sender.flush(SILENT_PATIENCE_S) and FINAL_PATIENCE_S:
            tell(
                f"Tracking: {sender.state().spooled} records still to send to {uri}; waiting until nothing has "
                f"passed for {FINAL_PATIENCE_S:g} s (Ctrl-C: not at all)"
            )
            sender.flush(FINAL_PATIENCE_S)
    state = sender.state()
    command = f"rpg track {quote(str(folder.parent if folder.name == FOLDER else folder))}"
    if state.spooled:
        why = f" ({sender.last_failure})" if sender.last_failure else ""
        tell(
            f"Tracking: {state.spooled} records are not in MLflow yet{why}. They are safe in {folder}; once "
            f"{uri} can be used again, send them with: {command}"
        )
    if state.rejected:
        tell(
            f"Tracking: MLflow did not take {state.rejected} records, each with the reason in "
            f"{folder / 'rejected.log'}; to try them again: {command}"
        )
