"""What is known before any training: an energy per element, and the size of what is left to learn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch_geometric.data import Data

from lrpot.charges import EquilibratedCharges
from lrpot.charges.polarisation import charge_quantities
from lrpot.evaluation import predict_structures
from lrpot.potential import Potential, geometry_of
from lrpot.structure import CHARGE_LABELS, LABELS, Structure, batch_index, edge_vectors

# Residuals smaller than this (eV, eV/A) are rounding of the labels; dividing by less would amplify it.
SMALLEST_SCALE = 1e-9

# Atoms, about, in which the potentials are averaged that equilibrated charges start from.
START_ATOMS = 4000


def store_known(model: Potential, structures: Sequence[Structure], parts: Iterable[str]) -> None:
    """Evaluate the frozen parts once and store them as `known_energy`, `known_forces` and `known_stress`.

    A frozen part gives the same numbers in every epoch, so the epochs of a stage need only the parts that change.
    """
    parts = frozenset(parts)
    for structure in structures:
        for label in LABELS:
            if label in structure:
                structure[f"known_{label}"] = torch.zeros_like(structure[label])
    if not parts:
        return
    for group, output in predict_structures(model, structures, stress="labelled", parts=parts):
        start = 0
        for n, structure in enumerate(group):
            atoms = slice(start, start + structure.num_nodes)
            start = atoms.stop
            for label in LABELS:
                if label in structure:
                    part = output[label][atoms if label == "forces" else slice(n, n + 1)]
                    structure[f"known_{label}"] = part.cpu()


def set_start(model: Potential, charges: Mapping[int, float], structures: Sequence[Structure]) -> None:
    """Set the charges that a fit starts from, in e by atomic number.

    Charges that are equilibrated get electronegativities for which they come out so in the structures: minus the mean
    potential that the atoms of each element feel where all carry their charge.
    """
    assert model.long is not None
    module = model.long.charges
    if not isinstance(module, EquilibratedCharges):
        module.set_values(charges)
        return
    potentials: dict[int, list[Tensor]] = {}
    every = max(1, sum(s.num_nodes for s in structures) // START_ATOMS)
    for structure in structures[::every]:
        given = torch.tensor([charges.get(z, 0.0) for z in structure.numbers.tolist()], dtype=torch.float64)
        geometry = geometry_of(structure, edge_vectors(structure))
        felt = module.potential(structure, given, model.long.electrostatics, geometry)
        for z in structure.numbers.unique().tolist():
            potentials.setdefault(z, []).append(felt[structure.numbers == z])
    module.set_values(charges, {z: float(torch.cat(values).mean()) for z, values in potentials.items()})


def fit_baseline(model: Potential, structures: Sequence[Structure]) -> None:
    """Set offsets and scale of the short-range part from what the rest of the model leaves of the labels.

    The offset of each element is the least-squares solution of least norm for the energies per atom; the scale is the
    root mean square of the remaining forces. The readout must still be zero, and `known_*` must hold the long-range
    part if it is present.
    """
    model.short.offset.zero_()
    fractions = torch.cat([composition(model, s) for s in structures])
    energies = torch.cat([(s.energy - s.known_energy) / s.num_nodes for s in structures])
    left = energies - fractions @ add_offsets(model, fractions, energies)
    forces = _residual_forces(structures)
    scale = _rms(forces) if forces is not None else _rms(left)
    model.short.scale.fill_(max(scale, SMALLEST_SCALE))


def composition(model: Potential, batch: Data) -> Tensor:
    """(G, M): the share of each element of the model in each structure."""
    index = batch_index(batch)
    elements = torch.tensor(model.elements, device=index.device)
    is_element = (batch.numbers[:, None] == elements).to(torch.float64)
    counts = is_element.new_zeros(batch.cell.shape[0], len(elements)).index_add(0, index, is_element)
    return counts / counts.sum(dim=1, keepdim=True)


def add_offsets(model: Potential, fractions: Tensor, energies: Tensor) -> Tensor:
    """Add to the offsets what fits energies per atom (G,), eV, best, of least norm; returns what was added, (M,)."""
    added = torch.linalg.lstsq(fractions.cpu(), energies.cpu(), driver="gelsd").solution
    model.short.offset[model.elements] += added.to(model.short.offset)
    return added


def relative_step(structures: Sequence[Structure], long_range: Sequence[Tensor]) -> float:
    """How small a relative change of the charges matters: residual forces over long-range forces, at most 1.

    Adam changes every parameter by about its learning rate, however small its gradient; charges that are already
    right to six digits would be thrown off by the learning rate of a network.

    Args:
        structures: with `known_*` holding everything that the model predicts.
        long_range: (N, 3), eV/A, the long-range forces of each structure.
    """
    forces = _residual_forces(structures)
    if forces is None:
        return 1.0
    size = _rms(torch.cat([f.reshape(-1) for f in long_range]))
    return min(1.0, _rms(forces) / size) if size > 0 else 1.0


def residual_scales(structures: Sequence[Structure]) -> dict[str, float]:
    """Root mean square of label - known of energy per atom (about its mean), forces and stress: 1 in the loss."""
    scales = {}
    energy = torch.cat([(s.energy - s.known_energy) / s.num_nodes for s in structures])
    scales["energy"] = _rms(energy - energy.mean())
    forces = _residual_forces(structures)
    if forces is not None:
        scales["forces"] = _rms(forces)
        # energies that hardly differ, such as those of one crystal vibrating, must not outweigh everything
        scales["energy"] = max(scales["energy"], 1e-2 * scales["forces"])
    stress = [(s.stress - s.known_stress).reshape(-1) for s in structures if "stress" in s]
    if stress:
        scales["stress"] = _rms(torch.cat(stress))
    return {label: max(scale, SMALLEST_SCALE) for label, scale in scales.items()}


def charge_scales(
    model: Potential, structures: Sequence[Structure], labels: Iterable[str], parts: Iterable[str]
) -> dict[str, float]:
    """Root mean square of label - prediction of labels of the charges: 1 in the loss. Empty where the parts have no
    charges.

    Not less than a hundredth of the labels: charges that start right must not drown the forces in their rounding.
    """
    labels = set(labels)
    chosen = [s for s in structures if labels & set(s.keys())]
    known: dict[str, list[Tensor]] = {}
    left: dict[str, list[Tensor]] = {}
    born = "born_charges" in labels
    for group, output in predict_structures(model, chosen, born_charges=born, parts=parts):
        start = 0
        for structure in group:
            atoms = slice(start, start + structure.num_nodes)
            start = atoms.stop
            present = [name for name in ("charges", "born_charges") if name in output]
            own: dict[str, Tensor] = {name: output[name][atoms].cpu() for name in present}
            for label, value in charge_quantities(structure, own).items():
                if label in labels and label in structure:
                    defined = structure[label].isfinite()
                    known.setdefault(label, []).append(structure[label][defined])
                    left.setdefault(label, []).append((value - structure[label])[defined])
    return {
        label: max(_rms(torch.cat(left[label])), 1e-2 * _rms(torch.cat(known[label])), SMALLEST_SCALE)
        for label in CHARGE_LABELS
        if label in left
    }


def _residual_forces(structures: Sequence[Structure]) -> Tensor | None:
    forces = [(s.forces - s.known_forces).reshape(-1) for s in structures if "forces" in s]
    return torch.cat(forces) if forces else None


def _rms(values: Tensor) -> float:
    return float((values**2).mean().sqrt())
