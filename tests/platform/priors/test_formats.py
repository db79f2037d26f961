"""The table of formats: a new one is a reader and one line, and everything that speaks of formats follows the table."""

from __future__ import annotations

import json
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import pytest
import torch

import rpg_platform
from rpg_algorithms.policies.bundle import load_bundle
from rpg_platform.priors import formats
from rpg_platform.priors.formats import FORMATS, Format
from rpg_platform.priors.imported import ImportOptions, PriorImportError
from rpg_platform.priors.recognise import recognise
from rpg_platform.priors.sources import import_prior, read_source

PENDULUM = ImportOptions(env_id="Pendulum-v1")
SPACES = ImportOptions(observation_space=gym.spaces.Box(-8.0, 8.0, (3,)), action_space=gym.spaces.Box(-2.0, 2.0, (1,)))
TOY = {"toy": 1, "weight": [[0.5, -1.0, 2.0]], "bias": [0.25], "log_std": [-0.5]}
LINE = Format(
    "toy",
    "a toy policy",
    "tests.platform.priors.toy_format:read",
    lambda content: content.start.startswith(b'{"toy"'),
    suffixes=(".toy",),
)


@pytest.fixture
def toy_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A policy of the toy format, whose line stands in the table."""
    monkeypatch.setattr(formats, "FORMATS", (*FORMATS, LINE))
    file = tmp_path / "swing.toy"
    file.write_text(json.dumps(TOY))
    return file


def test_a_new_format_is_a_reader_and_one_line(toy_file: Path, tmp_path: Path) -> None:
    done = import_prior(str(toy_file), tmp_path / "prior", PENDULUM)
    assert (done.card.name, done.card.env_id) == ("swing", "Pendulum-v1")
    made_by = done.card.made_by["import"]
    assert (made_by["format"], made_by["source"], made_by["version"]) == ("toy", "swing.toy", 1)
    distribution = load_bundle(tmp_path / "prior").build().distribution(torch.tensor([[1.0, 1.0, 1.0]]))
    torch.testing.assert_close(distribution.mode(), torch.tensor([[0.5 - 1.0 + 2.0 + 0.25]]))
    with pytest.raises(PriorImportError, match=r"swing\.toy: a toy policy holds no observation and action spaces"):
        import_prior(str(toy_file), tmp_path / "other")


def test_whatever_speaks_of_formats_knows_the_new_one(toy_file: Path, tmp_path: Path) -> None:
    text = tmp_path / "notes"
    text.write_text("hello, this is text")
    with pytest.raises(PriorImportError, match=r"holds text; read are .*; an ONNX model; .*; a toy policy"):
        read_source(str(text))
    misnamed = toy_file.rename(tmp_path / "swing.zip")
    with pytest.raises(PriorImportError, match=r"but it holds a toy policy; rename it, or say --format toy"):
        read_source(str(misnamed))
    assert read_source(str(misnamed), SPACES, form="toy").format == "toy"
    with pytest.raises(PriorImportError, match="format 'tog': no such format; did you mean 'toy'"):
        read_source(str(misnamed), form="tog")


def test_an_mlflow_model_may_hold_the_new_format(toy_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    toy_file.rename(folder / "swing.toy")
    (folder / "MLmodel").write_text("flavors: {toy: {}}\n")
    assert import_prior(str(folder), tmp_path / "prior", PENDULUM).imported.format == "mlflow/toy"


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_every_line_leads_to_a_reader(form: Format) -> None:
    assert callable(pkgutil.resolve_name(form.reader))
    assert form.only_by_address == (form.name == "function")


def test_names_are_told_apart() -> None:
    assert len({form.name for form in FORMATS}) == len(FORMATS)
    assert all(form.address is not None for form in FORMATS if form.only_by_address)


def test_the_torchscript_reader_is_sealed() -> None:
    """Nothing rests on the inside of its folder; user code that is traced goes through its one entry."""
    package = Path(rpg_platform.__file__).parent
    folder = package / "priors" / "formats" / "torchscript"
    users: dict[str, list[str]] = {}
    for path in sorted(package.rglob("*.py")):
        if folder not in path.parents and "export" not in path.parts:
            found = re.findall(r".*import .*\btorchscript\b.*|.*formats\.torchscript\..*import.*", path.read_text())
            users |= {path.relative_to(package).as_posix(): found} if found else {}
    assert users == {"priors/formats/functions.py": ["from rpg_platform.priors.formats import torchscript"]}


def test_telling_a_file_imports_no_reader(tmp_path: Path) -> None:
    """`rpg --help` shows the table, so the table may not need torch, and a zip may not need all readers."""
    code = (
        "import sys; from rpg_platform.priors import formats; assert 'torch' not in sys.modules;"
        "assert not [name for name in sys.modules if name.startswith('rpg_platform.priors.formats.sb3')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    (tmp_path / "policy.onnx").write_bytes(b"\x08\x08\x12\x04test")
    assert recognise(tmp_path / "policy.onnx").name == "onnx"
