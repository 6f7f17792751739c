"""Graphs that were built once: kept in a folder under a hash of what decides them, found again by every run."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from lrpot.console import Console
from lrpot.data.graph_builder import GraphSettings, build_graphs
from lrpot.data.graphs import GraphFile
from lrpot.data.records import MAGIC, DamagedRecords
from lrpot.data.sources import check_file, fingerprint, total_size
from lrpot.errors import OutputError
from lrpot.files import atomic_path

# Of what is stored in a graph; to be raised with every change of readers, edges or fields.
VERSION = 4

# Bytes of a file of crystals above which its graphs are worth a place on disk and several processes: building them
# takes longer than starting the processes.
LARGE = 64 * 2**20

ENDING = ".graphs"


@dataclass(frozen=True)
class CacheEntry:
    """A file in the cache: its place and its size in bytes."""

    path: Path
    size: int


def cache_folder(setting: str, path: Path) -> Path | None:
    """Where the graphs of a file are kept; None for nowhere.

    Args:
        setting: "auto", "off" or a folder. path: the file of crystals.
    """
    if setting == "off" or (setting == "auto" and total_size(path) < LARGE):
        return None
    return default_folder() if setting == "auto" else Path(setting)


def default_folder() -> Path:
    """LRPOT_CACHE, or lrpot below XDG_CACHE_HOME or ~/.cache."""
    if own := os.environ.get("LRPOT_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lrpot"


def processes(jobs: int | str, path: Path) -> int:
    """How many processes build the graphs of a file: "auto" is one for a small file, else one for each core."""
    if jobs != "auto":
        return int(jobs)
    return len(os.sched_getaffinity(0)) if total_size(path) >= LARGE else 1


def load_graphs(
    path: Path, settings: GraphSettings, *, cache: str = "off", jobs: int | str = 1, console: Console | None = None
) -> GraphFile:
    """The graphs of a file of crystals, from the cache where they are there.

    Args:
        cache: "auto", "off" or a folder; without one, the graphs go to a file without a name. jobs: a number or "auto".
        console: shows how far it is, and what was wrong with a cached file.
    Raises:
        DataError: the file cannot be read. OutputError: the cache cannot be written.
    """
    console = console or Console(quiet=True)
    check_file(path)
    key = {"version": VERSION, **fingerprint(path), **settings.key()}

    def build(target: Path | None = None) -> GraphFile:
        with _new_file(target) as file:
            with console.progress(f"graphs of {path}", None, "structures") as update:
                build_graphs(path, settings, file, key=key, jobs=processes(jobs, path), progress=update)
            return GraphFile(path, file, str(target or "a temporary file"))

    folder = cache_folder(cache, path)
    if folder is None:
        return build()
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    target = folder / f"{path.name}-{digest[:24]}{ENDING}"
    found = _cached(path, target, key)
    if found is not None:
        return found
    with _building(target, console):
        # another process may have built it meanwhile
        return _cached(path, target, key, console.warn) or build(target)


def entries(folder: Path) -> list[CacheEntry]:
    """The files of graphs in a cache, and what interrupted builds have left."""
    found = []
    for path in sorted(folder.glob(f"*{ENDING}")):  # hidden ones too
        with suppress(OSError), open(path, "rb") as file:
            # a build that was killed at once leaves an empty file
            if file.read(len(MAGIC)) in (MAGIC, b""):
                found.append(CacheEntry(path, path.stat().st_size))
    return found


def clean(folder: Path) -> int:
    """Remove what `entries` lists, but for files that are being written; gives the bytes.

    Runs that use a file keep it until they end.
    """
    in_work = []
    for lock in folder.glob(f"*{ENDING}.lock"):
        with open(lock) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                lock.unlink(missing_ok=True)
            except BlockingIOError:
                in_work.append("." + lock.name.removesuffix(f"{ENDING}.lock"))
    removed = 0
    for entry in entries(folder):
        if not entry.path.name.startswith(tuple(in_work)):
            entry.path.unlink(missing_ok=True)
            removed += entry.size
    return removed


def _cached(
    path: Path, target: Path, key: dict[str, object], report: Callable[[str], None] | None = None
) -> GraphFile | None:
    """The graphs in a file of the cache, if they are there, whole and of this key."""
    try:
        with open(target, "rb") as file:
            found = GraphFile(path, file, str(target))
            if found.key != key:
                raise DamagedRecords("belongs to other data or settings")
            return found
    except (FileNotFoundError, NotADirectoryError):
        return None
    except DamagedRecords as error:
        if report is not None:
            report(f"{target}: {error}; the graphs of {path} are built again")
        return None


@contextmanager
def _new_file(target: Path | None) -> Iterator[IO[bytes]]:
    if target is None:
        with tempfile.TemporaryFile() as file:
            yield file
        return
    with atomic_path(target) as temporary, open(temporary, "w+b") as file:
        yield file


@contextmanager
def _building(target: Path, console: Console) -> Iterator[None]:
    """One process builds a file, others wait. The lock ends with the process, however that ends."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = open(target.with_name(f"{target.name}.lock"), "a")  # noqa: SIM115 (held until the file is there)
    except OSError as error:
        raise OutputError(
            f"{target.parent}: cannot be written ({error.strerror}); set data.cache to another folder, or to off"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            console.line(f"waiting for another process that builds {target}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
