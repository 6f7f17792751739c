"""Spoiled files of every kind that lrpot reads: each is refused in one line, or read and then right.

    python benchmarks/fuzz.py [--inputs 20000] [--seed 0] [--kind "extended XYZ"] [--keep FOLDER]

An input is a valid file with one to three changes, of its structure (a field dropped, repeated, swapped, of another
type, extreme) or of its bytes; kind, seed and number decide on it. Anything but an `LrpotError` of one line or a right
result is a failure: another exception, a warning with a result, more than some seconds or gigabytes, a dead process.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import resource
import signal
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from fuzz_kinds import Kind, WrongSuccess, kinds
from fuzz_mutations import spoil_bytes
from timing import machine, write

from lrpot.console import Console
from lrpot.errors import LrpotError

MOST_CHANGES = 3
PATIENCE = 10.0  # s, of one input; a healthy one takes some hundredths
DEAF = 30.0  # s, after which a process that does not hear its alarm is ended
SPARE = 2 * 2**30  # bytes that reading a file of some kilobytes may take
LONGEST_LINE = 700  # letters
REFUSED, READ = "refused", "read"


class TooLong(BaseException):
    """Reading an input took longer than it may; no handler of Exception catches this."""


@dataclass(frozen=True)
class Result:
    """What became of an input. `outcome` is `REFUSED`, `READ`, or what went wrong, with `detail`."""

    kind: str
    number: int
    outcome: str
    detail: str = ""
    seconds: float = 0.0


def spoiled(kind: Kind, number: int, seed: int) -> tuple[bytes, bytes]:
    """The input of this number, and the sound file that it was made from."""
    rng = random.Random(f"{seed} {kind.name} {number}")
    sound = content = rng.choice(kind.valid)
    for _ in range(rng.randint(1, MOST_CHANGES)):
        content = (kind.spoil if content and rng.random() < 0.6 else spoil_bytes)(content, rng)
    return content, sound


def read_one(kind: Kind, number: int, seed: int, folder: Path) -> Result:
    """Make an input, read it, and say what became of it."""
    content, sound = spoiled(kind, number, seed)
    path = folder / kind.file
    path.write_bytes(content)
    start = time.perf_counter()

    def result(outcome: str, detail: str = "") -> Result:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        return Result(kind.name, number, outcome, detail, time.perf_counter() - start)

    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            kind.judge(path, sound)
    except LrpotError as error:
        text = str(error)
        if not text or len(text.splitlines()) > 1 or len(text) > LONGEST_LINE:
            return result("no message of one line", repr(text)[:LONGEST_LINE])
        return result(REFUSED)
    except WrongSuccess as error:
        return result("wrong success", str(error))
    except TooLong:
        return result("hang", "".join(traceback.format_exc(limit=-6)))
    except MemoryError:
        return result("memory", traceback.format_exc(limit=-6))
    except Exception as error:
        return result(type(error).__name__, traceback.format_exc(limit=-6))
    return result("warning", str(told[0].message)) if told else result(READ)


def work(tasks: Sequence[tuple[Kind, int]], seed: int, answers: Connection) -> None:
    """Read inputs one after the other, in a process whose memory is bounded; tell each result."""

    def alarm(*_: object) -> None:
        raise TooLong

    signal.signal(signal.SIGALRM, alarm)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + SPARE, used + SPARE))
    for kind, number in tasks:
        # files that a reading leaves must not reach the next
        with tempfile.TemporaryDirectory() as folder:
            for name, content in kind.beside:
                (Path(folder) / name).write_bytes(content)
            answers.send(read_one(kind, number, seed, Path(folder)))


def run_all(tasks: Sequence[tuple[Kind, int]], seed: int) -> Iterator[Result]:
    """The result of every input; a process that dies or hears nothing costs its input and is replaced."""
    context = multiprocessing.get_context("fork")
    done = 0
    while done < len(tasks):
        mine, theirs = context.Pipe(duplex=False)
        process = context.Process(target=work, args=(tasks[done:], seed, theirs))
        process.start()
        theirs.close()
        try:
            while done < len(tasks):
                if not mine.poll(DEAF):
                    raise TimeoutError
                yield mine.recv()
                done += 1
        except (EOFError, TimeoutError) as error:
            kind, number = tasks[done]
            yield Result(kind.name, number, "crash" if isinstance(error, EOFError) else "hang")
            done += 1
        finally:
            if done < len(tasks):
                process.kill()
            process.join()


def tasks_of(found: Sequence[Kind], inputs: int) -> list[tuple[Kind, int]]:
    """At least so many inputs, of every kind as many."""
    each = -(-inputs // len(found))
    return [(kind, number) for kind in found for number in range(each)]


def table(results: Sequence[Result]) -> list[dict[str, Any]]:
    """One record by kind: how many were refused and read, and how many went wrong."""
    records = []
    for kind in dict.fromkeys(result.kind for result in results):
        own = [result for result in results if result.kind == kind]
        outcomes = Counter(result.outcome for result in own)
        records.append(
            {
                "kind": kind,
                "inputs": len(own),
                "refused": outcomes[REFUSED],
                "read": outcomes[READ],
                "failures": {name: n for name, n in outcomes.items() if name not in (REFUSED, READ)},
                "longest (s)": round(max(result.seconds for result in own), 3),
            }
        )
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", help="only this one; nothing is written to benchmarks/results")
    parser.add_argument("--keep", type=Path, help="a folder for the inputs that fail")
    options = parser.parse_args()
    found = [kind for kind in kinds() if options.kind in (None, kind.name)]
    results, start = [], time.perf_counter()
    for result in run_all(tasks_of(found, options.inputs), options.seed):
        results.append(result)
        if result.outcome in (REFUSED, READ):
            continue
        print(f"{result.kind} {result.number}: {result.outcome}\n{result.detail}", flush=True)
        if options.keep:
            kind = next(kind for kind in found if kind.name == result.kind)
            options.keep.mkdir(parents=True, exist_ok=True)
            content, _ = spoiled(kind, result.number, options.seed)
            (options.keep / f"{result.number}-{kind.file}").write_bytes(content)
    records = table(results)
    columns = ["kind", "inputs", "refused", "read, and right", "failures"]
    rows = [
        [*(str(record[key]) for key in ("kind", "inputs", "refused", "read")), str(record["failures"] or 0)]
        for record in records
    ]
    Console().table(f"{len(results)} spoiled inputs, {time.perf_counter() - start:.0f} s", columns, rows)
    if options.kind is None:
        print("wrote", write("fuzz", {"machine": machine(), "seed": options.seed, "records": records}))
    if any(record["failures"] for record in records):
        raise SystemExit("some inputs failed")


if __name__ == "__main__":
    main()
