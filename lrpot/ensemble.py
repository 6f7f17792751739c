"""Several models as one: their mean, and from their spread how uncertain it is."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from lrpot.errors import ConfigError
from lrpot.potential import PARTS, Potential
from lrpot.structure import batch_index, edge_vectors

# What has an uncertainty.
UNCERTAIN = ("energy", "forces")


@dataclass(frozen=True)
class Calibration:
    """What the spread of the members is multiplied by to be the size of the errors; see `lrpot.calibration`.

    Attributes:
        factors: by quantity, of `UNCERTAIN`.
        n_structures: from how many structures.
    """

    factors: dict[str, float]
    n_structures: int

    def __post_init__(self) -> None:
        wrong = [name for name, f in self.factors.items() if name not in UNCERTAIN or not 0.0 < f < math.inf]
        if wrong or self.n_structures < 1:
            raise ValueError(f"factors must be of {' and '.join(UNCERTAIN)}, finite and positive, from some structures")


class Ensemble(Potential):
    """The mean of several potentials, with uncertainties.

    It is used like a `Potential`. It has no `short` and `long` of its own: those are in `members`.

    Attributes:
        calibration: None if the uncertainties are the plain spread of the members.
    """

    def __init__(self, members: Iterable[Potential], calibration: Calibration | None = None) -> None:
        """
        Args:
            members: two or more, of the same elements; their cutoffs may differ.
        Raises:
            ConfigError: too few, other elements, or two of them are the same.
        """
        nn.Module.__init__(self)  # a Potential is made of parts that an ensemble has not
        self.potentials = nn.ModuleList(members)
        self.calibration = calibration
        self.info = None
        _check_members(self.members)
        self.elements = list(self.members[0].elements)

    @property
    def members(self) -> list[Potential]:
        return list(self.potentials)  # type: ignore[arg-type]

    @property
    def cutoff(self) -> float:
        """A; the largest of the members."""
        return max(member.cutoff for member in self.members)

    def __getattr__(self, name: str) -> Any:
        if name in ("short", "long"):
            raise ConfigError(
                f"an ensemble of {len(self.potentials)} models has not one network, kernel and charges but as many; "
                "give the file of one of them"
            )
        return super().__getattr__(name)

    def set_precision(self, dtype: torch.dtype, long_range: torch.dtype = torch.float64) -> Ensemble:
        for member in self.members:
            member.set_precision(dtype, long_range)
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
        """Means of what the members give, and uncertainties; the batch and its edges are made once for all of them.

        Args:
            batch: structures with edges, as for all arguments of `Potential.forward`.
            forces: whether to compute them.
            stress: whether to compute it.
            born_charges: whether to compute them, or (G,) bool of which structures.
            create_graph: keep the derivatives differentiable.
            parts: which of "offset", "short" and "long".
        Returns:
            what `Potential.forward` gives, as far as all members do, of charges the first channel, (N, 1); and
            energy_uncertainty: (G,), eV/atom; forces_uncertainty: (N,), eV/A, with `forces`. Both are standard
            deviations over the members (divided by their number - 1) times the calibration. That of a force is the
            root of the trace of its covariance: the length of a typical error, whatever way the axes point.
        """
        outputs = [
            member(
                self._seen_by(member, batch),
                forces=forces,
                stress=stress,
                born_charges=born_charges,
                create_graph=create_graph,
                parts=parts,
            )
            for member in self.members
        ]
        common = [name for name in outputs[0] if all(name in output for output in outputs)]
        every = {name: torch.stack([_shared(name, output[name]) for output in outputs]) for name in common}
        found = {name: values.mean(dim=0) for name, values in every.items()}
        n_atoms = torch.bincount(batch_index(batch), minlength=batch.cell.shape[0])
        found["energy_uncertainty"] = self._factor("energy") * every["energy"].std(dim=0) / n_atoms
        if forces:
            found["forces_uncertainty"] = self._factor("forces") * every["forces"].var(dim=0).sum(dim=1).sqrt()
        return found

    def atom_energies(self, batch: Data) -> Tensor:
        """Means of what the members give, (N,), eV."""
        return torch.stack([member.atom_energies(self._seen_by(member, batch)) for member in self.members]).mean(dim=0)

    def _seen_by(self, member: Potential, batch: Data) -> Data:
        return batch if member.cutoff == self.cutoff else _within(batch, member.cutoff)

    def _factor(self, quantity: str) -> float:
        return 1.0 if self.calibration is None else self.calibration.factors.get(quantity, 1.0)


def _shared(name: str, value: Tensor) -> Tensor:
    # members may differ in the channels beyond the first, which is the charge
    return value[:, :1] if name == "charges" else value


def _within(batch: Data, cutoff: float) -> Data:
    """The batch with no edges longer than a cutoff, A."""
    with torch.no_grad():
        near = torch.linalg.vector_norm(edge_vectors(batch), dim=1) < cutoff
    batch = copy.copy(batch)  # shallow: the caller's keeps its edges
    batch.edge_index, batch.edge_shift = batch.edge_index[:, near], batch.edge_shift[near]
    return batch


def _check_members(members: Sequence[Potential]) -> None:
    if len(members) < 2:
        raise ConfigError(f"an ensemble of {len(members)} model has no spread; give two or more")
    for number, member in enumerate(members):
        if sorted(member.elements) != sorted(members[0].elements):
            raise ConfigError(
                f"model {number} of the ensemble knows the elements {member.elements}, model 0 knows "
                f"{members[0].elements}; join models of the same elements"
            )
        # a model that was built by hand has no info, and lrpot's units
        units = [getattr(one.info, "units", None) for one in (member, members[0])]
        if None not in units and units[0] != units[1]:
            raise ConfigError(
                f"model {number} of the ensemble has the units {str(units[0])[:150]}, model 0 has "
                f"{str(units[1])[:150]}; join models of the same units"
            )
    for (one, a), (other, b) in combinations(enumerate(m.state_dict() for m in members), 2):
        if a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a):
            raise ConfigError(f"models {one} and {other} of the ensemble are the same; models of other seeds differ")
