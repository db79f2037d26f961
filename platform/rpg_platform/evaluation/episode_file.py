"""The single episodes of a trial's evaluation as a file, for statistics over seeds × episodes without evaluating again.

It is JSON, in the folder ``evaluation`` of the trial's last checkpoint, and an artifact of the trial's MLflow run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from rpg_platform.evaluation.play import Episodes
from rpg_platform.results.report import MODES, Mode, as_json

EVALUATION_FOLDER = "evaluation"
EVALUATION_FILE = "evaluation.json"
FORMAT = 1
MAX_BYTES = 200_000_000

Which: TypeAlias = Literal["final", "best"]


@dataclass(frozen=True)
class EvaluatedPolicy:
    """One policy's episodes.

    Attributes:
        env_steps: how far it was trained; 0 for the prior.
        seed: episode i was reset with ``seed + i``.
        results: the episodes, deterministic and sampled.
    """

    env_steps: int
    seed: int
    results: Mapping[Mode, Episodes]


def write_episodes(checkpoint: Path, trial_id: str, policies: Mapping[Which, EvaluatedPolicy]) -> None:
    """Writes the episodes of a trial into its checkpoint's folder; NaN and infinite figures become null."""
    content = {
        "format": FORMAT,
        "trial": trial_id,
        "policies": {
            which: {
                "env_steps": policy.env_steps,
                "seed": policy.seed,
                **{mode: as_json(vars(episodes)) for mode, episodes in policy.results.items()},
            }
            for which, policy in policies.items()
        },
    }
    folder = checkpoint / EVALUATION_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    (folder / EVALUATION_FILE).write_text(json.dumps(content, allow_nan=False), encoding="utf-8")


def read_episodes(checkpoint: str | Path) -> dict[Which, EvaluatedPolicy]:
    """The episodes of a trial: of its ``final`` policy, and of its ``best`` if one was looked for.

    Args:
        checkpoint: folder of the trial's last checkpoint (``SweepOutcome.checkpoints``), its folder ``evaluation``,
            or the file itself.

    Raises:
        ValueError: there is no such file, or it is not one of this format.
    """
    given = Path(checkpoint)
    places = (given, given / EVALUATION_FILE, given / EVALUATION_FOLDER / EVALUATION_FILE)
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise ValueError(f"{given}: no {EVALUATION_FILE} there; expected the last checkpoint of a finished trial")
    if file.stat().st_size > MAX_BYTES:
        raise ValueError(f"{file}: {file.stat().st_size} bytes, expected at most {MAX_BYTES}")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"{file}: format is {content['format']!r}, this version reads {FORMAT}")
        return {which: _load(content["policies"][which]) for which in ("final", "best") if which in content["policies"]}
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: not the episodes of a trial: {type(error).__name__}: {error}") from error


def _load(policy: Mapping[str, Any]) -> EvaluatedPolicy:
    results = {mode: _episodes(policy[mode]) for mode in MODES if mode in policy}
    return EvaluatedPolicy(int(policy["env_steps"]), int(policy["seed"]), results)


def _episodes(columns: Mapping[str, Any]) -> Episodes:
    # What later versions add has a default; what is missing of the rest is an error.
    known = [field.name for field in fields(Episodes) if field.default_factory is MISSING or field.name in columns]
    return Episodes(**{name: _array(columns[name]) for name in known})


def _array(values: Any) -> Any:
    if isinstance(values, Mapping):
        return {key: _array(each) for key, each in values.items()}
    return np.array([math.nan if each is None else float(each) for each in values])
