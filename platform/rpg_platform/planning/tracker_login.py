"""Whether the MLflow server takes the driver's login: a wrong one would show only in records that are never sent."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import requests

from rpg_platform.planning.preflight import PlanError
from rpg_platform.spec.logins import with_login

_ASKED = "/api/2.0/mlflow/experiments/search"
_PATIENCE_S = 10


def check_login(uri: str) -> None:
    """Refuses an MLflow server that does not let us in; one that does not answer may later, and records wait for it.

    Args:
        uri: of the store; one that is no server asks for no login.

    Raises:
        PlanError: says what the server answers, and where the login belongs.
    """
    if not uri.startswith(("http://", "https://")):
        return
    from mlflow.exceptions import MlflowException  # MLflow, which takes a second, for a server only
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    request: Any = http_request
    host: Any = get_default_host_creds  # MLflow does not type them
    try:
        answer = request(
            host(with_login(uri)), _ASKED, "GET", max_retries=0, timeout=_PATIENCE_S, params={"max_results": 1}
        )
    except (MlflowException, requests.RequestException, OSError):
        return
    if answer.status_code in (401, 403):
        said = " ".join(answer.text.split())[:200]
        login = (
            "the driver's environment (of a job: the head's) needs MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        )
        name = f"the server's --allowed-hosts needs {urlsplit(uri).netloc}"
        remedies = (name, login) if "host header" in said.lower() else (login, name)
        raise PlanError(f"MLflow at {uri} answers {answer.status_code}: {said}. Expected: {'; or '.join(remedies)}")
