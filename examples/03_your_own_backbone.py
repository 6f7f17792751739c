"""A network of your own as the short-range part: check it, fit it in three stages, load it, compute with it.

    python examples/03_your_own_backbone.py [DATA] [--out runs/own-backbone]

A backbone is a torch module with the attributes `cutoff` and `features` and a forward that turns edge vectors into
features of atoms. Everything else (charges, reciprocal space, forces, stress, stages) is lrpot's. Without DATA the
sample of datasets/nacl is fitted, which takes less than a minute.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import ase.io
import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from lrpot import LRCalculator, fit
from lrpot.backbones import AtomFeatures, register
from lrpot.errors import LrpotError
from lrpot.smooth import taper
from lrpot.testing import check_backbone

SAMPLE = Path(__file__).parents[1] / "datasets" / "nacl" / "sample.extxyz"


class ContinuousFilter(nn.Module):
    """Continuous-filter convolutions, the idea of SchNet. Source: Schütt et al., J. Chem. Phys. 148, 241722 (2018)."""

    def __init__(self, features: int = 32, interactions: int = 2, radial_basis: int = 16, cutoff: float = 5.0) -> None:
        super().__init__()
        self.cutoff, self.features = cutoff, features
        self.register_buffer("centres", torch.linspace(0.0, cutoff, radial_basis))
        self.embedding = nn.Embedding(119, features)
        self.filters = nn.ModuleList(nn.Linear(radial_basis, features) for _ in range(interactions))
        self.updates = nn.ModuleList(nn.Linear(features, features) for _ in range(interactions))

    def forward(self, batch: Data, vectors: Tensor) -> AtomFeatures:
        neighbour, centre = batch.edge_index  # (E,) each: an edge goes from neighbour to centre
        distances = torch.linalg.vector_norm(vectors, dim=1)[:, None]
        basis = torch.exp(-((distances - self.centres) ** 2)) * taper(distances, self.cutoff)
        scalar = self.embedding(batch.numbers)
        for make_filter, update in zip(self.filters, self.updates, strict=True):
            messages = scalar[neighbour] * make_filter(basis) * taper(distances, self.cutoff)
            scalar = scalar + update(nn.functional.silu(torch.zeros_like(scalar).index_add(0, centre, messages)))
        return AtomFeatures(scalar, None)


def main() -> None:
    arguments = parse()

    # 1. Check the contract: invariances, batches, cutoff, derivatives. A defect is one line that says what to do.
    report = check_backbone(lambda: ContinuousFilter(features=8, cutoff=4.0))
    print(f"{len(report.checks)} checks passed:")
    print(report)

    # 2. Register and fit: the arguments of the class are settings now.
    register("continuous-filter", ContinuousFilter)
    settings = {"model.backbone.name": "continuous-filter", "model.backbone.features": 24}
    settings |= {"training.max_epochs": arguments.epochs}
    result = fit(arguments.data, out=arguments.out, settings=settings, overwrite=arguments.overwrite)
    print(f"charges after the last stage: {result.stages[-1]['charges']} e")

    # 3. Use: the file holds name, settings and weights, no code. Elsewhere, import this class and register it first.
    atoms = ase.io.read(arguments.data, index=0)
    labels = atoms.get_potential_energy(), atoms.get_forces()
    atoms.calc = LRCalculator(result.path)
    energy = atoms.get_potential_energy()
    print(f"first crystal: {energy:.6f} eV, label {labels[0]:.6f} eV")
    print(f"largest error of a force: {abs(atoms.get_forces() - labels[1]).max():.2e} eV/A")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, nargs="?", default=SAMPLE, help="labelled crystals (default: NaCl sample)")
    parser.add_argument("--out", type=Path, default=Path("runs/own-backbone"), help="directory of the run")
    parser.add_argument("--epochs", type=int, default=20, help="of each stage, at most (default: 20)")
    parser.add_argument("--overwrite", action="store_true", help="replace what an earlier run left in --out")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except LrpotError as error:
        sys.exit(f"error: {error}")
