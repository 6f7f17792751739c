"""The linear problem of the prefit: fields and splines against slow twins, sums over frames against one big matrix."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations_with_replacement

import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline

from lrpot.charges.force_features import Layout, coulomb_fields, force_features, products, sum_groups, symmetric
from lrpot.charges.normal_equations import BLOCKS, eliminate, normal_equations
from lrpot.charges.survey import survey
from lrpot.data.neighbours import add_edges
from lrpot.structure import Structure, edge_vectors, make_structure
from tests.unit.charge_data import EWALD_CUTOFF, SALT, coulomb_energy, crystals, labelled, rock_salt

FIELD_TOLERANCE = 2e-6  # relative: both halves are cut at 1e-7 and summed over neighbours
EXACT = 1e-10  # relative
REACH = 5.0  # A
KINDS = (11, 17)

MakeCrystal = Callable[..., Structure]


def features(structure: Structure, group: np.ndarray | None = None) -> np.ndarray:
    layout = Layout(KINDS, 0.25, round(REACH / 0.25))
    structure = add_edges(structure.clone(), REACH)
    return force_features(structure, layout, np.arange(structure.num_nodes) if group is None else group)


@pytest.mark.parametrize("n", [5, 6])
@pytest.mark.parametrize("left_handed", [False, True])
def test_fields_are_slopes_of_the_energy(n: int, left_handed: bool, random_crystal: MakeCrystal) -> None:
    """Forces of charges from fields, and from the energy of another Ewald sum; charged cells included."""
    structure = random_crystal(3, n, left_handed=left_handed, unwrapped=True)
    q = torch.where(structure.numbers == 11, 0.9, -0.4).to(torch.float64)
    deep = add_edges(structure.clone(), EWALD_CUTOFF)
    deep.positions = deep.positions.requires_grad_()
    (slope,) = torch.autograd.grad(coulomb_energy(deep, q[:, None]), deep.positions)
    fields = coulomb_fields(
        add_edges(structure.clone(), REACH), np.searchsorted(KINDS, structure.numbers.numpy()), 2, REACH
    )
    forces = q.numpy()[:, None] * np.einsum("nbx,b->nx", fields, [0.9, -0.4])
    assert np.abs(forces + slope.numpy()).max() < FIELD_TOLERANCE * np.abs(slope.numpy()).max()


def test_columns_of_products_give_the_forces_of_charges(random_crystal: MakeCrystal) -> None:
    structure = random_crystal(5, 6)
    columns = features(structure)[..., -3:]
    fields = coulomb_fields(
        add_edges(structure.clone(), REACH), np.searchsorted(KINDS, structure.numbers.numpy()), 2, REACH
    )
    q = np.array([0.7, -0.5])
    mine = q[np.searchsorted(KINDS, structure.numbers.numpy())]
    expected = mine[:, None] * np.einsum("nbx,b->nx", fields, q)
    np.testing.assert_allclose(columns @ products(q), expected, rtol=EXACT, atol=EXACT)


def test_splines_are_those_of_scipy(random_crystal: MakeCrystal) -> None:
    """Pair by pair, the derivative of SciPy's B-splines."""
    structure = add_edges(random_crystal(7, 6), REACH)
    layout = Layout(KINDS, 0.25, round(REACH / 0.25))
    pairs = list(combinations_with_replacement(KINDS, 2))
    expected = np.zeros((structure.num_nodes, 3, len(pairs) * layout.n_splines))
    knots = 0.25 * np.arange(layout.n_knots + 1)
    vectors = edge_vectors(structure).numpy()
    for (j, i), vector in zip(structure.edge_index.T.tolist(), vectors, strict=True):
        r = np.linalg.norm(vector)
        pair = pairs.index(tuple(sorted((int(structure.numbers[i]), int(structure.numbers[j])))))
        for m in range(layout.n_splines):
            slope = BSpline.basis_element(knots[m : m + 5], extrapolate=False).derivative()(r)
            if i != j:
                expected[i, :, pair * layout.n_splines + m] += np.nan_to_num(slope) * vector / r
    found = features(structure)[..., :-3]
    assert np.abs(expected).max() > 1.0
    np.testing.assert_allclose(found, expected, rtol=EXACT, atol=EXACT)


def test_one_atom_feels_nothing_of_its_images() -> None:
    cell = np.array([[3.0, 0.1, 0.0], [0.4, 3.2, 0.3], [0.0, 0.2, 2.9]])
    one = make_structure([11], [[0.3, 0.1, 0.2]], cell, [True] * 3, forces=np.zeros((1, 3)))
    assert np.abs(features(one)).max() < EXACT


def test_inner_forces_of_a_group_cancel(random_crystal: MakeCrystal) -> None:
    structure = random_crystal(9, 6)
    everything = features(structure, np.zeros(6, dtype=int))
    assert np.abs(everything).max() < EXACT
    group = np.array([0, 0, 1, 1, 2, 3])
    one_by_one = features(structure)
    summed = np.zeros((4, *one_by_one.shape[1:]))
    np.add.at(summed, group, one_by_one)
    np.testing.assert_allclose(features(structure, group), summed, rtol=EXACT, atol=EXACT)


def test_features_follow_permutation_and_translation(random_crystal: MakeCrystal) -> None:
    structure = random_crystal(11, 6)
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    moved = make_structure(
        structure.numbers[order],
        structure.positions[order] + torch.tensor([0.3, 7.0, -2.0]),
        structure.cell,
        [True] * 3,
    )
    np.testing.assert_allclose(features(moved), features(structure)[order.numpy()], rtol=1e-8, atol=1e-8)


def test_sums_over_frames_are_those_of_one_matrix() -> None:
    frames = [labelled(a, {"Na": 0.8, "Cl": -0.8}, SALT) for a in crystals(rock_salt(), 3, 0.1, 0.02)]
    layout = Layout(KINDS, 0.25, round(REACH / 0.25))
    found = survey(frames, sum_molecules=False, progress=lambda done: None)
    equations = normal_equations(frames, layout, found, sum_molecules=False, progress=lambda done: None)
    matrix = np.concatenate([features(s).reshape(-1, layout.n_columns) for s in frames])
    target = np.concatenate([s.forces.numpy().reshape(-1) for s in frames])
    whole = np.column_stack([matrix, target])
    total = equations.blocks.sum(axis=0)
    np.testing.assert_allclose(total, whole.T @ whole, rtol=EXACT, atol=EXACT * np.abs(total).max())
    assert equations.n_equations == len(target)
    assert (np.diagonal(equations.blocks, axis1=1, axis2=2)[:, -1] > 0).sum() == BLOCKS

    # what is eliminated is what least squares with all columns at once would find
    reduced = eliminate(total, layout, layout.n_knots)
    columns = np.concatenate([layout.splines(layout.n_knots), layout.coulomb])
    columns = columns[np.abs(matrix[:, columns]).max(axis=0) > 0]
    solution = np.linalg.lstsq(matrix[:, columns], target, rcond=None)[0]
    np.testing.assert_allclose(reduced.products(), solution[-3:], atol=1e-4)
    error = float(((target - matrix[:, columns] @ solution) ** 2).sum())
    assert reduced.squared_error(reduced.products(), total) == pytest.approx(error, rel=1e-3)


def test_sum_groups_and_symmetric() -> None:
    values = np.arange(9.0).reshape(3, 3)
    np.testing.assert_array_equal(sum_groups(values, np.array([1, 0, 1])), [[3, 4, 5], [6, 8, 10]])
    np.testing.assert_array_equal(symmetric([1.0, 2.0, 3.0], 2), [[1, 2], [2, 3]])
    np.testing.assert_array_equal(products(np.array([2.0, -3.0])), [4, -6, 9])
