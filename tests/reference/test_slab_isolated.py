"""Slabs and molecules against sums and integrals that know nothing of boxes or of wave vectors in three directions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.special import erf, erfc
from torch import Tensor, nn

import lrpot.kspace.boundary as boundary
from lrpot.kspace import (
    FCN,
    ComplementByChannel,
    CoulombComplement,
    Dispersion,
    DispersionComplement,
    FreeKernel,
    GaussianCoulomb,
    KernelByChannel,
    LearnedKernel,
    ReciprocalSum,
)
from lrpot.kspace.kernel import Kernel
from lrpot.units import COULOMB_CONSTANT

EXACT = 1e-11  # relative to the sum of the magnitudes: two formulas, both to rounding
SLAB_TOLERANCE = 3e-9  # relative: half of what boundary.SLAB_IMAGES leaves of a neighbouring slab, and rounding
IMAGES_TOLERANCE = 1e-5  # relative to what the learned factor does: see FCN.reach
SIGMA = 0.9  # A
K_CUTOFF = 10.0  # 1/A; exp(-sigma^2 k^2 / 2) is 6e-15 where the taper begins

OPEN = torch.tensor([False, False, False])
SLAB = torch.tensor([True, True, False])


def tensor(values: object) -> Tensor:
    return torch.as_tensor(np.asarray(values), dtype=torch.float64)


def learned(k_cutoff: float, seed: int = 0, scale: float = 0.3) -> FCN:
    """A random function of |k|, strongly curved at k = 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fcn = FCN(k_cutoff).double()
        nn.init.normal_(fcn.last.weight, std=scale)
        nn.init.normal_(fcn.last.bias, std=scale)
    return fcn


def fixed(kernel: Kernel, k_cutoff: float, **settings: object) -> ReciprocalSum:
    return ReciprocalSum(kernel, k_cutoff, engine="separable", **settings).requires_grad_(False)


def all_pairs(positions: Tensor) -> tuple[Tensor, Tensor]:
    """Every pair of a molecule in both directions, as edges (2, E), and their distances."""
    n = len(positions)
    one, other = (~torch.eye(n, dtype=torch.bool)).nonzero().unbind(dim=1)
    return torch.stack([one, other]), torch.linalg.vector_norm(positions[one] - positions[other], dim=1)


def molecule(seed: int = 0, n: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """Positions of atoms 1.5 A apart or more, and charges that do not add up to zero."""
    rng = np.random.default_rng(seed)
    positions = np.empty((0, 3))
    while len(positions) < n:
        new = rng.uniform(-4.0, 4.0, 3)
        if np.linalg.norm(positions - new, axis=1).min(initial=np.inf) > 1.5:
            positions = np.vstack([positions, new])
    return positions + np.array([100.0, -30.0, 5.0]), rng.normal(size=n)


def pair_sum(positions: np.ndarray, charges: np.ndarray, u: Callable[[np.ndarray], np.ndarray]) -> float:
    one, other = np.triu_indices(len(charges), 1)
    r = np.linalg.norm(positions[one] - positions[other], axis=1)
    return float(np.sum(charges[one] * charges[other] * u(r)))


# --- molecules


def test_gaussian_charges_of_a_molecule() -> None:
    positions, charges = molecule()
    kernel = GaussianCoulomb(SIGMA)
    found = fixed(kernel, K_CUTOFF)(tensor(positions), tensor(charges)[:, None], torch.zeros(3, 3), pbc=OPEN).item()
    expected = pair_sum(positions, charges, lambda r: COULOMB_CONSTANT * erf(kernel.alpha * r) / r)
    expected += COULOMB_CONSTANT * kernel.alpha / math.sqrt(math.pi) * np.sum(charges**2)
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("spread", [1.0, 12.0])
def test_point_charges_of_a_molecule(spread: float) -> None:
    """With the complement, whose background an endless box does not have; atoms up to 100 A apart."""
    positions, charges = molecule(1)
    positions = spread * positions
    kernel = GaussianCoulomb(SIGMA)
    edges, distances = all_pairs(tensor(positions))
    q, index = tensor(charges)[:, None], torch.zeros(len(charges), dtype=torch.int64)
    in_k = fixed(kernel, K_CUTOFF)(tensor(positions), q, torch.zeros(3, 3), pbc=OPEN)
    in_r = CoulombComplement(kernel, 1e3)(q, torch.full((1,), math.inf), index, edges, distances)
    expected = pair_sum(positions, charges, lambda r: COULOMB_CONSTANT / r)
    assert float(in_k + in_r) == pytest.approx(expected, abs=EXACT * float(in_k.abs() + in_r.abs()))


def test_dispersion_of_a_molecule() -> None:
    positions, _ = molecule(2)
    charges = np.linspace(0.5, 2.0, len(positions))
    kernel = Dispersion(0.6)
    edges, distances = all_pairs(tensor(positions))
    q, index = tensor(charges)[:, None], torch.zeros(len(charges), dtype=torch.int64)
    in_k = fixed(kernel, 9.0)(tensor(positions), q, torch.zeros(3, 3), pbc=OPEN)
    in_r = DispersionComplement(kernel, 1e3)(q, torch.full((1,), math.inf), index, edges, distances)
    expected = pair_sum(positions, charges, lambda r: -1.0 / r**6)
    assert float(in_k + in_r) == pytest.approx(expected, abs=EXACT * float(in_k.abs() + in_r.abs()))


def test_coulomb_and_dispersion_of_a_molecule_in_two_channels() -> None:
    positions, charges = molecule(3)
    q = np.stack([charges, np.linspace(0.5, 2.0, len(charges))], axis=1)
    kernels = [GaussianCoulomb(SIGMA), Dispersion(0.6)]
    complement = ComplementByChannel([CoulombComplement(kernels[0], 1e3), DispersionComplement(kernels[1], 1e3)])
    edges, distances = all_pairs(tensor(positions))
    index = torch.zeros(len(charges), dtype=torch.int64)
    in_k = fixed(KernelByChannel(kernels), K_CUTOFF)(tensor(positions), tensor(q), torch.zeros(3, 3), pbc=OPEN)
    in_r = complement(tensor(q), torch.full((1,), math.inf), index, edges, distances)
    expected = pair_sum(positions, q[:, 0], lambda r: COULOMB_CONSTANT / r)
    expected += pair_sum(positions, q[:, 1], lambda r: -1.0 / r**6)
    assert float(in_k + in_r) == pytest.approx(expected, abs=EXACT * float(in_k.abs() + in_r.abs()))


@pytest.mark.parametrize("kind", ["learned", "free", "learned dispersion"])
@pytest.mark.parametrize("envelope", [0.0, 0.9, 1.0])
def test_a_learned_molecule_is_the_integral_over_k(kind: str, envelope: float) -> None:
    """By Simpson's rule on 60001 points, which shares nothing with the quadrature of the code."""
    k_cutoff = 5.0
    fcn = learned(k_cutoff)
    kernel = {
        "learned": lambda: LearnedKernel(GaussianCoulomb(0.8), fcn),
        "free": lambda: FreeKernel(fcn),
        "learned dispersion": lambda: LearnedKernel(Dispersion(0.6), fcn),
    }[kind]()
    positions, charges = molecule(4)
    summed = fixed(kernel, k_cutoff, envelope=envelope)
    k = np.linspace(0.0, k_cutoff, 60001)
    k[0] = 1e-9  # where k^2 Phi has its limit
    with torch.no_grad():
        phi = summed.phi(tensor(k)).numpy()
    if envelope == 1.0 and kind == "free":
        assert abs(phi[-1]) > 0.1 * abs(phi[30000])  # the sum ends in a step
    simpson = np.where(np.arange(len(k)) % 2 == 1, 4.0, 2.0)
    simpson[[0, -1]] = 1.0
    density = simpson * (k_cutoff / 60000 / 3.0) * k**2 * phi / math.pi**2

    def u(r: np.ndarray) -> np.ndarray:
        return np.sinc(np.multiply.outer(r, k) / math.pi) @ density

    expected = pair_sum(positions, charges, u) + 0.5 * float(u(np.zeros(1))[0]) * np.sum(charges**2)
    scale = abs(0.5 * float(u(np.zeros(1))[0]) * np.sum(charges**2))
    found = summed(tensor(positions), tensor(charges)[:, None], torch.zeros(3, 3), pbc=OPEN).item()
    assert found == pytest.approx(expected, abs=1e-9 * scale)


def in_cube(summed: ReciprocalSum, positions: np.ndarray, charges: np.ndarray, length: float) -> float:
    return summed(tensor(positions), tensor(charges)[:, None], length * torch.eye(3, dtype=torch.float64)).item()


def test_large_boxes_go_to_the_molecule() -> None:
    """A quadrupole disturbs its images with 1 / L^5; a dipole lacks 2 pi k_e M^2 / 3 V of its own surroundings."""
    corners = np.array([[1, 1, 0], [-1, 1, 0], [-1, -1, 0], [1, -1, 0], [0, 0, 1.0], [0, 0, -1.0]])
    charges = np.array([1.0, 1.0, 1.0, 1.0, -2.0, -2.0])
    summed = fixed(GaussianCoulomb(1.0), 5.0)
    alone = summed(tensor(corners), tensor(charges)[:, None], torch.zeros(3, 3), pbc=OPEN).item()
    far = [in_cube(summed, corners, charges, length) - alone for length in (10.0, 20.0, 40.0)]
    assert abs(far[0]) > 1e-2
    assert far[0] / far[1] == pytest.approx(32.0, rel=0.1)
    assert far[1] / far[2] == pytest.approx(32.0, rel=0.1)

    charges = charges + np.array([0, 0, 0, 0, 0.5, -0.5])
    moment = float(np.linalg.norm(charges @ corners))
    alone = summed(tensor(corners), tensor(charges)[:, None], torch.zeros(3, 3), pbc=OPEN).item()
    dipole = -2.0 * math.pi * COULOMB_CONSTANT * moment**2 / (3.0 * 40.0**3)
    assert in_cube(summed, corners, charges, 40.0) - alone - far[2] == pytest.approx(dipole, rel=1e-2)


# --- slabs: Gaussian charges, alone


def plane(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two vectors at an oblique angle in an oblique plane, and its normal."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    one, other = np.array([4.3, 0.0, 0.0]) @ turn, np.array([-1.7, 3.9, 0.0]) @ turn
    normal = np.cross(one, other)
    return one, other, normal / np.linalg.norm(normal)


def slab(seed: int, charged: str, n: int = 8) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Positions, charges and the two vectors of a slab 5 A thick, its atoms in whichever of its cells."""
    rng = np.random.default_rng(seed)
    one, other, normal = plane(seed)
    flat = rng.integers(-2, 3, (n, 2)) + rng.random((n, 2))
    height = np.sort(rng.uniform(0.0, 5.0, n))
    positions = flat @ np.stack([one, other]) + height[:, None] * normal + [3.0, -8.0, 40.0]
    charges = np.tile([1.0, -1.0], n // 2) + 0.3 * rng.normal(size=n)
    charges -= charges.mean()
    if charged == "neutral":  # no dipole either
        height = height - height.mean()
        charges -= height * (charges @ height) / (height @ height)
    elif charged == "charged":
        charges += 0.25
    return positions, charges, one, other


CHARGED = ["neutral", "dipolar", "charged"]


def in_plane_waves(one: np.ndarray, other: np.ndarray, k_cutoff: float) -> np.ndarray:
    """(M, 3): reciprocal vectors in the plane of two vectors, without zero, |G| < k_cutoff."""
    normal = np.cross(one, other)
    cell = np.array([one, other, normal / np.linalg.norm(normal)])
    reciprocal = 2.0 * math.pi * np.linalg.inv(cell).T
    reach = [int(k_cutoff * np.linalg.norm(v) / (2 * math.pi)) + 1 for v in (one, other)]
    grid = np.array(
        [
            (i, j, 0)
            for i, j in itertools.product(range(-reach[0], reach[0] + 1), range(-reach[1], reach[1] + 1))
            if (i, j) != (0, 0)
        ]
    )
    waves = grid @ reciprocal
    return waves[np.linalg.norm(waves, axis=1) < k_cutoff]


def gaussian_slab(
    positions: np.ndarray, charges: np.ndarray, one: np.ndarray, other: np.ndarray, alpha: float
) -> float:
    """Energy, self-energies included, of Gaussian charges that repeat in a plane.

    A pair at height z has for each G the integral 2 int dk/2pi Phi(sqrt(G^2 + k^2)) cos(kz) / A, and for G = 0, where
    only charge densities of planes are left, -2 pi k_e / A times z erf(alpha z) + exp(-alpha^2 z^2) / (alpha sqrt pi):
    the potential of a charged plane, -2 pi k_e |z|, twice smeared out. (Its second derivative is -4 pi k_e times a
    Gaussian of variance 1 / (2 alpha^2) = 2 (sigma / sqrt 2)^2, and far away it is -2 pi k_e |z|.)
    """
    area = float(np.linalg.norm(np.cross(one, other)))
    normal = np.cross(one, other) / area
    height = positions @ normal
    z = height[:, None] - height
    pairs = np.outer(charges, charges)
    total = (
        -math.pi
        * COULOMB_CONSTANT
        / area
        * np.sum(pairs * (z * erf(alpha * z) + np.exp(-((alpha * z) ** 2)) / (alpha * math.sqrt(math.pi))))
    )
    # k = G sinh t takes the poles at k = +-iG out of the way; the trapezoidal rule is then exact to rounding
    t = np.linspace(-6.0, 6.0, 1201)
    for wave in in_plane_waves(one, other, 13.0 * alpha):
        g = float(np.linalg.norm(wave))
        k = g * np.sinh(t)
        phi = 2.0 * math.pi * COULOMB_CONSTANT * np.exp(-(g * g + k * k) / (4.0 * alpha**2)) / (g * g + k * k)
        amplitude = np.exp(-1j * (positions @ wave)[:, None] - 1j * height[:, None] * k)
        power = np.abs(charges @ amplitude) ** 2
        total += np.sum(phi * power * g * np.cosh(t)) * (t[1] - t[0]) / (2.0 * math.pi * area)
    return float(total)


@pytest.mark.parametrize("charged", CHARGED)
@pytest.mark.parametrize("seed", range(3))
def test_gaussian_charges_of_a_slab(seed: int, charged: str) -> None:
    positions, charges, one, other = slab(seed, charged)
    kernel = GaussianCoulomb(SIGMA)
    cell = tensor([one, other, [0.0, 0.0, 0.0]])
    found = fixed(kernel, K_CUTOFF)(tensor(positions), tensor(charges)[:, None], cell, pbc=SLAB).item()
    expected = gaussian_slab(positions, charges, one, other, kernel.alpha)
    scale = COULOMB_CONSTANT * kernel.alpha * np.sum(charges**2)
    assert found == pytest.approx(expected, abs=SLAB_TOLERANCE * scale)


@pytest.mark.parametrize("charged", CHARGED)
def test_a_slab_in_ever_more_vacuum(charged: str) -> None:
    """The periodic sum in a tall box, plus the dipole's 2 pi k_e M^2 / V, goes to the slab as exp(-G gap)."""
    positions, charges, one, other = slab(0, charged)
    _, _, normal = plane(0)
    summed = fixed(GaussianCoulomb(SIGMA), K_CUTOFF)
    q, area = tensor(charges)[:, None], float(np.linalg.norm(np.cross(one, other)))
    alone = summed(tensor(positions), q, tensor([one, other, normal]), pbc=SLAB).item()
    height = positions @ normal
    height = height - height.mean()
    net, moment, second = charges.sum(), charges @ height, charges @ height**2
    far = []
    for length in (8.0, 12.0, 16.0, 24.0):
        in_box = summed(tensor(positions), q, tensor([one, other, length * normal])).item()
        # a net charge: planes between planes of background, and what k = 0 takes out of a Gaussian
        in_box += (
            2.0
            * math.pi
            * COULOMB_CONSTANT
            / (area * length)
            * (moment**2 - net * second - net**2 * (length**2 / 12.0 + SIGMA**2 / 2.0))
        )
        far.append(abs(in_box - alone))
    g = float(np.linalg.norm(in_plane_waves(one, other, 4.0), axis=1).min())
    assert far[0] > 1e-4
    assert far[1] < 2.0 * far[0] * math.exp(-4.0 * g) + 1e-7
    assert far[2] < 2.0 * far[1] * math.exp(-4.0 * g) + 1e-7
    assert far[3] < 1e-7


def test_the_vector_that_does_not_repeat_may_be_anything() -> None:
    positions, charges, one, other = slab(1, "charged")
    _, _, normal = plane(1)
    summed = fixed(GaussianCoulomb(SIGMA), 6.0)
    q = tensor(charges)[:, None]
    energies = [
        summed(tensor(positions), q, tensor([one, other, third]), pbc=SLAB).item()
        for third in (normal, 0.0 * normal, 300.0 * normal, -2.0 * normal, one + 0.5 * other + 7.0 * normal, one)
    ]
    # and it may be any of the three
    for axis in range(3):
        rows, pbc = [one, other], torch.ones(3, dtype=torch.bool)
        rows.insert(axis, np.full(3, 0.1))
        pbc[axis] = False
        energies.append(summed(tensor(positions), q, tensor(rows), pbc=pbc).item())
    assert energies == pytest.approx([energies[0]] * len(energies), rel=1e-12)


# --- slabs: nothing may depend on the box


def exact_slab(
    summed: ReciprocalSum,
    positions: np.ndarray,
    charges: np.ndarray,
    one: np.ndarray,
    other: np.ndarray,
    coulomb: float,
) -> float:
    """Any kernel with its envelope: for each G a quadrature in pieces between the places where Phi is not smooth."""
    area = float(np.linalg.norm(np.cross(one, other)))
    height = positions @ np.cross(one, other) / area
    height = height - height.mean()
    end, onset = summed.k_cutoff, summed.envelope * summed.k_cutoff
    nodes, weights = np.polynomial.legendre.leggauss(160)
    total = -2.0 * coulomb * charges.sum() ** 2 / end  # the finite part of what is taken off below at G = 0
    for wave in np.vstack([np.zeros(3), in_plane_waves(one, other, end)]):
        g = float(np.linalg.norm(wave))
        cuts = [0.0, *(math.sqrt(k * k - g * g) for k in (onset, end) if k > g)]
        cuts += [x for x in (g, 3.0 * g) if 0.0 < x < cuts[-1]]
        cuts.sort()
        for low, high in itertools.pairwise(cuts):
            k = low + 0.5 * (high - low) * (nodes + 1.0)
            with torch.no_grad():
                phi = summed.phi(tensor(np.hypot(g, k))).numpy()
            power = np.zeros_like(k)
            for sign in (1.0, -1.0):
                amplitude = np.exp(-1j * (positions @ wave)[:, None] - 1j * sign * height[:, None] * k)
                power += np.abs(charges @ amplitude) ** 2
            integrand = phi * power
            if g == 0.0:
                integrand -= 2.0 * coulomb * charges.sum() ** 2 / k**2
            total += 0.5 * (high - low) * np.sum(weights * integrand)
    return float(total) / (2.0 * math.pi * area)


KERNELS: dict[str, Callable[[], Kernel]] = {
    "learned": lambda: LearnedKernel(GaussianCoulomb(0.8), learned(5.0)),
    "free": lambda: FreeKernel(learned(5.0)),
    "dispersion": lambda: Dispersion(0.4),
    "learned dispersion": lambda: LearnedKernel(Dispersion(0.4), learned(5.0)),
}


@pytest.mark.parametrize("charged", ["dipolar", "charged"])
@pytest.mark.parametrize("kind", KERNELS)
def test_a_slab_of_any_kernel_is_the_integral_along_its_normal(kind: str, charged: str) -> None:
    """r^-6 summed over a plane falls off as 1 / z^4 only, and a learned kernel reaches far: neither may see images."""
    positions, charges, one, other = slab(2, charged)
    kernel = KERNELS[kind]()
    summed = fixed(kernel, 5.0)
    cell = tensor([one, other, [0.0, 0.0, 0.0]])
    found = summed(tensor(positions), tensor(charges)[:, None], cell, pbc=SLAB).item()
    expected = exact_slab(summed, positions, charges, one, other, float(kernel.coulomb))
    alone = [summed(tensor(np.zeros((1, 3))), tensor([[q]]), cell, pbc=OPEN).item() for q in charges]
    tolerance = SLAB_TOLERANCE if kind == "dispersion" else IMAGES_TOLERANCE
    assert found == pytest.approx(expected, abs=tolerance * sum(abs(e) for e in alone))


@pytest.mark.parametrize("kind", ["coulomb", *KERNELS, "by channel"])
def test_a_slab_does_not_feel_the_height_of_its_box(kind: str, monkeypatch) -> None:
    positions, charges, one, other = slab(0, "charged")
    q, k_cutoff = tensor(charges)[:, None], 5.0
    if kind == "coulomb":
        kernel, k_cutoff = GaussianCoulomb(SIGMA), K_CUTOFF
    elif kind == "by channel":
        kernel = KernelByChannel([KERNELS["learned"](), Dispersion(0.4)])
        q = torch.cat([q, q.abs()], dim=1)
    else:
        kernel = KERNELS[kind]()
    results = []
    for images, reach in ((1e-8, 1.0), (1e-11, 1.3), (1e-16, 2.0)):
        monkeypatch.setattr(boundary, "SLAB_IMAGES", images)
        monkeypatch.setattr(FCN, "reach", property(lambda fcn, r=reach: r * 5.0 * fcn.frequencies[-1].item()))
        box = boundary.slab_box(tensor(positions), tensor([one, other, one]), 2, kernel.reach)
        summed = fixed(kernel, k_cutoff)
        energy, forces = summed.energy_forces(tensor(positions), q, tensor([one, other, one]), pbc=SLAB)
        results.append((float(torch.linalg.vector_norm(box[2])), energy.item(), forces))
    lengths, energies, forces = zip(*results, strict=True)
    assert lengths[0] < lengths[1] < lengths[2]
    # a free kernel is not small where the taper begins, and what the taper cuts off reaches far
    tolerance = {"coulomb": 1e-8, "dispersion": 1e-9, "free": 3.0 * IMAGES_TOLERANCE}.get(kind, IMAGES_TOLERANCE)
    largest = float(forces[2].abs().max())
    for energy, force in zip(energies[:2], forces[:2], strict=True):
        assert energy == pytest.approx(energies[2], abs=tolerance * largest)  # a force times 1 A
        assert float((force - forces[2]).abs().max()) < 5.0 * tolerance * largest


# --- slabs: point charges


def parry(positions: np.ndarray, charges: np.ndarray, one: np.ndarray, other: np.ndarray, alpha: float = 0.5) -> float:
    """The Coulomb energy of point charges that repeat in a plane: the sum of Parry, Surf. Sci. 49, 433 (1975)."""
    area = float(np.linalg.norm(np.cross(one, other)))
    normal = np.cross(one, other) / area
    difference = positions[:, None] - positions
    z = difference @ normal
    pairs = np.outer(charges, charges)
    # energies in units of k_e; every pair twice, each atom with itself once
    total = -alpha / math.sqrt(math.pi) * np.sum(charges**2)
    total -= (
        math.pi
        / area
        * np.sum(pairs * (z * erf(alpha * z) + np.exp(-((alpha * z) ** 2)) / (alpha * math.sqrt(math.pi))))
    )
    for wave in in_plane_waves(one, other, 13.0 * alpha):
        g = float(np.linalg.norm(wave))
        shape = np.exp(g * z) * erfc(g / (2 * alpha) + alpha * z) + np.exp(-g * z) * erfc(g / (2 * alpha) - alpha * z)
        total += math.pi / (2.0 * area * g) * np.sum(pairs * np.cos(difference @ wave) * shape)
    reach = range(-9, 10)
    for i, j in itertools.product(reach, reach):
        r = np.linalg.norm(difference + i * one + j * other, axis=2)
        if (i, j) == (0, 0):
            np.fill_diagonal(r, np.inf)
        total += 0.5 * np.sum(pairs * erfc(alpha * r) / r)
    return COULOMB_CONSTANT * float(total)


def one_by_one(positions: np.ndarray, charges: np.ndarray, one: np.ndarray, other: np.ndarray, reach: float) -> float:
    """The same for a neutral slab by adding up 1 / r, cells smoothly fading out as their distance goes to reach."""
    n = math.ceil(reach / 3.0)
    shifts = np.array([i * one + j * other for i, j in itertools.product(range(-n, n + 1), repeat=2)])
    distance = np.linalg.norm(shifts, axis=1)
    shifts, distance = shifts[distance < reach], distance[distance < reach]
    fade = (1.0 - (distance / reach) ** 2) ** 4
    total = 0.0
    for i, j in itertools.product(range(len(charges)), repeat=2):
        r = np.linalg.norm(positions[i] - positions[j] + shifts, axis=1)
        inverse = np.divide(1.0, r, out=np.zeros_like(r), where=r > 1e-9)
        total += 0.5 * charges[i] * charges[j] * np.sum(inverse * fade)
    return COULOMB_CONSTANT * total


def test_parrys_sum_is_the_sum_of_pairs() -> None:
    """The oracle itself. Neutral cells act on each other as 1 / r^3, so powers of 1 / reach are left out of a plane."""
    positions, charges, one, other = slab(0, "dipolar", n=4)
    positions = positions - np.floor(positions @ np.linalg.inv([one, other, np.cross(one, other)]))[:, :2] @ [
        one,
        other,
    ]
    reach = np.array([60.0, 90.0, 130.0, 200.0, 300.0])
    found = [one_by_one(positions, charges, one, other, r) for r in reach]
    assert abs(found[-1] - found[0]) > 1e-3
    limit = np.linalg.solve((60.0 / reach)[:, None] ** np.arange(5), found)[0]
    expected = parry(positions, charges, one, other)
    assert limit == pytest.approx(expected, rel=2e-6)
    assert parry(positions, charges, one, other, 0.7) == pytest.approx(expected, rel=1e-12)


def complete(
    positions: Tensor, charges: Tensor, cell: Tensor, kernel: GaussianCoulomb, cutoff: float, k_cutoff: float
) -> Tensor:
    """(): both halves of the Ewald sum of a slab; edges between all atoms of all cells in reach."""
    shifts = np.array(list(itertools.product(range(-7, 8), repeat=2)))
    images = tensor(shifts) @ cell[:2]
    difference = positions[:, None, None] - positions[None, :, None] + images
    squared = (difference**2).sum(dim=3)
    one, other, image = ((squared > 1e-6) & (squared < cutoff**2)).nonzero().unbind(dim=1)
    index = torch.zeros(len(positions), dtype=torch.int64)
    distances = torch.sqrt(squared[one, other, image])
    in_k = ReciprocalSum(kernel, k_cutoff, engine="separable")(positions, charges, cell, pbc=SLAB)
    volume = torch.full((1,), math.inf, dtype=torch.float64)
    return (in_k + CoulombComplement(kernel, cutoff)(charges, volume, index, torch.stack([one, other]), distances))[0]


@pytest.mark.parametrize("charged", CHARGED)
@pytest.mark.parametrize("sigma", [0.8, 1.1])
def test_point_charges_of_a_slab(charged: str, sigma: float) -> None:
    positions, charges, one, other = slab(1, charged)
    x, cell = tensor(positions).requires_grad_(), tensor([one, other, one + other])
    energy = complete(x, tensor(charges)[:, None], cell, GaussianCoulomb(sigma), 10.0, 9.0 / sigma)
    expected = parry(positions, charges, one, other)
    scale = COULOMB_CONSTANT * np.sum(charges**2)
    assert energy.item() == pytest.approx(expected, abs=1e-8 * scale)
    (gradient,) = torch.autograd.grad(energy, x)
    step = 1e-4
    for atom, axis in ((0, 0), (3, 1), (5, 2)):
        values = []
        for sign in (1.0, -1.0):
            moved = positions.copy()
            moved[atom, axis] += sign * step
            values.append(parry(moved, charges, one, other))
        assert gradient[atom, axis].item() == pytest.approx((values[0] - values[1]) / (2 * step), abs=1e-6 * scale)


def test_the_field_of_two_charged_planes() -> None:
    """Two square lattices of charges +-q far apart: a capacitor, E = 2 pi k_e q^2 d / A beyond that of each plane."""
    side, charge = 3.0, 0.7
    cell = tensor(np.diag([side, side, 0.0]))
    summed = fixed(GaussianCoulomb(SIGMA), 6.0)
    energies = []
    for distance in (20.0, 30.0):
        positions = tensor([[0.0, 0.0, 0.0], [1.0, 0.5, distance]])
        energies.append(summed(positions, tensor([[charge], [-charge]]), cell, pbc=SLAB).item())
    field = 2.0 * math.pi * COULOMB_CONSTANT * charge**2 / side**2
    assert energies[1] - energies[0] == pytest.approx(10.0 * field, rel=1e-9)
