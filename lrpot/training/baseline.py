"""What is known before any training: an energy per element, and the size of what is left to learn."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch_geometric.data import Data

from lrpot.charges import EquilibratedCharges
from lrpot.charges.polarisation import charge_quantities
from lrpot.data.graphs import Graphs
from lrpot.evaluation import predict_structures
from lrpot.potential import Potential, geometry_of
from lrpot.structure import CHARGE_LABELS, LABELS, Structure, batch_index, edge_vectors
from lrpot.training.parallel import ALONE, Processes

# Residuals smaller than this (eV, eV/A) are rounding of the labels; dividing by less would amplify it.
SMALLEST_SCALE = 1e-9

# A, rms of energies per atom over rms of forces: in the loss, energies count for no less and no more than if atoms of a
# crystal were displaced by so much. Those of one crystal vibrating hardly differ, and would outweigh everything; those
# of several volumes or compositions differ by eV, and an error of 0.1 eV/atom in a defect would be as good as none.
DISPLACEMENTS = (0.01, 0.2)

# Atoms, about, in which the potentials are averaged that equilibrated charges start from.
START_ATOMS = 4000


def store_known(
    model: Potential, structures: Sequence[Structure], parts: Iterable[str], processes: Processes = ALONE
) -> None:
    """Evaluate the frozen parts once and store them as `known_energy`, `known_forces` and `known_stress`.

    A frozen part gives the same numbers in every epoch, so the epochs of a stage need only the parts that change.

    Args:
        processes: each evaluates its part of `Graphs`, and gets the rest from the others.
    """
    parts = frozenset(parts)
    if isinstance(structures, Graphs):
        part = processes.part(len(structures))
        values = _known(model, structures.select(part), parts)
        structures.attach(values, part=part, gather=processes.gather_files)
        return
    for structure, known in zip(structures, _known(model, structures, parts), strict=True):
        structure.update(known)


def _known(model: Potential, structures: Sequence[Structure], parts: frozenset[str]) -> Iterator[dict[str, Tensor]]:
    """The fields `known_*` of each structure, in order."""
    if not parts:
        for structure in structures:
            yield {f"known_{label}": torch.zeros_like(structure[label]) for label in LABELS if label in structure}
        return
    for group, output in predict_structures(model, structures, stress="labelled", parts=parts):
        start = 0
        for n, structure in enumerate(group):
            atoms = slice(start, start + structure.num_nodes)
            start = atoms.stop
            yield {
                f"known_{label}": output[label][atoms if label == "forces" else slice(n, n + 1)].detach().cpu()
                for label in LABELS
                if label in structure
            }


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
    energies = _residual_energies(structures)
    left = energies - fractions @ add_offsets(model, fractions, energies)
    scales = _rms(_residuals(structures, "forces")), _rms([left])
    model.short.scale.fill_(max(next(scale for scale in scales if scale is not None), SMALLEST_SCALE))


def refit_offsets(model: Potential, structures: Sequence[Structure]) -> dict[int, float]:
    """Move the offsets of a fitted model to the level that the labels have; what was added, eV by atomic number.

    Least squares of the energies per atom. Where the labels do not say (elements that are absent, or in the same ratio
    everywhere), the offsets stay, or change as little as they can. `known_*` must hold all that the model predicts.
    """
    fractions = torch.cat([composition(model, s) for s in structures])
    added = add_offsets(model, fractions, _residual_energies(structures))
    return dict(zip(model.elements, added.tolist(), strict=True))


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


def relative_step(model: Potential, structures: Sequence[Structure], processes: Processes = ALONE) -> float:
    """How small a relative change of the charges matters: residual forces over long-range forces, at most 1. Where no
    structure has forces, the same of energies per atom about their means.

    Adam changes every parameter by about its learning rate, however small its gradient; charges that are already
    right to six digits would be thrown off by the learning rate of a network.

    Args:
        structures: with `known_*` holding everything that the model predicts.
        processes: each predicts a part of them.
    """
    own = processes.part(len(structures))
    forces, energies = _MeanSquare(), [torch.zeros(0, dtype=torch.float64)]
    for group, output in predict_structures(model, (structures[n] for n in own), parts={"long"}):
        forces.add(output["forces"])
        sizes = torch.tensor([s.num_nodes for s in group], dtype=torch.float64)
        energies.append(output["energy"].double().cpu() / sizes)
    residual, size = _rms(_residuals(structures, "forces")), forces.root(processes)
    if residual is None:
        left = _residual_energies(structures)
        residual, size = float(left.std(correction=0)), _spread(torch.cat(energies), processes)
    return min(1.0, residual / size) if size else 1.0


def residual_scales(structures: Sequence[Structure]) -> dict[str, float]:
    """Root mean square of label - known of energy per atom (about its mean), forces and stress: 1 in the loss.

    That of energies stays within bounds that the forces set, see `DISPLACEMENTS`.
    """
    energy = _residual_energies(structures)
    found = {
        "energy": _rms([energy - energy.mean()]),
        **{label: _rms(_residuals(structures, label)) for label in ("forces", "stress")},
    }
    scales = {label: scale for label, scale in found.items() if scale is not None}
    if "forces" in scales:
        smallest, largest = DISPLACEMENTS
        scales["energy"] = min(max(scales["energy"], smallest * scales["forces"]), largest * scales["forces"])
    return {label: max(scale, SMALLEST_SCALE) for label, scale in scales.items()}


def charge_scales(
    model: Potential,
    structures: Sequence[Structure],
    labels: Iterable[str],
    parts: Iterable[str],
    processes: Processes = ALONE,
) -> dict[str, float]:
    """Root mean square of label - prediction of labels of the charges: 1 in the loss. Empty where the parts have no
    charges.

    Not less than a hundredth of the labels: charges that start right must not drown the forces in their rounding.
    """
    labels = set(labels)
    if not labels:
        return {}
    # read one at a time, like what is compared: together they may not fit into memory
    own = processes.part(len(structures))
    chosen = (s for s in (structures[n] for n in own) if labels & set(s.keys()))
    known = {label: _MeanSquare() for label in CHARGE_LABELS}
    left = {label: _MeanSquare() for label in CHARGE_LABELS}
    born = "born_charges" in labels
    for group, output in predict_structures(model, chosen, born_charges=born, parts=parts):
        start = 0
        for structure in group:
            atoms = slice(start, start + structure.num_nodes)
            start = atoms.stop
            present = [name for name in ("charges", "born_charges") if name in output]
            charges: dict[str, Tensor] = {name: output[name][atoms].cpu() for name in present}
            for label, value in charge_quantities(structure, charges).items():
                if label in labels and label in structure:
                    defined = structure[label].isfinite()
                    known[label].add(structure[label][defined])
                    left[label].add((value - structure[label])[defined])
    found = ((label, left[label].root(processes), known[label].root(processes)) for label in CHARGE_LABELS)
    return {
        label: max(wrong, 1e-2 * size, SMALLEST_SCALE)
        for label, wrong, size in found
        if wrong is not None and size is not None
    }


def _residual_energies(structures: Sequence[Structure]) -> Tensor:
    """(n,) label - known, eV/atom."""
    return torch.tensor([float(s.energy - s.known_energy) / s.num_nodes for s in structures], dtype=torch.float64)


def _residuals(structures: Sequence[Structure], label: str) -> Iterator[Tensor]:
    """label - known of each structure that has the label, one at a time: together they may not fit into memory."""
    return (s[label] - s[f"known_{label}"] for s in structures if label in s)


def _spread(values: Tensor, processes: Processes) -> float:
    """Standard deviation over the numbers (n,) of all processes."""
    sums = torch.tensor([len(values), float(values.sum())], dtype=torch.float64)
    count, total = processes.add(sums).tolist()
    squares = processes.add(((values.double() - total / count) ** 2).sum().view(1))
    return math.sqrt(float(squares) / count)


def _rms(values: Iterable[Tensor], processes: Processes = ALONE) -> float | None:
    """Root mean square over all numbers of all processes; None without any."""
    found = _MeanSquare()
    for value in values:
        found.add(value)
    return found.root(processes)


class _MeanSquare:
    """The mean square of numbers that come one tensor at a time."""

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def add(self, values: Tensor) -> None:
        self.total += float((values.double() ** 2).sum())
        self.count += values.numel()

    def root(self, processes: Processes = ALONE) -> float | None:
        """Of the numbers of all processes; None without any."""
        total, count = processes.add(torch.tensor([self.total, self.count], dtype=torch.float64)).tolist()
        return math.sqrt(total / count) if count else None
