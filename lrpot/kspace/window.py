"""The window that spreads a charge onto a mesh, its Fourier transform, and its polynomials.

Source: the generalised Kaiser-Bessel function of Lewitt, J. Opt. Soc. Am. A 7, 1834 (1990), with m = 2, whose value and
slope vanish at its ends.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from scipy.special import iv


def window(width: int, shape: float, x: np.ndarray) -> np.ndarray:
    """The spreading window at mesh coordinates x from its middle; zero beyond +-width / 2."""
    beta = math.pi * width * shape
    inner = np.clip(1.0 - (2.0 * np.asarray(x) / width) ** 2, 0.0, None)
    return inner * iv(2, beta * np.sqrt(inner)) / iv(2, beta)


def window_transform(width: int, shape: float, frequency: np.ndarray) -> np.ndarray:
    """int window(x) cos(2 pi f x) dx at frequencies f in periods per mesh point."""
    nodes, weights = np.polynomial.legendre.leggauss(24 + 8 * width)
    x = 0.25 * width * (nodes + 1.0)  # half of it: the window is even
    values = 0.5 * width * weights * window(width, shape, x)
    return np.cos(2.0 * math.pi * np.multiply.outer(frequency, x)) @ values


@lru_cache(maxsize=64)
def window_polynomials(width: int, shape: float) -> np.ndarray:
    """(D + 1, w): the window at each of its points, as polynomials in the place of its beginning within one step.

    They interpolate at points that include both ends of the step, so that the window stays continuous.
    """
    check = np.linspace(-1.0, 1.0, 101)
    # point a stands at a + 1 - (t + 1) / 2 from the beginning, which lies width / 2 from the middle
    columns = np.arange(width) + 1.0 - 0.5 * width
    exact = window(width, shape, columns - 0.5 * (check[:, None] + 1.0))
    for degree in range(4, 25):
        nodes = -np.cos(math.pi * np.arange(degree + 1) / degree)
        values = window(width, shape, columns - 0.5 * (nodes[:, None] + 1.0))
        found = np.linalg.solve(np.vander(nodes, increasing=True), values)
        error = np.abs(np.vander(check, degree + 1, increasing=True) @ found - exact).max()
        # a window of w points reaches 10^(1 - w) at best
        if error < 10.0 ** (-1 - width):
            break
    return found
