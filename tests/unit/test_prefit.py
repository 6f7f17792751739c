"""Charges before any network: recovered where the data hold them, refused where they do not; where a fit starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from torch import Tensor

from lrpot.build import build_reciprocal
from lrpot.charges.prefit import Prefit, PrefitRefused, prefit_charges
from lrpot.charges.start import starting_charges
from lrpot.config import ChargesConfig, KernelConfig, PaiNNConfig
from lrpot.data.neighbours import add_edges
from lrpot.data.readers import read_rows, to_structures
from lrpot.errors import ConfigError
from lrpot.kspace import CoulombComplement, GaussianCoulomb, ReciprocalSum, splitting
from lrpot.structure import Structure, edge_vectors, make_structure

SAMPLE_TOLERANCE = 1e-5  # e: pure Coulomb labels of pymatgen; the tapers leave out 1e-7^0.81 = 2e-6
DEFAULT_TOLERANCE = 1e-4  # e: the same with default settings, which cut less deep
SYNTHETIC_TOLERANCE = 0.02  # e: splines against another repulsion
CUTOFF = 5.0  # A, of the edges and the complement
SAMPLES = Path(__file__).parents[2] / "datasets" / "nacl"

Pairs = Mapping[tuple[str, str], tuple[float, float]]


@pytest.fixture(scope="module")
def sums() -> tuple[ReciprocalSum, CoulombComplement]:
    """Both halves of the Coulomb energy as a fit has them, with a deep cut."""
    reciprocal, complement = build_reciprocal(KernelConfig(tolerance=1e-7), PaiNNConfig(cutoff=CUTOFF))
    assert complement is not None
    return reciprocal, complement


@cache
def sample(name: str = "sample.extxyz") -> tuple[Structure, ...]:
    return tuple(to_structures(read_rows(SAMPLES / name), CUTOFF))


def labelled(atoms: Atoms, charges: Mapping[str, float], repulsion: Pairs) -> Structure:
    """Energy and forces of fixed charges, by a deeper Ewald sum with another splitting, and of A exp(-r / rho)."""
    cutoff, k_cutoff = 7.0, 7.0
    kernel = GaussianCoulomb(splitting(cutoff, k_cutoff)[0])
    s = add_edges(make_structure(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc), cutoff)
    s.positions = s.positions.requires_grad_()
    index = torch.zeros_like(s.numbers)
    q = torch.tensor([[charges[symbol]] for symbol in atoms.symbols], dtype=torch.float64)
    distances = torch.linalg.vector_norm(edge_vectors(s), dim=1)
    energy = ReciprocalSum(kernel, k_cutoff)(s.positions, q, s.cell, index).sum()
    volume = torch.linalg.det(s.cell).abs()
    energy = energy + CoulombComplement(kernel, cutoff)(q, volume, index, s.edge_index, distances).sum()
    energy = energy + 0.5 * _repulsion(atoms, repulsion, s.edge_index, distances)
    (gradient,) = torch.autograd.grad(energy, s.positions)
    return add_edges(
        make_structure(
            atoms.numbers,
            atoms.positions,
            atoms.cell.array,
            atoms.pbc,
            energy=energy.item(),
            forces=-gradient,
        ),
        CUTOFF,
    )


def _repulsion(atoms: Atoms, repulsion: Pairs, edges: Tensor, distances: Tensor) -> Tensor:
    symbols = np.array(atoms.get_chemical_symbols())
    strength, length = np.zeros(edges.shape[1]), np.ones(edges.shape[1])
    for (a, b), (a_of_pair, rho) in repulsion.items():
        first, second = symbols[edges[0]], symbols[edges[1]]
        mask = ((first == a) & (second == b)) | ((first == b) & (second == a))
        strength[mask], length[mask] = a_of_pair, rho
    return (torch.from_numpy(strength) * torch.exp(-distances / torch.from_numpy(length))).sum()


def crystals(perfect: Atoms, n: int, rattle: float, strain: float, seed: int = 0) -> list[Atoms]:
    """Rattled copies in random triclinic deformations of the cell."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(n):
        atoms = perfect.copy()
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain * rng.normal(size=(3, 3))), scale_atoms=True)
        atoms.positions += rattle * rng.normal(size=atoms.positions.shape)
        found.append(atoms)
    return found


def perovskite() -> Atoms:
    sites = [(0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0), (0.5, 0, 0.5), (0, 0.5, 0.5)]
    return Atoms("SrTiO3", scaled_positions=sites, cell=3.9 * np.eye(3), pbc=True)


SALT_REPULSION: Pairs = {("Na", "Cl"): (1200.0, 0.32), ("Cl", "Cl"): (3000.0, 0.32), ("Na", "Na"): (400.0, 0.32)}
GAN_REPULSION: Pairs = {("Ga", "N"): (1500.0, 0.25), ("N", "N"): (800.0, 0.28)}
OXIDE_REPULSION: Pairs = {("Sr", "O"): (1400.0, 0.34), ("Ti", "O"): (2500.0, 0.25), ("O", "O"): (1000.0, 0.3)}


def largest_error(fit: Prefit, true: Mapping[int, float]) -> float:
    assert fit.charges.keys() == true.keys()
    return max(abs(fit.charges[z] - q) for z, q in true.items())


# --- recovered


@pytest.mark.parametrize("n", [1, 3, None])
def test_charges_of_the_nacl_sample(n: int | None, sums) -> None:
    structures = sample()[:n]
    fit = prefit_charges(structures, *sums)
    assert largest_error(fit, {11: 1.0, 17: -1.0}) < SAMPLE_TOLERANCE
    assert fit.explained > 1 - 1e-9
    assert fit.rank_one == pytest.approx(1.0, abs=1e-5)
    assert fit.pair_cutoff == 4.5
    assert fit.n_structures == len(structures)
    np.testing.assert_allclose(fit.products, [[1, -1], [-1, 1]], atol=SAMPLE_TOLERANCE)


def test_default_settings_leave_out_little(sums) -> None:
    fit = prefit_charges(sample()[:3], *build_reciprocal(KernelConfig(), PaiNNConfig(cutoff=CUTOFF)))
    assert largest_error(fit, {11: 1.0, 17: -1.0}) < DEFAULT_TOLERANCE


def test_forces_alone_are_enough(sums) -> None:
    structures = [s.clone() for s in sample()[:2]]
    for s in structures:
        del s.energy
    assert largest_error(prefit_charges(structures, *sums), {11: 1.0, 17: -1.0}) < SAMPLE_TOLERANCE


def test_vacancies_among_perfect_cells_do_not_change_the_charges(sums) -> None:
    """No charges make all these cells neutral; the composition that is most frequent decides."""
    mixed = [*sample()[:3], *sample("sample_vacancy.extxyz")[:2]]
    assert largest_error(prefit_charges(mixed, *sums), {11: 1.0, 17: -1.0}) < SAMPLE_TOLERANCE


@pytest.mark.parametrize(
    ("perfect", "repulsion", "charge"),
    [
        (bulk("NaCl", "rocksalt", 5.64) * (2, 2, 2), SALT_REPULSION, 0.7),
        (bulk("GaN", "wurtzite", a=3.19, c=5.19) * (2, 2, 1), GAN_REPULSION, 1.2),
    ],
    ids=["rock salt", "wurtzite"],
)
def test_charges_under_a_repulsion(perfect: Atoms, repulsion: Pairs, charge: float, sums) -> None:
    positive, negative = perfect.symbols[0], next(s for s in perfect.symbols if s != perfect.symbols[0])
    atoms = crystals(perfect, 8, rattle=0.08, strain=0.03)
    structures = [labelled(a, {positive: charge, negative: -charge}, repulsion) for a in atoms]
    fit = prefit_charges(structures, *sums)
    numbers = {symbol: int(perfect.numbers[list(perfect.symbols).index(symbol)]) for symbol in (positive, negative)}
    assert largest_error(fit, {numbers[positive]: charge, numbers[negative]: -charge}) < SYNTHETIC_TOLERANCE
    assert fit.rank_one > 0.9


def test_charges_of_three_elements(sums) -> None:
    atoms = crystals(perovskite() * (2, 2, 1), 12, rattle=0.08, strain=0.03)
    structures = [labelled(a, {"Sr": 1.2, "Ti": 2.4, "O": -1.2}, OXIDE_REPULSION) for a in atoms]
    fit = prefit_charges(structures, *sums)
    assert largest_error(fit, {38: 1.2, 22: 2.4, 8: -1.2}) < SYNTHETIC_TOLERANCE
    assert abs(fit.charges[38] + fit.charges[22] + 3 * fit.charges[8]) < 1e-12
    assert fit.rank_one > 0.9


def test_negative_charges_go_to_the_electronegative_elements(sums) -> None:
    """Forces cannot tell +q from -q: labels with the signs exchanged give the same charges."""
    perfect = bulk("NaCl", "rocksalt", 5.64) * (2, 2, 2)
    atoms = crystals(perfect, 2, rattle=0.1, strain=0.0)
    structures = [labelled(a, {"Na": -0.8, "Cl": 0.8}, {}) for a in atoms]
    fit = prefit_charges(structures, *sums)
    assert largest_error(fit, {11: 0.8, 17: -0.8}) < SAMPLE_TOLERANCE


# --- reach of the splines


def test_pair_cutoff_is_widened_until_every_pair_is_inside(sums) -> None:
    # rock salt: unlike neighbours at 2.8 A, like ones at 4.0 A, displaced by 0.1 A
    fit = prefit_charges(sample()[:3], *sums, pair_cutoff=2.2)
    assert fit.pair_cutoff in (3.7, 4.2)
    assert largest_error(fit, {11: 1.0, 17: -1.0}) < SAMPLE_TOLERANCE


@pytest.mark.parametrize("asked", [4.8, 50.0])
def test_pair_cutoff_does_not_pass_the_edges(asked: float, sums) -> None:
    fit = prefit_charges(sample()[:2], *sums, pair_cutoff=asked)
    assert fit.pair_cutoff == min(asked, CUTOFF)


def test_widening_ends_at_the_edges_for_a_pair_that_is_never_met(sums) -> None:
    # one sodium for fifteen chlorine atoms: no two sodium atoms are nearer than 7 A
    perfect = bulk("NaCl", "rocksalt", 5.64) * (2, 2, 2)
    perfect.numbers[perfect.numbers == 11] = 17
    perfect.numbers[0] = 11
    atoms = crystals(perfect, 4, rattle=0.1, strain=0.02)
    structures = [labelled(a, {"Na": 1.5, "Cl": -0.1}, {}) for a in atoms]
    fit = prefit_charges(structures, *sums, pair_cutoff=3.0)
    assert fit.pair_cutoff == CUTOFF
    assert largest_error(fit, {11: 1.5, 17: -0.1}) < SYNTHETIC_TOLERANCE


# --- refused


def short_ranged(n: int = 8) -> list[Structure]:
    """Argon-like repulsion between atoms that are called sodium and chlorine; no charges at all."""
    atoms = crystals(bulk("NaCl", "rocksalt", 5.64) * (2, 2, 2), n, rattle=0.1, strain=0.02)
    return [labelled(a, {"Na": 0.0, "Cl": 0.0}, SALT_REPULSION) for a in atoms]


def test_a_short_ranged_set_is_refused(sums) -> None:
    with pytest.raises(PrefitRefused, match=r"q_a q_b are no products: squares -0\.\d+, \+0\.\d+ e\^2"):
        prefit_charges(short_ranged(), *sums)


def test_like_charges_in_a_background_are_refused(sums) -> None:
    # the products come out as +1, but no charges with these products are neutral
    atoms = crystals(bulk("NaCl", "rocksalt", 5.64) * (2, 2, 2), 3, rattle=0.1, strain=0.02)
    structures = [labelled(a, {"Na": 1.0, "Cl": 1.0}, {}) for a in atoms]
    with pytest.raises(PrefitRefused, match="explains only 0%"):
        prefit_charges(structures, *sums)


@pytest.mark.parametrize("drop", ["forces", "everything", "periodicity"])
def test_data_without_forces_or_periodicity_are_refused(drop: str, sums) -> None:
    structures = [s.clone() for s in sample()[:2]]
    for s in structures:
        if drop in ("forces", "everything"):
            del s.forces
        if drop == "everything":
            del s.energy
        if drop == "periodicity":
            s.pbc = torch.tensor([[True, True, False]])
    with pytest.raises(PrefitRefused, match="no periodic structure with forces"):
        prefit_charges(structures, *sums)


def test_one_element_is_refused(sums) -> None:
    atoms = crystals(bulk("Na", "bcc", 4.2) * (2, 2, 2), 2, rattle=0.1, strain=0.02)
    structures = [labelled(a, {"Na": 0.0}, {("Na", "Na"): (400.0, 0.4)}) for a in atoms]
    with pytest.raises(PrefitRefused, match="one element only"):
        prefit_charges(structures, *sums)


def test_a_refusal_is_one_line(sums) -> None:
    with pytest.raises(PrefitRefused) as error:
        prefit_charges(short_ranged(2), *sums)
    assert "\n" not in str(error.value)


# --- where a fit starts


def start(init: object, structures: Sequence[Structure], sums):
    return starting_charges(ChargesConfig(init=init), structures, *sums)


def test_start_from_the_prefit(sums) -> None:
    found = start("prefit", sample()[:2], sums)
    assert found.values == pytest.approx({11: 1.0, 17: -1.0}, abs=SAMPLE_TOLERANCE)
    assert found.origin.startswith("linear prefit to 2 structures (pair cutoff 4.5 A; Coulomb explains 100%")


def test_start_where_the_prefit_is_refused_tells_why(sums) -> None:
    structures = [s.clone() for s in sample()[:2]]
    for s in structures:
        del s.forces
    found = start("prefit", structures, sums)
    assert found.values == {11: 1.0, 17: -1.0}
    assert found.origin.startswith("oxidation states of ")
    assert "(the prefit was refused: no periodic structure with forces to fit charges to)" in found.origin


def test_start_from_oxidation_states(sums) -> None:
    assert start("oxidation", sample()[:1], sums).values == {11: 1.0, 17: -1.0}
    atoms = perovskite() * (2, 1, 1)
    oxide = add_edges(make_structure(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc), CUTOFF)
    found = start("oxidation", [oxide], sums)
    assert found.values == {38: 2.0, 22: 4.0, 8: -2.0}
    assert "oxidation states of" in found.origin


def test_start_from_oxidation_states_of_the_most_frequent_composition(sums) -> None:
    found = start("oxidation", [*sample()[:3], *sample("sample_vacancy.extxyz")[:2]], sums)
    assert found.values == {11: 1.0, 17: -1.0}
    iron = [("Fe2O3", {26: 3.0, 8: -2.0}), ("FeO", {26: 2.0, 8: -2.0})]
    crystals = {formula: 8.0 * np.random.default_rng(0).random((len(Atoms(formula)), 3)) for formula, _ in iron}
    for often, rare in (iron, iron[::-1]):
        structures = [
            make_structure(Atoms(f).numbers, crystals[f], 8.0 * np.eye(3), [True] * 3)
            for f in (rare[0], often[0], often[0])
        ]
        assert start("oxidation", structures, sums).values == often[1]


def test_start_without_a_complement_does_not_prefit(sums) -> None:
    found = starting_charges(ChargesConfig(init="prefit"), sample()[:1], sums[0], None)
    assert found.origin.startswith("oxidation states of ")


def test_start_where_no_oxidation_state_is_known(sums) -> None:
    alloy = add_edges(make_structure([11, 19], [[0, 0, 0], [2.6, 2.6, 2.6]], 5.2 * np.eye(3), [True] * 3), CUTOFF)
    found = start("oxidation", [alloy], sums)
    assert found.values == {11: 0.0, 19: 0.0}
    assert found.origin == "zero (no oxidation states could be guessed)"


def test_start_from_zero_and_from_a_table(sums) -> None:
    assert start("zero", sample()[:1], sums).values == {11: 0.0, 17: 0.0}
    found = start({"Na": 0.8, "Cl": -0.8, "K": 0.9}, sample()[:1], sums)
    assert found.values == {11: 0.8, 17: -0.8}
    assert found.origin == "the table in model.charges.init"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"Na": 1.0}, "no charge for Cl; add it"),
        ({"Na": 1.0, "Cl": -1.0, "Xx": 0.0}, "Xx is not an element"),
        ({"Na": 1.0, "chlorine": -1.0}, "chlorine is not an element"),
    ],
)
def test_a_table_that_does_not_fit_the_data_is_refused(table: dict[str, float], message: str, sums) -> None:
    with pytest.raises(ConfigError, match=message):
        start(table, sample()[:1], sums)
