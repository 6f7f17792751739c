"""The reciprocal core: sums over wave vectors, as numerics on tensors. It knows no model."""

from lrpot.kspace.energy import CoulombComplement, ReciprocalSum
from lrpot.kspace.kernel import FCN, FreeKernel, GaussianCoulomb, LearnedKernel
from lrpot.kspace.lattice import KLattice, k_lattice, reciprocal_cell
from lrpot.kspace.structure_factor import structure_factor, structure_factor_separable

__all__ = [
    "FCN",
    "CoulombComplement",
    "FreeKernel",
    "GaussianCoulomb",
    "KLattice",
    "LearnedKernel",
    "ReciprocalSum",
    "k_lattice",
    "reciprocal_cell",
    "structure_factor",
    "structure_factor_separable",
]
