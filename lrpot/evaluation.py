"""How far a model is from labelled structures: errors of energy per atom, forces, stress, charges, dipoles and Born
charges; its charges there."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from ase.data import chemical_symbols
from torch import Tensor

from lrpot.charges.polarisation import acoustic_sum, charge_quantities, has_born_charges
from lrpot.potential import PARTS, Potential
from lrpot.structure import CHARGE_LABELS, LABELS, Structure, collate
from lrpot.units import GPA

# Edges evaluated at once; bounds the memory of a batch (about 1 GB at 64 features).
MAX_EDGES = 60_000

UNITS = {"energy": "eV/atom", "forces": "eV/A", "stress": "eV/A^3"}
UNITS |= {"charges": "e", "dipole": "e A", "born_charges": "e"}

# Everything that has errors, in the order in which they are told.
QUANTITIES = LABELS + CHARGE_LABELS

# When the labels' pressure is said to be off: from how much on (GPa), how much more than it varies between structures,
# how many of them it takes, and how well the model must know the forces (relative) to be worth hearing.
OFFSET, OVER_SPREAD, OFFSET_STRUCTURES, FORCES_KNOWN = 0.1, 5.0, 5, 0.1


@dataclass
class Evaluation:
    """Predictions beside labels.

    Attributes:
        reference, predicted: by quantity (`QUANTITIES`, "energy" per atom), one flat tensor each, for the
            structures that carry the label.
        n_structures, n_atoms: how many were evaluated.
        places: by quantity, (n, 2) int32: the structure that each number belongs to, from 0, and its place in that
            structure's label, flattened.
        numbers, charges: (N,) atomic numbers and charges in e; empty if the model has no charges.
        energy_long, energy_network: (G,), eV/atom, E_long and E_short without the offsets of the elements.
        acoustic_sums: (G', 3, 3), e, what the predicted Born charges add up to in each structure that has labels of
            them, less its total charge.
        uncertainty: by quantity, beside `predicted`, of an ensemble: of "energy" per atom, and of a component of
            "forces", the uncertainty of the force over the root of three.
    """

    reference: dict[str, Tensor] = field(default_factory=dict)
    predicted: dict[str, Tensor] = field(default_factory=dict)
    n_structures: int = 0
    n_atoms: int = 0
    places: dict[str, Tensor] = field(default_factory=dict)
    numbers: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    charges: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.float64))
    energy_long: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.float64))
    energy_network: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.float64))
    acoustic_sums: Tensor = field(default_factory=lambda: torch.empty(0, 3, 3, dtype=torch.float64))
    uncertainty: dict[str, Tensor] = field(default_factory=dict)

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

    def acoustic_sum(self) -> dict[str, float]:
        """Root mean square and largest component of `acoustic_sums`, e; empty without Born charges."""
        if len(self.acoustic_sums) == 0:
            return {}
        return {"rms": float((self.acoustic_sums**2).mean().sqrt()), "max": float(self.acoustic_sums.abs().max())}

    def pressure_offset(self) -> dict[str, Any]:
        """{mean, spread, unit} over the structures of the labelled pressure less the predicted one, GPa; the spread is
        the standard deviation; empty without labels of stress."""
        if "stress" not in self.reference:
            return {}
        difference = (self.predicted["stress"] - self.reference["stress"]).double().reshape(-1, 3, 3)
        pressure = GPA * difference.diagonal(dim1=1, dim2=2).mean(dim=1)
        return {"mean": float(pressure.mean()), "spread": float(pressure.std(correction=0)), "unit": "GPa"}

    def stress_doubt(self) -> str | None:
        """What to say of labels of stress that are not the slope of the energies: their pressure is off by the same in
        all structures, as Pulay stress is."""
        offset, labelled = self.pressure_offset(), len(self.reference.get("stress", ())) // 9
        if labelled < OFFSET_STRUCTURES or abs(offset["mean"]) < max(OFFSET, OVER_SPREAD * offset["spread"]):
            return None
        if "forces" in self.reference:
            reference = self.reference["forces"]
            if (self.predicted["forces"] - reference).norm() > FORCES_KNOWN * reference.norm():
                return None
        side = "below" if offset["mean"] < 0 else "above"
        return (
            f"the pressure of the labels is {abs(offset['mean']):.3g} GPa {side} the slope of the model's energy, in "
            f"all {labelled} structures alike (within {offset['spread']:.2g}): Pulay stress of a small basis, or a "
            "kinetic part in it? Mend the labels, or fit without (training.stress_weight=0)"
        )

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

    Born charges are compared where a structure has them and the model's charges determine them.
    """
    parts: dict[str, tuple[list[Tensor], list[Tensor]]] = {}
    spreads: dict[str, list[Tensor]] = {}
    result = Evaluation()
    charges, numbers, long, network, sums = [], [], [], [], []
    places: dict[str, list[Tensor]] = {}
    for group, output in predict_structures(model, structures, stress="labelled", born_charges=True):
        start = 0
        if "charges" in output:
            sizes = torch.tensor([s.num_nodes for s in group], dtype=torch.float64)
            offset = torch.stack([member.short.offset for member in model.members]).mean(dim=0)
            offsets = torch.stack([offset[s.numbers].sum() for s in group]).cpu()
            numbers += [s.numbers for s in group]
            charges.append(output["charges"][:, 0].double().cpu())
            long.append(output["energy_long"].cpu() / sizes)
            network.append((output["energy_short"].cpu() - offsets) / sizes)
        for n, structure in enumerate(group):
            n_atoms = structure.num_nodes
            atoms = slice(start, start + n_atoms)
            present = [name for name in ("charges", "born_charges") if name in output]
            own: dict[str, Tensor] = {name: output[name][atoms].cpu() for name in present}
            found = charge_quantities(structure, own)
            found |= {"energy": output["energy"][n] / n_atoms, "forces": output["forces"][atoms]}
            if "stress" in output:
                found["stress"] = output["stress"][n]
            spread: dict[str, Tensor] = {}
            if "energy_uncertainty" in output:
                spread["energy"] = output["energy_uncertainty"][n]
                spread["forces"] = output["forces_uncertainty"][atoms, None].expand(-1, 3) / math.sqrt(3.0)
            for name in QUANTITIES:
                if name in found and name in structure:
                    reference = structure[name].reshape(-1).cpu() / (n_atoms if name == "energy" else 1)
                    known = reference.isfinite()  # a dipole has components that are not defined
                    place = known.nonzero().to(torch.int32)
                    owner = torch.full_like(place, result.n_structures)
                    places.setdefault(name, []).append(torch.cat([owner, place], dim=1))
                    references, predictions = parts.setdefault(name, ([], []))
                    references.append(reference[known])
                    predictions.append(found[name].reshape(-1).cpu()[known])
                    if name in spread:
                        spreads.setdefault(name, []).append(spread[name].reshape(-1).cpu()[known])
            if "born_charges" in own:
                unit = torch.eye(3, dtype=torch.float64)
                sums.append(acoustic_sum(structure, own["born_charges"]) - structure.total_charge.cpu() * unit)
            start += n_atoms
            result.n_structures += 1
            result.n_atoms += n_atoms
        if progress is not None:
            progress(result.n_structures)
    for name in QUANTITIES:
        references, predictions = parts.get(name, ([], []))
        if sum(map(len, references)):
            result.reference[name], result.predicted[name] = torch.cat(references), torch.cat(predictions)
    result.uncertainty = {name: torch.cat(values) for name, values in spreads.items()}
    if sums:
        result.acoustic_sums = torch.cat(sums)
    result.places = {name: torch.cat(places[name]) for name in result.reference}
    if charges:
        result.numbers, result.charges = torch.cat(numbers), torch.cat(charges)
        result.energy_long, result.energy_network = torch.cat(long), torch.cat(network)
    return result


def predict_structures(
    model: Potential,
    structures: Iterable[Structure],
    *,
    stress: bool | str = False,
    born_charges: bool = False,
    parts: Iterable[str] = PARTS,
) -> Iterator[tuple[list[Structure], dict[str, Tensor]]]:
    """Evaluate structures in groups of bounded memory, in order.

    Args:
        stress: whether to compute it; "labelled": in the groups whose structures all carry the label.
        born_charges: whether to compute them for those that carry the label, as far as `has_born_charges`.
    Yields:
        the structures of a group and the output of `Potential.forward` for them.
    """
    device = next(model.parameters()).device
    charges = [member.long.charges for member in model.members if member.long is not None]
    trainable = [p for p in model.parameters() if p.requires_grad]
    for p in trainable:
        p.requires_grad_(False)  # derivatives by positions only: less work, and the kernel may be cached
    try:

        def kind(structure: Structure) -> tuple[bool, bool]:
            labelled = "stress" in structure if stress == "labelled" else bool(stress)
            if not charges or not born_charges or "born_charges" not in structure:
                return labelled, False
            return labelled, all(has_born_charges(type(own), own.neutrality, structure.pbc) for own in charges)

        for group in _groups(structures, kind):
            wanted, born = kind(group[0])
            yield group, model(collate(group).to(device), stress=wanted, born_charges=born, parts=parts)
    finally:
        for p in trainable:
            p.requires_grad_(True)


def _groups(structures: Iterable[Structure], kind: Callable[[Structure], object]) -> Iterator[list[Structure]]:
    """Structures of one kind, one after the other, as many as may be evaluated at once."""
    group: list[Structure] = []
    edges = 0
    for structure in structures:
        size = structure.edge_index.shape[1]
        if group and (edges + size > MAX_EDGES or kind(structure) != kind(group[0])):
            yield group
            group, edges = [], 0
        group.append(structure)
        edges += size
    if group:
        yield group
