"""The ensembles of lrpot md are those of statistical mechanics, and what a run conserves is conserved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms

from lrpot.errors import ConfigError
from lrpot.md import MDRun, SimulationError, run_md
from lrpot.md.integrators import draw_momenta
from tests.unit.test_md import springs

BLOCKS = 16  # of a run; each longer than what a bath remembers, so that their means are independent
SIGMAS = 3.6  # standard errors of a mean from so few blocks: Student's t that is as rare as three of a normal one
ORDER = 0.25  # relative: how far the ratio of errors may be from 4, that of steps twice as long

BATHS: dict[str, dict[str, Any]] = {
    "langevin": {"thermostat": "langevin", "friction": 0.02},
    "bussi": {"thermostat": "bussi", "tdamp": 40.0},
    "nose-hoover": {"thermostat": "nose-hoover", "tdamp": 40.0},
}


class Bound(Calculator):
    """Every atom in a quartic well of its own, all wells moving with the centre of all: the momentum of all is kept,
    and, the wells being far from harmonic, energy goes round."""

    implemented_properties: ClassVar[list[str]] = ["energy", "free_energy", "forces"]
    steepness = 20.0  # eV/A^4

    def __init__(self, home: np.ndarray) -> None:
        super().__init__()
        self.home = home.copy()

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        away = self.atoms.positions - self.home
        away -= away.mean(axis=0)
        square = (away**2).sum(axis=1, keepdims=True)
        energy, pull = 0.25 * self.steepness * float((square**2).sum()), self.steepness * square * away
        self.results = {"energy": energy, "free_energy": energy, "forces": pull.mean(axis=0) - pull}


def bound(n: int = 8) -> Atoms:
    """Atoms of different masses, hence frequencies."""
    numbers = np.random.default_rng(0).integers(6, 30, n)
    atoms = Atoms(numbers, positions=3.0 * np.arange(n)[:, None] * [1.0, 0.0, 0.0])
    atoms.calc = Bound(atoms.positions)
    return atoms


def copper() -> Atoms:
    atoms = bulk("Cu", cubic=True) * (2, 2, 1)
    atoms.calc = EMT()
    return atoms


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    blocks = np.array_split(np.asarray(values), BLOCKS)
    means = np.array([block.mean() for block in blocks])
    return float(means.mean()), float(means.std(ddof=1) / np.sqrt(BLOCKS))


@pytest.mark.parametrize("bath", BATHS)
def test_canonical(bath: str) -> None:
    """The kinetic energy is k T / 2 for each degree of freedom, the quartic potential k T / 4; it varies as it should.

    Of eight atoms whose momentum is kept 21 degrees of freedom are left; counting 24 would miss by 14 %.
    """
    run = run_md(bound(), ensemble="nvt", temperature=300.0, steps=6000, timestep=4.0, interval=5, **BATHS[bath])
    late = slice(len(run.time_fs) // 10, None)
    kt, vibrations = units.kB * 300.0, 21
    moving = 24 if bath == "langevin" else 21
    quantities = {
        "kinetic": (run.kinetic, moving * kt / 2.0),
        "potential": (run.potential, vibrations * kt / 4.0),
        "temperature": (run.temperature, 300.0),
        "variance": ((np.array(run.kinetic) - moving * kt / 2.0) ** 2, moving * kt**2 / 2.0),
    }
    for name, (values, expected) in quantities.items():
        mean, error = mean_and_error(values[late])
        assert error < 0.2 * expected, name  # else the next line says little
        assert abs(mean - expected) < SIGMAS * error, name


@pytest.mark.parametrize(
    "settings",
    [
        {"ensemble": "nve"},
        {"ensemble": "nvt", "thermostat": "nose-hoover", "tdamp": 50.0},
        {"ensemble": "npt", "barostat": "isotropic", "pressure": 2.0, "tdamp": 50.0, "pdamp": 200.0},
        {"ensemble": "npt", "barostat": "full", "pressure": 2.0, "tdamp": 50.0, "pdamp": 200.0},
    ],
    ids=lambda settings: " ".join(str(value) for value in settings.values()),
)
def test_what_is_conserved_is_so_to_the_order_of_the_integrator(settings: dict[str, Any]) -> None:
    """Twice the step, four times the error; in between, energy is exchanged a thousand times as much."""
    errors = []
    for timestep in (2.0, 4.0):
        steps = round(200.0 / timestep)
        run = run_md(copper(), temperature=400.0, steps=steps, timestep=timestep, interval=1, **settings)
        errors.append(float(np.std(run.conserved)))
        if settings["ensemble"] != "nve":
            total = np.add(run.potential, run.kinetic)
            assert np.ptp(total) > 20.0 * np.ptp(run.conserved)
    assert errors[1] / errors[0] == pytest.approx(4.0, rel=ORDER)


def test_bussi_accounts_for_what_the_bath_gave() -> None:
    run = run_md(copper(), ensemble="nvt", thermostat="bussi", tdamp=20.0, temperature=400.0, steps=50, interval=1)
    assert np.ptp(run.conserved) < 0.01 * np.ptp(np.add(run.potential, run.kinetic))


@pytest.mark.parametrize("barostat", ["isotropic", "full"])
def test_pressure_moves_the_cell(barostat: str) -> None:
    atoms = copper()
    angles = atoms.cell.angles()
    before = atoms.get_volume()
    run = run_md(
        atoms, ensemble="npt", barostat=barostat, pressure=20.0, temperature=300.0, steps=60, timestep=4.0, pdamp=100.0
    )
    assert run.volume[-1] == atoms.get_volume() < 0.97 * before
    assert run.pressure[-1] > run.pressure[0] + 5.0
    assert (np.abs(atoms.cell.angles() - angles).max() > 1e-6) == (barostat == "full")
    # no rotation: a symmetric deformation of the cell
    deformation = np.linalg.solve(copper().cell.array, atoms.cell.array)
    np.testing.assert_allclose(deformation, deformation.T, atol=1e-3)


@pytest.mark.parametrize("settings", [*BATHS.values(), {"ensemble": "npt", "pdamp": 400.0}], ids=str)
def test_a_bath_that_gets_warmer(settings: dict[str, Any]) -> None:
    atoms = copper() if "pdamp" in settings else bound(64)
    steps = 60 if "pdamp" in settings else 600
    damping = {} if "friction" in settings else {"tdamp": 20.0}
    settings = {"ensemble": "nvt", "timestep": 3.0, **settings, **damping}
    run = run_md(atoms, temperature=100.0, temperature_end=1000.0, steps=steps, interval=1, **settings)
    assert np.mean(run.temperature[: steps // 10]) < 300.0
    assert np.mean(run.temperature[-steps // 10 :]) > 500.0
    assert run.conserved == []
    assert run.drift == 0.0


@pytest.mark.parametrize("bath", BATHS)
def test_what_moves_as_a_whole_is_no_heat(bath: str) -> None:
    atoms = bound()
    atoms.set_momenta(np.random.default_rng(0).normal(size=(8, 3)) + 5.0)
    run_md(atoms, ensemble="nvt", steps=20, **BATHS[bath])
    momentum = np.abs(atoms.get_momenta().sum(axis=0)).max()
    assert (momentum < 1e-9) == (bath != "langevin")


def test_a_crystal_that_drifts_is_as_warm_as_one_at_rest() -> None:
    runs = []
    for velocity in (0.0, 0.5):  # the second, taken for heat, is more than 10^5 K
        atoms = copper()
        draw_momenta(atoms, 300.0, np.random.default_rng(0))
        atoms.set_momenta(atoms.get_momenta() + velocity * atoms.get_masses()[:, None])
        runs.append(run_md(atoms, steps=20, interval=1))
        assert np.linalg.norm(atoms.get_momenta().sum(axis=0)) == pytest.approx(
            np.sqrt(3) * velocity * atoms.get_masses().sum(), abs=1e-9
        )
    still, drifting = runs
    np.testing.assert_allclose(drifting.temperature, still.temperature, rtol=1e-9)
    whole = 0.5 * 3 * 0.5**2 * copper().get_masses().sum()  # eV
    np.testing.assert_allclose(np.subtract(drifting.kinetic, still.kinetic), whole, rtol=1e-9)


def test_pressure_of_frames_if_asked_for() -> None:
    assert run_md(copper(), steps=4, interval=2).pressure == []
    run = run_md(copper(), steps=4, interval=2, record_stress=True)
    assert len(run.pressure) == 3
    atoms = copper()
    atoms.set_cell(atoms.cell.array * 0.97, scale_atoms=True)
    squeezed = run_md(atoms, steps=4, interval=2, record_stress=True)
    assert squeezed.pressure[0] > run.pressure[0] + 5.0


def test_one_hot_atom() -> None:
    atoms = springs()
    atoms.set_momenta(np.zeros((8, 3)))
    momenta = atoms.get_momenta()
    momenta[5, 0] = np.sqrt(2.0 * 63.5 * 2.0)  # 2 eV, of which seen from the centre 49 / 64; in all less than 2000 K
    atoms.set_momenta(momenta)
    with pytest.raises(SimulationError, match=r"^step 0: atom 5 \(Cu\) moves as fast as at 1\.18e\+04 K; the model is"):
        run_md(atoms, temperature=100.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"ensemble": "nvt", "thermostat": "nose"},
            "thermostat 'nose' is not known; choose one of langevin, bussi, nose",
        ),
        ({"ensemble": "npt", "barostat": "cubic"}, "barostat 'cubic' is not known; choose one of isotropic, full"),
        (
            {"temperature_end": 100.0},
            r"^temperature_end = 100\.0 does nothing in nve; leave it out, or choose nvt or npt$",
        ),
        ({"thermostat": "bussi"}, "^thermostat = bussi does nothing in nve; leave it out, or choose nvt$"),
        (
            {"ensemble": "npt", "friction": 9.0},
            r"^friction = 9\.0 does nothing in npt; leave it out, or choose nvt with langevin$",
        ),
        ({"ensemble": "nvt", "pressure": 5.0}, r"^pressure = 5\.0 does nothing in nvt with langevin; .* choose npt$"),
        ({"ensemble": "nvt", "barostat": "full"}, "^barostat = full does nothing in nvt with langevin"),
        (
            {"ensemble": "nvt", "tdamp": 50.0},
            r"^tdamp = 50\.0 does nothing in nvt with langevin; .* choose npt, or nvt with bussi or nose-hoover$",
        ),
        (
            {"ensemble": "nvt", "thermostat": "nose-hoover", "pdamp": 50.0},
            r"^pdamp = 50\.0 does nothing in nvt with nose-hoover",
        ),
        ({"ensemble": "npt", "pressure": np.inf}, "pressure = inf GPa: must be finite"),
        ({"ensemble": "npt", "tdamp": 0.0}, "tdamp = 0: must be finite and positive"),
        ({"ensemble": "npt", "temperature": 0.0}, "temperature = 0 K: npt cannot cool to rest"),
        ({"ensemble": "npt"}, r"npt needs a crystal that repeats in all directions, and pbc = \[False"),
        ({"record_stress": True}, "npt and record_stress need the stress, which is not known here"),
    ],
)
def test_impossible_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        run_md(bound(), **settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("settings", [{"ensemble": "npt"}, {"ensemble": "nvt", "thermostat": "nose-hoover"}], ids=str)
def test_atoms_held_in_place(settings: dict[str, Any]) -> None:
    atoms = copper()
    atoms.set_constraint(FixAtoms([0, 1]))
    with pytest.raises(ConfigError, match="cannot hold atoms in place, and the structure has constraints"):
        run_md(atoms, **settings)
    held = atoms.positions[0].copy()
    run_md(atoms, ensemble="nvt", thermostat="bussi", steps=3)
    np.testing.assert_array_equal(atoms.positions[0], held)


def test_one_atom_needs_langevin() -> None:
    atoms = bulk("Cu")
    atoms.calc = EMT()
    with pytest.raises(ConfigError, match="bussi needs two atoms or more; use the langevin bath, or a supercell"):
        run_md(atoms, ensemble="nvt", thermostat="bussi")
    assert isinstance(run_md(atoms, ensemble="nvt", steps=2), MDRun)
