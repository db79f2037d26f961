"""Environment variables for a while: some settings of MLflow and Tune can be given in no other way."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

NO_PROGRESS_BARS = {"MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
"""Of MLflow, which draws them even for 3 kB."""


@contextmanager
def variables(changes: Mapping[str, str]) -> Iterator[None]:
    """Sets variables, and puts back on the way out what was there before."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
