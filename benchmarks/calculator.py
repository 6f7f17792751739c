"""MD steps of 432 atoms of NaCl: LRCalculator with and without long range beside SchNetPack's ASE calculator.

    python benchmarks/calculator.py

All have the same PaiNN, weight for weight, in float32, and ASE's velocity Verlet; each makes its own neighbour list at
every step (SchNetPack by matscipy, the fastest that it offers). Milliseconds are of one step.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

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


def main() -> None:
    atoms = rattled(bulk("NaCl", "rocksalt", a=5.64).repeat(6))
    records = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
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
    print("wrote", write("calculator", {"machine": machine(), "atoms": len(atoms), "records": records}))


def md(atoms: Atoms, calculator: Calculator) -> Callable[[], object]:
    atoms = atoms.copy()
    atoms.calc = calculator
    atoms.set_momenta(np.random.default_rng(0).normal(size=(len(atoms), 3)))
    dynamics = VelocityVerlet(atoms, 0.1 * units.fs)  # the weights are random: short steps
    return lambda: dynamics.run(STEPS)


if __name__ == "__main__":
    main()
