"""Writes a policy as an MLflow model of the ONNX flavour, with the bundle beside it.

``mlflow.pyfunc.load_model(folder).predict(obs)`` gives the named arrays of ``policy`` and needs MLflow, numpy and
onnxruntime. With the ONNX flavour, whoever loads the model neither runs nor trusts code of ours: it has no pickle (as a
model of a Python object has), no code file (as models from code have) and no torch. Its folder ``bundle/`` is the
unchanged bundle, so ``rpg priors import`` takes the model back; ``metadata`` in the file MLmodel has card and lineage.
"""

from __future__ import annotations

import importlib.metadata
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rpg_algorithms.policies.bundle import CARD_FILE, WEIGHTS_FILE, load_bundle
from rpg_algorithms.policies.network import NetworkSpec
from rpg_platform.export import onnx_model
from rpg_platform.export.policy import Mode, Precision, output_names, typical_states
from rpg_platform.priors.ancestry import lineage_lines

if TYPE_CHECKING:
    from mlflow.models import Model, ModelSignature

BUNDLE_FOLDER = "bundle"
ONNX_FILE = "model.onnx"
_PINNED = {"mlflow": None, "numpy": None, "onnxruntime": "onnxruntime>=1.17,<2"}  # if not installed here


def save(
    source: Path,
    folder: Path,
    mode: Mode = "distribution",
    precision: Precision = "float64",
    model: Model | None = None,
) -> float:
    """Writes the MLflow model and returns its deviation from the bundle (see ``policy.check``).

    Args:
        source: the bundle's folder.
        folder: the folder to write; must not exist yet, or be empty.
        mode: ``deterministic`` leaves the distribution's parameters out.
        precision: see ``policy``.
        model: MLflow's record to complete; None for a model that belongs to no run.

    Raises:
        ValueError: the package ``onnx`` is missing, or the bundle is damaged.
        RuntimeError: the model does not compute what the bundle does.
    """
    import mlflow.onnx

    bundle = load_bundle(source)
    card = bundle.card
    proto = onnx_model.build(bundle, mode, precision)
    mlflow.onnx.save_model(
        proto,
        str(folder),
        mlflow_model=model,
        signature=signature(bundle.network_spec, mode),
        input_example=typical_states(bundle, 2),
        pip_requirements=requirements(),
        onnx_execution_providers=["CPUExecutionProvider"],  # a GPU only delays a network of this size
        save_as_external_data=False,
        metadata={
            "content_hash": card.content_hash,
            "lineage": lineage_lines(card),
            "mode": mode,
            "precision": precision,
            "card": card.model_dump(),
        },
    )
    inside = folder / BUNDLE_FOLDER
    inside.mkdir()
    for name in (CARD_FILE, WEIGHTS_FILE):
        shutil.copyfile(source / name, inside / name)
    return onnx_model.check_file(bundle, folder / ONNX_FILE, mode, precision)


def signature(spec: NetworkSpec, mode: Mode) -> ModelSignature:
    """Returns the shapes and types of the model's input and outputs."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema, TensorSpec

    float32, discrete = np.dtype(np.float32), spec.distribution == "categorical"
    outputs: list[ColSpec | TensorSpec] = [
        TensorSpec(np.dtype(np.int64), (-1,), name)
        if discrete and name == "action"
        else TensorSpec(float32, (-1, spec.action_size), name)
        for name in output_names(spec, mode)
    ]
    # The input has no name, so that predict() takes the array itself.
    return ModelSignature(Schema([TensorSpec(float32, (-1, spec.observation_size))]), Schema(outputs))


def requirements() -> list[str]:
    """Returns the packages that loading the model needs, pinned to the versions that are installed here."""
    pinned = []
    for name, otherwise in _PINNED.items():
        try:
            pinned.append(f"{name}=={importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            pinned.append(otherwise or name)
    return pinned
