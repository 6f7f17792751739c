"""Charges before any network: recovered where the data hold them, refused where they do not."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk

from lrpot.charges.prefit import PAIR_CUTOFFS, Prefit, PrefitRefused, fit_charges
from lrpot.data.readers import StructureFile
from lrpot.errors import ConfigError, DataError
from lrpot.structure import Structure, make_structure
from tests.unit.charge_data import (
    GALLIUM_NITRIDE,
    OXIDE,
    SALT,
    SAMPLES,
    Pairs,
    brine,
    caesium_chloride,
    crystals,
    labelled,
    perovskite,
    rock_salt,
    to_atoms,
)

SAMPLE_TOLERANCE = 1e-5  # e: pure Coulomb labels of pymatgen
SYNTHETIC_TOLERANCE = 0.02  # e: splines against another repulsion
BRINE_TOLERANCE = 5e-3  # e: the same, softer repulsion
FILE_TOLERANCE = 1e-6  # e: labels that went through a file of eight digits
REAL_DATA = "LRPOT_REAL_DATA"  # environment: a folder of labelled sets that are not part of the project

BRINE_CHARGES = {"H": 0.4, "O": -0.8, "Na": 0.9, "Cl": -0.9}
BRINE: Pairs = {("O", "O"): (2000.0, 0.3), ("Na", "O"): (800.0, 0.3), ("Cl", "O"): (3000.0, 0.3)}


@cache
def sample(name: str = "sample.extxyz") -> tuple[Structure, ...]:
    return tuple(StructureFile(SAMPLES / name))


@cache
def brines(n: int = 16) -> tuple[Structure, ...]:
    return tuple(labelled(brine(seed), BRINE_CHARGES, BRINE) for seed in range(n))


def salt(n: int, charge: float, repulsion: Pairs = SALT, rattle: float = 0.1) -> list[Structure]:
    return [labelled(a, {"Na": charge, "Cl": -charge}, repulsion) for a in crystals(rock_salt(), n, rattle, 0.02)]


def largest_error(fit: Prefit, true: Mapping[int, float]) -> float:
    assert fit.charges.keys() == true.keys()
    return max(abs(fit.charges[z] - q) for z, q in true.items())


# --- recovered


@pytest.mark.parametrize("n", [1, 3, None])
def test_charges_of_the_nacl_sample(n: int | None) -> None:
    fit = fit_charges(sample()[:n])
    assert fit.refusal is None
    assert largest_error(fit, {11: 1.0, 17: -1.0}) < SAMPLE_TOLERANCE
    assert max(fit.uncertainties.values()) < SAMPLE_TOLERANCE
    assert fit.best.explained > 1 - 1e-9
    assert fit.best.rank_one == pytest.approx(1.0, abs=1e-5)
    assert fit.spread < SAMPLE_TOLERANCE
    assert fit.found.n_frames == len(sample()[:n])
    assert [at.pair_cutoff for at in fit.cutoffs] == list(PAIR_CUTOFFS)
    np.testing.assert_allclose(fit.best.products, [[1, -1], [-1, 1]], atol=SAMPLE_TOLERANCE)


def test_energies_are_not_needed() -> None:
    structures = [s.clone() for s in sample()[:2]]
    for s in structures:
        del s.energy
    assert largest_error(fit_charges(structures), {11: 1.0, 17: -1.0}) < SAMPLE_TOLERANCE


def test_vacancies_among_perfect_cells_do_not_change_the_charges() -> None:
    """No charges make all these cells neutral; the composition that is most frequent decides."""
    mixed = [*sample()[:3], *sample("sample_vacancy.extxyz")[:2]]
    assert largest_error(fit_charges(mixed), {11: 1.0, 17: -1.0}) < SAMPLE_TOLERANCE


def test_charged_cells_say_nothing_about_neutrality() -> None:
    """Where all cells lack an ion, only their total charge tells that they are not neutral."""
    vacancies = [s.clone() for s in sample("sample_vacancy.extxyz")]
    for s in vacancies:
        s.total_charge = torch.tensor([1.0 if int((s.numbers == 11).sum()) > 26 else -1.0], dtype=torch.float64)
    assert largest_error(fit_charges(vacancies), {11: 1.0, 17: -1.0}) < SAMPLE_TOLERANCE
    for s in vacancies:
        s.total_charge = torch.zeros(1, dtype=torch.float64)
    fit = fit_charges(vacancies)
    counts = {z: int((vacancies[0].numbers == z).sum()) for z in (11, 17)}
    assert abs(sum(counts[z] * q for z, q in fit.charges.items())) < SAMPLE_TOLERANCE
    assert largest_error(fit, {11: 1.0, 17: -1.0}) > 100 * SAMPLE_TOLERANCE


@pytest.mark.parametrize(
    ("perfect", "repulsion", "charge"),
    [
        (rock_salt(), SALT, 0.7),
        (caesium_chloride(), SALT, 0.8),
        (bulk("GaN", "wurtzite", a=3.19, c=5.19) * (2, 2, 1), GALLIUM_NITRIDE, 1.2),
    ],
    ids=["rock salt", "caesium chloride", "wurtzite"],
)
def test_charges_under_a_repulsion(perfect: Atoms, repulsion: Pairs, charge: float) -> None:
    positive, negative = perfect.symbols[0], next(s for s in perfect.symbols if s != perfect.symbols[0])
    atoms = crystals(perfect, 8, rattle=0.08, strain=0.03)
    fit = fit_charges([labelled(a, {positive: charge, negative: -charge}, repulsion) for a in atoms])
    numbers = {symbol: int(perfect.numbers[list(perfect.symbols).index(symbol)]) for symbol in (positive, negative)}
    assert fit.refusal is None
    assert largest_error(fit, {numbers[positive]: charge, numbers[negative]: -charge}) < SYNTHETIC_TOLERANCE
    assert fit.best.rank_one > 0.9


def test_charges_of_three_elements() -> None:
    atoms = crystals(perovskite() * (2, 2, 1), 12, rattle=0.08, strain=0.03)
    fit = fit_charges([labelled(a, {"Sr": 1.2, "Ti": 2.4, "O": -1.2}, OXIDE) for a in atoms])
    assert fit.refusal is None
    assert largest_error(fit, {38: 1.2, 22: 2.4, 8: -1.2}) < SYNTHETIC_TOLERANCE
    assert abs(fit.charges[38] + fit.charges[22] + 3 * fit.charges[8]) < 1e-12


def test_negative_charges_go_to_the_electronegative_elements() -> None:
    """Forces cannot tell +q from -q: labels with the signs exchanged give the same charges."""
    assert largest_error(fit_charges(salt(2, -0.8, {})), {11: 0.8, 17: -0.8}) < SAMPLE_TOLERANCE


def test_what_happens_inside_molecules_does_not_matter() -> None:
    """Four elements, one ion of each kind in a cell, and forces of 20 eV/A that cancel within each molecule."""
    rng = np.random.default_rng(0)
    drowned = []
    for structure in brines():
        s = structure.clone()
        inner = 20.0 * rng.normal(size=(6, 3, 3))
        s.forces[:18] += torch.from_numpy((inner - inner.mean(axis=1, keepdims=True)).reshape(18, 3))
        drowned.append(s)
    true = {1: 0.4, 8: -0.8, 11: 0.9, 17: -0.9}
    summed, atom_by_atom = fit_charges(drowned), fit_charges(drowned, sum_molecules=False)
    assert summed.refusal is None
    assert largest_error(summed, true) < BRINE_TOLERANCE
    assert summed.molecules.keys() == {"H2O"}
    assert abs(summed.molecules["H2O"]) < BRINE_TOLERANCE
    assert atom_by_atom.refusal is not None
    assert atom_by_atom.molecules == {}


def test_order_of_atoms_and_elements_does_not_matter() -> None:
    rng = np.random.default_rng(1)
    shuffled = []
    for s in brines():
        order = torch.from_numpy(rng.permutation(s.num_nodes))
        shuffled.append(
            make_structure(s.numbers[order], s.positions[order], s.cell, [True] * 3, forces=s.forces[order])
        )
    first, second = fit_charges(brines()), fit_charges(shuffled)
    np.testing.assert_allclose(second.best.charges, first.best.charges, atol=1e-7)


def test_forces_of_clashing_atoms_are_left_out() -> None:
    frames = salt(10, 0.7)
    clean = fit_charges(frames)
    clash = crystals(rock_salt(), 3, rattle=0.5, strain=0.0, seed=7)
    wild = [labelled(a, {"Na": 0.7, "Cl": -0.7}, SALT) for a in clash]
    for s in wild:
        s.forces = s.forces.flip(0) * 10.0
    fit = fit_charges([*frames, *wild])
    assert (fit.found.n_too_large, clean.found.n_too_large) == (3, 0)
    assert max(float((s.forces**2).mean().sqrt()) for s in frames) < fit.found.largest_size
    assert largest_error(fit, {11: 0.7, 17: -0.7}) < SYNTHETIC_TOLERANCE


def test_relaxed_frames_do_not_make_others_look_large() -> None:
    relaxed = [s.clone() for s in sample()] * 3
    for s in relaxed:
        s.forces = 1e-6 * s.forces
    fit = fit_charges([*sample(), *relaxed[: len(sample()) - 1]])
    assert fit.found.n_too_large == 0


@pytest.mark.parametrize("n", [14, 120])
@pytest.mark.parametrize("noise", [0.0, 3e-4])  # eV/A
def test_frames_without_forces_may_be_the_most(noise: float, n: int) -> None:
    """Perfect crystals under strain, whose forces vanish by symmetry, beside some that are rattled."""
    rattled, perfect = salt(12, 0.7), salt(14, 0.7, rattle=0.0)
    for s in perfect:
        s.forces = noise * torch.randn(s.forces.shape, dtype=torch.float64)
    fit = fit_charges([*rattled, *(perfect[i % len(perfect)] for i in range(n))])
    assert fit.found.n_too_large == 0
    assert fit.refusal is None
    assert largest_error(fit, {11: 0.7, 17: -0.7}) < SYNTHETIC_TOLERANCE


def test_a_refusal_tells_how_many_frames_were_left_out() -> None:
    frames = [labelled(a, {"Na": 0.0, "Cl": 0.0}, SALT) for a in crystals(rock_salt(), 8, 0.1, 0.02)]
    for s in frames[:2]:
        s.forces = 100.0 * s.forces
    refusal = fit_charges(frames).refusal
    assert refusal is not None
    assert "; 2 of 8 frames were left out, for root mean square forces above " in refusal


# --- pair cutoffs


def test_a_pair_cutoff_of_ones_own_is_compared_with_its_neighbours() -> None:
    fit = fit_charges(salt(8, 0.7), pair_cutoff=4.6)
    assert fit.best.pair_cutoff == pytest.approx(4.6)
    assert [at.pair_cutoff < 4.6 for at in fit.cutoffs] == [True, False, False]
    assert fit.spread == pytest.approx(
        max(abs(at.charges - fit.best.charges).max() for at in fit.cutoffs) / 0.7, rel=0.1
    )
    assert largest_error(fit, {11: 0.7, 17: -0.7}) < SYNTHETIC_TOLERANCE


def test_splines_that_are_too_long_lose() -> None:
    """The longest pair cutoff at which charges explain clearly more than longer splines."""
    fit = fit_charges(salt(8, 0.7))
    winners = [at for at in fit.cutoffs if at.wins >= 0.75 and at.explained >= max(1.1 * at.longer, 0.05)]
    assert fit.best is winners[-1]


@pytest.mark.parametrize("cutoff", [1.9, 10.1, float("nan"), -3.0])
def test_pair_cutoff_out_of_range(cutoff: float) -> None:
    with pytest.raises(ConfigError, match=r"^pair cutoff = .* A: choose 2 to 10 A$"):
        fit_charges(sample(), pair_cutoff=cutoff)


# --- files


def test_frames_of_a_file_are_those_of_a_list(tmp_path: Path) -> None:
    frames = salt(6, 0.7)
    ase.io.write(tmp_path / "salt.extxyz", [to_atoms(s) for s in frames], write_results=True)
    file = StructureFile(tmp_path / "salt.extxyz")
    streamed, listed = fit_charges(file), fit_charges(list(file))
    np.testing.assert_array_equal(streamed.best.charges, listed.best.charges)
    assert largest_error(streamed, fit_charges(frames).charges) < FILE_TOLERANCE


def test_frames_that_can_be_read_only_once_are_refused() -> None:
    with pytest.raises(DataError, match="only once, but are needed twice"):
        fit_charges(s for s in sample())


# --- refused


@pytest.mark.parametrize("rho", [0.32, 0.6, 1.0])
@pytest.mark.parametrize("noise", [0.0, 0.01])
@pytest.mark.parametrize("perfect", [caesium_chloride(), rock_salt()], ids=["caesium chloride", "rock salt"])
def test_repulsion_alone_is_refused(perfect: Atoms, noise: float, rho: float) -> None:
    """No charges at all, but a repulsion that may reach beyond the splines: about 0.1 eV at 3 A."""
    at_3 = {("Na", "Cl"): 0.1, ("Na", "Na"): 0.07, ("Cl", "Cl"): 0.17}
    repulsion = {pair: (energy * np.exp(3.0 / rho), rho) for pair, energy in at_3.items()}
    generator = torch.Generator().manual_seed(1)
    frames = [labelled(a, {"Na": 0.0, "Cl": 0.0}, repulsion) for a in crystals(perfect, 12, 0.1, 0.02)]
    for s in frames:
        s.forces = s.forces + noise * torch.randn(s.forces.shape, generator=generator, dtype=torch.float64)
    refusal = fit_charges(frames).refusal
    assert refusal is not None
    assert "\n" not in refusal


def test_noise_is_refused() -> None:
    generator = torch.Generator().manual_seed(2)
    frames = [s.clone() for s in sample()]
    for s in frames:
        s.forces = torch.randn(s.forces.shape, generator=generator, dtype=torch.float64)
    assert fit_charges(frames).refusal is not None


def test_like_charges_in_a_background_are_refused() -> None:
    # the products come out as +1, but no charges with these products are neutral
    atoms = crystals(rock_salt(), 3, rattle=0.1, strain=0.02)
    fit = fit_charges([labelled(a, {"Na": 1.0, "Cl": 1.0}, {}) for a in atoms])
    assert fit.refusal is not None


@pytest.mark.parametrize("drop", ["forces", "periodicity"])
def test_data_without_forces_or_periodicity_are_refused(drop: str) -> None:
    structures = [s.clone() for s in sample()[:2]]
    for s in structures:
        if drop == "forces":
            del s.forces
        else:
            s.pbc = torch.tensor([[True, True, False]])
    with pytest.raises(PrefitRefused, match="no periodic structure with forces"):
        fit_charges(structures)
    assert fit_charges([*structures, *sample()]).found.n_unusable == 2


def test_one_element_is_refused() -> None:
    atoms = crystals(bulk("Na", "bcc", 4.2) * (2, 2, 2), 2, rattle=0.1, strain=0.02)
    frames = [labelled(a, {"Na": 0.0}, {("Na", "Na"): (400.0, 0.4)}) for a in atoms]
    with pytest.raises(PrefitRefused, match="one element only"):
        fit_charges(frames)


def test_perfect_crystals_are_refused() -> None:
    perfect = [s.clone() for s in sample()[:2]]
    for s in perfect:
        s.forces = torch.zeros_like(s.forces)
    with pytest.raises(PrefitRefused, match="all forces are zero: displaced atoms are needed"):
        fit_charges(perfect)


def test_too_many_elements_are_refused() -> None:
    positions = 3.0 * np.array([[x, y, z] for x in range(3) for y in range(3) for z in range(2)])
    s = make_structure(range(3, 21), positions, 9.0 * np.eye(3), [True] * 3, forces=np.ones((18, 3)))
    with pytest.raises(PrefitRefused, match="18 elements; the prefit takes 16 at most"):
        fit_charges([s])


def test_cells_of_one_atom_say_nothing() -> None:
    """Among others they do no harm; alone they have no forces to fit."""
    one = [
        make_structure([z], [[0.1, 0.2, 0.3]], 3.5 * np.eye(3), [True] * 3, forces=np.zeros((1, 3))) for z in (11, 17)
    ]
    with pytest.raises(PrefitRefused, match="all forces are zero"):
        fit_charges(one)
    assert largest_error(fit_charges([*sample(), *one]), {11: 1.0, 17: -1.0}) < SAMPLE_TOLERANCE


# --- real data


def real(name: str) -> StructureFile:
    if REAL_DATA not in os.environ:
        pytest.skip(f"{REAL_DATA} names no folder of real data sets")
    path = Path(os.environ[REAL_DATA]) / f"{name}.xyz.gz"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return StructureFile(path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "number", "low", "high"),
    [
        ("phonon_sets/NaCl_rd_64", 11, 0.65, 0.70),
        ("phonon_sets/MgO_64", 12, 1.0, 1.1),
        ("phonon_sets/AlN_mp661_128", 13, 0.95, 1.2),
        ("phonon_sets/KCl_64", 19, 0.60, 0.75),
    ],
)
def test_charges_of_salts_from_density_functional_theory(name: str, number: int, low: float, high: float) -> None:
    fit = fit_charges(real(name))
    assert fit.refusal is None
    assert low < fit.charges[number] < high


@pytest.mark.slow
@pytest.mark.parametrize("name", ["inp/inp", "gan/rlv_0.05_8atom"])
def test_what_holds_no_charges_is_refused(name: str) -> None:
    frames: Sequence[Structure] = list(real(name))[::10]
    assert fit_charges(frames).refusal is not None
