"""Bundles to export, and running exported files where neither this package nor anything heavy can be imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from rpg_algorithms import PolicyNetwork
from rpg_algorithms.policies.bundle import PriorBundle, PriorCard, load_bundle, save_bundle

OURS = ("rpg_algorithms", "rpg_platform", "ray")

# argv: what to refuse, the format, folders that hold a file of that format and obs.npy; leaves found.npz in each.
PROGRAM = """
import importlib, sys
from pathlib import Path
refused, format_, *folders = sys.argv[1:]

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in refused.split(","):
            raise ModuleNotFoundError(f"refused: {name}")

sys.meta_path.insert(0, Refuse())
for name in refused.split(","):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        continue
    sys.exit(f"{name} can be imported")

import numpy as np

def torchscript(folder):
    import torch
    extra = {"card.json": ""}
    module = torch.jit.load(folder / "policy.pt", _extra_files=extra)
    assert extra["card.json"]
    return lambda obs: {name: value.numpy() for name, value in module(torch.from_numpy(obs)).items()}

def onnx(folder):
    import onnxruntime
    session = onnxruntime.InferenceSession(folder / "policy.onnx", providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]
    return lambda obs: dict(zip(names, session.run(None, {"obs": obs})))

def mlflow(folder):
    import mlflow.pyfunc
    return mlflow.pyfunc.load_model(str(folder / "mlflow")).predict

for folder in map(Path, folders):
    run, obs = globals()[format_](folder), np.load(folder / "obs.npy")
    found = run(obs)
    for size in (1, 3):  # any batch size, the same answer
        for name, value in run(obs[:size]).items():
            np.testing.assert_allclose(value, found[name][:size], rtol=2e-7, atol=1e-30)
    np.savez(folder / "found.npz", **found)
"""


def bundle_of(network: PolicyNetwork, folder: Path) -> PriorBundle:
    """Writes and reads a bundle of ``network`` with spaces that fit it."""
    spec = network.spec
    action_space: gym.Space[object] = gym.spaces.Discrete(spec.action_size, start=spec.action_start)
    if spec.distribution != "categorical":
        low, high = (np.array(each, np.float32) for each in (spec.action_low, spec.action_high))
        action_space = gym.spaces.Box(low, high)
    observations = gym.spaces.Box(-np.inf, np.inf, (spec.observation_size,))
    card = PriorCard.describe("small", "Some-v0", observations, action_space, spec, made_by={"method": "spg"})
    save_bundle(folder, network, card)
    return load_bundle(folder)


def run_elsewhere(format_: str, folders: list[Path], refused: tuple[str, ...]) -> list[dict[str, NDArray[np.generic]]]:
    """Runs exported files on ``obs.npy`` beside them, in one process that can import nothing of ``refused``."""
    command = [sys.executable, "-c", PROGRAM, ",".join(refused), format_, *map(str, folders)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    ended = subprocess.run(
        command, cwd=folders[0], env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert ended.returncode == 0, ended.stderr
    found = []
    for folder in folders:
        with np.load(folder / "found.npz") as arrays:
            found.append(dict(arrays))
    return found
