"""run_md: what it records and writes, what it refuses, and how it ends when a run goes wrong."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator, all_changes

from lrpot.errors import ConfigError, StructureError
from lrpot.interfaces.ase import LRCalculator
from lrpot.md import MDRun, SimulationError, run_md
from tests.helpers_cli import listing, rock_salt, small_model


class Springs(Calculator):
    """Every atom on a spring to where it started; from some call on, something breaks."""

    implemented_properties: ClassVar[list[str]] = ["energy", "free_energy", "forces"]

    def __init__(self, home: np.ndarray, *, breaks_at: int | None = None, how: str = "nan") -> None:
        super().__init__()
        self.home = home.copy()
        self.breaks_at = breaks_at
        self.how = how
        self.calls = 0

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        away = self.atoms.positions - self.home
        energy, forces = 0.5 * float((away**2).sum()), -away
        if self.breaks_at is not None and self.calls >= self.breaks_at:
            if self.how == "collide":
                raise StructureError("atoms 1 and 2 are 0.05 A apart (less than 0.1 A); remove one of them")
            if self.how == "kick":
                forces[3] = 1e4
            elif self.how == "energy":
                energy = np.nan
            else:
                forces[3, 1] = np.nan
        self.calls += 1
        self.results = {"energy": energy, "free_energy": energy, "forces": forces}


def springs(**kwargs: object) -> Atoms:
    atoms = bulk("Cu", cubic=True) * (2, 1, 1)
    atoms.calc = Springs(atoms.positions, **kwargs)  # type: ignore[arg-type]
    return atoms


# --- what is recorded


@pytest.mark.parametrize(
    ("steps", "interval", "times"),
    [(5, 1, [0, 1, 2, 3, 4, 5]), (10, 5, [0, 5, 10]), (7, 3, [0, 3, 6]), (4, 10, [0])],
)
@pytest.mark.parametrize("name", ["md.traj", "md.extxyz", "md.xyz"])
def test_frames(tmp_path: Path, name: str, steps: int, interval: int, times: list[int]) -> None:
    atoms = springs()
    run = run_md(atoms, steps=steps, interval=interval, timestep=2.0, trajectory=tmp_path / name)
    assert run.time_fs == [2.0 * t for t in times]
    assert len(run.potential) == len(run.kinetic) == len(run.temperature) == len(times)
    frames = ase.io.read(tmp_path / name, ":")
    assert len(frames) == len(times)
    places = [frame.positions for frame in frames]
    assert all(np.abs(a - b).max() > 1e-4 for a, b in pairwise(places))  # no frame twice
    for frame, potential in zip(frames, run.potential, strict=True):
        assert frame.get_potential_energy() == pytest.approx(potential, abs=1e-7)
        assert frame.get_forces().shape == (8, 3)
        assert frame.get_momenta().any()
    if steps == times[-1]:
        np.testing.assert_allclose(frames[-1].positions, atoms.positions, atol=1e-7)
    assert listing(tmp_path) == [name]


def test_an_older_trajectory_is_replaced(tmp_path: Path) -> None:
    for name in ("md.traj", "md.extxyz"):
        for steps in (4, 2):
            run_md(springs(), steps=steps, interval=1, trajectory=tmp_path / name)
        assert len(ase.io.read(tmp_path / name, ":")) == 3


def test_seed_decides_everything() -> None:
    for ensemble in ("nve", "nvt"):
        ends = []
        for seed in (0, 0, 1):
            atoms = springs()
            run_md(atoms, ensemble=ensemble, steps=5, seed=seed)
            ends.append(atoms.positions)
        np.testing.assert_array_equal(ends[0], ends[1])
        assert np.abs(ends[0] - ends[2]).max() > 1e-4


def test_velocities_that_are_there_are_kept() -> None:
    atoms = springs()
    atoms.set_momenta(np.full((8, 3), 0.5))
    kinetic = atoms.get_kinetic_energy()
    run = run_md(atoms, temperature=1000.0, steps=1, interval=1)
    assert run.kinetic[0] == kinetic


def test_drawn_velocities_have_the_temperature_and_no_drift_of_the_crystal() -> None:
    atoms = bulk("Cu", cubic=True) * (5, 5, 5)
    atoms.calc = Springs(atoms.positions)
    run = run_md(atoms, temperature=500.0, steps=1, interval=1)
    assert run.temperature[0] == pytest.approx(500.0, rel=0.1)  # 1500 degrees of freedom: 4 % standard deviation
    np.testing.assert_allclose(atoms.get_momenta().sum(axis=0), 0.0, atol=1e-9)
    cold = springs()
    assert run_md(cold, temperature=0.0, steps=1, interval=1).temperature == [0.0, 0.0]


def test_one_atom_rests() -> None:
    atoms = bulk("Cu")
    atoms.calc = Springs(atoms.positions)
    assert run_md(atoms, steps=2, interval=1).temperature == [0.0, 0.0, 0.0]


def test_energy_is_conserved_and_drift_is_its_slope() -> None:
    atoms = rock_salt()
    atoms.calc = LRCalculator(small_model())
    run = run_md(atoms, temperature=50.0, steps=30, timestep=0.5, interval=1)
    total = np.add(run.potential, run.kinetic) / 16
    assert np.ptp(total) < 2e-6
    slope = np.polyfit(np.array(run.time_fs) / 1000.0, total, 1)[0]
    assert run.drift == pytest.approx(slope, rel=1e-6)
    assert run.seconds_per_step > 0


def test_drift_of_a_line_and_of_a_point() -> None:
    run = MDRun(
        n_atoms=2, time_fs=[0.0, 500.0, 1000.0], potential=[1.0, 2.0, 3.0], kinetic=[0.0] * 3, conserved=[1.0, 2.0, 3.0]
    )
    assert run.drift == pytest.approx(1.0)  # 2 eV / 2 atoms / 1 ps
    assert MDRun(n_atoms=2, time_fs=[0.0], potential=[1.0], kinetic=[0.0], conserved=[1.0]).drift == 0.0


@pytest.mark.parametrize(("ensemble", "expected"), [("nve", 150.0), ("nvt", 300.0)])
def test_the_bath_brings_the_temperature(ensemble: str, expected: float) -> None:
    """Started at rest in their springs, atoms of 300 K keep half of it; the bath gives the rest."""
    atoms = bulk("Cu", cubic=True) * (4, 4, 4)
    atoms.calc = Springs(atoms.positions)
    bath = {"friction": 0.02} if ensemble == "nvt" else {}
    run = run_md(atoms, ensemble=ensemble, temperature=300.0, steps=400, timestep=4.0, interval=1, **bath)
    # 768 degrees of freedom: 5 % standard deviation, less in the mean
    assert np.mean(run.temperature[150:]) == pytest.approx(expected, rel=0.1)


def test_progress(capsys: pytest.CaptureFixture[str]) -> None:
    told: list[tuple[int, str]] = []
    run_md(springs(), steps=4, interval=2, progress=lambda step, note: told.append((step, note)))
    assert [step for step, _ in told] == [0, 2, 4]
    assert all("eV/atom" in note and " K" in note for _, note in told)
    assert capsys.readouterr() == ("", "")


def test_stop_ends_the_run_after_a_whole_step(tmp_path: Path) -> None:
    asked = iter([False, False, False, True])
    run = run_md(springs(), steps=100, interval=1, trajectory=tmp_path / "md.traj", stop=lambda: next(asked))
    assert run.time_fs == [0.0, 1.0, 2.0, 3.0]
    assert len(ase.io.read(tmp_path / "md.traj", ":")) == 4


# --- refusals


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ensemble": "nph"}, "ensemble 'nph' is not known; choose one of nve, nvt, npt"),
        ({"temperature": -1.0}, "temperature = -1 K: must be finite and not negative"),
        ({"temperature": float("nan")}, "temperature = nan K"),
        ({"steps": 0}, "steps = 0: must be finite and positive"),
        ({"timestep": -0.5}, r"timestep = -0\.5"),
        ({"timestep": float("inf")}, "timestep = inf"),
        ({"friction": float("nan")}, "friction = nan"),
        ({"interval": 0}, "interval = 0"),
        ({"steps": 10.5}, r"^steps = 10\.5: must be a whole number$"),
        ({"steps": float("inf")}, "^steps = inf: must be a whole number$"),
        ({"seed": None}, "^seed = None: must be a whole number$"),
        ({"temperature": "warm"}, "^temperature = 'warm': must be a number$"),
        ({"about": {"model": np.int64(3)}}, "^about = .*: no JSON .*; give texts, numbers and lists of such$"),
    ],
)
def test_impossible_settings(tmp_path: Path, settings: dict[str, object], message: str) -> None:
    atoms = springs()
    files = {name: tmp_path / f"md.{name}" for name in ("traj", "csv", "state")}
    with pytest.raises(ConfigError, match=message):
        run_md(atoms, trajectory=files["traj"], table=files["csv"], state=files["state"], **settings)  # type: ignore[arg-type]
    assert listing(tmp_path) == []
    assert not atoms.has("momenta")


@pytest.mark.parametrize("name", ["md.traj", "md.extxyz"])
def test_a_start_that_cannot_be_computed_leaves_the_old_trajectory(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("old")
    atoms = springs(breaks_at=0, how="collide")
    with pytest.raises(StructureError, match=r"^atoms 1 and 2"):
        run_md(atoms, trajectory=tmp_path / name)
    assert (tmp_path / name).read_text() == "old"


# --- runs that go wrong


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("nan", r"step 4: the force on atom 3 \(Cu\) or its velocity is not finite"),
        ("energy", r"step 4: the potential energy is nan eV"),
        ("kick", r"step 4: the temperature is .* K, and atom 3 \(Cu\) is the fastest"),
        ("collide", r"step 4: atoms 1 and 2 are 0\.05 A apart"),
    ],
)
@pytest.mark.parametrize("interval", [1, 3])
@pytest.mark.parametrize("name", ["md.traj", "md.extxyz"])
def test_an_exploding_run_tells_step_and_atom_and_keeps_the_frames(
    tmp_path: Path, how: str, message: str, interval: int, name: str
) -> None:
    atoms = springs(breaks_at=4, how=how)
    with pytest.raises(SimulationError, match=message) as error:
        run_md(atoms, steps=50, interval=interval, trajectory=tmp_path / name)
    assert "the model is outside its range or the time step of 1 fs is too long" in str(error.value)
    assert "the frames before step 4 are kept" in str(error.value)
    assert "\n" not in str(error.value)
    frames = ase.io.read(tmp_path / name, ":")
    assert len(frames) == len(range(0, 4, interval))
    assert all(np.isfinite(frame.get_forces()).all() for frame in frames)
