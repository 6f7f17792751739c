"""Diffraction of pseudo-particles: form factors that a network finds from the surroundings of each atom, the pattern
that follows from them, and its fusion with the features of any encoder.

Source: "Beyond Structure: Invariant Crystal Property Prediction with Pseudo-Particle Ray Diffraction" (PRDNet, ICLR
2026). Its form factors do not depend on |Q|, and its pattern is a list of real and imaginary parts at fixed Miller
indices, which changes with origin and cell; `ShellDiffraction` is a function of the crystal, `MillerDiffraction` is
what is printed.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from lrpot.errors import StructureError
from lrpot.properties.basis import Gaussians
from lrpot.properties.checks import check_variant
from lrpot.properties.elements import ElementEmbedding
from lrpot.properties.features import CrystalFeatures
from lrpot.properties.waves import NOT_PERIODIC, envelope, joined, volume, waves
from lrpot.structure import batch_index

# 1/A^3, atoms in a usual solid; sets the scale on which intensities are weak or strong.
ATOM_DENSITY = 1.0 / 20.0


class Reflections(NamedTuple):
    """The patterns of G crystals of a batch; zero where a crystal has fewer reflections than another.

    Attributes:
        crystals: (G,) which of the batch they are.
        k: (G, K), |Q|, 1/A. weight: (G, K), 2 for a wave and its opposite.
        intensity: (G, K, C), |F_c / V|^2 of each kind of pseudo-particle, 1/A^6.
    """

    crystals: Tensor
    k: Tensor
    weight: Tensor
    intensity: Tensor


class FormFactors(nn.Module):
    """Scattering by each atom, from its element and its surroundings."""

    def __init__(self, atom_features: int, hidden: int, outputs: int) -> None:
        """
        Args:
            atom_features: width of the features of atoms; 0 if there are none: elements alone decide.
            hidden: width of the network. outputs: numbers for each atom.
        """
        super().__init__()
        self.element = ElementEmbedding(hidden)
        self.surroundings = nn.Linear(atom_features, hidden, bias=False) if atom_features else None
        self.hidden = nn.Linear(hidden, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.last = nn.Linear(hidden, outputs)
        # form factors of about 1 at the start, for which intensities are scaled
        nn.init.normal_(self.last.weight, std=hidden**-0.5)

    def forward(self, atom: Tensor | None, numbers: Tensor) -> Tensor:
        """(N, outputs) from features of atoms (N, F), or None, and atomic numbers (N,)."""
        known = self.element(numbers)
        if self.surroundings is not None:
            known = known + self.surroundings(atom)
        known = self.norm(self.hidden(nn.functional.silu(known)))
        return self.last(nn.functional.silu(known))


class Diffraction(nn.Module):
    """Features of an encoder, fused with a pattern that their atoms scatter.

    Attributes:
        features, atom_features: widths of what comes out. k_cutoff: 1/A.
    """

    def __init__(
        self, graph_features: int, atom_features: int, features: int, k_cutoff: float, scattered: int, pattern: int
    ) -> None:
        """
        Args:
            graph_features, atom_features: widths of the encoder. features: width of the networks here.
            scattered: numbers for each atom. pattern: numbers of a pattern.
        """
        super().__init__()
        self.features, self.atom_features, self.k_cutoff = features, atom_features, float(k_cutoff)
        self.form = FormFactors(atom_features, features, scattered)
        self.read = nn.Sequential(
            nn.Linear(pattern, 2 * features), nn.SiLU(), nn.Linear(2 * features, features), nn.SiLU()
        )
        self.fuse = nn.Sequential(
            nn.Linear(graph_features + features, 2 * features), nn.SiLU(), nn.Linear(2 * features, features), nn.SiLU()
        )

    def forward(self, found: CrystalFeatures, batch: Data) -> CrystalFeatures:
        """Fused features (G, features) of the crystals; all else stays.

        Args:
            found: by the encoder. batch: the crystals.
        Raises:
            StructureError: see `lrpot.properties.waves.waves`.
        """
        read = self.read(self.pattern(found.atom, batch))
        return found._replace(graph=self.fuse(torch.cat([found.graph, read], dim=1)))

    def pattern(self, atom: Tensor | None, batch: Data) -> Tensor:
        """(G, pattern) from features of atoms (N, F), or None."""
        raise NotImplementedError


class ShellDiffraction(Diffraction):
    """F_c(Q) = sum_i f_ic(|Q|) e^{iQ.r_i}; log(1 + sum_Q psi_s(|Q|) |F_c(Q) / V|^2) in shells s of |Q|.

    f_ic is a sum of functions of |Q| whose coefficients the surroundings of atom i decide. Squares and shells make the
    pattern the same for a crystal that is moved, rotated, mirrored, renumbered, or described by another cell. A product
    of two kinds of pseudo-particle, Re F_c F_d*, is a difference of squares of mixed kinds, so that no such terms are
    needed. Q = 0 has a square of its own: it alone tells how dense a crystal is.
    """

    def __init__(
        self,
        graph_features: int,
        atom_features: int,
        features: int = 256,
        k_cutoff: float = 5.0,
        channels: int = 16,
        basis: int = 16,
        shells: int = 32,
    ) -> None:
        """
        Args:
            graph_features, atom_features: widths of the encoder. features: width of the networks here.
            k_cutoff: 1/A. channels: kinds of pseudo-particle C. basis: Gaussians in |Q| of a form factor.
            shells: Gaussians in |Q| of the pattern.
        """
        super().__init__(graph_features, atom_features, features, k_cutoff, channels * basis, channels * (shells + 1))
        self.channels = channels
        self.basis = Gaussians(0.0, self.k_cutoff, basis)
        self.shells = Gaussians(0.0, self.k_cutoff, shells)
        # of a shell half way to the cutoff, |F / V|^2 summed over the waves of independent atoms that scatter by 1
        self.usual = ATOM_DENSITY * (self.k_cutoff / 2.0) ** 2 * self.shells.width / (2.0 * math.pi**2)

    def pattern(self, atom: Tensor | None, batch: Data) -> Tensor:
        """(G, channels * (shells + 1))."""
        coefficients = self.form(atom, batch.numbers)
        found = self._scattered(coefficients, batch)
        spectra = []
        for _, k, weight, intensity in found:
            shells = self.shells(k) * (weight * envelope(k, self.k_cutoff))[..., None]
            spectra.append(torch.einsum("gkc,gks->gcs", intensity, shells).flatten(1))
        spectrum = joined(spectra, [block.crystals for block in found]) / self.usual
        forward = self._forward(coefficients, batch)
        return torch.log1p(torch.cat([spectrum, forward / ATOM_DENSITY**2], dim=1))

    def reflections(self, atom: Tensor | None, batch: Data) -> list[Reflections]:
        """All reflections with 0 < |Q| < k_cutoff, in blocks of crystals of a like size.

        Raises:
            StructureError: see `lrpot.properties.waves.waves`.
        """
        return self._scattered(self.form(atom, batch.numbers), batch)

    def _scattered(self, coefficients: Tensor, batch: Data) -> list[Reflections]:
        found = []
        for block in waves(batch, self.k_cutoff, coefficients.dtype):
            # sum over atoms before functions of |Q|: every function multiplies the same phases
            parts = [self._at(block.k, part) / block.volume[:, None, None] for part in block.sums(coefficients)]
            found.append(Reflections(block.crystals, block.k, block.weight, parts[0] ** 2 + parts[1] ** 2))
        return found

    def _forward(self, coefficients: Tensor, batch: Data) -> Tensor:
        """|F_c(0) / V|^2 (G, channels)."""
        total = coefficients.new_zeros(len(batch.cell), coefficients.shape[1])
        total = total.index_add(0, batch_index(batch), coefficients)
        return (self._at(total.new_zeros(len(total)), total) / volume(batch).to(total.dtype)[:, None]) ** 2

    def _at(self, k: Tensor, coefficients: Tensor) -> Tensor:
        """(..., channels): sums of the basis at k (...) by coefficients (..., channels * basis)."""
        return torch.einsum("...cr,...r->...c", coefficients.unflatten(-1, (self.channels, -1)), self.basis(k))


class MillerDiffraction(Diffraction):
    """Real and imaginary parts of sum_i f_i(hkl) e^{2 pi i hkl.f_i} at fixed indices, in their order, as printed.

    It changes with the origin, with the axes, and with every other choice of the cell.
    """

    indices: Tensor

    def __init__(
        self,
        graph_features: int,
        atom_features: int,
        features: int = 256,
        k_cutoff: float = 5.0,
        max_index: int = 8,
    ) -> None:
        """
        Args:
            max_index: largest Miller index. k_cutoff: 1/A; not used, no reflection is left out for its |Q|.
            The others: as of `ShellDiffraction`.
        """
        indices = torch.from_numpy(miller_indices(max_index))
        super().__init__(graph_features, atom_features, features, k_cutoff, len(indices), 2 * len(indices))
        self.register_buffer("indices", indices, persistent=False)

    def pattern(self, atom: Tensor | None, batch: Data) -> Tensor:
        """(G, 2 * indices)."""
        if not bool(batch.pbc.all()):
            raise StructureError(NOT_PERIODIC)
        index, factors = batch_index(batch), self.form(atom, batch.numbers)
        fractional = torch.linalg.solve(batch.cell[index].mT, batch.positions[:, :, None])[:, :, 0]
        turns = fractional @ self.indices.to(fractional.dtype).T
        phases = 2.0 * math.pi * (turns - turns.round())
        each = torch.cat([factors * part.to(factors.dtype) for part in (phases.cos(), phases.sin())], dim=1)
        return each.new_zeros(len(batch.cell), each.shape[1]).index_add(0, index, each)


def miller_indices(largest: int) -> np.ndarray:
    """(H, 3) int64: all triples, none beyond `largest`, without a common divisor."""
    axis = np.arange(-largest, largest + 1)
    triples = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    return triples[np.gcd.reduce(triples, axis=1) == 1]


def make_diffraction(
    graph_features: int,
    atom_features: int,
    *,
    variant: str = "invariant",
    features: int = 256,
    k_cutoff: float = 5.0,
    channels: int = 16,
    basis: int = 16,
    shells: int = 32,
    max_index: int = 8,
) -> Diffraction:
    """The form that `variant` names: "invariant" (`ShellDiffraction`) or "published" (`MillerDiffraction`, warns).

    Args:
        As of these two.
    Raises:
        ConfigError: another variant.
    """
    check_variant("diffraction", variant, ("invariant", "published"))
    if variant == "published":
        return MillerDiffraction(graph_features, atom_features, features, k_cutoff, max_index)
    return ShellDiffraction(graph_features, atom_features, features, k_cutoff, channels, basis, shells)
