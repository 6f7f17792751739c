"""Slabs and molecules: boxes, derivatives, batches, refusals. The physics: tests/reference/test_slab_isolated.py."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import Tensor, nn

import lrpot.kspace.boundary as boundary
from lrpot.errors import StructureError
from lrpot.kspace import FCN, Dispersion, FreeKernel, GaussianCoulomb, KernelByChannel, LearnedKernel, ReciprocalSum
from lrpot.kspace.boundary import Boundary, RadialForm, boundary_of, radial_form, slab_box, tabulated
from lrpot.kspace.kernel import Kernel

DIFFERENCE = 1e-7  # relative, of derivatives by central differences of fourth order
EXACT = 1e-12  # relative: the same numbers added up in another order
K_CUTOFF = 4.0  # 1/A

CRYSTAL, SLAB, CHAIN, OPEN = ([True] * 3, [True, True, False], [False, True, False], [False] * 3)


def learned(seed: int = 0) -> FCN:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fcn = FCN(K_CUTOFF, basis=6, hidden=8).double()
        nn.init.normal_(fcn.last.weight, std=0.3)
        nn.init.normal_(fcn.last.bias, std=0.3)
    return fcn


KERNELS: dict[str, Callable[[], Kernel]] = {
    "coulomb": lambda: GaussianCoulomb(1.9),  # next to nothing where the taper begins
    "learned": lambda: LearnedKernel(GaussianCoulomb(1.0), learned()),
    "free": lambda: FreeKernel(learned()),
    "dispersion": lambda: Dispersion(0.4),
    "by channel": lambda: KernelByChannel([LearnedKernel(GaussianCoulomb(1.0), learned()), Dispersion(0.4)]),
}
CELL = torch.tensor([[4.2, 0.3, 0.1], [-1.4, 4.4, 0.5], [0.7, 0.2, 3.0]], dtype=torch.float64)


def atoms(seed: int = 0, n: int = 6, channels: int = 2) -> tuple[Tensor, Tensor]:
    """Positions (n, 3) in and beyond `CELL`, and charges (n, channels) that do not add up to zero."""
    generator = torch.Generator().manual_seed(seed)
    positions = (2.0 * torch.rand(n, 3, generator=generator, dtype=torch.float64) - 0.5) @ CELL
    return positions, torch.randn(n, channels, generator=generator, dtype=torch.float64)


def flags(pbc: list[bool]) -> Tensor:
    return torch.tensor(pbc)


def slope(function: Callable[[float], Tensor], step: float = 1e-3) -> float:
    """The derivative at zero by central differences of fourth order."""
    f = [float(function(x * step)) for x in (-2.0, -1.0, 1.0, 2.0)]
    return (f[0] - 8.0 * f[1] + 8.0 * f[2] - f[3]) / (12.0 * step)


def fixed(kernel: Kernel, **settings: object) -> ReciprocalSum:
    return ReciprocalSum(kernel, K_CUTOFF, **{"engine": "separable", **settings}).requires_grad_(False)


# --- which boundary


def test_boundary_counts_the_vectors_that_repeat() -> None:
    for pbc in itertools.product((True, False), repeat=3):
        if sum(pbc) == 1:
            with pytest.raises(StructureError, match=r"a chain.*not supported"):
                boundary_of(flags(list(pbc)))
        else:
            expected = {3: Boundary.PERIODIC, 2: Boundary.SLAB, 0: Boundary.ISOLATED}[sum(pbc)]
            assert boundary_of(flags(list(pbc))) is expected


def test_a_chain_is_refused_before_and_by_the_sum() -> None:
    summed = fixed(GaussianCoulomb(1.0))
    with pytest.raises(StructureError, match="chain"):
        summed.check(CELL, flags(CHAIN))
    with pytest.raises(StructureError, match="chain"):
        summed(*atoms(), CELL, pbc=flags(CHAIN))
    for pbc in (CRYSTAL, SLAB, OPEN):
        summed.check(CELL, flags(pbc))


@pytest.mark.parametrize("engine", ["auto", "nufft", "separable", "dense"])
def test_a_wide_slab_is_refused_before_and_by_the_sum(engine: str) -> None:
    """The vacuum is that of the box, which is as high as the slab is wide: no user can remove it."""
    summed = fixed(GaussianCoulomb(1.0), engine=engine)
    cell = torch.diag(torch.tensor([30.0, 300.0, 301.0], dtype=torch.float64))
    message = r"a slab of 300 x 301 A needs .*; repeat the slab less often in its plane or lower k_cutoff"
    with pytest.raises(StructureError, match=message):
        summed.check(cell, flags([False, True, True]))
    with pytest.raises(StructureError, match=message):
        summed(*atoms(), cell, pbc=flags([False, True, True]))


def test_a_slab_that_is_too_wide_for_training_alone() -> None:
    """Where inference would take a mesh, training takes every wave vector, of which there may be fewer."""
    summed = ReciprocalSum(LearnedKernel(GaussianCoulomb(1.0), learned()), K_CUTOFF)
    cell = torch.diag(torch.tensor([160.0, 161.0, 30.0], dtype=torch.float64))
    summed.check(cell, flags(SLAB))
    with pytest.raises(StructureError, match="a slab of 160 x 161 A needs"):
        summed(*atoms(n=120), cell, pbc=flags(SLAB))


# --- the box of a slab


@pytest.mark.parametrize("seed", range(20))
def test_shortest_reciprocal_vector_of_any_two_vectors(seed: int) -> None:
    """By trying all small combinations; the vectors are as skewed as integer combinations make them."""
    rng = np.random.default_rng(seed)
    one, other = rng.normal(size=(2, 3)) * [3.0, 5.0, 1.0]
    cell = np.array([one, other, np.cross(one, other)])
    reciprocal = 2.0 * math.pi * np.linalg.inv(cell).T
    grid = np.array([(i, j, 0) for i, j in itertools.product(range(-40, 41), repeat=2) if (i, j) != (0, 0)])
    expected = np.linalg.norm(grid @ reciprocal, axis=1).min()
    n, m = rng.integers(-3, 4, 2)
    skewed = one + n * (other + m * one), other + m * one
    found = boundary._shortest_reciprocal(*(torch.from_numpy(v) for v in skewed))
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("reach", [0.0, 50.0])
def test_box_has_the_gap_it_promises(reach: float) -> None:
    positions, _ = atoms()
    box = slab_box(positions, CELL, 2, reach)
    assert torch.equal(box[:2], CELL[:2])
    assert float((box[2] @ CELL[:2].T).abs().max()) < 1e-12  # along the normal
    normal = box[2] / torch.linalg.vector_norm(box[2])
    extent = float((positions @ normal).max() - (positions @ normal).min())
    gap = float(torch.linalg.vector_norm(box[2])) - extent
    g = boundary._shortest_reciprocal(CELL[0], CELL[1])
    assert math.exp(-g * gap) < boundary.SLAB_IMAGES
    assert gap > reach
    least = max(reach, -math.log(boundary.SLAB_IMAGES) / g)
    assert gap < 1.25 * least + 1e-9  # no more vacuum than one step beyond
    # a little motion of the atoms leaves it as it is
    assert torch.equal(slab_box(1.001 * positions, CELL, 2, reach), box)


def test_vectors_in_a_line_are_refused() -> None:
    positions, charges = atoms()
    summed = fixed(GaussianCoulomb(1.0))
    for one, other in (([4.0, 0, 0], [8.0, 0, 0]), ([4.0, 0, 0], [0, 0, 0]), ([40.0, 1.0, 0], [-40.0, -1.0, 1e-7])):
        cell = torch.tensor([one, other, [0, 0, 9.0]], dtype=torch.float64)
        with pytest.raises(StructureError, match="parallel or zero"):
            summed(positions, charges, cell, pbc=flags(SLAB))
    # short vectors are no crime
    small = torch.diag(torch.tensor([1.6, 1.7, 0.0], dtype=torch.float64))
    assert torch.isfinite(summed(positions, charges, small, pbc=flags(SLAB))).all()


@pytest.mark.parametrize("kind", ["coulomb", "learned", "dispersion"])
def test_energy_and_forces_pass_smoothly_from_one_box_to_the_next(kind: str) -> None:
    """An atom that leaves the surface makes the box grow by a step; the energy must not."""
    positions, charges = atoms()
    charges = charges[:, :1]
    kernel = KERNELS[kind]()
    summed = fixed(kernel)
    normal = torch.linalg.cross(CELL[0], CELL[1])
    normal = normal / torch.linalg.vector_norm(normal)
    top = int((positions @ normal).argmax())

    def moved(by: float) -> Tensor:
        shift = torch.zeros_like(positions)
        shift[top] = by * normal
        return positions + shift

    def length(by: float) -> float:
        return float(torch.linalg.vector_norm(slab_box(moved(by), CELL, 2, kernel.reach)[2]))

    low, high = 0.0, 20.0
    before = length(low)
    assert length(high) > before
    while high - low > 1e-9:
        middle = 0.5 * (low + high)
        low, high = (middle, high) if length(middle) == before else (low, middle)
    (e_low, f_low), (e_high, f_high) = (
        summed.energy_forces(moved(by), charges, CELL, pbc=flags(SLAB)) for by in (low, high)
    )
    assert length(low) < length(high)
    scale = float(f_low.abs().max())
    assert float((e_low - e_high).abs()) < 1e-5 * scale
    assert float((f_low - f_high).abs().max()) < 1e-5 * scale


# --- the radial form


@pytest.mark.parametrize("envelope", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("kind", ["coulomb", "learned", "free", "dispersion"])
def test_radial_form_is_the_sine_transform(kind: str, envelope: float) -> None:
    summed = fixed(KERNELS[kind](), envelope=envelope)

    def phi(k: float) -> float:
        with torch.no_grad():
            return float(summed.phi(torch.tensor([k], dtype=torch.float64)))

    distances = [0.0, 0.7, 3.0, 11.0]
    found = summed.real_space(torch.tensor(distances, dtype=torch.float64)).detach()
    for r, u in zip(distances, found.tolist(), strict=True):
        pieces = [0.0, envelope * K_CUTOFF, K_CUTOFF]
        expected = sum(
            quad(lambda k, r=r: k * k * phi(k) * np.sinc(k * r / math.pi), low, high, epsabs=1e-12, limit=200)[0]
            for low, high in itertools.pairwise(pieces)
            if high > low
        )
        assert u == pytest.approx(expected / math.pi**2, abs=1e-10 * float(found.abs().max()))


@pytest.mark.parametrize("reach", [0.0, 30.0, 300.0])
def test_radial_form_has_points_enough_for_its_reach(reach: float) -> None:
    """Against one with reach to spare; a quadrature that is too coarse is wrong by the size of u itself."""
    summed = fixed(LearnedKernel(GaussianCoulomb(1.0), learned()))
    distances = torch.linspace(0.0, reach, 40, dtype=torch.float64)
    with torch.no_grad():
        found, fine = (
            radial_form(summed.phi, K_CUTOFF, 0.9, r, summed.kernel.reach)(distances)
            for r in (reach, 3.0 * reach + 100.0)
        )
    torch.testing.assert_close(found, fine, rtol=0.0, atol=1e-12 * float(fine.abs().max()))


@pytest.mark.parametrize("basis", [16, 40, 80])
def test_radial_form_has_points_enough_for_a_kernel_that_oscillates(basis: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fcn = FCN(K_CUTOFF, basis=basis, hidden=8).double()
        nn.init.normal_(fcn.last.weight, std=0.3)
    summed = fixed(FreeKernel(fcn))
    distances = torch.linspace(0.0, 12.0, 40, dtype=torch.float64)
    arguments = summed.phi, K_CUTOFF, 0.9, 12.0
    found, fine = (radial_form(*arguments, reach)(distances) for reach in (summed.kernel.reach, 900.0))
    torch.testing.assert_close(found, fine, rtol=0.0, atol=1e-10 * float(fine.abs().max()))
    torch.testing.assert_close(summed.real_space(distances), fine, rtol=0.0, atol=1e-10 * float(fine.abs().max()))


@pytest.mark.parametrize("kind", KERNELS)
@pytest.mark.parametrize("reach", [8.0, 80.0])
def test_a_table_stands_for_the_radial_form(kind: str, reach: float) -> None:
    """With two derivatives; not at zero itself, where the second one of sin(kr)/(kr) is not a number."""
    kernel = KERNELS[kind]().requires_grad_(False)
    summed = fixed(kernel)
    exact = radial_form(summed.phi, K_CUTOFF, 0.9, reach, kernel.reach)
    distances = torch.linspace(1e-3, reach, 777, dtype=torch.float64)
    by_form = []
    for form in (exact, tabulated(exact, K_CUTOFF, reach)):
        r = distances.clone().requires_grad_()
        u = form(r)
        (first,) = torch.autograd.grad(u.sum(), r, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), r)
        by_form.append((u.detach(), first.detach(), second))
    for (one, other), tolerance in zip(zip(*by_form, strict=True), (1e-13, 1e-11, 1e-9), strict=True):
        torch.testing.assert_close(other, one, rtol=0.0, atol=tolerance * float(one.abs().max()))


def test_molecules_take_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the table nor the waves of a kernel in training are held for more distances at once than there is room
    for."""
    held = []
    call = RadialForm.__call__

    def spy(self: RadialForm, distance: Tensor) -> Tensor:
        held.append(self.held * len(distance))
        return call(self, distance)

    monkeypatch.setattr(RadialForm, "__call__", spy)
    positions, charges = atoms(n=300, channels=1)
    summed = ReciprocalSum(KERNELS["learned"](), K_CUTOFF)
    trained = summed(30.0 * positions, charges, CELL, pbc=flags(OPEN)).detach()
    assert len(held) > 4
    frozen = summed.requires_grad_(False)(30.0 * positions, charges, CELL, pbc=flags(OPEN))
    assert max(held) <= boundary.HELD
    assert frozen.item() == pytest.approx(trained.item(), rel=1e-11)


def test_real_space_is_the_energy_of_two_charges() -> None:
    summed = fixed(KERNELS["by channel"]())
    distances = torch.tensor([0.0, 1.3, 7.0], dtype=torch.float64)
    pair = summed.real_space(distances)
    assert pair.shape == (3, 2)
    for r, u in zip(distances[1:], pair[1:], strict=True):
        positions = r * torch.tensor([[0.0, 0.0, 0.0], [0.6, 0.0, 0.8]], dtype=torch.float64)
        for channel in range(2):
            q = torch.zeros(2, 2, dtype=torch.float64)
            q[:, channel] = torch.tensor([1.5, -2.0])
            energy = float(summed(positions, q, CELL, pbc=flags(OPEN)))
            expected = float(-3.0 * u[channel] + 0.5 * (1.5**2 + 2.0**2) * pair[0, channel])
            assert energy == pytest.approx(expected, rel=1e-10)
            # without the charges' own fields, u is all there is
            alone = ReciprocalSum(summed.kernel, K_CUTOFF, subtract_self=True)(positions, q, CELL, pbc=flags(OPEN))
            assert float(alone) == pytest.approx(float(-3.0 * u[channel]), rel=1e-9)


# --- derivatives


@pytest.mark.parametrize("pbc", [SLAB, OPEN], ids=["slab", "molecule"])
@pytest.mark.parametrize("kind", KERNELS)
def test_forces_and_potential_are_derivatives(kind: str, pbc: list[bool]) -> None:
    positions, charges = atoms()
    summed = fixed(KERNELS[kind]())
    _, forces = summed.energy_forces(positions, charges, CELL, pbc=flags(pbc))
    potential = summed.potential(positions, charges, CELL, pbc=flags(pbc))
    for atom, axis in ((0, 0), (2, 1), (5, 2)):
        along = torch.zeros_like(positions)
        along[atom, axis] = 1.0
        found = slope(lambda x, d=along: summed(positions + x * d, charges, CELL, pbc=flags(pbc)))
        assert -float(forces[atom, axis]) == pytest.approx(found, abs=DIFFERENCE * float(forces.abs().max()))
    for atom, channel in ((1, 0), (4, 1)):
        along = torch.zeros_like(charges)
        along[atom, channel] = 1.0
        found = slope(lambda x, d=along: summed(positions, charges + x * d, CELL, pbc=flags(pbc)))
        assert float(potential[atom, channel]) == pytest.approx(found, abs=DIFFERENCE * float(potential.abs().max()))
    assert float(forces.sum(dim=0).abs().max()) < 1e-10 * float(forces.abs().max())


@pytest.mark.parametrize("kind", KERNELS)
def test_stress_of_a_slab(kind: str) -> None:
    """A deformation of the whole, and one of the two vectors alone; the third vector does nothing."""
    positions, charges = atoms()
    summed = fixed(KERNELS[kind]())
    generator = torch.Generator().manual_seed(3)
    strain = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    alone = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    x, cell = positions.clone().requires_grad_(), CELL.clone().requires_grad_()
    energy = summed(x, charges, cell, pbc=flags(SLAB))
    by_positions, by_cell = torch.autograd.grad(energy, [x, cell])
    assert not by_cell[2].any()

    def strained(t: float) -> Tensor:
        deformation = torch.eye(3, dtype=torch.float64) + t * strain
        return summed(positions @ deformation, charges, CELL @ deformation, pbc=flags(SLAB))

    def stretched(t: float) -> Tensor:
        return summed(positions, charges, CELL + t * alone, pbc=flags(SLAB))

    scale = float(by_cell.abs().max())
    # a learned kernel feels a little of its images, whose distance does not follow the strain
    tolerance = DIFFERENCE if kind in ("coulomb", "dispersion") else 1e-6
    assert float((by_cell * alone).sum()) == pytest.approx(slope(stretched), abs=tolerance * scale)
    expected = float((by_cell * (CELL @ strain)).sum() + (by_positions * (positions @ strain)).sum())
    assert expected == pytest.approx(slope(strained), abs=10.0 * tolerance * scale)


@pytest.mark.parametrize("pbc", [SLAB, OPEN], ids=["slab", "molecule"])
@pytest.mark.parametrize("kind", ["learned", "free", "by channel"])
def test_gradients_in_the_weights(kind: str, pbc: list[bool]) -> None:
    """Of the energy, and of a loss of forces, which training needs."""
    positions, charges = atoms()
    summed = ReciprocalSum(KERNELS[kind](), K_CUTOFF)
    weights = dict(summed.named_parameters())
    seed = torch.randn(positions.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)

    def both() -> tuple[Tensor, Tensor]:
        x = positions.clone().requires_grad_()
        energy = summed(x, charges, CELL, pbc=flags(pbc)).sum()
        (by_positions,) = torch.autograd.grad(energy, x, create_graph=True)
        return energy, (by_positions * seed).sum()

    for part in (0, 1):
        gradients = torch.autograd.grad(both()[part], list(weights.values()), allow_unused=True)
        checked = 0
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
            if gradient is None or name.endswith("last.bias"):
                continue
            place = int(gradient.abs().argmax())
            before = weight.detach().clone()

            def moved(t: float, weight=weight, before=before, place=place, part=part) -> Tensor:
                with torch.no_grad():
                    weight.copy_(before)
                    weight.view(-1)[place] += t
                value = both()[part].detach()
                with torch.no_grad():
                    weight.copy_(before)
                return value

            expected = slope(moved)
            assert float(gradient.view(-1)[place]) == pytest.approx(expected, rel=1e-6)
            checked += 1
        assert checked >= 4


@pytest.mark.parametrize("pbc", [SLAB, OPEN], ids=["slab", "molecule"])
def test_many_atoms_are_computed_in_blocks(pbc: list[bool], monkeypatch) -> None:
    """With second derivatives: what is left away in the forward pass must come again, and only once."""
    positions, charges = atoms(n=12)
    summed = ReciprocalSum(KERNELS["by channel"](), K_CUTOFF)
    weight = next(p for n, p in summed.named_parameters() if n.endswith("last.weight"))
    seed = torch.randn(positions.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    calls = []
    checkpoint = boundary.checkpoint
    monkeypatch.setattr(boundary, "checkpoint", lambda *a, **k: calls.append(1) or checkpoint(*a, **k))

    def everything() -> list[Tensor]:
        x, q = positions.clone().requires_grad_(), charges.clone().requires_grad_()
        energy = summed(x, q, CELL, pbc=flags(pbc)).sum()
        first = torch.autograd.grad(energy, [x, q, weight], create_graph=True)
        second = torch.autograd.grad((first[0] * seed).sum(), [x, q, weight])
        return [energy.detach(), *(f.detach() for f in first), *second]

    whole = everything()
    assert not calls
    # some atoms at once
    monkeypatch.setattr(boundary, "HELD", 5 * 180 * (len(positions) if pbc == OPEN else 1))
    blocks = everything()
    assert len(calls) >= 3
    for one, other in zip(whole, blocks, strict=True):
        assert float(other.abs().max()) > 0.0
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11 * float(one.abs().max()))


def test_atoms_at_one_place() -> None:
    """Two charges at one place push each other nowhere; no derivative may be nan."""
    positions = torch.zeros(3, 3, dtype=torch.float64)
    positions[2] = torch.tensor([1.0, 0.5, 0.2])
    charges = torch.tensor([[1.0], [0.5], [-2.0]], dtype=torch.float64)
    summed = fixed(GaussianCoulomb(1.0))
    energy, forces = summed.energy_forces(positions, charges, CELL, pbc=flags(OPEN))
    merged, on_merged = summed.energy_forces(
        positions[1:], torch.tensor([[1.5], [-2.0]]).double(), CELL, pbc=flags(OPEN)
    )
    assert energy.item() == pytest.approx(merged.item(), rel=EXACT)
    torch.testing.assert_close(forces[:2].sum(dim=0), on_merged[0], rtol=1e-11, atol=0.0)


def test_one_atom_and_no_atom() -> None:
    summed = fixed(GaussianCoulomb(1.0), subtract_self=True)
    one = torch.ones(1, 3, dtype=torch.float64)
    assert abs(float(summed(one, one[:, :1], CELL, pbc=flags(OPEN)))) < 1e-12
    none = one[:0]
    for pbc in (SLAB, OPEN):
        energy, forces = summed.energy_forces(none, none[:, :1], CELL, pbc=flags(pbc))
        assert energy.tolist() == [0.0]
        assert forces.shape == (0, 3)


# --- batches, engines, precision


def mixed() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """A molecule, a crystal, a slab, a crystal, a slab along another vector and a molecule without a cell."""
    kinds = [OPEN, CRYSTAL, SLAB, CRYSTAL, [True, False, True], OPEN]
    parts = [atoms(seed, n) for seed, n in enumerate((3, 6, 5, 6, 4, 2))]
    cells = torch.stack([CELL, 1.5 * CELL, CELL, 1.7 * CELL, 1.2 * CELL, 0.0 * CELL])
    index = torch.cat([torch.full((len(p),), g) for g, (p, _) in enumerate(parts)])
    return torch.cat([p for p, _ in parts]), torch.cat([q for _, q in parts]), cells, index, flags(kinds)


@pytest.mark.parametrize("engine", ["separable", "nufft", "dense", "auto"])
@pytest.mark.parametrize("kind", ["learned", "by channel"])
def test_a_mixed_batch_is_each_alone(kind: str, engine: str) -> None:
    positions, charges, cells, index, pbc = mixed()
    summed = fixed(KERNELS[kind](), engine=engine)
    energy, forces = summed.energy_forces(positions, charges, cells, index, pbc)
    potential = summed.potential(positions, charges, cells, index, pbc)
    for g in range(len(cells)):
        one = index == g
        alone = positions[one], charges[one], cells[g]
        e, f = summed.energy_forces(*alone, pbc=pbc[g])
        assert energy[g].item() == pytest.approx(e.item(), rel=EXACT)
        torch.testing.assert_close(forces[one], f, rtol=1e-10, atol=1e-11)
        torch.testing.assert_close(potential[one], summed.potential(*alone, pbc=pbc[g]), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("kind", KERNELS)
def test_engines_agree_on_a_slab(kind: str) -> None:
    positions, charges = atoms()
    results = {}
    for engine, tolerance in (("dense", 0.5), ("separable", 0.5), ("nufft", 1e-8)):
        summed = fixed(KERNELS[kind](), engine=engine, tolerance=tolerance)
        results[engine] = summed.energy_forces(positions, charges, CELL, pbc=flags(SLAB))
    energy, forces = results["dense"]
    scale = float(forces.abs().max())
    for engine, tolerance in (("separable", 1e-12), ("nufft", 1e-8)):
        assert results[engine][0].item() == pytest.approx(energy.item(), abs=tolerance * (scale + abs(energy.item())))
        assert float((results[engine][1] - forces).abs().max()) < tolerance * scale


@pytest.mark.parametrize("pbc", [SLAB, OPEN], ids=["slab", "molecule"])
def test_single_precision(pbc: list[bool]) -> None:
    positions, charges = atoms()
    summed = fixed(KERNELS["by channel"]())
    energy, forces = summed.energy_forces(positions, charges, CELL, pbc=flags(pbc))
    low, rough = summed.energy_forces(positions.float(), charges.float(), CELL.float(), pbc=flags(pbc))
    assert low.dtype == torch.float64
    assert rough.dtype == torch.float32
    assert low.item() == pytest.approx(energy.item(), rel=1e-5)
    assert float((rough - forces).abs().max()) < 1e-5 * float(forces.abs().max())


@pytest.mark.parametrize("neutrality", ["background", "shift"])
@pytest.mark.parametrize("pbc", [SLAB, OPEN], ids=["slab", "molecule"])
def test_far_away_turned_and_mirrored(pbc: list[bool], neutrality: str) -> None:
    positions, charges = atoms()
    summed = fixed(KERNELS["by channel"](), neutrality=neutrality)
    energy = float(summed(positions, charges, CELL, pbc=flags(pbc)))
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64))[0]
    for change in (turn, -turn):
        moved = (positions + torch.tensor([700.0, -300.0, 500.0])) @ change, charges, CELL @ change
        assert float(summed(*moved, pbc=flags(pbc))) == pytest.approx(energy, rel=1e-10)
    if pbc == SLAB:
        # atoms in other cells of the plane, and other vectors of the same plane
        hops = torch.tensor([[0, 0], [1, 0], [-2, 3], [0, 0], [5, -1], [0, 2]], dtype=torch.float64)
        cell = torch.stack([CELL[0] + 2.0 * CELL[1], -CELL[1], CELL[2]])
        moved = positions + hops @ CELL[:2]
        assert float(summed(moved, charges, cell, pbc=flags(pbc))) == pytest.approx(energy, rel=1e-10)
