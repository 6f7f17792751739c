"""S(k) with the phase split by axes: k.r = 2 pi (n1 f1 + (n2 f2 + n3 f3)), an index of one axis and one of a plane.

Sine and cosine are taken of N (H + M) phases instead of N K, and the sum over atoms is one real matrix product

    G[s, h, t, m] = sum_j q_j s(2 pi n1_h f1_j) t(2 pi (n2_m f2_j + n3_m f3_j))        s, t in {cos, sin}

from which both S(n1, n2, n3) = (cc - ss) - i (sc + cs) and S(n1, -n2, -n3) = (cc + ss) - i (sc - cs) follow: only one
of each pair of columns is needed, and no N x K array is stored. The energy is a quadratic form in G, so its gradient
is two more products with the same factors, and the gradient of that is of the same kind. Structures of one shape are
computed together, others one after the other; nothing is padded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lrpot.kspace.lattice import KLattice
from lrpot.kspace.quadratic import Gradient, Total, unshared

# Numbers in one array of phases: below this they stay in the processor's cache.
BLOCK = 1 << 20


def most_structures(n_atoms: int, lattice: KLattice) -> int:
    """How many structures of one shape should be computed together."""
    return max(1, BLOCK // (2 * n_atoms * (len(lattice.rows) + len(lattice.columns))))


class Separable:
    """The sum over the wave vectors of b lattices with equally many rows H and columns M.

    Weights have the shape (b, C or 1, 2, H, M); see `weights`.
    """

    total: Total = staticmethod(unshared)

    def __init__(self, lattices: Sequence[KLattice], device: torch.device, dtype: torch.dtype) -> None:
        self.n_rows, self.n_columns = len(lattices[0].rows), len(lattices[0].columns)
        if all(lattice is lattices[0] for lattice in lattices):
            lattices = lattices[:1]
        rows = lattices[0].rows.to(device, dtype)
        columns = torch.stack([lattice.columns for lattice in lattices]).to(device, dtype).mT  # (b or 1, 2, M)
        # angles = f @ waves + quarters: cosines first, then sines as cosines a quarter turn behind; first of the rows
        self.waves = columns.new_zeros(len(columns), 3, 2 * (self.n_rows + self.n_columns))
        self.waves[:, 0, : 2 * self.n_rows] = 2.0 * math.pi * torch.cat([rows, rows])
        self.waves[:, 1:, 2 * self.n_rows :] = 2.0 * math.pi * torch.cat([columns, columns], dim=2)
        self.quarters = self.waves.new_zeros(self.waves.shape[2])
        self.quarters[self.n_rows : 2 * self.n_rows] = -0.5 * math.pi
        self.quarters[2 * self.n_rows + self.n_columns :] = -0.5 * math.pi
        # what a displacement does to the phases: the second half of each goes with the sines' derivative, see `_turned`
        turning = self.waves.mT.clone()
        turning[:, self.n_rows : 2 * self.n_rows] *= -1.0
        turning[:, 2 * self.n_rows + self.n_columns :] *= -1.0
        self.row_turning = _alone(turning[:1, : 2 * self.n_rows])
        self.column_turning = _alone(turning[:, 2 * self.n_rows :])
        self.sign = self.waves.new_tensor([[-1.0, 1.0], [1.0, -1.0]])[:, None, :, None]

    @property
    def nbytes(self) -> int:
        return sum(value.nbytes for value in vars(self).values() if isinstance(value, Tensor))

    def weights(self, values: Tensor, lattices: Sequence[KLattice]) -> Tensor:
        """Weights w of sum_k w_k |S(k)|^2 in the order of the lattices' wave vectors (K, C or 1), laid out for
        `evaluate`: (b, C or 1, 2, H, M), twice the sum and twice the difference of those of S(n1, n2, n3) and
        S(n1, -n2, -n3)."""
        size = 2 * self.n_rows * self.n_columns
        place = torch.cat([lattice.place + b * size for b, lattice in enumerate(lattices)]).to(values.device)
        placed = values.new_zeros(len(lattices) * size, values.shape[1]).index_copy(0, place, 2.0 * values)
        plus, minus = placed.view(len(lattices), 2, self.n_rows, self.n_columns, -1).movedim(-1, 1).unbind(dim=2)
        return torch.stack([plus + minus, plus - minus], dim=2)

    def evaluate(self, fractional: Tensor, charges: Tensor, weights: Tensor, *, power: bool) -> tuple[Tensor, Gradient]:
        """Energies (b,), float64, eV, and their gradient (see `Gradient`)."""
        blocks = self._blocks(fractional)
        n_structures, n_atoms, n_channels = charges.shape
        fractional, charges, weights = _alone(fractional), _alone(charges), _alone(weights)
        # the factors of a single block serve both passes
        kept = self._factors(fractional) if len(blocks) == 1 else None
        grid = None
        for block in blocks:
            left, right = kept or self._factors(fractional[block])
            product = _times(left, charges if kept else charges[block]).mT @ right  # (..., C 2 H, 2 M)
            grid = product if grid is None else grid + product
        assert grid is not None
        grid = self.total(grid)
        inner = (*grid.shape[:-2], n_channels, 2, self.n_rows, 2, self.n_columns)
        response = self._response(grid.view(inner), weights).view(grid.shape)
        energy = 0.5 * torch.sum(grid * response, dim=(-2, -1), dtype=torch.float64).reshape(n_structures)
        square = 0.5 * self._overlap(grid.view(inner), grid.view(inner), weights) if power else None
        pieces = []
        for block in blocks:
            left, right = kept or self._factors(fractional[block])
            q = charges if kept else charges[block]
            by_rows = right @ response.mT
            of_right = _times(left, q) @ response
            by_charges, of_left = _per_channel(by_rows, left, q)
            pieces.append((self._turned(left, of_left, right, of_right), by_charges))
        by_fractional = pieces[0][0] if kept else torch.cat([piece for piece, _ in pieces])
        by_charges = pieces[0][1] if kept else torch.cat([piece for _, piece in pieces])
        if square is not None:
            square = square.view(n_structures, *square.shape[-4:])
        return energy, Gradient(
            by_fractional.view(n_structures, n_atoms, 3), by_charges.view(n_structures, n_atoms, n_channels), square
        )

    def potential(self, fractional: Tensor, weights: Tensor) -> Callable[[Tensor], Tensor]:
        """(b, n, C), eV/e, from charges (b, n, C); see `quadratic.Engine`. Phases that fill one block are kept."""
        blocks = self._blocks(fractional)
        fractional, weights = _alone(fractional), _alone(weights)
        kept = self._factors(fractional) if len(blocks) == 1 else None

        def potential(charges: Tensor) -> Tensor:
            shape, charges = charges.shape, _alone(charges)
            grid = None
            for block in blocks:
                left, right = kept or self._factors(fractional[block])
                product = _times(left, charges if kept else charges[block]).mT @ right
                grid = product if grid is None else grid + product
            assert grid is not None
            inner = (*grid.shape[:-2], shape[-1], 2, self.n_rows, 2, self.n_columns)
            response = self._response(grid.view(inner), weights).view(grid.shape)
            pieces = []
            for block in blocks:
                left, right = kept or self._factors(fractional[block])
                pieces.append(_by_charges(right @ response.mT, left, shape[-1]))
            return torch.cat(pieces, dim=-2).view(shape)

        return potential

    def differentiate(
        self, fractional: Tensor, charges: Tensor, weights: Tensor, seed: Tensor, along: Gradient
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The gradient of seed * <gradient, along>; see `quadratic.Engine`.

        With d the derivative along (`along.fractional`, `along.charges`) and W the response of G, <gradient, along> is
        <W, dG>, and <W', G> / 2 from `along.power` with the response W' to it as to weights. What follows is the chain
        rule through G = L^T R and dG = dL^T R + L^T dR, with L the factors of the rows times charges and R those of
        the columns.
        """
        n_channels = charges.shape[-1]
        blocks = self._blocks(fractional)
        shapes = fractional.shape, charges.shape, weights.shape
        fractional, charges, weights = _alone(fractional), _alone(charges), _alone(weights)
        d_fractional, d_charges = _alone(along.fractional), _alone(along.charges)
        grid = d_grid = None
        for block in blocks:
            left, right, d_left, d_right = self._moved(fractional[..., block, :], d_fractional[..., block, :])
            q, d_q = charges[..., block, :], d_charges[..., block, :]
            weighted = _times(left, q)
            product = weighted.mT @ right
            d_product = (_times(d_left, q) + _times(left, d_q)).mT @ right + weighted.mT @ d_right
            grid = product if grid is None else grid + product
            d_grid = d_product if d_grid is None else d_grid + d_product
        assert grid is not None
        assert d_grid is not None
        inner = (n_channels, 2, self.n_rows)
        grid = grid.unflatten(-2, inner).unflatten(-1, (2, self.n_columns))
        d_grid = d_grid.unflatten(-2, inner).unflatten(-1, (2, self.n_columns))
        response, d_response = self._response(grid, weights), self._response(d_grid, weights)
        by_weights = self._overlap(grid, d_grid, weights)
        by_seed = torch.sum((response * d_grid).flatten(-5), dim=-1, dtype=torch.float64).reshape(-1)
        if along.power is not None:
            extra = self._response(grid, _alone(along.power))
            d_response = d_response + extra
            by_seed = by_seed + 0.5 * torch.sum((extra * grid).flatten(-5), dim=-1, dtype=torch.float64).reshape(-1)
        w, d_w = response.flatten(-5, -3).flatten(-2), d_response.flatten(-5, -3).flatten(-2)
        pieces = []
        for block in blocks:
            left, right, d_left, d_right = self._moved(fractional[..., block, :], d_fractional[..., block, :])
            q, d_q = charges[..., block, :], d_charges[..., block, :]
            # by the factors of the rows and those of the columns, each with and without d
            of_d_rows = (right @ w.mT).unflatten(-1, (n_channels, -1))
            of_rows = (right @ d_w.mT + d_right @ w.mT).unflatten(-1, (n_channels, -1))
            by_charges = (of_rows * left[..., None, :] + of_d_rows * d_left[..., None, :]).sum(dim=-1)
            of_left = (of_rows * q[..., None] + of_d_rows * d_q[..., None]).sum(dim=-2)
            of_d_left = (of_d_rows * q[..., None]).sum(dim=-2)
            of_d_right = _times(left, q) @ w
            of_right = _times(left, q) @ d_w + (_times(d_left, q) + _times(left, d_q)) @ w
            by_fractional = self._turned(left, of_left, right, of_right)
            by_fractional = by_fractional + self._turned(d_left, of_d_left, d_right, of_d_right)
            pieces.append((by_fractional, by_charges))
        by_fractional = torch.cat([piece for piece, _ in pieces], dim=-2).view(shapes[0])
        by_charges = torch.cat([piece for _, piece in pieces], dim=-2).view(shapes[1])
        factor = seed.to(charges.dtype)[:, None, None]
        by_weights = by_weights.reshape(shapes[2]) * seed.to(by_weights.dtype)[:, None, None, None, None]
        return by_fractional * factor, by_charges * factor, by_weights, by_seed

    def _blocks(self, fractional: Tensor) -> list[slice]:
        """Slices of the atoms of one structure whose phases fill one block; several structures are one (see
        `most_structures`)."""
        n_structures, n_atoms, _ = fractional.shape
        size = n_atoms if n_structures > 1 else max(1, BLOCK // (2 * (self.n_rows + self.n_columns)))
        return [slice(n, n + size) for n in range(0, max(n_atoms, 1), size)]

    def _factors(self, fractional: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines, then sines, of the phases of the rows (..., n, 2 H) and of the columns (..., n, 2 M)."""
        if len(self.waves) == 1:
            angles = torch.addmm(self.quarters, fractional.reshape(-1, 3), self.waves[0])
            angles = angles.view(*fractional.shape[:-1], self.waves.shape[2])
        else:
            angles = torch.baddbmm(self.quarters, fractional, self.waves)
        factors = torch.cos_(angles)
        return factors[..., : 2 * self.n_rows], factors[..., 2 * self.n_rows :]

    def _moved(self, fractional: Tensor, along: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The factors, and their derivatives along a displacement of the atoms."""
        left, right = self._factors(fractional)
        angles = along @ (self.waves[0] if len(self.waves) == 1 else self.waves)
        d_left = _quarter_turn(left) * angles[..., : 2 * self.n_rows]
        d_right = _quarter_turn(right) * angles[..., 2 * self.n_rows :]
        return left, right, d_left, d_right

    def _turned(self, left: Tensor, of_left: Tensor, right: Tensor, of_right: Tensor) -> Tensor:
        """(..., n, 3): what a displacement of the atoms does to <left, of_left> + <right, of_right>."""
        # cosines change with the sines, sines with the cosines: the halves change places
        by_rows = (left * torch.roll(of_left, self.n_rows, dims=-1)) @ self.row_turning
        return by_rows + (right * torch.roll(of_right, self.n_columns, dims=-1)) @ self.column_turning

    def _response(self, grid: Tensor, weights: Tensor) -> Tensor:
        """The derivative of sum_k w_k |S(k)|^2 by G (..., C, 2, H, 2, M), in which it is linear."""
        weights = weights[..., None, :, :, None, :]  # (..., C or 1, 1, 2, H, 1, M)
        total, difference = weights.select(-4, 0), weights.select(-4, 1)
        return total * grid + difference * (self.sign * grid.flip(-4, -2))

    def _overlap(self, one: Tensor, other: Tensor, weights: Tensor) -> Tensor:
        """The derivative of <response of one, other> by the weights, in their shape."""
        total = (one * other).sum(dim=(-4, -2))
        difference = (self.sign * one.flip(-4, -2) * other).sum(dim=(-4, -2))
        return torch.stack([total, difference], dim=-3).sum_to_size(weights.shape).to(weights.dtype)


def _quarter_turn(factors: Tensor) -> Tensor:
    """The derivative of (cos, sin) by the phase, (-sin, cos)."""
    cos, sin = factors.chunk(2, dim=-1)
    return torch.cat([-sin, cos], dim=-1)


def _times(factors: Tensor, charges: Tensor) -> Tensor:
    """(..., n, C 2 H) from (..., n, 2 H) and (..., n, C)."""
    if charges.shape[-1] == 1:
        return factors * charges
    return (factors[..., None, :] * charges[..., None]).flatten(-2)


def _per_channel(by_rows: Tensor, left: Tensor, charges: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives by charges (..., n, C) and factors (..., n, 2 H), from that by their products (..., n, C 2 H)."""
    by_charges = _by_charges(by_rows, left, charges.shape[-1])
    if charges.shape[-1] == 1:
        return by_charges, by_rows * charges
    by_rows = by_rows.unflatten(-1, (charges.shape[-1], -1))
    return by_charges, (by_rows * charges[..., None]).sum(dim=-2)


def _by_charges(by_rows: Tensor, left: Tensor, n_channels: int) -> Tensor:
    """(..., n, C) from the derivative (..., n, C 2 H) by the products of charges with factors (..., n, 2 H)."""
    if n_channels == 1:
        return (by_rows * left).sum(dim=-1, keepdim=True)
    return (by_rows.unflatten(-1, (n_channels, -1)) * left[..., None, :]).sum(dim=-1)


def _alone(values: Tensor) -> Tensor:
    """Without the first axis if it holds one structure: products of matrices are faster than of batches of one."""
    return values[0] if len(values) == 1 else values
