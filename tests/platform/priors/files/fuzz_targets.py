"""What is fuzzed: each reader of files from others, with small valid files to start from.

A reader is added by a line in ``TARGETS``. Its seeds get the path of a marker file: those that can carry a payload
should, so that a mutation which makes a reader carry something out is noticed.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tests.platform.priors.archives import parts_of, pickles_of, saved, smuggled, smuggled_torch, with_data, with_parts
from tests.platform.priors.files import fuzz_sources as sources
from tests.platform.priors.graph_modules import CASES, CONTINUOUS, A, D
from tests.platform.priors.onnx_files import constant, exported, model_of, node
from tests.platform.priors.payloads import Payload
from tests.platform.priors.sb3_zips import dumps, model_zip, stub, vecnormalize
from torch import nn

from rpg_platform.priors.files import inert, torch_files
from rpg_platform.priors.files.archive import read_npz
from rpg_platform.priors.formats import rllib, sb3, state_dict
from rpg_platform.priors.formats import rpg as own
from rpg_platform.priors.formats.onnx import model as onnx_models
from rpg_platform.priors.formats.torchscript import archive as torchscript
from rpg_platform.priors.formats.vecnormalize import read_vecnormalize
from rpg_platform.priors.imported import ImportOptions
from rpg_platform.priors.sources import read_source

Seed = Mapping[str, bytes]  # the files of one source, by their path in its folder


@dataclass(frozen=True)
class Target:
    """One reader.

    Attributes:
        name: its name.
        seeds: valid sources; takes the path of the marker file that payloads create.
        read: reads the source in a folder; raises PriorImportError and nothing else.
        cases: how many mutated sources it gets, of a thousand in all that all targets share.
        raises: what else it may raise to refuse a source.
        parses: it parses Python code (which Python tells of as compiling ``<unknown>``), without executing any.
    """

    name: str
    seeds: Callable[[Path], list[Seed]]
    read: Callable[[Path], Any]
    cases: int
    raises: tuple[type[Exception], ...] = ()
    parses: bool = False


def pickles(marker: Path) -> list[Seed]:
    values = [
        {"a": [1, 2.5, None, True], "b": ("x", b"y", {3}), (1, 2): 10**30},
        [np.arange(6, dtype=np.float32).reshape(2, 3), np.float64(2.0), np.dtype(">i4"), np.random.default_rng(0)],
        {"evil": Payload(marker), "range": range(3), "c": 1j, "s": slice(1, 2), "f": frozenset((1, 2))},
    ]
    seeds = [pickle.dumps(value, protocol) for value in values for protocol in (0, 2, 5)]
    seeds += pickles_of(model_zip("sac")).values()
    return [{"file": seed} for seed in [*seeds, smuggled(seeds[4], marker)]]


def torch_seeds(marker: Path) -> list[Seed]:
    module = nn.Sequential(nn.Linear(2, 3), nn.Tanh())
    value = {"state": module.state_dict(), "numbers": torch.arange(4).view(2, 2).T, "evil": Payload(marker)}
    files = [saved(each, new) for each in (module.state_dict(), value) for new in (True, False)]
    return [{"file": file} for file in [*files, smuggled_torch(files[0], marker)]]


def sb3_seeds(marker: Path) -> list[Seed]:
    relu = {"activation_fn": stub("torch.nn.modules.activation", "ReLU")}
    models = [model_zip(kind, policy_kwargs=relu) for kind in ("ppo", "sac")] + [model_zip("ppo", age="gym 0.21")]
    evil = with_data(models[0], **{key: smuggled(data, marker) for key, data in pickles_of(models[0]).items()})
    for name in ("policy.pth", "pytorch_variables.pth"):
        part = smuggled_torch(parts_of(models[1])[name], marker)
        models[1] = with_parts(models[1], lambda n, p, name=name, part=part: part if n == name else p)  # type: ignore[misc]
    evil = with_data(evil, _last_obs=dumps(Payload(marker)), policy_kwargs=smuggled(dumps(relu), marker))
    return [{"model.zip": model} for model in [*models, evil]]


def vecnormalize_seeds(marker: Path) -> list[Seed]:
    files = [vecnormalize(3), vecnormalize(3, "gym 0.17"), vecnormalize(2, observation_space=Payload(marker))]
    return [{"vecnormalize.pkl": file} for file in [*files, smuggled(files[0], marker)]]


def npz_seeds(marker: Path) -> list[Seed]:
    seeds = []
    for save in (np.savez, np.savez_compressed):
        stream = io.BytesIO()
        evil = np.array([Payload(marker)], dtype=object)
        save(stream, a=np.arange(6.0).reshape(2, 3), b=np.array([True]), **({"c": evil} if seeds else {}))
        seeds.append({"x.npz": stream.getvalue()})
    return seeds


def torchscript_seeds(marker: Path) -> list[Seed]:
    files = []
    for name in ("normalised", "chunked", "sliced"):
        for make in (torch.jit.script, lambda module: torch.jit.trace(module, torch.randn(3, D), strict=False)):
            stream = io.BytesIO()
            torch.jit.save(make(CASES[name].module()), stream)
            files.append(stream.getvalue())
    files.append(with_parts(files[0], lambda name, part: smuggled(part, marker) if name.endswith("pkl") else part))
    act = f"    _ = open({str(marker)!r}, 'w')\n    return".encode()
    files.append(with_parts(files[2], lambda name, part: part.replace(b"    return", act)))
    return [{"policy.pt": file} for file in files]


def onnx_seeds(marker: Path) -> list[Seed]:
    nodes = [node("Gemm", "obs w v", "h"), node("Tanh", "h", "a"), node("Shape", "a", "n"), node("Expand", "s n", "e")]
    nodes += [node("Reshape", "a two", "r"), node("Slice", "a from to axis", "mean"), node("Clip", "mean s", "log_std")]
    weights = [constant("w", np.ones((D, 4))), constant("v", np.ones(4)), constant("s", np.ones(1))]
    weights += [constant(k, v, np.int64) for k, v in (("two", [-1, 4]), ("from", [0]), ("to", [A]), ("axis", [1]))]
    small = model_of(nodes, weights, ["mean", "log_std"], metadata={"card": "{}"}).SerializeToString()
    return [{"policy.onnx": file} for file in (small, exported(CASES["residual"].module(), 17))]


TARGETS: tuple[Target, ...] = (
    Target("pickles", pickles, lambda folder: inert.load((folder / "file").read_bytes()), 160),
    Target("torch.save", torch_seeds, lambda folder: torch_files.read_tensors(folder / "file"), 100),
    Target("npz", npz_seeds, lambda folder: read_npz(folder / "x.npz"), 30),
    Target("VecNormalize", vecnormalize_seeds, lambda folder: read_vecnormalize(folder / "vecnormalize.pkl"), 60),
    Target("sb3", sb3_seeds, lambda folder: sb3.read(folder / "model.zip", ImportOptions()), 200),
    Target("rllib", sources.rllib_checkpoints, lambda folder: rllib.read(folder, ImportOptions()), 130),
    Target("bundle", sources.bundles, lambda folder: own.read(folder, ImportOptions()), 60),
    Target("state-dict", sources.state_dict, lambda folder: state_dict.read(folder / "agent.pt", sources.NAMED), 60),
    Target(
        "torchscript",
        torchscript_seeds,
        lambda folder: torchscript.read(folder / "policy.pt", CONTINUOUS),
        100,
        parses=True,
    ),
    Target("onnx", onnx_seeds, lambda folder: onnx_models.read(folder / "policy.onnx", CONTINUOUS), 70),
    Target("mlflow", sources.mlflow_folders, lambda folder: read_source(str(folder), form="mlflow"), 30),
)
