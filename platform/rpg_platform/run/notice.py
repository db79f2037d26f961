"""A word to somebody else at a sweep's end: a message to a webhook, whose address is a secret."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import requests

from rpg_platform.run.status import words_of
from rpg_platform.wording import duration

if TYPE_CHECKING:
    from rpg_platform.results.endings import State
    from rpg_platform.run.progress import Snapshot
    from rpg_platform.storage.sweep_folder import SweepFolder
    from rpg_platform.tracking.tracker import MlflowTracker

WEBHOOK = "RPG_WEBHOOK_URL"
"""Environment variable: where to. Whoever knows such an address can write there, so no file and no message has it."""
_LIMIT_S = 10.0


def notify(body: Mapping[str, Any], tell: Callable[[str], None]) -> None:
    """Sends a message as JSON to the address in ``RPG_WEBHOOK_URL``, if there is one; says whether it arrived.

    Args:
        body: the message; chat services show its ``text``.
        tell: called with a line for the user; nothing that goes wrong is raised.
    """
    address = os.environ.get(WEBHOOK)
    if not address:
        return
    host: str | None = None
    try:
        host = urlsplit(address).hostname
        answer = requests.post(address, json=body, timeout=_LIMIT_S, allow_redirects=False)
        problem = None if 200 <= answer.status_code < 300 else f"it answered {answer.status_code}"
    except (requests.RequestException, ValueError) as error:  # whose own words repeat the address
        problem = type(error).__name__
    where = f"{host or 'the address'} of {WEBHOOK}"
    tell(f"Notified    {where}" if problem is None else f"Notified    nobody: {where}: {problem}")


def message(
    folder: SweepFolder, state: State, now: Snapshot, tracker: MlflowTracker, duration_s: float
) -> dict[str, Any]:
    """What is said of a sweep that has ended.

    Args:
        folder: the sweep's.
        state: ``finished``, ``stopped`` or ``failed``.
        now: its progress at its end.
        tracker: after its ``finish``.
        duration_s: seconds that this driver ran.
    """
    parts = [f"{folder.name} {state} after {duration(duration_s)}: {words_of(now.states)}"]
    parts += [f"best {now.best}"] if now.best is not None else []
    parts += [f"{tracker.unsent} records are not in MLflow"] if tracker.unsent else []
    content = now.as_json()
    return {
        "text": "; ".join(parts),
        "sweep": folder.name,
        "state": state,
        "folder": folder.uri,
        "mlflow": tracker.parent_url,
        "duration_s": round(duration_s, 1),
        "unsent": tracker.unsent,
        **{key: content[key] for key in ("trials", "env_steps", "failures", "best")},
    }
