"""Finding the policy that a user means, and writing without leaving halves or destroying anything."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import mlflow.pyfunc
import onnx
import pytest
from tests.algorithms.policies.networks import make_network
from tests.platform.export.bundles import bundle_of

from rpg_algorithms.policies.bundle import load_card
from rpg_platform.export.files import FOREIGN, export


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    bundle_of(make_network("squashed"), tmp_path / "bundle")
    return tmp_path / "bundle"


def test_all_formats_into_one_folder(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    written = export(str(bundle), FOREIGN, out)
    assert [each.path.name for each in written] == ["policy.pt", "policy.onnx", "mlflow"]
    assert {each.name for each in out.iterdir()} == {"policy.pt", "policy.onnx", "mlflow"}
    assert max(each.deviation for each in written) < 1e-6
    card = load_card(bundle)
    assert mlflow.pyfunc.load_model(str(out / "mlflow")).metadata.metadata["content_hash"] == card.content_hash


def test_nothing_is_overwritten_unasked(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "policy.onnx"
    out.write_text("mine")
    with pytest.raises(ValueError, match=re.escape(f"{out} exists; nothing is overwritten without --overwrite")):
        export(str(bundle), ("onnx",), out)
    assert out.read_text() == "mine"
    export(str(bundle), ("onnx",), out, overwrite=True)
    onnx.checker.check_model(out)
    # A folder is replaced only by what it is: a slip of the pen must not remove a home.
    with pytest.raises(ValueError, match="is no mlflow export"):
        export(str(bundle), ("mlflow",), bundle, overwrite=True)
    with pytest.raises(ValueError, match="is no onnx export"):
        export(str(bundle), ("onnx",), bundle, overwrite=True)
    export(str(bundle), ("mlflow",), tmp_path / "model")
    export(str(bundle), ("mlflow",), tmp_path / "model", overwrite=True)
    # With several formats, one place that is taken stops all of them.
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "mlflow").mkdir()
    with pytest.raises(ValueError, match="exists"):
        export(str(bundle), FOREIGN, tmp_path / "all")
    assert [each.name for each in (tmp_path / "all").iterdir()] == ["mlflow"]
    with pytest.raises(ValueError, match="several formats go into a folder"):
        export(str(bundle), FOREIGN, out, overwrite=True)


def test_a_failed_export_leaves_what_was_there(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "policy.onnx"
    out.write_text("earlier")
    monkeypatch.setattr("rpg_platform.export.policy.TOLERANCE", {"float64": 0.0, "float32": 0.0})
    with pytest.raises(RuntimeError, match="deviates"):
        export(str(bundle), ("onnx",), out, overwrite=True)
    assert out.read_text() == "earlier"
    assert {each.name for each in tmp_path.iterdir()} == {"bundle", "policy.onnx"}


def test_without_onnx_it_says_what_to_install(bundle: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "sys.modules['onnx'] = None\n"
        "from pathlib import Path\n"
        "from rpg_platform.export.files import export\n"
        "try:\n"
        "    export(sys.argv[1], ('mlflow',), Path(sys.argv[2]))\n"
        "except ValueError as error:\n"
        "    print(error)\n"
    )
    command = [sys.executable, "-c", code, str(bundle), str(tmp_path / "out")]
    environment = {"PYTHONPATH": ":".join(each for each in sys.path if each)}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert "pip install 'residual-policy-gradient[onnx]'" in ended.stdout, ended.stderr
    assert not (tmp_path / "out").exists()
