"""A three-stage fit to 2,000 crystals, killed with SIGKILL again and again, ends with the weights of one left alone.

    python benchmarks/kills.py [--kills 50]

Every other kill comes at a random moment of a process's life, the others while a checkpoint is being written. The
network is small and the epochs are many, so that all stages are hit; one thread, on which equal bits are promised.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from timing import machine, write

from lrpot import load
from lrpot.console import Console

STRUCTURES, EPOCHS, STAGES = 2000, 14, 3
SETTINGS = [
    f"training.max_epochs={EPOCHS}",
    "training.batch_size=25",
    "model.backbone.features=8",
    "model.backbone.interactions=1",
    "model.backbone.cutoff=4.0",
    "model.kernel.tolerance=1e-5",
    "model.kernel.hidden=8",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    kills = parser.parse_args().kills
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        data = folder / "nacl.extxyz"
        subprocess.run(lrpot("data", "nacl", "--n", STRUCTURES, "--out", data), check=True, stdout=subprocess.DEVNULL)
        whole, killed = folder / "whole", folder / "killed"
        start = time.perf_counter()
        wait(begin(data, whole))
        seconds = time.perf_counter() - start
        print(f"uninterrupted: {seconds:.0f} s", flush=True)
        records = kill_often(data, killed, kills, longest=seconds / (STAGES * EPOCHS))
        wait(resume(killed))
        same = same_weights(whole, killed)
    stages = [
        [
            str(stage),
            str(sum(r["stage"] == stage for r in records)),
            str(sum(r["stage"] == stage and r["unfinished file"] for r in records)),
        ]
        for stage in range(STAGES + 1)
    ]
    columns = ["stage (0: before the first)", "kills", "of these while a checkpoint was written"]
    Console().table(f"{STRUCTURES} structures, {EPOCHS} epochs a stage", columns, stages)
    print("weights after the last resume:", "equal to the last bit" if same else "DIFFERENT")
    content = {"machine": machine(), "structures": STRUCTURES, "epochs": EPOCHS, "seconds uninterrupted": seconds}
    print("wrote", write("kills", content | {"kills": records, "same weights": same}))
    if not same:
        raise SystemExit("a killed run did not end as the uninterrupted one")


def kill_often(data: Path, out: Path, kills: int, longest: float) -> list[dict[str, object]]:
    """Kill a run so many times; where each hit it.

    Args:
        longest: seconds of work, at most, before a kill at a random moment.
    """
    moments = random.Random(0)
    records: list[dict[str, object]] = []
    for number in range(kills):
        process = resume(out) if (out / "config.yaml").exists() else begin(data, out)
        if number % 2:
            until(partial(unfinished, out), process)
        else:
            # a part of the kills falls into the start of the process, reading and checking
            if moments.random() < 0.8:
                until(partial(differs, out, newest(out)), process)
            time.sleep(moments.uniform(0.0, longest))
        if process.poll() is not None:
            raise SystemExit(f"the fit ended (code {process.returncode}) before kill {number + 1}; give it more epochs")
        process.kill()
        process.wait()
        record = {"stage": stage_of(out), "unfinished file": unfinished(out)}
        records.append(record)
        print(number + 1, record, flush=True)
    return records


def until(happened: Callable[[], object], process: subprocess.Popen[bytes]) -> None:
    while not happened() and process.poll() is None:
        time.sleep(0.0002)


def newest(out: Path) -> tuple[str, int] | None:
    """Which checkpoint was written last."""
    found = sorted((file.stat().st_mtime_ns, str(file)) for file in out.glob("checkpoints/*/newest.ckpt"))
    return found[-1][::-1] if found else None


def differs(out: Path, before: tuple[str, int] | None) -> bool:
    return newest(out) != before


def unfinished(out: Path) -> bool:
    """Whether a checkpoint is being written, or was when the process was killed."""
    return any(out.glob("checkpoints/*/.newest-*"))


def stage_of(out: Path) -> int:
    return max((int(folder.name) for folder in out.glob("checkpoints/*")), default=0)


def begin(data: Path, out: Path) -> subprocess.Popen[bytes]:
    return run("fit", data, "--out", out, "--set", *SETTINGS)


def resume(out: Path) -> subprocess.Popen[bytes]:
    return run("fit", "--resume", "--out", out)


def run(*words: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(lrpot(*words), env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)


def wait(process: subprocess.Popen[bytes]) -> None:
    if process.wait():
        raise SystemExit(f"the fit failed with code {process.returncode}")


def lrpot(*words: object) -> list[str]:
    return [sys.executable, "-m", "lrpot.cli.main", *map(str, words)]


def same_weights(a: Path, b: Path) -> bool:
    left, right = (load(out / "model.pt").state_dict() for out in (a, b))
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


if __name__ == "__main__":
    main()
