"""The charges of a batch of structures, checked, with slabs in boxes: what the reciprocal sum is taken of."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lrpot.errors import ShapeError, StructureError
from lrpot.kspace.boundary import Boundary, boundary_of, slab_box
from lrpot.kspace.kernel import Kernel


@dataclass
class System:
    """
    Attributes:
        positions: (N, 3), float64, A.
        charges: (N, C), e.
        cells: (G, 3, 3), float64, A; of a slab its box, of a molecule a unit cube.
        counts: atoms of each structure.
        batch: (N,) the structure of each atom; None if there is one.
        molecules: structures that do not repeat at all.
        slabs: structures that repeat along two vectors, with the axis of the third.
    """

    positions: Tensor
    charges: Tensor
    cells: Tensor
    counts: list[int]
    batch: Tensor | None = None
    molecules: list[int] = field(default_factory=list)
    slabs: dict[int, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def index(self) -> Tensor:
        """(N,) the structure of each atom."""
        return torch.zeros_like(self.positions[:, 0], dtype=torch.int64) if self.batch is None else self.batch

    @property
    def crystals_only(self) -> bool:
        return not self.molecules and not self.slabs

    def of_structure(self, g: int) -> tuple[Tensor, Tensor]:
        """Positions (n, 3) and charges (n, C)."""
        rows = self.rows(g)
        return self.positions[rows], self.charges[rows]

    def rows(self, g: int) -> slice:
        """The atoms of structure g."""
        start = sum(self.counts[:g])
        return slice(start, start + self.counts[g])

    def inverse(self) -> Tensor:
        """(G, 3, 3), 1/A: inverse cells."""
        return torch.linalg.inv(self.cells)

    def fractional(self, inverse: Tensor) -> Tensor:
        """(N, 3), in the precision of the charges, between -1/2 and 1/2.

        Whole cells are taken off before anything else, so that a phase keeps its digits far from the origin.
        """
        if len(self) == 1:
            fractional = self.positions @ inverse[0]
        else:
            fractional = torch.bmm(self.positions[:, None], inverse[self.index])[:, 0]
        return (fractional - torch.round(fractional.detach())).to(self.charges.dtype)

    def slope(self, by_fractional: Tensor, inverse: Tensor) -> Tensor:
        """(N, 3): a derivative by fractional coordinates as one by positions."""
        by_fractional = by_fractional.to(torch.float64)
        if len(self) == 1:
            return by_fractional @ inverse[0].mT
        return torch.bmm(by_fractional[:, None], inverse.mT[self.index])[:, 0]

    def with_cells(self, cells: Tensor) -> System:
        other = copy.copy(self)
        other.cells = cells
        return other

    def per_structure(self, values: Tensor) -> Tensor:
        """(G,) float64: sums of (N,) values."""
        total = torch.zeros(len(self), dtype=torch.float64, device=values.device)
        return total.index_add(0, self.index, values.to(torch.float64))


def make_system(
    positions: Tensor, charges: Tensor, cell: Tensor, batch: Tensor | None, pbc: Tensor | None, kernel: Kernel
) -> System:
    """
    Args:
        positions: (N, 3), A. charges: (N, C), e. cell: (3, 3) or (G, 3, 3), A.
        batch: (N,) the structure of each atom, ascending; None if there is one.
        pbc: (3,) or (G, 3) bool; None if all repeat in all directions.
        kernel: its reach decides on the gap between a slab and its images.
    Raises:
        ShapeError, StructureError: see `ReciprocalSum.forward`.
    """
    cells = cell.reshape(-1, 3, 3).to(torch.float64)
    _check_shapes(positions, charges, cells, batch)
    counts = [len(positions)] if batch is None else torch.bincount(batch, minlength=len(cells)).tolist()
    system = System(positions.to(torch.float64), charges, cells, counts, batch)
    if pbc is not None and not bool(pbc.all()):
        _open(system, pbc.reshape(-1, 3).expand(len(cells), 3), kernel.reach)
    return system


def check_finite(energy: Tensor, positions: Tensor, charges: Tensor, cell: Tensor) -> None:
    """Look for the cause of an energy that is not finite; a look at the energy alone costs nothing.

    Raises:
        StructureError: an input holds nan or inf, or numbers too large to compute with.
    """
    if math.isfinite(float(energy.sum())):
        return
    _check_atoms(positions, charges)
    if not bool(torch.isfinite(cell).all()):
        raise StructureError(f"the cell {cell.tolist()} holds a number that is not finite (nan or inf)")
    raise StructureError("the reciprocal energy is not finite; the charges or the kernel are too large")


def _check_atoms(positions: Tensor, charges: Tensor) -> None:
    for name, values in (("position", positions), ("charge", charges)):
        wrong = ~torch.isfinite(values).all(dim=1)
        if bool(wrong.any()):
            atom = int(wrong.nonzero()[0])
            raise StructureError(f"the {name} {values[atom].tolist()} of atom {atom} is not finite (nan or inf)")


def _open(system: System, pbc: Tensor, reach: float) -> None:
    """Put slabs into boxes, and molecules aside."""
    # a box is made by the extent of its atoms
    _check_atoms(system.positions.detach(), system.charges.detach())
    cells = list(system.cells.unbind())
    for g, flags in enumerate(pbc.cpu()):
        boundary = boundary_of(flags)
        if boundary is Boundary.ISOLATED:
            system.molecules.append(g)
            # it may come with no cell at all, and needs none
            cells[g] = torch.eye(3).to(system.cells)
        elif boundary is Boundary.SLAB:
            system.slabs[g] = int((~flags).nonzero()[0])
            cells[g] = slab_box(system.of_structure(g)[0], cells[g], system.slabs[g], reach)
    system.cells = torch.stack(cells)


def _check_shapes(positions: Tensor, charges: Tensor, cells: Tensor, batch: Tensor | None) -> None:
    n_atoms = positions.shape[0]
    if positions.shape != (n_atoms, 3):
        raise ShapeError(f"positions have shape {tuple(positions.shape)}; expected (N, 3)")
    if charges.ndim != 2 or charges.shape[0] != n_atoms:
        raise ShapeError(f"charges have shape {tuple(charges.shape)}; expected ({n_atoms}, channels)")
    if batch is None and cells.shape[0] != 1:
        raise ShapeError(f"{cells.shape[0]} cells but no batch index; give (N,) the structure of each atom")
    if batch is not None and batch.shape != (n_atoms,):
        raise ShapeError(f"batch has shape {tuple(batch.shape)}; expected ({n_atoms},)")
    if batch is not None and bool((batch[1:] < batch[:-1]).any()):
        raise ShapeError("batch is not ascending; sort the atoms by structure")
    if batch is not None and n_atoms and not 0 <= int(batch[0]) <= int(batch[-1]) < len(cells):
        raise ShapeError(
            f"batch goes from {int(batch[0])} to {int(batch[-1])}, but there are {len(cells)} cells; count structures "
            "from 0, and give each a cell"
        )
