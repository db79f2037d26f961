"""A format of our own invention, as a user would add it: JSON with the weights of one linear layer.

    {"toy": 1, "weight": [[...], ...], "bias": [...], "log_std": [...]}

This is the whole reader; ``test_formats`` adds its line to the table.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from rpg_platform.priors.imported import Imported, ImportOptions, PriorImportError
from rpg_platform.priors.network.assemble import FreeLogStd, Linear, Policy, assemble
from rpg_platform.priors.network.layers import named_spaces


def read(path: Path, options: ImportOptions) -> Imported:
    """The policy of a toy file: a Gaussian whose mean is linear in the observation."""
    try:
        data = json.loads(path.read_text())
        weight, bias, log_std = (np.array(data[key], np.float32) for key in ("weight", "bias", "log_std"))
    except (ValueError, TypeError, KeyError) as error:
        raise PriorImportError(f"{path}: not a toy policy: {error}") from error
    spaces = named_spaces(options, "a toy policy", str(path))
    network = assemble(Policy(str(path), [Linear(weight, bias)], "gaussian", *spaces, FreeLogStd(log_std)))
    return Imported(network, "toy", observation_space=None, action_space=None, facts={"version": data["toy"]})
