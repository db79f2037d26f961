"""TorchScript files that want to act, hang or fill the memory: nothing in them is executed, and they are refused."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import random
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.platform.priors.archives import parts_of, smuggled, zipped
from tests.platform.priors.graph_modules import CASES, CONTINUOUS, D
from tests.platform.priors.payloads import acts, payload, refusal
from torch import Tensor, nn

from rpg_platform.priors.formats.torchscript import archive as torchscript
from rpg_platform.priors.formats.torchscript.code import MAX_FILE_LINES
from rpg_platform.priors.imported import PriorImportError

pytestmark = pytest.mark.timeout(120)
Members = dict[str, bytes]


class Plain(nn.Module):
    """What the hostile files are a change away from."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, D))

    def forward(self, obs: Tensor) -> Tensor:
        return nn.functional.linear(obs, self.weight) + torch.tensor([0.5])


def members_of(module: nn.Module) -> Members:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(module.eval(), torch.randn(3, D)), buffer)
    return parts_of(buffer.getvalue())


def write(members: Members, file: Path) -> Path:
    file.write_bytes(zipped(members))
    return file


@pytest.fixture(scope="module")
def plain() -> Members:
    torch.manual_seed(0)
    return members_of(Plain())


def code_of(members: Members) -> str:
    return next(name for name, content in members.items() if name.endswith(".py") and b"class Plain" in content)


def with_body(members: Members, *lines: str, more: str = "") -> Members:
    """The archive with another body of ``forward``, and more code after the class."""
    name = code_of(members)
    head, _, rest = members[name].decode().partition("  def forward(")
    signature = rest.partition(":\n")[0]
    if "-> " not in signature:  # the signature goes over two lines
        signature = rest[: rest.index("-> Tensor:") + len("-> Tensor")]
    body = "".join(f"    {line}\n" for line in lines)
    return {**members, name: f"{head}  def forward({signature}:\n{body}{more}".encode()}


def test_the_plain_file_is_read(plain: Members, tmp_path: Path) -> None:
    network = torchscript.read(write(plain, tmp_path / "policy.pt"), CONTINUOUS).network
    assert network.spec.graph is None
    again = with_body(plain, "weight = self.weight", "return torch.linear(obs, weight)")
    assert torchscript.read(write(again, tmp_path / "policy.pt"), CONTINUOUS).network.spec.hidden == ()


# --- pickles


def test_payloads_in_every_pickle_do_not_run(tmp_path: Path) -> None:
    members = members_of(CASES["normalised"].module())
    pickles = [name for name in members if name.endswith(("pkl", "_pkl"))]
    assert len(pickles) >= 6
    assert {name.rpartition("/")[2] for name in pickles} >= {"data.pkl", "constants.pkl", "traced_inputs.pkl"}
    marker = tmp_path / "ran"
    assert acts(payload(marker), marker)
    for name in pickles:
        # Alone; and before the true content, which leaves the file whole.
        for content in (payload(marker), smuggled(members[name], marker)):
            with contextlib.suppress(pickle.UnpicklingError, AttributeError, ModuleNotFoundError):
                pickle.loads(content)
            assert marker.exists(), "the payload does not work"
            marker.unlink()
            file = write({**members, name: content}, tmp_path / "policy.pt")
            refused = refusal(torchscript.read, file, CONTINUOUS)
            needed = name.endswith(("/data.pkl", "/constants.pkl"))
            assert (refused is not None) == (needed and content == payload(marker)), refused
            assert not marker.exists(), name


# --- code

RETURN = "return torch.linear(obs, self.weight)"
ACTS = 'os.system("touch {marker}")'
CODE: dict[str, tuple[list[str], str]] = {
    "import in forward": (["import os", ACTS, RETURN], r"line \d+: Import: not what a graph can hold"),
    "import from": (["from os import system", "system('touch {marker}')", RETURN], r"ImportFrom: not what a graph"),
    "dunder import": (
        ["_ = __import__('os').system('touch {marker}')", RETURN],
        r"the name '__import__' is not defined",
    ),
    "exec": (["exec('import os; " + ACTS.replace('"', "") + "')", RETURN], r"the name 'exec' is not defined"),
    "eval": (["_ = eval('1')", RETURN], r"the name 'eval' is not defined"),
    "open": (["_ = open('{marker}', 'w')", RETURN], r"the name 'open' is not defined"),
    "builtins": (["_ = __builtins__.open('{marker}', 'w')", RETURN], r"the name '__builtins__' is not defined"),
    "globals": (["return self.__class__.__init__.__globals__"], r"has no attribute '__class__'"),
    "getattr": (["return getattr(self, '__reduce__')(0)"], r"has no attribute '__reduce__'"),
    "torch's own modules": (
        ["return torch.serialization.os.system('touch {marker}')"],
        r"torch\.serialization\.os\.system is not an operation",
    ),
    "libraries": (
        ["_ = torch.ops.load_library('/tmp/x.so')", "return _"],
        r"torch\.ops\.load_library is not an operation",
    ),
    "other operators": (["return ops.evil.run(obs)"], r"ops\.evil\.run|evil\.run is not an operation"),
    "files": (["return torch.load('/etc/passwd')"], r"torch\.load is not an operation"),
    "lambda": (["return (lambda x: x)(obs)"], r"Lambda: not what a graph can hold"),
    "comprehension": (["return [obs for _ in range(10)]"], r"ListComp: not what a graph can hold"),
    "nested function": (["def f():", "  return 1", "return f()"], r"FunctionDef: not what a graph can hold"),
    "delete": (["del self.weight", RETURN], r"Delete: not what a graph can hold"),
    "raise": (["ops.prim.RaiseException('no')", RETURN], r"the code raises no"),
    "endless": (["while True:", "  pass", RETURN], r"While: not what a graph can hold"),
    "long loop": (["for i in range(1000000000000):", "  pass", RETURN], r"a loop whose length is 1000000000000"),
    "loops in loops": (
        ["for i in range(9999):", "  for j in range(9999):", "    x = torch.add(i, j)", RETURN],
        r"more than 200000 steps",
    ),
    "calls itself": (["return (self).forward(obs, )"], r"nested more than 120 levels deep"),
    "huge numbers": (
        ["x = torch.pow(9, 64)", "for i in range(9000):", "  x = torch.mul(x, x)", "return torch.mul(obs, x)"],
        r"numbers beyond 64 bits",
    ),
    "doubling list": (
        ["x = [1]", "for i in range(64):", "  x = torch.add(x, x)", "return torch.tensor(x)"],
        r"a list of more than 10,000 entries",
    ),
    "huge constant": (["return torch.zeros([1099511627776])"], r"a constant of 1099511627776 numbers is too large"),
    "many constants": (
        [
            "x = torch.zeros([50000000])",
            "for i in range(100):",
            "  x = torch.add(torch.ones([50000000]), 1)",
            "return x",
        ],
        r"a constant of 50000000 numbers is too large",
    ),
    "many operations": (
        ["x = obs", "for i in range(9999):", "  for j in range(9):", "    x = torch.tanh(x)", "return x"],
        r"more than (8000 operations|200000 steps)",
    ),
    "wide": (
        ["x = obs", "for i in range(64):", "  x = torch.cat([x, x], 1)", "return x"],
        r"numbers per observation, more than 65536",
    ),
    "deep": (["return " + "torch.tanh(" * 150 + "obs" + ")" * 150], r"nested more than 120 levels deep"),
    "deeper": (["return " + "(" * 5_000 + "obs" + ")" * 5_000], r"cannot be parsed"),
    "deep in another way": (["x = " + "-" * 50_000 + "1", RETURN], r"cannot be parsed|nested more than"),
    "long chain": (["x = obs" + ".a" * 50_000, RETURN], r"cannot be parsed|nested more than"),
    "formatted string": (['x = f"' + "{1}" * 20_000 + '"', RETURN], r"formatted strings"),
    "long number": (["x = " + "9" * 100_000, RETURN], r"cannot be parsed"),
    "long file": ([*(["0"] * 100_000), RETURN], rf"100\d\d\d lines, more than the {MAX_FILE_LINES} that are read"),
    "long line": (["x = [" + "1, " * 400_000 + "]", RETURN], r"more than the 1000000 bytes of code that are read"),
    "no Python": (["return 1 +", RETURN], r"cannot be parsed: invalid syntax"),
}


@pytest.mark.parametrize("what", CODE)
def test_hostile_code_is_neither_run_nor_waited_for(what: str, plain: Members, tmp_path: Path) -> None:
    lines, message = CODE[what]
    marker = tmp_path / "ran"
    file = write(with_body(plain, *(line.replace("{marker}", str(marker)) for line in lines)), tmp_path / "policy.pt")
    with pytest.raises(PriorImportError, match=rf"policy\.pt: .*({message})"):
        torchscript.read(file, CONTINUOUS)
    assert not marker.exists()


def test_code_beside_the_classes_is_not_run(plain: Members, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    act = f"__import__('os').system('touch {marker}')\n"
    for where in (act + plain[code_of(plain)].decode(), plain[code_of(plain)].decode() + act):
        file = write({**plain, code_of(plain): where.encode()}, tmp_path / "policy.pt")
        with pytest.raises(PriorImportError, match=r"line \d+: Expr outside of a class or function"):
            torchscript.read(file, CONTINUOUS)
    inside = plain[code_of(plain)].decode().replace("  __buffers__ = []\n", f"  __buffers__ = []\n  {act}")
    assert inside != plain[code_of(plain)].decode()
    torchscript.read(write({**plain, code_of(plain): inside.encode()}, tmp_path / "policy.pt"), CONTINUOUS)
    default = plain[code_of(plain)].decode().replace("obs: Tensor)", f"obs: Tensor, x: int={act.strip()})")
    with pytest.raises(PriorImportError, match=r"the name '__import__' is not defined"):
        torchscript.read(write({**plain, code_of(plain): default.encode()}, tmp_path / "policy.pt"), CONTINUOUS)
    os.system(f"touch {marker}")  # noqa: S605 - the payload does work
    assert marker.exists()


def test_a_bomb_of_calls_ends(plain: Members, tmp_path: Path) -> None:
    """Each of 60 functions calls the one before it twice: 2^60 calls."""
    name = code_of(plain)
    module = "__torch__." + name.partition("/code/__torch__/")[2].removesuffix(".py").replace("/", ".")
    functions = "def f0(x: Tensor) -> Tensor:\n  return x\n"
    for i in range(1, 60):
        functions += f"def f{i}(x: Tensor) -> Tensor:\n  _ = {module}.f{i - 1}(x)\n  return {module}.f{i - 1}(x)\n"
    members = with_body(plain, f"return {module}.f20(obs)", more=functions)
    with pytest.raises(PriorImportError, match=r"more than 200000 steps"):
        torchscript.read(write(members, tmp_path / "policy.pt"), CONTINUOUS)
    members = with_body(plain, f"return torch.linear({module}.f3(obs), self.weight)", more=functions)
    torchscript.read(write(members, tmp_path / "policy.pt"), CONTINUOUS)


# --- malformed


def replaced(end: str, content: bytes) -> Callable[[Members], Members]:
    return lambda members: {k: content if k.endswith(end) else v for k, v in members.items()}


def without(end: str) -> Callable[[Members], Members]:
    return lambda members: {k: v for k, v in members.items() if not k.endswith(end)}


MALFORMED: dict[str, tuple[Callable[[Members], Members], str]] = {
    "no constants": (without("constants.pkl"), r"not a TorchScript file: it has 0 members constants\.pkl"),
    "no data": (without("data.pkl"), r"not a TorchScript file: it has no member \S*data\.pkl"),
    "no code": (without(".py"), r"the archive has no code of '__torch__\."),
    "no weights": (without("data/0"), r"its tensors need a member \S*data/0 that the file has not"),
    "short weights": (replaced("data/0", bytes(8)), r"data/0 is no storage of 36 numbers"),
    "another pickle": (replaced("data.pkl", pickle.dumps([1, 2], 2)), r"data\.pkl holds \[1, 2\], expected a module"),
    "no pickle": (replaced("data.pkl", b"hello"), r"data\.pkl: (not a|damaged) pickle"),
    "other constants": (replaced("constants.pkl", pickle.dumps(3, 2)), r"expected a module"),
    "fewer constants": (replaced("constants.pkl", pickle.dumps((), 2)), r"the archive has no constant 'c0'"),
    "big endian": (replaced("byteorder", b"big"), r"written on a big-endian machine"),
    "code not text": (replaced(".py", b"\xff\xfe\x00\x00"), r"cannot be parsed"),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_malformed_archives_are_refused(what: str, plain: Members, tmp_path: Path) -> None:
    change, message = MALFORMED[what]
    with pytest.raises(PriorImportError, match=message):
        torchscript.read(write(change(plain), tmp_path / "policy.pt"), CONTINUOUS)


def test_truncated_and_mutated_files_are_refused_or_read(plain: Members, tmp_path: Path) -> None:
    whole = write(plain, tmp_path / "policy.pt").read_bytes()
    file = tmp_path / "changed.pt"
    for size in range(0, len(whole), max(1, len(whole) // 40)):
        file.write_bytes(whole[:size])
        with pytest.raises(PriorImportError):
            torchscript.read(file, CONTINUOUS)
    source = random.Random(0)
    names = [name for name in plain if name.endswith((".py", "data.pkl", "constants.pkl"))]
    for _ in range(150):  # within the members, whose checksums are made to fit
        name = source.choice(names)
        content = bytearray(plain[name])
        for _ in range(source.randint(1, 4)):
            content[source.randrange(len(content))] = source.randrange(256)
        write({**plain, name: bytes(content)}, file)
        with contextlib.suppress(PriorImportError):
            torchscript.read(file, CONTINUOUS)


def test_the_code_chooses_no_codec(plain: Members, tmp_path: Path) -> None:
    """Python's parser would import the codec that a first line names."""
    name = code_of(plain)
    sys.modules.pop("encodings.utf_16_be", None)
    file = write({**plain, name: b"# -*- coding: utf_16_be -*-\n" + plain[name]}, tmp_path / "policy.pt")
    torchscript.read(file, CONTINUOUS)
    assert "encodings.utf_16_be" not in sys.modules
