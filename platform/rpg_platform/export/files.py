"""Writes exports: each appears whole or not at all, and never replaces a file of another kind."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from uuid import uuid4

from rpg_algorithms.policies.bundle import load_bundle
from rpg_platform.bundles import resolve_prior
from rpg_platform.export.policy import Mode, Precision

Format = Literal["torchscript", "onnx", "mlflow", "bundle"]
FOREIGN: tuple[Format, ...] = ("torchscript", "onnx", "mlflow")
"""Those that need nothing of this package to run."""
FILES: dict[Format, str] = {"torchscript": "policy.pt", "onnx": "policy.onnx", "mlflow": "mlflow", "bundle": "bundle"}
"""The name of each format's file in a folder that takes several formats."""


@dataclass(frozen=True)
class Exported:
    """One export that was written.

    Attributes:
        format: its format.
        path: the file, or the folder of a model or a bundle.
        deviation: largest deviation from the bundle that the check found, relative to 1 + |value|.
    """

    format: Format
    path: Path
    deviation: float


def export(
    name_or_path: str,
    formats: tuple[Format, ...],
    out: Path,
    mode: Mode = "distribution",
    precision: Precision = "float64",
    *,
    overwrite: bool = False,
) -> list[Exported]:
    """Writes a policy in each of ``formats``.

    Args:
        name_or_path: see ``bundles.resolve_prior``.
        formats: a single one is written to ``out`` itself, several into the folder ``out`` by their names in ``FILES``.
        out: the file or folder to write.
        mode: ``deterministic`` leaves the distribution's parameters out.
        precision: see ``policy``.
        overwrite: replace an earlier export of that format (a file, or for MLflow the folder of a model).

    Raises:
        ValueError: there is no bundle, or ``out`` is taken.
    """
    from rpg_platform.export import mlflow_model, onnx_model, torchscript

    source = resolve_prior(name_or_path)
    bundle = load_bundle(source)
    if len(formats) > 1 and out.is_file():
        raise ValueError(f"--out {out}: a file; several formats go into a folder")
    places = [(each, out if len(formats) == 1 else out / FILES[each]) for each in formats]
    for each, place in places:
        _check_free(each, place, overwrite)
    written = []
    for each, place in places:
        with _replacing(place) as new:
            if each == "torchscript":
                deviation = torchscript.save(bundle, new, mode, precision)
            elif each == "onnx":
                deviation = onnx_model.save(bundle, new, mode, precision)
            elif each == "bundle":
                shutil.copytree(source, new)
                deviation = 0.0
            else:
                deviation = mlflow_model.save(source, new, mode, precision)
        written.append(Exported(each, place, deviation))
    return written


def _check_free(format_: Format, place: Path, overwrite: bool) -> None:
    if not place.exists():
        return
    if not overwrite:
        raise ValueError(f"--out: {place} exists; nothing is overwritten without --overwrite")
    inside = {"mlflow": "MLmodel", "bundle": "card.json"}
    same = (place / inside[format_]).is_file() if format_ in inside else place.is_file()
    if not same:
        raise ValueError(f"--out: {place} is no {format_} export; it is not overwritten")


@contextmanager
def _replacing(place: Path) -> Iterator[Path]:
    """Yields a path to write to. It becomes ``place`` if all goes well, and leaves no trace otherwise."""
    place.parent.mkdir(parents=True, exist_ok=True)
    new = place.with_name(f".{place.name}.{uuid4().hex[:8]}")
    try:
        yield new
        if place.is_dir():
            shutil.rmtree(place)
        new.replace(place)
    finally:
        if new.is_dir():
            shutil.rmtree(new)
        else:
            new.unlink(missing_ok=True)
