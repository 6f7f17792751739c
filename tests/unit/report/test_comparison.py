"""Errors by structure, element, size and formula are those of a plain loop over the structures."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import ase.units
import numpy as np
import pytest
import torch

from lrpot.console import Console
from lrpot.data.readers import read_rows, to_structures
from lrpot.evaluation import Evaluation
from lrpot.model_file import load
from lrpot.report import comparison as module
from lrpot.report.comparison import Comparison, compare, errors_of
from lrpot.report.held_out import Part, from_file, held_out
from lrpot.report.parity import MAX_POINTS, WORST, parity
from lrpot.report.run import read_run
from lrpot.report.worst import MAX_ATOMS, SHOWN, _wrapped, worst
from lrpot.structure import make_structure
from tests.unit.report.run_data import HOSTILE, TEST_ROWS, VALID_ROWS, WRONG_ATOM, WRONG_BY, WRONG_ROW

EQUAL = 1e-12  # relative: the same sums in another order


@pytest.fixture(scope="module")
def parts(run: Path) -> list[Part]:
    return held_out(read_run(run), Console(quiet=True))


@pytest.fixture(scope="module")
def compared(run: Path, parts: list[Part]) -> Comparison:
    return compare(load(run / "model.pt"), parts[0])


@pytest.fixture(scope="module")
def plain(run: Path) -> list[dict[str, np.ndarray]]:
    """Of each row of the test file: prediction - label in eV/atom, eV/A, e; atomic numbers."""
    model = load(run / "model.pt")
    found = []
    for structure in to_structures(read_rows(run.parent / HOSTILE), model.cutoff):
        output = model(structure, stress=True)
        found.append(
            {
                "energy": (output["energy"] - structure.energy).numpy() / structure.num_nodes,
                "forces": (output["forces"] - structure.forces).numpy(),
                "stress": (output["stress"] - structure.stress).numpy(),
                "charges": (output["charges"][:, 0] - structure.charges).detach().numpy(),
                "numbers": structure.numbers.numpy(),
            }
        )
    return found


def random_comparison(n: int, n_atoms: int, *, elements: int = 2, formulas: int = 1) -> Comparison:
    """Structures in large cells with random errors of energies, forces and stress, and any number of formulas."""
    rng = np.random.default_rng(0)
    numbers = rng.integers(1, elements + 1, (n, n_atoms))
    structures = [
        make_structure(z, rng.uniform(0, 30, (n_atoms, 3)), 30 * np.eye(3), [True] * 3, energy=0.0) for z in numbers
    ]
    sizes = {
        "energy": 1,
        "forces": 3 * n_atoms,
        "stress": 9,
        "charges": n_atoms,
        "dipole": 3,
        "born_charges": 9 * n_atoms,
    }
    reference = {name: torch.from_numpy(rng.normal(size=n * size)) for name, size in sizes.items()}
    predicted = {
        name: values + 0.01 * torch.from_numpy(rng.normal(size=len(values))) for name, values in reference.items()
    }
    places = {
        name: torch.stack([torch.arange(n).repeat_interleave(size), torch.arange(size).repeat(n)], dim=1)
        for name, size in sizes.items()
    }
    part = Part(
        "test",
        "held back to test",
        structures,
        ["a-long-name-of-a-file.extxyz"],
        np.zeros(n, dtype=np.int64),
        np.arange(n),
    )
    evaluation = Evaluation(reference, predicted, n, n * n_atoms, places=places)
    names = np.array([f"X{number % formulas}" for number in range(n)])
    return Comparison(part, evaluation, {}, numbers.reshape(-1), np.full(n, n_atoms), names)


def test_the_parts_are_those_that_the_run_held_back(parts: list[Part], run: Path) -> None:
    assert [(part.name, len(part.structures)) for part in parts] == [("test", TEST_ROWS), ("validation", VALID_ROWS)]
    assert parts[0].files == [str(run.parent / HOSTILE)]
    assert parts[0].row.tolist() == list(range(TEST_ROWS))
    assert set(parts[0].file) == {0}


def test_rows_of_a_second_file_are_counted_from_its_beginning(run: Path, parts: list[Part]) -> None:
    """As where two files of one part are named: rows of a run count through all of them, rows of a report do not."""
    from lrpot.data.graphs import Graphs
    from lrpot.report.held_out import _of_graphs

    first, second = parts[0].structures, parts[1].structures
    assert isinstance(first, Graphs)
    assert isinstance(second, Graphs)
    both = _of_graphs("both", "of both", Graphs([*first.files, *second.files]))
    assert both.file.tolist() == [0] * TEST_ROWS + [1] * VALID_ROWS
    assert both.row.tolist() == [*range(TEST_ROWS), *range(VALID_ROWS)]


def test_errors_by_structure(compared: Comparison, plain: list[dict[str, np.ndarray]]) -> None:
    np.testing.assert_allclose(compared.energy_errors, [row["energy"][0] for row in plain], rtol=1e-6)
    np.testing.assert_allclose(compared.force_errors, np.concatenate([row["forces"] for row in plain]), atol=1e-6)
    largest = [np.linalg.norm(row["forces"], axis=1).max() for row in plain]
    np.testing.assert_allclose(compared.largest_force_errors, largest, rtol=1e-5)
    assert int(np.argmax(compared.largest_force_errors)) == WRONG_ROW


def test_errors_by_element_size_and_formula(compared: Comparison, plain: list[dict[str, np.ndarray]]) -> None:
    by_element = {group.name: group for group in compared.by_element()}
    assert list(by_element) == ["Na", "Cl"]
    for symbol, z in (("Na", 11), ("Cl", 17)):
        forces = 1e3 * np.concatenate([row["forces"][row["numbers"] == z] for row in plain])
        charges = np.concatenate([row["charges"][row["numbers"] == z] for row in plain])
        group = by_element[symbol]
        assert (group.structures, group.atoms) == (TEST_ROWS, 8 * TEST_ROWS)
        assert group.errors["forces"].mae == pytest.approx(np.abs(forces).mean(), rel=1e-5)
        assert group.errors["forces"].rmse == pytest.approx(np.sqrt((forces**2).mean()), rel=1e-5)
        assert group.errors["forces"].largest == pytest.approx(np.abs(forces).max(), rel=1e-5)
        assert group.errors["charges"].mae == pytest.approx(np.abs(charges).mean(), rel=1e-5)
    for groups, name in ((compared.by_size(), "16"), (compared.by_formula(), "ClNa")):
        (group,) = groups
        assert (group.name, group.structures, group.atoms) == (name, TEST_ROWS, 16 * TEST_ROWS)
        energy = 1e3 * np.array([row["energy"][0] for row in plain])
        stress = np.concatenate([row["stress"].reshape(-1) for row in plain]) / ase.units.GPa
        assert group.errors["energy"].mae == pytest.approx(np.abs(energy).mean(), rel=1e-5)
        assert group.errors["stress"].mae == pytest.approx(np.abs(stress).mean(), rel=1e-5)


def test_groups_tell_structures_apart() -> None:
    found = random_comparison(30, 4, elements=3, formulas=5)
    error = 1e3 * found.force_errors
    owner = np.repeat(np.arange(30), 4)
    for group in found.by_formula():
        mine = found.formulas[owner] == group.name
        assert group.errors["forces"].mae == pytest.approx(np.abs(error[mine]).mean(), rel=EQUAL)
        assert group.structures == 6
    for group in found.by_element():
        mine = found.numbers == {"H": 1, "He": 2, "Li": 3}[group.name]
        assert group.errors["forces"].mae == pytest.approx(np.abs(error[mine]).mean(), rel=EQUAL)
        assert group.structures == len(set(owner[mine]))
    assert sum(group.atoms for group in found.by_element()) == 120


def test_many_sizes_become_ranges_that_hold_every_structure() -> None:
    found = random_comparison(200, 3)
    rng = np.random.default_rng(1)
    # sizes alone matter here; the errors keep their places
    spread = Comparison(found.part, found.evaluation, {}, found.numbers, rng.integers(2, 500, 200), found.formulas)
    groups = spread.by_size()
    assert 2 < len(groups) <= module.MAX_SIZES
    assert sum(group.structures for group in groups) == 200
    ends = [tuple(map(int, group.name.split(" to "))) for group in groups]
    assert all(before[-1] < after[0] for before, after in pairwise(ends))


def test_errors_of_nothing_are_none() -> None:
    assert errors_of(np.array([]), "forces") is None


def test_rows_without_a_label_have_no_error() -> None:
    found = random_comparison(4, 2)
    places = dict(found.evaluation.places)
    kept = places["forces"][:, 0] != 1
    for values in (found.evaluation.reference, found.evaluation.predicted, found.evaluation.places):
        values["forces"] = values["forces"][kept]
    fresh = Comparison(found.part, found.evaluation, {}, found.numbers, found.atoms, found.formulas)
    assert np.isnan(fresh.largest_force_errors).tolist() == [False, True, False, False]
    view = worst(fresh)
    assert 1 not in [view["structures"][place]["row"] for place in view["forces"]]
    unlabelled = next(one for one in view["structures"] if one["row"] == 1)
    assert unlabelled["force_errors"] is None
    assert unlabelled["largest_force_error"] is None


# --- parity


def test_every_point_says_where_it_comes_from(compared: Comparison) -> None:
    points = parity(compared, "forces").data[-1]
    worst_point = int(np.argmax(np.abs(points["customdata"])))
    # the text is plotly's HTML
    file = HOSTILE.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert points["text"][worst_point].endswith(f"/{file}, row {WRONG_ROW}, atom {WRONG_ATOM} (Na), z")
    assert points["customdata"][worst_point] == pytest.approx(-1e3 * WRONG_BY, rel=0.2)
    assert len(points["x"]) == 48 * TEST_ROWS


@pytest.mark.parametrize(
    ("quantity", "ending"), [("energy", "row 0"), ("stress", "row 0, xx"), ("charges", "atom 0 (Na)")]
)
def test_points_of_other_quantities(compared: Comparison, quantity: str, ending: str) -> None:
    figure = parity(compared, quantity)
    assert figure.data[-1]["text"][0].endswith(ending)
    assert "density" not in figure.caption


def test_of_many_points_the_density_holds_all_and_the_worst_are_points() -> None:
    found = random_comparison(40, 50)
    figure = parity(found, "forces")
    density, points = figure.data[1], figure.data[-1]
    assert density["type"] == "heatmap"
    counts = sum(10**shade for row in density["z"] for shade in row if shade is not None)
    assert counts == pytest.approx(40 * 150, rel=1e-4)  # six digits of each logarithm
    error = np.sort(np.abs(found.differences("forces")))[::-1]
    assert len(error) > MAX_POINTS
    np.testing.assert_allclose(sorted(np.abs(points["customdata"]), reverse=True), 1e3 * error[:WORST], rtol=1e-5)
    assert "6,000 components" in figure.caption


@pytest.mark.parametrize(
    ("quantity", "number", "ending"),
    [
        ("dipole", 4, "row 1, y"),
        ("born_charges", 8 * 9 + 9 + 5, "row 2, atom 1 (He), yz"),
        ("charges", 9, "row 2, atom 1 (He)"),
    ],
)
def test_places_of_labels_of_the_charges(quantity: str, number: int, ending: str) -> None:
    points = parity(random_comparison(3, 4), quantity).data[-1]
    assert points["text"][number].endswith(ending)


# --- the worst structures


def test_the_worst_are_the_worst() -> None:
    found = random_comparison(50, 6)
    view = worst(found)
    for kind, values in (("forces", found.largest_force_errors), ("energy", np.abs(found.energy_errors))):
        rows = [view["structures"][place]["row"] for place in view[kind]]
        assert rows == np.argsort(-values)[:SHOWN].tolist()
    one = view["structures"][view["forces"][0]]
    assert one["largest_force_error"] == pytest.approx(1e3 * found.largest_force_errors.max(), rel=EQUAL)
    errors = 1e3 * found.force_errors[found.atoms_of(one["row"])]
    np.testing.assert_allclose(one["force_errors"], errors, rtol=1e-5)
    assert one["force_rmse"] == pytest.approx(np.sqrt((errors**2).mean()), rel=EQUAL)


def test_of_a_huge_structure_the_surroundings_of_the_worst_atom_are_drawn() -> None:
    found = random_comparison(1, MAX_ATOMS + 400)
    (one,) = worst(found)["structures"]
    assert one["atoms"] == MAX_ATOMS + 400
    assert len(one["positions"]) == len(one["numbers"]) == len(one["force_errors"]) == MAX_ATOMS
    assert int(np.argmax(np.linalg.norm(found.force_errors, axis=1))) in one["numbers"]


@pytest.mark.parametrize("pbc", [(1, 1, 1), (1, 0, 1), (0, 0, 1), (0, 0, 0)], ids=str)
def test_atoms_are_moved_by_whole_cells_into_the_cell(pbc: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    cell, repeats = np.array([[5.0, 0.3, 0.1], [1.0, 6.0, 0.2], [0.4, -1.0, 7.0]]), np.array(pbc, dtype=bool)
    positions = rng.uniform(-20, 20, (30, 3))
    moved, vectors = _wrapped(positions, cell, repeats)
    np.testing.assert_array_equal(vectors, cell[repeats])
    # what was added are whole numbers of the vectors that repeat
    steps, left = np.linalg.lstsq(vectors.T, (moved - positions).T, rcond=None)[:2] if repeats.any() else (0.0, 0.0)
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-10)
    np.testing.assert_allclose(left, 0.0, atol=1e-10)
    if repeats.all():
        inside = moved @ np.linalg.inv(cell)
        assert (inside > -1e-12).all()
        assert (inside < 1 + 1e-12).all()


def test_a_file_of_the_users_own(run: Path) -> None:
    part = from_file(run.parent / "valid.extxyz", load(run / "model.pt"), Console(quiet=True))
    assert (part.name, len(part.structures)) == ("valid.extxyz", VALID_ROWS)
    assert part.row.tolist() == list(range(VALID_ROWS))
