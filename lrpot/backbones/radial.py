"""Functions of a distance as splines: a few rows of a table instead of a basis and a matrix product per edge."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy.linalg import solve_banded
from torch import Tensor

# Rows of the table that an edge reads: the B-splines of degree 5 over one interval.
ROWS = 6

# At a knot: values, first and second derivatives (times step, step^2) of the five B-splines that are not zero there.
_AT_KNOT = np.array([[1, 26, 66, 26, 1], [-5, -50, 0, 50, 5], [20, 40, -120, 40, 20]]) / 120.0


def spline_coefficients(function: Callable[[Tensor], Tensor], end: float, intervals: int) -> Tensor:
    """The quintic spline through functions of r on 0 ... end; four of its derivatives are continuous.

    It has the functions' values at `intervals` + 1 equidistant knots, and at both ends their first two derivatives.
    The function at r in interval k is sum_m B_m(r / step - k) coefficients[k + m], m = 0 ... 5.

    Args:
        function: (R,) -> (R, C), twice differentiable by autograd, float64.
        end: A.
        intervals: number of intervals.
    Returns:
        (intervals + 5, C), float64.
    """
    step = end / intervals
    knots = torch.arange(intervals + 1, dtype=torch.float64) * step
    # from inside, for a cutoff function may have a corner in its second derivative at the end
    ends = torch.tensor([0.0, math.nextafter(end, 0.0)], dtype=torch.float64, requires_grad=True)
    with torch.enable_grad():
        slopes, curvatures = [], []
        for column in function(ends).unbind(dim=1):
            (slope,) = torch.autograd.grad(column.sum(), ends, create_graph=True)
            (curvature,) = torch.autograd.grad(slope.sum(), ends, retain_graph=True)
            slopes.append(slope.detach() * step)
            curvatures.append(curvature * step**2)
    first, second = torch.stack(slopes, dim=1), torch.stack(curvatures, dim=1)
    with torch.no_grad():
        values = function(knots)
    right = torch.cat([first[:1], second[:1], values, second[1:], first[1:]])
    # row i has its five numbers from column i - 2 on, but for the rows of the derivatives
    n = intervals + 5
    banded = np.zeros((9, n))  # diagonal j - i of the matrix in row 4 - (j - i)
    rows = [(0, 0, 1), (1, 0, 2), *((i, i - 2, 0) for i in range(2, n - 2)), (n - 2, n - 5, 2), (n - 1, n - 5, 1)]
    for row, start, derivative in rows:
        for j, number in enumerate(_AT_KNOT[derivative], start):
            banded[4 - (j - row), j] = number
    return torch.from_numpy(solve_banded((4, 4), banded, right.numpy()))


def basis_splines(place: Tensor) -> Tensor:
    """(E, 6) values of the B-splines over an interval at (E,) places t = 0 ... 1 in it; differentiable."""
    t, s = place, 1.0 - place
    return torch.stack([_outer(s), _middle(s), _inner(s), _inner(t), _middle(t), _outer(t)], dim=-1)


def _outer(t: Tensor) -> Tensor:
    return t**5 / 120.0


def _middle(t: Tensor) -> Tensor:
    return (1.0 + t * (5.0 + t * (10.0 + t * (10.0 + t * (5.0 - 5.0 * t))))) / 120.0


def _inner(t: Tensor) -> Tensor:
    return (26.0 + t * (50.0 + t * (20.0 + t * (-20.0 + t * (-20.0 + 10.0 * t))))) / 120.0
