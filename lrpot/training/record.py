"""record.json: with what a run was made, by which commands and when; an entry for every time it was started."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from lrpot._version import __version__
from lrpot.errors import Interrupted, OutputError
from lrpot.files import write_text

# In the directory of the run.
RECORD = "record.json"

PACKAGES = ("torch", "numpy", "ase", "lightning", "torch_geometric", "e3nn", "numba", "scikit-learn")

RUNNING = "running"

GIT_PATIENCE = 5.0  # s; a repository on a slow disk must not hold up a fit


@contextmanager
def recorded(
    out: Path, about: Mapping[str, Any], *, device: str, warn: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    """Write down a run, or go on with the record of one that is resumed, and how it ended.

    Args:
        out: directory of the run.
        about: what stays the same: seed, files of the data, the model it started from; kept from the first start.
        device: where it computes.
        warn: told if the run is resumed with other versions.
    Yields:
        what a model file keeps of it: versions, state of the repository, device, threads, and `about`.
    """
    path = out / RECORD
    record = _read(path, warn) or {**about, "sessions": []}
    entry = surroundings(device)
    if record["sessions"]:
        last = record["sessions"][-1]
        if last["outcome"] == RUNNING:  # nobody else holds the directory
            last["outcome"] = "cut off"
        if changed := _changed(last["versions"], entry["versions"]):
            warn(f"{out}: went on so far with other versions ({changed}); weights may differ in their last digits")
    times = {"command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]), "started": _now(), "ended": None}
    record["sessions"].append({**entry, **times, "outcome": RUNNING})

    def end(outcome: str) -> None:
        record["sessions"][-1] |= {"ended": _now(), "outcome": outcome}
        write_text(path, json.dumps(record, indent=1))

    write_text(path, json.dumps(record, indent=1))
    try:
        yield {**entry, **{name: value for name, value in record.items() if name not in ("sessions", "files")}}
    except BaseException as error:
        with suppress(OutputError):  # a full disk has been told already
            end("interrupted" if isinstance(error, (Interrupted, KeyboardInterrupt)) else f"failed: {error}")
        raise
    end("finished")


def surroundings(device: str) -> dict[str, Any]:
    """What a computation runs with: versions, state of the repository in the current directory, device, threads."""
    cuda = torch.device(device).type == "cuda"
    return {
        "versions": versions(),
        "git": git_state(),
        "device": torch.cuda.get_device_name(device) if cuda else device,
        "threads": torch.get_num_threads(),
    }


def versions() -> dict[str, str]:
    """Versions of lrpot, Python and the packages that decide on the numbers."""
    found = {"lrpot": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def git_state() -> dict[str, Any] | None:
    """The commit of the repository in the current directory, and whether tracked files differ from it; None without a
    repository or without git."""
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return None
    status = _git("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if status is None else bool(status)}


def _git(*words: str) -> str | None:
    # a monitor is a program that the repository names, and a lock would disturb who works in it
    command = ["git", "-c", "core.fsmonitor=false", *words]
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=GIT_PATIENCE)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _read(path: Path, warn: Callable[[str], None]) -> dict[str, Any] | None:
    """The record of the run so far; None if an earlier version began it, or if somebody damaged it."""
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        _ = [(session["versions"].items(), session["outcome"]) for session in record["sessions"]]
    except (ValueError, TypeError, KeyError, AttributeError):
        warn(f"{path}: is damaged; a new one is begun")
        return None
    return record


def _changed(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    names = [name for name in now if before.get(name) != now[name]]
    return ", ".join(f"{name} {before.get(name, 'unknown')}, now {now[name]}" for name in names)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
