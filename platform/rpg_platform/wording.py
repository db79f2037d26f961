"""How messages quote values and paths, and name the nearest valid name."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from typing import TypeAlias

Path: TypeAlias = tuple[str | int, ...]
"""A place in a specification: `("weights", "omega_prime", "grid", 1)`."""

_PLAIN_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")


def dotted(path: Path) -> str:
    """`("baselines", 0, "kl")` as `baselines[0].kl`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            shown = part if _PLAIN_KEY.fullmatch(part) else _shortened(repr(part))
            text += f".{shown}" if text else shown
    return text


def show(value: object) -> str:
    """A value as a message quotes it: in YAML's spelling, and short."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        if len(value) > 4:
            return f"a list of {len(value)}"
        return _shortened("[" + ", ".join(show(item) for item in value) + "]")
    return _shortened(repr(value))


def _shortened(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."


def suggestion(name: str, valid: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or the list of what would do when nothing is near."""
    names = list(valid)
    near = difflib.get_close_matches(name[:100], names, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    if not names:
        return ""
    return f"; expected {one_of(names)}"


def one_of(names: Iterable[str]) -> str:
    """The names, quoted: `one of 'a', 'b'`."""
    quoted = [repr(name) for name in names]
    return quoted[0] if len(quoted) == 1 else f"one of {', '.join(quoted)}"


def duration(seconds: float) -> str:
    """Seconds as ``1:05`` or ``2:01:05``; ``?`` if unknown."""
    if not math.isfinite(seconds):
        return "?"
    minutes, s = divmod(int(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{s:02d}" if hours else f"{minutes}:{s:02d}"
