"""PaiNN beside SchNetPack's with the same weights: energy + forces, a training step, memory of a large crystal.

    python benchmarks/painn.py

Rock-salt NaCl, rattled, cutoff 5 A, three interactions, float32, the same edges for both, neighbour lists not counted,
one thread and two. Before anything is timed, the forces of both must agree. The floor is the arithmetic of the matrix
products as PaiNN is written down (filters from Gaussians, twice for forces), at the speed of a large matrix product.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from ase.build import bulk
from schnetpack_peer import CUTOFF, RADIAL_BASIS, energy_and_forces, inputs_of, make_network, rattled, same_in_lrpot
from timing import alternate, machine, median_ratio, write
from torch import nn

from lrpot.console import Console
from lrpot.data.readers import to_structure
from lrpot.potential import Potential
from lrpot.structure import Structure, collate

WIDTHS = (64, 128)
REPEATS = (3, 6, 12)  # of the primitive cell: 54, 432, 3456 atoms
AGREEMENT = 1e-4  # relative, of forces; SchNetPack subtracts positions in float32
TRAINED = 16  # cells of 54 atoms in a training step
LARGE = 22  # repeats: 21,296 atoms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memory", action="store_true", help="only print the peak memory of the large crystal")
    if parser.parse_args().memory:
        print(peak_memory())
        return
    records = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for features in WIDTHS:
            for repeat in REPEATS:
                records.append(energy_case(features, repeat) | {"threads": threads})
                print(records[-1], flush=True)
            records.append(training_case(features) | {"threads": threads})
            print(records[-1], flush=True)
    # in a process of its own, whose peak is its own
    child = subprocess.run([sys.executable, __file__, "--memory"], text=True, capture_output=True, check=True)
    gigabytes = float(child.stdout.split()[-1])
    rows = [
        [
            record["case"],
            str(record["features"]),
            str(record["threads"]),
            f"{record['us/atom']['lrpot']:.0f}",
            f"{record['us/atom']['SchNetPack']:.0f}",
            f"{record['SchNetPack / lrpot']:.1f}",
            f"{record['floor (us/atom)']:.0f}" if "floor (us/atom)" in record else "",
        ]
        for record in records
    ]
    columns = ["case", "F", "threads", "lrpot (us/atom)", "SchNetPack (us/atom)", "ratio", "floor (us/atom)"]
    Console().table("PaiNN, float32", columns, rows)
    print(f"{2 * LARGE**3} atoms, F=64, energy + forces: {gigabytes:.2f} GB at most")
    content = {"machine": machine(), "records": records, "atoms": 2 * LARGE**3, "peak (GB)": gigabytes}
    print("wrote", write("painn", content))


def energy_case(features: int, repeat: int) -> dict[str, object]:
    theirs = make_network(features).requires_grad_(False)
    ours = same_in_lrpot(theirs).set_precision(torch.float32).requires_grad_(False)
    structure = crystal(repeat)
    cases: dict[str, Callable[[], dict[str, torch.Tensor]]] = {
        "lrpot": lambda: ours(structure),
        "SchNetPack": energy_and_forces(theirs, structure),
    }
    check_agreement(*(run()["forces"] for run in cases.values()))
    n = structure.num_nodes
    rounds = max(8, min(30, 20_000 // n))
    record = summary(f"{n} atoms, energy + forces", features, n, alternate(cases, rounds, warmup=2))
    edges = structure.edge_index.shape[1] / n
    # of each step and atom: filters of its edges, and the layers of its two blocks; forces double it
    multiplications = 3 * (edges * RADIAL_BASIS * 3 * features + 15 * features**2)
    return record | {"edges/atom": edges, "floor (us/atom)": 1e6 * 2 * multiplications * seconds_per_multiplication()}


def seconds_per_multiplication(n: int = 1024) -> float:
    """Of a multiplication and addition in a matrix product of float32."""
    a, b = torch.randn(2, n, n)
    return min(alternate({"product": lambda: a @ b}, 10)["product"]) / n**3


def training_case(features: int) -> dict[str, object]:
    theirs = make_network(features)
    ours = same_in_lrpot(theirs).set_precision(torch.float32)
    batch = collate([crystal(3, seed) for seed in range(TRAINED)])
    inputs = inputs_of(batch)

    def step(network: nn.Module, compute: Callable[[], dict[str, torch.Tensor]]) -> None:
        network.zero_grad()
        output = compute()
        (output["energy"].square().mean() + output["forces"].square().mean()).backward()

    theirs.train()
    seconds = alternate(
        {
            "lrpot": lambda: step(ours, lambda: ours(batch, create_graph=True)),
            "SchNetPack": lambda: step(theirs, lambda: theirs(dict(inputs))),
        },
        8,
        warmup=2,
    )
    return summary(f"{TRAINED} x 54 atoms, training step", features, batch.num_nodes, seconds)


def summary(case: str, features: int, n_atoms: int, seconds: dict[str, list[float]]) -> dict[str, object]:
    return {
        "case": case,
        "features": features,
        "us/atom": {name: 1e6 * statistics.median(values) / n_atoms for name, values in seconds.items()},
        "SchNetPack / lrpot": median_ratio(seconds["SchNetPack"], seconds["lrpot"]),
    }


def check_agreement(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    if float((ours - theirs).abs().max()) > AGREEMENT * float(theirs.abs().max()):
        raise SystemExit("the two networks disagree; the comparison would mean nothing")


def crystal(repeat: int, seed: int = 0) -> Structure:
    return to_structure(rattled(bulk("NaCl", "rocksalt", a=5.64).repeat(repeat), seed), CUTOFF)


def peak_memory() -> float:
    """GB of this process after energy + forces of the large crystal."""
    model: Potential = same_in_lrpot(make_network(WIDTHS[0])).set_precision(torch.float32).requires_grad_(False)
    model(crystal(LARGE))
    # not getrusage, whose peak begins with that of the process that started this one
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 1e6


if __name__ == "__main__":
    main()
