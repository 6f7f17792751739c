"""What a step costs on one process and on two, what the sums between them cost, and what that makes for large sets.

python benchmarks/scaling.py [--rounds N]    then: python benchmarks/readme_tables.py --write

The default model on 54-atom NaCl, energy and forces, steps of the same 8 structures: one process with one thread, one
with two, two processes with one thread each. They take turns.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import os
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import torch
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from timing import report

from lrpot.build import build_potential
from lrpot.config import make_config
from lrpot.data.cache import load_graphs
from lrpot.data.graph_builder import GraphSettings
from lrpot.data.graphs import Graphs
from lrpot.structure import collate_with_gaps
from lrpot.training import launch
from lrpot.training.baseline import store_known
from lrpot.training.batches import EpochShuffle, train_loader
from lrpot.training.module import StageModule
from lrpot.training.parallel import ALONE, Processes
from lrpot.training.stages import Stage

ROWS, BATCH = 64, 8

# Sets, and numbers of processes that one would fit them with.
CASES = ((10**5, 1), (10**5, 8), (10**6, 8), (10**6, 64), (10**7, 64), (10**7, 256), (10**8, 256), (10**8, 1024))

# Cores that build the graphs, all of one machine.
BUILDERS = 32


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=30, help="Steps of each case.")
    rounds = options.parse_args().rounds
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        rows, cache, steps = Path(folder) / "rows.extxyz", Path(folder) / "cache", Path(folder) / "steps.json"
        write_rows(rows)
        launch.start(functools.partial(measure_steps, rows, cache, steps, rounds), 2)
        result = json.loads(steps.read_text()) | measure_data(rows, Path(folder) / "other")
    result["estimates"] = [estimate(result, structures, processes) for structures, processes in CASES]
    report("scaling", result | {"load": load})


def write_rows(path: Path) -> None:
    """Rattled NaCl of 54 atoms with labels that mean nothing: steps cost the same."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(ROWS):
        atoms = bulk("NaCl", "rocksalt", a=5.64).repeat(3)
        atoms.positions += 0.1 * rng.normal(size=(len(atoms), 3))
        atoms.calc = SinglePointCalculator(atoms, energy=rng.normal(), forces=rng.normal(size=(len(atoms), 3)))
        rows.append(atoms)
    ase.io.write(path, rows, format="extxyz")


def graphs_of(rows: Path, cache: Path) -> Graphs:
    cutoff = make_config().model.backbone.cutoff
    return Graphs([load_graphs(rows, GraphSettings(cutoff, ("energy",)), cache=str(cache), jobs=1)])


def measure_steps(rows: Path, cache: Path, out: Path, rounds: int, processes: Processes) -> None:
    """Done by both processes; the first writes milliseconds to `out`."""
    data = graphs_of(rows, cache)
    one, two = stepper(data, ALONE), stepper(data, processes)
    parameters = list(two.keywords["module"].model.parameters())
    numbers = torch.zeros(8, dtype=torch.float64)
    cases: dict[str, Callable[[], object]] = {
        "1 process, 1 thread": one,
        "1 process, 2 threads": functools.partial(with_threads, 2, one),
        "2 processes, 1 thread": two,
        "sum of gradients": functools.partial(processes.add_gradients, parameters),
        "sum of 8 numbers": functools.partial(processes.add, numbers),
    }
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(rounds + 3):
        for name, run in cases.items():
            processes.wait()
            begin = time.perf_counter()
            if processes.first or not name.startswith("1 "):
                run()
            if turn >= 3:  # the first compile and plan
                seconds[name].append(time.perf_counter() - begin)
    if processes.first:
        medians = {name: 1e3 * statistics.median(values) for name, values in seconds.items()}
        ratio = statistics.median(
            a / b for a, b in zip(seconds["1 process, 1 thread"], seconds["2 processes, 1 thread"], strict=True)
        )
        size = sum(p.numel() * p.element_size() for p in parameters)
        counts = {"parameters": sum(p.numel() for p in parameters), "bytes of gradients": size}
        out.write_text(json.dumps({"batch": BATCH, "milliseconds": medians, "speed-up": ratio, **counts}))


def stepper(data: Graphs, processes: Processes) -> functools.partial[None]:
    """A function that does the next step, reading included."""
    config = make_config(None, {"training.batch_size": BATCH})
    torch.manual_seed(0)
    model = build_potential(config.model, data.elements).set_precision(torch.float32)
    assert model.long is not None
    model.long.charges.set_values({11: 0.5, 17: -0.5})
    store_known(model, data, set())
    both = Stage("both", frozenset({"short", "long"}))
    scales = {"energy": 1.0, "forces": 1.0}
    module = StageModule(model, both, config.training, data, scales, 1e-4, processes)
    loader = train_loader(data, config.training, 0, processes)
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    return functools.partial(step, module=module, batches=batches, optimizer=module.configure_optimizers()["optimizer"])


def step(*, module: StageModule, batches: Any, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    module._loss(next(batches), create_graph=True)[0].backward()
    module.on_before_optimizer_step(optimizer)
    optimizer.step()


def with_threads(n: int, run: Callable[[], object]) -> None:
    torch.set_num_threads(n)
    run()
    torch.set_num_threads(1)


def measure_data(rows: Path, cache: Path) -> dict[str, float]:
    """Seconds and bytes of a structure: built, read from the cache, put into a batch; kept in memory."""
    begin = time.perf_counter()
    data = graphs_of(rows, cache)
    built = (time.perf_counter() - begin) / ROWS
    reading, collating = [], []
    for _ in range(20):
        begin = time.perf_counter()
        found = [data[n] for n in range(ROWS)]
        middle = time.perf_counter()
        for n in range(0, ROWS, BATCH):
            collate_with_gaps(found[n : n + BATCH])
        reading.append((middle - begin) / ROWS)
        collating.append((time.perf_counter() - middle) / ROWS)
    store_known(build_potential(make_config().model, data.elements), data, set())
    known = sum(os.fstat(records._descriptor).st_size for records in data._attached) / ROWS
    length = 10**6
    tracemalloc.start()
    order = list(EpochShuffle(length, 0))
    listed = tracemalloc.get_traced_memory()[0] / len(order)
    tracemalloc.stop()
    return {
        "building (ms)": 1e3 * built,
        "reading (ms)": 1e3 * statistics.median(reading),
        "collating (ms)": 1e3 * statistics.median(collating),
        "graph (bytes)": next(cache.glob("*.graphs")).stat().st_size / ROWS,
        "known (bytes)": known,
        # the order of an epoch and the rows of the split as lists; places, order and bucket as arrays
        "index (bytes)": 2 * listed + 3 * 8,
    }


def estimate(result: dict[str, Any], structures: int, processes: int) -> dict[str, float]:
    """One epoch of so many structures on so many processes, each with `BATCH` structures of every step.

    The sums of a step (of gradients, and five of a few numbers) take log2(processes) times what they take between two
    processes of this machine; all else is done by each process for itself.
    """
    ms = result["milliseconds"]
    steps = structures / (BATCH * processes)
    sums = math.log2(processes) * (ms["sum of gradients"] + 5 * ms["sum of 8 numbers"]) if processes > 1 else 0.0
    compute = ms["1 process, 1 thread"]
    hours = steps * (compute + sums) / 3.6e6
    return {
        "structures": structures,
        "processes": processes,
        "hours per epoch": hours,
        "sums / step": sums / (compute + sums),
        "reading (MB/s)": 1e-6 * structures * (result["graph (bytes)"] + result["known (bytes)"]) / (3600 * hours),
        "disk (GB)": 1e-9 * structures * result["graph (bytes)"],
        "known per process (GB)": 1e-9 * structures * result["known (bytes)"],
        "memory per process (GB)": 1e-9 * structures * result["index (bytes)"],
        "building (h)": structures * result["building (ms)"] / 3.6e6 / BUILDERS,
    }


if __name__ == "__main__":
    main()
