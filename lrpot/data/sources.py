"""The files that a setting names: one, several, or a pattern."""

from __future__ import annotations

import glob
import hashlib
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

from lrpot.data.tables import listed_files
from lrpot.errors import DataError

# Files that a message names; of more it says how many.
_NAMED = 3

# Bytes at either end of a file that are looked at to tell whether it is still the same.
_ENDS = 2**16


def expand(source: str | Sequence[str]) -> list[Path]:
    """Files in the order in which their rows are counted: as listed, those of a pattern by name.

    Args:
        source: a path, a pattern such as "shards/*.h5" (** for folders below), or several of both.
    Raises:
        DataError: a pattern that matches nothing, or a file that is named twice.
    """
    files: list[Path] = []
    for entry in [source] if isinstance(source, str) else source:
        # a name may hold the signs of a pattern
        if not glob.has_magic(entry) or Path(entry).exists():
            files.append(Path(entry))
            continue
        matching = sorted(glob.glob(entry, recursive=True))
        if not matching:
            raise DataError(f"{entry}: matches no file; check the pattern")
        files += [Path(name) for name in matching]
    twice = [file for n, file in enumerate(files) if file.resolve() in {other.resolve() for other in files[:n]}]
    if twice:
        raise DataError(f"{twice[0]}: is named twice; its rows would count double: name it once")
    return files


def named(source: str | Path | Sequence[str | Path] | None) -> str:
    """Files, in a message."""
    files = [str(file) for file in ([source] if isinstance(source, (str, Path)) else source or ())]
    more = f" and {len(files) - _NAMED} more" if len(files) > _NAMED else ""
    return ", ".join(files[:_NAMED]) + more


def check_file(path: Path) -> None:
    """Refuse what cannot be a file of crystals.

    Raises:
        DataError: missing, a directory, or empty.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file; check the path")
    if path.is_dir():
        raise DataError(f"{path}: is a directory; name the file in it")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: is empty; nothing to read")


def check_lines(path: Path, plain: Path) -> None:
    """Refuse extended XYZ with a blank line between rows, where ASE stops reading and says nothing, or with a number of
    atoms that the file is too short for, which ASE goes on counting.

    Args:
        path: of the file, for messages. plain: of the same without compression.
    Raises:
        DataError: names the row.
    """
    with open(plain, encoding="utf-8", errors="replace") as file:  # ends of lines are then what they are for ASE
        for number in itertools.count():
            line = file.readline()
            if not line.strip():
                if any(rest.strip() for rest in file):
                    raise DataError(
                        f"{path}: row {number} begins with a blank line in place of its number of atoms, and no row "
                        "from there on would be read; remove that line"
                    )
                return
            try:
                expected = int(line) + 1
                found = sum(1 for _ in itertools.islice(file, min(expected, sys.maxsize)))
            except ValueError:  # no such number, which ASE tells
                return
            if found < expected:
                raise DataError(
                    f"{path}: row {number} cannot be read (it says that it has {expected - 1:g} atoms, and "
                    f"{expected - found:g} lines are missing); correct that row, or get the file anew"
                )


def fingerprint(path: Path) -> dict[str, str | int]:
    """What changes when a file does, without reading all of it: size, time of the last change, hash of both ends. Of a
    table of files also those of the files."""
    size = path.stat().st_size
    ends = hashlib.sha256()
    with open(path, "rb") as content:
        ends.update(content.read(_ENDS))
        content.seek(max(size - _ENDS, 0))
        ends.update(content.read(_ENDS))
    for file in listed_files(path):
        about = file.stat()
        ends.update(f"{file.name} {about.st_size} {about.st_mtime_ns}\n".encode())
    return {"size": size, "changed": path.stat().st_mtime_ns, "ends": ends.hexdigest()}


def content_hash(path: Path) -> str:
    """SHA-256 of a file; of a table of files also of what they hold."""
    with open(path, "rb") as content:
        digest = hashlib.file_digest(content, "sha256")
    for file in listed_files(path):
        with open(file, "rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def total_size(path: Path) -> int:
    """Bytes of a file, and of the files that it lists."""
    return path.stat().st_size + sum(file.stat().st_size for file in listed_files(path))
