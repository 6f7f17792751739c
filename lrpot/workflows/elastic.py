"""Elastic constants from the stress of strained cells, their averages and stability.

Voigt notation with ASE's order xx yy zz yz xz xy; shear strains are twice the tensor's.

Sources: averages: R. Hill, Proc. Phys. Soc. A 65, 349 (1952); stability of a crystal without stress, all eigenvalues of
the stiffness being positive: Born and Huang (1954), F. Mouhat and F.-X. Coudert, Phys. Rev. B 90, 224104 (2014).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from ase import Atoms
from pymatgen.analysis.elasticity import ElasticTensor
from pymatgen.io.ase import AseAtomsAdaptor

from lrpot.errors import ConfigError, StructureError, WorkflowError
from lrpot.units import GPA
from lrpot.workflows.relax import SYMMETRY_PRECISION, Progress, relax_fully

VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))

# GPa, of the unstrained cell: more than this, and the constants mean something else than those of a crystal at rest.
AT_REST = 0.1


@dataclass(frozen=True)
class Averages:
    """Moduli of a polycrystal.

    Attributes:
        bulk: GPa, by Voigt (equal strain), Reuss (equal stress) and Hill (their mean).
        shear: GPa, by the same three.
        young: GPa, of Hill's moduli.
        poisson: dimensionless, of Hill's moduli.
        anisotropy: universal, 5 G_V/G_R + B_V/B_R - 6; zero for an isotropic solid.
    """

    bulk: tuple[float, float, float]
    shear: tuple[float, float, float]
    young: float
    poisson: float
    anisotropy: float


@dataclass(frozen=True)
class ElasticConstants:
    """Of one crystal.

    Attributes:
        stiffness: (6, 6), GPa, symmetric and with the symmetry of the crystal.
        raw: (6, 6), GPa, as the stresses gave it: row of the stress, column of the strain.
        atoms: the crystal at rest.
        residual_stress: GPa, its largest component before any strain.
    """

    stiffness: np.ndarray
    raw: np.ndarray
    atoms: Atoms
    residual_stress: float

    @property
    def eigenvalues(self) -> np.ndarray:
        """(6,), GPa, ascending; the crystal is stable where all are positive."""
        return np.linalg.eigvalsh(self.stiffness)

    @property
    def stable(self) -> bool:
        """Whether every strain costs energy (Born)."""
        return bool(self.eigenvalues[0] > 0)

    @property
    def asymmetry(self) -> float:
        """GPa: the largest difference between `raw` and `stiffness`; noise, or strains too large."""
        return float(np.abs(self.raw - self.stiffness).max())

    def averages(self) -> Averages:
        """Moduli of a polycrystal.

        Raises:
            WorkflowError: an unstable crystal has none.
        """
        if not self.stable:
            raise WorkflowError(
                f"the crystal is unstable: the smallest eigenvalue of its stiffness is {self.eigenvalues[0]:.2g} GPa"
            )
        tensor = ElasticTensor.from_voigt(self.stiffness)
        b, g = float(tensor.k_vrh), float(tensor.g_vrh)
        return Averages(
            bulk=(float(tensor.k_voigt), float(tensor.k_reuss), b),
            shear=(float(tensor.g_voigt), float(tensor.g_reuss), g),
            young=9.0 * b * g / (3.0 * b + g),
            poisson=float(tensor.homogeneous_poisson),
            anisotropy=float(tensor.universal_anisotropy),
        )

    def record(self) -> dict[str, Any]:
        """The numbers, for JSON."""
        return {
            "stiffness_GPa": self.stiffness.tolist(),
            "raw_GPa": self.raw.tolist(),
            "eigenvalues_GPa": self.eigenvalues.tolist(),
            "stable": self.stable,
            "residual_stress_GPa": self.residual_stress,
            "averages": asdict(self.averages()) if self.stable else None,
        }


def elastic_constants(
    atoms: Atoms,
    *,
    strain: float = 0.005,
    relax_atoms: bool = True,
    fmax: float = 1e-4,
    progress: Progress | None = None,
) -> ElasticConstants:
    """Stiffness by differences of the stress at plus and minus each of the six strains, with the atoms at rest.

    Args:
        atoms: with a calculator, the cell at rest; not changed. The axes of the stiffness are those of their cell.
        strain: the largest component; its square is the relative error to expect.
        relax_atoms: whether atoms move to rest in each strained cell; otherwise the ions are clamped.
        fmax: eV/A, the largest force left there.
        progress: called with the strained cells done, of twelve, and a line.
    Raises:
        ConfigError: a strain out of range. StructureError: not periodic in three directions.
        WorkflowError: a cell that is under stress, or atoms that do not come to rest.
    """
    check_settings(strain=strain)
    if not atoms.pbc.all():
        raise StructureError(
            f"{atoms.get_chemical_formula()} is not periodic in all three directions, so it has no elastic constants"
        )
    residual = float(np.abs(atoms.get_stress()).max() * GPA)
    if residual > AT_REST:
        raise WorkflowError(
            f"the cell is under a stress of {residual:.2g} GPa, and its elastic constants would contain that (at most "
            f"{AT_REST:g} GPa); relax it first with lrpot relax --cell full"
        )
    raw = np.zeros((6, 6))
    for column in range(6):
        for step, sign in enumerate((1.0, -1.0)):
            strained = _strained(atoms, column, sign * strain)
            if relax_atoms:
                strained = relax_fully(strained, f"the crystal under strain {column + 1}", fmax=fmax)
            raw[:, column] += sign * strained.get_stress() * GPA / (2.0 * strain)
            if progress is not None:
                progress(2 * column + step + 1, f"strain {column + 1} of 6")
    return ElasticConstants(symmetrised(raw, atoms), raw, atoms, residual)


def check_settings(*, strain: float) -> None:
    """Find out before any work whether `elastic_constants` takes this.

    Raises:
        ConfigError: a strain out of range.
    """
    if not 0 < strain < 0.1:
        raise ConfigError(f"strain = {strain:g}: must be positive and less than 0.1")


def symmetrised(stiffness: np.ndarray, atoms: Atoms) -> np.ndarray:
    """The mean of a stiffness (6, 6) and its transpose over the rotations that leave a crystal as it is."""
    tensor = ElasticTensor.from_voigt(0.5 * (stiffness + stiffness.T))
    structure = AseAtomsAdaptor.get_structure(Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True))
    found = np.array(tensor.fit_to_structure(structure, symprec=SYMMETRY_PRECISION).voigt)
    # what symmetry forbids is left as a rounding error of either sign
    return np.where(np.abs(found) > 1e-9 * np.abs(found).max(), found, 0.0)


def _strained(atoms: Atoms, column: int, amount: float) -> Atoms:
    """The atoms in a cell under one strain in Voigt notation, moved along with it."""
    a, b = VOIGT[column]
    deformation = np.eye(3)
    # without rotation; a shear strain in Voigt notation is twice that of the tensor
    deformation[a, b] += 0.5 * amount
    deformation[b, a] += 0.5 * amount
    strained = atoms.copy()
    strained.calc = atoms.calc
    strained.set_cell(atoms.cell.array @ deformation, scale_atoms=True)
    return strained
