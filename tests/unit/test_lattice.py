"""Wave vectors: the sphere against a search of a much larger box, the half space, the layout, refusals."""

from __future__ import annotations

import math
from dataclasses import fields

import numpy as np
import pytest
import torch

from lrpot.errors import StructureError
from lrpot.kspace import KLattice, k_lattice, reciprocal_cell
from lrpot.kspace.lattice import MAX_KVECTORS

IDENTITY_TOLERANCE = 1e-12  # of a_i . b_j / 2 pi
MARGIN = 2  # the box of the search is that many indices wider than the sphere needs


def brute_force(cell: np.ndarray, k_cutoff: float) -> set[tuple[int, ...]]:
    """All n with 0 < |n @ B| < k_cutoff, both signs, from a box of indices."""
    reciprocal = 2 * np.pi * np.linalg.inv(cell).T
    # |n| <= |k| / (smallest singular value): a bound that knows nothing of the lattice vectors' lengths
    reach = math.ceil(k_cutoff / np.linalg.svd(reciprocal, compute_uv=False).min()) + MARGIN
    axis = np.arange(-reach, reach + 1)
    box = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    k = np.linalg.norm(box @ reciprocal, axis=1)
    return set(map(tuple, box[(k > 0) & (k < k_cutoff)].tolist()))


def lattice_of(cell: np.ndarray, k_cutoff: float) -> KLattice:
    return k_lattice(torch.from_numpy(np.ascontiguousarray(cell)), k_cutoff)


def cells(random_cell) -> dict[str, tuple[np.ndarray, float]]:
    """name: cell and k_cutoff with some hundreds to thousands of wave vectors inside."""
    found = {f"triclinic {seed}": (random_cell(seed, 150.0), 6.0) for seed in range(4)}
    found |= {f"left-handed {seed}": (random_cell(seed, 150.0, left_handed=True), 6.0) for seed in range(2)}
    found["tiny"] = (random_cell(5, 1.0) / np.linalg.norm(random_cell(5, 1.0), axis=1).max() * 3.0, 9.0)
    found["large"] = (random_cell(6, 60.0**3), 0.8)
    found["needle"] = (random_cell(7, 1.0) * np.array([[3.0], [4.0], [40.0]]), 4.0)
    # a sheared cubic cell: the same lattice, a much larger box of indices
    found["sheared"] = (np.array([[1, 0, 0], [4, 1, 0], [-3, 5, 1]]) @ (4.0 * np.eye(3)), 5.0)
    return found


CASES = [*(f"triclinic {n}" for n in range(4)), "left-handed 0", "left-handed 1", "tiny", "large", "needle", "sheared"]


@pytest.mark.parametrize("case", CASES)
def test_every_vector_of_the_sphere_is_there_once(case: str, random_cell) -> None:
    cell, k_cutoff = cells(random_cell)[case]
    half = [tuple(n) for n in lattice_of(cell, k_cutoff).indices.tolist()]
    expected = brute_force(cell, k_cutoff)
    assert len(expected) > 100
    opposite = {tuple(-i for i in n) for n in half}
    assert len(half) == len(set(half))
    assert not opposite & set(half)
    assert opposite | set(half) == expected
    assert (0, 0, 0) not in half


@pytest.mark.parametrize("case", CASES)
def test_place_finds_each_triple_once(case: str, random_cell) -> None:
    lattice = lattice_of(*cells(random_cell)[case])
    shape = len(lattice.rows), len(lattice.columns)
    # the array (2, H, M): all of row and column, then all of row and opposite column
    array = torch.empty(2, *shape, 3, dtype=torch.int64)
    array[..., 0] = lattice.rows[:, None]
    array[..., 1:] = torch.stack([lattice.columns, -lattice.columns])[:, None]
    assert torch.equal(array.reshape(-1, 3)[lattice.place], lattice.indices)
    assert len(lattice.place.unique()) == len(lattice)
    assert torch.equal(lattice.rows, torch.arange(len(lattice.rows)))
    # only one of each pair of columns is kept, which is what the layout is for
    kept = set(map(tuple, lattice.columns.tolist()))
    assert len(kept) == len(lattice.columns)
    assert not {(-a, -b) for a, b in kept if (a, b) != (0, 0)} & kept


def test_a_lattice_moves_whole(random_cell) -> None:
    lattice = lattice_of(random_cell(0, 60.0), 5.0)
    moved = lattice.to(torch.device("meta"))
    for field in fields(KLattice):
        there, here = getattr(moved, field.name), getattr(lattice, field.name)
        assert there.device.type == "meta"
        assert there.shape == here.shape
        assert there.dtype == here.dtype == torch.int64


def test_a_primitive_cell_and_its_shear_have_the_same_vectors(random_cell) -> None:
    cell = random_cell(3, 120.0)
    sheared = np.array([[1, 1, 0], [0, 1, 0], [1, 0, 1]]) @ cell
    lengths = []
    for c in (cell, sheared):
        k = lattice_of(c, 7.0).indices.double() @ reciprocal_cell(torch.from_numpy(c))
        lengths.append(torch.linalg.vector_norm(k, dim=1).sort().values)
    assert len(lengths[0]) == len(lengths[1])
    torch.testing.assert_close(lengths[0], lengths[1], rtol=IDENTITY_TOLERANCE, atol=0)


@pytest.mark.parametrize("left_handed", [False, True])
def test_reciprocal_cell_is_dual(left_handed: bool, random_cell) -> None:
    cell = torch.from_numpy(np.stack([random_cell(seed, 90.0, left_handed=left_handed) for seed in range(3)]))
    product = cell @ reciprocal_cell(cell).mT / (2 * math.pi)
    torch.testing.assert_close(product, torch.eye(3).double().expand(3, 3, 3), rtol=0, atol=IDENTITY_TOLERANCE)


def test_shells_of_a_cubic_cell() -> None:
    cell = 2.0 * math.pi * np.eye(3)  # k = n in 1/A
    assert sorted(lattice_of(cell, 1.1).indices.tolist()) == [[0, 0, 1], [0, 1, 0], [1, 0, 0]]
    assert len(lattice_of(cell, 1.5)) == 3 + 6


def test_too_many_vectors_are_refused_before_memory_is_taken() -> None:
    cell = 200.0 * np.eye(3)
    expected = 200.0**3 * 10.0**3 / (12 * math.pi**2)
    assert expected > MAX_KVECTORS
    with pytest.raises(StructureError) as error:
        lattice_of(cell, 10.0)
    message = str(error.value)
    assert "8e+06 A^3" in message
    assert f"{expected:.2g}" in message
    assert "k_cutoff = 10 1/A" in message
    assert "4e+06" in message
    assert "lower k_cutoff" in message


def test_a_cell_too_skewed_is_refused_before_memory_is_taken() -> None:
    """Its sphere holds few vectors, the grid that they are looked for in 10^9."""
    cell = np.array([[5.0, 0.0, 0.0], [15000.0, 5.0, 0.0], [0.0, 15000.0, 5.0]])
    with pytest.raises(StructureError, match=r"too skewed: lattice vectors of 5, 1.5e\+04, 1.5e\+04 A span 125 A\^3"):
        lattice_of(cell, 4.0)


def test_the_estimate_that_refuses_is_right(random_cell) -> None:
    cell = random_cell(2, 4000.0)
    expected = 4000.0 * 4.0**3 / (12 * math.pi**2)
    assert len(lattice_of(cell, 4.0)) == pytest.approx(expected, rel=0.03)


def test_an_empty_sphere_is_refused() -> None:
    with pytest.raises(StructureError, match=r"k_cutoff = 1 1/A in a cell of 27 A\^3; raise k_cutoff"):
        lattice_of(3.0 * np.eye(3), 1.0)


def test_vectors_made_in_inference_mode_serve_a_differentiated_call(random_cell) -> None:
    cell = torch.from_numpy(random_cell(8, 77.0))
    with torch.inference_mode():
        k_lattice(cell, 5.0)
    lattice = k_lattice(cell, 5.0)
    assert not any(getattr(lattice, name).is_inference() for name in ("indices", "rows", "columns", "place"))
