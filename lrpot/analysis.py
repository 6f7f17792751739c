"""What is read off a run of molecular dynamics."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def energy_drift(time_fs: Sequence[float], energy: Sequence[float], n_atoms: int) -> float:
    """Slope of the total energy by linear least squares, eV/atom/ps; 0 for fewer than two points.

    Args:
        time_fs: fs.
        energy: total energy of the system, eV, at those times.
        n_atoms: of the system.
    """
    if len(time_fs) < 2:
        return 0.0
    per_atom = np.asarray(energy) / n_atoms
    return float(np.polyfit(np.asarray(time_fs) / 1000.0, per_atom - per_atom[0], 1)[0])


class Slope:
    """The slope of a line by linear least squares, points given one by one.

    Attributes:
        slope: of those given so far; 0 for fewer than two.
    """

    def __init__(self) -> None:
        self.n = 0
        self.mean_x = self.mean_y = self.square = self.product = 0.0

    def add(self, x: float, y: float) -> None:
        """One more point. Means move with it, so that no digits are lost to large values."""
        self.n += 1
        from_mean = x - self.mean_x
        self.mean_x += from_mean / self.n
        self.product += from_mean * (y - self.mean_y) * (self.n - 1) / self.n
        self.mean_y += (y - self.mean_y) / self.n
        self.square += from_mean * (x - self.mean_x)

    @property
    def slope(self) -> float:
        return self.product / self.square if self.square else 0.0
