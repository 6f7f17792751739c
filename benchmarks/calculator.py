"""MD steps of NaCl, 54 to 27,648 atoms: LRCalculator with and without long range, beside SchNetPack's ASE calculator.

    python benchmarks/calculator.py [--name calculator_MACHINE]

All have the same PaiNN, weight for weight, in float32, and ASE's velocity Verlet; each makes its own neighbour list at
every step (SchNetPack by matscipy, the fastest that it offers), so nothing is gained by a skin. SchNetPack needs 13 GB
for the largest cell.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.calculator import Calculator
from ase.md.verlet import VelocityVerlet
from readme_tables import md_steps
from schnetpack_peer import calculator, make_network, rattled, same_in_lrpot
from timing import alternate, machine, median_ratio, write

from lrpot import LRCalculator

OURS, ALONE, PEER = "network + long range", "network alone", "SchNetPack"
# repeats of the primitive cell: steps of MD in one measurement, measurements
SIZES = {3: (5, 10), 6: (5, 10), 12: (1, 3), 24: (1, 2)}
NETWORKS = {3: (64,), 6: (64, 128), 12: (64, 128), 24: (64,)}  # features; 64 is the default of lrpot
INTERACTIONS = 3
NS_PER_DAY = 86.4  # of a step of 1 fs that takes 1 ms


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--name", default="calculator", help="of the JSON, for another machine than that of the README")
    name = parser.parse_args().name
    records = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for repeats, (steps, rounds) in SIZES.items():
            records += [measure(repeats, features, threads, steps, rounds) for features in NETWORKS[repeats]]
    result = {"machine": machine(), "records": records}
    print(md_steps(result))
    print("wrote", write(name, result))


def measure(repeats: int, features: int, threads: int, steps: int, rounds: int) -> dict[str, Any]:
    """Medians of every case, which take turns."""
    atoms = rattled(bulk("NaCl", "rocksalt", a=5.64).repeat(repeats))
    peer = make_network(features, INTERACTIONS)
    cases = {
        OURS: md(atoms, LRCalculator(same_in_lrpot(peer, "coulomb"), dtype="float32"), steps),
        ALONE: md(atoms, LRCalculator(same_in_lrpot(peer), dtype="float32"), steps),
        PEER: md(atoms, calculator(peer.requires_grad_(False)), steps),
    }
    seconds = alternate(cases, rounds, warmup=1)
    step = statistics.median(seconds[OURS]) / steps
    record = {
        "atoms": len(atoms),
        "features": features,
        "interactions": INTERACTIONS,
        "threads": threads,
        "milliseconds": {name: 1e3 * statistics.median(found) / steps for name, found in seconds.items()},
        "ns/day at 1 fs": NS_PER_DAY / (1e3 * step),
        "long range / step": 1.0 - median_ratio(seconds[ALONE], seconds[OURS]),
        "SchNetPack / network + long range": median_ratio(seconds[PEER], seconds[OURS]),
    }
    print(md_steps({"records": [record]}).splitlines()[-1], flush=True)
    return record


def md(atoms: Atoms, calculator: Calculator, steps: int) -> Callable[[], object]:
    atoms = atoms.copy()
    atoms.calc = calculator
    atoms.set_momenta(np.random.default_rng(0).normal(size=(len(atoms), 3)))
    dynamics = VelocityVerlet(atoms, 0.1 * units.fs)  # the weights are random: short steps
    return lambda: dynamics.run(steps)


if __name__ == "__main__":
    main()
