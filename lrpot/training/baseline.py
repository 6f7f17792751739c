"""What is known before any training: an energy per element, and the size of what is left to learn."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from lrpot.evaluation import predict_structures
from lrpot.potential import Potential
from lrpot.structure import LABELS, Structure

# Residuals smaller than this (eV, eV/A) are rounding of the labels; dividing by less would amplify it.
SMALLEST_SCALE = 1e-9


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


def fit_baseline(model: Potential, structures: Sequence[Structure]) -> None:
    """Set offsets and scale of the short-range part from what the rest of the model leaves of the labels.

    The offset of each element is the least-squares solution of least norm for the energies; the scale is the root
    mean square of the remaining forces. The readout must still be zero, and `known_*` must hold the long-range part
    if it is present.
    """
    elements = torch.tensor(model.elements)
    counts = torch.stack([(s.numbers[:, None] == elements).sum(dim=0) for s in structures]).to(torch.float64)
    energies = torch.cat([s.energy - s.known_energy for s in structures])
    # per atom, so that a large cell weighs like a small one
    n_atoms = counts.sum(dim=1)
    offsets = torch.linalg.lstsq(counts / n_atoms[:, None], energies / n_atoms, driver="gelsd").solution
    model.short.offset.zero_()
    model.short.offset[elements] = offsets.to(model.short.offset)
    left = (energies - counts @ offsets) / n_atoms
    forces = _residual_forces(structures)
    scale = _rms(forces) if forces is not None else _rms(left)
    model.short.scale.fill_(max(scale, SMALLEST_SCALE))


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


def _residual_forces(structures: Sequence[Structure]) -> Tensor | None:
    forces = [(s.forces - s.known_forces).reshape(-1) for s in structures if "forces" in s]
    return torch.cat(forces) if forces else None


def _rms(values: Tensor) -> float:
    return float((values**2).mean().sqrt())
