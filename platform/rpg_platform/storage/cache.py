"""Where this machine keeps what it can make again: measured rates, an empty MLflow store."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """``~/.cache/rpg/NAME``, or below ``$XDG_CACHE_HOME``; it may be deleted at any time."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "rpg" / name
