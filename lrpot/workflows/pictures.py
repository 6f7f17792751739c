"""Pictures of a relaxation, an equation of state, elastic constants and phonons."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np

from lrpot.plot_style import COLOURS, STYLE, save
from lrpot.workflows.elastic import VOIGT, ElasticConstants
from lrpot.workflows.eos import EquationOfState
from lrpot.workflows.relax import Relaxation

if TYPE_CHECKING:
    from lrpot.workflows.phonons import Phonons  # needs phonopy


def relaxation(run: Relaxation, path: str | Path) -> Path:
    """Energy, largest force and stress at every step."""
    steps = np.arange(len(run.energy))
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.6))
        above = 1e3 * (np.array(run.energy) - run.energy[-1]) / len(run.atoms)
        left.plot(steps, above, ".-", color=COLOURS[0])
        left.set(xlabel="step", ylabel="energy above the last (meV/atom)")
        curves = [("largest force (eV/Å)", run.force), ("largest stress left (GPa)", run.stress)]
        for colour, (name, values) in zip(COLOURS, curves, strict=False):
            if any(values):
                # a force that vanishes by symmetry has no logarithm
                right.semilogy(steps, np.where(np.array(values) > 0, values, np.nan), ".-", color=colour, label=name)
        right.set(xlabel="step", ylabel="what is left")
        if any(run.force) or any(run.stress):
            right.legend(fontsize=8)
        return save(figure, path)


def equation_of_state(found: EquationOfState, path: str | Path) -> Path:
    """Energies and pressures that were computed, and the fitted curve."""
    volume, n = np.array(found.volume), found.n_atoms
    fine = np.linspace(volume.min(), volume.max(), 200)
    curve = found.curve
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.8))
        label = f"Birch-Murnaghan: V₀ = {curve.v0 / n:.3f} Å³/atom, B₀ = {curve.b0:.2f} GPa, B₀' = {curve.b0_prime:.2f}"
        left.plot(fine / n, 1e3 * (curve.energy(fine) - curve.e0) / n, color=COLOURS[0])
        left.plot(volume / n, 1e3 * (np.array(found.energy) - curve.e0) / n, "o", ms=5, color=COLOURS[1])
        left.set(xlabel="volume (Å³/atom)", ylabel="energy above the minimum (meV/atom)")
        right.plot(fine / n, curve.pressure(fine), color=COLOURS[0], label="slope of the curve")
        right.plot(volume / n, found.pressure, "o", ms=5, color=COLOURS[1], label="stress of the model")
        right.axhline(0.0, color="0.5", lw=0.8)
        right.set(xlabel="volume (Å³/atom)", ylabel="pressure (GPa)")
        right.legend(fontsize=8)
        figure.suptitle(label, fontsize=10)
        return save(figure, path)


def elastic_constants(found: ElasticConstants, path: str | Path) -> Path:
    """The stiffness as a map, and Young's modulus by direction in the planes of the axes."""
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(9.6, 4.2))
        left, right = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2, projection="polar")
        names = ["xyz"[a] + "xyz"[b] for a, b in VOIGT]
        largest = np.abs(found.stiffness).max()
        left.imshow(found.stiffness, cmap="RdBu_r", vmin=-1.5 * largest, vmax=1.5 * largest)
        left.grid(False)
        for row, values in enumerate(found.stiffness):
            for column, value in enumerate(values):
                left.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=9)
        left.set_xticks(range(6), names)
        left.set_yticks(range(6), names)
        left.set(title="stiffness (GPa)")
        angle = np.linspace(0.0, 2.0 * np.pi, 361)
        for colour, (a, b) in zip(COLOURS, ((0, 1), (0, 2), (1, 2)), strict=False):
            directions = np.zeros((len(angle), 3))
            directions[:, a], directions[:, b] = np.cos(angle), np.sin(angle)
            label = f"{'xyz'[a]} (0°) to {'xyz'[b]} (90°)"
            right.plot(angle, young(found.stiffness, directions), color=colour, label=label)
        right.set_title("Young's modulus (GPa)")
        right.legend(fontsize=8, loc="lower left", bbox_to_anchor=(-0.25, -0.12))
        return save(figure, path)


def young(stiffness: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """(n,), GPa: Young's modulus along unit vectors (n, 3), of an invertible stiffness (6, 6) in GPa.

    Source: Nye, Physical Properties of Crystals, chapter VIII: 1/E = S_ijkl n_i n_j n_k n_l.
    """
    # n_i n_j in Voigt notation, shear twice as for strains
    squares = np.stack([directions[:, a] * directions[:, b] for a, b in VOIGT], axis=1)
    return 1.0 / np.einsum("na,ab,nb->n", squares, np.linalg.inv(stiffness), squares)


def phonons(found: Phonons, path: str | Path, title: str = "") -> Path:
    """Bands along the standard path and the density of states; imaginary frequencies are drawn below zero."""
    bands, dos = found.phonopy.band_structure, found.phonopy.total_dos
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 4.6), sharey=True, width_ratios=(3, 1))
        for distances, frequencies in zip(bands.distances, bands.frequencies, strict=True):
            left.plot(distances, frequencies, color=COLOURS[0], lw=1.2)
        places, names = band_ticks(found)
        left.set_xticks(places, names)
        left.set(ylabel="frequency (THz)", xlim=(0.0, places[-1]), title=title)
        left.grid(axis="x", alpha=0.6)
        right.plot(dos.dos, dos.frequency_points, color=COLOURS[0], lw=1.2)
        right.fill_betweenx(dos.frequency_points, dos.dos, alpha=0.15, color=COLOURS[0], lw=0)
        right.set(xlabel="density of states (1/THz)", xlim=(0.0, None))
        for axis in (left, right):
            axis.axhline(0.0, color="0.4", lw=0.8)
        return save(figure, path)


def band_ticks(found: Phonons) -> tuple[list[float], list[str]]:
    """Where the path has its corners, and their names; where it jumps, both names."""
    bands = found.phonopy.band_structure
    labels = [str(name).replace("$\\mathrm{", "").replace("}$", "").replace("\\Gamma", "Γ") for name in bands.labels]
    labels = [name.strip("$") for name in labels]
    todo = iter(labels)
    places, names, connected = [0.0], [next(todo)], True
    for distances, connection in zip(bands.distances, bands.path_connections, strict=True):
        if not connected:
            names[-1] += f"|{next(todo)}"
        places.append(float(distances[-1]))
        names.append(next(todo))
        connected = bool(connection)
    return places, names
