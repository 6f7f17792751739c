"""Labels of stress with a pressure in them that the energies do not have are told of."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from lrpot import LRCalculator
from lrpot.data.readers import to_structure
from lrpot.evaluation import Evaluation, evaluate_structures
from lrpot.units import GPA
from tests.helpers_cli import rock_salt, run_cli, save_model, small_model

PRESSURE = 3.3  # GPa


def labelled(pressure: Callable[[int], float], n: int = 6, forces: float = 1.0) -> list[Atoms]:
    """Rows of what the small model says, with a pressure (GPa) added to each, and forces that are so many times its
    own; a last one without stress."""
    model = LRCalculator(small_model())
    rows = []
    for number in range(n + 1):
        atoms = rock_salt(seed=number)
        atoms.calc = model
        found = {"energy": atoms.get_potential_energy(), "forces": forces * atoms.get_forces()}
        if number < n:
            found["stress"] = atoms.get_stress() - np.array([1, 1, 1, 0, 0, 0]) * pressure(number) / GPA
        atoms.calc = SinglePointCalculator(atoms, **found)
        rows.append(atoms)
    return rows


def evaluated(rows: list[Atoms]) -> Evaluation:
    model = small_model()
    return evaluate_structures(model, [to_structure(atoms, model.cutoff) for atoms in rows])


@pytest.mark.parametrize(("pressure", "side"), [(-PRESSURE, "below"), (PRESSURE, "above")])
def test_an_offset_is_found_and_told(pressure: float, side: str) -> None:
    found = evaluated(labelled(lambda number: pressure + 0.1 * (-1) ** number))
    offset = found.pressure_offset()
    assert (offset["mean"], offset["spread"]) == pytest.approx((pressure, 0.1), abs=1e-8)
    told = found.stress_doubt()
    assert told is not None
    assert f"is 3.3 GPa {side} the slope of the model's energy, in all 6 structures alike (within 0.1)" in told


@pytest.mark.parametrize(
    ("pressure", "settings"),
    [
        (lambda _: 0.0, {}),
        (lambda _: 0.09, {}),
        (lambda number: PRESSURE * number, {}),
        (lambda _: PRESSURE, {"n": 4}),
        (lambda _: PRESSURE, {"forces": 1.2}),
        (lambda _: PRESSURE, {"n": 0}),
    ],
    ids=["none", "small", "varying", "few rows", "forces unknown", "no stress"],
)
def test_nothing_is_told_without_reason(pressure: Callable[[int], float], settings: dict[str, Any]) -> None:
    assert evaluated(labelled(pressure, **settings)).stress_doubt() is None


def test_commands_tell_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "rows.extxyz"
    ase.io.write(rows, labelled(lambda _: -PRESSURE, n=8))
    model = save_model(tmp_path / "m.pt")
    assert run_cli("evaluate", model, rows) == 0
    assert "the pressure of the labels is 3.3 GPa below" in " ".join(capsys.readouterr().err.split())
    offset = json.loads((tmp_path / "evaluation-rows.json").read_text())["pressure_offset"]
    assert offset["mean"] == pytest.approx(-PRESSURE, abs=1e-8)
    assert offset["unit"] == "GPa"

    run = tmp_path / "run"
    few_steps = ("training.lr=1e-9", "training.max_epochs=1", "data.valid_fraction=0.7", "data.test_fraction=0")
    assert run_cli("fit", rows, "--from", model, "--out", run, "--set", *few_steps) == 0
    assert "the pressure of the labels is 3.3 GPa below" in (run / "fit.log").read_text()
