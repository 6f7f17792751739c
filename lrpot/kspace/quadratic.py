"""E = sum_k w_k |S(k)|^2 as one differentiable operation, whichever way the structure factor is computed.

An engine gives the energy together with its analytic gradient, and, where training needs it, the gradient of that
gradient. This module hangs them into autograd, so that forces cost no second pass through the phases.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from lrpot.errors import ConfigError

# The sum over processes that have some of the atoms each, or the values themselves where one has all.
Total = Callable[[Tensor], Tensor]


def unshared(values: Tensor) -> Tensor:
    """The `Total` of a process that has all atoms."""
    return values


class OverProcesses(torch.autograd.Function):
    """A `Total` that every process has whole, with the derivative by its own share."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, total: Total) -> Tensor:
        return total(values.clone())

    @staticmethod
    def backward(ctx: Any, seed: Tensor) -> tuple[Tensor, None]:
        return seed, None


class Gradient(NamedTuple):
    """Derivatives of the energies of b structures of n atoms.

    Attributes:
        fractional: (b, n, 3), eV: by the fractional coordinates.
        charges: (b, n, C), eV/e: by the charges, which is the potential at each atom.
        power: the shape of the weights, e^2, or None where it was not asked for: by the weights, |S(k)|^2.
    """

    fractional: Tensor
    charges: Tensor
    power: Tensor | None


class Engine(Protocol):
    """A way to compute the sum for b structures with n atoms each.

    Attributes:
        total: sums amplitudes where n are only the atoms of this process; then `evaluate` gives the energy of all atoms
            and its gradient by these. The other methods know one process only.
    """

    total: Total

    @property
    def nbytes(self) -> int:
        """Of what it holds."""

    def evaluate(self, fractional: Tensor, charges: Tensor, weights: Tensor, *, power: bool) -> tuple[Tensor, Gradient]:
        """Energies (b,), float64, and their gradient."""

    def differentiate(
        self, fractional: Tensor, charges: Tensor, weights: Tensor, seed: Tensor, along: Gradient
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The gradient, by fractional coordinates, charges, weights and seed (b,), of seed * <gradient, along>."""

    def potential(self, fractional: Tensor, weights: Tensor) -> Callable[[Tensor], Tensor]:
        """The potential at each atom, `Gradient.charges`, as a function of the charges; without derivatives."""


def quadratic_form(fractional: Tensor, charges: Tensor, weights: Tensor, engine: Engine) -> Tensor:
    """Energies (b,), float64, differentiable as far as the engine goes.

    Args:
        fractional: (b, n, 3), positions in units of the lattice vectors.
        charges: (b, n, C), e.
        weights: (b, ...), eV/e^2, in the engine's own shape.
        engine: how to compute it.
    """
    return _Energy.apply(fractional, charges, weights, engine)


class _Energy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, fractional: Tensor, charges: Tensor, weights: Tensor, engine: Engine) -> Tensor:
        energy, gradient = engine.evaluate(fractional, charges, weights, power=ctx.needs_input_grad[2])
        ctx.save_for_backward(fractional, charges, weights, *gradient)
        ctx.engine = engine
        return energy

    @staticmethod
    def backward(ctx: Any, seed: Tensor) -> tuple[Tensor | None, ...]:
        fractional, charges, weights, *gradient = ctx.saved_tensors
        if torch.is_grad_enabled():
            return (*_Gradient.apply(seed, fractional, charges, weights, ctx.engine, *gradient), None)
        return (*_scaled(Gradient(*gradient), seed), None)


class _Gradient(torch.autograd.Function):
    """seed * gradient. The gradient was computed with the energy; its own derivatives come from the engine."""

    @staticmethod
    def forward(
        ctx: Any, seed: Tensor, fractional: Tensor, charges: Tensor, weights: Tensor, engine: Engine, *gradient: Tensor
    ) -> Gradient:
        ctx.save_for_backward(seed, fractional, charges, weights)
        ctx.engine = engine
        ctx.set_materialize_grads(False)
        return _scaled(Gradient(*gradient), seed)

    @staticmethod
    def backward(
        ctx: Any, fractional_along: Tensor | None, charges_along: Tensor | None, power_along: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        seed, fractional, charges, weights = ctx.saved_tensors
        along = Gradient(
            torch.zeros_like(fractional) if fractional_along is None else fractional_along,
            torch.zeros_like(charges) if charges_along is None else charges_along,
            power_along,
        )
        with torch.no_grad():
            found = ctx.engine.differentiate(fractional, charges, weights, seed, along)
        if torch.is_grad_enabled():
            given = (value for value in (seed, fractional, charges, weights, *along) if value is not None)
            found = _Last.apply(*found, *given)
        by_fractional, by_charges, by_weights, by_seed = found
        return by_seed, by_fractional, by_charges, by_weights, None, None, None, None


class _Last(torch.autograd.Function):
    """Second derivatives, tied to what they depend on: a third is refused. Torch's `once_differentiable` would leave
    it out without a word from the sum of this energy's third derivative and that of another."""

    @staticmethod
    def forward(ctx: Any, *values: Tensor) -> tuple[Tensor, ...]:
        return values[:4]

    @staticmethod
    def backward(ctx: Any, *along: Tensor) -> tuple[Tensor | None, ...]:
        raise ConfigError("the reciprocal sum has no third derivatives but with engine = dense")


def _scaled(gradient: Gradient, seed: Tensor) -> Gradient:
    factor = seed.to(gradient.charges.dtype)[:, None, None]
    power = gradient.power
    if power is not None:
        power = power * seed.to(power.dtype).reshape(-1, *[1] * (power.ndim - 1))
    return Gradient(gradient.fractional * factor, gradient.charges * factor, power)
