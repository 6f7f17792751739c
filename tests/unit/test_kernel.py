"""Kernels of |k|: what they start as, limits and smoothness, Fourier pairs, tables; the taper and the envelope."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import erf
from torch import Tensor, nn

from lrpot.errors import ConfigError
from lrpot.kspace import (
    FCN,
    Dispersion,
    DispersionComplement,
    FreeKernel,
    GaussianCoulomb,
    KernelByChannel,
    LearnedKernel,
    ReciprocalSum,
)
from lrpot.kspace.boundary import radial_form
from lrpot.kspace.kernel import KNOTS, TABLE_ERROR, EvenTable, Kernel
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


@pytest.mark.parametrize("beta", [0.3, 0.9])
@pytest.mark.parametrize("k", [0.0, 0.1, 0.8, 3.0])
def test_dispersion_is_the_transform_of_the_smooth_part(beta: float, k: float) -> None:
    """Phi = -1/2 int g(r) exp(ik.r) d3r, because each pair is in |S|^2 twice."""
    kernel = Dispersion(beta)

    def g(r: float) -> float:
        x2 = (beta * r) ** 2
        if x2 < 0.01:  # the difference of near numbers; its series
            return beta**6 * (1 / 6 - x2 / 8 + x2**2 / 20 - x2**3 / 72)
        return -(math.expm1(-x2) + math.exp(-x2) * (x2 + 0.5 * x2**2)) / r**6

    if k == 0.0:
        transform = 4 * math.pi * quad(lambda r: g(r) * r**2, 0, np.inf, epsabs=1e-14, epsrel=1e-12, limit=400)[0]
    else:
        near = quad(lambda r: g(r) * r, 0, 20 / beta, weight="sin", wvar=k, epsabs=1e-14, limit=400)[0]
        far = quad(lambda r: g(r) * r, 20 / beta, np.inf, weight="sin", wvar=k, epsabs=1e-14, limlst=200)[0]
        transform = 4 * math.pi * (near + far) / k
    phi = float(kernel(torch.tensor([k], dtype=torch.float64)))
    assert phi == pytest.approx(-0.5 * transform, abs=TRANSFORM_TOLERANCE * abs(kernel.at_zero))


@pytest.mark.parametrize("r", [0.05, 1.0, 2.5, 6.0])
def test_the_smooth_part_of_dispersion_transforms_back(r: float) -> None:
    """u(r) = -g(r), and pairs of the complement add up with it to -1 / r^6."""
    beta = 0.7
    kernel = Dispersion(beta)

    def integrand(k: float) -> float:
        return float(kernel(torch.tensor([k], dtype=torch.float64))) * k**2 * np.sinc(k * r / np.pi)

    u = quad(integrand, 0, 40 * beta, epsabs=1e-13, epsrel=1e-12, limit=400)[0] / np.pi**2
    x2 = (beta * r) ** 2
    if r > 0.1:
        assert u == pytest.approx((math.exp(-x2) * (1 + x2 + 0.5 * x2**2) - 1) / r**6, rel=TRANSFORM_TOLERANCE)
        bare = DispersionComplement(kernel, 50.0).pair(torch.tensor([r], dtype=torch.float64)).item()
        assert u + bare == pytest.approx(-(r**-6.0), rel=TRANSFORM_TOLERANCE)
    else:
        assert u == pytest.approx(-(beta**6) * (1 / 6 - x2 / 8), rel=1e-5)
        assert DispersionComplement(kernel, 50.0).own_field == pytest.approx(beta**6 / 12)


def crystal(seed: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Positions (5, 3), charges (5, 1) of dispersion and a triclinic cell of a crystal."""
    generator = torch.Generator().manual_seed(seed)
    cell = torch.tensor([[5.1, 0.2, -0.4], [1.3, 4.4, 0.6], [-0.7, 0.9, 4.8]], dtype=torch.float64)
    places = [[0.0, 0.0, 0.0], [0.5, 0.5, 0.1], [0.5, 0.1, 0.55], [0.1, 0.5, 0.5], [0.75, 0.8, 0.75]]
    charges = 0.5 + torch.rand(5, 1, generator=generator, dtype=torch.float64)
    return torch.tensor(places, dtype=torch.float64) @ cell, charges, cell


def dispersion_sum(positions: Tensor, charges: Tensor, cell: Tensor, beta: float, cutoff: float) -> Tensor:
    """(): both halves, with all pairs within the cutoff."""
    kernel = Dispersion(beta)
    n = math.ceil(cutoff / 3.5)
    shifts = torch.cartesian_prod(*[torch.arange(-n, n + 1, dtype=torch.float64)] * 3) @ cell
    squared = ((positions[:, None, None] - positions[None, :, None] + shifts) ** 2).sum(dim=3)
    one, other, image = ((squared > 1e-6) & (squared < cutoff**2)).nonzero().unbind(dim=1)
    index, volume = torch.zeros(len(positions), dtype=torch.int64), torch.linalg.det(cell).abs().reshape(1)
    distances = torch.sqrt(squared[one, other, image])
    in_k = ReciprocalSum(kernel, 13.0 * beta, engine="separable")(positions, charges, cell)
    edges = torch.stack([one, other])
    return (in_k + DispersionComplement(kernel, cutoff)(charges, volume, index, edges, distances))[0]


def test_dispersion_of_a_crystal_is_the_sum_of_pairs() -> None:
    """Pair by pair up to 50 A, fading out into a continuum."""
    positions, charges, cell = crystal()
    x, q, a = positions.numpy(), charges[:, 0].numpy(), cell.numpy()
    volume, reach = abs(np.linalg.det(a)), 50.0

    def fade(r: np.ndarray) -> np.ndarray:
        t = np.clip((r - 0.2 * reach) / (0.8 * reach), 0.0, 1.0)
        return 1.0 - t**4 * (35.0 - 84.0 * t + 70.0 * t**2 - 20.0 * t**3)

    n = np.ceil(reach / 3.5)
    shifts = np.array(list(itertools.product(np.arange(-n, n + 1), repeat=3))) @ a
    total = 0.0
    for i, j in itertools.product(range(len(q)), repeat=2):
        r = np.linalg.norm(x[i] - x[j] + shifts, axis=1)
        r = r[(r > 1e-6) & (r < reach)]
        total -= 0.5 * q[i] * q[j] * np.sum(fade(r) / r**6)
    tail = quad(lambda r: (1 - fade(np.array(r))) * r**-4.0, 0.2 * reach, np.inf, epsabs=1e-16, limit=200)[0]
    total -= 2.0 * math.pi * q.sum() ** 2 / volume * tail
    for beta, cutoff in ((0.6, 11.0), (0.9, 8.0)):
        found = dispersion_sum(positions, charges, cell, beta, cutoff).item()
        assert found == pytest.approx(total, rel=1e-9)


def test_forces_and_stress_of_dispersion_do_not_depend_on_the_splitting() -> None:
    positions, charges, cell = crystal()
    found = []
    for beta, cutoff in ((0.6, 11.0), (0.9, 8.0)):
        x, strain = positions.clone().requires_grad_(), torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
        deformation = torch.eye(3, dtype=torch.float64) + strain
        energy = dispersion_sum(x @ deformation, charges, cell @ deformation, beta, cutoff)
        found.append(torch.autograd.grad(energy, [x, strain]))
    for one, other in zip(*found, strict=True):
        assert float(one.abs().max()) > 1e-4
        torch.testing.assert_close(one, other, rtol=0.0, atol=1e-9 * float(found[0][1].abs().max()))


# --- limits of long waves


LIMITS: dict[str, Callable[[], Kernel]] = {
    "coulomb": lambda: GaussianCoulomb(0.7),
    "dispersion": lambda: Dispersion(0.5),
    "learned coulomb": lambda: LearnedKernel(GaussianCoulomb(0.7), random_fcn()),
    "learned dispersion": lambda: LearnedKernel(Dispersion(0.5), random_fcn()),
    "free": lambda: FreeKernel(random_fcn()),
}


@pytest.mark.parametrize("name", LIMITS)
def test_coulomb_is_what_remains_of_k_squared_phi(name: str) -> None:
    kernel = LIMITS[name]()
    k = torch.tensor([1e-3, 1e-6], dtype=torch.float64)
    with torch.no_grad():
        remains = k**2 * kernel(k)
    assert float(remains[1]) == pytest.approx(float(kernel.coulomb), abs=1e-7)
    assert (kernel.coulomb != 0.0) == ("coulomb" in name)


@pytest.mark.parametrize("kernel", [GaussianCoulomb(0.7), Dispersion(0.5)], ids=["coulomb", "dispersion"])
def test_at_zero_is_what_remains_of_phi(kernel: GaussianCoulomb | Dispersion) -> None:
    k = torch.tensor([2e-2, 1e-2], dtype=torch.float64)
    rest = kernel(k) - kernel.coulomb / k**2
    # the next term is of second order: extrapolated
    assert float(4.0 * rest[1] - rest[0]) / 3.0 == pytest.approx(kernel.at_zero, rel=1e-4)
    assert abs(float(rest[0]) / kernel.at_zero - 1.0) > 1e-6


def test_a_kernel_by_channel_has_the_limits_of_each() -> None:
    kernels = [LIMITS[name]() for name in ("learned coulomb", "dispersion", "free")]
    kernel = KernelByChannel(kernels)
    k = torch.tensor([1e-6, 1.0], dtype=torch.float64)
    values = kernel(k)
    assert values.shape == (2, 3)
    for column, single in enumerate(kernels):
        assert torch.equal(values[:, column], single(k))
        assert float(kernel.coulomb[column]) == single.coulomb
    assert kernel.coulomb.dtype == torch.float64
    torch.testing.assert_close(k[0] ** 2 * values[0], kernel.coulomb, rtol=0.0, atol=1e-7)
    assert kernel.reach == max(single.reach for single in kernels) > 0.0
    assert KernelByChannel(kernels[1:2]).reach == 0.0


@pytest.mark.parametrize("scale", [0.1, 1.0])
def test_beyond_its_reach_a_learned_kernel_does_not_act(scale: float) -> None:
    prior, fcn = GaussianCoulomb(0.7), random_fcn(scale=scale)
    kernel = LearnedKernel(prior, fcn)
    r = torch.linspace(0.0, 2.0 * kernel.reach, 800, dtype=torch.float64)

    def learned_part(k: Tensor) -> Tensor:
        return (kernel(k) - prior(k)) * taper(k, K_CUTOFF, 0.9)

    with torch.no_grad():
        u = radial_form(learned_part, K_CUTOFF, 0.9, 2.0 * kernel.reach, kernel.reach)(r)
    # of a plane of charges, which is what a slab sees of another
    left = (r * u.abs()).flip(0).cumsum(0).flip(0)
    assert float(left[400] / left[0]) < 1e-4
    assert float(left[200] / left[0]) > 1e-5  # at half of it, it does


# --- tables


@pytest.mark.parametrize("settings", [{}, {"basis": 1}, {"basis": 40, "hidden": 16}, {"layers": 4}])
def test_table_is_as_exact_as_it_says(settings: dict[str, int]) -> None:
    fcn = random_fcn(**settings).requires_grad_(False)
    table = EvenTable(fcn, K_CUTOFF)
    k = torch.linspace(0.0, K_CUTOFF, 40001, dtype=torch.float64)
    exact = fcn(k)
    error = float((table(k) - exact).abs().max() / exact.abs().max())
    assert error < TABLE_ERROR
    assert table.error(fcn) < TABLE_ERROR
    # the measure is honest where the table is bad
    with torch.no_grad():
        fcn.first.weight *= 1.01
    if settings != {"basis": 1}:
        error = float((table(k) - fcn(k)).abs().max() / fcn(k).abs().max())
        assert table.error(fcn) == pytest.approx(error, rel=0.02)
        assert error > 1e-4


def test_table_takes_as_many_knots_as_the_function_needs() -> None:
    def wave(n: int) -> Callable[[Tensor], Tensor]:
        return lambda k: torch.cos(n * math.pi * k / K_CUTOFF)

    slow, fast = EvenTable(wave(3), K_CUTOFF), EvenTable(wave(200), K_CUTOFF)
    assert slow.knots == KNOTS < fast.knots
    for table, n in ((slow, 3), (fast, 200)):
        k = ks(10001, start=0.0)
        assert float((table(k) - wave(n)(k)).abs().max()) < 2.0 * TABLE_ERROR


def test_table_is_smooth_at_its_knots() -> None:
    """Four derivatives from both sides, on a table so coarse that they would differ if they could."""
    fcn = random_fcn(basis=40).requires_grad_(False)
    table = EvenTable(fcn, K_CUTOFF)
    c = table.coefficients
    at_end = torch.zeros(table.knots, 5, dtype=torch.float64)
    at_start = torch.zeros_like(at_end)
    for order in range(5):
        for power in range(order, 6):
            at_end[:, order] += math.perm(power, order) * c[:, power]
        at_start[:, order] = math.factorial(order) * c[:, order]
    scale = c.abs().amax(dim=0)
    for order in range(5):
        jump = float((at_end[:-1, order] - at_start[1:, order]).abs().max())
        assert jump < 1e-13 * float(scale[0]), order
    # even about both ends: odd derivatives vanish
    assert float(at_start[0, [1, 3]].abs().max()) < 1e-13 * float(scale[0])
    assert float(at_end[-1, [1, 3]].abs().max()) < 1e-13 * float(scale[0])


def test_table_has_the_derivatives_of_the_function() -> None:
    fcn = random_fcn().requires_grad_(False)
    table = EvenTable(fcn, K_CUTOFF)
    scales = [1.0, table.knots / K_CUTOFF, (table.knots / K_CUTOFF) ** 2]
    for x in (1e-6, 0.013, 1.7, 3.0, 5.99):
        for one, other, scale in zip(derivatives(table, x), derivatives(fcn, x), scales, strict=True):
            assert one == pytest.approx(other, abs=1e-11 * scale)


def test_table_comes_back_beyond_its_end() -> None:
    """As the cosines of the basis do; an autograd leaf that strain carries past the end must not break."""
    fcn = random_fcn().requires_grad_(False)
    table = EvenTable(fcn, K_CUTOFF)
    k = torch.linspace(0.9 * K_CUTOFF, 5.0 * K_CUTOFF, 333, dtype=torch.float64)
    torch.testing.assert_close(table(k), fcn(k), rtol=0.0, atol=1e-11)
    assert derivatives(table, 1.2 * K_CUTOFF)[1] == pytest.approx(derivatives(fcn, 1.2 * K_CUTOFF)[1], rel=1e-8)


def test_a_table_of_weights_in_training_has_their_gradient() -> None:
    """First derivatives, and those of the slope in k, which a loss of stress needs."""
    fcn = random_fcn(hidden=8)
    table = EvenTable(fcn, K_CUTOFF)
    assert table.coefficients.requires_grad
    seed = torch.randn(60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = []
    for function in (table, fcn):
        k = ks(60).requires_grad_()
        values = (seed * function(k)).sum()
        (slope,) = torch.autograd.grad(values, k, create_graph=True)
        found.append(torch.autograd.grad(values + (slope * seed.flip(0)).sum(), list(fcn.parameters())))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8 * float(other.abs().max()))


@pytest.mark.parametrize("name", ["learned coulomb", "learned dispersion", "free"])
def test_tabulated_kernels_are_the_kernels(name: str) -> None:
    kernel = LIMITS[name]().requires_grad_(False)
    table = kernel.tabulated()
    k = torch.linspace(1e-4, K_CUTOFF, 20001, dtype=torch.float64)
    assert table is not kernel
    assert float(((table(k) - kernel(k)) / kernel(k).abs().clamp(min=kernel(k).abs().median())).abs().max()) < 1e-10
    assert LIMITS["coulomb"]().requires_grad_(False).tabulated()(k).shape == k.shape


def test_a_tabulated_kernel_by_channel_is_one_of_tables() -> None:
    kernel = KernelByChannel([LIMITS[name]() for name in LIMITS]).requires_grad_(False)
    table = kernel.tabulated()
    torch.testing.assert_close(table(ks()), kernel(ks()), rtol=1e-10, atol=1e-12)
    for name in ("coulomb", "dispersion"):
        assert LIMITS[name]().tabulated()(ks()).equal(LIMITS[name]()(ks()))


# --- kernels of users


class Yukawa(Kernel):
    """Charges that a medium screens: it needs no more than a formula, and may learn its numbers."""

    def __init__(self, kappa: float) -> None:
        super().__init__()
        self.kappa = nn.Parameter(torch.tensor(kappa, dtype=torch.float64))

    def forward(self, k: Tensor) -> Tensor:
        return torch.exp(-0.5 * k**2) / (k**2 + self.kappa**2)


@pytest.mark.parametrize("pbc", [[True] * 3, [True, False, True], [False] * 3])
def test_a_kernel_of_a_user(pbc: list[bool]) -> None:
    positions, charges, cell = crystal()
    flags = torch.tensor(pbc)
    kernel = Yukawa(0.8)
    assert (kernel.coulomb, kernel.reach) == (0.0, 0.0)
    assert kernel.tabulated() is kernel
    summed = ReciprocalSum(kernel, K_CUTOFF)
    energy = summed(positions, charges, cell, pbc=flags).sum()
    (gradient,) = torch.autograd.grad(energy, kernel.kappa)
    moved = [ReciprocalSum(Yukawa(0.8 + step), K_CUTOFF) for step in (1e-4, -1e-4)]
    values = [other(positions, charges, cell, pbc=flags).item() for other in moved]
    assert gradient.item() == pytest.approx((values[0] - values[1]) / 2e-4, rel=1e-6)
    dense = ReciprocalSum(kernel, K_CUTOFF, engine="dense")(positions, charges, cell, pbc=flags)
    assert energy.item() == pytest.approx(dense.item(), rel=1e-12)


@pytest.mark.parametrize("beta", [0.0, -1.0, math.nan])
def test_a_splitting_parameter_that_is_not_positive_is_refused(beta: float) -> None:
    with pytest.raises(ConfigError, match="must be positive"):
        Dispersion(beta)


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


# --- kernels that are nowhere negative, for charges that are equilibrated


@pytest.mark.parametrize("scale", [0.0, 1.0, 5.0])
def test_positive_kernels_are_nowhere_negative(scale: float) -> None:
    k = torch.linspace(1e-3, K_CUTOFF, 400, dtype=torch.float64)
    fcn = random_fcn(3, scale).requires_grad_(False)
    prior = GaussianCoulomb(0.6)
    for kernel in (FreeKernel(fcn, positive=True), LearnedKernel(prior, fcn, positive=True)):
        phi = kernel(k).detach()
        assert float(phi.min()) > 0.0
        table = kernel.tabulated()
        assert float((table(k) - phi).abs().max()) < 1e-9 * float(phi.max())
    # which is not so by itself
    assert (float(LearnedKernel(prior, fcn)(k).detach().min()) < 0.0) == (scale > 0.0)


def test_positive_kernel_starts_as_its_prior_and_keeps_its_limit() -> None:
    prior = GaussianCoulomb(0.6)
    k = torch.linspace(0.1, K_CUTOFF, 50, dtype=torch.float64)
    fresh = LearnedKernel(prior, FCN(K_CUTOFF).double(), positive=True)
    torch.testing.assert_close(fresh(k).detach(), prior(k), rtol=EXACT, atol=0)
    small = torch.tensor([1e-4], dtype=torch.float64)
    learned = LearnedKernel(prior, random_fcn(1), positive=True)
    assert (learned(small) * small**2).item() == pytest.approx(prior.coulomb, rel=1e-6)
    # to first order it is the other form
    weak = random_fcn(1, 1e-5)
    one, other = (LearnedKernel(prior, weak, positive=flag).factor(k).detach() - 1.0 for flag in (True, False))
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-9)


def test_positive_free_kernel_costs_two_charges_at_one_place_about_one_unit() -> None:
    """Without the envelope k_e / A exactly."""
    kernel = FreeKernel(FCN(K_CUTOFF).double(), positive=True)
    at_zero = radial_form(kernel, K_CUTOFF, 1.0, 0.0, kernel.reach)(torch.zeros(1, dtype=torch.float64))
    assert at_zero.item() == pytest.approx(COULOMB_CONSTANT, rel=1e-12)
