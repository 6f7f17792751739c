"""The minimum of a quadratic function of the charges of each structure, whose sum is given: solved, and differentiated.

    E(q) = b.q + q.H q / 2        sum q = Q        so that        H q + b = mu (1, ..., 1)

H must be positive definite for changes of the charges that add up to zero. Then q = q_Q - P (b + H q_Q) with P the
inverse of H among such changes and any q_Q of the right sum. Derivatives follow from that equation and never from the
steps of the solver. With v the derivative of something by the charges, and w = P v,

    by b: -w        by anything that H depends on: - d/dtheta (w.H q)

and w is the minimum of the same kind with b = -v and Q = 0, so that this can be differentiated again. E itself has the
derivatives at fixed charges, because it is stationary: q(theta) enters only its second derivatives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import Function

from lrpot.charges.preconditioner import Preconditioner
from lrpot.errors import ConvergenceError
from lrpot.kspace.electrostatics import Product

# Residual that is left, relative to the potentials it is made of, by the precision of the products.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 3e-6}
MAX_ITERATIONS = 300
# What the rough product is trusted with, relative; a correction that leaves more than the second is no good.
ROUGH_REDUCTION, SLOW = 1e-3, 0.1
# Up to this many atoms a matrix is factorised (benchmarks/charges.py).
DIRECT = 48
# Columns of a matrix that are computed at once.
COLUMNS = 16


class Quadratic(Protocol):
    """H of a batch of structures.

    Attributes:
        index: (N,) the structure of each atom, ascending.
        counts: atoms of each structure.
        precision: of the products.
    """

    index: Tensor
    counts: list[int]
    precision: torch.dtype

    @property
    def tensors(self) -> Sequence[Tensor]:
        """What H depends on and may be differentiated by."""

    @property
    def diagonal(self) -> Tensor:
        """(N,), eV/e^2, roughly that of H; positive."""

    def energy(self, charges: Tensor, tensors: Sequence[Tensor]) -> Tensor:
        """(G,), q.H q / 2 of (N,) charges, with other tensors in place of its own; twice differentiable."""

    def product(self) -> Product:
        """(N, X), H x from (N, X), without derivatives."""

    def rough_product(self) -> Product | None:
        """Nearly the same and much quicker, or None."""

    def long_waves(self) -> Sequence[Tensor | None]:
        """For each structure U (n, m) so that H is about U U^T plus a diagonal, or None."""

    @property
    def many_columns(self) -> bool:
        """Whether the product takes several columns at once."""


class Solver:
    """Finds the minimum for one H; what it works out about H is kept for the next b."""

    def __init__(self, quadratic: Quadratic) -> None:
        self.quadratic = quadratic
        self.index, self.counts = quadratic.index, quadratic.counts
        self.product = quadratic.product()
        self.sizes = torch.tensor(self.counts, dtype=torch.float64, device=self.index.device)
        self._factors: list[tuple[Tensor, Tensor, Tensor]] | None = None

    def __call__(self, linear: Tensor, total: Tensor) -> Tensor:
        """(N,) charges from b (N,) and Q (G,).

        Raises:
            ConvergenceError: H is not positive definite, or the iterations do not come to an end.
        """
        with torch.no_grad():
            linear, total = linear.detach(), total.detach()
            if not bool(torch.isfinite(linear).all()):
                atom = int((~torch.isfinite(linear)).nonzero()[0])
                raise ConvergenceError(
                    f"structure {int(self.index[atom])}: the electronegativity of atom {atom} is not finite; look for "
                    "atoms that are too close, or for a fit that went wrong"
                )
            direct = max(self.counts) <= DIRECT and self.quadratic.many_columns
            charges = self.directly(linear, total) if direct else self.by_conjugate_gradients(linear, total)
            return charges + self._spread(total - self._sums(charges))

    @cached_property
    def preconditioner(self) -> Preconditioner:
        q = self.quadratic
        return Preconditioner(q.diagonal.detach(), q.long_waves(), self.index, self.counts)

    def directly(self, linear: Tensor, total: Tensor) -> Tensor:
        """By factors of Z H Z + c 1 1^T / n, with Z = 1 - 1 1^T / n: structures with equally many atoms together."""
        start = self._spread(total)
        found = torch.empty_like(linear)
        if self._factors is None:
            self._factors = self._factorised()
        for atoms, matrix, factor in self._factors:
            b = -linear[atoms] - (matrix @ start[atoms][..., None])[..., 0]
            b = b - b.mean(dim=1, keepdim=True)
            found[atoms] = start[atoms] + torch.cholesky_solve(b[..., None], factor)[..., 0]
        return found

    def by_conjugate_gradients(self, linear: Tensor, total: Tensor) -> Tensor:
        """All structures at once, each with its own steps.

        What a rough H finds is corrected by what the true one leaves of it, until that is next to nothing; only if
        this does not go on well are all steps taken with the true H.
        """
        charges = self.preconditioner.spread(total)
        # most structures are neutral, and need no product here
        potential = self._times(self.product, charges) if bool(total.any()) else torch.zeros_like(charges)
        # what the residual is the difference of
        limit = TOLERANCE[self.quadratic.precision] * (self._norms(linear) + self._norms(potential))
        residual = self._centred(-linear - potential)
        rough = self.quadratic.rough_product()
        while rough is not None:
            before = self._norms(residual)
            if bool((before <= limit).all()):
                return charges
            step = self._solved(rough, residual, torch.maximum(limit, ROUGH_REDUCTION * before), patient=True)
            tried = charges + step
            left = self._centred(-linear - self._times(self.product, tried))
            if bool((self._norms(left) > torch.maximum(limit, SLOW * before)).any()):
                break
            charges, residual = tried, left
        return charges + self._solved(self.product, residual, limit)

    def _solved(self, product: Product, residual: Tensor, limit: Tensor, *, patient: bool = False) -> Tensor:
        """(N,) changes of the charges that take a residual (N,) below the limits (G,) of its norms.

        Args:
            patient: whether what has been found by then is returned instead of an error.
        """
        found, step = torch.zeros_like(residual), torch.zeros_like(residual)
        before = None
        start = self._norms(residual)
        for _ in range(MAX_ITERATIONS):
            left = self._norms(residual)
            if not bool(torch.isfinite(left).all()):
                self._refuse_infinite(int((~torch.isfinite(left)).nonzero()[0]))
            going = left > limit
            if not bool(going.any()):
                return found
            scaled = self.preconditioner(residual)
            slope = self._sums(residual * scaled)
            ratio = torch.zeros_like(slope) if before is None else _ratio(slope, before, going)
            before = slope
            step = scaled + ratio[self.index] * step
            potential = self._times(product, step)
            curvature = self._sums(step * potential)
            unbounded = going & (curvature <= 0.0)
            if bool(unbounded.any()):
                if patient:
                    return found
                self._refuse(int(unbounded.nonzero()[0]))
            length = _ratio(slope, curvature, going)[self.index]
            found = found + length * step
            residual = self._centred(residual - length * potential)
        if patient:
            return found
        worst = int((left / limit).argmax())
        n, (reached, allowed, began) = self.counts[worst], (f"{float(x[worst]):.1e}" for x in (left, limit, start))
        raise ConvergenceError(
            f"structure {worst}: after {MAX_ITERATIONS} iterations the equilibrated charges of its {n} atoms leave a "
            f"residual of {reached} eV/e, more than {allowed} (it was {began}); look for atoms that are too close or a "
            "model far outside its training data, or choose charges.kind = environment"
        )

    def _factorised(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """For each number of atoms n: (b, n) the atoms, (b, n, n) H and the Cholesky factor."""
        size = max(self.counts)
        starts = torch.tensor([0, *self.counts[:-1]]).cumsum(dim=0).to(self.index.device)
        place = torch.arange(len(self.index), device=self.index.device) - starts[self.index]
        ones = torch.nn.functional.one_hot(place, size).to(torch.float64)
        columns = torch.cat([self.product(some) for some in ones.split(COLUMNS, dim=1)], dim=1)
        found = []
        for n in sorted(set(self.counts) - {0}):
            members = torch.tensor([g for g, count in enumerate(self.counts) if count == n], device=starts.device)
            atoms = starts[members][:, None] + torch.arange(n, device=starts.device)
            matrix = columns[atoms][..., :n]
            matrix = 0.5 * (matrix + matrix.mT)
            centred = matrix - matrix.mean(dim=1, keepdim=True)
            centred = centred - centred.mean(dim=2, keepdim=True)
            scale = matrix.diagonal(dim1=1, dim2=2).mean(dim=1).abs()[:, None, None]
            factor, failed = torch.linalg.cholesky_ex(centred + scale / n)
            if bool(failed.any()):
                self._refuse(int(members[failed.nonzero()[0]]))
            found.append((atoms, matrix, factor))
        return found

    def _refuse(self, g: int) -> None:
        raise ConvergenceError(
            f"structure {g}: the charges of its {self.counts[g]} atoms have no equilibrium: some exchange of charge "
            "lowers the energy without end; look for atoms that are too close, or train with a larger "
            "model.backbone.cutoff, or choose charges.kind = environment"
        )

    def _refuse_infinite(self, g: int) -> None:
        raise ConvergenceError(
            f"structure {g}: the interactions of its {self.counts[g]} atoms are not finite; look for atoms that are "
            "too close, or for a fit that went wrong"
        )

    @staticmethod
    def _times(product: Product, charges: Tensor) -> Tensor:
        return product(charges[:, None])[:, 0]

    def _sums(self, values: Tensor) -> Tensor:
        return values.new_zeros(len(self.counts)).index_add(0, self.index, values)

    def _norms(self, values: Tensor) -> Tensor:
        return torch.sqrt(self._sums(values**2))

    def _centred(self, values: Tensor) -> Tensor:
        return values - self._spread(self._sums(values))

    def _spread(self, totals: Tensor) -> Tensor:
        return (totals / self.sizes.clamp_min(1.0))[self.index]


def minimum(quadratic: Quadratic, linear: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """The minimum with its derivatives, twice differentiable; not by the total charge.

    Args:
        quadratic: H. linear: (N,), b, eV/e. total: (G,), Q, e.
    Returns:
        (G,) E, eV; (N,) q, e, whose sums are Q to rounding.
    Raises:
        ConvergenceError: see `Solver`.
    """
    return _Minimum.apply(quadratic, Solver(quadratic), linear, total, *quadratic.tensors)


def fixed_minimum(quadratic: Quadratic, linear: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """The same for first derivatives of the energy alone: charges are constants, which costs no second solution."""
    charges = Solver(quadratic)(linear, total)
    return _sums(linear * charges, quadratic) + quadratic.energy(charges, quadratic.tensors), charges


class _Minimum(Function):
    @staticmethod
    def forward(
        ctx: Any, quadratic: Quadratic, solver: Solver, linear: Tensor, total: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        charges = solver(linear, total)
        energy = _sums(linear * charges, quadratic) + quadratic.energy(charges, tensors)
        ctx.quadratic, ctx.solver = quadratic, solver
        ctx.save_for_backward(charges, *tensors)
        ctx.set_materialize_grads(False)
        return energy, charges

    @staticmethod
    def backward(ctx: Any, seed: Tensor | None, along: Tensor | None) -> tuple[Tensor | None, ...]:
        charges, *tensors = ctx.saved_tensors
        quadratic: Quadratic = ctx.quadratic
        again = torch.is_grad_enabled()
        by_linear: Tensor | None = None
        by_tensors: list[Tensor | None] = [None] * len(tensors)
        if seed is not None:
            by_linear = seed[quadratic.index] * charges
            by_tensors = _derivative(ctx, lambda given: quadratic.energy(charges, given), seed, tensors)
        if along is not None:
            zero = along.new_zeros(len(quadratic.counts))
            if again:
                _, response = _Minimum.apply(quadratic, ctx.solver, -along, zero, *tensors)
            else:
                response = ctx.solver(-along, zero)
            by_linear = _plus(by_linear, -response)

            def coupling(given: Sequence[Tensor]) -> Tensor:
                # w.H q, by energies alone, whose second derivatives are known
                both = quadratic.energy(charges + response, given), quadratic.energy(charges - response, given)
                return 0.5 * (both[1] - both[0])

            more = _derivative(ctx, coupling, torch.ones_like(zero), tensors)
            by_tensors = [_plus(one, other) for one, other in zip(by_tensors, more, strict=True)]
        return None, None, by_linear, None, *by_tensors


def _derivative(
    ctx: Any, function: Callable[[Sequence[Tensor]], Tensor], seed: Tensor, tensors: Sequence[Tensor]
) -> list[Tensor | None]:
    """By those of the tensors that need it, all else fixed; differentiable by all."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # views are passed through on the way to the tensors, but not on the way to the charges
        given = [t.view_as(t) if needed else t for t, needed in zip(tensors, ctx.needs_input_grad[4:], strict=True)]
        wanted = [t for t, needed in zip(given, ctx.needs_input_grad[4:], strict=True) if needed]
        if not wanted:
            return [None] * len(tensors)
        found = iter(torch.autograd.grad(function(given), wanted, seed, create_graph=again, allow_unused=True))
    return [next(found) if needed else None for needed in ctx.needs_input_grad[4:]]


def _sums(values: Tensor, quadratic: Quadratic) -> Tensor:
    return values.new_zeros(len(quadratic.counts)).index_add(0, quadratic.index, values)


def _plus(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return one if other is None else other
    return one + other


def _ratio(one: Tensor, other: Tensor, where: Tensor) -> Tensor:
    return torch.where(where, one, 0.0) / torch.where(where, other, 1.0)
