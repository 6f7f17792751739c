"""The reciprocal sum and its Coulomb complement: the definition, derivatives, fast roads, kept values, refusals.

That engine separable equals the plain sum is shown in test_separable.py.
"""

from __future__ import annotations

import copy
import math
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import Tensor

from lrpot.data.neighbours import add_edges
from lrpot.errors import ConfigError, ShapeError, StructureError
from lrpot.kspace import (
    CoulombComplement,
    FreeKernel,
    GaussianCoulomb,
    KernelByChannel,
    ReciprocalSum,
    derived,
    energy,
    k_lattice,
    plan,
    splitting,
)
from lrpot.kspace.lattice import MAX_KVECTORS
from lrpot.smooth import taper
from lrpot.structure import Structure, collate, edge_vectors
from lrpot.units import COULOMB_CONSTANT
from tests.unit.reciprocal_data import (
    K_CUTOFF,
    Inputs,
    by_channel,
    charges_of,
    first_derivatives,
    free,
    inputs_of,
    learned,
    relative,
)

DEFINITION_TOLERANCE = 1e-12  # relative
ROAD_TOLERANCE = 1e-12  # relative: the same number without autograd
# Relative: a table stands for the FCN (TABLE_ERROR = 1e-12). Stress takes the slope of the table, whose error is that
# of the value over the distance of two knots.
TABLE_TOLERANCE = {"energy": 1e-11, "forces": 1e-11, "potential": 1e-11, "stress": 1e-9}
FLOAT32_TOLERANCE = 1e-5  # relative, of charges in float32 (energies and forces)
BATCH_TOLERANCE = 1e-13  # relative
# Of a lattice of point charges 1 A apart in a neutralising background, per charge, in k_e e^2 / A; Wigner's constant.
SIMPLE_CUBIC = -2.837297479480619 / 2.0


# --- the definition


@pytest.mark.parametrize("engine", ["auto", "separable", "dense"])
@pytest.mark.parametrize("envelope", [0.7, 1.0])
@pytest.mark.parametrize("left_handed", [False, True])
def test_energy_is_the_sum_over_the_whole_sphere(
    engine: str, envelope: float, left_handed: bool, random_crystal
) -> None:
    s = random_crystal(7, 3, left_handed=left_handed)
    q = charges_of(s, 2)
    k_cutoff = 3.5
    reciprocal = ReciprocalSum(learned(k_cutoff=k_cutoff), k_cutoff, engine=engine, envelope=envelope)
    cell, positions = s.cell[0].numpy(), s.positions.numpy()
    b = 2 * np.pi * np.linalg.inv(cell).T
    expected, terms = 0.0, 0
    for n in product(range(-6, 7), repeat=3):
        k = np.array(n) @ b
        length = np.linalg.norm(k)
        if 0 < length < k_cutoff:
            terms += 1
            tensor = torch.tensor([length])
            phi = reciprocal.kernel(tensor).item()
            phi *= 1.0 if envelope == 1.0 else taper(tensor, k_cutoff, envelope).item()
            amplitudes = np.exp(-1j * positions @ k) @ q.numpy()
            expected += phi * (np.abs(amplitudes) ** 2).sum() / abs(np.linalg.det(cell))
    assert terms > 20
    found = reciprocal(s.positions, q, s.cell)
    assert found.shape == (1,)
    assert found.dtype == torch.float64
    assert found.item() == pytest.approx(expected, rel=DEFINITION_TOLERANCE)


def test_channels_add(random_crystal) -> None:
    s = random_crystal(0, 6)
    q = charges_of(s, 3)
    reciprocal = ReciprocalSum(learned(), K_CUTOFF)
    each = sum(reciprocal(s.positions, q[:, c : c + 1], s.cell) for c in range(3))
    torch.testing.assert_close(reciprocal(s.positions, q, s.cell), each, rtol=DEFINITION_TOLERANCE, atol=0)


@pytest.mark.parametrize("kernel", [learned, free, by_channel])
@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("k_cutoff", [0.8 * K_CUTOFF, K_CUTOFF, 1.4 * K_CUTOFF])
def test_a_table_stands_for_the_kernel(kernel: Callable, trained: bool, k_cutoff: float, random_crystal) -> None:
    """Also where the sum reaches beyond the cutoff that the FCN was made for: its basis goes on there."""
    x = inputs_of(random_crystal(0, 8, left_handed=True), 3)
    module = kernel().requires_grad_(trained)
    by_table = ReciprocalSum(module, k_cutoff, engine="separable")
    assert by_table._derived().kernel is not module
    found = first_derivatives(by_table, x)
    expected = first_derivatives(ReciprocalSum(module, k_cutoff, engine="dense"), x)
    for name, value in found.items():
        assert relative(value, expected[name]) < TABLE_TOLERANCE[name], name


def test_float32_charges_keep_their_digits_a_thousand_angstrom_away(random_crystal) -> None:
    """Phases are taken of the float64 positions less whole cells, not of large numbers in float32."""
    s = random_crystal(4, 8)
    q = charges_of(s)
    reciprocal = ReciprocalSum(learned(), K_CUTOFF)
    results = []
    for drift, charges in ((0.0, q), (0.0, q.float()), (1000.0, q.float())):
        positions = (s.positions + drift).requires_grad_()
        energy = reciprocal(positions, charges, s.cell)
        results.append((energy.detach(), torch.autograd.grad(energy.sum(), positions)[0]))
    for other in results[1:]:
        for one, expected in zip(other, results[0], strict=True):
            assert 0 < relative(one, expected) < FLOAT32_TOLERANCE


SMALL = 2.8  # 1/A: some ten wave vectors, for differences


@pytest.mark.parametrize("engine", ["separable", "dense"])
@pytest.mark.parametrize("trained", [True, False])
def test_first_and_second_derivatives(engine: str, trained: bool, random_crystal) -> None:
    """By positions, charges and cell against differences; of a kernel in training and of a frozen one."""
    s = random_crystal(2, 2, left_handed=True)
    kernel = learned(k_cutoff=SMALL).requires_grad_(trained)
    reciprocal = ReciprocalSum(kernel, SMALL, engine=engine, envelope=0.5)
    assert 5 <= len(k_lattice(s.cell[0], SMALL)) <= 20
    inputs = tuple(x.clone().requires_grad_() for x in (s.positions, charges_of(s), s.cell))
    assert torch.autograd.gradcheck(reciprocal, inputs)
    assert torch.autograd.gradgradcheck(reciprocal, inputs)


@pytest.mark.parametrize("engine", ["separable", "dense"])
def test_first_and_second_derivatives_by_the_weights(engine: str, random_crystal) -> None:
    """What training on forces and stress takes: mixed second derivatives of weights with all else."""
    s = random_crystal(2, 2)
    reciprocal = ReciprocalSum(learned(k_cutoff=SMALL), SMALL, engine=engine, envelope=0.5)
    names = ["kernel.fcn.last.weight", "kernel.fcn.residual.0.bias"]
    weights = [reciprocal.get_parameter(name).detach().clone().requires_grad_() for name in names]

    def energies(positions: Tensor, charges: Tensor, cell: Tensor, *weights: Tensor) -> Tensor:
        return torch.func.functional_call(
            reciprocal, dict(zip(names, weights, strict=True)), (positions, charges, cell)
        )

    inputs = [x.clone().requires_grad_() for x in (s.positions, charges_of(s), s.cell)]
    assert torch.autograd.gradcheck(energies, (*inputs, *weights))
    assert torch.autograd.gradgradcheck(energies, (*inputs, *weights))


@pytest.mark.parametrize("engine", ["separable", "dense"])
def test_batch_equals_single(engine: str, random_crystal) -> None:
    structures = [random_crystal(seed, n, left_handed=n % 2 == 0) for seed, n in enumerate((5, 1, 8, 2))]
    charges = [charges_of(s, 2, seed) for seed, s in enumerate(structures)]
    reciprocal = ReciprocalSum(learned(), K_CUTOFF, engine=engine)
    batch = collate(structures)
    together = reciprocal(batch.positions, torch.cat(charges), batch.cell, batch.batch)
    alone = torch.cat([reciprocal(s.positions, q, s.cell) for s, q in zip(structures, charges, strict=True)])
    assert together.shape == (4,)
    torch.testing.assert_close(together, alone, rtol=BATCH_TOLERANCE, atol=0)


def test_auto_trains_with_second_derivatives(random_crystal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nufft is the faster one it is taken at inference alone, for it has first derivatives only."""
    monkeypatch.setattr(plan, "FEW_ATOMS", 0)
    monkeypatch.setattr(plan, "_is_faster", lambda *_: True)
    x = inputs_of(random_crystal(0, 6))
    reciprocal = ReciprocalSum(learned(), K_CUTOFF, engine="auto", tolerance=1e-3)
    exact = ReciprocalSum(learned(), K_CUTOFF, engine="dense")
    force_losses = []
    for one in (reciprocal, exact):
        positions = x.positions.clone().requires_grad_()
        (slope,) = torch.autograd.grad(one(positions, x.charges, x.cell).sum(), positions, create_graph=True)
        force_losses.append(torch.autograd.grad((slope**2).sum(), one.kernel.fcn.last.weight)[0])
    assert relative(*force_losses) < 1e-10
    reciprocal.requires_grad_(False)
    of_mesh = reciprocal(x.positions, x.charges, x.cell)
    assert 1e-9 < relative(of_mesh, exact(x.positions, x.charges, x.cell).detach()) < 1e-2


def test_inputs_are_left_as_they_are(random_crystal) -> None:
    s = random_crystal(0, 5, unwrapped=True)
    q = charges_of(s)
    before = [x.clone() for x in (s.positions, q, s.cell)]
    ReciprocalSum(learned(), K_CUTOFF)(s.positions, q, s.cell)
    assert all(torch.equal(x, y) for x, y in zip(before, (s.positions, q, s.cell), strict=True))


# --- the road without autograd


OPTIONS = {
    "plain": {},
    "dense": {"engine": "dense"},
    "shift": {"neutrality": "shift"},
    "self": {"subtract_self": True},
    "shift and self": {"neutrality": "shift", "subtract_self": True},
}


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("kernel", [learned, by_channel])
def test_energy_forces_stress_and_potential_are_those_of_autograd(
    kernel: Callable, option: str, trained: bool, random_crystal
) -> None:
    one = random_crystal(0, 6, left_handed=True)
    for structures in (one, [one, random_crystal(1, 1), one.clone(), random_crystal(2, 9, unwrapped=True)]):
        x = inputs_of(structures, 3)
        settings = {"engine": "separable", **OPTIONS[option]}
        reciprocal = ReciprocalSum(kernel().requires_grad_(trained), K_CUTOFF, **settings)
        expected = first_derivatives(reciprocal, x)
        arguments = x.positions, x.charges, x.cell, x.batch
        energy, forces = reciprocal.energy_forces(*arguments)
        same, also, stress = reciprocal.energy_forces_stress(*arguments)
        found = {"energy": energy, "forces": forces, "stress": stress, "potential": reciprocal.potential(*arguments)}
        found |= {"energy again": same, "forces again": also}
        for name, value in found.items():
            assert value.dtype == torch.float64
            assert not value.requires_grad
            assert relative(value, expected[name.removesuffix(" again")]) < ROAD_TOLERANCE, name
        assert stress.shape == x.cell.shape
        assert relative(stress, stress.mT) < 1e-15


def test_they_are_those_of_autograd_for_slabs_and_molecules(random_crystal) -> None:
    x = inputs_of([random_crystal(seed, 3 + seed) for seed in range(4)], 2)
    pbc = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 0, 0], [1, 1, 1]]).bool()
    reciprocal = ReciprocalSum(learned().requires_grad_(False), K_CUTOFF, engine="separable")
    positions, charges = x.positions.clone().requires_grad_(), x.charges.clone().requires_grad_()
    expected = reciprocal(positions, charges, x.cell, x.batch, pbc)
    slope, potential = torch.autograd.grad(expected.sum(), [positions, charges])
    energy, forces = reciprocal.energy_forces(x.positions, x.charges, x.cell, x.batch, pbc)
    assert relative(energy, expected.detach()) < ROAD_TOLERANCE
    assert relative(forces, -slope) < ROAD_TOLERANCE
    assert relative(reciprocal.potential(x.positions, x.charges, x.cell, x.batch, pbc), potential) < ROAD_TOLERANCE


def test_forces_come_in_the_precision_of_the_positions(random_crystal) -> None:
    x = inputs_of(random_crystal(0, 6))
    reciprocal = ReciprocalSum(learned().requires_grad_(False), K_CUTOFF)
    energy, forces, stress = reciprocal.energy_forces_stress(x.positions.float(), x.charges.float(), x.cell.float())
    assert (energy.dtype, forces.dtype, stress.dtype) == (torch.float64, torch.float32, torch.float64)
    exact = reciprocal.energy_forces_stress(x.positions, x.charges, x.cell)
    for one, other in zip((energy, forces, stress), exact, strict=True):
        assert 0 < relative(one.double(), other) < FLOAT32_TOLERANCE


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_the_road_may_be_taken_in_any_mode(mode: Callable, random_crystal) -> None:
    x = inputs_of(random_crystal(0, 6))
    for option in OPTIONS.values():
        reciprocal = ReciprocalSum(learned().requires_grad_(False), K_CUTOFF, **option)
        expected = first_derivatives(reciprocal, x)
        reciprocal = copy.deepcopy(reciprocal)
        with mode():
            _, forces, stress = reciprocal.energy_forces_stress(x.positions, x.charges, x.cell)
        assert relative(forces, expected["forces"]) < ROAD_TOLERANCE
        assert relative(stress, expected["stress"]) < ROAD_TOLERANCE
        # and leaves nothing behind that would spoil a derivative
        assert relative(first_derivatives(reciprocal, x)["stress"], expected["stress"]) < ROAD_TOLERANCE


# --- two continuous derivatives where wave vectors come and go


def along_strain(reciprocal: ReciprocalSum, s: Structure, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Energies, and their slopes by the stress, of a crystal under a growing strain."""
    direction = torch.tensor([[1.0, 0.3, 0.0], [0.3, 0.8, 0.2], [0.0, 0.2, 0.9]], dtype=torch.float64)
    deformation = torch.eye(3, dtype=torch.float64) + torch.from_numpy(times)[:, None, None] * direction
    cells = s.cell[0] @ deformation
    positions = (s.positions @ deformation).reshape(-1, 3)
    charges = charges_of(s).repeat(len(times), 1)
    batch = torch.arange(len(times)).repeat_interleave(s.num_nodes)
    energy, _, stress = reciprocal.energy_forces_stress(positions, charges, cells, batch)
    # a step of the path is a strain of D^-1 direction of the crystal as it then is
    strain = torch.linalg.inv(deformation) @ direction
    slope = torch.linalg.det(cells).abs() * (stress * strain).sum(dim=(1, 2))
    return energy.numpy(), slope.numpy()


def breaks(reciprocal: ReciprocalSum, s: Structure) -> tuple[float, float]:
    """The largest jump of the energy, relative to its range, and of its second derivative, relative to its largest."""
    step = 5e-5
    times = np.arange(-120, 120) * step
    numbers = [len(k_lattice(s.cell[0] * (1 + float(t)), reciprocal.k_cutoff)) for t in times[[0, -1]]]
    assert numbers[1] - numbers[0] >= 3  # so many wave vectors come in on the way
    energy, slope = along_strain(reciprocal, s, times)
    # a step of the energy, beyond what the trapezoids of its slope make of it
    jumps = np.abs(np.diff(energy) - 0.5 * step * (slope[1:] + slope[:-1]))
    curvature = np.diff(slope) / step
    return jumps.max() / np.ptp(energy), np.abs(np.diff(curvature)).max() / np.abs(curvature).max()


ENERGY_BREAK = 1e-8
CURVATURE_BREAK = 5e-3  # in one step it changes by 1e-3 of itself where nothing crosses


def breaks_of_free(random_crystal, *, envelope: float) -> tuple[float, float]:
    # a kernel that does not fade away of itself
    return breaks(ReciprocalSum(free().requires_grad_(False), K_CUTOFF, envelope=envelope), random_crystal(33, 4))


def test_energy_and_stress_have_continuous_derivatives_where_wave_vectors_cross(random_crystal) -> None:
    of_energy, of_curvature = breaks_of_free(random_crystal, envelope=0.8)
    assert of_energy < ENERGY_BREAK
    assert of_curvature < CURVATURE_BREAK


def test_without_the_envelope_they_jump(random_crystal) -> None:
    """As published; the control of the test before."""
    of_energy, of_curvature = breaks_of_free(random_crystal, envelope=1.0)
    assert of_energy > 1e6 * ENERGY_BREAK
    assert of_curvature > 100 * CURVATURE_BREAK


def test_with_an_envelope_of_one_derivative_the_curvature_jumps(
    random_crystal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control again: the cubic that many codes take."""

    def smoothstep(k: Tensor, end: float, onset: float) -> Tensor:
        t = torch.clamp((k / end - onset) / (1.0 - onset), 0.0, 1.0)
        return 1.0 - t**2 * (3.0 - 2.0 * t)

    monkeypatch.setattr(energy, "taper", smoothstep)
    assert breaks_of_free(random_crystal, envelope=0.8)[1] > 10 * CURVATURE_BREAK


# --- charges that do not add up to zero, and a charge in its own field


def test_shift_takes_off_the_mean_of_each_channel_and_structure(random_crystal) -> None:
    structures = [random_crystal(0, 5), random_crystal(1, 1), random_crystal(2, 4)]
    x = inputs_of(structures, 2)
    assert x.batch is not None
    charges = x.charges.clone()
    for g in range(3):
        charges[x.batch == g] -= charges[x.batch == g].mean(dim=0)
    background = ReciprocalSum(learned(), K_CUTOFF)
    shifted = ReciprocalSum(learned(), K_CUTOFF, neutrality="shift")
    found, expected = first_derivatives(shifted, x), first_derivatives(background, replace(x, charges=charges))
    # an atom alone has no charge left
    assert found["energy"][1].abs().item() < 1e-20
    for name in ("energy", "forces", "stress"):
        assert relative(found[name], expected[name]) < DEFINITION_TOLERANCE, name
    # a charge that is added to all atoms alike makes no difference
    for g in range(3):
        assert float(found["potential"][x.batch == g].sum(dim=0).abs().max()) < 1e-9
    assert relative(first_derivatives(background, x)["energy"], found["energy"]) > 0.01


def test_neutrality_error_tells_structure_and_charge(random_crystal) -> None:
    x = inputs_of([random_crystal(0, 4), random_crystal(1, 6)], 2)
    strict = ReciprocalSum(learned(), K_CUTOFF, neutrality="error")
    assert x.batch is not None
    neutral = x.charges.clone()
    for g in range(2):
        neutral[x.batch == g] -= neutral[x.batch == g].mean(dim=0)
    expected = ReciprocalSum(learned(), K_CUTOFF)(x.positions, neutral, x.cell, x.batch)
    assert torch.equal(strict(x.positions, neutral, x.cell, x.batch), expected)
    assert relative(strict(x.positions, neutral.float(), x.cell, x.batch), expected) < FLOAT32_TOLERANCE
    neutral[-1, 1] += 0.0125
    message = r'structure 1: charges add up to 0\.0125 e and neutrality = "error"; mend the charges, or'
    for call in (strict, strict.energy_forces, strict.energy_forces_stress, strict.potential):
        with pytest.raises(StructureError, match=message):
            call(x.positions, neutral, x.cell, x.batch)


@pytest.mark.parametrize("kernel", [learned, by_channel])
def test_a_charge_in_its_own_field(kernel: Callable, random_crystal) -> None:
    """Its energy is (1 / 2 pi^2) int k^2 Phi dk q^2, as in an endless cell; forces and stress do not change."""
    x = inputs_of(random_crystal(0, 5), 3)
    module = kernel()
    whole = ReciprocalSum(module, K_CUTOFF)
    less = ReciprocalSum(module, K_CUTOFF, subtract_self=True)
    columns = 3 if kernel is by_channel else 1

    def phi(k: float, column: int) -> float:
        with torch.no_grad():
            return whole.phi(torch.tensor([k], dtype=torch.float64)).reshape(-1)[column].item()

    own = [
        sum(quad(lambda k, c=c: k**2 * phi(k, c), *part, epsrel=1e-10)[0] for part in ((0.0, 5.4), (5.4, 6.0)))
        / (2.0 * math.pi**2)
        for c in range(columns)
    ]
    expected = ((x.charges**2).sum(dim=0) * torch.tensor(own, dtype=torch.float64)).sum()
    a, b = first_derivatives(whole, x), first_derivatives(less, x)
    assert (a["energy"] - b["energy"]).item() == pytest.approx(expected.item(), rel=1e-8)
    assert relative(b["forces"], a["forces"]) < 1e-11
    assert relative(b["stress"], a["stress"]) < 1e-11
    difference = 2.0 * x.charges * torch.tensor(own, dtype=torch.float64)
    torch.testing.assert_close(a["potential"] - b["potential"], difference, rtol=1e-8, atol=0)


@pytest.mark.parametrize("length", [12.0, 20.0])
def test_a_lonely_charge_has_only_the_interaction_with_its_images(length: float) -> None:
    """That of a simple cubic lattice of point charges in a background; Gaussians take less room than the background."""
    sigma, charge = 0.7, 1.5
    kernel = GaussianCoulomb(sigma)
    reciprocal = ReciprocalSum(kernel, 12.0, subtract_self=True)
    cell = length * torch.eye(3, dtype=torch.float64)
    q = torch.tensor([[charge]], dtype=torch.float64)
    found = reciprocal(torch.tensor([[0.1, 0.2, 0.3]], dtype=torch.float64), q, cell).item()
    smeared = math.pi * COULOMB_CONSTANT * sigma**2 / length**3
    expected = charge**2 * (SIMPLE_CUBIC * COULOMB_CONSTANT / length + smeared)
    assert found == pytest.approx(expected, rel=1e-10)


def test_in_real_space_two_gaussians_have_their_coulomb_energy() -> None:
    reciprocal = ReciprocalSum(KernelByChannel([GaussianCoulomb(0.8), GaussianCoulomb(1.1)]), 12.0)
    r = torch.tensor([0.3, 1.0, 4.0, 25.0, 60.0], dtype=torch.float64)
    expected = [COULOMB_CONSTANT * torch.erf(r / (math.sqrt(2.0) * sigma)) / r for sigma in (0.8, 1.1)]
    torch.testing.assert_close(reciprocal.real_space(r), torch.stack(expected, dim=1), rtol=1e-10, atol=0)


# --- kernel values that are kept from call to call


def frozen() -> ReciprocalSum:
    return ReciprocalSum(learned(), K_CUTOFF).requires_grad_(False)


def uncached(reciprocal: ReciprocalSum, s: Structure, q: Tensor) -> Tensor:
    """The energy by a sum that has never been called."""
    fresh = copy.deepcopy(reciprocal)
    assert fresh._kept is None
    return fresh(s.positions, q, s.cell).detach()


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each time that weights of wave vectors are computed, from now on."""
    calls: list[int] = []
    make_plan = derived.make_plan

    def count(*arguments: object) -> object:
        calls.append(1)
        return make_plan(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(derived, "make_plan", count)
    return calls


def test_values_are_kept_for_fixed_weights_and_cells(random_crystal, monkeypatch: pytest.MonkeyPatch) -> None:
    s, other = random_crystal(0, 6), random_crystal(1, 6)
    q = charges_of(s)
    reciprocal = frozen()
    first = reciprocal(s.positions, q, s.cell)
    calls = counted(monkeypatch)
    evaluations: list[int] = []
    reciprocal.kernel.fcn.register_forward_hook(lambda *_: evaluations.append(1))
    assert torch.equal(reciprocal(s.positions, q, s.cell), first)
    reciprocal(s.positions + 0.1 * q, q, s.cell)
    reciprocal.energy_forces(s.positions, q, s.cell)
    reciprocal.potential(s.positions, q, s.cell)
    assert calls == []
    of_other = reciprocal(other.positions, q, other.cell)
    assert len(calls) == 1
    # the table serves every cell
    assert evaluations == []
    assert torch.equal(of_other, uncached(reciprocal, other, q))
    assert torch.equal(reciprocal(s.positions, q, s.cell), first)


def test_nothing_is_kept_while_weights_are_trained(random_crystal, monkeypatch: pytest.MonkeyPatch) -> None:
    s = random_crystal(0, 6)
    reciprocal = ReciprocalSum(learned(), K_CUTOFF)
    calls = counted(monkeypatch)
    for _ in range(2):
        reciprocal(s.positions, charges_of(s), s.cell)
    assert len(calls) == 2
    assert reciprocal._kept is None


def test_what_is_kept_belongs_to_one_kind_of_batch(random_crystal) -> None:
    """The same cells hold other plans for another precision, other numbers of atoms, other periodicity."""
    s = random_crystal(0, 8)
    q = charges_of(s)
    cells = s.cell.expand(2, 3, 3)
    reciprocal = frozen()
    batches = [torch.tensor([0] * n + [1] * (8 - n)) for n in (3, 5, 4)]
    everything, slab, molecule = (torch.tensor(flags).bool() for flags in ([1, 1, 1], [1, 1, 0], [0, 0, 0]))
    for _ in range(2):
        for pbc in (
            everything.expand(2, 3),
            torch.stack([everything, slab]),
            torch.stack([slab, everything]),
            torch.stack([everything, molecule]),
            torch.stack([molecule, everything]),
        ):
            for batch in batches:
                for charges in (q, q.float()):
                    arguments = s.positions, charges, cells, batch, pbc
                    found = reciprocal(*arguments)
                    assert torch.equal(found, copy.deepcopy(reciprocal)(*arguments))
                    energy, _ = reciprocal.energy_forces(*arguments)
                    torch.testing.assert_close(energy, found, rtol=1e-13, atol=0)


def step(reciprocal: ReciprocalSum) -> None:
    """One step of an optimiser, between two calls with frozen weights, as in predict, fit, predict."""
    reciprocal.requires_grad_(True)
    optimizer = torch.optim.Adam(reciprocal.parameters(), lr=0.1)
    reciprocal.kernel(torch.linspace(0.1, 5.0, 9, dtype=torch.float64)).sum().backward()
    optimizer.step()
    reciprocal.requires_grad_(False)


def load(reciprocal: ReciprocalSum) -> None:
    reciprocal.load_state_dict({name: 2 * value for name, value in reciprocal.state_dict().items()})


def load_fcn_alone(reciprocal: ReciprocalSum) -> None:
    fcn = reciprocal.kernel.fcn
    fcn.load_state_dict({name: 2 * value for name, value in fcn.state_dict().items()})


def assign(reciprocal: ReciprocalSum) -> None:
    fcn = reciprocal.kernel.fcn
    fcn.load_state_dict({name: 2 * value for name, value in fcn.state_dict().items()}, assign=True)
    reciprocal.requires_grad_(False)


def scale_in_place(reciprocal: ReciprocalSum) -> None:
    with torch.no_grad():
        reciprocal.kernel.fcn.last.weight.mul_(3.0)


def single_and_double(reciprocal: ReciprocalSum) -> None:
    reciprocal.kernel.fcn.float()
    reciprocal.kernel.fcn.double()


def wider_envelope(reciprocal: ReciprocalSum) -> None:
    reciprocal.envelope = 0.3


def larger_sphere(reciprocal: ReciprocalSum) -> None:
    reciprocal.k_cutoff = 1.1 * K_CUTOFF


def assign_twice(reciprocal: ReciprocalSum) -> None:
    """The second time memory of the first weights may be used again."""
    assign(reciprocal)
    assign(reciprocal)


def another_kernel(reciprocal: ReciprocalSum) -> None:
    """Of the same weights."""
    reciprocal.kernel = FreeKernel(reciprocal.kernel.fcn)


def another_prior(reciprocal: ReciprocalSum) -> None:
    """It has no weights."""
    reciprocal.kernel.prior = GaussianCoulomb(0.7)


def another_engine(reciprocal: ReciprocalSum) -> None:
    reciprocal.engine = "nufft"


CHANGES = [
    step,
    load,
    load_fcn_alone,
    assign,
    assign_twice,
    scale_in_place,
    single_and_double,
    wider_envelope,
    larger_sphere,
    another_kernel,
    another_prior,
    another_engine,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_no_change_of_the_kernel_goes_unseen(change, random_crystal) -> None:
    s = random_crystal(0, 6)
    q = charges_of(s)
    reciprocal = frozen()
    before = reciprocal(s.positions, q, s.cell)
    change(reciprocal)
    after = reciprocal(s.positions, q, s.cell)
    assert relative(after, before) > 1e-12
    assert torch.equal(after, uncached(reciprocal, s, q))


@pytest.mark.parametrize("mode", [True, False])
def test_switching_between_training_and_evaluation_forgets(mode: bool, random_crystal) -> None:
    s = random_crystal(0, 6)
    reciprocal = frozen()
    reciprocal(s.positions, charges_of(s), s.cell)
    assert reciprocal._kept is not None
    reciprocal.train(mode)
    assert reciprocal._kept is None


def test_kept_values_do_not_cut_the_gradient_by_the_cell(random_crystal) -> None:
    s = random_crystal(0, 6)
    q = charges_of(s)
    reciprocal = frozen()
    gradients = []
    for warm in (False, True):
        if warm:
            reciprocal(s.positions, q, s.cell)
        cell = s.cell.clone().requires_grad_()
        gradients.append(torch.autograd.grad(reciprocal(s.positions, q, cell).sum(), cell)[0])
    assert torch.equal(*gradients)


def test_kept_values_do_not_cut_the_gradient_by_the_weights(random_crystal) -> None:
    s = random_crystal(0, 6)
    q = charges_of(s)
    reciprocal = frozen()
    reciprocal(s.positions, q, s.cell)
    reciprocal.requires_grad_(True)
    # twice the same cell in one batch: the values are shared, the gradient counts both
    two = collate([s, s])
    energy = reciprocal(two.positions, torch.cat([q, q]), two.cell, two.batch).sum()
    (gradient,) = torch.autograd.grad(energy, reciprocal.kernel.fcn.last.weight)
    (once,) = torch.autograd.grad(reciprocal(s.positions, q, s.cell).sum(), reciprocal.kernel.fcn.last.weight)
    assert float(once.abs().max()) > 0
    torch.testing.assert_close(gradient, 2 * once, rtol=1e-12, atol=0)


def test_a_call_in_inference_mode_spoils_no_later_gradient(random_crystal) -> None:
    s = random_crystal(9, 6)
    q = charges_of(s)
    reciprocal = frozen()
    with torch.inference_mode():
        inferred = reciprocal(s.positions, q, s.cell).item()
    positions = s.positions.clone().requires_grad_()
    energy = reciprocal(positions, q, s.cell)
    assert energy.item() == inferred
    assert float(torch.autograd.grad(energy.sum(), positions)[0].abs().max()) > 0


def test_nor_does_one_for_a_molecule(random_crystal) -> None:
    s = random_crystal(9, 6)
    q, pbc = charges_of(s), torch.zeros(3, dtype=torch.bool)
    reciprocal = frozen()
    with torch.inference_mode():
        inferred = reciprocal(s.positions, q, s.cell, pbc=pbc).item()
    positions = s.positions.clone().requires_grad_()
    energy = reciprocal(positions, q, s.cell, pbc=pbc)
    assert energy.item() == inferred
    assert float(torch.autograd.grad(energy.sum(), positions)[0].abs().max()) > 0


def test_the_number_of_kept_cells_is_bounded(random_crystal) -> None:
    s = random_crystal(0, 3)
    q = charges_of(s)
    reciprocal = frozen()
    for n in range(derived.KEPT_PLANS + 10):
        reciprocal(s.positions, q, s.cell * (1 + 1e-5 * n))
    assert reciprocal._kept is not None
    assert len(reciprocal._kept._plans) == derived.KEPT_PLANS


@pytest.mark.parametrize("engine", ["separable", "nufft"])
def test_what_an_engine_holds_counts_as_kept(engine: str, random_crystal) -> None:
    s = random_crystal(0, 3)
    reciprocal = ReciprocalSum(learned(), K_CUTOFF, engine=engine).requires_grad_(False)
    reciprocal(s.positions, charges_of(s), s.cell)
    assert reciprocal._kept is not None
    (kept,) = reciprocal._kept._plans.values()
    (part,) = kept.parts
    pickled = len(pickle.dumps((part.weights, part.engine)))
    assert part.weights.nbytes < kept.nbytes < pickled < kept.nbytes + 10_000  # and some words about it


def test_the_memory_of_kept_cells_is_bounded(random_crystal, monkeypatch: pytest.MonkeyPatch) -> None:
    s = random_crystal(0, 3)
    q = charges_of(s)
    reciprocal = frozen()
    reciprocal(s.positions, q, s.cell)
    assert reciprocal._kept is not None
    plans = reciprocal._kept._plans
    monkeypatch.setattr(derived, "KEPT", int(3.5 * next(iter(plans.values())).nbytes))
    calls = counted(monkeypatch)
    for n in range(1, 7):
        reciprocal(s.positions, q, s.cell * (1 + 1e-5 * n))
        # the first cell is in use all the time, and never forgotten
        reciprocal(s.positions, q, s.cell)
        assert len(calls) == n
        assert len(plans) == min(n + 1, 3)
    # one that is larger than all the room is kept alone
    monkeypatch.setattr(derived, "KEPT", 1)
    reciprocal(s.positions, q, s.cell * 1.1)
    assert len(plans) == 1


def test_a_copy_has_its_own(random_crystal) -> None:
    s = random_crystal(0, 6)
    q = charges_of(s)
    reciprocal = frozen()
    before = reciprocal(s.positions, q, s.cell)
    other = copy.deepcopy(reciprocal)
    scale_in_place(other)
    assert relative(other(s.positions, q, s.cell), before) > 1e-12
    assert torch.equal(reciprocal(s.positions, q, s.cell), before)


# --- no atoms


@pytest.mark.parametrize("engine", ["auto", "nufft", "dense"])
@pytest.mark.parametrize("cells", [1, 2])
def test_no_atoms_have_no_energy_and_no_stress(engine: str, cells: int, random_crystal) -> None:
    cell = random_crystal(0, 3).cell.repeat(cells, 1, 1)
    nothing = torch.zeros(0, 3, dtype=torch.float64), torch.zeros(0, 1, dtype=torch.float64)
    batch = torch.zeros(0, dtype=torch.int64)
    reciprocal = ReciprocalSum(learned(), K_CUTOFF, engine=engine).requires_grad_(False)
    energy, forces, stress = reciprocal.energy_forces_stress(*nothing, cell, batch)
    assert energy.tolist() == [0.0] * cells
    assert forces.shape == (0, 3)
    assert torch.equal(stress, torch.zeros(cells, 3, 3, dtype=torch.float64))


# --- refusals


CALLS = ["forward", "energy_forces", "energy_forces_stress", "potential"]


def test_shapes_that_disagree_are_refused(random_crystal) -> None:
    s = random_crystal(0, 4)
    q = charges_of(s)
    two = s.cell.expand(2, 3, 3)
    reciprocal = ReciprocalSum(learned(), K_CUTOFF)
    for arguments, message in [
        ((s.positions[:, :2], q, s.cell), r"\(4, 2\); expected \(N, 3\)"),
        ((s.positions, q[:3], s.cell), r"\(3, 1\); expected \(4, channels\)"),
        ((s.positions, q[:, 0], s.cell), r"\(4,\); expected \(4, channels\)"),
        ((s.positions, q, two), "2 cells but no batch index"),
        ((s.positions, q, two, torch.tensor([0, 1])), r"\(2,\); expected \(4,\)"),
        ((s.positions, q, two, torch.tensor([0, 1, 0, 1])), "not ascending"),
        (
            (s.positions, q, two, torch.tensor([0, 0, 1, 2])),
            "from 0 to 2, but there are 2 cells; count structures from 0",
        ),
        ((s.positions, q, two, torch.tensor([-1, 0, 0, 1])), "from -1 to 1, but there are 2 cells"),
    ]:
        for call in CALLS:
            with pytest.raises(ShapeError, match=message):
                getattr(reciprocal, call)(*arguments)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"engine": "fft"}, "'fft' is not known; choose one of auto, dense, separable, nufft"),
        ({"neutrality": "none"}, "neutrality = 'none'; choose one of background, shift, error"),
        ({"k_cutoff": 0.0}, "k_cutoff = 0 1/A: must be positive"),
        ({"k_cutoff": math.nan}, "must be positive"),
        ({"tolerance": 0.0}, "tolerance = 0: must lie between 0 and 1"),
        ({"tolerance": 1.0}, "between 0 and 1"),
        ({"envelope": 1.5}, "envelope = 1.5: must lie between 0 and 1"),
        ({"envelope": -0.1}, "between 0 and 1"),
    ],
)
def test_impossible_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ReciprocalSum(learned(), **{"k_cutoff": K_CUTOFF, **settings})


def broken(x: Inputs, what: str, value: float, row: int = 2) -> Inputs:
    """A number in a row of positions, charges or cell replaced."""
    changed = getattr(x, what).clone()
    changed.reshape(-1, changed.shape[-1])[row, 0] = value
    return replace(x, **{what: changed})


FLAT = [[4.0, 0.0, 1.0], [0.0, 5.0, 0.0], [4.0, 5.0, 1.0]]
NEARLY_FLAT = [[4.0, 0.0, 1.0], [0.0, 5.0, 0.0], [4.0, 5.0, 1.000001]]
BROKEN = {
    "nan position": (lambda x: broken(x, "positions", math.nan), r"the position \[nan, .*\] of atom 2 is not finite"),
    "inf position": (lambda x: broken(x, "positions", math.inf), r"the position \[inf, .*\] of atom 2 is not finite"),
    "nan charge": (lambda x: broken(x, "charges", math.nan), r"the charge \[nan\] of atom 2 is not finite"),
    "inf charge": (lambda x: broken(x, "charges", math.inf), r"the charge \[inf\] of atom 2 is not finite"),
    "huge charge": (lambda x: broken(x, "charges", 1e200), "energy is not finite; the charges .* are too large"),
    "nan cell": (lambda x: broken(x, "cell", math.nan), r"structure 0: the cell .*\[nan, .* is not finite"),
    "inf cell": (lambda x: broken(x, "cell", math.inf), r"structure 0: the cell .*\[inf, .* is not finite"),
    "flat cell": (
        lambda x: replace(x, cell=torch.tensor([FLAT], dtype=torch.float64)),
        r"structure 0: the lattice vectors \[\[4.0, 0.0, 1.0\], .*\] lie in a plane and enclose no volume; mend",
    ),
    "nearly flat cell": (
        lambda x: replace(x, cell=torch.tensor([NEARLY_FLAT], dtype=torch.float64)),
        r"structure 0: the lattice vectors .*\[4.0, 5.0, 1.000001\]\] lie in a plane and enclose no volume; mend",
    ),
    "no cell": (
        lambda x: replace(x, cell=torch.zeros_like(x.cell)),
        r"structure 0: .*\[0.0, 0.0, 0.0\].* enclose no volume; mend",
    ),
}


@pytest.mark.parametrize("engine", ["auto", "separable", "dense", "nufft"])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("defect", BROKEN)
def test_numbers_that_cannot_be_computed_with_are_refused(defect: str, call: str, engine: str, random_crystal) -> None:
    change, message = BROKEN[defect]
    good = inputs_of(random_crystal(0, 4))
    x = change(good)
    reciprocal = ReciprocalSum(GaussianCoulomb(0.6), 4.0, engine=engine)
    getattr(reciprocal, call)(good.positions, good.charges, good.cell)
    with pytest.raises(StructureError, match=message) as error:
        getattr(reciprocal, call)(x.positions, x.charges, x.cell)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("pbc", [[True, True, False], [False] * 3], ids=str)
@pytest.mark.parametrize("defect", ["nan position", "inf position", "nan charge", "inf charge"])
def test_they_are_refused_in_slabs_and_molecules(defect: str, pbc: list[bool], random_crystal) -> None:
    change, message = BROKEN[defect]
    x = change(inputs_of(random_crystal(0, 4)))
    reciprocal = ReciprocalSum(GaussianCoulomb(0.6), 4.0)
    for call in (reciprocal, reciprocal.energy_forces, reciprocal.potential):
        with pytest.raises(StructureError, match=message):
            call(x.positions, x.charges, x.cell, None, torch.tensor(pbc))


def test_the_second_of_a_batch_is_named(random_crystal) -> None:
    x = inputs_of([random_crystal(0, 4), random_crystal(1, 3), random_crystal(2, 2)])
    reciprocal = ReciprocalSum(learned(), K_CUTOFF)
    cell = x.cell.clone()
    cell[1, 2] = cell[1, 0] - 2.0 * cell[1, 1]
    with pytest.raises(StructureError, match=r"structure 1: the lattice vectors .* enclose no volume"):
        reciprocal(x.positions, x.charges, cell, x.batch)
    charges = x.charges.clone()
    charges[5] = math.nan
    with pytest.raises(StructureError, match=r"of atom 5 is not finite"):
        reciprocal(x.positions, charges, x.cell, x.batch)


@pytest.mark.parametrize("engine", ["auto", "separable", "dense", "nufft"])
def test_a_cell_without_wave_vectors_is_refused(engine: str, random_crystal) -> None:
    s = random_crystal(2, 1)
    reciprocal = ReciprocalSum(GaussianCoulomb(0.6), 0.5, engine=engine, tolerance=0.1)
    message = r"no wave vector lies below k_cutoff = 0.5 1/A in a cell of 22 A\^3; raise k_cutoff"
    for call in CALLS:
        with pytest.raises(StructureError, match=message):
            getattr(reciprocal, call)(s.positions, charges_of(s), s.cell)
    with pytest.raises(StructureError, match=message):
        reciprocal.check(s.cell[0], s.pbc[0])


@pytest.mark.parametrize("engine", ["separable", "dense"])
def test_a_cell_with_too_many_wave_vectors_is_refused_before_memory_is_taken(engine: str) -> None:
    cell = 200.0 * torch.eye(3, dtype=torch.float64)
    positions, charges = torch.zeros(1, 3, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    reciprocal = ReciprocalSum(GaussianCoulomb(0.2), 10.0, engine=engine)
    number = 200.0**3 * 10.0**3 / (12 * math.pi**2)
    assert number > MAX_KVECTORS
    message = f"a cell of 8e+06 A^3 has about {number:.2g} wave vectors below k_cutoff = 10 1/A, more than 4e+06;"
    message = re.escape(message)
    for call in CALLS:
        with pytest.raises(StructureError, match=message):
            getattr(reciprocal, call)(positions, charges, cell)
    with pytest.raises(StructureError, match=message):
        reciprocal.check(cell, torch.tensor([True] * 3))
    # neither a slab nor a molecule is stopped by the vacuum in its cell
    reciprocal.check(cell, torch.tensor([False] * 3))


def test_a_chain_is_refused(random_crystal) -> None:
    s = random_crystal(0, 4)
    reciprocal = ReciprocalSum(learned(), K_CUTOFF)
    for axis in range(3):
        pbc = torch.arange(3) == axis
        message = rf"pbc = \[{', '.join(map(str, pbc.tolist()))}\]: a chain, .* is not supported"
        for call in (reciprocal, reciprocal.energy_forces, reciprocal.potential):
            with pytest.raises(StructureError, match=message):
                call(s.positions, charges_of(s), s.cell, None, pbc)
        with pytest.raises(StructureError, match=message):
            reciprocal.check(s.cell[0], pbc)


# --- the complement


@pytest.mark.parametrize("left_handed", [False, True])
def test_complement_is_pairs_less_self_less_background(left_handed: bool, random_crystal) -> None:
    cutoff, onset = 5.0, 0.7
    s = add_edges(random_crystal(5, 5, left_handed=left_handed), cutoff)
    q = charges_of(s, 2)
    kernel = GaussianCoulomb(1.1)
    alpha = kernel.alpha
    expected = 0.0
    images = np.array(list(product(range(-6, 7), repeat=3))) @ s.cell[0].numpy()
    for i, j in product(range(5), repeat=2):
        for image in images:
            r = np.linalg.norm(s.positions[j].numpy() + image - s.positions[i].numpy())
            if 0 < r < cutoff:
                smooth = taper(torch.tensor([r]), cutoff, onset).item()
                expected += 0.5 * float(q[i] @ q[j]) * COULOMB_CONSTANT * math.erfc(alpha * r) / r * smooth
    expected -= COULOMB_CONSTANT * alpha / math.sqrt(math.pi) * float((q**2).sum())
    volume = abs(float(torch.linalg.det(s.cell[0])))
    net = float((q.sum(dim=0) ** 2).sum())
    assert net > 0.1
    expected -= COULOMB_CONSTANT * math.pi / (2 * alpha**2 * volume) * net
    index = torch.zeros_like(s.numbers)
    distances = torch.linalg.vector_norm(edge_vectors(s), dim=1)
    complement = CoulombComplement(kernel, cutoff, onset=onset)
    found = complement(q, torch.linalg.det(s.cell).abs(), index, s.edge_index, distances)
    assert found.item() == pytest.approx(expected, rel=DEFINITION_TOLERANCE)
    # a slab or a molecule has no background
    expected += COULOMB_CONSTANT * math.pi / (2 * alpha**2 * volume) * net
    found = complement(q, torch.full((1,), torch.inf, dtype=torch.float64), index, s.edge_index, distances)
    assert found.item() == pytest.approx(expected, rel=DEFINITION_TOLERANCE)


def test_pair_term_is_continuous_to_the_second_derivative_at_the_cutoff() -> None:
    complement = CoulombComplement(GaussianCoulomb(2.0), 4.0, onset=0.8)
    r = torch.tensor([4.0 - 1e-6, 4.0, 4.5], dtype=torch.float64, requires_grad=True)
    value = complement.pair(r)
    (first,) = torch.autograd.grad(value.sum(), r, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), r)
    assert COULOMB_CONSTANT * math.erfc(complement.alpha * 4.0) / 4.0 > 0.1  # without the taper there is a step
    assert value.abs().max().item() < 1e-14
    assert first.abs().max().item() < 1e-9
    assert second.abs().max().item() < 1e-3


def test_complement_of_a_batch_is_that_of_each(random_crystal) -> None:
    structures = [random_crystal(seed, n) for seed, n in enumerate((5, 1, 7))]
    charges = [charges_of(s, 1, seed) for seed, s in enumerate(structures)]
    complement = CoulombComplement(GaussianCoulomb(1.0), 4.0)

    def energy(s, q: Tensor, index: Tensor) -> Tensor:
        distances = torch.linalg.vector_norm(edge_vectors(s), dim=1)
        return complement(q, torch.linalg.det(s.cell).abs(), index, s.edge_index, distances)

    batch = collate(structures)
    together = energy(batch, torch.cat(charges), batch.batch)
    alone = [energy(s, q, torch.zeros_like(s.numbers)) for s, q in zip(structures, charges, strict=True)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=BATCH_TOLERANCE, atol=0)


@pytest.mark.parametrize(("cutoff", "k_cutoff"), [(4.0, 8.0), (6.0, 3.0)])
def test_splitting_cuts_both_sums_at_the_same_depth(cutoff: float, k_cutoff: float) -> None:
    sigma, left_out = splitting(cutoff, k_cutoff)
    alpha = GaussianCoulomb(sigma).alpha
    assert math.exp(-((alpha * cutoff) ** 2)) == pytest.approx(left_out, rel=1e-12)
    assert math.exp(-(k_cutoff**2) / (4 * alpha**2)) == pytest.approx(left_out, rel=1e-12)
