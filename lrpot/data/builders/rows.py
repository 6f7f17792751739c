"""Rows of an extended XYZ file: computed by several processes, written in order, continued if interrupted.

While a build goes on, its rows stand in `<out>.partial` and its recipe in `<out>.partial.json`. Row i depends
on the recipe and on i alone, so that the finished file is the same to the byte however it came about. Rows that could
not be computed are not in it; `<out>.failed.json` says which and why.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Container, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, BinaryIO

from lrpot.data.processes import quiet_children
from lrpot.errors import ConfigError, DataError, Interrupted, LrpotError, OutputError
from lrpot.files import check_writable, write_text

Progress = Callable[[int, int], None]

# Rows between two fsync: what a power cut can cost.
SYNC_EVERY = 16

# A build whose first rows all fail will not get better.
HOPELESS = 10


@dataclass(frozen=True)
class FailedRow:
    """A row that could not be computed: why, in one line, and what it was to be, in types of JSON."""

    reason: str
    settings: Mapping[str, Any] = field(default_factory=dict)


def check_seed(seed: int) -> None:
    """
    Raises:
        ConfigError: no random numbers can be drawn from it.
    """
    if seed < 0:
        raise ConfigError(f"seed = {seed}: is negative; give 0 or more")


def write_rows(
    out: Path,
    make_row: Callable[[int], str | FailedRow],
    *,
    n: int,
    recipe: Mapping[str, Any],
    jobs: int = 1,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[int, FailedRow]:
    """Write rows 0 ... n-1 to `out`, going on with `<out>.partial` if an earlier call left one.

    The processes are spawned, also for one job: a script must call this below `if __name__ == "__main__":`.

    Args:
        out: ends in .extxyz or .xyz.
        make_row: text of row i in extended XYZ with `row=i` in its comment line, or why there is none; must be
            picklable.
        n: number of rows.
        recipe: all that decides a row, in types of JSON; rows of another recipe are not continued.
        jobs: number of processes.
        overwrite: replace `out` if it is there; it stays until the new file is whole.
        progress: called with (rows done, n) before the first row and after each.
    Returns:
        The rows that failed.

    Raises:
        ConfigError: no rows, no processes, or another ending; nothing has been written.
        OutputError: `out` exists, cannot be written or is being built by another process, `<out>.partial`
            belongs to another recipe, or the disk is full. Rows that are done are kept, here and below.
        DataError: the first rows failed, all of them.
        Interrupted: Ctrl-C.
        LrpotError: a process died.
    """
    _check_request(out, n, jobs)
    if out.exists() and not overwrite:
        raise OutputError(f"{out}: exists already; choose another --out, or add --overwrite to replace it")
    check_writable(out)
    partial = out.with_name(f"{out.name}.partial")
    sidecar = out.with_name(f"{out.name}.partial.json")
    done = 0
    try:
        with _locked(partial) as file:
            failed = _begun(file, partial, sidecar, dict(recipe))
            done, length = _complete_rows(file, n, failed)
            failed = {row: why for row, why in failed.items() if row < done}
            file.truncate(length)
            file.seek(length)
            if progress:
                progress(done, n)
            with closing(_compute(make_row, range(done, n), jobs)) as results:
                for result in results:
                    if isinstance(result, FailedRow):
                        failed[done] = result
                        write_text(sidecar, json.dumps({**recipe, "failed": _as_json(failed)}) + "\n")
                    else:
                        file.write(result.encode())
                        file.flush()
                    done += 1
                    if len(failed) == done == min(n, HOPELESS):
                        raise DataError(f"{out}: all of its first {done} rows failed; row 0: {failed[0].reason}")
                    if done % SYNC_EVERY == 0:
                        os.fsync(file.fileno())
                    if progress:
                        progress(done, n)
            os.fsync(file.fileno())
            _record_failures(out, failed)
            partial.replace(out)
            sidecar.unlink()
    except KeyboardInterrupt as error:
        raise Interrupted(f"{out}: stopped after {done} of {n} rows; run the same command again to go on") from error
    except OSError as error:
        raise OutputError(
            f"{out}: stopped after {done} of {n} rows ({error.strerror}); mend that, "
            "then run the same command again to go on"
        ) from error
    return failed


def _check_request(out: Path, n: int, jobs: int) -> None:
    if n < 1:
        raise ConfigError(f"n = {n}: gives an empty data set; give at least 1 structure")
    if jobs < 1:
        raise ConfigError(f"jobs = {jobs}: nobody would do the work; give at least 1 process")
    if out.suffix not in (".extxyz", ".xyz"):
        raise ConfigError(f"out = {out}: the file is extended XYZ; let its name end in .extxyz or .xyz")


def _as_json(failed: Mapping[int, FailedRow]) -> list[dict[str, Any]]:
    return [{"row": row, **asdict(why)} for row, why in failed.items()]


def _record_failures(out: Path, failed: Mapping[int, FailedRow]) -> None:
    """Leave a record of the rows that failed beside `out`; none if there are none."""
    record = out.with_name(f"{out.name}.failed.json")
    if failed:
        write_text(record, json.dumps(_as_json(failed), indent=1) + "\n")
    else:
        record.unlink(missing_ok=True)


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


def _begun(file: BinaryIO, partial: Path, sidecar: Path, recipe: dict[str, Any]) -> dict[int, FailedRow]:
    """Let an empty file get the recipe; let a begun one go on only with its own. Gives the rows that failed so far."""
    if not file.seek(0, os.SEEK_END):
        write_text(sidecar, json.dumps(recipe) + "\n")
        return {}
    try:
        begun = dict(json.loads(sidecar.read_text(encoding="utf-8")))
        failed = {why["row"]: FailedRow(why["reason"], why["settings"]) for why in begun.pop("failed", ())}
    except (FileNotFoundError, KeyError, ValueError, TypeError) as error:
        raise OutputError(
            f"{partial}: holds rows, but {sidecar.name} does not say of what; delete {partial} to start anew"
        ) from error
    for key in (*recipe, *begun):
        if begun.get(key) != recipe.get(key):
            raise OutputError(
                f"{partial}: was begun with {key} = {begun.get(key)}, not {recipe.get(key)}; "
                f"ask for the same to go on, or delete {partial} to start anew"
            )
    return failed


def _complete_rows(file: BinaryIO, limit: int, failed: Container[int]) -> tuple[int, int]:
    """Number of rows from the start, at most `limit`, that are whole or failed, and their length in bytes.

    Whatever follows the first row that is cut short or damaged is worth nothing: it can be computed again.
    """
    file.seek(0)
    length = 0
    for row in range(limit):
        if row in failed:
            continue
        count, comment = file.readline(), file.readline()
        if not count.strip().isdigit() or f" row={row} " not in f" {comment.decode(errors='replace')}":
            return row, length
        atoms = list(itertools.islice(file, int(count)))
        # a power cut may leave zeros where data had not reached the disk
        if len(atoms) < int(count) or not all(line.endswith(b"\n") and b"\0" not in line for line in atoms):
            return row, length
        length += len(count) + len(comment) + sum(map(len, atoms))
    return limit, length


def _compute(
    make_row: Callable[[int], str | FailedRow], rows: range, jobs: int
) -> Generator[str | FailedRow, None, None]:
    """What `make_row` gives for `rows`, in order. Process j of J makes each J-th and sends it through its own pipe."""
    jobs = min(jobs, len(rows))
    workers: list[tuple[BaseProcess, Connection]] = []
    try:
        with quiet_children():
            for job in range(jobs):
                workers.append(_start(make_row, rows[job::jobs]))  # noqa: PERF401 (each is known once started)
        for row in rows:
            process, results = workers[(row - rows.start) % jobs]
            try:
                result = results.recv()
            except EOFError:
                process.join()
                raise LrpotError(
                    f"row {row}: its process ended with exit code {process.exitcode}; if memory ran out, use "
                    'fewer jobs; a script must call a builder below `if __name__ == "__main__":`'
                ) from None
            yield result
    finally:
        for process, results in workers:
            process.terminate()
            process.join()
            results.close()


def _start(make_row: Callable[[int], str | FailedRow], rows: range) -> tuple[BaseProcess, Connection]:
    context = multiprocessing.get_context("spawn")  # a fork would copy the locks of running threads
    results, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_rows, args=(make_row, rows, sender), daemon=True)
    process.start()
    sender.close()  # so that the end of the process is the end of the pipe
    return process, results


def _send_rows(make_row: Callable[[int], str | FailedRow], rows: range, sender: Connection) -> None:
    for row in rows:
        try:
            sender.send(make_row(row))
        except BrokenPipeError:  # the parent was killed
            return
        except MemoryError:
            sys.exit(f"row {row}: not enough memory")
