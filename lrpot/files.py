"""Files that are either whole or not there: written beside their place, synced, then renamed."""

from __future__ import annotations

import csv
import errno
import fcntl
import io
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lrpot.errors import OutputError

# Errors of the operating system that another place, or more room, mends.
_OF_THE_PLACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS, errno.EISDIR)


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Give a temporary path in the same folder; on a clean exit it is synced and renamed to `path`.

    Whatever stood at `path` before stays untouched until then, and also if the body raises. The temporary name
    keeps the suffix of `path`, since several writers choose the format by it.

    Raises:
        OutputError: the folder cannot be made or written, or the disk is full.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
        os.close(handle)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({_reason(error)}); choose another place") from error
    temporary = Path(name)
    try:
        with blaming(path):
            yield temporary
            # mkstemp makes private files; a result gets the permissions that the user's umask asks for
            temporary.chmod(0o666 & ~_umask())
            _sync(temporary)
            temporary.replace(path)
            _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Give a temporary folder beside `path`; on a clean exit its files are synced and it is renamed to `path`.

    Raises:
        OutputError: `path` holds something already, or cannot be written, or the disk is full.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise OutputError(f"{path}: already holds files; choose another folder, or remove it yourself")
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({_reason(error)}); choose another place") from error
    try:
        with blaming(path):
            yield temporary
            temporary.chmod(0o777 & ~_umask())
            for item in (*temporary.iterdir(), temporary):
                _sync(item)
            temporary.replace(path)
            _sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def blaming(path: Path) -> Iterator[None]:
    """Tell errors that the place of a file or folder is to blame for.

    Raises:
        OutputError: no room left, or no right to write there.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _OF_THE_PLACE:
            raise
        raise OutputError(f"{path}: cannot be written ({_reason(error)}); free or choose another place") from error


def write_csv(path: str | Path, header: Sequence[str], lines: Iterable[Sequence[str]]) -> None:
    """Write a table whole or not at all."""
    text = io.StringIO()
    csv.writer(text).writerows([header, *lines])
    write_text(path, text.getvalue())


def write_text(path: str | Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def check_writable(path: str | Path) -> None:
    """Find out before any work starts whether `path` can be written.

    Raises:
        OutputError: it cannot.
    """
    path = Path(path)
    if path.is_dir():
        raise OutputError(f"{path}: is a directory, but a file is to be written there; give a file name")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({_reason(error)}); choose another place") from error


@contextmanager
def run_directory(path: str | Path, *, resume: bool, overwrite: bool) -> Iterator[Path]:
    """Hold a directory for one run. A second run, or results already there, are refused.

    The hold is a lock of the operating system on `run.lock`: it ends with the process, however that ends. The file
    also says that the directory was made by a run: what lies in any other directory is never removed.

    Args:
        path: the directory; made if it is not there.
        resume: go on with what is in it.
        overwrite: remove what is in it first.

    Raises:
        OutputError: another process holds it, or its file system has no locks, or it holds results and neither flag is
            set, or it holds files that no run made.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        foreign = [] if resume or (path / "run.lock").exists() else sorted(path.iterdir())
        if foreign:
            raise OutputError(
                f"{path}: already holds files that no run made ({foreign[0].name}, ...); choose another --out, or "
                "empty it yourself"
            )
        lock = open(path / "run.lock", "a+", encoding="utf-8")  # noqa: SIM115 (held for the whole run)
    except OSError as error:
        raise OutputError(f"{path}: cannot be used ({_reason(error)}); choose another --out") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            raise OutputError(
                f"{path}: is in use by another run (process {holder}); wait for it or choose another --out"
            ) from error
        except OSError as error:
            raise OutputError(
                f"{path}: its file system gives no lock ({_reason(error)}), without which another run could write here "
                "too; choose an --out on a local disk, or mount this one with locks"
            ) from error
        content = [item for item in path.iterdir() if item.name != "run.lock"]
        if content and overwrite:
            for item in content:
                shutil.rmtree(item) if item.is_dir() and not item.is_symlink() else item.unlink()
        elif content and not resume:
            raise OutputError(
                f"{path}: already holds files ({content[0].name}, ...); "
                "add --resume to go on with that run, --overwrite to replace it, or choose another --out"
            )
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield path


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _reason(error: OSError) -> str:
    return error.strerror or type(error).__name__
