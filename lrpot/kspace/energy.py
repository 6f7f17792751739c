"""The reciprocal sum 1/V sum_k Phi(|k|) |S(k)|^2, and what completes a Coulomb kernel in real space."""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn

from lrpot.errors import ConfigError, ShapeError
from lrpot.kspace.kernel import GaussianCoulomb
from lrpot.kspace.lattice import KLattice, k_lattice, reciprocal_cell
from lrpot.kspace.structure_factor import structure_factor, structure_factor_separable
from lrpot.smooth import taper
from lrpot.units import COULOMB_CONSTANT

ENGINES = ("dense", "separable")

# kernel values by device and cell
_PhiOfCell = OrderedDict[tuple[str, bytes], Tensor]


class ReciprocalSum(nn.Module):
    """E = 1/V sum_{0<|k|<k_cutoff} Phi(|k|) |S(k)|^2 of every structure in a batch, summed over charge channels.

    Phi is multiplied by an envelope that goes to zero with two continuous derivatives at the cutoff; without it the
    energy would jump whenever strain carries a wave vector across. `envelope=1.0` leaves it out (as published).

    Source: Yu et al. 2022, E_long.
    """

    def __init__(self, kernel: nn.Module, k_cutoff: float, *, engine: str = "separable", envelope: float = 0.9) -> None:
        """
        Args:
            kernel: module from (K,) wave numbers in 1/A to (K,) values in eV A^3 / e^2.
            k_cutoff: 1/A.
            engine: "separable" or "dense" (the oracle); the same numbers.
            envelope: the fraction of k_cutoff at which the envelope leaves one.
        Raises:
            ConfigError: an unknown engine, or a number out of range.
        """
        super().__init__()
        if engine not in ENGINES:
            raise ConfigError(f"engine = {engine!r} is not known; choose one of {', '.join(ENGINES)}")
        if not k_cutoff > 0.0:
            raise ConfigError(f"k_cutoff = {k_cutoff:g} 1/A: must be positive")
        if not 0.0 <= envelope <= 1.0:
            raise ConfigError(f"envelope = {envelope:g}: must lie between 0 and 1 (a fraction of k_cutoff)")
        self.kernel = kernel
        self.k_cutoff = float(k_cutoff)
        self.engine = engine
        self.envelope = float(envelope)
        self._fixed_cells: _PhiOfCell = OrderedDict()
        self._fixed_state: tuple[object, ...] = ()

    def forward(self, positions: Tensor, charges: Tensor, cell: Tensor, batch: Tensor | None = None) -> Tensor:
        """Energies; differentiable in all three inputs to any order.

        Args:
            positions: (N, 3), A; need not be wrapped.
            charges: (N, C), e.
            cell: (3, 3) or (G, 3, 3), rows are lattice vectors, A.
            batch: (N,) the structure of each atom, ascending; all belong to one if left out.
        Returns:
            (G,) float64, eV.
        Raises:
            ShapeError: the shapes disagree; both are printed.
            StructureError: no wave vector below the cutoff, or too many.
        """
        cells = cell.reshape(-1, 3, 3)
        _check_shapes(positions, charges, cells, batch)
        index = torch.zeros_like(positions[:, 0], dtype=torch.int64) if batch is None else batch
        counts = torch.bincount(index, minlength=cells.shape[0]).tolist()
        known = self._known_phi(cells)
        energies = [
            self._one(*parts, known)
            for parts in zip(positions.split(counts), charges.split(counts), cells.unbind(), strict=True)
        ]
        return torch.stack(energies)

    def phi(self, k: Tensor) -> Tensor:
        """(K,) kernel with envelope, eV A^3 / e^2, at (K,) wave numbers in 1/A."""
        phi = self.kernel(k)
        return phi if self.envelope == 1.0 else phi * taper(k, self.k_cutoff, self.envelope)

    def _one(self, positions: Tensor, charges: Tensor, cell: Tensor, known: _PhiOfCell | None) -> Tensor:
        lattice = k_lattice(cell, self.k_cutoff)
        if self.engine == "dense":
            kvectors = lattice.indices.to(cell.dtype) @ reciprocal_cell(cell)
            amplitude = structure_factor(positions, charges, kvectors)
        else:
            fractional = positions @ torch.linalg.inv(cell)
            # whole cells are taken off before anything else, so that a phase keeps its digits far from the origin
            fractional = fractional - torch.floor(fractional.detach())
            amplitude = structure_factor_separable(fractional.to(charges.dtype), charges, lattice)
        power = (amplitude.real**2 + amplitude.imag**2).sum(dim=1).to(torch.float64)
        volume = torch.linalg.det(cell).abs()
        return 2.0 / volume * torch.dot(self._phi_on(lattice, cell, known), power)

    def _known_phi(self, cells: Tensor) -> _PhiOfCell | None:
        """Where kernel values by cell may be kept: not at all while a cell is being differentiated, for this batch
        while the weights are, and from call to call otherwise, as in MD at constant volume."""
        if cells.requires_grad:
            return None
        weights = list(self.kernel.parameters())
        # a tensor made in inference mode could not be used in a later call that is differentiated
        if torch.is_inference_mode_enabled() or any(p.requires_grad or p.is_inference() for p in weights):
            return OrderedDict()
        # an optimiser changes weights in place, which their version tells
        state = (self.k_cutoff, self.envelope, *((p.data_ptr(), p._version) for p in weights))
        if state != self._fixed_state:
            self._fixed_cells.clear()
            self._fixed_state = state
        while len(self._fixed_cells) > 64:
            self._fixed_cells.popitem(last=False)
        return self._fixed_cells

    def _phi_on(self, lattice: KLattice, cell: Tensor, known: _PhiOfCell | None) -> Tensor:
        """(K,) float64, eV A^3 / e^2."""
        key = (str(cell.device), cell.detach().cpu().numpy().tobytes())
        if known is not None and key in known:
            return known[key]
        kvectors = lattice.indices.to(cell.dtype) @ reciprocal_cell(cell)
        phi = self.phi(torch.linalg.vector_norm(kvectors, dim=1)).to(torch.float64)
        if known is not None:
            known[key] = phi
        return phi

    def train(self, mode: bool = True) -> ReciprocalSum:
        self._fixed_cells.clear()
        return super().train(mode)

    def _load_from_state_dict(self, *args: object, **kwargs: object) -> None:
        self._fixed_cells.clear()
        super()._load_from_state_dict(*args, **kwargs)


class CoulombComplement(nn.Module):
    """What a reciprocal sum with a Gaussian Coulomb kernel lacks to the whole Coulomb energy of point charges.

    sum_{i<j} q_i q_j k_e erfc(alpha r) / r over pairs inside the cutoff, minus the energy of each Gaussian in its own
    field, minus the energy of a charged cell's Gaussians in the uniform background that neutralises it. The pair term
    goes smoothly to zero at the cutoff.

    Source: Ewald 1921; charged cells: Hub et al., J. Chem. Theory Comput. 10, 381 (2014), Eq. 4.
    """

    def __init__(self, kernel: GaussianCoulomb, cutoff: float, *, onset: float = 0.9) -> None:
        """
        Args:
            kernel: the kernel of the reciprocal half.
            cutoff: A; the edges given to `forward` must reach that far.
            onset: the fraction of the cutoff at which the pair term begins to be tapered.
        """
        super().__init__()
        if not 0.0 <= onset < 1.0:
            raise ConfigError(f"onset = {onset:g}: must lie between 0 and 1, 1 not included (a fraction of the cutoff)")
        self.alpha = kernel.alpha
        self.cutoff = float(cutoff)
        self.onset = float(onset)

    def forward(self, charges: Tensor, cell: Tensor, batch: Tensor, edge_index: Tensor, distances: Tensor) -> Tensor:
        """Energies.

        Args:
            charges: (N, C), e.
            cell: (G, 3, 3), A.
            batch: (N,) the structure of each atom.
            edge_index: (2, E) neighbour and centre; every pair in both directions.
            distances: (E,), A.
        Returns:
            (G,) float64, eV.
        """
        charges = charges.to(torch.float64)
        neighbour, centre = edge_index
        pair = (charges[neighbour] * charges[centre]).sum(dim=1) * self.pair(distances)
        per_atom = -COULOMB_CONSTANT * self.alpha / math.sqrt(math.pi) * (charges**2).sum(dim=1)
        per_atom = per_atom.index_add(0, centre, 0.5 * pair)
        n_structures = cell.shape[0]
        total = per_atom.new_zeros(n_structures).index_add(0, batch, per_atom)
        net = charges.new_zeros(n_structures, charges.shape[1]).index_add(0, batch, charges)
        background = math.pi * COULOMB_CONSTANT / (2.0 * self.alpha**2) / torch.linalg.det(cell).abs()
        return total - background * (net**2).sum(dim=1)

    def pair(self, distances: Tensor) -> Tensor:
        """(E,), eV / e^2: the energy of two unit charges that the reciprocal half lacks, at distances in A."""
        short = COULOMB_CONSTANT * torch.erfc(self.alpha * distances) / distances
        return short * taper(distances, self.cutoff, self.onset)


def splitting(cutoff: float, k_cutoff: float) -> tuple[float, float]:
    """The width at which both halves of an Ewald sum are cut at the same depth.

    erfc(alpha r_c) and exp(-k_c^2 / 4 alpha^2) have the same exponent r_c k_c / 2 when alpha = sqrt(k_c / (2 r_c)).

    Args:
        cutoff: r_c, A. k_cutoff: k_c, 1/A.
    Returns:
        sigma (A) of `GaussianCoulomb`, and the relative size exp(-r_c k_c / 2) of what is left out.
    """
    alpha = math.sqrt(k_cutoff / (2.0 * cutoff))
    return 1.0 / (math.sqrt(2.0) * alpha), math.exp(-0.5 * cutoff * k_cutoff)


def _check_shapes(positions: Tensor, charges: Tensor, cells: Tensor, batch: Tensor | None) -> None:
    n_atoms = positions.shape[0]
    if positions.shape != (n_atoms, 3):
        raise ShapeError(f"positions have shape {tuple(positions.shape)}; expected (N, 3)")
    if charges.ndim != 2 or charges.shape[0] != n_atoms:
        raise ShapeError(f"charges have shape {tuple(charges.shape)}; expected ({n_atoms}, channels)")
    if batch is None and cells.shape[0] != 1:
        raise ShapeError(f"{cells.shape[0]} cells but no batch index; give (N,) the structure of each atom")
    if batch is not None and batch.shape != (n_atoms,):
        raise ShapeError(f"batch has shape {tuple(batch.shape)}; expected ({n_atoms},)")
    if batch is not None and bool((batch[1:] < batch[:-1]).any()):
        raise ShapeError("batch is not ascending; sort the atoms by structure")
