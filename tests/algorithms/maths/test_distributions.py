"""Action distributions against torch.distributions, scipy and high-precision arithmetic."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch
from torch import Tensor

from rpg_algorithms.maths.distributions import Categorical, DiagonalGaussian, SquashedGaussian, make_distribution


@pytest.fixture
def inputs() -> Tensor:
    return torch.randn(50, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def reference(name: str, inputs: Tensor) -> torch.distributions.Distribution:
    if name == "categorical":
        return torch.distributions.Categorical(logits=inputs)
    mean, log_std = inputs.chunk(2, -1)
    return torch.distributions.Independent(torch.distributions.Normal(mean, log_std.exp()), 1)


@pytest.mark.parametrize("name", ["gaussian", "categorical"])
def test_closed_forms_are_torchs(name: str, inputs: Tensor) -> None:
    ours, theirs = make_distribution(name, inputs), reference(name, inputs)
    action = theirs.sample()
    assert torch.allclose(ours.log_prob(action), theirs.log_prob(action), atol=1e-12)
    assert torch.allclose(ours.entropy(), theirs.entropy(), atol=1e-12)
    other = inputs.flip(0)
    expected = torch.distributions.kl_divergence(theirs, reference(name, other))
    assert torch.allclose(ours.kl(make_distribution(name, other)), expected, atol=1e-12)
    assert expected.min() > 0.01


def test_gaussian_log_prob_by_hand() -> None:
    # N(1, 2^2) at 3: z = 1, -1/2 - ln 2 - ln(2 pi)/2;  N(0, 1) at 0 adds -ln(2 pi)/2
    distribution = DiagonalGaussian(torch.tensor([1.0, 0.0]), torch.tensor([math.log(2.0), 0.0]))
    expected = -0.5 - math.log(2.0) - math.log(2 * math.pi)
    assert distribution.log_prob(torch.tensor([3.0, 0.0])).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("family", [DiagonalGaussian, SquashedGaussian])
def test_modes_and_inputs(family: type[DiagonalGaussian]) -> None:
    distribution = family.from_inputs(torch.tensor([[1.0, 2.0, -1.0, -2.0]]))
    assert distribution.mode().tolist() == [[1.0, 2.0]]
    assert distribution.log_std.tolist() == [[-1.0, -2.0]]
    assert Categorical.from_inputs(torch.tensor([[1.0, 3.0, 2.0]])).mode().tolist() == [1]


def squashed_by_mpmath(u: float, mean: float, log_std: float) -> float:
    """The density of a = tanh(u) at 60 digits: log N(u) - log(1 - tanh(u)^2)."""
    with mpmath.workdps(60):
        z = (mpmath.mpf(u) - mean) / mpmath.exp(log_std)
        normal = -z * z / 2 - log_std - mpmath.log(2 * mpmath.pi) / 2
        return float(normal - mpmath.log(1 - mpmath.tanh(mpmath.mpf(u)) ** 2))


@pytest.mark.parametrize("u", [0.0, 0.3, -1.0, 5.0, -9.5, 20.0, -45.0])
@pytest.mark.parametrize(("mean", "log_std"), [(0.0, 0.0), (0.5, -2.0), (-3.0, 1.0)])
def test_squashed_log_prob_is_exact_at_any_sample(u: float, mean: float, log_std: float) -> None:
    distribution = SquashedGaussian(torch.tensor([mean]), torch.tensor([log_std]))
    expected = squashed_by_mpmath(u, mean, log_std)
    assert distribution.log_prob(torch.tensor([u])).item() == pytest.approx(expected, rel=2e-6, abs=1e-5)
    # The textbook form loses everything there: the exactness above is not a matter of course.
    if abs(u) > 10:
        assert torch.log(1 - torch.tanh(torch.tensor(u)) ** 2).isinf()


def test_squashed_log_prob_is_torchs_transformed_distribution(inputs: Tensor) -> None:
    mean, log_std = inputs.chunk(2, -1)
    theirs = torch.distributions.TransformedDistribution(
        torch.distributions.Normal(mean, log_std.exp()), [torch.distributions.TanhTransform(cache_size=1)]
    )
    u = mean + 0.5
    ours = SquashedGaussian(mean, log_std).log_prob(u)
    assert torch.allclose(ours, theirs.log_prob(torch.tanh(u)).sum(-1), atol=1e-9)


def test_squashed_density_integrates_to_one() -> None:
    distribution = SquashedGaussian(torch.tensor([0.4]).double(), torch.tensor([-0.3]).double())
    total, _ = scipy.integrate.quad(
        lambda a: math.exp(distribution.log_prob(torch.tensor([math.atanh(a)]).double()).item()), -1, 1
    )
    assert total == pytest.approx(1.0, abs=1e-6)


def test_squashed_has_no_closed_entropy_but_the_gaussians_kl(inputs: Tensor) -> None:
    squashed, gaussian = make_distribution("squashed_gaussian", inputs), make_distribution("gaussian", inputs)
    assert squashed.entropy() is None
    other = inputs.flip(0)
    kl = squashed.kl(make_distribution("squashed_gaussian", other))
    assert torch.equal(kl, gaussian.kl(make_distribution("gaussian", other)))


@pytest.mark.parametrize("name", ["gaussian", "squashed_gaussian", "categorical"])
def test_kl_agrees_with_monte_carlo(name: str) -> None:
    torch.manual_seed(0)
    a = torch.tensor([0.3, -0.5, -0.2, 0.1]).double()
    b = torch.tensor([-0.4, 0.2, 0.3, -0.1]).double()
    p, q = make_distribution(name, a.expand(300_000, 4)), make_distribution(name, b.expand(300_000, 4))
    action = p.sample()
    estimate = p.log_prob(action) - q.log_prob(action)
    error = 4 * estimate.std().item() / math.sqrt(len(estimate))
    assert p.kl(q)[0].item() == pytest.approx(estimate.mean().item(), abs=error)
    assert p.kl(q)[0].item() > 5 * error
    assert p.kl(p).abs().max().item() < 1e-12


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("gaussian", "squashed_gaussian"),
        ("squashed_gaussian", "gaussian"),
        ("gaussian", "categorical"),
        ("categorical", "gaussian"),
    ],
)
def test_kl_between_families_is_refused(a: str, b: str) -> None:
    inputs = torch.zeros(3, 4)
    with pytest.raises(TypeError, match="no closed form of KL"):
        make_distribution(a, inputs).kl(make_distribution(b, inputs))


def test_samples_have_the_distribution() -> None:
    generator = torch.Generator().manual_seed(0)
    gaussian = DiagonalGaussian(torch.full((40_000, 1), 0.7), torch.full((40_000, 1), -1.0))
    sample = gaussian.sample(generator)
    assert not sample.requires_grad
    assert scipy.stats.kstest(sample[:, 0].numpy(), scipy.stats.norm(0.7, math.exp(-1.0)).cdf).pvalue > 1e-3
    probability = np.array([0.1, 0.0, 0.6, 0.3])
    with np.errstate(divide="ignore"):
        logits = torch.from_numpy(np.log(probability)).float()
    counts = np.bincount(Categorical.from_inputs(logits.expand(40_000, 4)).sample(generator).numpy(), minlength=4)
    assert counts[1] == 0
    assert scipy.stats.chisquare(counts[[0, 2, 3]], 40_000 * probability[[0, 2, 3]]).pvalue > 1e-3


def test_samples_repeat_with_the_generator() -> None:
    for name in ("gaussian", "categorical"):
        distribution = make_distribution(name, torch.zeros(20, 4))
        first, again, other = (distribution.sample(torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


@pytest.mark.parametrize("name", ["gaussian", "squashed_gaussian", "categorical"])
def test_gradients_are_finite_differences(name: str, inputs: Tensor) -> None:
    action = make_distribution(name, inputs[:5]).sample(torch.Generator().manual_seed(0))
    parameters = inputs[:5].clone().requires_grad_()
    other = make_distribution(name, inputs[5:10])
    assert torch.autograd.gradcheck(lambda x: make_distribution(name, x).log_prob(action), parameters)
    assert torch.autograd.gradcheck(lambda x: make_distribution(name, x).kl(other), parameters)
    if name != "squashed_gaussian":
        assert torch.autograd.gradcheck(lambda x: make_distribution(name, x).entropy(), parameters)


def test_scores_average_to_zero() -> None:
    # E[grad log pi] = 0: what makes a baseline free of bias.
    torch.manual_seed(0)
    for name in ("gaussian", "squashed_gaussian", "categorical"):
        parameters = torch.tensor([0.3, -0.5, -0.2, 0.1]).double().requires_grad_()
        distribution = make_distribution(name, parameters.expand(200_000, 4))
        distribution.log_prob(distribution.sample()).mean().backward()
        assert parameters.grad is not None
        assert parameters.grad.abs().max().item() < 0.015
