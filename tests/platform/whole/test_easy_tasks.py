"""The easy end, a Discrete and a sparse task, from nothing: each prior is trained as shipped, then customised.

The customised policy must beat its prior on the add-on return, acting deterministically and sampling, and keep the
basic return. Greedy, which forgets the prior, is the negative control: it comes to the flag less often or not at all.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.platform.commands import ROOT, rpg

LIMIT_S = 3_000
MODES = ("deterministic", "sampled")
# Task, weight of the prior, the basic return at which the environment counts as solved, further methods.
EASY = [("cartpole", 0.2, 475.0, []), ("mountain_car", 0.01, 90.0, ["greedy"])]


def output(*arguments: str, folder: Path) -> str:
    done = rpg(*arguments, "--storage", str(folder / "out"), cwd=folder, limit_s=LIMIT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("name", "omega_prime", "solved", "others"), EASY, ids=[name for name, *_ in EASY])
def test_prior_is_trained_and_customised(
    name: str, omega_prime: float, solved: float, others: list[str], tmp_path: Path
) -> None:
    output("train", str(ROOT / "tune_configs" / "priors" / f"{name}.yaml"), "--out", "priors/prior", folder=tmp_path)
    spec = yaml.safe_load((ROOT / "tune_configs" / f"{name}.yaml").read_text(encoding="utf-8"))
    assert omega_prime in spec["weights"]["omega_prime"]["grid"]
    spec |= {"prior": "./priors/prior", "seeds": 2, "baselines": others}
    spec["weights"]["omega_prime"] = omega_prime
    (tmp_path / "customise.yaml").write_text(yaml.safe_dump(spec))
    rows: list[dict[str, Any]] = json.loads(output("sweep", "customise.yaml", "--json", folder=tmp_path))
    for mode in MODES:
        basic, addon = (
            {row["method"]: row[mode][f"{part}_return"]["mean"] for row in rows} for part in ("basic", "addon")
        )
        assert basic["prior"] >= solved
        assert basic["rpg"] >= solved
        assert addon["rpg"] > 0.8 * addon["prior"]  # both negative: at least a fifth less of what is unwanted
        assert basic.get("greedy", 0.0) < basic["rpg"]
    kl = {row["method"]: row["kl_to_prior"]["mean"] for row in rows}
    assert kl["rpg"] > 0.01 > abs(kl["prior"])
