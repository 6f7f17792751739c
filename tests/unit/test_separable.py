"""Engine separable against the plain sum: energies, all first and second derivatives, every road through the code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lrpot.errors import ConfigError
from lrpot.kspace import ReciprocalSum, k_lattice, reciprocal_cell, separable, structure_factor
from lrpot.kspace.plan import Plan
from lrpot.kspace.quadratic import Gradient, quadratic_form
from lrpot.kspace.separable import Separable, most_structures
from lrpot.kspace.system import make_system
from lrpot.structure import Structure
from tests.unit.reciprocal_data import (
    K_CUTOFF,
    Inputs,
    all_derivatives,
    by_channel,
    charges_of,
    first_derivatives,
    free,
    inputs_of,
    learned,
    relative,
    without_table,
)

TOLERANCE = 1e-12  # relative to the largest component, float64
# The plain sum, with which it is compared, takes sines of k.r = 1e4 there, which keep 12 digits; and a derivative by a
# cell at fixed positions is a sum of forces times 1000 A, which cancels.
DRIFT_TOLERANCE = 1e-10
DRIFT_CELL_TOLERANCE = 1e-8
FLOAT32_TOLERANCE = 1e-5  # relative to the largest component
BLOCK_TOLERANCE = 1e-13  # relative: the order of a sum alone


def small_cell(random_crystal) -> Structure:
    """One atom in a sheared cell with edges of about 3 A."""
    s = random_crystal(2, 1)
    s.cell = 3.0 * torch.tensor([[[1.0, 0.1, 0.0], [-0.2, 1.0, 0.1], [0.3, 0.1, 0.9]]], dtype=torch.float64)
    return s


def scaled(s: Structure, factor: float) -> Structure:
    s.cell, s.positions = factor * s.cell, factor * s.positions
    return s


def large_cell(random_crystal) -> Structure:
    """Nine atoms spread over a triclinic cell with edges of about 300 A."""
    s = random_crystal(6, 9)
    return scaled(s, 300.0 / float(torch.linalg.vector_norm(s.cell[0], dim=1).mean()))


def drifted(random_crystal) -> Structure:
    s = random_crystal(4, 8)
    s.positions = s.positions + torch.tensor([1000.0, -1000.0, 1000.0], dtype=torch.float64)
    return s


# name: crystal, channels, kernel, k_cutoff
CASES: dict[str, tuple[Callable, int, Callable, float]] = {
    "triclinic": (lambda make: make(0, 8), 1, learned, K_CUTOFF),
    "left-handed": (lambda make: make(1, 8, left_handed=True), 1, learned, K_CUTOFF),
    "one atom": (lambda make: make(2, 1), 1, learned, K_CUTOFF),
    "unwrapped": (lambda make: make(3, 8, unwrapped=True), 1, learned, K_CUTOFF),
    "drifted": (drifted, 1, learned, K_CUTOFF),
    "3 A": (small_cell, 2, learned, K_CUTOFF),
    "300 A": (large_cell, 2, learned, 0.12),
    "eight channels": (lambda make: make(0, 8), 8, learned, K_CUTOFF),
    "free": (lambda make: make(1, 7), 3, free, K_CUTOFF),
    "kernel by channel": (lambda make: make(5, 7, left_handed=True), 3, by_channel, K_CUTOFF),
}


def sums(kernel: torch.nn.Module, k_cutoff: float = K_CUTOFF) -> tuple[ReciprocalSum, ReciprocalSum]:
    """By both engines, with the kernel itself."""
    kernel = without_table(kernel)
    return ReciprocalSum(kernel, k_cutoff, engine="separable"), ReciprocalSum(kernel, k_cutoff, engine="dense")


def case_of(name: str, random_crystal) -> tuple[Inputs, ReciprocalSum, ReciprocalSum]:
    crystal, n_channels, kernel, k_cutoff = CASES[name]
    return inputs_of(crystal(random_crystal), n_channels), *sums(kernel(k_cutoff=k_cutoff), k_cutoff)


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert value.shape == expected[name].shape, name
        assert float(expected[name].abs().max()) > 1e-9, name
        assert relative(value, expected[name]) < tolerance, name


# --- against the plain sum


@pytest.mark.parametrize("case", CASES)
def test_energy_and_all_derivatives_equal_those_of_the_plain_sum(case: str, random_crystal) -> None:
    x, fast, plain = case_of(case, random_crystal)
    found, expected = all_derivatives(fast, x), all_derivatives(plain, x)
    assert abs(float(x.charges.sum())) > 0.1
    if case in ("one atom", "3 A"):
        # one atom feels no force, and moves nothing else
        for name in ("positions", "second by positions"):
            assert float(found.pop(name).abs().max()) < 1e-9 * float(expected["energy"].abs().max())
            expected.pop(name)
    if case == "drifted":
        for name in ("cell", "second by cell"):
            assert relative(found.pop(name), expected.pop(name)) < DRIFT_CELL_TOLERANCE, name
    assert_equal(found, expected, DRIFT_TOLERANCE if case == "drifted" else TOLERANCE)


@pytest.mark.parametrize("case", CASES)
def test_forces_stress_and_potential_equal_those_of_the_plain_sum(case: str, random_crystal) -> None:
    x, fast, plain = case_of(case, random_crystal)
    found, expected = first_derivatives(fast, x), first_derivatives(plain, x)
    if case in ("one atom", "3 A"):
        assert float(found.pop("forces").abs().max()) < 1e-12 * float(expected["energy"])
        expected.pop("forces")
    assert found["stress"].shape == (1, 3, 3)
    if case == "drifted":
        assert relative(found.pop("stress"), expected.pop("stress")) < DRIFT_CELL_TOLERANCE
    if case == "300 A":
        # stress is energy over 2.7e7 A^3
        found["stress"], expected["stress"] = 3e7 * found["stress"], 3e7 * expected["stress"]
    assert_equal(found, expected, DRIFT_TOLERANCE if case == "drifted" else TOLERANCE)


def test_memory_order_of_the_inputs_does_not_matter(random_crystal) -> None:
    x = inputs_of(random_crystal(0, 8), 3)
    fast, plain = sums(by_channel())
    turned = Inputs(x.positions.T.contiguous().T, x.charges.T.contiguous().T, x.cell.mT.contiguous().mT)
    assert not turned.positions.is_contiguous()
    assert_equal(all_derivatives(fast, turned), all_derivatives(plain, x), TOLERANCE)


# --- batches


def plan_of(reciprocal: ReciprocalSum, x: Inputs) -> Plan:
    return reciprocal._derived().plan(
        make_system(x.positions, x.charges, x.cell, x.batch, None, reciprocal.kernel)  # type: ignore[arg-type]
    )


def test_a_batch_of_mixed_sizes(random_crystal) -> None:
    """Ragged: structures of one shape stand apart in the batch, and each is computed with its like."""
    alike = random_crystal(0, 5)
    structures = [alike, random_crystal(1, 1), random_crystal(2, 8), alike.clone(), random_crystal(3, 2)]
    x = inputs_of(structures, 2)
    fast, plain = sums(learned())
    plan = plan_of(fast, x)
    assert sorted(part.structures.tolist() for part in plan.parts) == [[0, 3], [1], [2], [4]]
    assert_equal(all_derivatives(fast, x), all_derivatives(plain, x), TOLERANCE)
    assert_equal(first_derivatives(fast, x), first_derivatives(plain, x), TOLERANCE)


def alike(random_crystal, *, same_cell: bool) -> list[Structure]:
    """Four structures of one shape: in one cell, or in cells whose wave vectors differ but are equally many."""
    structures = []
    for n in range(4):
        s = random_crystal(0, 6)
        s.positions = random_crystal(0, 6).positions + 0.3 * charges_of(s, 3, seed=n)
        if not same_cell:
            s.cell = s.cell * torch.tensor([1.0 + 1e-3 * n, 1.0 - 2e-3 * n, 1.0], dtype=torch.float64)
        structures.append(s)
    return structures


@pytest.mark.parametrize("kernel", [learned, by_channel])
@pytest.mark.parametrize("cells", ["same", "different", "relabelled"])
def test_structures_of_one_shape_are_computed_together(kernel: Callable, cells: str, random_crystal) -> None:
    structures = alike(random_crystal, same_cell=cells == "same")
    if cells == "relabelled":
        # equally many rows and columns, but other columns: a mirror image takes (n2, n3) to (n2, -n3)
        structures[1].cell = structures[1].cell * torch.tensor([[1.0], [1.0], [-1.0]], dtype=torch.float64)
    x = inputs_of(structures, 3)
    fast, plain = sums(kernel())
    (part,) = plan_of(fast, x).parts
    assert part.atoms is None
    assert part.structures.tolist() == [0, 1, 2, 3]
    lattices = [k_lattice(s.cell[0], K_CUTOFF) for s in structures]
    assert all(lattice is lattices[0] for lattice in lattices) == (cells == "same")
    assert len(part.engine.waves) == (1 if cells == "same" else 4)  # type: ignore[attr-defined]
    if cells == "relabelled":
        assert not torch.equal(lattices[1].columns, lattices[0].columns)
    assert_equal(all_derivatives(fast, x), all_derivatives(plain, x), TOLERANCE)
    assert_equal(first_derivatives(fast, x), first_derivatives(plain, x), TOLERANCE)


def test_a_structure_without_atoms_has_no_energy(random_crystal) -> None:
    x = inputs_of([random_crystal(0, 4), random_crystal(1, 3)])
    cells = torch.cat([x.cell[:1], x.cell[:1], x.cell[1:]])
    fast, plain = sums(learned())
    assert x.batch is not None
    gap = replace(x, cell=cells, batch=2 * x.batch)
    found = first_derivatives(fast, gap)
    assert found["energy"][1].item() == 0.0
    assert not found["stress"][1].any()
    assert_equal(found, first_derivatives(plain, gap), TOLERANCE)
    energy, forces, stress = fast.energy_forces_stress(gap.positions, gap.charges, gap.cell, gap.batch)
    assert_equal(found, {"energy": energy, "forces": forces, "potential": found["potential"], "stress": stress}, 1e-12)


# --- blocks smaller than the structure


@pytest.mark.parametrize("atoms_of_a_block", [1, 3])
@pytest.mark.parametrize("kernel", [learned, by_channel])
def test_blocks_smaller_than_the_structure(
    kernel: Callable, atoms_of_a_block: int, random_crystal, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = inputs_of(random_crystal(0, 8), 3)
    fast, plain = sums(kernel())
    whole = all_derivatives(fast, x)
    lattice = k_lattice(x.cell[0], K_CUTOFF)
    size = 2 * (len(lattice.rows) + len(lattice.columns))
    monkeypatch.setattr(separable, "BLOCK", size * atoms_of_a_block + size // 2)
    engine = plan_of(fast, x).parts[0].engine
    blocks = engine._blocks(x.positions[None])  # type: ignore[attr-defined]
    assert len(blocks) == -(-8 // atoms_of_a_block)
    assert_equal(all_derivatives(fast, x), whole, BLOCK_TOLERANCE)
    assert_equal(all_derivatives(fast, x), all_derivatives(plain, x), TOLERANCE)
    found = first_derivatives(fast, x)
    energy, forces, stress = fast.energy_forces_stress(x.positions, x.charges, x.cell)
    assert_equal(found | {"energy": energy, "forces": forces, "stress": stress}, found, TOLERANCE)


def test_a_group_larger_than_a_block_is_divided(random_crystal, monkeypatch: pytest.MonkeyPatch) -> None:
    x = inputs_of(alike(random_crystal, same_cell=False), 2)
    fast, plain = sums(learned())
    lattice = k_lattice(x.cell[0], K_CUTOFF)
    assert most_structures(6, lattice) >= 4
    size = 2 * 6 * (len(lattice.rows) + len(lattice.columns))
    monkeypatch.setattr(separable, "BLOCK", 3 * size)
    assert most_structures(6, lattice) == 3
    assert [part.structures.tolist() for part in plan_of(fast, x).parts] == [[0, 1, 2], [3]]
    assert_equal(all_derivatives(fast, x), all_derivatives(plain, x), TOLERANCE)
    monkeypatch.setattr(separable, "BLOCK", 1)
    assert most_structures(6, lattice) == 1


# --- float32


@pytest.mark.parametrize("case", ["triclinic", "unwrapped", "eight channels", "kernel by channel"])
def test_float32(case: str, random_crystal) -> None:
    """Precise enough for molecular dynamics; energies are summed in float64."""
    x, fast, plain = case_of(case, random_crystal)
    expected = first_derivatives(plain, x)
    found = first_derivatives(fast, replace(x, charges=x.charges.float()))
    assert found["energy"].dtype == torch.float64
    assert found["potential"].dtype == torch.float32
    for name, value in found.items():
        assert 0 < relative(value.double(), expected[name]) < FLOAT32_TOLERANCE, name


def test_second_derivatives_in_float32(random_crystal) -> None:
    """A long range in single precision can be trained as well: the same numbers to their digits."""
    x, fast, plain = case_of("triclinic", random_crystal)
    expected = all_derivatives(plain, x)
    found = all_derivatives(fast, replace(x, charges=x.charges.float()))
    for name in ("positions", "charges", "cell", "weights"):
        assert 0 < relative(found[name].double(), expected[name]) < FLOAT32_TOLERANCE, name
    # the random functional draws other numbers for float32 charges, so by differences of the gradient here
    seed = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    hessians = []
    for engine, charges in ((fast, x.charges.float()), (plain, x.charges)):
        positions = x.positions.clone().requires_grad_()
        (slope,) = torch.autograd.grad(engine(positions, charges, x.cell).sum(), positions, create_graph=True)
        hessians.append(torch.autograd.grad((seed * slope).sum(), positions)[0])
    assert 0 < relative(*hessians) < 10 * FLOAT32_TOLERANCE


# --- the quadratic form itself


def quadratic_inputs(
    random_crystal, *, n_structures: int, same_cell: bool, n_channels: int, channels_of_weights: int, weights: bool
) -> tuple[Separable, list[Tensor]]:
    cells = [s.cell[0] for s in alike(random_crystal, same_cell=same_cell)[:n_structures]]
    lattices = [k_lattice(cell, 1.9) for cell in cells]
    assert 3 <= len(lattices[0]) <= 16
    engine = Separable(lattices, torch.device("cpu"), torch.float64)
    generator = torch.Generator().manual_seed(3)
    shape = n_structures, channels_of_weights, 2, len(lattices[0].rows), len(lattices[0].columns)
    values = [
        torch.randn(size, generator=generator, dtype=torch.float64)
        for size in ((n_structures, 3, 3), (n_structures, 3, n_channels), shape)
    ]
    needed = [True, True, weights]
    return engine, [value.requires_grad_(flag) for value, flag in zip(values, needed, strict=True)]


FORMS = {
    "one structure": {"n_structures": 1, "same_cell": True, "n_channels": 1, "channels_of_weights": 1},
    "channels": {"n_structures": 1, "same_cell": True, "n_channels": 2, "channels_of_weights": 1},
    "weights by channel": {"n_structures": 1, "same_cell": True, "n_channels": 2, "channels_of_weights": 2},
    "batch in one cell": {"n_structures": 2, "same_cell": True, "n_channels": 1, "channels_of_weights": 1},
    "batch": {"n_structures": 2, "same_cell": False, "n_channels": 2, "channels_of_weights": 2},
}


@pytest.mark.parametrize("weights", [True, False], ids=["weights", "fixed weights"])
@pytest.mark.parametrize("form", FORMS)
def test_first_and_second_derivatives_of_the_quadratic_form(form: str, weights: bool, random_crystal) -> None:
    engine, inputs = quadratic_inputs(random_crystal, weights=weights, **FORMS[form])

    def energies(*values: Tensor) -> Tensor:
        return quadratic_form(*values, engine)

    assert torch.autograd.gradcheck(energies, inputs)
    assert torch.autograd.gradgradcheck(energies, inputs)


def test_derivatives_of_the_quadratic_form_in_blocks(random_crystal, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, inputs = quadratic_inputs(random_crystal, weights=True, **FORMS["weights by channel"])
    monkeypatch.setattr(separable, "BLOCK", 4 * (engine.n_rows + engine.n_columns))
    assert len(engine._blocks(inputs[0])) == 2
    assert torch.autograd.gradcheck(lambda *values: quadratic_form(*values, engine), inputs)
    assert torch.autograd.gradgradcheck(lambda *values: quadratic_form(*values, engine), inputs)


def test_the_gradient_by_the_weights_is_computed_where_it_is_asked_for(random_crystal) -> None:
    """It is as large as the structure factor, and molecular dynamics does without."""
    asked: list[bool] = []

    class Spy(Separable):
        def evaluate(self, *arguments: Tensor, power: bool) -> tuple[Tensor, Gradient]:
            asked.append(power)
            return super().evaluate(*arguments, power=power)

    engine, inputs = quadratic_inputs(random_crystal, weights=True, **FORMS["one structure"])
    engine.__class__ = Spy
    for weights in (inputs[2], inputs[2].detach()):
        quadratic_form(inputs[0], inputs[1], weights, engine).sum().backward()
    assert asked == [True, False]


def test_a_third_derivative_is_refused(random_crystal) -> None:
    """The second is the last that is analytic: beside another energy a third must not come out as if it were zero."""
    engine, (fractional, charges, weights) = quadratic_inputs(random_crystal, weights=False, **FORMS["one structure"])
    energy = quadratic_form(fractional, charges, weights, engine).sum() + (fractional**4).sum()
    for _ in range(2):
        (slope,) = torch.autograd.grad(energy, fractional, create_graph=True)
        energy = (slope**3).sum()
    with pytest.raises(ConfigError, match="no third derivatives but with engine = dense"):
        torch.autograd.grad(energy, fractional)


@pytest.mark.parametrize("n_structures", [1, 3])
@pytest.mark.parametrize("channels_of_weights", [1, 2])
def test_any_weights_find_their_wave_vector(n_structures: int, channels_of_weights: int, random_crystal) -> None:
    """sum_k w_k |S(k)|^2 with a random weight for each wave vector: none may stand at another's place."""
    structures = alike(random_crystal, same_cell=False)[:n_structures]
    lattices = [k_lattice(s.cell[0], K_CUTOFF) for s in structures]
    charges = torch.stack([charges_of(s, 2, seed=n) for n, s in enumerate(structures)])
    fractional = torch.stack([s.positions @ torch.linalg.inv(s.cell[0]) for s in structures])
    generator = torch.Generator().manual_seed(1)
    values = [
        torch.randn(len(lattice), channels_of_weights, generator=generator, dtype=torch.float64) for lattice in lattices
    ]
    engine = Separable(lattices, torch.device("cpu"), torch.float64)
    weights = engine.weights(torch.cat(values), lattices)
    assert weights.shape == (n_structures, channels_of_weights, 2, engine.n_rows, engine.n_columns)
    energy, gradient = engine.evaluate(fractional, charges, weights, power=True)
    for g, (s, lattice, value) in enumerate(zip(structures, lattices, values, strict=True)):
        kvectors = lattice.indices.double() @ reciprocal_cell(s.cell[0])
        power = structure_factor(s.positions, charges[g], kvectors).abs() ** 2
        assert energy[g].item() == pytest.approx((value * power).sum().item(), rel=1e-11)
    # linear in the weights, quadratic in the charges
    torch.testing.assert_close((gradient.power * weights).flatten(1).sum(dim=1), energy, rtol=TOLERANCE, atol=0)
    torch.testing.assert_close((gradient.charges * charges).flatten(1).sum(dim=1), 2 * energy, rtol=1e-11, atol=0)
    assert engine.evaluate(fractional, charges, weights, power=False)[1].power is None
