"""Remembers which steps of a run's metrics MLflow has, so that each step gets one point.

A trial that goes back to a checkpoint, after a crash of its process or of the driver, trains again from there and
reports the steps since the checkpoint a second time, with other values, as environments and noise start anew. The first
report of a step stays: MLflow can't replace a point, and would show both.

A trial's reports are sent in order, and MLflow takes a request's metrics whole or not at all. So the highest step that
a metric has says which of its points are there, also of a request whose answer was lost.
"""

from __future__ import annotations

from collections.abc import Iterable

from mlflow.entities import Metric, Run


class RecordedSteps:
    """Knows the highest step that MLflow has, for each metric of each open run."""

    def __init__(self) -> None:
        self._highest: dict[str, dict[str, int]] = {}

    def __contains__(self, run: str) -> bool:
        return run in self._highest

    def found(self, run: str, state: Run | None) -> None:
        """Adds the steps of a run as MLflow returned it (None: a new run) to the steps that are known already."""
        known = self._highest.setdefault(run, {})
        if state is not None:
            self._raise(known, state.data._metric_objs)  # MLflow's public dictionary leaves the steps out

    def new(self, run: str, metrics: Iterable[Metric]) -> list[Metric]:
        """Selects those of ``metrics``, in the order of their reports, whose steps the run does not have yet."""
        highest = dict(self._highest[run])
        kept = []
        for metric in metrics:
            if metric.step > highest.get(metric.key, -1):
                highest[metric.key] = metric.step
                kept.append(metric)
        return kept

    def add(self, run: str, metrics: Iterable[Metric]) -> None:
        """Notes metrics of an open run that have been sent or given up."""
        if run in self._highest:
            self._raise(self._highest[run], metrics)

    def forget(self, run: str) -> None:
        """Forgets a run that has ended; if it is opened again, MLflow is asked for its steps."""
        self._highest.pop(run, None)

    @staticmethod
    def _raise(highest: dict[str, int], metrics: Iterable[Metric]) -> None:
        for metric in metrics:
            highest[metric.key] = max(metric.step, highest.get(metric.key, -1))
