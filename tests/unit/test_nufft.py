"""Engine nufft against the exact sum: within its tolerance for all that has one, exact for its own derivatives."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from scipy.integrate import quad
from scipy.special import iv
from torch import Tensor, nn

from lrpot.errors import ConfigError, StructureError
from lrpot.kspace import FCN, Dispersion, FreeKernel, GaussianCoulomb, KernelByChannel, LearnedKernel, ReciprocalSum
from lrpot.kspace.kernel import Kernel
from lrpot.kspace.lattice import MAX_KVECTORS, MAX_MODES, k_lattice
from lrpot.kspace.nufft import POINT_COST, SAFETY, WIDTHS, Mesh, Nufft, choose_mesh
from lrpot.kspace.plan import skew_of
from lrpot.kspace.separable import Separable
from lrpot.kspace.window import window, window_polynomials, window_transform

TOLERANCES = (1e-2, 1e-3, 1e-5, 1e-8)
DIFFERENCE = 1e-8  # relative, of derivatives by central differences of fourth order
EXACT = 1e-11  # relative: the same mesh moved along, or other atoms beside it


def learned(k_cutoff: float, **settings: int) -> FCN:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fcn = FCN(k_cutoff, **settings).double()
        nn.init.normal_(fcn.last.weight, std=0.3)
        nn.init.normal_(fcn.last.bias, std=0.3)
    return fcn


KERNELS: dict[str, tuple[Callable[[], Kernel], float]] = {
    "coulomb 1.0": (lambda: GaussianCoulomb(1.0), 4.0),
    "coulomb 0.7": (lambda: GaussianCoulomb(0.7), 6.0),
    "coulomb 1.5": (lambda: GaussianCoulomb(1.5), 3.0),
    "learned": (lambda: LearnedKernel(GaussianCoulomb(1.0), learned(4.0)), 4.0),
    "free": (lambda: FreeKernel(learned(4.0)), 4.0),
    "dispersion": (lambda: Dispersion(0.4), 4.0),
}


def fixed(kind: str, engine: str = "nufft", tolerance: float = 1e-3, **settings: object) -> ReciprocalSum:
    make, k_cutoff = KERNELS[kind]
    return ReciprocalSum(make(), k_cutoff, engine=engine, tolerance=tolerance, **settings).requires_grad_(False)


Crystal = tuple[Tensor, Tensor, Tensor]


def tensor(values: object) -> Tensor:
    return torch.as_tensor(np.asarray(values), dtype=torch.float64)


def rattled(atoms: Atoms, seed: int = 0) -> Crystal:
    """Positions, charges and cell; the atoms 0.1 A off their sites along each axis."""
    atoms = atoms.copy()
    atoms.rattle(0.1, seed=seed)
    charge = {"Na": 1, "Cl": -1, "Cs": 1, "Zn": 1, "S": -1, "Ga": 1, "N": -1, "Mg": 1, "O": -1, "K": 1, "Br": -1}
    return tensor(atoms.positions), tensor([charge[s] for s in atoms.symbols])[:, None], tensor(atoms.cell.array)


def leaning() -> Atoms:
    """Rock salt in a cell of which one vector leans by 76 degrees."""
    atoms = bulk("NaCl", "rocksalt", 5.64, cubic=True) * (3, 3, 3)
    atoms.set_cell(np.array([[1, 0, 0], [4, 1, 0], [0, 0, 1]]) @ atoms.cell.array)
    return atoms


def spread_out(n: int, length: float, seed: int = 0) -> Crystal:
    """Random positions, no two closer than 2 A, in a triclinic cell."""
    rng = np.random.default_rng(seed)
    cell = length * np.array([[1.1, 0.0, 0.0], [0.4, 1.0, 0.1], [-0.3, 0.35, 0.95]])
    images = np.array(list(itertools.product((-1, 0, 1), repeat=3))) @ cell
    positions = np.empty((0, 3))
    while len(positions) < n:
        new = rng.random(3) @ cell
        if np.linalg.norm(new + images[:, None] - positions, axis=2).min(initial=np.inf) > 2.0:
            positions = np.vstack([positions, new])
    return tensor(positions), tensor(np.tile([1.0, -1.0], n // 2))[:, None], tensor(cell)


# of NaCl: for two kernels and two tolerances only
VARIANTS = ("NaCl 512", "left-handed", "unwrapped", "drifted", "8 channels")


@lru_cache(maxsize=1)
def crystals() -> dict[str, Crystal]:
    salt = bulk("NaCl", "rocksalt", 5.64, cubic=True)
    found = {
        "NaCl": rattled(salt * (3, 3, 3)),
        "NaCl 512": rattled(salt * (4, 4, 4)),
        "KBr": rattled(bulk("KBr", "rocksalt", 6.6, cubic=True) * (3, 3, 3)),
        "CsCl": rattled(bulk("CsCl", "cesiumchloride", 4.12) * (5, 5, 5)),
        "zincblende": rattled(bulk("ZnS", "zincblende", 5.41, cubic=True) * (3, 3, 3)),
        "wurtzite": rattled(bulk("GaN", "wurtzite", a=3.19, c=5.19) * (4, 4, 4)),
        "MgO": rattled(bulk("MgO", "rocksalt", 4.21, cubic=True) * (3, 3, 3)),
        "triclinic": spread_out(220, 16.0),
        "leaning": rattled(leaning()),
        "3 A": rattled(bulk("CsCl", "cesiumchloride", 3.0)),
    }
    x, q, cell = found["NaCl"]
    mirror = tensor([1.0, 1.0, -1.0])
    found["left-handed"] = x * mirror, q, cell * mirror
    found["unwrapped"] = (
        x + torch.randint(-3, 4, x.shape, generator=torch.Generator().manual_seed(0)).double() @ cell,
        q,
        cell,
    )
    found["drifted"] = x + 1000.0, q, cell
    found["charged"] = x[1:], q[1:] + 0.2, cell
    generator = torch.Generator().manual_seed(1)
    found["8 channels"] = x, torch.randn(len(x), 8, generator=generator, dtype=torch.float64), cell
    return found


def rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


@lru_cache(maxsize=100)
def exact(kind: str, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Energy, forces and potential, by engine separable."""
    summed = fixed(kind, "separable")
    return *summed.energy_forces(*crystals()[name]), summed.potential(*crystals()[name])


# --- within the tolerance


@pytest.mark.parametrize("tolerance", TOLERANCES)
@pytest.mark.parametrize("kind", KERNELS)
def test_energy_forces_and_potential(kind: str, tolerance: float) -> None:
    """Forces as `choose_mesh` states it; energies and potentials, which derivatives do not magnify, are better."""
    summed = fixed(kind, tolerance=tolerance)
    for name, crystal in crystals().items():
        if name in VARIANTS and (kind not in ("coulomb 1.0", "free") or tolerance in (1e-3, 1e-5)):
            continue
        energy, forces = summed.energy_forces(*crystal)
        expected, on_atoms, potential = exact(kind, name)
        assert rms(forces - on_atoms) < tolerance * rms(on_atoms), name
        assert rms(summed.potential(*crystal) - potential) < 0.3 * tolerance * rms(potential), name
        assert energy.item() == pytest.approx(expected.item(), rel=0.5 * tolerance), name


def test_the_exact_sum_is_the_plain_one() -> None:
    for name in ("NaCl", "triclinic", "charged"):
        energy, forces = fixed("coulomb 1.0", "dense").energy_forces(*crystals()[name])
        expected, on_atoms, _ = exact("coulomb 1.0", name)
        assert energy.item() == pytest.approx(expected.item(), rel=1e-12)
        assert rms(forces - on_atoms) < 1e-11 * rms(on_atoms)


@pytest.mark.parametrize("tolerance", TOLERANCES)
def test_forces_of_an_atom_alone_and_of_a_perfect_crystal(tolerance: float) -> None:
    """They vanish. What is wrong is as large as in a crystal whose atoms are off their sites."""
    salt = bulk("NaCl", "rocksalt", 5.64) * (4, 4, 4)
    perfect = tensor(salt.positions) + 0.123, rattled(salt)[1], tensor(salt.cell.array)
    one = tensor([[0.3, 0.1, 2.2]]), tensor([[1.0]]), tensor([[4.0, 0.1, 0.2], [0.7, 3.6, 0.0], [-1.0, 0.4, 4.4]])
    summed, sites = fixed("coulomb 1.0", tolerance=tolerance), rms(exact("coulomb 1.0", "NaCl")[1])
    for crystal in (perfect, one):
        energy, forces = summed.energy_forces(*crystal)
        assert rms(forces) < tolerance * sites
        assert energy.item() == pytest.approx(fixed("coulomb 1.0", "separable")(*crystal).item(), rel=0.5 * tolerance)


@pytest.mark.parametrize("tolerance", [1e-2, 1e-5])
def test_a_cell_of_300_angstrom(tolerance: float) -> None:
    """Kernel and mesh are scaled up with it, density does not matter."""
    crystal = spread_out(200, 300.0)
    kernel = GaussianCoulomb(14.0)
    results = [
        ReciprocalSum(kernel, 0.3, engine=engine, tolerance=tolerance).energy_forces(*crystal)
        for engine in ("nufft", "separable")
    ]
    (energy, forces), (expected, on_atoms) = results
    assert rms(forces - on_atoms) < tolerance * rms(on_atoms)
    assert energy.item() == pytest.approx(expected.item(), rel=0.5 * tolerance)


@pytest.mark.parametrize("tolerance", TOLERANCES)
def test_stress_and_gradients_in_the_weights(tolerance: float) -> None:
    kinds = {
        "learned": KERNELS["learned"][0],
        "by channel": lambda: KernelByChannel([KERNELS["learned"][0](), Dispersion(0.4)]),
    }
    cases = [("learned", "triclinic"), ("learned", "left-handed"), ("learned", "charged"), ("by channel", "wurtzite")]
    for kind, name in cases:
        x, q, cell = crystals()[name]
        q = q if kind == "learned" else torch.cat([q, q.abs()], dim=1)
        found = []
        for engine in ("nufft", "separable"):
            summed = ReciprocalSum(kinds[kind](), 4.0, engine=engine, tolerance=tolerance)
            strained = cell.clone().requires_grad_()
            weights = [p for n, p in summed.named_parameters() if not n.endswith("last.bias")]
            by_cell, *gradients = torch.autograd.grad(summed(x, q, strained), [strained, *weights])
            by_weights = torch.cat([gradient.reshape(-1) for gradient in gradients])
            stress = summed.requires_grad_(False).energy_forces_stress(x, q, cell)[2]
            found.append((by_weights, by_cell, stress))
        for one, other in zip(*found, strict=True):
            assert rms(one - other) < tolerance * rms(other), (kind, name)


def test_single_precision() -> None:
    for name in ("drifted", "leaning", "8 channels"):
        x, q, cell = crystals()[name]
        expected, on_atoms, _ = exact("learned", name)
        for tolerance in (1e-2, 1e-5):
            energy, forces = fixed("learned", tolerance=tolerance).energy_forces(x, q.float(), cell)
            assert rms(forces - on_atoms) < (tolerance + 1e-5) * rms(on_atoms), name
            assert energy.item() == pytest.approx(expected.item(), rel=0.5 * tolerance + 1e-6), name


def test_two_structures_are_each_alone() -> None:
    summed = fixed("learned", tolerance=1e-3)
    parts = [crystals()[name] for name in ("wurtzite", "triclinic", "zincblende")]
    index = torch.cat([torch.full((len(x),), g) for g, (x, _, _) in enumerate(parts)])
    batch = (
        torch.cat([x for x, _, _ in parts]),
        torch.cat([q for _, q, _ in parts]),
        torch.stack([c for _, _, c in parts]),
    )
    energy, forces, stress = summed.energy_forces_stress(*batch, index)
    potential = summed.potential(*batch, index)
    for g, part in enumerate(parts):
        e, f, s = summed.energy_forces_stress(*part)
        assert energy[g].item() == pytest.approx(e.item(), rel=EXACT)
        for one, other in (
            (forces[index == g], f),
            (stress[g], s[0]),
            (potential[index == g], summed.potential(*part)),
        ):
            assert rms(one - other) < EXACT * rms(other)


# --- exact derivatives of what is computed, however coarse the mesh


def slope(function: Callable[[float], Tensor], step: float) -> float:
    f = [float(function(x * step)) for x in (-2.0, -1.0, 1.0, 2.0)]
    return (f[0] - 8.0 * f[1] + 8.0 * f[2] - f[3]) / (12.0 * step)


def engine_for(summed: ReciprocalSum, cell: Tensor) -> Nufft:
    mesh = choose_mesh(summed.phi, summed.k_cutoff, summed.tolerance)
    return Nufft(torch.linalg.vector_norm(cell, dim=1).tolist(), mesh, cell.device, cell.dtype)


def between_planes(summed: ReciprocalSum, crystal: Crystal) -> Crystal:
    """No atom near the plane of the mesh where its window takes the next points: see below."""
    x, q, cell = crystal
    engine = engine_for(summed, cell)
    place = x @ torch.linalg.inv(cell) * engine.grid.counts - 0.5 * engine.grid.width
    place = place.floor() + 0.1 + 0.8 * (place - place.floor())
    return (place + 0.5 * engine.grid.width) / engine.grid.counts @ cell, q, cell


@pytest.mark.parametrize("kind", ["coulomb 1.0", "free"])
def test_forces_stress_and_potential_are_derivatives_of_the_energy_on_the_mesh(kind: str) -> None:
    summed = fixed(kind, tolerance=1e-2)
    x, q, cell = between_planes(summed, spread_out(24, 8.0))
    energy, forces, stress = summed.energy_forces_stress(x, q, cell)
    assert abs(energy.item() / fixed(kind, "separable")(x, q, cell).item() - 1.0) > 1e-8  # the mesh is coarse
    potential = summed.potential(x, q, cell)
    generator = torch.Generator().manual_seed(2)
    for _ in range(3):
        d = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        found = slope(lambda t, d=d: summed(x + t * d, q, cell), 1e-3)
        assert -float((forces * d).sum()) == pytest.approx(found, abs=DIFFERENCE * rms(forces) * len(x))
        d = torch.randn(q.shape, generator=generator, dtype=torch.float64)
        found = slope(lambda t, d=d: summed(x, q + t * d, cell), 1e-2)
        assert float((potential * d).sum()) == pytest.approx(found, rel=DIFFERENCE)
        strain = torch.randn(3, 3, generator=generator, dtype=torch.float64)
        strain = strain + strain.mT

        def strained(t: float, strain=strain) -> Tensor:
            deformation = torch.eye(3, dtype=torch.float64) + t * strain
            return summed(x @ deformation, q, cell @ deformation)

        virial = float((stress[0] * strain).sum() * torch.linalg.det(cell).abs())
        assert virial == pytest.approx(slope(strained, 3e-5), abs=1e-7 * abs(virial) + 1e-9 * energy.item())


def test_energy_is_differentiable_in_the_weights_and_only_once() -> None:
    summed = ReciprocalSum(KERNELS["learned"][0](), 4.0, engine="nufft", tolerance=1e-2)
    x, q, cell = spread_out(12, 7.0)
    weight = summed.kernel.fcn.last.weight
    (gradient,) = torch.autograd.grad(summed(x, q, cell), weight)
    place = int(gradient.abs().argmax())

    def moved(t: float) -> Tensor:
        with torch.no_grad():
            weight[0, place] += t
            energy = summed(x, q, cell)
            weight[0, place] -= t
        return energy

    # the mesh is chosen for a kernel; a step that is small enough leaves it as it is
    assert gradient[0, place].item() == pytest.approx(slope(moved, 1e-4), rel=1e-7)

    moving = x.clone().requires_grad_()
    (forces,) = torch.autograd.grad(summed(moving, q, cell).sum(), moving, create_graph=True)
    with pytest.raises(ConfigError, match="first derivatives only; use engine = separable"):
        torch.autograd.grad(forces.square().sum(), weight)


@pytest.mark.parametrize("axis", range(3))
def test_nothing_jumps_where_an_atom_passes_a_plane_of_the_mesh(axis: int) -> None:
    summed = fixed("coulomb 1.0", tolerance=1e-2)
    x, q, cell = spread_out(12, 7.0)
    engine = engine_for(summed, cell)
    fractional = x @ torch.linalg.inv(cell)
    for shift in (0.0, 0.5):  # a window of an odd number of points begins between planes
        fractional[0, axis] = (3.0 + shift) / engine.grid.sizes[axis]
        step = torch.zeros_like(x)
        step[0] = cell[axis] / engine.grid.sizes[axis]
        near = [summed.energy_forces(fractional @ cell + t * step, q, cell) for t in (-1e-9, 1e-9)]
        (e0, f0), (e1, f1) = near
        scale = rms(f0)
        expected = -float((f0[0] * step[0]).sum()) * 2e-9
        assert float(e1 - e0) == pytest.approx(expected, abs=1e-13 * abs(float(e0)))
        # the polynomials of the window have its slope to their own accuracy
        assert rms(f1 - f0) < 1e-6 * scale


@pytest.mark.parametrize("kind", ["coulomb 1.0", "dispersion"])
def test_the_mesh_goes_round_its_ends(kind: str) -> None:
    """Everything moved by whole steps of the mesh, all around the cell, is the same on the mesh, to rounding."""
    summed = fixed(kind, tolerance=1e-2)
    x, q, cell = spread_out(10, 6.0)
    sizes = engine_for(summed, cell).grid.sizes
    energy, forces = summed.energy_forces(x, q, cell)
    for axis, size in enumerate(sizes):
        for n in range(1, size + 1):
            e, f = summed.energy_forces(x + n / size * cell[axis], q, cell)
            assert e.item() == pytest.approx(energy.item(), rel=EXACT)
            assert rms(f - forces) < EXACT * rms(forces)
    # by half a step it is not: there the mesh shows
    e, f = summed.energy_forces(x + 0.5 / sizes[0] * cell[0], q, cell)
    assert 1e-8 < rms(f - forces) / rms(forces) < 1e-2


def test_a_mode_at_the_edge_of_the_band_is_left_out() -> None:
    """It stands for itself and its opposite, which in a triclinic cell are of different length."""
    engine = Nufft([6.0, 8.0, 7.0], Mesh(0.9, 5, 0.6, 0.0), torch.device("cpu"), torch.float64)
    indices, factor = engine.modes(torch.device("cpu"))
    half = torch.tensor(engine.grid.sizes) / 2
    edge = (indices.abs() == half).any(dim=-1)
    assert edge.sum() > 50
    assert not factor[edge].any()
    assert bool((factor[~edge] > 0.0).all())
    assert bool((indices.abs() <= half).all())


# --- the window


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("shape", [0.45, 0.65, 0.9])
def test_polynomials_are_the_window(width: int, shape: float) -> None:
    polynomials = window_polynomials(width, shape)
    t = np.linspace(-1.0, 1.0, 777)
    columns = np.arange(width) + 1.0 - 0.5 * width
    exact_values = window(width, shape, columns - 0.5 * (t[:, None] + 1.0))
    found = np.vander(t, len(polynomials), increasing=True) @ polynomials
    assert np.abs(found - exact_values).max() < 2.0 * 10.0 ** (-1 - width) + 3e-14
    # where one polynomial ends the next begins, and the window's two ends are zero
    ends = np.vander([-1.0, 1.0], len(polynomials), increasing=True) @ polynomials
    assert np.abs(ends[1, 1:] - ends[0, :-1]).max() < 1e-14
    assert np.abs([ends[1, 0], ends[0, -1]]).max() < 1e-14


@pytest.mark.parametrize("width", [4, 7, 16])
@pytest.mark.parametrize("shape", [0.4, 0.65, 0.95])
def test_transform_of_the_window(width: int, shape: float) -> None:
    """Lewitt's closed form for one dimension and m = 2, and a quadrature."""
    frequency = np.array([0.0, 0.1, 0.3, 0.5])
    found = window_transform(width, shape, frequency)
    beta = math.pi * width * shape
    z = np.sqrt(beta**2 - (math.pi * width * frequency) ** 2 + 0j)
    closed = 0.5 * width * math.sqrt(2.0 * math.pi) * beta**2 / iv(2, beta) * (iv(2.5, z) / z**2.5).real
    np.testing.assert_allclose(found, closed, rtol=1e-9, atol=1e-14 * found[0])
    for f, value in zip(frequency, found, strict=True):
        half = quad(
            lambda x, f=f: window(width, shape, x) * math.cos(2 * math.pi * f * x), 0.0, 0.5 * width, limit=200
        )[0]
        assert value == pytest.approx(2.0 * half, rel=1e-8, abs=1e-11 * found[0])


def test_window_and_its_slope_vanish_at_its_ends() -> None:
    for width in WIDTHS:
        h = 1e-4
        near = window(width, 0.6, np.array([0.0, 0.5 * width - h, 0.5 * width, 0.5 * width + h, 3.0 * width]))
        assert near[0] == pytest.approx(1.0)
        assert near[1] < 1e2 * h**2
        assert not near[2:].any()


# --- the choice of the mesh


@pytest.mark.parametrize("kind", KERNELS)
def test_a_smaller_tolerance_takes_a_finer_mesh(kind: str) -> None:
    summed = fixed(kind)
    meshes = [choose_mesh(summed.phi, summed.k_cutoff, tolerance) for tolerance in TOLERANCES]
    costs = [0.05 * m.width**3 + POINT_COST / m.spacing**3 for m in meshes]
    assert costs == sorted(costs)
    assert costs[0] < costs[-1]
    for mesh, tolerance in zip(meshes, TOLERANCES, strict=True):
        assert 0.0 < SAFETY * mesh.error <= tolerance
        assert mesh.width in WIDTHS


def test_a_mesh_serves_the_kernel_it_was_chosen_for() -> None:
    """One that is small at large k needs less."""
    costs = []
    for sigma in (0.6, 1.0, 1.4):
        phi = ReciprocalSum(GaussianCoulomb(sigma), 4.0).phi
        mesh = choose_mesh(phi, 4.0, 1e-3)
        costs.append(0.05 * mesh.width**3 + POINT_COST / mesh.spacing**3)
    assert costs[0] > costs[1] > costs[2]


@pytest.mark.parametrize("tolerance", [1e-13, 1e-30])
def test_a_tolerance_out_of_reach_is_refused(tolerance: float) -> None:
    summed = fixed("coulomb 1.0", tolerance=tolerance)
    with pytest.raises(ConfigError, match=r"tolerance = 1e-\d+ is out of reach of engine nufft"):
        summed(*crystals()["3 A"])


def test_auto_takes_separable_where_no_mesh_is_accurate_enough(used: list[str]) -> None:
    crystal = rattled(bulk("NaCl", "rocksalt", 5.64) * (4, 4, 4))
    summed = fixed("coulomb 1.0", "auto", 1e-12)
    energy, _ = summed.energy_forces(*crystal)
    assert used == ["Separable"]
    assert energy.item() == pytest.approx(fixed("coulomb 1.0", "dense")(*crystal).item(), rel=EXACT)


@pytest.mark.parametrize("engine", ["auto", "nufft"])
def test_any_mesh_serves_a_kernel_that_is_zero(engine: str) -> None:
    """As a free kernel is at the start of a fit."""
    summed = ReciprocalSum(FreeKernel(FCN(4.0).double()), 4.0, engine=engine, tolerance=1e-5).requires_grad_(False)
    energy, forces = summed.energy_forces(*rattled(bulk("NaCl", "rocksalt", 5.64) * (4, 4, 4)))
    assert energy.item() == 0.0
    assert not forces.any()


def test_skew_of_cells() -> None:
    for atoms in (
        bulk("NaCl", "rocksalt", 5.64),
        bulk("NaCl", "rocksalt", 5.64, cubic=True),
        bulk("GaN", "wurtzite", a=3.19, c=5.19),
        bulk("Fe", "bcc", a=2.87),
        bulk("CsCl", "cesiumchloride", 4.12) * (1, 2, 7),
    ):
        assert skew_of(tensor(atoms.cell.array)) == 1.0
    cell = tensor(np.diag([3.0, 4.0, 5.0]))
    for angle, skew in ((30.0, 1.0), (45.0, 2.0), (70.0, 4.0), (80.0, 8.0)):
        cell[2] = 9.0 * tensor([math.sin(math.radians(angle)), 0.0, math.cos(math.radians(angle))])
        for turned in (cell, cell[[2, 0, 1]], cell * tensor([1.0, -1.0, 1.0])):
            assert skew_of(turned) == skew


# --- who computes


@pytest.fixture
def used(monkeypatch) -> list[str]:
    """Names of the engines that computed."""
    names: list[str] = []
    for engine in (Nufft, Separable):
        original = engine.evaluate

        def spy(self, *args, original=original, **kwargs):
            names.append(type(self).__name__)
            return original(self, *args, **kwargs)

        monkeypatch.setattr(engine, "evaluate", spy)
    return names


def test_auto_takes_the_faster_engine(used: list[str]) -> None:
    salt = bulk("NaCl", "rocksalt", 5.64)
    small, large = rattled(salt * (2, 2, 2)), rattled(salt * (16, 16, 16))
    summed = fixed("learned", "auto", 1e-3)
    energy, _ = summed.energy_forces(*large)
    summed.energy_forces(*small)
    summed.energy_forces_stress(*crystals()["3 A"])
    assert used == ["Nufft", "Separable", "Separable"]
    # both in one batch
    index = torch.cat([torch.zeros(len(large[0])), torch.ones(len(small[0]))]).long()
    both = torch.cat([large[0], small[0]]), torch.cat([large[1], small[1]]), torch.stack([large[2], small[2]])
    used.clear()
    found, _ = summed.energy_forces(*both, index)
    assert sorted(used) == ["Nufft", "Separable"]
    assert found[0].item() == pytest.approx(energy.item(), rel=EXACT)
    assert found[1].item() == pytest.approx(fixed("learned", "separable")(*small).item(), rel=EXACT)


def test_auto_trains_with_separable(used: list[str]) -> None:
    """Losses of forces need second derivatives, and a kernel that changes would need a mesh for each step."""
    large = rattled(bulk("NaCl", "rocksalt", 5.64) * (9, 9, 9))
    ReciprocalSum(KERNELS["learned"][0](), 4.0, tolerance=1e-2)(*large)
    assert used == ["Separable"]


@pytest.mark.parametrize("engine", ["auto", "nufft", "separable"])
def test_too_many_wave_vectors_are_refused(engine: str) -> None:
    summed = fixed("coulomb 1.0", engine)
    limit = MAX_KVECTORS if engine == "separable" else MAX_MODES
    # V k_c^3 / 12 pi^2 wave vectors
    length = (12.0 * math.pi**2 * limit / 4.0**3) ** (1 / 3)
    pbc = torch.ones(3, dtype=torch.bool)
    summed.check(0.99 * length * torch.eye(3, dtype=torch.float64), pbc)
    cell = 1.01 * length * torch.eye(3, dtype=torch.float64)
    with pytest.raises(StructureError, match=re.escape(f"more than {limit:.0e}; remove vacuum")):
        summed.check(cell, pbc)
    if engine != "auto":
        with pytest.raises(StructureError, match=re.escape(f"more than {limit:.0e}; remove vacuum")):
            summed(torch.zeros(1, 3, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64), cell)


def test_a_sphere_without_a_wave_vector_is_refused() -> None:
    with pytest.raises(StructureError, match="no wave vector lies below"):
        fixed("coulomb 1.0")(*spread_out(2, 3.0)[:2], 1.2 * torch.eye(3, dtype=torch.float64))


# --- the structure factor itself


@pytest.mark.parametrize("name", ["triclinic", "left-handed"])
def test_structure_factors_equal_those_of_finufft(name: str) -> None:
    finufft = pytest.importorskip("finufft", reason="not installed: pip install 'lrpot[peers]'")
    x, q, cell = crystals()[name]
    k_cutoff = 4.0
    mesh = choose_mesh(lambda k: torch.ones_like(k), k_cutoff, 1e-8)
    engine = Nufft(torch.linalg.vector_norm(cell, dim=1).tolist(), mesh, x.device, x.dtype)
    indices, factor = engine.modes(x.device)
    fractional = x @ torch.linalg.inv(cell)
    fractional = fractional - torch.round(fractional)
    weights = torch.zeros(1, 1, *factor.shape, 2, dtype=torch.float64)
    _, gradient = engine.evaluate(fractional[None], q[None], weights, power=True)
    power = gradient.power[0, 0].sum(dim=-1) * factor
    # a mode with n3 > 0 stood for two
    power[..., 1:] *= 0.5
    angles = (2.0 * math.pi * fractional).numpy().T
    wanted = k_lattice(cell, k_cutoff).indices
    sizes = [int(2 * n + 1) for n in wanted.abs().amax(dim=0)]
    amplitude = finufft.nufft3d1(*angles.copy(), q[:, 0].numpy().astype(complex), tuple(sizes), isign=-1, eps=1e-13)
    flipped = torch.where(wanted[:, 2:] < 0, -wanted, wanted)
    found = power[flipped[:, 0], flipped[:, 1], flipped[:, 2]]
    middle = [n // 2 for n in sizes]
    expected = np.abs(amplitude[tuple((wanted + torch.tensor(middle)).T.numpy())]) ** 2
    assert len(found) > 1000
    assert float((found - tensor(expected)).abs().max()) < 1e-7 * expected.max()
    assert torch.equal(indices[tuple(flipped.T)].long(), flipped)
