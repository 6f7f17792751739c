"""One energy + forces call of 432 atoms of NaCl: network + long range beside the network alone and SchNetPack's PaiNN.

    python benchmarks/calculator.py

All cases get the same atoms, moved a little before every call, as in MD. LRCalculator includes the neighbour list. The
SchNetPack peer is its PaiNN with the same sizes and the same edges, called from Python without its own neighbour list.
"""

from __future__ import annotations

import statistics
import typing
from collections.abc import Callable

import numpy as np
import torch
import torch.utils.data.dataloader
from ase import Atoms
from ase.build import bulk
from timing import alternate, machine, median_ratio, write

from lrpot import LRCalculator
from lrpot.build import build_potential
from lrpot.config import make_config
from lrpot.console import Console
from lrpot.data.readers import to_structure
from lrpot.potential import Potential
from lrpot.structure import edge_vectors

SIZES = {"F=64, 3 interactions (default)": (64, 3), "F=32, 2 interactions (make demo)": (32, 2)}


def main() -> None:
    atoms = bulk("NaCl", "rocksalt", a=5.64).repeat(6)
    atoms.rattle(0.1, seed=0)
    records = []
    for size, (features, interactions) in SIZES.items():
        for dtype in ("float32", "float64"):
            cases = {
                "long range": _caller(atoms, LRCalculator(_model("coulomb", features, interactions), dtype=dtype)),
                "network alone": _caller(atoms, LRCalculator(_model("none", features, interactions), dtype=dtype)),
                "SchNetPack": _schnetpack(atoms, features, interactions, getattr(torch, dtype)),
            }
            seconds = alternate(cases)
            records.append(
                {
                    "network": size,
                    "dtype": dtype,
                    "milliseconds": {name: 1e3 * statistics.median(values) for name, values in seconds.items()},
                    "long range / network alone": median_ratio(seconds["long range"], seconds["network alone"]),
                    "long range / SchNetPack": median_ratio(seconds["long range"], seconds["SchNetPack"]),
                }
            )
    rows = [
        [
            f"{record['network']}, {record['dtype']}",
            *(f"{value:.1f}" for value in record["milliseconds"].values()),
            f"{record['long range / network alone']:.3f}",
            f"{record['long range / SchNetPack']:.3f}",
        ]
        for record in records
    ]
    columns = ["432 atoms, E + F", "network + long range (ms)", "network alone (ms)", "SchNetPack PaiNN (ms)"]
    Console().table("LRCalculator", [*columns, "/ network alone", "/ SchNetPack"], rows)
    print("wrote", write("calculator", {"machine": machine(), "atoms": len(atoms), "records": records}))


def _model(kernel: str, features: int, interactions: int) -> Potential:
    torch.manual_seed(0)
    settings = {
        "model.kernel.form": kernel,
        "model.backbone.features": features,
        "model.backbone.interactions": interactions,
    }
    model = build_potential(make_config(None, settings).model, [11, 17])
    if model.long is not None:
        model.long.charges.set_values({11: 1.0, 17: -1.0})
    return model


def _caller(atoms: Atoms, calculator: LRCalculator) -> Callable[[], object]:
    atoms, rng = atoms.copy(), np.random.default_rng(0)
    atoms.calc = calculator

    def call() -> object:
        atoms.positions += 1e-3 * rng.normal(size=atoms.positions.shape)
        return atoms.get_forces()

    return call


def _schnetpack(atoms: Atoms, features: int, interactions: int, dtype: torch.dtype) -> Callable[[], object]:
    # SchNetPack 2.0.4 imports a name that torch no longer has
    torch.utils.data.dataloader.T_co = typing.TypeVar("T_co", covariant=True)
    import schnetpack
    from schnetpack import properties

    torch.manual_seed(0)
    cutoff = 5.0
    painn = schnetpack.representation.PaiNN(
        features, interactions, schnetpack.nn.GaussianRBF(20, cutoff), schnetpack.nn.CosineCutoff(cutoff)
    ).to(dtype)
    readout = schnetpack.atomistic.Atomwise(features, output_key="energy").to(dtype)
    for parameter in (*painn.parameters(), *readout.parameters()):
        parameter.requires_grad_(False)
    structure = to_structure(atoms, cutoff)
    vectors = edge_vectors(structure)
    offsets = (
        vectors - (structure.positions[structure.edge_index[0]] - structure.positions[structure.edge_index[1]])
    ).to(dtype)

    def call() -> object:
        positions = structure.positions.to(dtype).requires_grad_()
        neighbour, centre = structure.edge_index
        inputs = {
            properties.Z: structure.numbers,
            properties.R: positions,
            properties.Rij: positions[neighbour] - positions[centre] + offsets,
            properties.idx_i: centre,
            properties.idx_j: neighbour,
            properties.idx_m: torch.zeros_like(structure.numbers),
            properties.n_atoms: torch.tensor([len(atoms)]),
        }
        energy = readout(painn(inputs))["energy"]
        return torch.autograd.grad(energy.sum(), positions)

    return call


if __name__ == "__main__":
    main()
