"""MD that watches how uncertain its forces are: it stops or flags, and keeps the frames."""

from __future__ import annotations

from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms

from lrpot import LRCalculator
from lrpot.ensemble import Calibration, Ensemble
from lrpot.errors import ConfigError
from lrpot.md import SimulationError, run_md
from lrpot.model_file import save
from tests.helpers_cli import listing, one_error_line, rock_salt, run_cli, save_model, small_model, write_crystals
from tests.unit.test_md import Springs, springs


class Doubtful(Springs):
    """Springs that from some call on doubt the force on atom 5."""

    def __init__(self, home: np.ndarray, *, doubts: tuple[int, ...]) -> None:
        super().__init__(home)
        self.doubts = doubts

    def calculate(self, *args: object, **kwargs: object) -> None:
        call = self.calls
        super().calculate(*args, **kwargs)
        uncertainties = np.full(len(self.atoms), 0.01)
        uncertainties[5] = 0.5 if call in self.doubts else 0.02
        self.results["forces_uncertainty"] = uncertainties


def doubtful(*doubts: int) -> Atoms:
    atoms = springs()
    atoms.calc = Doubtful(atoms.positions, doubts=doubts)
    return atoms


@pytest.mark.parametrize("interval", [1, 3])
def test_stop_tells_step_atom_and_value_and_keeps_the_frames(tmp_path: Path, interval: int) -> None:
    atoms = doubtful(7)
    with pytest.raises(SimulationError) as error:
        run_md(
            atoms,
            steps=20,
            interval=interval,
            trajectory=tmp_path / "md.traj",
            max_uncertainty=0.3,
            uncertain=tmp_path / "doubt.extxyz",
        )
    assert str(error.value) == (
        "step 7: the uncertainty of the force on atom 5 (Cu) is 0.5 eV/A, more than 0.3; add such structures to the "
        f"training set, or raise the limit; the frames before step 7 are kept; that frame is in {tmp_path}/doubt.extxyz"
    )
    frames = ase.io.read(tmp_path / "md.traj", ":")
    assert len(frames) == len(range(0, 7, interval))
    (kept,) = ase.io.read(tmp_path / "doubt.extxyz", ":")
    np.testing.assert_allclose(kept.positions, atoms.positions, atol=1e-7)
    assert kept.info["step"] == 7
    assert kept.arrays["force_uncertainty"].tolist() == [0.01] * 5 + [0.5] + [0.01] * 2
    np.testing.assert_allclose(kept.get_forces(), atoms.get_forces(), atol=1e-7)
    assert kept.get_momenta().any()


def test_flag_counts_and_goes_on(tmp_path: Path) -> None:
    told: list[str] = []
    run = run_md(
        doubtful(2, 3, 9),
        steps=10,
        interval=3,
        max_uncertainty=0.3,
        on_uncertain="flag",
        uncertain=tmp_path / "doubt.extxyz",
        progress=lambda step, note: told.append(note),
    )
    assert run.uncertain_steps == [2, 3, 9]
    assert run.force_uncertainty == [0.02, 0.5, 0.02, 0.5]  # steps 0, 3, 6, 9
    assert [note.split(", ")[-1] for note in told] == [f"uncertainty {u:g} eV/A" for u in run.force_uncertainty]
    assert [frame.info["step"] for frame in ase.io.read(tmp_path / "doubt.extxyz", ":")] == [2, 3, 9]


def test_a_start_that_is_too_uncertain_leaves_the_old_trajectory(tmp_path: Path) -> None:
    (tmp_path / "md.traj").write_text("old")
    with pytest.raises(SimulationError, match=r"^step 0: .* or raise the limit$"):
        run_md(doubtful(0), trajectory=tmp_path / "md.traj", max_uncertainty=0.3)
    assert listing(tmp_path) == ["md.traj"]
    assert (tmp_path / "md.traj").read_text() == "old"


def test_below_the_limit_nothing_happens(tmp_path: Path) -> None:
    run = run_md(doubtful(4), steps=6, interval=1, max_uncertainty=0.5, uncertain=tmp_path / "doubt.extxyz")
    assert run.uncertain_steps == []
    assert listing(tmp_path) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_uncertainty": 0.0}, "max_uncertainty = 0 eV/A: must be finite and positive"),
        ({"max_uncertainty": float("nan")}, "max_uncertainty = nan eV/A"),
        ({"max_uncertainty": 0.1, "on_uncertain": "go"}, "on_uncertain = 'go' is not known; choose one of stop, flag"),
        ({"on_uncertain": "flag"}, "on_uncertain and uncertain do nothing without max_uncertainty"),
        ({"uncertain": "a.extxyz"}, "do nothing without max_uncertainty"),
        ({"max_uncertainty": 0.1, "uncertain": "a.traj"}, "uncertain = a.traj: .* use .extxyz or .xyz"),
    ],
)
def test_impossible_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_md(doubtful(), **settings)


def test_a_single_model_has_no_limit() -> None:
    atoms = rock_salt()
    atoms.calc = LRCalculator(small_model("none"))
    with pytest.raises(ConfigError, match="max_uncertainty needs the calculator of an ensemble"):
        run_md(atoms, steps=1, max_uncertainty=0.3)


def test_a_run_without_a_file_for_uncertain_frames_can_go_on_with_one(tmp_path: Path) -> None:
    settings = {"save_every": 2, "max_uncertainty": 0.3, "on_uncertain": "flag", "state": tmp_path / "md.state"}
    run_md(doubtful(2), steps=4, **settings)
    # counted anew, the third call is that of step 6
    run = run_md(doubtful(2), steps=8, resume=True, uncertain=tmp_path / "doubt.extxyz", **settings)
    assert run.uncertain_steps == [2, 6]
    assert [frame.info["step"] for frame in ase.io.read(tmp_path / "doubt.extxyz", ":")] == [6]


# --- the command


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("md")
    members = [small_model("none", seed=seed) for seed in range(3)]
    save(Ensemble(members, Calibration({"forces": 1.5}, 100)), folder / "m.pt")
    save(Ensemble(members), folder / "plain.pt")
    save_model(folder / "single.pt", "none")
    write_crystals(folder / "start.extxyz", 1)
    return folder


def test_the_command_stops_with_1(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "md.traj"
    words = ("md", folder / "m.pt", folder / "start.extxyz", "--steps", 4, "--interval", 1, "--out", out)
    assert run_cli(*words, "--max-uncertainty", 1e-6) == 1
    one_error_line(capsys.readouterr().err, ("step 0: ", "eV/A, more than 1e-06", "raise the limit"))
    assert listing(tmp_path) == ["md.uncertain.extxyz"]
    assert run_cli(*words, "--max-uncertainty", 1e-6, "--on-uncertain", "flag") == 1
    one_error_line(capsys.readouterr().err, ("md.uncertain.extxyz: exists already", "--overwrite"))
    assert run_cli(*words, "--max-uncertainty", 1e-6, "--on-uncertain", "flag", "--overwrite") == 0
    printed = capsys.readouterr()
    assert "warning: 5 of 5 steps have a force that is more uncertain than 1e-06 eV/A" in printed.err
    assert "force uncertainty up to" in printed.out
    assert len(ase.io.read(tmp_path / "md.uncertain.extxyz", ":")) == 5
    assert run_cli(*words, "--max-uncertainty", 1e6, "--overwrite") == 0
    assert capsys.readouterr().err == ""
    assert listing(tmp_path) == [
        "md.csv",
        "md.energy.png",
        "md.state",
        "md.traj",
    ]  # no frames of the run that was replaced


def test_the_command_warns_of_a_limit_that_is_not_calibrated(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("md", folder / "plain.pt", folder / "start.extxyz", "--steps", 1, "--out", tmp_path / "md.traj")
    assert run_cli(*words, "--max-uncertainty", 1e6) == 0
    assert "warning: the uncertainties are the plain spread" in capsys.readouterr().err


def test_the_command_refuses_a_single_model(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("md", folder / "single.pt", folder / "start.extxyz", "--out", tmp_path / "md.traj")
    assert run_cli(*words, "--max-uncertainty", 0.3) == 1
    expected = ("--max-uncertainty needs an ensemble", "single.pt is a single model", "lrpot fit --ensemble 4")
    one_error_line(capsys.readouterr().err, expected)
    assert listing(tmp_path) == []
