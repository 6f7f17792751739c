"""MD that is killed goes on to the same files and the same last state, to the last bit."""

from __future__ import annotations

import resource
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.constraints import FixAtoms

from lrpot import LRCalculator
from lrpot.errors import ConfigError, DataError, OutputError
from lrpot.md import MDRun, run_md
from tests.helpers_cli import (
    PATIENCE,
    listing,
    one_error_line,
    rock_salt,
    run_cli,
    save_model,
    small_model,
    start_cli,
)

ENSEMBLES = {
    "nve": {"ensemble": "nve"},
    "langevin": {"ensemble": "nvt"},
    "bussi": {"ensemble": "nvt", "thermostat": "bussi"},
    "nose-hoover": {"ensemble": "nvt", "thermostat": "nose-hoover"},
    "npt isotropic": {"ensemble": "npt", "pressure": 0.5},
    "npt full": {"ensemble": "npt", "barostat": "full", "pdamp": 300.0},
    "heating": {"ensemble": "npt", "temperature_end": 400.0},
    "stress": {"ensemble": "nve", "record_stress": True},
}
STEPS = {"steps": 23, "interval": 3, "save_every": 5}


class Killed(Exception):
    """Stands in for a kill: nothing that a run would do at its end is done."""


def run(folder: Path, ending: str = ".traj", *, form: str = "none", **settings: Any) -> tuple[Atoms, MDRun]:
    """A run of a fresh crystal, with all its files in a folder."""
    folder.mkdir(exist_ok=True)
    atoms = rock_salt()
    atoms.calc = LRCalculator(small_model(form), skin=0.5, stress=settings.get("ensemble") == "npt")
    files = {"trajectory": folder / f"md{ending}", "table": folder / "md.csv", "state": folder / "md.state"}
    return atoms, run_md(atoms, **files, **{**STEPS, **settings})


def close_files(run: Any) -> None:
    """What the system does when a process is killed."""
    for part in (run.recorder.table, run.frames):
        if getattr(part, "file", None) is not None:
            part.file.close()


def dies(folder: Path, step: int, monkeypatch: pytest.MonkeyPatch, ending: str = ".traj", **settings: Any) -> None:
    """The same, cut off after a step as a kill would: files are left as they are then."""

    def asked() -> bool:
        counted[0] += 1
        if counted[0] > step:
            raise Killed
        return False

    counted = [0]
    with monkeypatch.context() as patch:
        patch.setattr("lrpot.md.run._Run.close", close_files)
        with pytest.raises(Killed):
            run(folder, ending, stop=asked, **settings)


def content(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in listing(folder)}


def assert_same(one: tuple[Atoms, MDRun], other: tuple[Atoms, MDRun]) -> None:
    for a, b in ((one[0].positions, other[0].positions), (one[0].get_momenta(), other[0].get_momenta())):
        assert a.tobytes() == b.tobytes()
    assert one[0].cell.array.tobytes() == other[0].cell.array.tobytes()
    for name in ("time_fs", "potential", "kinetic", "temperature", "conserved", "pressure", "volume"):
        assert getattr(one[1], name) == getattr(other[1], name), name
    assert one[1].drift == other[1].drift


@pytest.mark.parametrize("name", ENSEMBLES)
def test_every_ensemble_goes_on_to_the_last_bit(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"form": "coulomb", **ENSEMBLES[name]}
    whole = run(tmp_path / "whole", **settings)
    assert whole[1].time_fs == [3.0 * n for n in range(8)]
    for step in (2, 14):  # before the second state, and between two
        dies(tmp_path / "cut", step, monkeypatch, resume=step > 2, **settings)
    assert_same(run(tmp_path / "cut", resume=True, **settings), whole)
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


@pytest.mark.parametrize("ending", [".traj", ".extxyz", ".h5"])
def test_every_format_is_cut_back_to_the_state(ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "whole", ending, interval=1, steps=50)
    dies(tmp_path / "cut", 49, monkeypatch, ending, interval=1, steps=50)  # over the 42 frames of a block of .traj
    with open(next((tmp_path / "cut").glob(f"md{ending}*")), "ab") as file:
        file.write(b"half a frame")
    run(tmp_path / "cut", ending, interval=1, steps=50, resume=True)
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


@pytest.mark.parametrize("ending", [".traj", ".extxyz", ".h5"])
def test_a_run_that_finds_no_room_goes_on_when_there_is(ending: str, tmp_path: Path) -> None:
    """A limit on the size of files stands in for a full disk: the trajectory meets it between two states."""
    run(tmp_path / "whole", ending, interval=1)
    dies_at = (tmp_path / "whole" / f"md{ending}").stat().st_size // 2
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (dies_at, before[1]))
    try:
        with pytest.raises(OutputError, match=rf"md\{ending}.*: cannot be written \(File too large\); free or choose"):
            run(tmp_path / "cut", ending, interval=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    run(tmp_path / "cut", ending, interval=1, resume=True)
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


@pytest.mark.parametrize("ending", [".traj", ".extxyz", ".h5"])
def test_a_finished_run_can_be_made_longer(ending: str, tmp_path: Path) -> None:
    run(tmp_path / "whole", ending)
    run(tmp_path / "more", ending, steps=10)
    run(tmp_path / "more", ending, resume=True, steps=11)  # no frame of its own
    run(tmp_path / "more", ending, resume=True)
    assert content(tmp_path / "more") == content(tmp_path / "whole")


def test_a_run_that_kept_no_frames_can_begin_to(tmp_path: Path) -> None:
    atoms = rock_salt()
    for steps, kept in ((5, None), (20, tmp_path / "md.traj")):
        atoms.calc = LRCalculator(small_model("none"))
        run_md(
            atoms, **{**STEPS, "steps": steps}, state=tmp_path / "md.state", resume=kept is not None, trajectory=kept
        )
    assert len(ase.io.read(tmp_path / "md.traj", index=":")) == len(range(6, 21, STEPS["interval"]))


def test_stopped_anywhere_it_goes_on(tmp_path: Path) -> None:
    asked = iter([False] * 7 + [True])
    whole = run(tmp_path / "whole")
    run(tmp_path / "cut", stop=lambda: next(asked))
    assert_same(run(tmp_path / "cut", resume=True), whole)


@pytest.mark.slow
def test_kill_9_of_the_command(tmp_path: Path) -> None:
    """Killed at some moment, it ends in the same files as a run that was left alone."""
    ase.io.write(tmp_path / "start.extxyz", rock_salt())
    model = save_model(tmp_path / "m.pt", "none")
    words = ("md", model, tmp_path / "start.extxyz", "--ensemble", "nvt", "--thermostat", "bussi", "--skin", 0.5)
    words = (*words, "--steps", 200, "--save-every", 20, "--interval", 4, "--temperature", 100)
    assert run_cli(*words, "--out", tmp_path / "whole" / "md.h5") == 0
    state = tmp_path / "cut" / "md.state"
    with start_cli(*words, "--out", tmp_path / "cut" / "md.h5") as process:
        end = time.monotonic() + PATIENCE
        while not state.exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end, "it never came so far"
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, errors) == (-signal.SIGKILL, "")
    assert run_cli(*words, "--resume", "--out", tmp_path / "cut" / "md.h5") == 0
    for name in ("md.csv", "md.state", "md.h5"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


# --- refusals, none of which touches a file


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        ({"timestep": 2.0}, ConfigError, r"that run has timestep = 1\.0, not 2\.0; give the same, or start anew"),
        ({"ensemble": "nvt"}, ConfigError, "that run has ensemble = nve, not nvt"),
        ({"about": {"model": "b"}}, ConfigError, "that run has model = None, not b"),
        ({"steps": 20}, ConfigError, "that run has done 23 steps, and 20 are asked for; ask for more with --steps"),
    ],
)
def test_other_settings(settings: dict[str, object], kind: type[Exception], message: str, tmp_path: Path) -> None:
    run(tmp_path / "a")
    before = content(tmp_path / "a")
    with pytest.raises(kind, match=message):
        run(tmp_path / "a", resume=True, **{"steps": 40, **settings})
    assert content(tmp_path / "a") == before


def test_numbers_of_numpy_are_settings_too(tmp_path: Path) -> None:
    settings = {"temperature": 300.0, "timestep": 1.0, "seed": 3, "record_stress": True}
    for_numpy = {name: np.array(value)[()] for name, value in {**STEPS, **settings}.items()}
    whole = run(tmp_path / "whole", **settings)
    run(tmp_path / "a", **{**for_numpy, "steps": np.int64(11)})
    assert_same(run(tmp_path / "a", resume=True, **for_numpy), whole)
    assert content(tmp_path / "a") == content(tmp_path / "whole")


def test_about_may_hold_what_comes_back_in_another_form(tmp_path: Path) -> None:
    about = {"cell": (1, 2)}
    run(tmp_path / "a", about=about)
    run(tmp_path / "a", about=about, steps=40, resume=True)


def test_a_ramp_has_the_steps_it_was_made_for(tmp_path: Path) -> None:
    run(tmp_path / "a", ensemble="nvt", temperature_end=400.0)
    with pytest.raises(ConfigError, match="that run has steps = 23, not 40"):
        run(tmp_path / "a", ensemble="nvt", temperature_end=400.0, steps=40, resume=True)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("md.state", b"no state", "is not the state of a run, or damaged; start anew with --overwrite"),
        ("md.state", None, "no run has left a state there; start it without --resume"),
        ("md.traj", b"short", "has 5 bytes and had .* when the state was saved; put it back, or start anew"),
        ("md.csv", b"a" * 4000, "is not the table of that run"),
    ],
)
def test_damaged_files(name: str, damage: bytes | None, message: str, tmp_path: Path) -> None:
    run(tmp_path / "a")
    if damage is None:
        (tmp_path / "a" / name).unlink()
    else:
        (tmp_path / "a" / name).write_bytes(damage)
    with pytest.raises((DataError, OutputError), match=message) as error:
        run(tmp_path / "a", resume=True, steps=40)
    assert "\n" not in str(error.value)


def held(indices: Sequence[int] = (0, 3)) -> Atoms:
    """Atoms of everything that a run keeps: some in place, of masses and a charge of their own."""
    atoms = rock_salt()
    atoms.set_masses(np.linspace(20.0, 40.0, len(atoms)))
    atoms.info["charge"] = np.int64(1)
    atoms.set_constraint(FixAtoms(indices))
    return atoms


def isolated() -> Atoms:
    atoms = held()
    atoms.pbc = False
    return atoms


def neutral() -> Atoms:
    atoms = held()
    del atoms.info["charge"]
    return atoms


def natural() -> Atoms:
    atoms = held()
    atoms.set_masses("defaults")
    return atoms


def free() -> Atoms:
    atoms = held()
    atoms.set_constraint()
    return atoms


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: rock_salt(1), "other atoms; give the same structure and supercell"),
        (isolated, "atoms with other pbc; give the same structure, or start anew with --overwrite"),
        (neutral, "atoms with other total charge;"),
        (natural, "atoms with other masses;"),
        (free, "atoms with other constraints;"),
        (lambda: held((0, 4)), "atoms with other constraints;"),
        (rock_salt, "atoms with other masses, total charge, constraints;"),
    ],
)
def test_other_atoms(make: Callable[[], Atoms], what: str, tmp_path: Path) -> None:
    def go(atoms: Atoms, **settings: Any) -> None:
        atoms.calc = LRCalculator(small_model("none"))
        run_md(atoms, state=tmp_path / "md.state", trajectory=tmp_path / "md.traj", **{**STEPS, **settings})

    go(held())
    before = content(tmp_path)
    with pytest.raises(DataError, match=rf"md\.state: belongs to a run of {what}"):
        go(make(), resume=True, steps=40)
    assert content(tmp_path) == before
    go(held(), resume=True, steps=40)


def test_two_runs_never_write_the_same_files(tmp_path: Path) -> None:
    def second() -> bool:
        with pytest.raises(OutputError, match=r"md\.csv: another run writes it; wait for that, or choose another"):
            run(tmp_path / "a")
        tried.append(True)
        return True

    tried: list[bool] = []
    run(tmp_path / "a", stop=second)
    assert tried


def test_the_command_names_the_ways_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ase.io.write(tmp_path / "start.extxyz", rock_salt())
    words = (
        "md",
        save_model(tmp_path / "m.pt", "none"),
        tmp_path / "start.extxyz",
        "--steps",
        2,
        "--out",
        tmp_path / "md.traj",
    )
    picture = tmp_path / "md.energy.png"
    picture.write_text("of another run")
    assert run_cli(*words) == 1
    one_error_line(capsys.readouterr().err, ("md.energy.png: exists already",))
    picture.unlink()
    assert run_cli(*words) == 0
    capsys.readouterr()
    assert run_cli(*words) == 1
    one_error_line(capsys.readouterr().err, ("exists already", "--resume to go on", "--overwrite to replace"))
    assert run_cli(*words, "--resume", "--overwrite") == 1
    one_error_line(capsys.readouterr().err, ("--resume goes on with a run and --overwrite replaces it",))
    before = content(tmp_path)
    assert run_cli(*words, "--resume") == 0  # nothing left to do, and what was recorded is told again
    assert "2 steps of 1 fs, 16 atoms" in capsys.readouterr().out
    assert {name: data for name, data in content(tmp_path).items() if data != before[name]} == {}
