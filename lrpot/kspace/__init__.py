"""The reciprocal core: sums over wave vectors, as numerics on tensors. It knows no model."""

from lrpot.kspace.complement import ComplementByChannel, CoulombComplement, DispersionComplement, splitting
from lrpot.kspace.electrostatics import Electrostatics, Geometry
from lrpot.kspace.energy import ReciprocalSum
from lrpot.kspace.kernel import FCN, Dispersion, FreeKernel, GaussianCoulomb, KernelByChannel, LearnedKernel
from lrpot.kspace.lattice import KLattice, k_lattice, reciprocal_cell
from lrpot.kspace.structure_factor import structure_factor

__all__ = [
    "FCN",
    "ComplementByChannel",
    "CoulombComplement",
    "Dispersion",
    "DispersionComplement",
    "Electrostatics",
    "FreeKernel",
    "GaussianCoulomb",
    "Geometry",
    "KLattice",
    "KernelByChannel",
    "LearnedKernel",
    "ReciprocalSum",
    "k_lattice",
    "reciprocal_cell",
    "splitting",
    "structure_factor",
]
