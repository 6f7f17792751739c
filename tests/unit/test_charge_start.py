"""Where a fit starts: prefit, a file, a table, Born charges, oxidation states, zero; and what is wrong with each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import ase.io
import numpy as np
import pytest
import yaml
from ase import Atoms
from pymatgen.core import Composition

from lrpot.charges.born import charges_from_born
from lrpot.charges.charge_file import read_charges, table_charges, write_charges
from lrpot.charges.prefit import fit_charges
from lrpot.charges.start import MAX_SITES, StartingCharges, given_charges, starting_charges
from lrpot.config import ChargesConfig
from lrpot.data.readers import StructureFile
from lrpot.data.shards import write_shard
from lrpot.errors import ConfigError
from lrpot.structure import Structure, make_structure
from tests.unit.charge_data import SALT, SAMPLES, crystals, labelled, perovskite, rock_salt, to_atoms

SAMPLE_TOLERANCE = 1e-5  # e: pure Coulomb labels of pymatgen
FACTOR_TOLERANCE = 0.02  # splines against another repulsion
DIGITS_TOLERANCE = 1e-6  # e, of a file of charges


@cache
def sample(name: str = "sample.extxyz") -> tuple[Structure, ...]:
    return tuple(StructureFile(SAMPLES / name))


def start(init: object, structures: Sequence[Structure], **kwargs: object) -> StartingCharges:
    return starting_charges(ChargesConfig(init=init), structures, **kwargs)


# --- prefit


def test_start_from_the_prefit() -> None:
    found = start("prefit", sample()[:2])
    assert found.values == pytest.approx({11: 1.0, 17: -1.0}, abs=SAMPLE_TOLERANCE)
    assert found.origin.startswith("linear prefit to 2 structures (pair cutoff 5 A; Coulomb explains 100%")


def test_frames_that_the_prefit_leaves_out_are_not_counted() -> None:
    frames = [labelled(a, {"Na": 0.7, "Cl": -0.7}, SALT) for a in crystals(rock_salt(), 8, 0.1, 0.02)]
    frames[3].forces = 100.0 * frames[3].forces
    origin = start("prefit", frames).origin
    assert origin.startswith("linear prefit to 7 structures (1 left out for large forces; pair cutoff ")


def test_start_where_the_prefit_is_refused_tells_why() -> None:
    structures = [s.clone() for s in sample()[:2]]
    for s in structures:
        del s.forces
    found = start("prefit", structures)
    assert found.values == {11: 1.0, 17: -1.0}
    assert found.origin.startswith("oxidation states of ClNa, not screened")
    assert "(the prefit was refused: no periodic structure with forces to fit charges to)" in found.origin
    assert found.guessed
    assert not start("oxidation", structures).guessed
    assert not start({"Na": 1.0, "Cl": -1.0}, structures).guessed


def test_start_without_a_complement_does_not_prefit() -> None:
    found = start("prefit", sample()[:1], coulomb=False)
    assert found.values == {11: 1.0, 17: -1.0}
    assert "the prefit was refused: it needs a Coulomb kernel with its complement" in found.origin
    assert not found.guessed  # the forces were not asked


def test_the_prefit_of_a_fit_is_that_of_the_command() -> None:
    """One implementation, the same settings."""
    config = ChargesConfig(init="prefit", pair_cutoff=4.0, sum_molecules=False)
    found = starting_charges(config, sample())
    assert found.values == fit_charges(sample(), pair_cutoff=4.0, sum_molecules=False).charges


def test_an_element_without_forces_is_told() -> None:
    other = make_structure([19, 17], [[0, 0, 0], [3, 3, 3]], 6.0 * np.eye(3), [True] * 3)
    found = start("prefit", [*sample(), other])
    assert "the prefit was refused: no forces of K)" in found.origin


# --- oxidation states


def test_start_from_oxidation_states() -> None:
    atoms = perovskite() * (2, 1, 1)
    oxide = make_structure(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)
    found = start("oxidation", [oxide])
    assert found.values == {38: 2.0, 22: 4.0, 8: -2.0}
    assert found.origin.startswith("oxidation states of ")
    assert found.origin.endswith(", not screened: the forces give no factor")


def test_oxidation_states_are_screened_by_one_factor() -> None:
    atoms = crystals(rock_salt(), 6, 0.1, 0.02)
    found = start("oxidation", [labelled(a, {"Na": 0.7, "Cl": -0.7}, SALT) for a in atoms])
    assert found.values[11] == -found.values[17] == pytest.approx(0.7, abs=FACTOR_TOLERANCE)
    assert found.origin == (
        f"oxidation states of ClNa times {found.values[11]:.3f}, the screening factor that fits the forces best"
    )


def test_a_factor_above_one_is_no_screening() -> None:
    atoms = crystals(rock_salt(), 3, 0.1, 0.02)
    found = start("oxidation", [labelled(a, {"Na": 1.5, "Cl": -1.5}, {}) for a in atoms])
    assert found.values == {11: 1.0, 17: -1.0}


def test_start_from_oxidation_states_of_the_most_frequent_composition() -> None:
    found = start("oxidation", [*sample()[:3], *sample("sample_vacancy.extxyz")[:2]])
    assert found.values == pytest.approx({11: 1.0, 17: -1.0}, abs=SAMPLE_TOLERANCE)
    iron = [("Fe2O3", {26: 3.0, 8: -2.0}), ("FeO", {26: 2.0, 8: -2.0})]
    positions = {formula: 8.0 * np.random.default_rng(0).random((len(Atoms(formula)), 3)) for formula, _ in iron}
    for often, rare in (iron, iron[::-1]):
        structures = [
            make_structure(Atoms(f).numbers, positions[f], 8.0 * np.eye(3), [True] * 3)
            for f in (rare[0], often[0], often[0])
        ]
        assert start("oxidation", structures).values == often[1]


@pytest.mark.parametrize(
    ("formula", "close", "expected"),
    [
        ("Ga47N48", "GaN", {31: 3.0, 7: -3.0}),
        ("Ga48N47", "GaN", {31: 3.0, 7: -3.0}),
        ("N31Ti32", "NTi", {22: 3.0, 7: -3.0}),
    ],
)
def test_oxidation_states_of_a_large_cell_with_a_defect(
    formula: str, close: str, expected: dict[int, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trying the states of a hundred atoms would take years: a formula of a few stands for it."""
    guess = Composition.oxi_state_guesses

    def guess_of_few(self: Composition, *arguments: object, **settings: object) -> object:
        assert self.num_atoms <= MAX_SITES  # else it hangs
        return guess(self, *arguments, **settings)

    monkeypatch.setattr(Composition, "oxi_state_guesses", guess_of_few)
    symbols = Atoms(formula)
    positions = 30.0 * np.random.default_rng(0).random((len(symbols), 3))
    found = start("oxidation", [make_structure(symbols.numbers, positions, 30.0 * np.eye(3), [True] * 3)])
    assert found.values == expected
    assert found.origin.startswith(f"oxidation states of {close}, which is close to {formula}, not screened")


def test_oxidation_states_that_would_take_long_are_not_guessed() -> None:
    oxide = Atoms("FeMnCoNiCrVTiZrNbMoO20")
    positions = 30.0 * np.random.default_rng(0).random((len(oxide), 3))
    found = start("oxidation", [make_structure(oxide.numbers, positions, 30.0 * np.eye(3), [True] * 3)])
    assert found.origin.startswith("zero (no oxidation states could be guessed)")


def test_start_where_no_oxidation_state_is_known() -> None:
    alloy = make_structure([11, 19], [[0, 0, 0], [2.6, 2.6, 2.6]], 5.2 * np.eye(3), [True] * 3)
    found = start("oxidation", [alloy])
    assert found.values == {11: 0.0, 19: 0.0}
    assert found.origin == "zero (no oxidation states could be guessed)"


# --- tables and files


def test_start_from_zero_and_from_a_table() -> None:
    assert start("zero", sample()[:1]).values == {11: 0.0, 17: 0.0}
    found = start({"Na": 0.8, "Cl": -0.8, "K": 0.9}, sample()[:1])
    assert found.values == {11: 0.8, 17: -0.8}
    assert found.origin == "the table in model.charges.init"


def test_charges_come_back_from_their_file(tmp_path: Path) -> None:
    fit = fit_charges(sample())
    file = tmp_path / "charges.yaml"
    write_charges(fit, file, "sample.extxyz")
    found = start(str(file), sample()[:1])
    assert found.values == pytest.approx(fit.charges, abs=DIGITS_TOLERANCE)
    assert found.origin == str(file)
    content = yaml.safe_load(file.read_text())
    assert list(content) == ["charges", "uncertainties", "quality", "settings"]
    assert content["charges"] == pytest.approx({"Na": 1.0, "Cl": -1.0}, abs=SAMPLE_TOLERANCE)
    assert content["settings"]["data"] == "sample.extxyz"
    assert content["settings"]["frames"] == len(sample())
    assert content["quality"]["rank_one_share"] == pytest.approx(1.0, abs=1e-5)
    assert len(content["quality"]["by_pair_cutoff"]) == len(fit.cutoffs)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"Na": 1.0}, "no charge for Cl; add it"),
        ({"Na": 1.0, "Cl": -1.0, "Xx": 0.0}, "Xx is not an element"),
        ({"Na": 1.0, "chlorine": -1.0}, "chlorine is not an element"),
    ],
)
def test_a_table_that_does_not_fit_the_data_is_refused(table: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        start(table, sample()[:1])
    with pytest.raises(ConfigError, match=rf"^here.*{message}"):
        table_charges(table, [11, 17], where="here")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file of charges; make it with lrpot charges DATA --out"),
        ("charges: {Na: 0.8", "is not a YAML file"),
        ("- Na\n- Cl\n", "has no table of charges"),
        ("charges: 3\n", "has no table of charges"),
        ("charges: {}\n", "has no table of charges"),
        ("charges: {Na: much, Cl: -1}\n", "the charge of Na is much; give a number, e"),
        ("charges: {Na: true, Cl: -1}\n", "the charge of Na is True; give a number, e"),
        ("charges: {Na: .nan, Cl: -1}\n", "the charge of Na is nan; give a number, e"),
        ("charges: {Na: 0.8}\n", "has no charge for Cl; add it to the table"),
    ],
)
def test_a_bad_file_of_charges_is_told_in_one_line(text: str | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "charges.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        given_charges(ChargesConfig(init=str(file)), [11, 17], None)
    assert str(error.value).startswith(str(file))
    assert "\n" not in str(error.value)


def test_read_charges_takes_whole_numbers(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("charges: {Na: 1, Cl: -1}\n")
    assert read_charges(tmp_path / "c.yaml") == {"Na": 1.0, "Cl": -1.0}


# --- Born charges

BORN = 1.1 * np.eye(3) + np.array([[0.0, 0.1, 0.0], [0.0, 0.0, 0.2], [0.3, 0.0, 0.0]])
DIELECTRIC = np.diag([2.0, 2.5, 3.0])
SCREENED = 1.1 / np.sqrt(2.5)


def born_table() -> dict[str, object]:
    return {
        "symbols": ["Na", "Cl"],
        "born_charges": [BORN.tolist(), (-BORN).tolist()],
        "dielectric": DIELECTRIC.tolist(),
    }


@pytest.mark.parametrize("ending", ["json", "yaml"])
def test_born_charges_from_a_table(ending: str, tmp_path: Path) -> None:
    file = tmp_path / f"born.{ending}"
    file.write_text(json.dumps(born_table()) if ending == "json" else yaml.safe_dump(born_table()))
    values, origin = charges_from_born(file)
    assert values == pytest.approx({11: SCREENED, 17: -SCREENED})
    assert origin == f"Born charges of {file}"
    config = ChargesConfig(init="born", born=str(file))
    assert starting_charges(config, sample()[:1]).values == pytest.approx({11: SCREENED, 17: -SCREENED})


def test_born_charges_obey_the_acoustic_sum_rule(tmp_path: Path) -> None:
    table = born_table()
    table["born_charges"] = [(BORN + 0.3 * np.eye(3)).tolist(), (0.3 * np.eye(3) - BORN).tolist()]
    (tmp_path / "born.json").write_text(json.dumps(table))
    assert charges_from_born(tmp_path / "born.json")[0] == pytest.approx({11: SCREENED, 17: -SCREENED})


def test_born_charges_from_labels_in_the_data(tmp_path: Path) -> None:
    """Rows without labels are passed over."""
    rows = [to_atoms(s) for s in sample()[:3]]
    for atoms in rows[1:]:
        sign = np.where(atoms.numbers == 11, 1.0, -1.0)
        atoms.arrays["born_charges"] = (sign[:, None, None] * BORN).reshape(-1, 9)
        atoms.info["dielectric"] = DIELECTRIC
    ase.io.write(tmp_path / "rows.extxyz", rows, write_results=True)
    values, origin = charges_from_born(tmp_path / "rows.extxyz")
    assert values == pytest.approx({11: SCREENED, 17: -SCREENED})
    assert origin == f"Born charges of 2 rows of {tmp_path / 'rows.extxyz'}"
    found = start("born", sample()[:1], source=tmp_path / "rows.extxyz")
    assert found.values == pytest.approx({11: SCREENED, 17: -SCREENED})


def test_born_charges_may_be_in_any_of_several_shards(tmp_path: Path) -> None:
    rows = [to_atoms(s) for s in sample()[:3]]
    rows[2].arrays["born_charges"] = np.where(rows[2].numbers == 11, 1.0, -1.0)[:, None, None] * BORN
    rows[2].info["dielectric"] = DIELECTRIC
    shards = [write_shard(tmp_path / f"{n}.h5", [atoms]) for n, atoms in enumerate(rows)]
    found = start("born", sample()[:1], source=shards)
    assert found.values == pytest.approx({11: SCREENED, 17: -SCREENED})
    assert found.origin == f"Born charges of 1 rows of {', '.join(map(str, shards))}"
    with pytest.raises(ConfigError, match=r"0.h5, .*1.h5: no row has arrays born_charges"):
        start("born", sample()[:1], source=shards[:2])


def test_born_charges_that_are_nowhere() -> None:
    with pytest.raises(ConfigError, match=r"no row has arrays born_charges \(N, 3, 3\) and info dielectric \(3, 3\)"):
        start("born", sample()[:1], source=SAMPLES / "sample.extxyz")
    with pytest.raises(ConfigError, match=r"needs a file of Born charges; set model\.charges\.born"):
        start("born", sample()[:1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"symbols": None}, "has no symbols"),
        ({"born_charges": None}, "has no born_charges"),
        ({"symbols": "NaCl"}, "is not a list of elements"),
        ({"symbols": ["Na", "Xx"]}, "is not a list of elements"),
        (
            {"born_charges": [BORN.tolist()]},
            r"born_charges have shape \(1, 3, 3\).*; expected \(2, 3, 3\) and \(3, 3\)",
        ),
        ({"dielectric": 2.5}, r"dielectric \(\); expected"),
        ({"dielectric": [["much"] * 3] * 3}, "hold something else than numbers"),
        ({"dielectric": (-DIELECTRIC).tolist()}, "dielectric constant -2.5 or a Born charge is impossible"),
        ({"symbols": ["Na", "K"]}, "has no charge for Cl"),
    ],
)
def test_bad_born_charges_are_told_in_one_line(change: dict[str, object], message: str, tmp_path: Path) -> None:
    table = {name: value for name, value in (born_table() | change).items() if value is not None}
    (tmp_path / "born.json").write_text(json.dumps(table))
    with pytest.raises(ConfigError, match=message) as error:
        given_charges(ChargesConfig(init="born", born=str(tmp_path / "born.json")), [11, 17], None)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "text"), [("born.json", "{"), ("born.yaml", "a: [1"), ("none.json", None)])
def test_unreadable_born_charges(name: str, text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=r"cannot be read as|no such file of Born charges"):
        charges_from_born(tmp_path / name)
