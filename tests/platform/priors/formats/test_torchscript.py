"""TorchScript files: the imported policy is torch.jit's own, for scripted, traced and frozen modules."""

from __future__ import annotations

import dataclasses
import io
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from tests.platform.priors.graph_modules import (
    ACTIONS,
    CASES,
    CONTINUOUS,
    DISCRETE,
    OBSERVATIONS,
    A,
    D,
    Deterministic,
    Free,
    K,
    Logits,
    TwoHeads,
    assert_same_policy,
    expected_inputs,
    states,
)
from torch import Tensor, nn
from torch.nn import functional

from rpg_algorithms.policies.numpy_policy import NumpyPolicy
from rpg_platform.priors.formats.torchscript import archive as torchscript
from rpg_platform.priors.imported import Imported, ImportOptions, PriorImportError

HOW = ("scripted", "traced", "frozen")


def saved(module: nn.Module, file: Path, how: str = "scripted", batch: int = 5) -> Path:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        if how == "traced":
            made: Any = torch.jit.trace(module, torch.randn(batch, D), strict=False)
        else:
            made = torch.jit.script(module)
            made = torch.jit.freeze(made) if how == "frozen" else made
        torch.jit.save(made, str(file))
    return file


def imported(module: nn.Module, tmp_path: Path, options: ImportOptions = CONTINUOUS, how: str = "scripted") -> Imported:
    return torchscript.read(saved(module, tmp_path / "policy.pt", how), options)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("how", HOW)
def test_the_policy_is_torchs_own(name: str, how: str, tmp_path: Path) -> None:
    case = CASES[name]
    file = saved(case.module(), tmp_path / "policy.pt", how)
    result = torchscript.read(file, case.options)
    loaded = torch.jit.load(str(file))
    obs = states()
    assert_same_policy(result.network, expected_inputs(loaded, obs), obs)
    spec = result.network.spec
    assert (spec.graph is None) == (case.plain is not None)
    for field, value in (case.plain or {}).items():
        assert getattr(spec, field) == value, field
    assert any("kept as a graph" in note for note in result.notes) == (case.plain is None)
    assert result.format == "torchscript"
    assert result.observation_space is None
    # It acts as it computes.
    acted = NumpyPolicy(result.network).dist_inputs(obs.numpy())
    with torch.no_grad():
        np.testing.assert_allclose(acted, result.network(obs).numpy(), atol=1e-5, rtol=1e-5)


def test_weights_are_trainable_and_statistics_are_not(tmp_path: Path) -> None:
    network = imported(CASES["residual"].module(), tmp_path, how="frozen").network
    assert network.graph is not None
    assert {name.split("_")[1] for name, _ in network.graph.named_parameters()} >= {"c0"}
    assert not list(network.graph.buffers())
    torch.manual_seed(0)
    module = nn.Sequential(nn.Tanh(), nn.BatchNorm1d(D), nn.GELU(), nn.Linear(D, 2 * A)).eval()
    network = imported(module, tmp_path).network
    assert network.graph is not None
    assert [name.partition("_")[2] for name, _ in network.graph.named_buffers()] == ["running_mean", "running_var"]
    assert [name.partition("_")[2] for name, _ in network.graph.named_parameters()] == ["weight", "bias"] * 2


class Squashed(TwoHeads):
    """Standard deviations instead of their logarithms."""

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.body(obs)
        return self.mean(hidden), functional.softplus(self.log_std(hidden)) + 1e-3


def test_what_the_file_does_not_say_is_what_the_user_says(tmp_path: Path) -> None:
    module = CASES["two heads"].module()
    plain = imported(module, tmp_path)
    assert plain.network.spec.distribution == "gaussian"
    assert any("say --distribution squashed_gaussian" in note for note in plain.notes)
    options = dataclasses.replace(CONTINUOUS, distribution="squashed_gaussian")
    squashed = imported(module, tmp_path, options)
    assert squashed.network.spec.distribution == "squashed_gaussian"
    assert not any("say --distribution" in note for note in squashed.notes)
    torch.manual_seed(0)
    module = Squashed().eval()
    obs = states()
    wanted = expected_inputs(module, obs)
    wanted[:, A:] = wanted[:, A:].log()
    result = imported(module, tmp_path, dataclasses.replace(CONTINUOUS, second_output="std"))
    assert_same_policy(result.network, wanted, obs)


def test_a_normaliser_from_a_file_is_put_before(tmp_path: Path) -> None:
    mean, var = np.arange(D, dtype=np.float64), np.full(D, 4.0)
    np.savez(tmp_path / "stats.npz", mean=mean, var=var, clip=np.array(1.5))
    module = CASES["free"].module()
    options = dataclasses.replace(CONTINUOUS, normalizer=tmp_path / "stats.npz")
    for each in (module, CASES["residual"].module()):
        obs = states()
        normalised = ((obs - torch.from_numpy(mean).float()) / 2.0).clamp(-1.5, 1.5)
        assert_same_policy(imported(each, tmp_path, options).network, expected_inputs(each, normalised), obs)
    with pytest.raises(PriorImportError, match=r"holds a normaliser of its own; .*stats\.npz would be a second one"):
        imported(CASES["normalised"].module(), tmp_path, options)


def test_probabilities_become_logits(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Logits(probabilities=True).eval()
    result = imported(module, tmp_path, DISCRETE)
    obs = states()
    with torch.no_grad():
        torch.testing.assert_close(result.network(obs).softmax(-1), module(obs), atol=1e-6, rtol=1e-5)
    assert "returns probabilities: their logarithm is taken" in result.notes


@pytest.mark.parametrize("tanh", [True, False])
def test_deterministic_policies_need_a_standard_deviation(tanh: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Deterministic(tanh).eval()
    with pytest.raises(
        PriorImportError, match=r"returns actions alone, \[B, 3\]: a deterministic policy has no density"
    ):
        imported(module, tmp_path)
    result = imported(module, tmp_path, dataclasses.replace(CONTINUOUS, std=0.2))
    spec = result.network.spec
    assert spec.distribution == ("squashed_gaussian" if tanh else "gaussian")
    assert spec.graph is None
    torch.testing.assert_close(result.network.log_std.detach(), torch.full((A,), 0.2).log())
    policy, obs = NumpyPolicy(result.network), states()
    with torch.no_grad():
        wanted = module(obs).numpy()
    acted = policy.to_env(policy.mode(policy.outputs(obs.numpy())))
    np.testing.assert_allclose(acted, wanted if tanh else np.clip(wanted, ACTIONS.low, ACTIONS.high), atol=1e-5)
    with pytest.raises(PriorImportError, match=r"std=-1.0: expected a positive number"):
        imported(module, tmp_path, dataclasses.replace(CONTINUOUS, std=-1.0))


# --- what is refused, with the operation and the line


class Body(nn.Module):
    """A module of one linear layer; subclasses do with it what no graph can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(D, A)
        self.free = nn.Parameter(torch.zeros(A))


class ByData(Body):
    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.linear(obs)
        if bool((mean > 0).all()):
            mean = mean * 2.0
        return mean, self.free.expand_as(mean)


class ByBatch(Body):
    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.linear(obs)
        if obs.shape[0] == 1:
            mean = mean * 2.0
        return mean, self.free.expand_as(mean)


class LoopByData(Body):
    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.linear(obs)
        for _ in range(int(mean.max())):
            mean = mean * 2.0
        return mean, self.free.expand_as(mean)


class While(Body):
    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        mean, count = self.linear(obs), 0
        while count < 3:
            mean, count = mean * 2.0, count + 1
        return mean, self.free.expand_as(mean)


class Recurrent(Body):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(D, A)

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.cell(obs)
        return mean, self.free.expand_as(mean)


class LstmExporter(nn.Module):
    """As legged robots' controllers are exported: the layer's state is kept in buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.memory, self.actor = nn.LSTM(D, 8), nn.Linear(8, A)
        self.register_buffer("hidden_state", torch.zeros(1, 1, 8))
        self.register_buffer("cell_state", torch.zeros(1, 1, 8))

    def forward(self, obs: Tensor) -> Tensor:
        out, (h, c) = self.memory(obs.unsqueeze(0), (self.hidden_state, self.cell_state))
        self.hidden_state[:] = h
        self.cell_state[:] = c
        return self.actor(out.squeeze(0))


class OwnMemory(Body):
    """A recurrent network in plain operations."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("hidden_state", torch.zeros(1, 1, A))

    def forward(self, obs: Tensor) -> Tensor:
        hidden = torch.tanh(self.linear(obs.unsqueeze(0)) + self.hidden_state)
        self.hidden_state[:] = hidden
        return hidden.squeeze(0)


class MemoryBeside(Body):
    """Its state goes in and out."""

    def forward(self, obs: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.tanh(self.linear(obs) + hidden)
        return hidden, hidden


class Random(Body):
    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.linear(obs)
        return mean + torch.rand_like(mean), self.free.expand_as(mean)


class AcrossBatch(Body):
    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.linear(obs - obs.mean(dim=0))
        return mean, self.free.expand_as(mean)


class Where(Body):
    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.linear(obs)
        return torch.where(mean > 0, mean, -mean), self.free.expand_as(mean)


class SelfChanging(Body):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        self.count = self.count + 1
        return self.linear(obs), self.free


class InPlaceOnView(Body):
    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.linear(obs)
        mean[:, :1].mul_(2.0)
        return mean, self.free


class Constant(Body):
    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(obs[:, :3]), self.free


class Three(Body):
    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean = self.linear(obs)
        return mean, mean, mean


class Named(Body):
    def forward(self, obs: Tensor) -> dict[str, Tensor]:
        return {"value": self.linear(obs)}


class Wide(nn.Module):
    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        outer = (obs.unsqueeze(1) * obs.unsqueeze(2)).reshape(-1, 36)
        huge = (outer.unsqueeze(1) * outer.unsqueeze(2)).reshape(-1, 1296)
        return (huge.unsqueeze(1) * huge.unsqueeze(2)).mean(dim=1)[:, :3], obs[:, :3]


REFUSED: dict[str, tuple[type[nn.Module], str]] = {
    "decision by the data": (
        ByData,
        r"code/__torch__\S*, line \d+: torch\.gt: a comparison of tensors: a decision that depends on the data",
    ),
    "decision by the batch": (
        ByBatch,
        r"line \d+: torch\.eq: arithmetic with the size of the batch, or a decision by it",
    ),
    "loop by the data": (LoopByData, r"line \d+: torch\.max: reduces over the batch"),
    "while": (While, r"line \d+: (While|For): not what a graph|a loop"),
    "recurrent": (Recurrent, r"line \d+: torch\.gru_cell: a recurrent layer: a policy with a memory"),
    "memory": (LstmExporter, r"rnn.py, line \d+: torch\.lstm: a recurrent layer: a policy with a memory"),
    "memory by hand": (OwnMemory, r"line \d+: torch\.copy_: changes its own 'hidden_state': a policy with a memory"),
    "memory beside": (MemoryBeside, r"line \d+: its actions depend on its input 'hidden', .*a policy with a memory"),
    "random": (Random, r"line \d+: torch\.rand_like is not an operation that a graph can hold"),
    "across the batch": (AcrossBatch, r"line \d+: torch\.mean: axis 0 of \[B, 6\]"),
    "where": (Where, r"line \d+: torch\.(where|gt)"),
    "changes itself": (SelfChanging, r"line \d+: changes its own 'count': a policy with a memory"),
    "in place on a view": (InPlaceOnView, r"line \d+: torch\.mul_: an operation in place on a view of another tensor"),
    "constant": (Constant, r"what it returns does not depend on the observation"),
    "three outputs": (Three, r"returns \[B, 3\] and \[B, 3\] and \[B, 3\]; expected mean and log_std, both \[B, 3\]"),
    "other names": (Named, r"returns value \[B, 3\], none of which is an action; expected mean and log_std, both"),
    "wide": (Wide, r"line \d+: torch\.mul: a result of \d+ numbers per observation, more than 65536"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_graph_is_refused_with_its_line(what: str, tmp_path: Path) -> None:
    make, message = REFUSED[what]
    with pytest.raises(PriorImportError, match=rf"policy\.pt: .*({message})"):
        imported(make().eval(), tmp_path)


def test_modules_that_still_train_are_refused(tmp_path: Path) -> None:
    for layer, message in (
        (nn.Dropout(0.5), "torch.dropout: dropout in training mode"),
        (nn.BatchNorm1d(D), r"batchnorm\S*, line \d+: torch\.add_: batch normalisation in training mode .*\.eval\(\)"),
    ):
        with pytest.raises(PriorImportError, match=message):
            imported(nn.Sequential(layer, nn.Linear(D, 2 * A)).train(), tmp_path)


@pytest.mark.parametrize("batch", [1, 2])
def test_a_trace_that_fixes_the_batch_is_refused(batch: int, tmp_path: Path) -> None:
    class Fixed(Body):
        def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
            return self.linear(obs.reshape(len(obs), 6)), self.free

    file = saved(Fixed(), tmp_path / "policy.pt", "traced", batch)
    with pytest.raises(
        PriorImportError, match=rf"a reshape to \[{batch}, 6\] does not keep the batch axis of \[the batch"
    ):
        torchscript.read(file, CONTINUOUS)


def test_an_environment_that_it_does_not_fit_is_refused(tmp_path: Path) -> None:
    file = saved(CASES["free"].module(), tmp_path / "policy.pt")
    with pytest.raises(PriorImportError, match=r"holds no observation and action space.*--env ID"):
        torchscript.read(file, ImportOptions())
    wide = dataclasses.replace(CONTINUOUS, observation_space=gym.spaces.Box(-1.0, 1.0, (D + 1,)))
    with pytest.raises(
        PriorImportError, match=r"torch\.linear: input \[B, 7\], weight and bias \[16, 6\], \[16\] do not fit"
    ):
        torchscript.read(file, wide)
    with pytest.raises(PriorImportError, match=r"returns \[B, 3\] and \[B, 3\]; expected logits \[B, 4\]"):
        torchscript.read(file, DISCRETE)
    file = saved(CASES["one tensor"].module(), tmp_path / "policy.pt")
    with pytest.raises(PriorImportError, match=r"--std is for deterministic policies; this one returns \[B, 6\]"):
        torchscript.read(file, dataclasses.replace(CONTINUOUS, std=0.1))


def test_unused_operations_do_not_matter(tmp_path: Path) -> None:
    class Extra(Body):
        def forward(self, obs: Tensor) -> dict[str, Tensor]:
            logits = self.linear(obs)
            return {"action": logits.argmax(-1), "logits": logits, "sorted": torch.sort(logits)[0]}

    options = ImportOptions(observation_space=OBSERVATIONS, action_space=gym.spaces.Discrete(A))
    module = Extra()
    obs = states(50)
    with torch.no_grad():
        torch.testing.assert_close(imported(module, tmp_path, options).network(obs), module(obs)["logits"])


class Norms(Body):
    """Every order of a norm, and extremes of two tensors, of an axis, and of a constant."""

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        norms = [torch.norm(obs, p=order, dim=1) for order in (1.5, 1.0, 2.0, 3.0, float("inf"), float("-inf"))]
        more = [torch.linalg.norm(obs, dim=-1), torch.linalg.vector_norm(obs, 1.0, dim=1), obs.norm(2.0, 1)]
        extremes = [torch.max(obs, 1)[0], obs.min(dim=1)[0], torch.max(obs[:, 0], obs[:, 1] * torch.max(self.free))]
        unit = functional.normalize(obs[:, :3] * 0.0, dim=1)  # of zeros: its gradient is zero, not infinite
        both = torch.stack(norms + more + extremes, dim=1) / 30.0
        return self.linear(both[:, :6]) + unit, both[:, 6:9] + both[:, 9:]


@pytest.mark.parametrize("how", ["scripted", "traced"])
def test_norms_and_extremes_are_torchs_own(how: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, obs = Norms().eval(), states()
    network = imported(module, tmp_path, how=how).network
    assert_same_policy(network, expected_inputs(module, obs), obs)
    network.requires_grad_(True)
    zeros = torch.zeros(2, D, requires_grad=True)
    network(zeros).sum().backward()  # type: ignore[no-untyped-call]
    assert bool(torch.isfinite(zeros.grad).all())


def test_non_finite_weights_are_refused(tmp_path: Path) -> None:
    for name in ("free", "residual"):
        module = CASES[name].module()
        with torch.no_grad():
            list(module.parameters())[-1].fill_(torch.nan)
        with pytest.raises(PriorImportError, match="not finite"):
            imported(module, tmp_path)


def test_a_file_of_torch_save_is_another_format(tmp_path: Path) -> None:
    torch.save(Free().state_dict(), tmp_path / "policy.pt")
    with pytest.raises(PriorImportError, match=r"not a TorchScript file: it has 0 members constants\.pkl"):
        torchscript.read(tmp_path / "policy.pt", CONTINUOUS)


def test_the_library_of_cases_is_what_it_says() -> None:
    """The modules are what they are said to be: scripting them gives other code than tracing."""
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(CASES["normalised"].module()), buffer)
    assert b"if " in buffer.getvalue()
    assert K != A != D
