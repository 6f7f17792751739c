"""Kernels of |k|: what they start as, their limits and smoothness, Fourier pairs; the taper and the envelope."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import erf
from torch import Tensor, nn

from lrpot.errors import ConfigError
from lrpot.kspace import FCN, FreeKernel, GaussianCoulomb, LearnedKernel, ReciprocalSum
from lrpot.smooth import taper
from lrpot.units import COULOMB_CONSTANT

EXACT = 1e-14  # relative: the same formula in another order
TRANSFORM_TOLERANCE = 1e-8  # relative, of a numerical integral
SLOPE_TOLERANCE = 1e-9  # of first derivatives that are zero by symmetry
DIFFERENCE_TOLERANCE = 1e-6  # of second derivatives by differences of first ones
K_CUTOFF = 6.0  # 1/A


def random_fcn(seed: int = 0, scale: float = 1.0, **settings: int) -> FCN:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fcn = FCN(K_CUTOFF, **settings).double()
        nn.init.normal_(fcn.last.weight, std=scale)
        nn.init.normal_(fcn.last.bias, std=scale)
    return fcn


def derivatives(function, x: float) -> tuple[float, float, float]:
    """Value, first and second derivative at one point."""
    point = torch.tensor([x], dtype=torch.float64, requires_grad=True)
    value = function(point).sum()
    (first,) = torch.autograd.grad(value, point, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), point)
    return value.item(), first.item(), second.item()


def ks(n: int = 50, start: float = 0.05) -> Tensor:
    return torch.linspace(start, K_CUTOFF, n, dtype=torch.float64)


# --- FCN


@pytest.mark.parametrize("layers", [0, 1, 3])
def test_fcn_is_zero_at_the_start_and_can_learn(layers: int) -> None:
    fcn = FCN(K_CUTOFF, basis=8, hidden=8, layers=layers).double()
    k = ks()
    assert torch.equal(fcn(k), torch.zeros_like(k))
    (fcn(k) - 1.0).pow(2).sum().backward()
    assert float(fcn.last.weight.grad.abs().max()) > 1e-3


def test_fcn_is_even_and_flat_at_zero() -> None:
    fcn = random_fcn()
    k = ks(start=0.0)
    assert float(fcn(k).detach().std()) > 0.1
    torch.testing.assert_close(fcn(-k), fcn(k), rtol=EXACT, atol=EXACT)
    _, slope, curvature = derivatives(fcn, 0.0)
    assert abs(slope) < SLOPE_TOLERANCE
    assert abs(curvature) > 1e-2
    third = [derivatives(fcn, sign * 1e-3)[2] for sign in (-1.0, 1.0)]
    assert third[0] == pytest.approx(third[1], rel=EXACT * 100)


def test_fcn_leaves_its_value_at_zero_as_k_squared() -> None:
    fcn = random_fcn()
    with torch.no_grad():
        f = fcn(torch.tensor([0.0, 1e-3, 2e-3], dtype=torch.float64))
    assert float((f[2] - f[0]) / (f[1] - f[0])) == pytest.approx(4.0, rel=1e-3)


# --- kernels


def test_coulomb_is_the_gaussian_form_in_alpha() -> None:
    kernel = GaussianCoulomb(0.8)
    assert kernel.alpha == pytest.approx(1.0 / (math.sqrt(2.0) * 0.8), rel=EXACT)
    k = ks()
    expected = 2 * math.pi * COULOMB_CONSTANT * torch.exp(-(k**2) / (4 * kernel.alpha**2)) / k**2
    torch.testing.assert_close(kernel(k), expected, rtol=10 * EXACT, atol=0)


@pytest.mark.parametrize("sigma", [0.5, 1.3])
@pytest.mark.parametrize("r", [0.3, 1.0, 2.5, 6.0])
def test_coulomb_is_the_transform_of_the_screened_interaction(sigma: float, r: float) -> None:
    """(1/V) sum_k Phi |S|^2 with all k, the pair ij twice: v(r) = 2 int d3k / (2 pi)^3 Phi(k) exp(ik.r)."""
    kernel = GaussianCoulomb(sigma)

    def integrand(k: float) -> float:
        phi = float(kernel(torch.tensor([k], dtype=torch.float64)))
        return phi * k**2 * np.sinc(k * r / np.pi)

    v = 2.0 * quad(integrand, 1e-9, 9.0 / sigma, epsabs=1e-12, epsrel=1e-12, limit=400)[0] / (2 * np.pi**2)
    assert v == pytest.approx(COULOMB_CONSTANT * erf(kernel.alpha * r) / r, rel=TRANSFORM_TOLERANCE)


@pytest.mark.parametrize("sigma", [0.5, 1.3])
@pytest.mark.parametrize("k", [0.4, 1.7, 4.0])
def test_the_screened_interaction_transforms_back(sigma: float, k: float) -> None:
    """The other direction: erf(alpha r)/r = 1/r - erfc(alpha r)/r, of which 1/r has the transform 4 pi / k^2."""
    kernel = GaussianCoulomb(sigma)
    screened = quad(lambda r: math.erfc(kernel.alpha * r) * math.sin(k * r), 0, 12 * sigma, epsabs=1e-13, limit=400)[0]
    transform = COULOMB_CONSTANT * 4 * math.pi / k * (1 / k - screened)
    phi = float(kernel(torch.tensor([k], dtype=torch.float64)))
    # absolute, in units of the bare kernel: at large k the difference of two near numbers is what is left
    assert phi == pytest.approx(0.5 * transform, abs=1e-10 * 2 * math.pi * COULOMB_CONSTANT / k**2)


def test_learned_kernel_starts_as_its_prior() -> None:
    prior = GaussianCoulomb(0.7)
    kernel = LearnedKernel(prior, FCN(K_CUTOFF).double())
    assert torch.equal(kernel(ks()), prior(ks()))


@pytest.mark.parametrize("seed", range(3))
def test_learned_kernel_keeps_the_long_wave_limit_of_its_prior(seed: int) -> None:
    prior = GaussianCoulomb(0.7)
    kernel = LearnedKernel(prior, random_fcn(seed))
    ratio = kernel(ks()) / prior(ks())
    assert (ratio - 1.0).abs().max().item() > 0.1  # it did learn something
    small = torch.tensor([1e-2, 1e-3, 1e-4], dtype=torch.float64)
    deviation = (kernel(small) / prior(small) - 1.0).abs()
    assert deviation[-1].item() < 1e-6
    # it goes to one as k^2, not as k
    assert (deviation[1] / deviation[0]).item() == pytest.approx(1e-2, rel=1e-2)


def test_learned_kernel_does_not_depend_on_a_constant_of_its_fcn() -> None:
    fcn = random_fcn()
    kernel = LearnedKernel(GaussianCoulomb(0.7), fcn)
    before = kernel(ks())
    with torch.no_grad():
        fcn.last.bias += 3.0
    torch.testing.assert_close(kernel(ks()), before, rtol=1e-13, atol=1e-13)


def test_free_kernel_is_the_fcn_in_coulomb_units() -> None:
    fcn = random_fcn()
    assert torch.equal(FreeKernel(fcn)(ks()), COULOMB_CONSTANT * fcn(ks()))
    assert not FreeKernel(FCN(K_CUTOFF).double())(ks()).any()


def test_a_width_that_is_not_positive_is_refused() -> None:
    for sigma in (0.0, -1.0, math.nan):
        with pytest.raises(ConfigError, match="must be positive"):
            GaussianCoulomb(sigma)


# --- taper and envelope


@pytest.mark.parametrize("onset", [0.0, 0.5, 0.9])
def test_taper_values_and_ends(onset: float) -> None:
    end = 5.0
    x = torch.linspace(0.0, 7.0, 701, dtype=torch.float64)
    value = taper(x, end, onset)
    assert bool((value[x <= onset * end] == 1.0).all())
    assert bool((value[x >= end] == 0.0).all())
    inside = value[(x > onset * end) & (x < end)]
    assert bool((inside.diff() < 0).all())
    middle = torch.tensor([0.5 * (1.0 + onset) * end], dtype=torch.float64)
    assert float(taper(middle, end, onset)) == pytest.approx(0.5, abs=1e-13)


@pytest.mark.parametrize("onset", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("place", ["onset", "end"])
def test_taper_has_two_continuous_derivatives_at_both_ends(onset: float, place: str) -> None:
    """By finite differences on each side alone; one-sided, so that a kink would show."""
    end = 5.0
    width = (1.0 - onset) * end
    at = end if place == "end" else onset * end
    h = 1e-3 * width
    for side in (-1.0, 1.0):
        if at + side * 3 * h < 0:
            continue  # there is no negative distance
        x = at + side * h * torch.arange(5, dtype=torch.float64)
        f = taper(x, end, onset)
        first = float(-25 * f[0] + 48 * f[1] - 36 * f[2] + 16 * f[3] - 3 * f[4]) / (12 * h) * side
        second = float(35 * f[0] - 104 * f[1] + 114 * f[2] - 56 * f[3] + 11 * f[4]) / (12 * h**2)
        assert float(f[0]) == pytest.approx(1.0 if place == "onset" else 0.0, abs=1e-13)
        assert first * width == pytest.approx(0.0, abs=DIFFERENCE_TOLERANCE)
        # a quintic's third derivative is 60 / width^3: one step of it is all that may be seen
        assert second * width**2 == pytest.approx(0.0, abs=1e-2 * 60 * h / width + 1e-8)


@pytest.mark.parametrize("x", [0.4, 2.0, 4.4, 4.6, 4.9, 5.5])
def test_taper_derivatives_by_autograd_equal_differences(x: float) -> None:
    h = 1e-4

    def value(y: float) -> float:
        return float(taper(torch.tensor([y], dtype=torch.float64), 5.0, 0.8))

    _, first, second = derivatives(lambda y: taper(y, 5.0, 0.8), x)
    assert first == pytest.approx((value(x + h) - value(x - h)) / (2 * h), abs=DIFFERENCE_TOLERANCE)
    assert second == pytest.approx((value(x + h) - 2 * value(x) + value(x - h)) / h**2, abs=1e-4)


def test_envelope_multiplies_the_kernel() -> None:
    kernel = LearnedKernel(GaussianCoulomb(0.5), random_fcn())
    k = ks()
    with_envelope = ReciprocalSum(kernel, K_CUTOFF, envelope=0.6).phi(k)
    torch.testing.assert_close(with_envelope, kernel(k) * taper(k, K_CUTOFF, 0.6), rtol=EXACT, atol=0)
    inner = k <= 0.6 * K_CUTOFF
    assert torch.equal(with_envelope[inner], kernel(k)[inner])
    assert with_envelope[-1].item() == 0.0
    assert torch.equal(ReciprocalSum(kernel, K_CUTOFF, envelope=1.0).phi(k), kernel(k))
    outside = torch.tensor([K_CUTOFF, 1.1 * K_CUTOFF], dtype=torch.float64)
    assert not ReciprocalSum(kernel, K_CUTOFF, envelope=0.0).phi(outside).any()


def test_envelope_makes_phi_twice_differentiable_at_the_cutoff() -> None:
    summed = ReciprocalSum(LearnedKernel(GaussianCoulomb(0.5), random_fcn()), K_CUTOFF, envelope=0.8)
    value, first, second = derivatives(summed.phi, K_CUTOFF * (1 - 1e-7))
    scale = summed.kernel(torch.tensor([K_CUTOFF], dtype=torch.float64)).item()
    assert abs(value) < 1e-15 * abs(scale)
    assert abs(first) < 1e-10 * abs(scale)
    assert abs(second) < 1e-3 * abs(scale)
