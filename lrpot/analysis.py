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
