"""Optuna chooses settings by a tree-structured Parzen estimator, for one objective or several."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from rpg_platform.search.proposals import Outcome
from rpg_platform.spec.measures import BY_NAME
from rpg_platform.spec.space import SearchSpace, Setting, dump


def require_optuna() -> ModuleType:
    """Imports the package ``optuna`` and returns it.

    Raises:
        ValueError: the package is not installed.
    """
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise ValueError("optuna is not installed: pip install 'residual-policy-gradient[optuna]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    module: ModuleType = optuna
    return module


class OptunaSearch:
    """Asks a new study for each setting, which it makes from all earlier settings.

    So the answer depends only on the search's seed and on the outcomes of the earlier settings, in their order, and no
    state can be lost. Settings that are still running count as running, which keeps the estimator away from them.

    Args:
        objectives: the measures to trade off; the KL is minimised, the rest maximised.
        startup: how many settings are drawn before there is anything to model.
    """

    def __init__(self, objectives: Sequence[str], startup: int) -> None:
        self._optuna = require_optuna()
        self._startup = startup
        self._directions = ["minimize" if BY_NAME[name].minimise else "maximize" for name in objectives]

    def __call__(self, spaces: Mapping[str, SearchSpace], past: Sequence[Outcome], seed: int) -> dict[str, Setting]:
        """Returns the next setting, which depends only on the arguments."""
        distributions = {name: self._distribution(space) for name, space in spaces.items()}
        study = self.study(spaces, past, seed)
        asked = study.ask(distributions)
        return {name: _value(space, asked.params[name]) for name, space in spaces.items()}

    def study(self, spaces: Mapping[str, SearchSpace], past: Sequence[Outcome], seed: int) -> Any:
        """Returns an ``optuna.Study`` that holds ``past``."""
        sampler = self._optuna.samplers.TPESampler(n_startup_trials=self._startup, seed=seed, constant_liar=True)
        study = self._optuna.create_study(directions=self._directions, sampler=sampler)
        distributions = {name: self._distribution(space) for name, space in spaces.items()}
        study.add_trials([self._trial(spaces, distributions, outcome) for outcome in past])
        return study

    def _trial(self, spaces: Mapping[str, SearchSpace], distributions: Mapping[str, Any], outcome: Outcome) -> Any:
        states = self._optuna.trial.TrialState
        state = {"running": states.RUNNING, "failed": states.FAIL, "stopped": states.PRUNED}.get(
            outcome.state, states.COMPLETE
        )
        return self._optuna.trial.create_trial(
            state=state,
            values=list(outcome.values) if outcome.state == "finished" else None,
            params={name: _name(space, outcome.point[name]) for name, space in spaces.items()},
            distributions=dict(distributions),
            intermediate_values={outcome.rung: outcome.values[0]} if outcome.state == "stopped" else None,
            constraints={"worst": outcome.violation} if outcome.state == "finished" else None,
        )

    def _distribution(self, space: SearchSpace) -> Any:
        kinds = self._optuna.distributions
        if space.size is not None:
            return kinds.CategoricalDistribution([_name(space, value) for value in space.values])
        low, high = space.values
        return kinds.FloatDistribution(low, high, log=space.kind == "loguniform")


def _name(space: SearchSpace, value: Setting) -> Any:
    """Returns a setting as Optuna takes it: a choice as JSON text, because choices may be schedules."""
    return value if space.size is None else json.dumps(dump(value))


def _value(space: SearchSpace, name: Any) -> Setting:
    if space.size is None:
        return float(name)
    return next(value for value in space.values if json.dumps(dump(value)) == name)
