"""One crystal as tensors, and a batch of them. Everything in lrpot speaks in these fields.

================  =============  =======  ==============================================================
field             shape          dtype    meaning, unit
================  =============  =======  ==============================================================
numbers           (N,)           int64    atomic numbers
positions         (N, 3)         float64  Cartesian, A; need not be wrapped
cell              (G, 3, 3)      float64  rows are lattice vectors, A; left-handed is legal; zero if isolated
pbc               (G, 3)         bool     periodic along each lattice vector
total_charge      (G,)           float64  e
edge_index        (2, E)         int64    [0] neighbour j, [1] centre i; sorted by centre
edge_shift        (E, 3)         float64  r_ij = positions[j] + shift @ cell - positions[i], in whole cells
batch             (N,)           int64    the structure an atom belongs to (batches only)
row               (G,)           int64    place in the file that it was read from (optional)
energy            (G,)           float64  label, eV (optional)
forces            (N, 3)         float64  label, eV/A (optional)
stress            (G, 3, 3)      float64  label, eV/A^3, ASE's sign: positive under tension (optional)
charges           (N,)           float64  label, e (optional)
dipole            (G, 3)         float64  label, e A, along `data.labels.open_directions`: x, y, z of a
                                          molecule; of a slab the part along its normal; nan where none is defined
                                          (optional)
born_charges      (N, 3, 3)      float64  label, e: dP_a/dr_b of each atom, over the square root of the dielectric
                                          constant (optional)
targets           (G, T)         float64  properties of the crystal, in units of the data set; nan where one is not
                                          known (optional)
wave_pairs        (sum A^2, B)   network  what a fit keeps of the waves of each crystal, a row for each pair of its A
                                          atoms, in 1/A^3, see `properties.wave_filter`; no rows: not kept (optional)
place             (N, P)         network  what a fit keeps of the place of each atom in its graph, see
                                          `properties.walks` (optional)
================  =============  =======  ==============================================================

G is the number of structures: 1 in a `Structure`, more in a batch. Positions and cell are always float64, so that
an edge vector is a difference of exact numbers; a network casts them to its own precision.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Batch, Data

# Of the energy and its derivatives, to which every part of a model adds; and of the charges.
LABELS = ("energy", "forces", "stress")
CHARGE_LABELS = ("charges", "dipole", "born_charges")

# Of the last element with a name. Tables by atomic number have one row more, for it counts from 1.
MAX_ATOMIC_NUMBER = 118


class Structure(Data):
    """One crystal; see the table of this module for fields, shapes and units."""

    def __inc__(self, key: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        return self.num_nodes if key == "edge_index" else 0

    def __cat_dim__(self, key: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        return 1 if key == "edge_index" else 0


def make_structure(
    numbers: Any,
    positions: Any,
    cell: Any,
    pbc: Any,
    *,
    total_charge: float = 0.0,
    energy: float | None = None,
    forces: Any = None,
    stress: Any = None,
    charges: Any = None,
    dipole: Any = None,
    born_charges: Any = None,
    targets: Any = None,
) -> Structure:
    """A structure from arrays, without edges.

    Args:
        numbers: (N,) atomic numbers.
        positions: (N, 3), A.
        cell: (3, 3), rows are lattice vectors, A.
        pbc: (3,) bool.
        total_charge: e.
        energy: eV; a label, where known, as all that follow.
        forces: (N, 3), eV/A.
        stress: (3, 3), eV/A^3.
        charges: (N,), e.
        dipole: (3,), e A.
        born_charges: (N, 3, 3), e; see the table of this module.
        targets: (T,), properties of the crystal.
    """
    fields: dict[str, Tensor] = {
        "numbers": torch.as_tensor(numbers, dtype=torch.int64),
        "positions": _float64(positions),
        "cell": _float64(cell).reshape(1, 3, 3),
        "pbc": torch.as_tensor(pbc, dtype=torch.bool).reshape(1, 3),
        "total_charge": torch.tensor([total_charge], dtype=torch.float64),
    }
    if energy is not None:
        fields["energy"] = torch.tensor([energy], dtype=torch.float64)
    if forces is not None:
        fields["forces"] = _float64(forces)
    if stress is not None:
        fields["stress"] = _float64(stress).reshape(1, 3, 3)
    if charges is not None:
        fields["charges"] = _float64(charges)
    if dipole is not None:
        fields["dipole"] = _float64(dipole).reshape(1, 3)
    if born_charges is not None:
        fields["born_charges"] = _float64(born_charges).reshape(-1, 3, 3)
    if targets is not None:
        fields["targets"] = _float64(targets).reshape(1, -1)
    return Structure(num_nodes=len(fields["numbers"]), **fields)


def collate(structures: Sequence[Structure]) -> Batch:
    """Structures as one batch. A label is kept only if every structure has it."""
    labels = LABELS + CHARGE_LABELS
    kept = {label for label in labels if all(label in structure for structure in structures)}
    dropped = [name for label in labels if label not in kept for name in (label, f"known_{label}")]
    return Batch.from_data_list(list(structures), exclude_keys=dropped)


def collate_with_gaps(structures: Sequence[Structure]) -> Batch:
    """Structures as one batch with every label that any of them has: nan, and 0 for `known_`, where one lacks it."""
    present = [label for label in LABELS + CHARGE_LABELS if any(label in structure for structure in structures)]
    filled = []
    for structure in structures:
        missing = [label for label in present if label not in structure]
        if missing:
            structure = copy.copy(structure)  # shallow: the caller's keeps its gap
            for label in missing:
                shape = gap(label, len(structure.positions))
                structure[label] = torch.full(shape, torch.nan, dtype=torch.float64)
                if label in LABELS:
                    structure[f"known_{label}"] = torch.zeros(shape, dtype=torch.float64)
        filled.append(structure)
    return Batch.from_data_list(filled)


def gap(label: str, n_atoms: int) -> tuple[int, ...]:
    """The shape of a label of one structure."""
    shapes: dict[str, tuple[int, ...]] = {"energy": (1,), "forces": (n_atoms, 3), "stress": (1, 3, 3)}
    shapes |= {"charges": (n_atoms,), "dipole": (1, 3), "born_charges": (n_atoms, 3, 3)}
    return shapes[label]


def batch_index(batch: Data) -> Tensor:
    """(N,) the structure each atom belongs to; zeros for a single `Structure`."""
    index = getattr(batch, "batch", None)
    return torch.zeros_like(batch.numbers) if index is None else index


def edge_vectors(batch: Data) -> Tensor:
    """(E, 3) float64, A: r_ij = positions[j] + shift @ cell - positions[i]; differentiable."""
    neighbour, centre = batch.edge_index
    if batch.cell.shape[0] == 1:
        shift = batch.edge_shift @ batch.cell[0]
    else:
        cells = batch.cell[batch_index(batch)[centre]]
        shift = torch.einsum("ea,eab->eb", batch.edge_shift, cells)
    # index_select, and its derivative, take half the time of an index in brackets
    return batch.positions.index_select(0, neighbour) - batch.positions.index_select(0, centre) + shift


def _float64(values: Any) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64).clone()
