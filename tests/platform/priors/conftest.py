"""What the tests of importers share: real models of other libraries, each trained once and only where it is needed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.platform.priors.sb3_models import Trained


@pytest.fixture(scope="session")
def sb3_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Trained]:
    """A trained Stable-Baselines3 model by its name in ``sb3_models.RECIPES``."""
    from tests.platform.priors.sb3_models import RECIPES, train

    folder: Path = tmp_path_factory.mktemp("sb3")
    models: dict[str, Trained] = {}

    def model(name: str) -> Trained:
        if name not in models:
            models[name] = train(RECIPES[name], folder / name.replace(" ", "-"))
        return models[name]

    return model
