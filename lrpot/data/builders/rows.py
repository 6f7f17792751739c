"""Rows of an extended XYZ file: computed by several processes, written in order, continued if interrupted.

While a build goes on, its rows stand in `<out>.partial` and its recipe in `<out>.partial.json`. Row i depends
on the recipe and on i alone, so that the finished file is the same to the byte however it came about.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, BinaryIO

from lrpot.data.processes import quiet_children
from lrpot.errors import Interrupted, LrpotError, OutputError
from lrpot.files import check_writable, write_text

Progress = Callable[[int, int], None]

# Rows between two fsync: what a power cut can cost.
SYNC_EVERY = 16


def write_rows(
    out: Path,
    make_row: Callable[[int], str],
    *,
    n: int,
    recipe: Mapping[str, Any],
    jobs: int = 1,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write rows 0 ... n-1 to `out`, going on with `<out>.partial` if an earlier call left one.

    The processes are spawned, also for one job: a script must call this below `if __name__ == "__main__":`.

    Args:
        make_row: text of row i in extended XYZ with `row=i` in its comment line; must be picklable.
        recipe: all that decides a row, in types of JSON; rows of another recipe are not continued.
        jobs: number of processes.
        overwrite: replace `out` if it is there; it stays until the new file is whole.
        progress: called with (rows done, n) before the first row and after each.

    Raises:
        OutputError: `out` exists, cannot be written or is being built by another process, `<out>.partial`
            belongs to another recipe, or the disk is full. Rows that are done are kept, here and below.
        Interrupted: Ctrl-C.
        LrpotError: a process died.
    """
    if out.exists() and not overwrite:
        raise OutputError(f"{out}: exists already; choose another --out, or add --overwrite to replace it")
    check_writable(out)
    partial = out.with_name(f"{out.name}.partial")
    sidecar = out.with_name(f"{out.name}.partial.json")
    done = 0
    try:
        with _locked(partial) as file:
            _check_recipe(file, partial, sidecar, dict(recipe))
            done, length = _complete_rows(file, n)
            file.truncate(length)
            file.seek(length)
            if progress:
                progress(done, n)
            with closing(_compute(make_row, range(done, n), jobs)) as texts:
                for text in texts:
                    file.write(text)
                    file.flush()
                    done += 1
                    if done % SYNC_EVERY == 0:
                        os.fsync(file.fileno())
                    if progress:
                        progress(done, n)
            os.fsync(file.fileno())
            partial.replace(out)
            sidecar.unlink()
    except KeyboardInterrupt as error:
        raise Interrupted(f"{out}: stopped after {done} of {n} rows; run the same command again to go on") from error
    except OSError as error:
        raise OutputError(
            f"{out}: stopped after {done} of {n} rows ({error.strerror}); mend that, "
            "then run the same command again to go on"
        ) from error
    return out


@contextmanager
def _locked(path: Path) -> Iterator[BinaryIO]:
    """Open `path` for reading and writing, made if missing, and hold it against other builds."""
    with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
        in_use = f"{path}: is being written by another process; wait for it or choose another --out"
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(in_use) from error
        # between open and lock the other build may have renamed this very file to its final name
        if not path.exists() or not os.path.samestat(path.stat(), os.fstat(file.fileno())):
            raise OutputError(in_use)
        yield file


def _check_recipe(file: BinaryIO, partial: Path, sidecar: Path, recipe: dict[str, Any]) -> None:
    """Let an empty file get the recipe; let a begun one go on only with its own."""
    if not file.seek(0, os.SEEK_END):
        write_text(sidecar, json.dumps(recipe) + "\n")
        return
    try:
        begun = dict(json.loads(sidecar.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError) as error:
        raise OutputError(
            f"{partial}: holds rows, but {sidecar.name} does not say of what; delete {partial} to start anew"
        ) from error
    for key in (*recipe, *begun):
        if begun.get(key) != recipe.get(key):
            raise OutputError(
                f"{partial}: was begun with {key} = {begun.get(key)}, not {recipe.get(key)}; "
                f"ask for the same to go on, or delete {partial} to start anew"
            )


def _complete_rows(file: BinaryIO, limit: int) -> tuple[int, int]:
    """Number of whole rows from the start, at most `limit`, and their length in bytes.

    Whatever follows the first row that is cut short or damaged is worth nothing: it can be computed again.
    """
    file.seek(0)
    length = 0
    for row in range(limit):
        count, comment = file.readline(), file.readline()
        if not count.strip().isdigit() or f" row={row} " not in f" {comment.decode(errors='replace')}":
            return row, length
        atoms = list(itertools.islice(file, int(count)))
        # a power cut may leave zeros where data had not reached the disk
        if len(atoms) < int(count) or not all(line.endswith(b"\n") and b"\0" not in line for line in atoms):
            return row, length
        length += len(count) + len(comment) + sum(map(len, atoms))
    return limit, length


def _compute(make_row: Callable[[int], str], rows: range, jobs: int) -> Generator[bytes, None, None]:
    """The texts of `rows` in order. Process j of J makes each J-th row and sends it through its own pipe."""
    jobs = min(jobs, len(rows))
    workers: list[tuple[BaseProcess, Connection]] = []
    try:
        with quiet_children():
            for job in range(jobs):
                workers.append(_start(make_row, rows[job::jobs]))  # noqa: PERF401 (each is known once started)
        for row in rows:
            process, results = workers[(row - rows.start) % jobs]
            try:
                text = results.recv_bytes()
            except EOFError:
                process.join()
                raise LrpotError(
                    f"row {row}: its process ended with exit code {process.exitcode}; if memory ran out, use "
                    'fewer jobs; a script must call a builder below `if __name__ == "__main__":`'
                ) from None
            yield text
    finally:
        for process, results in workers:
            process.terminate()
            process.join()
            results.close()


def _start(make_row: Callable[[int], str], rows: range) -> tuple[BaseProcess, Connection]:
    context = multiprocessing.get_context("spawn")  # a fork would copy the locks of running threads
    results, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_rows, args=(make_row, rows, sender), daemon=True)
    process.start()
    sender.close()  # so that the end of the process is the end of the pipe
    return process, results


def _send_rows(make_row: Callable[[int], str], rows: range, sender: Connection) -> None:
    for row in rows:
        try:
            sender.send_bytes(make_row(row).encode())
        except BrokenPipeError:  # the parent was killed
            return
        except MemoryError:
            sys.exit(f"row {row}: not enough memory")
