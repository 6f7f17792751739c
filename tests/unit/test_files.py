"""Files are whole or not there; a directory belongs to one run at a time."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from lrpot import files
from lrpot.errors import OutputError
from lrpot.files import atomic_folder, atomic_path, check_writable, run_directory, write_text
from tests.helpers_cli import listing


def test_atomic_path_writes_and_keeps_the_ending(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "table.csv"
    with atomic_path(target) as temporary:
        assert temporary.parent == target.parent
        assert temporary.suffix == ".csv"
        assert not target.exists()
        temporary.write_text("1,2\n")
    assert target.read_text() == "1,2\n"
    assert listing(target.parent) == ["table.csv"]


def test_whoever_reads_the_old_file_goes_on_reading_it(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")
    with open(tmp_path / "a.txt") as reader:
        write_text(tmp_path / "a.txt", "new")
        assert reader.read() == "old"  # replaced in one step, not written over
    assert (tmp_path / "a.txt").read_text() == "new"


def test_atomic_path_gives_the_permissions_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "a.txt", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o640


def write_half(target: Path, failure: BaseException) -> None:
    with atomic_path(target) as temporary:
        temporary.write_text("half")
        raise failure


@pytest.mark.parametrize("failure", [RuntimeError("broken"), KeyboardInterrupt(), OSError(errno.EIO, "input/output")])
def test_atomic_path_keeps_the_old_file_if_the_body_fails(tmp_path: Path, failure: BaseException) -> None:
    target = tmp_path / "results.json"
    target.write_text("old")
    with pytest.raises(type(failure)):
        write_half(target, failure)
    assert target.read_text() == "old"
    assert listing(tmp_path) == ["results.json"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES])
def test_a_full_disk_is_an_output_error_and_the_old_file_survives(tmp_path: Path, code: int) -> None:
    target = tmp_path / "results.json"
    target.write_text("old")
    with pytest.raises(OutputError, match=r"results\.json: cannot be written .*; free or choose"):
        write_half(target, OSError(code, os.strerror(code)))
    assert target.read_text() == "old"
    assert listing(tmp_path) == ["results.json"]


def test_a_failing_sync_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    target = tmp_path / "model.pt"
    target.write_text("old")
    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        write_text(target, "new")
    assert target.read_text() == "old"
    assert listing(tmp_path) == ["model.pt"]


@pytest.mark.parametrize("write", [lambda path: write_text(path, "x"), check_writable], ids=["write", "check"])
def test_places_that_cannot_be_written(tmp_path: Path, write) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match=r"file/x: cannot be written \(.+\); choose another place"):
        write(tmp_path / "file" / "x")
    with pytest.raises(OutputError, match="folder: "):
        write(tmp_path / "folder")
    assert listing(tmp_path) == ["file", "folder"]


def test_check_writable_leaves_no_file(tmp_path: Path) -> None:
    (tmp_path / "there.csv").write_text("old")
    check_writable(tmp_path / "there.csv")
    check_writable(tmp_path / "new.csv")
    assert listing(tmp_path) == ["there.csv"]
    assert (tmp_path / "there.csv").read_text() == "old"


# --- run_directory

HOLD = (
    "import sys; from lrpot.files import run_directory\n"
    "with run_directory(sys.argv[1], resume=False, overwrite=False): print('held', flush=True); sys.stdin.read()"
)


def take(path: Path, *, resume: bool = False, overwrite: bool = False) -> None:
    with run_directory(path, resume=resume, overwrite=overwrite):
        pass


def hold(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_new_directory_is_made_and_says_who_holds_it(tmp_path: Path) -> None:
    with run_directory(tmp_path / "a" / "run", resume=False, overwrite=False) as path:
        assert (path / "run.lock").read_text() == f"{os.getpid()}\n"


def test_results_are_refused_without_a_flag(tmp_path: Path) -> None:
    with run_directory(tmp_path, resume=False, overwrite=False):
        (tmp_path / "model.pt").write_text("old")
    for words in ("--resume", "--overwrite", "choose another --out"):
        with pytest.raises(OutputError, match=words):
            take(tmp_path)
    assert (tmp_path / "model.pt").read_text() == "old"


def test_resume_keeps_and_overwrite_removes(tmp_path: Path) -> None:
    with run_directory(tmp_path, resume=False, overwrite=False):
        (tmp_path / "model.pt").write_text("old")
        (tmp_path / "stages").mkdir()
        (tmp_path / "stages" / "1.pt").write_text("old")
    with run_directory(tmp_path, resume=True, overwrite=False):
        assert listing(tmp_path) == ["model.pt", "run.lock", "stages", "stages/1.pt"]
    with run_directory(tmp_path, resume=False, overwrite=True):
        assert listing(tmp_path) == ["run.lock"]


def test_overwrite_follows_no_link_out_of_the_directory(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "data").write_text("x")
    with run_directory(tmp_path / "run", resume=False, overwrite=False) as run:
        (run / "link").symlink_to(precious)
    with run_directory(tmp_path / "run", resume=False, overwrite=True) as run:
        assert listing(run) == ["run.lock"]
    assert listing(precious) == ["data"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_files_that_no_run_made_are_never_removed(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    for _ in range(2):  # the refusal itself must not make it look like the directory of a run
        with pytest.raises(OutputError, match=r"thesis\.tex, \.\.\.\); choose another"):
            take(tmp_path, overwrite=overwrite)
    assert listing(tmp_path) == ["thesis.tex"]


@pytest.mark.parametrize("flags", [{"resume": False, "overwrite": True}, {"resume": True, "overwrite": False}])
def test_a_held_directory_is_refused_and_left_alone(tmp_path: Path, flags: dict[str, bool]) -> None:
    with hold(tmp_path) as other:
        (tmp_path / "model.pt").write_text("x")
        with pytest.raises(OutputError, match=rf"in use by another run \(process {other.pid}\); wait for it"):
            take(tmp_path, **flags)
        assert (tmp_path / "model.pt").read_text() == "x"
        assert other.stdin is not None
        other.stdin.close()


def test_a_file_system_without_locks_is_no_other_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(OutputError, match=r"file system gives no lock \(No locks available\).* choose an --out"):
        take(tmp_path)


def test_the_hold_ends_with_the_process_however_that_ends(tmp_path: Path) -> None:
    with hold(tmp_path) as other:
        other.kill()
    take(tmp_path)  # a lock left by a dead process is no lock


def test_the_hold_ends_with_the_block_also_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), run_directory(tmp_path, resume=False, overwrite=False):
        _ = 1 / 0
    take(tmp_path)


def test_a_file_in_the_place_of_the_directory(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("x")
    with pytest.raises(OutputError, match="choose another --out"):
        take(tmp_path / "run", overwrite=True)
    assert (tmp_path / "run").read_text() == "x"


def test_a_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder"
    with pytest.raises(FileNotFoundError), atomic_folder(target) as temporary:
        (temporary / "a").write_bytes((temporary / "missing").read_bytes())
    assert listing(target.parent) == []
    with atomic_folder(target) as temporary:
        (temporary / "a").write_text("a")
        assert not target.exists()
    assert (target / "a").read_text() == "a"
    assert listing(target.parent) == ["folder", "folder/a"]
    with pytest.raises(OutputError, match="already holds files"), atomic_folder(target):
        pass
    assert (target / "a").read_text() == "a"


def test_a_folder_gets_the_permissions_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with atomic_folder(tmp_path / "folder"):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o750


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "folder"):
        with pytest.raises(OutputError), atomic_folder(path):
            pass
