"""What must not change the energy, how forces and stress follow, and smoothness along strain paths."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lrpot.data.neighbours import add_edges
from lrpot.kspace import k_lattice, reciprocal_cell, structure_factor
from lrpot.potential import Potential
from lrpot.structure import Structure, collate, edge_vectors, make_structure

ENERGY_TOLERANCE = 1e-11  # relative to the sum of the magnitudes of its parts
FORCE_TOLERANCE = 1e-10  # relative to the largest force
STRESS_TOLERANCE = 1e-10  # relative to the largest component
CUTOFF = 4.0  # A, of the potentials
VARIANTS = ["coulomb/background", "coulomb/shift", "no-complement/background", "free/shift", "none/background"]

# the same examples in every run; nothing is written to disk
quick = settings(derandomize=True, max_examples=12, deadline=None, database=None)
seeds = st.integers(0, 10_000)


@pytest.fixture(scope="module")
def models(make_potential) -> dict[str, Potential]:
    return {
        name: make_potential(name.split("/")[0], neutrality=name.split("/")[1], elements=(8, 11, 17))
        for name in VARIANTS
    }


@pytest.fixture(scope="module")
def draw(random_crystal) -> Callable[[int], Structure]:
    """A crystal by seed: 2 to 8 atoms of three elements, neutral or charged, half of them in left-handed cells."""

    def crystal(seed: int) -> Structure:
        rng = np.random.default_rng(seed)
        return random_crystal(
            seed,
            int(rng.integers(2, 9)),
            elements=[(11, 17), (8, 11, 17)][rng.integers(2)],
            left_handed=bool(rng.integers(2)),
            unwrapped=bool(rng.integers(2)),
            total_charge=float(rng.integers(-1, 2)) * 0.5,
        )

    return crystal


def rebuilt(s: Structure, *, numbers=None, positions=None, cell=None, charge: float | None = None) -> Structure:
    return add_edges(
        make_structure(
            s.numbers if numbers is None else numbers,
            s.positions if positions is None else positions,
            s.cell[0] if cell is None else cell,
            [True] * 3,
            total_charge=float(s.total_charge[0]) if charge is None else charge,
        ),
        CUTOFF,
    )


def rotation(seed: int, *, mirror: bool) -> Tensor:
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    if (np.linalg.det(q) < 0) != mirror:
        q = -q
    return torch.from_numpy(q)


def check(
    model: Potential,
    one: Structure,
    other: Structure,
    *,
    times: int = 1,
    turn: Tensor | None = None,
    atoms: Tensor | None = None,
) -> None:
    """`other` has `times` the energy of `one`; forces and stress turned by `turn`; atom i of other is atoms[i]."""
    a, b = model(one, stress=True), model(other, stress=True)
    scale = sum(float(a[name].abs()) for name in ("energy_short", "energy_long"))
    for name in ("energy", "energy_short", "energy_long"):
        assert float((times * a[name] - b[name]).abs()) < ENERGY_TOLERANCE * times * max(scale, 1.0), name
    turn = torch.eye(3, dtype=torch.float64) if turn is None else turn
    atoms = torch.arange(one.num_nodes) if atoms is None else atoms
    forces = (a["forces"] @ turn)[atoms]
    assert forces.shape == b["forces"].shape
    # a crystal of high symmetry may have no forces at all
    limit = FORCE_TOLERANCE * max(float(forces.abs().max()), 0.1)
    assert float((forces - b["forces"]).abs().max()) < limit
    stress = turn.T @ a["stress"][0] @ turn
    limit = STRESS_TOLERANCE * max(float(stress.abs().max()), 1e-2)
    assert float((stress - b["stress"][0]).abs().max()) < limit
    if "charges" in a:
        assert float((a["charges"][atoms] - b["charges"]).abs().max()) < 1e-14


@pytest.mark.parametrize("variant", VARIANTS)
@quick
@given(seed=seeds, shift=st.tuples(*3 * [st.floats(-30.0, 30.0)]))
def test_translation(variant: str, seed: int, shift: tuple[float, ...], models, draw) -> None:
    s = draw(seed)
    check(models[variant], s, rebuilt(s, positions=s.positions + torch.tensor(shift, dtype=torch.float64)))


@pytest.mark.parametrize("variant", VARIANTS)
@quick
@given(seed=seeds)
def test_wrapping_and_unwrapping(variant: str, seed: int, models, draw) -> None:
    s = draw(seed)
    fractional = s.positions @ torch.linalg.inv(s.cell[0])
    whole = torch.from_numpy(np.random.default_rng(seed).integers(-9, 10, fractional.shape).astype(float))
    check(models[variant], s, rebuilt(s, positions=(fractional - torch.floor(fractional)) @ s.cell[0]))
    check(models[variant], s, rebuilt(s, positions=s.positions + whole @ s.cell[0]))


@pytest.mark.parametrize("variant", VARIANTS)
@quick
@given(seed=seeds, mirror=st.booleans())
def test_rotation_and_reflection(variant: str, seed: int, mirror: bool, models, draw) -> None:
    s = draw(seed)
    turn = rotation(seed, mirror=mirror)
    check(models[variant], s, rebuilt(s, positions=s.positions @ turn, cell=s.cell[0] @ turn), turn=turn)


@pytest.mark.parametrize("variant", VARIANTS)
@quick
@given(seed=seeds)
def test_permutation_of_atoms(variant: str, seed: int, models, draw) -> None:
    s = draw(seed)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(s.num_nodes))
    check(models[variant], s, rebuilt(s, numbers=s.numbers[order], positions=s.positions[order]), atoms=order)


CELL_CHANGES = {
    "cyclic": [[0, 1, 0], [0, 0, 1], [1, 0, 0]],
    "cyclic back": [[0, 0, 1], [1, 0, 0], [0, 1, 0]],
    "unimodular": [[1, 1, 0], [0, 1, 0], [1, 0, 1]],
    "left-handed": [[0, 1, 0], [1, 0, 0], [0, 0, 1]],
    "opposite": [[-1, 0, 0], [0, -1, 0], [0, 0, -1]],
}


@pytest.mark.parametrize("change", CELL_CHANGES)
@pytest.mark.parametrize("variant", VARIANTS)
@quick
@given(seed=seeds)
def test_other_cells_of_the_same_crystal(variant: str, change: str, seed: int, models, draw) -> None:
    s = draw(seed)
    matrix = torch.tensor(CELL_CHANGES[change], dtype=torch.float64)
    check(models[variant], s, rebuilt(s, cell=matrix @ s.cell[0]))


@pytest.mark.parametrize("repeats", [(2, 1, 1), (1, 1, 2), (2, 2, 2)], ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
@settings(quick, max_examples=5)
@given(seed=seeds)
def test_supercells_are_extensive(variant: str, repeats: tuple[int, ...], seed: int, models, draw) -> None:
    s = draw(seed)
    times = int(np.prod(repeats))
    images = torch.tensor(list(np.ndindex(*repeats)), dtype=torch.float64) @ s.cell[0]
    larger = rebuilt(
        s,
        numbers=s.numbers.repeat(times),
        positions=(s.positions + images[:, None]).reshape(-1, 3),
        cell=torch.tensor(repeats, dtype=torch.float64)[:, None] * s.cell[0],
        charge=times * float(s.total_charge[0]),
    )
    check(models[variant], s, larger, times=times, atoms=torch.arange(s.num_nodes).repeat(times))


@quick
@given(seed=seeds)
def test_check_sees_a_broken_invariance(seed: int, models, draw) -> None:
    """The published shift takes the mean over the cell: with a charge that is not scaled the supercell differs."""
    s = draw(seed)
    double = rebuilt(
        s,
        numbers=s.numbers.repeat(2),
        positions=torch.cat([s.positions, s.positions + s.cell[0, 0]]),
        cell=torch.tensor([[2.0], [1.0], [1.0]], dtype=torch.float64) * s.cell[0],
        charge=2 * float(s.total_charge[0]) + 1e-3,
    )
    with pytest.raises(AssertionError):
        check(models["coulomb/shift"], s, double, times=2, atoms=torch.arange(s.num_nodes).repeat(2))


# --- two continuous derivatives along a path of strain

STEP = 2e-5  # strain between two points of the path
POINTS = 5  # on each side of the place that is looked at
VALUE_JUMP = 1e-12  # eV
SLOPE_JUMP = 1e-7  # of the largest first derivative
CURVATURE_JUMP = 1e-3  # of the largest second derivative; rounding over STEP^2 is 1e-4 of it
STRAIN = torch.tensor([[1.0, 0.3, 0.0], [0.3, 0.8, 0.2], [0.0, 0.2, 0.9]], dtype=torch.float64)
IDENTITY = torch.eye(3, dtype=torch.float64)


def jumps(model: Potential, s: Structure, at: float) -> tuple[np.ndarray, np.ndarray]:
    """Value, first and second derivative of the energy by strain: right minus left of a point, and their sizes.

    On each side a polynomial goes through the points of that side alone, so that only a true jump remains.
    """
    steps = (np.arange(2 * POINTS) - POINTS + 0.5) * STEP
    crystals = []
    for t in at + steps:
        deformation = IDENTITY + t * STRAIN
        crystals.append(rebuilt(s, positions=s.positions @ deformation, cell=s.cell[0] @ deformation))
    energy = model(collate(crystals), forces=False)["energy"].detach().numpy()
    derivatives = []
    for side in (slice(0, POINTS), slice(POINTS, None)):
        powers = np.vander(steps[side] / STEP, POINTS, increasing=True)
        coefficients = np.linalg.solve(powers, energy[side] - energy.mean())
        derivatives.append(coefficients[:3] * [1.0, 1.0, 2.0] / STEP ** np.arange(3))
    left, right = derivatives
    return right - left, np.maximum(np.abs(left), np.abs(right))


def crossing(vectors: Tensor, length: float, *, reciprocal: bool) -> tuple[float, int]:
    """A small strain at which one of some vectors has a length, while all others keep their side; and which one."""

    def lengths(t: float) -> Tensor:
        deformation = IDENTITY + t * STRAIN
        return torch.linalg.vector_norm(
            vectors @ (torch.linalg.inv(deformation).T if reciprocal else deformation), dim=1
        )

    window = POINTS * STEP
    for which in torch.argsort((lengths(0.0) - length).abs()).tolist():
        low, high = -0.03, 0.03
        if (lengths(low)[which] > length) == (lengths(high)[which] > length):
            continue
        for _ in range(60):
            middle = 0.5 * (low + high)
            same = (lengths(middle)[which] > length) == (lengths(low)[which] > length)
            low, high = (middle, high) if same else (low, middle)
        crossed = torch.nonzero((lengths(low - window) > length) != (lengths(high + window) > length))[:, 0].tolist()
        if crossed == [which]:
            return 0.5 * (low + high), which
    raise AssertionError("no vector crosses alone; choose another crystal")


def half_space(s: Structure, k_cutoff: float) -> Tensor:
    return k_lattice(s.cell[0], k_cutoff).indices.double() @ reciprocal_cell(s.cell[0])


@pytest.mark.parametrize("kind", ["coulomb", "no-complement", "free"])
@pytest.mark.parametrize("fraction", [1.0, 0.9], ids=["cutoff", "onset"])
def test_energy_is_smooth_where_wave_vectors_cross(kind: str, fraction: float, random_crystal, make_potential) -> None:
    model, s = make_potential(kind), random_crystal(31, 2)
    length = fraction * model.long.reciprocal.k_cutoff
    at, _ = crossing(half_space(s, 1.1 * length), length, reciprocal=True)
    jump, size = jumps(model, s, at)
    assert abs(jump[0]) < VALUE_JUMP
    assert abs(jump[1]) < SLOPE_JUMP * size[1]
    assert abs(jump[2]) < CURVATURE_JUMP * size[2]


@pytest.mark.parametrize("kind", ["no-complement", "free"])
def test_without_the_envelope_the_energy_jumps(kind: str, random_crystal, make_potential) -> None:
    """As published: by the whole term of the wave vector that comes or goes."""
    model, s = make_potential(kind, envelope=1.0), random_crystal(31, 2)
    reciprocal = model.long.reciprocal
    k = half_space(s, 1.1 * reciprocal.k_cutoff)
    at, which = crossing(k, reciprocal.k_cutoff, reciprocal=True)
    jump, _ = jumps(model, s, at)
    charges = model(s)["charges"]
    amplitude = structure_factor(s.positions, charges, k[which : which + 1])  # k.r does not change under strain
    volume = torch.linalg.det(s.cell[0] @ (IDENTITY + at * STRAIN)).abs()
    term = 2.0 / volume * reciprocal.kernel(k.new_tensor([reciprocal.k_cutoff])) * amplitude.abs() ** 2
    assert abs(jump[0]) == pytest.approx(abs(term.item()), rel=1e-3, abs=1e-12)
    if kind == "free":
        assert abs(jump[0]) > 1e-2


def half_edges(s: Structure) -> Tensor:
    """Each vector between atoms once: without its opposite, and without its copies between other images."""
    vectors = edge_vectors(add_edges(s.clone(), 1.1 * CUTOFF))
    return torch.unique(torch.where(vectors[:, :1] < 0, -vectors, vectors).round(decimals=9), dim=0)


@pytest.mark.parametrize("kind", ["coulomb", "none"])
def test_energy_is_smooth_where_neighbours_cross_the_cutoff(kind: str, random_crystal, make_potential) -> None:
    model, s = make_potential(kind), random_crystal(31, 2)
    jump, size = jumps(model, s, crossing(half_edges(s), CUTOFF, reciprocal=False)[0])
    assert abs(jump[0]) < VALUE_JUMP
    assert abs(jump[1]) < SLOPE_JUMP * size[1]
    assert abs(jump[2]) < CURVATURE_JUMP * size[2]


def test_with_schnetpacks_cosine_cutoff_the_curvature_jumps(random_crystal, make_potential) -> None:
    model, s = make_potential("none", cutoff_function="cosine"), random_crystal(31, 2)
    jump, size = jumps(model, s, crossing(half_edges(s), CUTOFF, reciprocal=False)[0])
    assert abs(jump[0]) < VALUE_JUMP
    assert abs(jump[1]) < SLOPE_JUMP * size[1]
    assert abs(jump[2]) > 50 * CURVATURE_JUMP * size[2]
