"""A build that is killed, cut short or interrupted ends in the same file as one that was not."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lrpot.data.builders.nacl import build_nacl
from lrpot.errors import LrpotError, OutputError

ROWS = 60
SETTINGS = {"n": ROWS, "supercell": 2, "seed": 3}
MANY = 100 * ROWS  # for builds that must not end before they are stopped
PATIENCE = 120.0  # s, for a process to start or to end on a machine that does other things too
LINES = 2 + 16  # of a row


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return build_nacl(tmp_path_factory.mktemp("whole") / "nacl.extxyz", **SETTINGS).read_bytes()


def start(out: Path, jobs: int) -> subprocess.Popen[str]:
    """The same recipe, MANY rows, in a process at the head of its own group as a terminal would start it."""
    code = (
        "import sys; from pathlib import Path; from lrpot.data.builders.nacl import build_nacl;"
        "from lrpot.errors import Interrupted\n"
        f"try: build_nacl(Path(sys.argv[1]), **{SETTINGS | {'n': MANY}}, jobs={jobs})\n"
        "except Interrupted as error: sys.exit(str(error))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, str(out)], stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def wait_for_rows(partial: Path, rows: int) -> None:
    end = time.monotonic() + PATIENCE
    while not partial.exists() or partial.read_bytes().count(b"\n") < rows * LINES:
        assert time.monotonic() < end, "the build made no rows"
        time.sleep(0.002)


def leave_partial(out: Path, content: bytes) -> Path:
    """What a build with SETTINGS leaves behind when it dies: its recipe, and rows with this content."""
    partial = out.with_name(f"{out.name}.partial")
    with pytest.raises(KeyError):  # dies after the recipe is written, before the first row
        build_nacl(out, **SETTINGS, progress=lambda done, n: {}[done])
    partial.write_bytes(content)
    return partial


@pytest.mark.slow
def test_kill_9_twice_then_finish(tmp_path: Path, uninterrupted: bytes) -> None:
    out = tmp_path / "nacl.extxyz"
    partial = tmp_path / "nacl.extxyz.partial"
    for jobs, rows in ((2, 5), (1, 20)):
        process = start(out, jobs)
        wait_for_rows(partial, rows)
        process.kill()
        # stderr ends only when the workers, which hold it too, have ended: none is left behind
        _, stderr = process.communicate(timeout=PATIENCE)
        assert process.returncode == -signal.SIGKILL
        assert "Traceback" not in stderr
        assert not out.exists()
    seen: list[tuple[int, int]] = []
    build_nacl(out, **SETTINGS, jobs=2, progress=lambda done, n: seen.append((done, n)))
    assert 20 <= seen[0][0] <= ROWS
    assert seen == [(done, ROWS) for done in range(seen[0][0], ROWS + 1)]
    assert out.read_bytes() == uninterrupted
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_ctrl_c_ends_with_one_line_and_keeps_the_rows(tmp_path: Path, uninterrupted: bytes) -> None:
    out = tmp_path / "nacl.extxyz"
    process = start(out, jobs=2)
    wait_for_rows(tmp_path / "nacl.extxyz.partial", 3)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
    _, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert stderr.count("\n") == 1
    assert f"of {MANY} rows; run the same command again to go on" in stderr
    assert build_nacl(out, **SETTINGS).read_bytes() == uninterrupted


def test_ctrl_c_while_the_workers_start(tmp_path: Path) -> None:
    process = start(tmp_path / "nacl.extxyz", jobs=2)
    end = time.monotonic() + PATIENCE
    while not (tmp_path / "nacl.extxyz.partial.json").exists():
        assert time.monotonic() < end
        time.sleep(0.002)
    time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=PATIENCE)
    assert stderr.count("\n") == 1
    assert "stopped after" in stderr


@pytest.mark.parametrize("cut", [1, 700, 2000])
def test_truncated_last_row_is_made_again(tmp_path: Path, uninterrupted: bytes, cut: int) -> None:
    out = tmp_path / "nacl.extxyz"
    leave_partial(out, uninterrupted[:-cut])
    seen: list[int] = []
    build_nacl(out, **SETTINGS, progress=lambda done, n: seen.append(done))
    assert ROWS - 3 <= seen[0] < ROWS
    assert out.read_bytes() == uninterrupted


def test_rows_lost_by_the_disk_are_made_again(tmp_path: Path, uninterrupted: bytes) -> None:
    """After a power cut a file may have its length but zeros in place of its last blocks."""
    out = tmp_path / "nacl.extxyz"
    leave_partial(out, uninterrupted[:-5000] + b"\0" * 5000)
    assert build_nacl(out, **SETTINGS).read_bytes() == uninterrupted


def test_killed_before_the_last_step(tmp_path: Path, uninterrupted: bytes) -> None:
    out = tmp_path / "nacl.extxyz"
    leave_partial(out, uninterrupted)
    seen: list[int] = []
    build_nacl(out, **SETTINGS, progress=lambda done, n: seen.append(done))
    assert seen == [ROWS]
    assert out.read_bytes() == uninterrupted


def test_fewer_rows_than_were_made(tmp_path: Path, uninterrupted: bytes) -> None:
    out = tmp_path / "nacl.extxyz"
    leave_partial(out, uninterrupted)
    build_nacl(out, **SETTINGS | {"n": 10})
    assert out.read_bytes() == b"".join(uninterrupted.splitlines(keepends=True)[: 10 * LINES])


@pytest.mark.parametrize(
    ("change", "named"),
    [({"rattle": 0.2}, "rattle = 0.1"), ({"seed": 4}, "seed = 3"), ({"defect": "vacancy"}, "defect = none")],
)
def test_rows_of_another_recipe_are_not_continued(
    tmp_path: Path, uninterrupted: bytes, change: dict[str, object], named: str
) -> None:
    out = tmp_path / "nacl.extxyz"
    partial = leave_partial(out, uninterrupted)
    with pytest.raises(OutputError, match=named) as error:
        build_nacl(out, **SETTINGS | change)
    assert f"delete {partial}" in str(error.value)
    assert partial.read_bytes() == uninterrupted


@pytest.mark.parametrize("sidecar", [None, "", "[1]", '{"seed": 3}'])
def test_rows_of_unknown_origin_are_not_continued(tmp_path: Path, uninterrupted: bytes, sidecar: str | None) -> None:
    out = tmp_path / "nacl.extxyz"
    partial = leave_partial(out, uninterrupted)
    path = tmp_path / "nacl.extxyz.partial.json"
    assert json.loads(path.read_text())["supercell"] == 2
    path.unlink()
    if sidecar is not None:
        path.write_text(sidecar)
    with pytest.raises(OutputError, match=r"delete .+ to start anew"):
        build_nacl(out, **SETTINGS)
    assert partial.read_bytes() == uninterrupted


def test_a_full_disk_is_reported_and_its_rows_are_kept(tmp_path: Path, uninterrupted: bytes) -> None:
    out = tmp_path / "nacl.extxyz"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    room = len(uninterrupted) // 2
    whole = uninterrupted[:room].count(b"\n") // LINES
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with pytest.raises(OutputError, match=rf"stopped after {whole} of {ROWS} rows") as error:
            build_nacl(out, **SETTINGS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(error.value)
    assert build_nacl(out, **SETTINGS).read_bytes() == uninterrupted


def test_two_builds_of_one_file_do_not_mix(tmp_path: Path) -> None:
    out = tmp_path / "nacl.extxyz"

    def second(done: int, n: int) -> None:
        build_nacl(out, **SETTINGS)

    with pytest.raises(OutputError, match="being written by another process"):
        build_nacl(out, **SETTINGS, progress=second)


def test_a_killed_worker_is_reported(tmp_path: Path) -> None:
    def kill(done: int, n: int) -> None:
        if done == 3:
            for child in multiprocessing.active_children():
                child.kill()
                child.join()

    with pytest.raises(LrpotError, match="exit code -9") as error:
        build_nacl(tmp_path / "nacl.extxyz", **SETTINGS | {"n": MANY}, jobs=2, progress=kill)
    assert "\n" not in str(error.value)
