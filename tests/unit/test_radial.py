"""Quintic splines of the distance: against scipy's B-splines, polynomials, and the filters they stand for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline
from torch import Tensor

from lrpot.backbones import PaiNN
from lrpot.backbones.painn import INTERVALS
from lrpot.backbones.radial import ROWS, basis_splines, spline_coefficients

CUTOFF = 4.0  # A
ROUNDING = 1e-13  # relative, float64
DEGREE = ROWS - 1

# What lrpot/backbones/painn.py states: errors of values, slopes and curvatures of the filters' basis, relative to
# the largest of each.
STATED = {torch.float32: (1e-8, 3e-7, 1e-5), torch.float64: (1e-14, 2e-12, 5e-10)}

Function = Callable[[Tensor], Tensor]


def derivatives(function: Function, distances: Tensor, orders: int) -> list[Tensor]:
    """[(R, C)] of a function (R,) -> (R, C): itself and its derivatives up to `orders`."""
    r = distances.clone().requires_grad_()
    columns = list(function(r).unbind(dim=1))
    found = [torch.stack(columns, dim=1).detach()]
    for _ in range(orders):
        columns = [torch.autograd.grad(column.sum(), r, create_graph=True)[0] for column in columns]
        found.append(torch.stack(columns, dim=1).detach())
    return found


def spline(coefficients: Tensor, end: float) -> Function:
    """(R,) -> (R, C), as the docstring of `spline_coefficients` says."""
    intervals = len(coefficients) - DEGREE

    def function(r: Tensor) -> Tensor:
        place = r * (intervals / end)
        row = place.detach().to(torch.int64).clamp_max(intervals - 1)  # the end belongs to the last interval
        values = basis_splines(place - row)
        return torch.stack([values[:, m, None] * coefficients[row + m] for m in range(ROWS)]).sum(dim=0)

    return function


def places(n: int = 200) -> Tensor:
    """(n + 4,) distances in A, random ones and those near both ends."""
    inside = CUTOFF * torch.rand(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.cat([inside, torch.tensor([0.0, 1e-7, CUTOFF - 1e-7, CUTOFF], dtype=torch.float64)])


# --- the basis


def test_the_splines_of_an_interval_are_those_of_scipy() -> None:
    t = torch.linspace(0.0, 1.0, 21, dtype=torch.float64)[1:-1]  # at knots the highest derivative jumps
    ours = derivatives(basis_splines, t, DEGREE)
    knots = np.arange(-DEGREE, ROWS + 1.0)
    for m in range(ROWS):
        theirs = BSpline.basis_element(knots[m : m + ROWS + 1])
        for order, found in enumerate(ours):
            expected = torch.from_numpy(theirs.derivative(order)(t.numpy()) if order else theirs(t.numpy()))
            torch.testing.assert_close(found[:, m], expected, rtol=0.0, atol=1e-12)


def test_four_derivatives_are_continuous_at_a_knot() -> None:
    """The spline that ends at a knot is the one of the row before it on the other side."""
    ends = derivatives(basis_splines, torch.tensor([0.0, 1.0], dtype=torch.float64), DEGREE)
    for left, right in ((values[1], values[0]) for values in ends[:-1]):
        torch.testing.assert_close(left[1:], right[:-1], rtol=0.0, atol=1e-12)
        torch.testing.assert_close(left[0], right[-1], rtol=0.0, atol=1e-12)  # both zero
    assert float((ends[-1][1, 1:] - ends[-1][0, :-1]).abs().max()) > 1.0


# --- coefficients


@pytest.mark.parametrize("intervals", [1, 2, 7])
def test_polynomials_up_to_the_fifth_degree_are_exact(intervals: int) -> None:
    def powers(r: Tensor) -> Tensor:
        return torch.stack([(r / CUTOFF) ** n for n in range(ROWS)], dim=1)

    coefficients = spline_coefficients(powers, CUTOFF, intervals)
    assert coefficients.shape == (intervals + DEGREE, ROWS)
    assert coefficients.dtype == torch.float64
    exact = derivatives(powers, places(), 2)
    for found, expected in zip(derivatives(spline(coefficients, CUTOFF), places(), 2), exact, strict=True):
        torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-12)


def test_it_goes_through_the_knots_and_leaves_both_ends_as_the_function_does() -> None:
    def function(r: Tensor) -> Tensor:
        return torch.stack([torch.sin(3.0 * r), torch.exp(-r)], dim=1)

    coarse = spline(spline_coefficients(function, CUTOFF, 5), CUTOFF)
    knots = torch.linspace(0.0, CUTOFF, 6, dtype=torch.float64)
    torch.testing.assert_close(coarse(knots), function(knots), rtol=0.0, atol=ROUNDING)
    ends = torch.tensor([0.0, CUTOFF], dtype=torch.float64)
    for found, expected in zip(derivatives(coarse, ends, 2), derivatives(function, ends, 2), strict=True):
        torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-12)
    assert float((coarse(places()) - function(places())).abs().max()) > 1e-3  # it is no more than a spline


def test_the_error_falls_with_the_sixth_power_of_the_step() -> None:
    def function(r: Tensor) -> Tensor:
        return torch.sin(2.0 * r)[:, None]

    exact = derivatives(function, places(), 2)
    errors = []
    for intervals in (16, 32):
        coarse = derivatives(spline(spline_coefficients(function, CUTOFF, intervals), CUTOFF), places(), 2)
        errors.append([float((a - b).abs().max()) for a, b in zip(coarse, exact, strict=True)])
    orders = np.log2(np.array(errors[0]) / np.array(errors[1]))
    assert orders == pytest.approx([6.0, 5.0, 4.0], abs=0.4)


# --- PaiNN's filters


@pytest.mark.parametrize("cutoff_function", ["smooth", "cosine"])
@pytest.mark.parametrize("dtype", INTERVALS, ids=str)
@pytest.mark.parametrize("radial_basis", [8, 20])
def test_filters_are_as_exact_as_stated(radial_basis: int, dtype: torch.dtype, cutoff_function: str) -> None:
    model = PaiNN(4, 1, radial_basis, CUTOFF, cutoff_function=cutoff_function)
    coefficients = spline_coefficients(model._tapered_basis, CUTOFF, INTERVALS[dtype] * (radial_basis - 1))
    exact = derivatives(model._tapered_basis, places()[:-1], 2)  # at the cutoff itself the curvature may jump
    found = derivatives(spline(coefficients, CUTOFF), places()[:-1], 2)
    for one, other, stated in zip(found, exact, STATED[dtype], strict=True):
        error = float((one - other).abs().max() / other.abs().max())
        assert stated * 1e-3 < error < stated


@pytest.mark.parametrize("dtype", INTERVALS, ids=str)
def test_a_network_keeps_the_coefficients_in_its_precision(dtype: torch.dtype) -> None:
    model = PaiNN(4, 1, 8, CUTOFF).to(dtype)
    exact = spline_coefficients(model._tapered_basis, CUTOFF, INTERVALS[dtype] * 7)
    kept = model._spline(dtype)
    assert kept.dtype == dtype
    assert torch.equal(kept, exact.to(dtype))
    assert model._spline(dtype) is kept


@pytest.mark.parametrize(("cutoff_function", "continuous"), [("smooth", 3), ("cosine", 2)])
def test_filters_end_at_the_cutoff_as_smoothly_as_their_cutoff_function(cutoff_function: str, continuous: int) -> None:
    model = PaiNN(4, 1, 8, CUTOFF, cutoff_function=cutoff_function)
    coefficients = spline_coefficients(model._tapered_basis, CUTOFF, INTERVALS[torch.float64] * 7)
    end = torch.tensor([CUTOFF], dtype=torch.float64)
    sizes = [float(values.abs().max()) for values in derivatives(spline(coefficients, CUTOFF), end, 2)]
    assert max(sizes[:continuous]) < 1e-11
    assert [size > 0.1 for size in sizes[continuous:]] == [True] * (3 - continuous)
