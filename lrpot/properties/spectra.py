"""The diffraction of pseudo-particles by one crystal beside that of X-rays: lines of |Q|, and their picture."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from ase import Atoms
from matplotlib.axes import Axes

from lrpot.data.readers import to_structure
from lrpot.data.shells import SAME_SHELL
from lrpot.errors import ConfigError, StructureError
from lrpot.plot_style import COLOURS, STYLE, save
from lrpot.properties.diffraction import ShellDiffraction
from lrpot.properties.model import PropertyEnsemble, PropertyModel

# Its waves are short enough for any |Q| that a model reads (17.7 1/A).
XRAYS = "MoKa"

# 1/A, of a line in the picture of single kinds of pseudo-particle.
LINE_WIDTH = 0.03


class Lines(NamedTuple):
    """A pattern: reflections of one |Q| are one line.

    Attributes:
        q: (L,), 1/A, increasing. intensity: (L, C); each column of its own scale. q_max: 1/A, how far it reaches.
    """

    q: np.ndarray
    intensity: np.ndarray
    q_max: float

    @property
    def relative(self) -> np.ndarray:
        """(L,) sums over the columns, the largest 100."""
        total = self.intensity.sum(axis=1)
        return 100.0 * total / max(total.max(), np.finfo(float).tiny)


def pseudo_lines(model: PropertyModel | PropertyEnsemble, atoms: Atoms) -> Lines:
    """sum_Q |F_c(Q) / V|^2 of each kind of pseudo-particle, 1/A^6; of an ensemble, those of its first member.

    Raises:
        ConfigError: a model without diffraction, or with the published one, which has no |Q|.
        StructureError: a crystal that is not periodic, or without a reflection.
    """
    member = model.members[0]
    diffraction = member.diffraction
    if diffraction is None:
        raise ConfigError("has no diffraction to draw; fit a model with --diffraction on")
    if not isinstance(diffraction, ShellDiffraction):
        raise ConfigError("has the published diffraction, which knows no |Q|; fit a model with the invariant one")
    structure = to_structure(atoms, model.cutoff, shells=model.shells, labels=False)
    model.check(structure)
    with torch.no_grad():
        structure = structure.to(str(next(member.parameters()).device))
        (found,) = diffraction.reflections(member.encoder(structure).atom, structure)
    if found.k.shape[1] == 0:
        raise StructureError(
            f"has no reflection below |Q| = {diffraction.k_cutoff:g} 1/A, which is as far as the model reads"
        )
    total = found.weight[0, :, None] * found.intensity[0]
    return gathered(found.k[0].double().cpu().numpy(), total.double().cpu().numpy(), diffraction.k_cutoff)


def xray_lines(atoms: Atoms, q_max: float) -> Lines:
    """The powder pattern of X-rays (Mo K alpha), one column, with multiplicities, Lorentz and polarisation factors.

    Args:
        q_max: 1/A.
    Raises:
        StructureError: an element without scattering factors.
    """
    from pymatgen.analysis.diffraction.xrd import XRDCalculator
    from pymatgen.io.ase import AseAtomsAdaptor

    calculator = XRDCalculator(wavelength=XRAYS)
    most = 4.0 * math.pi / calculator.wavelength
    angle = math.degrees(2.0 * math.asin(min(q_max / most, 1.0)))
    structure = AseAtomsAdaptor.get_structure(Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True))
    try:
        found = calculator.get_pattern(structure, scaled=False, two_theta_range=(0, angle))
    except ValueError as error:
        raise StructureError(f"has no X-ray pattern ({error})") from error
    return Lines(most * np.sin(np.radians(found.x) / 2.0), np.asarray(found.y)[:, None], q_max)


def gathered(q: np.ndarray, intensity: np.ndarray, q_max: float) -> Lines:
    """Reflections (K,), 1/A, below q_max, with intensities (K, C), as lines."""
    order = np.argsort(q)
    q, intensity = q[order], intensity[order]
    starts = np.flatnonzero(np.diff(q, prepend=-1.0) > SAME_SHELL * q)
    return Lines(q[starts], np.add.reduceat(intensity, starts, axis=0), q_max)


def strongest(pseudo: Lines, xray: Lines, number: int = 10) -> list[tuple[float, float, float]]:
    """|Q|, 1/A, of the strongest lines of pseudo-particles, with relative intensities of both; 0 where X-rays have
    none."""
    found = []
    for place in np.argsort(-pseudo.relative, kind="stable")[:number]:
        q = float(pseudo.q[place])
        same = np.abs(xray.q - q) < 10.0 * SAME_SHELL * q  # lines of X-rays are joined by their angles
        found.append((q, float(pseudo.relative[place]), float(xray.relative[same].sum())))
    return found


def draw(pseudo: Lines, xray: Lines, path: str | Path, title: str = "") -> Path:
    """Both patterns below each other, and between them that of each kind of pseudo-particle.

    Args:
        path: of the picture; its ending names the format.
    """
    with plt.rc_context(STYLE):
        figure, (top, middle, bottom) = plt.subplots(
            3, 1, figsize=(8.0, 7.0), sharex=True, height_ratios=(3.0, 2.5, 3.0)
        )
        _sticks(top, pseudo, COLOURS[0], "pseudo-particles, all kinds")
        grid = np.linspace(0.0, pseudo.q_max, 600)
        broad = np.exp(-(((grid[:, None] - pseudo.q) / LINE_WIDTH) ** 2)) @ pseudo.intensity
        broad = broad / np.maximum(broad.max(axis=0), np.finfo(float).tiny)
        middle.pcolormesh(grid, np.arange(1, broad.shape[1] + 1), broad.T, cmap="Blues", shading="nearest")
        middle.grid(False)
        middle.set(ylabel="kind", title="each kind of pseudo-particle, its strongest line dark")
        _sticks(bottom, xray, COLOURS[1], r"X-rays (Mo K$\alpha$, powder, with Lorentz and polarisation factor)")
        bottom.set(xlabel="|Q| (1/Å)", xlim=(0.0, pseudo.q_max))
        if title:
            figure.suptitle(title)
        return save(figure, path)


def _sticks(axis: Axes, lines: Lines, colour: str, title: str) -> None:
    axis.vlines(lines.q, 0.0, lines.relative, color=colour, lw=1.5)
    axis.set(ylabel="relative intensity", ylim=(0.0, 105.0), title=title)
