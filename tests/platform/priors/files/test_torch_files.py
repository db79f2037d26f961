"""Files of torch.save, read without torch's unpickler: equal to torch's reading, and nothing foreign is made."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.platform.priors.payloads import Payload
from torch import nn

from rpg_platform.priors.files.inert import Instance
from rpg_platform.priors.files.torch_files import load_tensors, read_tensors
from rpg_platform.priors.imported import PriorImportError


def saved(value: Any, new: bool = True) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, _use_new_zipfile_serialization=new)
    return stream.getvalue()


def with_parts(data: bytes, change: Callable[[str, bytes], bytes | None]) -> bytes:
    """A zip archive with each member as ``change`` makes it; None leaves it out."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(stream, "w") as target:
        for name in source.namelist():
            if (content := change(name, source.read(name))) is not None:
                target.writestr(name, content)
    return stream.getvalue()


@pytest.fixture(scope="module")
def things() -> dict[str, Any]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    network(torch.ones(1, 3)).sum().backward()
    optimizer = torch.optim.Adam(network.parameters())
    optimizer.step()
    weight = torch.randn(4, 4)
    parameter = nn.Parameter(torch.ones(2))
    parameter.attribute = "kept out"  # type: ignore[attr-defined]
    return {
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "views": [weight, weight.T, weight[1:3, ::2], weight[0, 0], weight.expand(2, 4, 4)],
        "types": [torch.arange(3).to(dtype) for dtype in (torch.int8, torch.uint8, torch.int16, torch.int32)],
        "floats": [torch.randn(3).to(dtype) for dtype in (torch.float16, torch.bfloat16, torch.float64)],
        "bools": torch.tensor([True, False]),
        "empty": torch.zeros(0, 3),
        "parameter": parameter,
        "others": {"numpy": np.float64(2.0), "size": torch.Size([1, 2]), "text": "x", "none": None},
    }


def compare(found: Any, expected: Any) -> None:
    if isinstance(expected, torch.Tensor):
        assert type(found) is torch.Tensor
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected.detach())
    elif isinstance(expected, dict):
        assert type(found) is (OrderedDict if isinstance(expected, OrderedDict) else dict)
        assert list(found) == list(expected)
        for key in expected:
            compare(found[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            compare(a, b)
    else:
        assert found == expected


@pytest.mark.parametrize("new", [True, False])
def test_tensors_are_those_that_torch_reads(new: bool, things: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(saved(things, new))
    found = read_tensors(tmp_path / "x.pth")
    compare(found, things)
    assert not found["parameter"].requires_grad
    found["views"][0][0, 0] = 7.0
    assert found["views"][3] == 7.0  # one storage, as it was


@pytest.mark.parametrize("new", [True, False])
def test_whole_modules_stay_inert(new: bool) -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    found = load_tensors(saved(module, new))
    assert isinstance(found, Instance)
    assert found.qualified_name == "torch.nn.modules.container.Sequential"
    linear = found.attributes["_modules"]["0"]
    compare(linear.attributes["_parameters"]["weight"], module[0].weight)


@pytest.mark.parametrize("new", [True, False])
def test_a_payload_is_not_run(new: bool, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    data = saved({"weight": torch.ones(2), "payload": Payload(marker)}, new)
    torch.load(io.BytesIO(data), weights_only=False)
    assert marker.exists()  # it would act
    marker.unlink()
    found = load_tensors(data)
    compare(found["weight"], torch.ones(2))
    assert isinstance(found["payload"], Instance)
    assert not marker.exists()


@pytest.mark.parametrize("new", [True, False])
def test_every_cut_is_an_error(new: bool) -> None:
    data = saved({"a": torch.arange(5.0), "b": torch.ones(3)}, new)
    compare(load_tensors(data)["a"], torch.arange(5.0))
    for end in range(0, len(data), 7):
        with pytest.raises(PriorImportError):
            load_tensors(data[:end])


def claim(shape: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> bytes:
    """A file of four numbers whose tensor claims a layout."""

    class Lie:
        def __reduce__(self) -> tuple[Any, ...]:
            return torch._utils._rebuild_tensor_v2, (storage, offset, shape, stride, False, OrderedDict())

    storage = torch.storage.TypedStorage(wrap_storage=torch.ones(4).untyped_storage(), dtype=torch.float32)
    return saved(Lie())


def test_a_tensor_stays_within_its_storage() -> None:
    compare(load_tensors(claim((2, 2), (1, 2))), torch.ones(2, 2))
    for lie, message in (
        (claim((5,), (1,)), "beyond its storage of 4 numbers"),
        (claim((2, 2), (1, 3)), "beyond its storage"),
        (claim((1,), (1,), 4), "beyond its storage"),
        (claim((1 << 39,), (1,)), "bytes of memory|beyond"),
        (claim((1 << 39, 1 << 30), (0, 0)), "bytes of memory"),
        (claim((2, 2), (1,)), "a tensor whose layout is none"),
        (claim((2,), (-1,)), "not made of sizes"),
        (claim((2,), (1,), -1), "a tensor whose layout is none"),
        (claim((10**30,), (1,)), "not made of sizes"),
    ):
        with pytest.raises(PriorImportError, match=message):
            load_tensors(lie)


def test_files_of_another_kind() -> None:
    scripted = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), scripted)
    good = saved({"a": torch.ones(4)})
    old = saved({"a": torch.ones(4)}, new=False)
    swap = {"byteorder": b"big"}
    for data, message in (
        (b"", "not a file of torch.save"),
        (b"weights", "not a file of torch.save: it looks like a text"),
        (pickle.dumps({"a": 1}), "a pickle, but not a file of torch.save"),
        (scripted.getvalue(), "a TorchScript archive"),
        (with_parts(good, lambda name, _: None if name.endswith("data.pkl") else b""), "0 members data.pkl"),
        (with_parts(good, lambda name, part: None if "/data/" in name else part), "that the file has not"),
        (with_parts(good, lambda name, part: part[:-4] if "/data/" in name else part), "no storage of 4 numbers"),
        (with_parts(good, lambda name, part: part[:-1] if "/data/" in name else part), "no numbers of torch.float32"),
        (with_parts(good, lambda name, part: swap.get(name.rpartition("/")[2], part)), "big-endian"),
        (old[:-1], "has not the size that it claims"),
        (old.replace(b"\x04\0\0\0\0\0\0\0", b"\x05\0\0\0\0\0\0\0"), "has not the size that it claims"),
        (old.replace(b"K\x04", b"K\xff"), "claim more bytes than the file has"),
        (saved(torch.ones(2).to(torch.complex64)), "expected one of DoubleStorage"),
    ):
        with pytest.raises(PriorImportError, match=message):
            load_tensors(data)


def test_an_unfolding_reference_is_not_printed() -> None:
    """Its type is a tuple of two tuples of two tuples …: 2 ** 60 words in a message."""
    doubles = b"".join(b"h%ch%c\x86q%c0" % (i, i, i + 1) for i in range(60))
    identifier = b"(X\x07\0\0\0storageh<X\x01\0\0\x000X\x03\0\0\0cpuK\x04tQ."
    evil = b"\x80\x02)q\x000" + doubles + identifier
    data = with_parts(saved(torch.ones(4)), lambda name, part: evil if name.endswith("data.pkl") else part)
    with pytest.raises(PriorImportError, match="a reference to a storage that is none"):
        load_tensors(data)
