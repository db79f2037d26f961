"""Judges the errors of requests to MLflow, is the request at fault or the server; says them; keeps ours from Tune."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any, ParamSpec

import requests
from mlflow.exceptions import MlflowException

from rpg_platform.spec.logins import without_login

P = ParamSpec("P")
_STATUS = re.compile(r"failed with error code (\d{3}) ")


def is_refusal(error: Exception) -> bool:
    """Says whether the request is at fault: MLflow would answer it the same way for ever."""
    if isinstance(error, MlflowException):
        status: int = error.get_http_status_code()  # type: ignore[no-untyped-call]
        said = _STATUS.search(str(error))  # a proxy's own answer, which MLflow takes for a 500
        status = int(said[1]) if said else status
    elif isinstance(error, requests.RequestException):
        status = 500 if error.response is None else error.response.status_code
    else:
        return isinstance(error, (FileNotFoundError, TypeError, ValueError, KeyError, AttributeError))
    return 400 <= status < 500 and status not in (401, 403, 408, 409, 425, 429)


def says_gone(error: Exception) -> bool:
    """Says whether MLflow itself, and no proxy before it, answers that a run does not exist or has been deleted."""
    codes = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "INVALID_STATE")
    return isinstance(error, MlflowException) and error.error_code in codes and not _STATUS.search(str(error))


def short(error: BaseException) -> str:
    """Puts an error into one line without logins."""
    lines = str(error).strip().splitlines() or [""]
    return without_login(f"{type(error).__name__}: {lines[0][:300]}")


def never_raises(method: Callable[P, None]) -> Callable[P, None]:
    """For Tune's hooks: Tune fails a trial, or the sweep, for an exception in a callback; ``defect`` is told."""

    @functools.wraps(method)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            method(*args, **kwargs)
        except Exception as error:
            of: Any = args[0]
            of.defect(method.__name__, error)

    return guarded
