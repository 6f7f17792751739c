"""What long waves of ions feel at Gamma: Born charges and dielectric constant of the primitive cell, for phonopy.

A model whose kernel goes to Phi(k) = c / k^2 at small k has, exactly, the non-analytic term of its own Born charges Z
and the dielectric constant 2 pi k_e / c. That is 1 for a Coulomb kernel: charges that a model learned from forces are
screened already, Z = Z* / sqrt(eps_inf).

Source: Pick, Cohen, Martin, Phys. Rev. B 1, 910 (1970); Gonze and Lee, Phys. Rev. B 55, 10355 (1997).
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from phonopy.file_IO import BORNFileParseError, parse_BORN
from phonopy.structure.atoms import PhonopyAtoms

from lrpot.born import born_charges
from lrpot.charges.born import read_tables
from lrpot.errors import ConfigError
from lrpot.potential import Potential
from lrpot.units import COULOMB_CONSTANT

# e; Born charges of a file that add up to more than this belong to another crystal.
SUM_RULE = 0.2


@dataclass(frozen=True)
class LongWaves:
    """What the non-analytic term needs.

    Attributes:
        born: (n, 3, 3), e, [i, a, b] = dP_a / dr_ib, of the atoms of the primitive cell.
        dielectric: (3, 3). source: in words.
    """

    born: np.ndarray
    dielectric: np.ndarray
    source: str

    @property
    def parameters(self) -> dict[str, Any]:
        """As phonopy takes them."""
        return {"born": self.born, "dielectric": self.dielectric, "factor": COULOMB_CONSTANT}


def long_waves_of_model(model: Potential, supercell: Atoms, primitive: list[int]) -> LongWaves:
    """The limit of a model's own long-range part; of an ensemble, with the mean of the charges.

    Args:
        supercell: crystal, as wide as twice what the network sees where charges depend on their surroundings.
        primitive: which of its atoms are those of the primitive cell.
    Raises:
        ConfigError: a model without charges, or without a Coulomb tail. StructureError: charges that flow through the
            whole crystal, where long waves are screened as in a metal.
    """
    tensors = []
    for member in model.members:
        strength = _coulomb_limit(member)
        tensors.append(math.sqrt(strength) * born_charges(member, supercell, sum_rule=True).tensors)
    born = _without_sum(np.mean(tensors, axis=0)[primitive])
    return LongWaves(born, np.eye(3), "the charges of the model")


def long_waves_of_file(path: str | Path, primitive: PhonopyAtoms) -> LongWaves:
    """Of a file BORN of phonopy, or YAML or JSON with symbols, born_charges and dielectric.

    Args:
        primitive: the cell whose atoms the file is about.
    Raises:
        ConfigError: not such a file, or one of another crystal.
    """
    path = Path(path)
    if path.suffix in (".yaml", ".yml", ".json"):
        born, dielectric = _of_tables(path, primitive.symbols)
    else:
        born, dielectric = _of_phonopy(path, primitive)
    excess = float(np.abs(born.sum(axis=0)).max())
    if not (np.isfinite(born).all() and np.linalg.eigvalsh(0.5 * (dielectric + dielectric.T)).min() >= 1.0):
        raise ConfigError(f"{path}: a Born charge is not a number, or the dielectric tensor is impossible; correct it")
    if excess > SUM_RULE:
        raise ConfigError(
            f"{path}: the Born charges add up to {excess:.2g} e in place of zero; give those of this crystal, in the "
            f"order of its primitive cell, {' '.join(primitive.symbols)}"
        )
    return LongWaves(_without_sum(born), dielectric, str(path))


def _coulomb_limit(model: Potential) -> float:
    """c / (2 pi k_e) of the kernel of the charge: 1 where unit charges interact as in vacuum."""
    if model.long is None:
        raise ConfigError("the model has no charges")
    limits = torch.atleast_1d(torch.as_tensor(model.long.reciprocal.kernel.coulomb, dtype=torch.float64))
    strength = float(limits[0]) / (2.0 * math.pi * COULOMB_CONSTANT)
    if not strength > 0.0 or bool((limits[1:] != 0).any()):
        raise ConfigError("the kernel of the model has no Coulomb tail of one charge")
    return strength


def _of_tables(path: Path, symbols: list[str]) -> tuple[np.ndarray, np.ndarray]:
    atoms = read_tables(path)
    try:
        born = np.asarray(atoms.info["born_charges"], dtype=float).reshape(-1, 3, 3)
        dielectric = np.asarray(atoms.info["dielectric"], dtype=float).reshape(3, 3)
    except (TypeError, ValueError):
        raise ConfigError(f"{path}: born_charges must be (N, 3, 3) and dielectric (3, 3) numbers; correct it") from None
    if atoms.get_chemical_symbols() != list(symbols) or len(born) != len(symbols):
        raise ConfigError(
            f"{path}: has {len(born)} Born charges of {' '.join(atoms.get_chemical_symbols())[:60]}; this crystal's "
            f"primitive cell has {' '.join(symbols)}, in this order"
        )
    return born, dielectric


def _of_phonopy(path: Path, primitive: PhonopyAtoms) -> tuple[np.ndarray, np.ndarray]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = parse_BORN(primitive, filename=str(path))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file of Born charges; check the path") from None
    except (BORNFileParseError, OSError, ValueError) as error:
        raise ConfigError(
            f"{path}: is no BORN file of this crystal ({' '.join(str(error).split())[:100]}); its second line must "
            "have the dielectric tensor, and one line each the Born charge of every independent atom"
        ) from error
    return np.asarray(found["born"]), np.asarray(found["dielectric"])


def _without_sum(born: np.ndarray) -> np.ndarray:
    """A rigid shift of the crystal makes no dipole."""
    return born - born.mean(axis=0)
