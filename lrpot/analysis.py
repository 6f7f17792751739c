"""What is read off a run of molecular dynamics."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from ase import Atoms, units

from lrpot.data.neighbours import filled_cell, find_pairs
from lrpot.units import COULOMB_CONSTANT


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
        """In units of y over units of x; 0 for fewer than two points."""
        return self.product / self.square if self.square else 0.0


def pair_distribution(
    frames: Sequence[Atoms], one: str, other: str, rmax: float, width: float = 0.05
) -> tuple[np.ndarray, np.ndarray]:
    """g(r) of two elements, or of one with itself, averaged over frames.

    Args:
        frames: crystals or liquids that are periodic in three directions.
        one: symbol of an element.
        other: symbol of an element.
        rmax: A; may be longer than the cell.
        width: of a bin, A.
    Returns:
        centres of the bins (n,), A, and g there (n,); 1 where the atoms know nothing of each other.
    """
    edges = np.arange(0.0, rmax + width, width)
    shells = 4.0 / 3.0 * math.pi * np.diff(edges**3)
    g = np.zeros(len(shells))
    for atoms in frames:
        symbols = np.array(atoms.get_chemical_symbols())
        box = filled_cell(atoms.cell.array, atoms.pbc)
        i, j, _, distances = find_pairs(atoms.positions, box, atoms.pbc, edges[-1])
        chosen = (symbols[i] == one) & (symbols[j] == other)
        found = np.histogram(distances[chosen], edges)[0]
        density = (symbols == other).sum() / atoms.get_volume()
        g += found / ((symbols == one).sum() * density * shells * len(frames))
    return 0.5 * (edges[1:] + edges[:-1]), g


def unwrapped(frames: Sequence[Atoms]) -> np.ndarray:
    """(T, N, 3), A: paths of the atoms without jumps across the cell, in the mean cell, the centre of mass at rest.

    Between two frames an atom must move less than half a cell.

    Args:
        frames: of one run; the cell may change.
    """
    cell = np.mean([atoms.cell.array for atoms in frames], axis=0)
    scaled = np.array([np.linalg.solve(atoms.cell.array.T, atoms.positions.T).T for atoms in frames])
    steps = np.diff(scaled, axis=0)
    steps -= np.where(frames[0].pbc, np.round(steps), 0.0)
    paths = np.concatenate([scaled[:1], scaled[:1] + np.cumsum(steps, axis=0)]) @ cell
    masses = frames[0].get_masses()
    centre = np.einsum("n,tna->ta", masses, paths) / masses.sum()
    return paths - (centre - centre[0])[:, None]


def mean_square_displacement(paths: np.ndarray) -> np.ndarray:
    """(T,), A^2: how far atoms are from where they were so many frames before, over all pairs of frames.

    Args:
        paths: (T, N, 3), A, as of `unwrapped`.
    Source: Kneller et al., Comput. Phys. Commun. 91, 191 (1995): |a - b|^2 = a^2 + b^2 - 2 a.b, the last by FFT.
    """
    n = len(paths)
    paths = paths - paths.mean(axis=0)  # large numbers would cancel
    spectrum = np.abs(np.fft.rfft(paths, 2 * n, axis=0)) ** 2
    products = np.fft.irfft(spectrum, 2 * n, axis=0)[:n].sum(axis=2).mean(axis=1)
    squares = np.concatenate([[0.0], np.cumsum((paths**2).sum(axis=2).mean(axis=1))])
    lags = np.arange(n)
    both = squares[n - lags] + squares[n] - squares[lags]
    return np.maximum((both - 2.0 * products) / (n - lags), 0.0)


def diffusion(time_fs: Sequence[float], msd: Sequence[float], *, first: float = 0.1, last: float = 0.5) -> float:
    """A^2/ps (1e-4 cm^2/s): a sixth of the slope of mean square displacements.

    Args:
        time_fs: (T,), fs, from 0.
        msd: (T,), A^2.
        first: where the part of the times begins that is fitted, as a fraction of the last time.
        last: where it ends; late ones are means of few pairs.
    Source: Einstein's relation.
    """
    time = np.asarray(time_fs) / 1000.0
    chosen = (time >= first * time[-1]) & (time <= last * time[-1])
    return float(np.polyfit(time[chosen], np.asarray(msd)[chosen], 1)[0] / 6.0)


def velocity_spectrum(velocities: np.ndarray, masses: np.ndarray, timestep: float) -> tuple[np.ndarray, np.ndarray]:
    """Vibrational density of states: power of the velocities by frequency, weighted with the masses.

    Args:
        velocities: (T, N, 3), at equal times, in units of the caller's choice.
        masses: (N,), u.
        timestep: fs, between frames.
    Returns:
        frequencies (n,), THz, and density (n,), 1/THz, whose integral is 1. The resolution is about 4 / (length of the
        run).
    """
    n = len(velocities)
    # a window that goes to zero, or slow modes would leak into all others
    window = np.hanning(n)[:, None, None]
    power = np.abs(np.fft.rfft((velocities - velocities.mean(axis=0)) * window, axis=0)) ** 2
    density = np.einsum("n,fna->f", masses, power)
    frequencies = np.fft.rfftfreq(n, timestep / 1000.0)
    return frequencies, density / (density.sum() * frequencies[1])


def vacant_sites(paths: np.ndarray, sites: np.ndarray, cell: np.ndarray, reach: float) -> np.ndarray:
    """(T,) int: which site of a lattice is empty in every frame, for one atom less than sites.

    A site is empty if no atom is within `reach` of it. On the way from one to another an atom is near to neither, and
    for so long the vacancy stays where it was, so that an atom that turns back has not jumped.

    Args:
        paths: (T, N, 3), A, as of `unwrapped`, relative to the lattice.
        sites: (N + 1, 3), A.
        cell: (3, 3), A.
        reach: A, somewhat less than half of the distance between sites.
    """
    inverse = np.linalg.inv(cell)
    found: list[int] = []
    for positions in paths:
        scaled = (sites[:, None] - positions[None]) @ inverse
        distances = np.linalg.norm((scaled - np.round(scaled)) @ cell, axis=2)
        empty = np.flatnonzero(distances.min(axis=1) > reach)
        if len(empty) == 1:
            found.append(int(empty[0]))
        else:
            found.append(found[-1] if found else int(distances.min(axis=1).argmax()))
    return np.array(found)


def dielectric_ratio(dipoles: np.ndarray, volume: float, temperature: float) -> float:
    """1 + 4 pi k_e (<M^2> - <M>^2) / (3 V k T): the static dielectric constant by fluctuations of the dipole.

    With charges that are screened by the electrons, as a model learns them from forces, it is eps_0 / eps_inf. Of
    bound charges only; with ions that wander, M has no mean.

    Args:
        dipoles: (T, 3), e A, of the cell, as sum_j q_j u_j with the paths u of the ions.
        volume: A^3.
        temperature: K.
    Source: M. Neumann, Mol. Phys. 50, 841 (1983), for a sum without k = 0 ("tin foil").
    """
    fluctuation = ((dipoles - dipoles.mean(axis=0)) ** 2).sum(axis=1).mean()
    return 1.0 + 4.0 * math.pi * COULOMB_CONSTANT * float(fluctuation) / (3.0 * volume * units.kB * temperature)
