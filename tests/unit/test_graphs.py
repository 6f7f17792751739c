"""Graphs on disk are those that were computed in memory, whoever built them, however many files they came from."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms

from lrpot.console import Console
from lrpot.data import cache
from lrpot.data.cache import LARGE, cache_folder, clean, entries, load_graphs, processes
from lrpot.data.graph_builder import GraphSettings, _some_graphs, build_graphs, reduced_formula
from lrpot.data.graphs import GraphFile, Graphs
from lrpot.data.packing import write_shards
from lrpot.data.readers import read_rows, tell_bad_rows, to_structures
from lrpot.data.sources import expand, named
from lrpot.errors import DataError, LrpotError
from lrpot.structure import LABELS, Structure, collate_with_gaps
from tests.helpers_cli import one_error_line, run_cli
from tests.unit.graph_data import CUTOFF, assert_same_structure, read_slowly, varied_rows, write_varied

SETTINGS = GraphSettings(CUTOFF)
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_varied(tmp_path_factory.mktemp("rows") / "rows.extxyz", 24)


def pack(rows: Path, path: Path) -> Path:
    with gzip.open(path, "wb") as packed:
        packed.write(rows.read_bytes())
    return path


# --- the same structures


@pytest.mark.parametrize("where", ["off", "folder", "found again"])
def test_graphs_are_those_of_the_slow_way(rows: Path, tmp_path: Path, where: str) -> None:
    setting = "off" if where == "off" else str(tmp_path)
    if where == "found again":
        load_graphs(rows, SETTINGS, cache=setting)
    found = Graphs([load_graphs(rows, SETTINGS, cache=setting)])
    expected = read_slowly(rows)
    assert len(found) == len(expected) == 24
    for a, b in zip(found, expected, strict=True):
        assert_same_structure(a, b)
    assert found.atoms.tolist() == [s.num_nodes for s in expected]
    assert found.edges.tolist() == [s.edge_index.shape[1] for s in expected]
    assert found.elements == [11, 17, 19]
    assert {"energy", "forces", "stress"} <= found.fields
    assert (len(list(tmp_path.glob("*.graphs"))) == 1) == (where != "off")


@pytest.mark.slow
def test_two_processes_build_the_same_file(tmp_path: Path) -> None:
    """Of a packed file, with a bad row in it."""
    crystals = varied_rows(9)
    crystals[4].positions[1] = crystals[4].positions[0] + 0.01
    ase.io.write(tmp_path / "rows.extxyz", crystals, format="extxyz")
    source = pack(tmp_path / "rows.extxyz", tmp_path / "rows.extxyz.gz")
    for jobs in (1, 2):
        with open(tmp_path / str(jobs), "w+b") as file:
            build_graphs(source, SETTINGS, file, jobs=jobs)
            assert [row for row, _ in GraphFile(source, file, "graphs").bad] == [4]
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_a_batch_is_that_of_its_structures(rows: Path, tmp_path: Path) -> None:
    """With labels that some lack, of two files, in any order, with attached fields."""
    other = write_varied(tmp_path / "other.extxyz", 7, seed=1)
    graphs = Graphs([load_graphs(file, SETTINGS, cache="off") for file in (rows, other)])
    assert {"charges", "dipole", "born_charges", "stress"} <= graphs.fields
    chosen = graphs.select([30, 2, 5, 25, 11, 3, 4, 28])
    chosen.attach({f"known_{label}": 2.0 * s[label] for label in LABELS if label in s} for s in chosen)
    for places in ([0], [3, 1], [7, 6, 5, 4, 3, 2, 1, 0]):
        found, expected = chosen.batch(places), collate_with_gaps([chosen[place] for place in places])
        assert sorted(found.keys()) == sorted(expected.keys())
        for name in sorted(found.keys()):
            assert torch.equal(torch.as_tensor(found[name]).isnan(), torch.as_tensor(expected[name]).isnan()), name
            left, right = (torch.as_tensor(batch[name]).nan_to_num(7.0) for batch in (found, expected))
            assert left.dtype == right.dtype
            assert torch.equal(left, right), name
        assert found.num_nodes == expected.num_nodes


def broken(rows: Path, path: Path) -> Path:
    """The last row lacks a column of its last atom."""
    path.write_text(rows.read_text().rstrip().rsplit(maxsplit=1)[0] + "\n")
    return path


@pytest.mark.parametrize("kind", ["extxyz", "traj", "db", "h5", "broken"])
def test_each_process_makes_its_share_of_the_rows(rows: Path, tmp_path: Path, kind: str) -> None:
    """What process j of 3 sends is every third of what one process sends, to the row that cannot be read."""
    path = {
        "extxyz": lambda: rows,
        "traj": lambda: written(rows, tmp_path / "rows.traj"),
        "db": lambda: written(rows, tmp_path / "rows.db"),
        "h5": lambda: write_shards(tmp_path / "shards", [rows], 100)[0],
        "broken": lambda: broken(rows, tmp_path / "broken.extxyz"),
    }[kind]()
    alone = sent(path, 0, 1)
    assert len(alone) == 24
    assert isinstance(alone[-1], str) == (kind == "broken")
    for first in range(3):
        assert sent(path, first, 3) == alone[first::3]


def sent(path: Path, first: int, every: int) -> list[object]:
    """What a process sends, and the message at which it ends."""
    found: list[object] = []
    try:
        found.extend(_some_graphs(path, path, SETTINGS, first, every))
    except DataError as error:
        found.append(str(error))
    return found


def written(rows: Path, path: Path) -> Path:
    ase.io.write(path, crystals_of(rows), format=path.suffix[1:])
    return path


@pytest.mark.parametrize("kind", ["extxyz.gz", "db", "h5"])
def test_every_kind_of_file(rows: Path, tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"rows.{kind}"
    if kind == "extxyz.gz":
        pack(rows, path)
    elif kind == "db":
        written(rows, path)
    else:
        path = write_shards(tmp_path / "shards", [rows], 100)[0]
    found = Graphs([load_graphs(path, SETTINGS)])
    expected = read_slowly(rows)
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        # a data base of ASE keeps neither total charge, which decides what a dipole means, nor columns of our own
        assert_same_structure(a, b, but=("total_charge", "dipole", "born_charges") if kind == "db" else ())


def crystals_of(rows: Path) -> list[Atoms]:
    crystals = [row.atoms for row in read_rows(rows)]
    for atoms in crystals:
        atoms.info.clear()
    return crystals


def test_rows_count_on_through_several_files(rows: Path, tmp_path: Path) -> None:
    """Three files with a bad row in the middle one, of which every structure is found by its place."""
    crystals = varied_rows(5, seed=1)
    crystals[2].positions[1] = crystals[2].positions[0]
    ase.io.write(tmp_path / "b.extxyz", crystals, format="extxyz")
    last = write_varied(tmp_path / "c.extxyz", 3, seed=2)
    files = [load_graphs(path, SETTINGS) for path in (rows, tmp_path / "b.extxyz", last)]
    found = Graphs(files)
    assert found.rows.tolist() == [*range(24), 24, 25, 27, 28, 29, 30, 31]
    assert [int(s.row) for s in found] == found.rows.tolist()
    assert_same_structure(found[-1], read_slowly(last)[-1], but=("row",))
    chosen = found.select([30, 3, 24])
    assert chosen.rows.tolist() == [31, 3, 24]
    for a, place in zip(chosen, (30, 3, 24), strict=True):
        assert_same_structure(a, found[place])
    assert chosen.atoms.tolist() == [s.num_nodes for s in chosen]
    assert [chosen.formulas[n] for n in chosen.formula] == [reduced_formula(s.numbers.numpy()) for s in chosen]
    with pytest.raises(IndexError):
        chosen[3]
    assert [int(s.row) for s in found[28::2]] == [29, 31]


def test_what_is_attached_comes_with_the_structures_until_it_is_replaced(rows: Path) -> None:
    graphs = Graphs([load_graphs(rows, SETTINGS)]).select([5, 2, 9])
    graphs.attach({"known_forces": s.positions * 2.0, "n": s.row} for s in graphs)
    for structure in graphs:
        assert torch.equal(structure.known_forces, 2.0 * structure.positions)
        assert torch.equal(structure.n, structure.row)
    graphs.attach({"known_forces": s.known_forces + 1.0} for s in graphs)
    assert torch.equal(graphs[-1].known_forces, 2.0 * graphs[-1].positions + 1.0)
    assert "n" not in graphs[0]
    assert "known_forces" not in graphs.select([0])[0]
    with pytest.raises(ValueError, match="zip"):
        graphs.attach([{}])


def only_crystals(structure: Structure) -> None:
    if not bool(structure.pbc.all()):
        raise DataError("is no crystal; remove it")


def test_bad_rows_are_those_of_the_slow_way(rows: Path, tmp_path: Path) -> None:
    """Also when they come from the cache."""
    settings = GraphSettings(CUTOFF, require=("energy", "forces"), check=only_crystals)
    messages: list[list[str]] = [[], [], []]
    for told in messages[:2]:
        file = load_graphs(rows, settings, cache=str(tmp_path))
        tell_bad_rows(rows, file.bad, file.n_rows, told.append)
    slow = to_structures(
        read_rows(rows), CUTOFF, require=("energy", "forces"), check=only_crystals, skip_bad=messages[2].append
    )
    assert messages[0] == messages[1] == messages[2]
    assert len(messages[0]) == 24 - len(slow) + 1
    assert len(slow) == len(file.records) < 24


# --- the cache


def built(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files whose graphs are built from now on."""
    paths: list[Path] = []

    def counted(path: Path, *args: object, **kwargs: object) -> None:
        paths.append(path)
        build_graphs(path, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(cache, "build_graphs", counted)
    return paths


def test_graphs_are_built_once_for_the_same_file_and_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, folder, paths = write_varied(tmp_path / "rows.extxyz", 3), str(tmp_path / "cache"), built(monkeypatch)
    for settings, times in (
        (SETTINGS, 1),
        (SETTINGS, 1),
        (GraphSettings(CUTOFF + 0.5), 2),
        (GraphSettings(CUTOFF, require=("energy",)), 3),
        (GraphSettings(CUTOFF, check=only_crystals), 4),
        (SETTINGS, 4),
    ):
        load_graphs(source, settings, cache=folder)
        assert len(paths) == times
    monkeypatch.setattr(cache, "VERSION", cache.VERSION + 1)
    load_graphs(source, SETTINGS, cache=folder)
    assert len(paths) == 5
    write_varied(source, 3, seed=1)  # the same size
    assert_same_structure(Graphs([load_graphs(source, SETTINGS, cache=folder)])[0], read_slowly(source)[0])
    assert len(paths) == 6


def test_a_change_in_the_middle_of_a_large_file_is_seen(tmp_path: Path) -> None:
    """Size, begin and end stay the same; the time of the change does not."""
    source = write_varied(tmp_path / "rows.extxyz", 240)
    assert source.stat().st_size > 3 * 2**16
    Graphs([load_graphs(source, SETTINGS, cache=str(tmp_path))])
    text = bytearray(source.read_bytes())
    place = text.index(b" energy=", len(text) // 2) + len(b" energy=")
    digit = text.index(b".", place) + 1
    text[digit] = ord("1") if text[digit] != ord("1") else ord("2")
    source.write_bytes(text)
    energies = [float(s.energy) for s in Graphs([load_graphs(source, SETTINGS, cache=str(tmp_path))])]
    assert energies == [row.atoms.get_potential_energy() for row in read_rows(source)]


@pytest.mark.parametrize("damage", ["cut", "empty", "foreign", "index", "renamed"])
def test_a_cache_that_is_not_right_is_built_again_and_told_in_one_line(
    rows: Path, tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    load_graphs(rows, SETTINGS, cache=str(tmp_path))
    (target,) = tmp_path.glob("*.graphs")
    whole = target.read_bytes()
    if damage == "renamed":
        load_graphs(write_varied(tmp_path / "other.extxyz", 2), SETTINGS, cache=str(tmp_path))
        (other,) = tmp_path.glob("other*.graphs")
        other.replace(target)
    else:
        content = {
            "cut": whole[: len(whole) // 2],
            "empty": b"",
            "foreign": b"PK\x03\x04" + whole,
            "index": whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:],
        }[damage]
        target.write_bytes(content)
    paths = built(monkeypatch)
    again = Graphs([load_graphs(rows, SETTINGS, cache=str(tmp_path), console=Console())])
    told = [line for line in capsys.readouterr().err.splitlines() if "built again" in line]
    assert len(paths) == len(told) == 1
    assert str(target) in told[0]
    assert str(rows) in told[0]
    assert target.read_bytes() == whole
    for a, b in zip(again, read_slowly(rows), strict=True):
        assert_same_structure(a, b)


def test_a_damaged_record_is_told_with_the_cure(rows: Path, tmp_path: Path) -> None:
    load_graphs(rows, SETTINGS, cache=str(tmp_path))
    (target,) = tmp_path.glob("*.graphs")
    content = bytearray(target.read_bytes())
    content[40] ^= 1
    target.write_bytes(content)
    graphs = Graphs([load_graphs(rows, SETTINGS, cache=str(tmp_path))])
    with pytest.raises(DataError, match=r"record 0 is damaged; remove it with lrpot data cache --clean"):
        graphs[0]
    assert_same_structure(graphs[1], read_slowly(rows)[1])


def test_a_build_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_varied(tmp_path / "rows.extxyz", 3)
    text = source.read_text()
    source.write_text(text[: text.rindex("\n", 0, -2)] + "\n")
    with pytest.raises(DataError, match="row 2 cannot be read"):
        load_graphs(source, SETTINGS, cache=str(tmp_path / "cache"))
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_varied(tmp_path / "rows.extxyz", 3)
    more = varied_rows(1)

    def append(done: int) -> None:
        if done == 2:
            ase.io.write(source, more, format="extxyz", append=True)

    with open(tmp_path / "graphs", "w+b") as file, pytest.raises(DataError, match="was changed while it was read"):
        build_graphs(source, SETTINGS, file, progress=append)


BUILDER = """
import sys
from pathlib import Path
from lrpot.data.cache import load_graphs
from lrpot.data.graph_builder import GraphSettings
from lrpot.data.graphs import Graphs
graphs = Graphs([load_graphs(Path(sys.argv[1]), GraphSettings(4.0), cache=sys.argv[2])])
print(float(sum(s.energy.sum() + s.positions.sum() + s.edge_shift.sum() for s in graphs)))
"""


@pytest.mark.slow
def test_builders_that_start_together_get_the_same_graphs(rows: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-c", BUILDER, str(rows), str(tmp_path)]
    started = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(2)]
    sums = [process.communicate(timeout=120)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    expected = sum(s.energy.sum() + s.positions.sum() + s.edge_shift.sum() for s in read_slowly(rows))
    assert [float(text) for text in sums] == [float(expected)] * 2
    assert len(list(tmp_path.glob("*.graphs"))) == 1
    assert not list(tmp_path.glob(".*.graphs"))


def test_a_second_builder_waits_and_finds_what_the_first_built(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first takes the lock, and has built the file by the time that the second gets it."""
    flock = cache.fcntl.flock
    paths = built(monkeypatch)

    def busy(lock: object, how: int) -> None:
        if how & cache.fcntl.LOCK_NB:
            raise BlockingIOError
        with monkeypatch.context() as patch:
            patch.setattr(cache.fcntl, "flock", flock)
            load_graphs(rows, SETTINGS, cache=str(tmp_path))
        assert len(paths) == 1

    with monkeypatch.context() as patch:
        patch.setattr(cache.fcntl, "flock", busy)
        found = load_graphs(rows, SETTINGS, cache=str(tmp_path), console=Console())
    assert len(paths) == 1
    assert "waiting for another process" in capsys.readouterr().out
    assert_same_structure(Graphs([found])[7], read_slowly(rows)[7])


def test_where_graphs_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(b"x")
    with open(large, "wb") as file:
        file.truncate(LARGE)
    monkeypatch.setenv("LRPOT_CACHE", str(tmp_path / "own"))
    assert [cache_folder("auto", path) for path in (small, large)] == [None, tmp_path / "own"]
    assert [cache_folder("off", path) for path in (small, large)] == [None, None]
    assert cache_folder("here", small) == Path("here")
    monkeypatch.delenv("LRPOT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("auto", large) == tmp_path / "lrpot"
    assert [processes("auto", path) for path in (small, large)] == [1, len(os.sched_getaffinity(0))]
    assert processes(3, small) == 3


def test_the_cache_is_shown_and_cleaned_of_what_is_ours(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    graphs = Graphs([load_graphs(rows, SETTINGS, cache=str(tmp_path))])
    (target,) = tmp_path.glob("*.graphs")
    (tmp_path / f".{target.stem}-killed.graphs").write_bytes(b"")
    for name in ("mine.graphs", "notes.txt"):
        (tmp_path / name).write_text("not of lrpot")
    assert run_cli("data", "cache", "--folder", tmp_path) == 0
    shown = capsys.readouterr().out
    assert target.name in shown
    assert "mine.graphs" not in shown
    assert len(entries(tmp_path)) == 2
    assert run_cli("data", "cache", "--folder", tmp_path, "--clean") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.graphs", "notes.txt"]
    assert_same_structure(graphs[3], read_slowly(rows)[3])  # who has it open keeps it


def test_cleaning_leaves_what_is_being_written(tmp_path: Path) -> None:
    temporary = tmp_path / ".rows-abc-random.graphs"
    temporary.write_bytes(b"")
    with open(tmp_path / "rows-abc.graphs.lock", "w") as lock:
        cache.fcntl.flock(lock, cache.fcntl.LOCK_EX)
        clean(tmp_path)
        assert temporary.exists()
    clean(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_cache_that_cannot_be_written(rows: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LrpotError, match=r"cannot be written .*data\.cache"):
        load_graphs(rows, SETTINGS, cache=str(tmp_path / "file" / "cache"))


# --- which files


def test_files_patterns_and_lists(tmp_path: Path) -> None:
    for name in ("b.h5", "a.h5", "c[1].h5", "deep/d.h5"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    found = [path.relative_to(tmp_path).as_posix() for path in expand(str(tmp_path / "*.h5"))]
    assert found == ["a.h5", "b.h5", "c[1].h5"]
    assert expand(str(tmp_path / "c[1].h5")) == [tmp_path / "c[1].h5"]
    assert [path.name for path in expand([str(tmp_path / "b.h5"), str(tmp_path / "**/d.h5")])] == ["b.h5", "d.h5"]
    with pytest.raises(DataError, match="matches no file; check the pattern"):
        expand(str(tmp_path / "*.xyz"))
    with pytest.raises(DataError, match="named twice"):
        expand([str(tmp_path / "a.h5"), str(tmp_path / "?.h5")])


def test_messages_name_few_of_many_files() -> None:
    assert named(None) == ""
    assert named("a.xyz") == named(Path("a.xyz")) == "a.xyz"
    assert named(["a.xyz", Path("b.xyz"), "c.xyz"]) == "a.xyz, b.xyz, c.xyz"
    assert named([f"{n}.h5" for n in range(40)]) == "0.h5, 1.h5, 2.h5 and 37 more"


def test_errors_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("fit", tmp_path / "*.h5", "--out", tmp_path / "run") == 1
    one_error_line(capsys.readouterr().err, ("*.h5: matches no file", "check the pattern"))
    (tmp_path / "a.h5").write_bytes(b"\x89HDF\r\n\x1a\n and no more")
    assert run_cli("fit", tmp_path / "*.h5", "--out", tmp_path / "run") == 1
    one_error_line(capsys.readouterr().err, ("a.h5: is not HDF5, or was cut short",))
    assert not (tmp_path / "run").exists()


def test_formulas() -> None:
    assert reduced_formula(np.array([17, 11] * 27)) == "ClNa"
    assert reduced_formula(np.array([8, 1, 1])) == "H2O"
