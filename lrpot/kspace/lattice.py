"""The wave vectors of a crystal: all inside a sphere, one of each pair +k, -k."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from lrpot.errors import StructureError

# One structure factor of this many wave vectors takes about a gigabyte with its derivatives.
MAX_KVECTORS = 4_000_000
# On a mesh, about five.
MAX_MODES = 30_000_000
# Grids of wave vectors go along the lattice vectors: of a skewed cell they are larger than its volume says, which is
# free up to this factor.
FREE_SKEW = 10.0


@dataclass(frozen=True)
class KLattice:
    """The integer triples n of the wave vectors k = n @ reciprocal_cell(cell) inside a half sphere.

    k = 0 is left out, and of +k and -k only the one whose first non-zero index is positive is kept: |S(k)| is the
    same for both, so sums count each kept vector twice.

    The separable structure factor works on products of a first index n1 >= 0 and a column +-(n2, n3), where only one
    of each pair of columns is needed; `place` says where each triple is found there.

    Attributes:
        indices: (K, 3) int64.
        rows: (H,) int64, the values of n1.
        columns: (M, 2) int64, the values of (n2, n3), one of each pair.
        place: (K,) int64, where each triple stands in an array (2, H, M): first all (n1, n2, n3) of row and column,
            then all (n1, -n2, -n3).
    """

    indices: Tensor
    rows: Tensor
    columns: Tensor
    place: Tensor

    def __len__(self) -> int:
        return self.indices.shape[0]

    def to(self, device: torch.device) -> KLattice:
        """The same on another device."""
        return KLattice(*(getattr(self, field.name).to(device) for field in fields(self)))


def reciprocal_cell(cell: Tensor) -> Tensor:
    """Rows b_i with a_i . b_j = 2 pi delta_ij, of cells of either hand.

    Args:
        cell: (3, 3) or (G, 3, 3), rows a_i, A.
    Returns:
        the same shape, 1/A.
    """
    return 2.0 * math.pi * torch.linalg.inv(cell).mT


def k_lattice(cell: Tensor, k_cutoff: float) -> KLattice:
    """All wave vectors with 0 < |k| < k_cutoff, half space. Not differentiated: a set of integers.

    The sphere, not a box of indices, makes the set independent of the choice of the cell.

    Args:
        cell: (3, 3), rows are lattice vectors, A.
        k_cutoff: 1/A.
    Raises:
        StructureError: the sphere holds no vector, or so many that memory would run out (told before any is taken).
    """
    lattice = _k_lattice(cell.detach().cpu().numpy().astype(np.float64).tobytes(), float(k_cutoff))
    return lattice if cell.device.type == "cpu" else lattice.to(cell.device)


# Training returns to the same cells every epoch, and MD at constant volume at every step.
# Tensors made in inference mode could not serve a later call that is differentiated.
@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _k_lattice(cell_bytes: bytes, k_cutoff: float) -> KLattice:
    cell = np.frombuffer(cell_bytes).reshape(3, 3)
    indices = half_sphere(cell, k_cutoff)
    if len(indices) == 0:
        raise no_wave_vector(abs(np.linalg.det(cell)), k_cutoff)
    n1 = int(indices[:, 0].max())
    sign = np.where(_upper(indices[:, 1:]) | ~indices[:, 1:].any(axis=1), 1, -1)
    columns, column = np.unique(indices[:, 1:] * sign[:, None], axis=0, return_inverse=True)
    place = ((sign < 0) * (n1 + 1) + indices[:, 0]) * len(columns) + column.reshape(-1)
    return KLattice(
        indices=torch.from_numpy(indices),
        rows=torch.arange(n1 + 1),
        columns=torch.from_numpy(columns),
        place=torch.from_numpy(place),
    )


def half_sphere(cell: np.ndarray, k_cutoff: float) -> np.ndarray:
    """(K, 3) integer triples n of all wave vectors 0 < |k| < k_cutoff, one of each pair; there may be none.

    Args:
        cell: (3, 3), rows are lattice vectors, A. k_cutoff: 1/A.
    Raises:
        StructureError: so many that memory would run out (told before any is taken).
    """
    check_number(abs(np.linalg.det(cell)), k_cutoff, MAX_KVECTORS, np.linalg.norm(cell, axis=1).tolist())
    # |n_i| = |k . a_i| / 2 pi <= k_cutoff |a_i| / 2 pi
    n_max = np.floor(k_cutoff * np.linalg.norm(cell, axis=1) / (2.0 * math.pi)).astype(int)
    n1, n2, n3 = (int(n) for n in n_max)
    grid = np.stack(
        np.meshgrid(np.arange(n1 + 1), np.arange(-n2, n2 + 1), np.arange(-n3, n3 + 1), indexing="ij"), axis=-1
    ).reshape(-1, 3)
    k_squared = ((grid @ (2.0 * math.pi * np.linalg.inv(cell).T)) ** 2).sum(axis=1)
    return grid[_upper(grid) & (k_squared < k_cutoff**2)]


def no_wave_vector(volume: float, k_cutoff: float) -> StructureError:
    """The error of a sphere that holds none."""
    return StructureError(
        f"no wave vector lies below k_cutoff = {k_cutoff:g} 1/A in a cell of {volume:.3g} A^3; raise k_cutoff"
    )


def check_number(
    volume: float,
    k_cutoff: float,
    limit: int,
    lengths: Sequence[float],
    *,
    what: str = "a cell",
    cure: str = "remove vacuum from the cell",
) -> None:
    """Estimate the number of wave vectors before any memory is taken.

    Args:
        volume: A^3. k_cutoff: 1/A.
        limit: how many there may be.
        lengths: of the lattice vectors, A.
        what, cure: for the message.
    Raises:
        StructureError: more than the limit, or a cell so skewed that their grid is too large.
    """
    # the half sphere's volume over the volume (2 pi)^3 / V of one reciprocal cell
    expected = volume * k_cutoff**3 / (12.0 * math.pi**2)
    if expected > limit:
        raise StructureError(
            f"{what} of {volume:.3g} A^3 has about {expected:.2g} wave vectors below k_cutoff = {k_cutoff:g} 1/A, "
            f"more than {limit:.0e}; {cure} or lower k_cutoff"
        )
    if expected * math.prod(lengths) > FREE_SKEW * limit * volume:
        raise StructureError(
            f"the cell is too skewed: lattice vectors of {', '.join(f'{x:.3g}' for x in lengths)} A span {volume:.3g} "
            "A^3 only; give the same crystal in its reduced cell (ase.build.niggli_reduce)"
        )


def _upper(indices: np.ndarray) -> np.ndarray:
    """(K,) bool: the first index that is not zero is positive."""
    first = (indices != 0).argmax(axis=1)
    return np.take_along_axis(indices, first[:, None], axis=1)[:, 0] > 0
