"""What a sweep will run: its trials, in order."""

from __future__ import annotations

from rpg_platform.spec.checks import check
from rpg_platform.spec.errors import SpecError
from rpg_platform.spec.sweep import SweepSpec, TrialSpec
from rpg_platform.spec.trials import make_trials

__all__ = ["expand"]


def expand(spec: SweepSpec) -> list[TrialSpec]:
    """The trials of a sweep: the prior's row first, then method by method, setting by setting, seed by seed.

    Deterministic, from the specification alone: no file is read. Trial ids are unique, readable, at most 140
    characters and safe as a file's or an MLflow run's name.

    Args:
        spec: From a file (`yaml_source.load_spec`) or made in Python.

    Raises:
        SpecError: If the specification contradicts itself; lists every fault.
    """
    problems = check(spec, check_files=False)
    if problems:
        raise SpecError([str(problem) for problem in problems])
    return [trial for trial, _ in make_trials(spec)]
