"""Talking to a cluster's dashboard, which takes jobs: Ray's client with time limits and errors in plain words."""

from __future__ import annotations

import logging
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from rpg_platform.spec.logins import without_login
from rpg_platform.tracking.variables import variables

ADDRESS = "RAY_API_SERVER_ADDRESS"
_CHATTER = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
_PLACES = (
    "The cluster's token belongs in ~/.ray/auth_token, or in the file that RAY_AUTH_TOKEN_PATH names, or in "
    "RAY_AUTH_TOKEN"
)
_CONNECT_S, _READ_S, _SEND_S = 10.0, 30.0, 300.0


class JobError(ValueError):
    """What a cluster does not let us do, or a job that is not there; the message says what to do."""


class NoAnswerError(JobError):
    """The cluster does not answer; it may again."""


class Client(JobSubmissionClient):
    """Ray's own client, whose requests would wait for ever.

    Raises:
        NoAnswerError: nobody answers at its address.
        JobError: the cluster asks for another token, or has no such thing.
    """

    def _do_request(self, method: str, endpoint: str, **more: Any) -> Any:
        more.setdefault("timeout", (_CONNECT_S, _READ_S if method == "GET" else _SEND_S))
        try:
            answer = super()._do_request(method, endpoint, **more)
        except AuthenticationError as error:
            raise JobError(_unwelcome(self.get_address(), str(error))) from error
        except requests.RequestException as error:
            why = without_login(str(error))
            raise NoAnswerError(f"no Ray dashboard answers at {self.get_address()}: {why}") from error
        if answer.status_code in (502, 503, 504):  # of a proxy before it
            raise NoAnswerError(f"{self.get_address()} answers {answer.status_code}: {answer.text[:200]}")
        return answer

    def _raise_error(self, r: requests.Response) -> None:
        said = (r.text.strip().splitlines() or [""])[-1][:500]
        if r.status_code == 404:
            raise JobError(
                f"{self.get_address()}: {said} (404). If that cluster was started anew since, submit the file again: "
                "the sweep goes on"
            )
        kind = NoAnswerError if r.status_code >= 500 else JobError
        raise kind(f"{self.get_address()} answers {r.status_code}: {said}")


def connect(address: str | None) -> Client:
    """The client of a cluster.

    Args:
        address: of its dashboard, ``http://HEAD:8265``; None: as ``RAY_API_SERVER_ADDRESS`` or ``RAY_ADDRESS`` says, or
            the cluster of this machine. An address that is given goes before both, which Ray turns round.

    Raises:
        NoAnswerError: there is none.
        JobError: it does not let us in, or the address is none.
    """
    for name in _CHATTER:
        logging.getLogger(name).setLevel(logging.WARNING)
    if address is not None and address != "auto" and "://" not in address:
        address = f"http://{address}"
    try:
        with variables({ADDRESS: address}) if address not in (None, "auto") else nullcontext():
            return Client(address)
    except JobError:
        raise
    except AuthenticationError as error:  # before anything is sent
        raise JobError(f"RAY_AUTH_MODE is 'token' here, and no token was found. {_PLACES}") from error
    except (ConnectionError, RuntimeError, ValueError, requests.RequestException) as error:
        named = address or os.environ.get(ADDRESS) or os.environ.get("RAY_ADDRESS")
        why = " ".join(str(error).split())[:300]
        raise JobError(
            f"--address {named or 'was not given'}: {why}. Expected the address of a cluster's dashboard, "
            f"as http://HEAD:8265; {ADDRESS} sets the default"
        ) from error


def _unwelcome(address: str, error: str) -> str:
    """What to do about a 401 or a 403."""
    mode, source = os.environ.get("RAY_AUTH_MODE"), _token_source()
    if "Authentication required" in error:  # Ray's words for 401
        if mode != "token":
            now = "is not set" if mode is None else f"is {mode!r}"
            why = f"RAY_AUTH_MODE {now} here, so none was sent: export RAY_AUTH_MODE=token"
        else:
            why = "none was found here"
        return f"{address} asks for a token (401), and {why}. {_PLACES}"
    if mode == "token":
        return (
            f"{address} does not take the token in {source} (403): it is another cluster's, or has been replaced. "
            "Copy the token that the head was started with"
        )
    return f"{address} refuses us (403): {' '.join(error.split())[:200]}"


def _token_source() -> str:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        if os.environ.get(name):
            return name
    return str(Path("~/.ray/auth_token").expanduser())
