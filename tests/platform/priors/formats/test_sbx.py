"""SBX's archives: what a policy's file says besides its weights, and the reasons for what is not read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.platform.priors.sb3_zips import instance, stub
from tests.platform.priors.sbx_zips import NAMES, D, JaxArray, archive, in_jax, weights_of

from rpg_platform.priors.formats.sb3 import read
from rpg_platform.priors.imported import Imported, ImportOptions, PriorImportError


def imported(data: bytes, folder: Path, **options: Any) -> Imported:
    (folder / "model.zip").write_bytes(data)
    return read(folder / "model.zip", ImportOptions(**options))


@pytest.mark.parametrize("kind", NAMES)
def test_the_temperature_is_the_stored_one(kind: str, tmp_path: Path) -> None:
    source = imported(archive(kind), tmp_path, std=0.5 if kind == "td3" else None)
    assert source.alpha == (pytest.approx(np.exp(-1.0)) if kind in ("sac", "tqc", "crossq") else None)


def test_what_older_versions_store_otherwise(tmp_path: Path) -> None:
    """Flax's frozen dictionaries, JAX's arrays of before 0.4, no activation, CrossQ's unused statistics."""
    own, _ = weights_of("sac")
    clean = imported(archive("sac"), tmp_path).network
    x = torch.randn(20, D)
    old = {
        layer: {k: JaxArray(v, "jax._src.device_array", "reconstruct_device_array") for k, v in part.items()}
        for layer, part in own.items()
    }

    class Frozen:
        def __reduce__(self) -> Any:
            return stub("flax.core.frozen_dict", "FrozenDict"), (old,)

    source = imported(archive("sac", params=Frozen(), activation_fn=None, actor_class=None), tmp_path)
    assert torch.equal(source.network(x), clean(x))
    assert source.network.spec.activation == "relu"
    assert imported(archive("sac", activation_fn=None), tmp_path, activation="tanh").network.spec.activation == "tanh"
    unused = {"BatchRenorm_0": {"scale": np.ones(D), "bias": np.ones(D)}}
    dummy = in_jax({"BatchRenorm_0": {"mean": np.ones(D), "var": np.ones(D)}})
    source = imported(archive("crossq", params=in_jax(own | unused), statistics=dummy), tmp_path)
    assert torch.equal(source.network(x), clean(x))
    fixed = {"ent_coef_state": instance("x", "TrainState", params={"dummy_param": JaxArray(0.0)})}
    fixed["ent_coef"] = instance("sbx.sac.sac", "ConstantEntropyCoef", ent_coef_init=0.25)
    assert imported(archive("sac", data=fixed), tmp_path).alpha == 0.25


REFUSED = {
    "own actor": (archive("sac", actor_class=stub("mine", "Actor")), "actor mine.Actor; expected SBX's PPO"),
    "activation": (
        archive("sac", activation_fn=instance("jaxlib._jax", "PjitFunction", function_name="gelu")),
        "activation jaxlib._jax.PjitFunction is not read; .* name it with --activation",
    ),
    "blocks": (archive("sac", params={"SimbaResidualBlock_0": {}}), "has 'SimbaResidualBlock_0'; expected SBX's"),
    "no layers": (archive("ppo", params={}), "actor_state: 0 layers"),
    "gap": (archive("ppo", params=in_jax({"Dense_1": {"kernel": np.ones((3, 2))}})), "not numbered from 0"),
    "text": (
        archive("ppo", params={"Dense_0": {"kernel": "x", "bias": "y"}}),
        "Dense_0.kernel is str, expected an array",
    ),
    "nan": (
        archive("ppo", params=in_jax({"Dense_0": {"kernel": np.full((3, 2), np.nan), "bias": np.ones(2)}})),
        "Dense_0.kernel has values that are not finite",
    ),
    "no state": (archive("ppo", actor_state=None), "policy has no actor_state"),
    "no policy": (archive("ppo", data={"policy": "x"}), "data: policy is str, expected SBX's policy"),
    "statistics": (archive("crossq", statistics={}), "0 batch statistics for 3 layers"),
    "temperature": (
        archive("sac", data={"ent_coef_state": instance("x", "S", params={"log_ent_coef": JaxArray(np.nan)})}),
        "its entropy temperature is nan",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_each_has_its_own_reason(name: str, tmp_path: Path) -> None:
    data, message = REFUSED[name]
    with pytest.raises(PriorImportError, match=message):
        imported(data, tmp_path)
