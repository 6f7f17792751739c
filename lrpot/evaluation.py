"""How far a model is from labelled structures: errors of energy per atom, forces and stress; its charges there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from ase.data import chemical_symbols
from torch import Tensor

from lrpot.potential import PARTS, Potential
from lrpot.structure import Structure, collate

# Edges evaluated at once; bounds the memory of a batch (about 1 GB at 64 features).
MAX_EDGES = 60_000

UNITS = {"energy": "eV/atom", "forces": "eV/A", "stress": "eV/A^3"}


@dataclass
class Evaluation:
    """Predictions beside labels.

    Attributes:
        reference, predicted: by quantity ("energy" per atom, "forces", "stress"), one flat tensor each, for the
            structures that carry the label.
        n_structures, n_atoms: how many were evaluated.
        numbers, charges: (N,) atomic numbers and charges in e; empty if the model has no charges.
        energy_long, energy_network: (G,), eV/atom, E_long and E_short without the offsets of the elements.
    """

    reference: dict[str, Tensor] = field(default_factory=dict)
    predicted: dict[str, Tensor] = field(default_factory=dict)
    n_structures: int = 0
    n_atoms: int = 0
    numbers: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    charges: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.float64))
    energy_long: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.float64))
    energy_network: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.float64))

    def charges_by_element(self) -> dict[str, dict[str, float]]:
        """{symbol: {mean, spread, min, max}}, e; the spread is the standard deviation."""
        found = {}
        for z in self.numbers.unique().tolist():
            q = self.charges[self.numbers == z]
            values = {"mean": q.mean(), "spread": q.std(correction=0), "min": q.min(), "max": q.max()}
            found[chemical_symbols[z]] = {name: float(value) for name, value in values.items()}
        return found

    def long_range(self) -> dict[str, float]:
        """Mean magnitudes of E_long and of the network's energy, eV/atom, and the share of the first in their sum;
        empty if the model has no charges."""
        if len(self.charges) == 0:
            return {}
        long, network = float(self.energy_long.abs().mean()), float(self.energy_network.abs().mean())
        return {"energy_long": long, "energy_network": network, "share": long / max(long + network, 1e-300)}

    def errors(self) -> dict[str, Any]:
        """{quantity: {mae, rmse, max, unit}}, n_structures and n_atoms; ready for JSON."""
        result: dict[str, Any] = {"n_structures": self.n_structures, "n_atoms": self.n_atoms}
        for name, reference in self.reference.items():
            difference = (self.predicted[name] - reference).abs()
            result[name] = {
                "mae": float(difference.mean()),
                "rmse": float((difference**2).mean().sqrt()),
                "max": float(difference.max()),
                "unit": UNITS[name],
            }
        return result


def evaluate_structures(
    model: Potential, structures: Sequence[Structure], *, progress: Callable[[int], None] | None = None
) -> Evaluation:
    """Predict labelled structures.

    Args:
        model: any precision, any device.
        structures: with edges up to the model's cutoff.
        progress: called with the number of structures done.
    """
    parts: dict[str, tuple[list[Tensor], list[Tensor]]] = {}
    result = Evaluation()
    charges, numbers, long, network = [], [], [], []
    for group, output in predict_structures(model, structures, stress="labelled"):
        start = 0
        if "charges" in output:
            sizes = torch.tensor([s.num_nodes for s in group], dtype=torch.float64)
            offsets = torch.stack([model.short.offset[s.numbers].sum() for s in group]).cpu()
            numbers += [s.numbers for s in group]
            charges.append(output["charges"][:, 0].double().cpu())
            long.append(output["energy_long"].cpu() / sizes)
            network.append((output["energy_short"].cpu() - offsets) / sizes)
        for n, structure in enumerate(group):
            n_atoms = structure.num_nodes
            pairs = {
                "energy": (output["energy"][n : n + 1] / n_atoms, "energy" in structure),
                "forces": (output["forces"][start : start + n_atoms].reshape(-1), "forces" in structure),
                "stress": (output["stress"][n].reshape(-1), True) if "stress" in output else (None, False),
            }
            for name, (predicted, labelled) in pairs.items():
                if labelled and predicted is not None:
                    reference = structure[name].reshape(-1) / (n_atoms if name == "energy" else 1)
                    references, predictions = parts.setdefault(name, ([], []))
                    references.append(reference.cpu())
                    predictions.append(predicted.cpu())
            start += n_atoms
            result.n_structures += 1
            result.n_atoms += n_atoms
        if progress is not None:
            progress(result.n_structures)
    for name, (references, predictions) in parts.items():
        result.reference[name], result.predicted[name] = torch.cat(references), torch.cat(predictions)
    if charges:
        result.numbers, result.charges = torch.cat(numbers), torch.cat(charges)
        result.energy_long, result.energy_network = torch.cat(long), torch.cat(network)
    return result


def predict_structures(
    model: Potential,
    structures: Sequence[Structure],
    *,
    stress: bool | str = False,
    parts: Iterable[str] = PARTS,
) -> Iterator[tuple[list[Structure], dict[str, Tensor]]]:
    """Evaluate structures in groups of bounded memory, in order.

    Args:
        stress: whether to compute it; "labelled": in the groups whose structures all carry the label.
    Yields:
        the structures of a group and the output of `Potential.forward` for them.
    """
    device = next(model.parameters()).device
    trainable = [p for p in model.parameters() if p.requires_grad]
    for p in trainable:
        p.requires_grad_(False)  # derivatives by positions only: less work, and the kernel may be cached
    try:
        for group in _groups(structures, labelled_apart=stress == "labelled"):
            wanted = "stress" in group[0] if stress == "labelled" else bool(stress)
            yield group, model(collate(group).to(device), stress=wanted, parts=parts)
    finally:
        for p in trainable:
            p.requires_grad_(True)


def _groups(structures: Sequence[Structure], *, labelled_apart: bool) -> Iterator[list[Structure]]:
    group: list[Structure] = []
    edges = 0
    for structure in structures:
        size = structure.edge_index.shape[1]
        differs = bool(group) and labelled_apart and ("stress" in structure) != ("stress" in group[0])
        if group and (edges + size > MAX_EDGES or differs):
            yield group
            group, edges = [], 0
        group.append(structure)
        edges += size
    if group:
        yield group
