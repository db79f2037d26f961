"""Log lines as data: ``RPG_LOG_FORMAT=json`` makes each line of driver and trials a JSON object that names both.

Ray formats the lines of all processes of a job (``ray.LoggingConfig``) and adds its own ids; this adds the sweep's.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import ray
    from rich.console import Console

LOG_FORMAT = "RPG_LOG_FORMAT"
"""Environment variable: ``text`` (default) or ``json``."""
_FORMATS = ("text", "json")
_about: dict[str, Any] = {}
logger = logging.getLogger(__name__)


def as_json() -> bool:
    """Whether log lines are JSON.

    Raises:
        ValueError: ``RPG_LOG_FORMAT`` is neither.
    """
    text = os.environ.get(LOG_FORMAT) or "text"
    if text not in _FORMATS:
        raise ValueError(f"{LOG_FORMAT}={text!r}: expected text or json")
    return text == "json"


def for_ray() -> ray.LoggingConfig | None:
    """How Ray is to format the lines of this job's processes; None: as it does by itself."""
    if not as_json():
        return None
    import ray

    return ray.LoggingConfig(encoding="JSON", log_level="INFO")


def about(**fields: Any) -> None:
    """Gives every later line of this process these fields, such as ``sweep``, ``trial`` and ``seed``."""
    _about.clear()
    _about.update(fields)
    before = logging.getLogRecordFactory()  # Ray's, which adds a time
    if not isinstance(before, _WithFields):
        logging.setLogRecordFactory(_WithFields(before))


class _WithFields:
    def __init__(self, make: Callable[..., logging.LogRecord]) -> None:
        self._make = make

    def __call__(self, *arguments: Any, **more: Any) -> logging.LogRecord:
        record = self._make(*arguments, **more)
        record.__dict__.update(_about)
        return record


def teller(console: Console) -> Callable[..., None]:
    """What the driver tells its lines to: the console as they are, or the log.

    The function takes a line and, for the log, what it is about: ``trial`` and ``seed``.
    """

    def print_it(line: str, **fields: Any) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    def log_it(line: str, **fields: Any) -> None:
        logger.info(line, extra=fields)

    return log_it if as_json() else print_it
