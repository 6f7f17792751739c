"""The potential: E = E_short (backbone) + E_long (charges, reciprocal core); forces and stress by derivatives."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from lrpot.backbones.messages import positions_only
from lrpot.charges import ChargeModel, polarisation
from lrpot.errors import ConfigError, StructureError
from lrpot.kspace import Electrostatics, Geometry, ReciprocalSum
from lrpot.kspace.derivatives import deformation
from lrpot.structure import batch_index, edge_vectors

# What the energy is the sum of: an energy per element, the network, charges and reciprocal core.
PARTS = frozenset({"offset", "short", "long"})


class Readout(nn.Module):
    """Atom features -> one number per atom; zero at first, so that a fit begins at what is known without it."""

    def __init__(self, features: int) -> None:
        super().__init__()
        hidden = max(features // 2, 1)
        self.first = nn.Linear(features, hidden)
        self.last = nn.Linear(hidden, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, scalar: Tensor) -> Tensor:
        """(N,) from (N, F)."""
        return self.last(nn.functional.silu(self.first(scalar)))[:, 0]


class ShortRange(nn.Module):
    """Energy of each atom: an offset of its element, and from its surroundings scale * readout(backbone).

    Attributes:
        mixed_precision: whether the backbone multiplies matrices in bfloat16; its weights and what comes out of it keep
            their precision, and the readout, from which energies come, knows nothing of it.
    """

    offset: Tensor
    scale: Tensor

    def __init__(self, backbone: nn.Module, n_numbers: int) -> None:
        """
        Args:
            backbone: see `lrpot.backbones`.
            n_numbers: one more than the highest atomic number.
        """
        super().__init__()
        self.backbone = backbone
        self.readout = Readout(backbone.features)  # type: ignore[arg-type]
        self.mixed_precision = False
        self.register_buffer("offset", torch.zeros(n_numbers, dtype=torch.float64))
        self.register_buffer("scale", torch.ones((), dtype=torch.float64))

    def features(self, batch: Data, vectors: Tensor) -> Tensor:
        """(N, F), the backbone's scalar features."""
        dtype = self.readout.last.weight.dtype
        if not self.mixed_precision:
            return self.backbone(batch, vectors.to(dtype)).scalar
        with torch.autocast(vectors.device.type, torch.bfloat16):
            return self.backbone(batch, vectors.to(dtype)).scalar.to(dtype)

    def forward(self, features: Tensor) -> Tensor:
        """(N,) float64, eV, without the offsets, from the features (N, F)."""
        return self.scale * self.readout(features).to(torch.float64)


class LongRange(nn.Module):
    """Energy that a cutoff graph cannot see: charges and their reciprocal sum.

    Attributes:
        dtype: of the phases and structure factors. Training keeps float64 beside a float32 network: what is left to
            learn may be millions of times smaller than the sum itself.
    """

    def __init__(self, charges: ChargeModel, reciprocal: ReciprocalSum, complement: nn.Module | None) -> None:
        """
        Args:
            charges: see `lrpot.charges`.
            reciprocal: the sum over wave vectors.
            complement: its real-space half, for a kernel with a physical prior.
        """
        super().__init__()
        self.charges = charges
        self.dtype = torch.float64
        self.reciprocal = reciprocal
        self.complement = complement

    def forward(
        self, batch: Data, vectors: Tensor, features: Tensor | None = None, *, first_derivatives: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Energies (G,), eV, float64, and charges (N, C), e.

        Args:
            batch: structures. vectors: (E, 3), A, their edges.
            features: (N, F) of the backbone, for charges that see the surroundings.
            first_derivatives: that of the energy is all that will be asked for.
        Raises:
            StructureError: see `ReciprocalSum.forward`. ConvergenceError: see `EquilibratedCharges.energy`.
        """
        return self.charges.energy(
            batch, features, self.electrostatics, geometry_of(batch, vectors), first_derivatives=first_derivatives
        )

    @property
    def electrostatics(self) -> Electrostatics:
        """What the charges interact by."""
        return Electrostatics(self.reciprocal, self.complement, self.dtype)

    def pair_energy(self, distances: Tensor) -> Tensor:
        """(P,), eV/e^2: energy of two unit charges, alone in space, at (P,) distances in A."""
        with torch.no_grad():
            pair = self.reciprocal.real_space(distances)
            return pair if self.complement is None else pair + self.complement.pair(distances)  # type: ignore[operator]


def geometry_of(batch: Data, vectors: Tensor) -> Geometry:
    """Where the atoms of a batch are, with its edges (E, 3) in A."""
    distances = torch.linalg.vector_norm(vectors, dim=1)
    return Geometry(batch.positions, batch.cell, batch.pbc, batch_index(batch), batch.edge_index, distances)


class Potential(nn.Module):
    """A potential-energy surface of crystals.

    Attributes:
        short: the short-range part.
        long: the long-range part, or None.
        elements: atomic numbers that the model knows.
        cutoff: A; how far the edges of a batch must reach.
        info: what the model is and where it comes from (`lrpot.model_file.ModelInfo`); None before it was fitted.
    """

    def __init__(self, short: ShortRange, long: LongRange | None, elements: list[int]) -> None:
        super().__init__()
        self.short = short
        self.long = long
        self.elements = list(elements)
        self.info: object | None = None

    @property
    def cutoff(self) -> float:
        """A: how far the edges of a structure must reach."""
        return float(self.short.backbone.cutoff)  # type: ignore[arg-type]

    @property
    def members(self) -> list[Potential]:
        """The potentials whose mean this is: itself, or those of an `lrpot.ensemble.Ensemble`."""
        return [self]

    def set_precision(self, dtype: torch.dtype, long_range: torch.dtype = torch.float64) -> Potential:
        """Compute the network in `dtype` and structure factors in `long_range`; energies are summed in float64."""
        self.short.backbone.to(dtype)
        self.short.readout.to(dtype)
        if self.long is not None:
            self.long.dtype = long_range
        return self

    def forward(
        self,
        batch: Data,
        *,
        forces: bool = True,
        stress: bool = False,
        born_charges: bool | Tensor = False,
        create_graph: bool = False,
        parts: Iterable[str] = PARTS,
    ) -> dict[str, Tensor]:
        """Energies and their derivatives.

        Args:
            batch: one structure or a batch, with edges up to `cutoff`; not changed.
            forces: whether to compute them.
            stress: whether to compute it.
            born_charges: whether to compute them (see `lrpot.charges.polarisation`), or (G,) bool of which structures.
            create_graph: keep the derivatives differentiable, for training on them.
            parts: which of "offset", "short" and "long" (what the model does not have is zero).
        Returns:
            dict: energy, energy_short, energy_long (G,), eV; forces (N, 3), eV/A; stress (G, 3, 3), eV/A^3, positive
            under tension; charges (N, C), e, and born_charges (N, 3, 3), e, nan for structures that were not asked
            for, if the model has charges. All float64 (charges: see `set_precision`).
        Raises:
            StructureError: periodicity that the long-range part cannot treat, or whose Born charges have no meaning.
            ConvergenceError: charges without an equilibrium. ConfigError: a part that there is not, or derivatives in
                torch's inference mode.
        """
        parts = frozenset(parts)
        if unknown := parts - PARTS:
            raise ConfigError(
                f"parts {', '.join(sorted(unknown))}: no part of a model; there are {', '.join(sorted(PARTS))}"
            )
        born = born_charges is not False and self.long is not None and "long" in parts
        if torch.is_inference_mode_enabled() and (forces or stress or born):
            raise ConfigError(
                "forces, stress and Born charges are derivatives, which torch.inference_mode() does not allow; use "
                "torch.no_grad(), or ask for energies only (forces=False)"
            )
        with torch.set_grad_enabled(forces or stress or born or torch.is_grad_enabled()):
            batch = copy.copy(batch)  # shallow: the caller's tensors are left as they are
            inputs = []
            if forces or born:
                batch.positions = batch.positions.detach().requires_grad_()
            if forces:
                inputs.append(batch.positions)
            moved = _strained(batch) if stress else None
            strained = batch if moved is None else moved[0]
            if moved is not None:
                inputs.append(moved[1])
            # what is returned will not be differentiated again
            first_derivatives = bool(inputs) and not create_graph and not born
            output = self._energies(strained, parts, first_derivatives=first_derivatives)
            if born:
                assert self.long is not None
                wanted = torch.as_tensor(born_charges, device=batch.cell.device).expand(len(batch.cell))
                model, charges = self.long.charges, output["charges"][:, 0]
                with positions_only():
                    output["born_charges"] = polarisation.born_charges(
                        model, batch, charges, batch.positions, of=wanted, create_graph=create_graph
                    )
            if inputs:
                # the zero keeps an atom without neighbours, whose energy is a constant, differentiable
                total = output["energy"].sum() + sum(0.0 * x.sum() for x in inputs)
                with positions_only():  # nobody else holds these inputs
                    gradients = torch.autograd.grad(total, inputs, create_graph=create_graph, materialize_grads=True)
                if forces:
                    output["forces"] = -gradients[0]
                if stress:
                    volume = torch.linalg.det(batch.cell).abs()
                    output["stress"] = gradients[-1] / volume[:, None, None]
        if not create_graph and (inputs or born):
            output = {name: value.detach() for name, value in output.items()}
        return output

    def atom_energies(self, batch: Data) -> Tensor:
        """The energy as a sum over atoms: offset and network of each, and half of what its charges feel.

        The model was never shown such shares, and other divisions would add up to the same energy.

        Args:
            batch: as of `forward`.
        Returns:
            (N,) eV, float64; not differentiable.
        Raises:
            StructureError, ConvergenceError: as of `forward`.
        """
        with torch.no_grad():
            vectors = edge_vectors(batch)
            features = self.short.features(batch, vectors)
            found = self.short.offset[batch.numbers] + self.short(features)
            if self.long is not None:
                geometry = geometry_of(batch, vectors)
                found = found + self.long.charges.energies(batch, features, self.long.electrostatics, geometry)
        return found

    def _energies(self, batch: Data, parts: frozenset[str], *, first_derivatives: bool) -> dict[str, Tensor]:
        vectors = edge_vectors(batch)
        zeros = batch.positions.new_zeros(batch.cell.shape[0])
        output = {"energy_short": zeros, "energy_long": zeros}
        index = batch_index(batch)
        long = self.long if "long" in parts else None
        features = None
        if "short" in parts or (long is not None and long.charges.sees_surroundings):
            features = self.short.features(batch, vectors)
        if "offset" in parts:
            output["energy_short"] = zeros.index_add(0, index, self.short.offset[batch.numbers])
        if "short" in parts:
            output["energy_short"] = output["energy_short"].index_add(0, index, self.short(features))
        if long is not None:
            energy, charges = long(batch, vectors, features, first_derivatives=first_derivatives)
            output["energy_long"], output["charges"] = energy, charges
        output["energy"] = output["energy_short"] + output["energy_long"]
        return output


def _strained(batch: Data) -> tuple[Data, Tensor]:
    """The batch under a symmetric strain (G, 3, 3) of value zero, and that strain, to be differentiated by."""
    if not bool(batch.pbc.all()):
        raise StructureError("stress is defined only for a crystal that is periodic in all three directions")
    strain = torch.zeros_like(batch.cell, requires_grad=True)
    deformed = deformation(strain)
    strained = copy.copy(batch)
    strained.positions = torch.einsum("na,nab->nb", batch.positions, deformed[batch_index(batch)])
    strained.cell = batch.cell @ deformed
    return strained, strain
