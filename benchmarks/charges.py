"""Energy + forces with each charge model beside charges by element: 432 and about 10,000 atoms of NaCl; memory.

    python benchmarks/charges.py

Cases take turns on the same atoms, moved a little before every call, as in MD. A second table shows what the solution
of the equilibrated charges costs by itself, with a factorised matrix and by conjugate gradients: where one becomes
faster than the other is `DIRECT` in `lrpot/charges/minimum.py`.
"""

from __future__ import annotations

import resource
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from timing import alternate, machine, median_ratio, write

from lrpot import LRCalculator
from lrpot.build import build_potential
from lrpot.charges import CHARGES, minimum
from lrpot.config import make_config
from lrpot.console import Console
from lrpot.data.readers import to_structure
from lrpot.potential import Potential, geometry_of
from lrpot.structure import collate, edge_vectors
from lrpot.training.baseline import set_start

START = {11: 0.7, 17: -0.7}  # e
# atoms along each primitive vector over two, and how often all cases are run
SIZES = {6: 30, 17: 5}
SOLVED = {(2, 2, 2): 4, (3, 2, 2): 4, (4, 2, 2): 4, (4, 4, 2): 4, (4, 4, 4): 1}  # repeats: structures in a batch


def main() -> None:
    records = [_size(repeat, rounds, dtype) for repeat, rounds in SIZES.items() for dtype in ("float64", "float32")]
    columns = [
        "atoms",
        "dtype",
        *(f"{name} (ms)" for name in CHARGES),
        *(f"{n} / embedding" for n in list(CHARGES)[1:]),
    ]
    rows = [
        [
            str(record["atoms"]),
            record["dtype"],
            *(f"{value:.1f}" for value in record["milliseconds"].values()),
            *(f"{value:.2f}" for value in record["ratios"].values()),
        ]
        for record in records
    ]
    Console().table("energy + forces by charge model", columns, rows)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"largest memory of the process: {peak:.1f} GB")
    solutions = [_solution(repeats, n) for repeats, n in SOLVED.items()]
    rows = [[f"{s['structures']} x {s['atoms']}", f"{s['direct']:.1f}", f"{s['iterations']:.1f}"] for s in solutions]
    Console().table("charges of a batch alone", ["atoms", "factorised (ms)", "iterations (ms)"], rows)
    content = {"machine": machine(), "records": records, "peak_gb": peak, "solutions": solutions}
    print("wrote", write("charges", content))


def _caller(atoms: Atoms, calculator: LRCalculator) -> Callable[[], object]:
    atoms, rng = atoms.copy(), np.random.default_rng(0)
    atoms.calc = calculator

    def call() -> object:
        atoms.positions += 1e-3 * rng.normal(size=atoms.positions.shape)
        return atoms.get_forces()

    return call


def _size(repeat: int, rounds: int, dtype: str) -> dict[str, Any]:
    atoms = bulk("NaCl", "rocksalt", a=5.64).repeat(repeat)
    atoms.rattle(0.1, seed=0)
    cases = {kind: _caller(atoms, LRCalculator(_model(kind), dtype=dtype)) for kind in CHARGES}
    seconds = alternate(cases, rounds=rounds)
    return {
        "atoms": len(atoms),
        "dtype": dtype,
        "milliseconds": {name: 1e3 * statistics.median(values) for name, values in seconds.items()},
        "ratios": {name: median_ratio(seconds[name], seconds["embedding"]) for name in list(CHARGES)[1:]},
    }


def _model(kind: str) -> Potential:
    """Charges near those of START, and different at every site."""
    torch.manual_seed(0)
    model = build_potential(make_config(None, {"model.charges.kind": kind}).model, list(START))
    assert model.long is not None
    set_start(model, START, [to_structure(_rattled((2, 2, 2)), model.cutoff)])
    if model.long.charges.sees_surroundings:
        torch.nn.init.normal_(model.long.charges.network.last.weight, std=0.02)
    return model


def _rattled(repeats: tuple[int, int, int], seed: int = 0) -> Atoms:
    atoms = bulk("NaCl", "rocksalt", a=5.64).repeat(repeats)
    atoms.rattle(0.1, seed=seed)
    return atoms


def _solution(repeats: tuple[int, int, int], n_structures: int) -> dict[str, Any]:
    model = _model("equilibration").set_precision(torch.float64).eval().requires_grad_(False)
    assert model.long is not None
    charges, electrostatics = model.long.charges, model.long.electrostatics
    batch = collate([to_structure(_rattled(repeats, seed), model.cutoff) for seed in range(n_structures)])
    geometry = geometry_of(batch, edge_vectors(batch))
    linear = torch.randn(batch.num_nodes, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    threshold = minimum.DIRECT

    def solve(most: int) -> Callable[[], object]:
        def run() -> object:
            minimum.DIRECT = most
            solver = minimum.Solver(charges.quadratic(batch, electrostatics, geometry))  # type: ignore[operator]
            return solver(linear, batch.total_charge)

        return run

    try:
        seconds = alternate({"direct": solve(1 << 30), "iterations": solve(0)}, rounds=7)
    finally:
        minimum.DIRECT = threshold
    medians = {name: 1e3 * statistics.median(values) for name, values in seconds.items()}
    return {"structures": n_structures, "atoms": batch.num_nodes // n_structures, **medians}


if __name__ == "__main__":
    main()
