"""MD steps of NaCl: LRCalculator with and without long range, at 432 atoms beside SchNetPack's ASE calculator.

    python benchmarks/calculator.py

All have the same PaiNN, weight for weight, in float32, and ASE's velocity Verlet; each makes its own neighbour list at
every step (SchNetPack by matscipy, the fastest that it offers). Milliseconds are of one step.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.calculator import Calculator
from ase.md.verlet import VelocityVerlet
from schnetpack_peer import calculator, make_network, rattled, same_in_lrpot
from timing import alternate, machine, median_ratio, write

from lrpot import LRCalculator
from lrpot.console import Console

SIZES = {"F=64, 3 interactions (default)": (64, 3), "F=128, 3 interactions": (128, 3)}
STEPS = 5  # of MD in one measurement
LARGE = (6, 8, 12)  # repeats of the cubic cell: 1,728, 4,096 and 13,824 atoms


def main() -> None:
    atoms = rattled(bulk("NaCl", "rocksalt", a=5.64).repeat(6))
    records = []
    shares = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        shares += [share_of_long_range(n, threads) for n in LARGE]
        for size, (features, interactions) in SIZES.items():
            network = make_network(features, interactions)
            cases = {
                "network + long range": md(atoms, LRCalculator(same_in_lrpot(network, "coulomb"), dtype="float32")),
                "network alone": md(atoms, LRCalculator(same_in_lrpot(network), dtype="float32")),
                "SchNetPack": md(atoms, calculator(network.requires_grad_(False))),
            }
            seconds = alternate(cases, rounds=10, warmup=1)
            records.append(
                {
                    "network": size,
                    "threads": threads,
                    "milliseconds": {name: 1e3 * statistics.median(v) / STEPS for name, v in seconds.items()},
                    "SchNetPack / network + long range": median_ratio(
                        seconds["SchNetPack"], seconds["network + long range"]
                    ),
                }
            )
    rows = [
        [
            record["network"],
            str(record["threads"]),
            *(f"{value:.1f}" for value in record["milliseconds"].values()),
            f"{record['SchNetPack / network + long range']:.1f}",
        ]
        for record in records
    ]
    columns = ["432 atoms, one MD step", "threads", "network + long range (ms)", "network alone (ms)"]
    Console().table("LRCalculator", [*columns, "SchNetPack's calculator (ms)", "ratio"], rows)
    rows = [
        [
            f"{share['atoms']:,}",
            str(share["threads"]),
            *(f"{value:.0f}" for value in share["milliseconds"].values()),
            f"{100.0 * share['long range / step']:.0f} %",
        ]
        for share in shares
    ]
    columns = ["atoms", "threads", "network + long range (ms)", "network alone (ms)", "share of long range"]
    Console().table("A step of larger cells, F=64", columns, rows)
    result = {"machine": machine(), "atoms": len(atoms), "records": records, "large": shares}
    print("wrote", write("calculator", result))


def share_of_long_range(repeats: int, threads: int) -> dict[str, Any]:
    atoms = rattled(bulk("NaCl", "rocksalt", a=5.64, cubic=True).repeat(repeats))
    network = make_network(64, 3)
    cases = {
        "network + long range": md(atoms, LRCalculator(same_in_lrpot(network, "coulomb"), dtype="float32"), steps=1),
        "network alone": md(atoms, LRCalculator(same_in_lrpot(network), dtype="float32"), steps=1),
    }
    seconds = alternate(cases, rounds=10, warmup=1)
    return {
        "atoms": len(atoms),
        "threads": threads,
        "milliseconds": {name: 1e3 * statistics.median(v) for name, v in seconds.items()},
        "long range / step": 1.0 - 1.0 / median_ratio(*seconds.values()),
    }


def md(atoms: Atoms, calculator: Calculator, steps: int = STEPS) -> Callable[[], object]:
    atoms = atoms.copy()
    atoms.calc = calculator
    atoms.set_momenta(np.random.default_rng(0).normal(size=(len(atoms), 3)))
    dynamics = VelocityVerlet(atoms, 0.1 * units.fs)  # the weights are random: short steps
    return lambda: dynamics.run(steps)


if __name__ == "__main__":
    main()
