"""Errors of the equivariant network and of MACE after ten epochs on the same cells.

    python benchmarks/equivariant_accuracy.py FILE      (energies and forces, one composition; e.g. 8-atom cells of GaN)

Models, edges and environment are those of `equivariant.py`. Both see the same batches in the same order, the same loss
of energies per atom and forces, Adam, and a rate that falls to zero along a cosine. Each gets the rate that suits it
best on the validation cells, between a larger and a smaller one that suit it less: without these the script ends. The
table shows the test cells.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import ase.io
import numpy as np
import torch
from equivariant import CUTOFF, ELEMENTS, PEERS, mace, mace_inputs, make_mace
from timing import machine, write
from torch import Tensor, nn
from torch_geometric.data import Batch

from lrpot.backbones import Equivariant
from lrpot.console import Console
from lrpot.data.readers import to_structure
from lrpot.potential import Potential, ShortRange
from lrpot.structure import Structure, collate

SPLIT = {"train": 160, "validation": 60, "test": 200}
BATCH = 8
EPOCHS = 10
RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
ENERGY_WEIGHT = 10.0  # of (eV/atom)^2 beside (eV/A)^2

Predict = Callable[[Batch], dict[str, Tensor]]


def main() -> None:
    sets = read(sys.argv[1])
    mean = float(torch.cat([x.energy / len(x.numbers) for x in sets["train"]]).mean())
    scale = float(torch.cat([x.forces for x in sets["train"]]).square().mean().sqrt())
    records = {}
    for name in ("lmax 1", *(PEERS if mace is not None else ())):
        tried = []
        for rate in RATES:
            model, predict = make(name, sets["train"], mean, scale)
            train(model, predict, sets["train"], rate)
            tried.append({"rate": rate, **{kind: errors(predict, sets[kind]) for kind in ("validation", "test")}})
            print(name, tried[-1], flush=True)
        best = best_of(name, tried)
        weights = sum(p.numel() for p in model.parameters())
        records[name] = {"weights": weights, **best, "tried": tried}
    rows = [
        [
            name,
            f"{record['weights']:,}",
            f"{record['rate']:g}",
            f"{1e3 * record['test']['energy']:.2f}",
            f"{1e3 * record['test']['forces']:.1f}",
        ]
        for name, record in records.items()
    ]
    columns = ["after 10 epochs", "weights", "rate", "MAE, E (meV/atom)", "MAE, F (meV/A)"]
    Console().table(f"{SPLIT['train']} cells to train on", columns, rows)
    print("wrote", write("equivariant_accuracy", {"machine": machine(), "split": SPLIT, "records": records}))


def best_of(name: str, tried: list[dict[str, Any]]) -> dict[str, Any]:
    """The one with the smallest error of the forces on the validation cells; fits that diverged have none.

    Raises:
        SystemExit: it is at an end of the rates, so that one beyond may be better.
    """
    found = [one["validation"]["forces"] for one in tried]
    best = min(range(len(tried)), key=lambda place: found[place] if math.isfinite(found[place]) else math.inf)
    if best in (0, len(tried) - 1):
        sys.exit(f"{name}: the best rate, {tried[best]['rate']:g}, is at an end of those tried; add others to RATES")
    return tried[best]


def read(path: str) -> dict[str, list[Structure]]:
    frames = ase.io.read(path, index=":")
    order = np.random.default_rng(0).permutation(len(frames))[: sum(SPLIT.values())]
    structures = [to_structure(frames[n], CUTOFF) for n in order]
    sets, first = {}, 0
    for kind, number in SPLIT.items():
        sets[kind] = structures[first : first + number]
        first += number
    return sets


def make(name: str, structures: list[Structure], mean: float, scale: float) -> tuple[nn.Module, Predict]:
    """A model with the mean energy (eV/atom) and the scale of the forces (eV/A) of its training cells."""
    torch.manual_seed(0)
    if name in PEERS:
        batch = collate(structures)
        offsets = np.full((1, len(ELEMENTS)), mean)
        peer = make_mace(batch, torch.float32, *PEERS[name], offsets=offsets, scale=scale)
        return peer, lambda batch: peer(mace_inputs(batch, torch.float32), training=True)
    lmax = int(name.removeprefix("lmax "))
    short = ShortRange(Equivariant(features=32, interactions=2, cutoff=CUTOFF, lmax=lmax), max(ELEMENTS) + 1)
    short.offset[list(ELEMENTS)] = mean
    short.scale.fill_(scale)
    model = Potential(short, None, list(ELEMENTS)).set_precision(torch.float32)
    return model, lambda batch: model(batch, create_graph=True)


def train(model: nn.Module, predict: Predict, structures: list[Structure], rate: float) -> None:
    optimiser = torch.optim.Adam(model.parameters(), lr=rate)
    generator = np.random.default_rng(1)
    steps = EPOCHS * len(structures) // BATCH
    for step in range(steps):
        if step * BATCH % len(structures) == 0:
            order = generator.permutation(len(structures))
        start = step * BATCH % len(structures)
        batch = collate([structures[n] for n in order[start : start + BATCH]])
        for group in optimiser.param_groups:
            group["lr"] = 0.5 * rate * (1.0 + math.cos(math.pi * step / steps))
        optimiser.zero_grad()
        output = predict(batch)
        n_atoms = torch.bincount(batch.batch)
        energy = ((output["energy"] - batch.energy) / n_atoms).square().mean()
        loss = ENERGY_WEIGHT * energy + (output["forces"] - batch.forces).square().mean()
        loss.backward()
        optimiser.step()


def errors(predict: Predict, structures: list[Structure]) -> dict[str, float]:
    """Mean absolute errors, eV/atom and eV/A."""
    energy, forces = [], []
    for start in range(0, len(structures), BATCH):
        batch = collate(structures[start : start + BATCH])
        output = predict(batch)
        energy.append(((output["energy"].detach() - batch.energy) / torch.bincount(batch.batch)).abs())
        forces.append((output["forces"].detach() - batch.forces).abs().reshape(-1))
    return {"energy": float(torch.cat(energy).mean()), "forces": float(torch.cat(forces).mean())}


if __name__ == "__main__":
    main()
