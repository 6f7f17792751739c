"""Charges onto a mesh and its field back to the atoms, by a window w points wide along each axis.

Two ways with one result: compiled loops on the CPU, tensor operations on any device.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lrpot.compiled import group
from lrpot.kspace.mesh_loops import loops
from lrpot.kspace.window import window_polynomials
from lrpot.threads import share

TAPS = 1 << 20  # atoms times points of the window that tensor operations handle at once
TAPS_PER_UNIT = 16  # of work, see `lrpot.threads.share`


class Grid:
    """A mesh and the window's polynomials on it.

    Attributes:
        sizes: points along each axis, at least as many as the window is wide.
        width: w. polynomials: (D + 1, w). counts: (3,), the sizes in the precision of the computation.
    """

    def __init__(self, sizes: tuple[int, ...], width: int, shape: float, device: torch.device, dtype: torch.dtype):
        """
        Args:
            shape: of the window, see `lrpot.kspace.window`.
        """
        self.sizes = sizes
        self.width = width
        self.polynomials = torch.from_numpy(window_polynomials(width, shape)).to(device, dtype)
        self.counts = torch.tensor(sizes, device=device, dtype=dtype)


class Taps(Protocol):
    """The windows of the atoms."""

    def __init__(self, fractional: Tensor, grid: Grid) -> None:
        """fractional: (N, 3), in units of the lattice vectors."""

    def spread(self, charges: Tensor) -> Tensor:
        """(C, M1, M2, M3), e: charges (N, C) on the mesh."""

    def look_up(self, field: Tensor) -> Tensor:
        """The field (C, M1, M2, M3) at the atoms, (N, C)."""

    def gather(self, field: Tensor, charges: Tensor) -> tuple[Tensor, Tensor]:
        """The same, and its derivative by mesh coordinates times charges, summed over channels, (N, 3)."""


class CompiledTaps:
    """`Taps` on the CPU; see `lrpot.kspace.mesh_loops`."""

    def __init__(self, fractional: Tensor, grid: Grid) -> None:
        self.grid = grid
        n = len(fractional)
        self.sizes = np.array(grid.sizes)
        self.work = n * grid.width**3 // TAPS_PER_UNIT
        self.each = np.arange(n + 1)  # atoms are rows of one entry
        self.loops = loops(grid.width)
        polynomials = grid.polynomials.numpy()
        self.places = np.empty((n, 3), np.int64)
        self.values = np.empty((n, 3, 2, grid.width), polynomials.dtype)
        inputs = _array(fractional), polynomials, self.sizes
        share(self.loops.windows, self.each, self.work, *inputs, self.places, self.values)
        self.order, self.by_plane = self._sorted()
        self.windows = self.order, self.places, self.values, self.sizes

    def spread(self, charges: Tensor) -> Tensor:
        density = torch.zeros(charges.shape[1], *self.grid.sizes, dtype=self.grid.counts.dtype)
        arrays = *self.windows, _array(charges), density.flatten(1).numpy()
        share(self.loops.spread, self.by_plane, self.work, *arrays)
        return density

    def look_up(self, field: Tensor) -> Tensor:
        found = np.empty((len(self.places), len(field)), self.values.dtype)
        share(self.loops.look_up, self.each, self.work, *self.windows, field.flatten(1).numpy(), found)
        return torch.from_numpy(found)

    def gather(self, field: Tensor, charges: Tensor) -> tuple[Tensor, Tensor]:
        found = np.empty((len(self.places), len(field)), self.values.dtype)
        by_mesh = np.empty((len(self.places), 3), self.values.dtype)
        arrays = *self.windows, _array(charges), field.flatten(1).numpy()
        share(self.loops.gather, self.each, self.work, *arrays, by_mesh, found)
        return torch.from_numpy(found), torch.from_numpy(by_mesh)

    def _sorted(self) -> tuple[np.ndarray, np.ndarray]:
        """(N,) the atoms by row of the mesh, and (M1 + 1,) where those of each plane begin."""
        planes, rows, _ = self.grid.sizes
        pointers = np.empty(planes * rows + 1, np.int64)
        order = np.empty(len(self.places), np.int64)
        group(self.places[:, 0] * rows + self.places[:, 1], pointers, order)
        return order, pointers[::rows].copy()


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy()


class TensorTaps:
    """`Taps` on any device.

    The mesh is continued by the width of the window beyond the end of each axis, so that no window is cut in two.
    """

    def __init__(self, fractional: Tensor, grid: Grid) -> None:
        self.grid = grid
        self.n_atoms = len(fractional)
        self.padded = tuple(size + grid.width for size in grid.sizes)
        steps = torch.arange(grid.width, device=fractional.device)
        _, rows, columns = self.padded
        self.strides = torch.tensor([rows * columns, columns, 1], device=fractional.device)
        self.offsets = ((steps[:, None, None] * rows + steps[:, None]) * columns + steps).reshape(-1)
        size = max(1, TAPS // len(self.offsets))
        self.blocks = [slice(n, n + size) for n in range(0, self.n_atoms, size)]
        self.windows = [self._window(fractional[block]) for block in self.blocks]
        # one array for all blocks: a new one each time costs more than what is written into it
        self.buffer = self.offsets.new_empty(min(size, self.n_atoms), len(self.offsets))

    def spread(self, charges: Tensor) -> Tensor:
        n_channels = charges.shape[1]
        density = charges.new_zeros(n_channels, self.padded[0] * self.padded[1] * self.padded[2])
        for block, (place, values, _) in zip(self.blocks, self.windows, strict=True):
            x, y, z = values.unbind(dim=1)
            plane = (y[:, :, None] * z[:, None]).flatten(1)[:, None]
            places = self._places(place)
            for channel in range(n_channels):
                spread = (x * charges[block, channel, None])[:, :, None] * plane
                density[channel].scatter_add_(0, places, spread.reshape(-1))
        return self._folded(density)

    def look_up(self, field: Tensor) -> Tensor:
        return self.gather(field, field.new_zeros(self.n_atoms, len(field)))[0]

    def gather(self, field: Tensor, charges: Tensor) -> tuple[Tensor, Tensor]:
        field = self._unfolded(field)
        width = self.grid.width
        by_mesh, found = charges.new_zeros(self.n_atoms, 3), torch.empty_like(charges)
        for block, (place, values, slopes) in zip(self.blocks, self.windows, strict=True):
            x, y, z = torch.stack([values, slopes], dim=2).unbind(dim=1)  # (n, 2, w)
            places = self._places(place)
            for channel in range(len(field)):
                around = field[channel].index_select(0, places).view(-1, width, width**2)
                # rows: value and slope along x; then y, then z
                in_x = torch.bmm(x, around).view(-1, 2 * width, width)
                in_xz = torch.bmm(in_x, z.mT).view(-1, 2, width, 2)  # (n, x, y', z)
                in_all = torch.einsum("nxwz,nyw->nxyz", in_xz, y)
                found[block, channel] = in_all[:, 0, 0, 0]
                gradient = torch.stack([in_all[:, 1, 0, 0], in_all[:, 0, 1, 0], in_all[:, 0, 0, 1]], dim=1)
                by_mesh[block] += charges[block, channel, None] * gradient
        return found, by_mesh

    def _window(self, fractional: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Where each atom's window begins in the padded mesh (n,), its values and slopes (n, 3, w)."""
        polynomials, counts = self.grid.polynomials, self.grid.counts
        begin = fractional * counts - 0.5 * self.grid.width
        first = torch.floor(begin)
        t = 2.0 * (begin - first) - 1.0
        powers = torch.ones_like(t)[..., None].expand(-1, -1, len(polynomials)).clone()
        powers[..., 1:] = t[..., None]
        powers = torch.cumprod(powers, dim=-1)
        values = powers @ polynomials
        # by mesh coordinate; the polynomials run over [-1, 1] in one step of the mesh
        degree = torch.arange(1, len(polynomials), device=counts.device, dtype=counts.dtype)
        slopes = powers[..., :-1] @ (2.0 * (degree[:, None] * polynomials[1:]))
        # the window's first point is the one after its beginning
        place = torch.remainder(first.to(torch.int64) + 1, counts.to(torch.int64))
        return (place * self.strides).sum(dim=1), values, slopes

    def _places(self, place: Tensor) -> Tensor:
        """(n w^3,) the points of the windows that begin at (n,)."""
        return torch.add(place[:, None], self.offsets, out=self.buffer[: len(place)]).view(-1)

    def _folded(self, density: Tensor) -> Tensor:
        """(C, M1, M2, M3): what was spread beyond the end of an axis is added at its beginning."""
        density = density.view(-1, *self.padded)
        for axis, size in enumerate(self.grid.sizes, start=1):
            density.narrow(axis, 0, self.grid.width).add_(density.narrow(axis, size, self.grid.width))
            density = density.narrow(axis, 0, size)
        return density

    def _unfolded(self, field: Tensor) -> Tensor:
        """(C, padded): the beginning of each axis repeated after its end."""
        padded = field.new_empty(len(field), *self.padded)
        one, two, three = self.grid.sizes
        width = self.grid.width
        padded[:, :one, :two, :three] = field
        padded[:, :one, :two, three:] = padded[:, :one, :two, :width]
        padded[:, :one, two:] = padded[:, :one, :width]
        padded[:, one:] = padded[:, :width]
        return padded.view(len(field), -1)
