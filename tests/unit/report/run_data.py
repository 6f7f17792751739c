"""A short run for the tests of the report: charges that see their surroundings, a file with a name to beware of."""

from __future__ import annotations

from pathlib import Path

import ase.io
from ase.calculators.singlepoint import SinglePointCalculator

from lrpot.training.fit import fit
from tests.helpers_cli import FIT_SETTINGS
from tests.unit.training_data import ionic_rows

# A name that runs a script in a page that does not escape it.
HOSTILE = "<img src=x onerror=alert(1)> & rows.extxyz"

# Of the test part.
TEST_ROWS, VALID_ROWS = 5, 4

# The row of the test file with one force of the label wrong by so much, eV/A, on this atom along z.
WRONG_ROW, WRONG_ATOM, WRONG_BY = 3, 6, 2.0


def write_rows(path: Path, n: int, seed: int) -> Path:
    """Rock salt with energies, forces, stress and charges; one force is wrong if there is a row `WRONG_ROW`."""
    rows = ionic_rows(n, stress=True, seed=seed)
    for number, atoms in enumerate(rows):
        results = dict(atoms.calc.results)
        results["charges"] = [0.7 if z == 11 else -0.7 for z in atoms.numbers]
        if number == WRONG_ROW:
            results["forces"][WRONG_ATOM, 2] += WRONG_BY
        atoms.calc = SinglePointCalculator(atoms, **results)
    ase.io.write(path, rows, format="extxyz")
    return path


def make_run(folder: Path) -> Path:
    """A finished run of three stages in folder/run, with its data beside it."""
    train = write_rows(folder / "train.extxyz", WRONG_ROW, seed=0)  # no row is wrong
    valid = write_rows(folder / "valid.extxyz", VALID_ROWS, seed=1)
    test = write_rows(folder / HOSTILE, TEST_ROWS, seed=2)
    settings = dict(setting.split("=") for setting in FIT_SETTINGS)
    settings |= {"model.charges.kind": "environment", "model.charges.init": "oxidation", "model.charges.hidden": "4"}
    settings |= {"data.valid": str(valid), "data.test": str(test), "training.charge_weight": "0.1"}
    fit(train, out=folder / "run", settings=settings, verbose=False)
    return folder / "run"
