"""Files that would execute something if they were loaded as their format's own library loads them."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rpg_platform.priors.imported import PriorImportError


class Payload:
    """An object whose unpickling would create a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, (f"open({str(self.marker)!r}, 'w').close()",))


def payload(marker: Path) -> bytes:
    """A pickle of nothing but a payload."""
    return pickle.dumps(Payload(marker), protocol=4)


def refusal(read: Callable[..., Any], *arguments: Any) -> str | None:
    """The message of a refusal; None where ``read`` went through."""
    try:
        read(*arguments)
    except PriorImportError as error:
        return str(error)
    return None


def acts(data: bytes, marker: Path) -> bool:
    """Whether unpickling ``data`` runs its payload: a payload that cannot do anything proves nothing."""
    marker.unlink(missing_ok=True)
    pickle.loads(data)
    happened = marker.exists()
    marker.unlink(missing_ok=True)
    return happened
