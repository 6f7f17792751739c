"""A property model: encoder, diffraction beside it, head, and the scales of its targets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from lrpot.errors import ConfigError, DataError
from lrpot.properties.diffraction import Diffraction
from lrpot.properties.features import CrystalFeatures, atom_counts
from lrpot.properties.heads import HeadOutput
from lrpot.properties.targets import Target
from lrpot.properties.waves import check_waves

# Spreads smaller than this, relative to the values, are rounding.
ROUNDING = 1e-12


class PropertyOutput(NamedTuple):
    """What a model says of G crystals.

    Attributes:
        values: (G, T), in the units of the data; of a class the probability that it is 1.
        uncertainty: (G, T), in the same units, how far each is likely to be off; None if the model is no ensemble.
        gates: (G, T, experts), how much each target takes of each expert of the head; None without experts.
        encoder_gates: (G, E), how much the encoder takes of each of its own experts; None without experts.
    """

    values: Tensor
    uncertainty: Tensor | None
    gates: Tensor | None = None
    encoder_gates: Tensor | None = None


def largest_cutoff(*cutoffs: float | None) -> float | None:
    """The largest |k|, 1/A, of those parts of a model that read waves; None if none does."""
    return max((cutoff for cutoff in cutoffs if cutoff is not None), default=None)


class PropertyModel(nn.Module):
    """Properties of crystals: features by an encoder, fused with diffraction if there is any, read by a head.

    A target is learned per atom if it is extensive, as its logarithm if that is asked for, less its mean and over its
    standard deviation in the training set; of a class the network gives the logit.

    Attributes:
        elements: atomic numbers that it was fitted to.
        info: what the model is and where it comes from (`lrpot.model_file.ModelInfo`); None before it was fitted.
    """

    centre: Tensor
    scale: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        head: nn.Module,
        targets: Sequence[Target],
        elements: Sequence[int],
        diffraction: Diffraction | None = None,
    ) -> None:
        """
        Args:
            encoder: batch -> `CrystalFeatures`; its `cutoff`, A, and `shells` say which edges it wants, `wave_cutoff`,
                1/A, how far its waves reach, or None.
            head: `CrystalFeatures`, batch -> `HeadOutput`.
            diffraction: what changes the features of the encoder before the head sees them.
        """
        super().__init__()
        self.encoder = encoder
        self.diffraction = diffraction
        self.head = head
        self.targets = tuple(targets)
        self.elements = list(elements)
        self.info: object | None = None
        self.register_buffer("centre", torch.zeros(len(self.targets), dtype=torch.float64))
        self.register_buffer("scale", torch.ones(len(self.targets), dtype=torch.float64))

    @property
    def cutoff(self) -> float:
        """A; no edge is longer."""
        return float(self.encoder.cutoff)  # type: ignore[arg-type]

    @property
    def shells(self) -> int | None:
        """Edges from so many nearest neighbours, in whole shells; None: from all within the cutoff."""
        return self.encoder.shells  # type: ignore[return-value]

    @property
    def experts(self) -> tuple[str, ...]:
        """Names of those that the encoder mixes; none if it has none."""
        return getattr(self.encoder, "experts", ())

    @property
    def wave_cutoff(self) -> float | None:
        """1/A, how far its waves reach; None without any."""
        own: Any = self.encoder.wave_cutoff
        return largest_cutoff(own, None if self.diffraction is None else self.diffraction.k_cutoff)

    def check(self, structure: Data) -> None:
        """Refuse a crystal that the encoder cannot treat, before anything is computed.

        Raises:
            StructureError: says why.
        """
        if self.wave_cutoff is not None:
            check_waves(structure, self.wave_cutoff)

    @property
    def members(self) -> list[PropertyModel]:
        """The models whose mean this is: itself, or those of a `PropertyEnsemble`."""
        return [self]

    def set_precision(self, dtype: torch.dtype) -> PropertyModel:
        """Compute in `dtype`; what comes out in the units of the data is in float64."""
        self.encoder.to(dtype)
        if self.diffraction is not None:
            self.diffraction.to(dtype)
        self.head.to(dtype)
        return self

    def forward(self, batch: Data) -> HeadOutput:
        """What is learned, (G, T), of a batch with the edges that the encoder wants."""
        return self._read(self._features(batch), batch)

    def _features(self, batch: Data) -> CrystalFeatures:
        """Of the encoder, fused with diffraction if there is any."""
        found: CrystalFeatures = self.encoder(batch)
        return found if self.diffraction is None else self.diffraction(found, batch)

    def _read(self, features: CrystalFeatures, batch: Data) -> HeadOutput:
        """What the head makes of them, (G, T)."""
        found: HeadOutput = self.head(features, batch)
        extensive = [target.extensive for target in self.targets]
        if not any(extensive):
            return found
        over = torch.where(torch.tensor(extensive, device=found.values.device), atom_counts(batch)[:, None], 1)
        return found._replace(values=found.values / over)

    def learned(self, values: Tensor, batch: Data) -> Tensor:
        """What the network is to give, (G, T) float64, for values (G, T) in the units of the data."""
        columns = []
        for target, column in zip(self.targets, values.unbind(dim=1), strict=True):
            if target.extensive:
                column = column / atom_counts(batch)
            columns.append(column.log() if target.log else column)
        return (torch.stack(columns, dim=1) - self.centre) / self.scale

    def in_units(self, values: Tensor, batch: Data) -> Tensor:
        """Values (G, T), float64, in the units of the data, of what the network gives; of a class its probability."""
        columns = []
        for target, column in zip(
            self.targets, (values.double() * self.scale + self.centre).unbind(dim=1), strict=True
        ):
            if target.classification:
                column = column.sigmoid()
            elif target.log:
                column = column.exp()
            columns.append(column * atom_counts(batch) if target.extensive else column)
        return torch.stack(columns, dim=1)

    def predict(self, batch: Data) -> PropertyOutput:
        """Values in the units of the data; no gradients."""
        with torch.no_grad():
            features = self._features(batch)
            found = self._read(features, batch)
            return PropertyOutput(self.in_units(found.values, batch), None, found.gates, features.gates)

    def set_scales(self, values: Tensor, sizes: Tensor) -> None:
        """Set centre and scale from the training set; those of a class stay 0 and 1.

        Args:
            values: (n, T), in the units of the data, nan where there is none. sizes: (n,) numbers of atoms.
        Raises:
            DataError: a target that has no value, or whose values are all the same.
        """
        for place, target in enumerate(self.targets):
            known = values[:, place].isfinite()
            own = values[known, place]
            if not len(own):
                raise DataError(f"no training row has {target.name}; add such rows, or leave out that target")
            if bool((own == own[0]).all()):
                raise DataError(
                    f"{target.name} is {float(own[0]):g} in all {len(own)} training rows that have it: there is "
                    "nothing to learn; add rows, or leave out that target"
                )
            if target.classification:
                continue
            own = own / sizes[known] if target.extensive else own
            own = own.log() if target.log else own
            spread = float(own.std()) if len(own) > 1 else 0.0
            # the same for all but for rounding, such as a sum over atoms that is one number for each
            self.scale[place] = spread if spread > ROUNDING * float(own.abs().max()) else 1.0
            self.centre[place] = own.mean()


class PropertyEnsemble(nn.Module):
    """The mean of several property models, with uncertainties from their spread.

    Attributes:
        factors: by target, what the standard deviation over the members is multiplied by to be the size of the errors;
            1 where there is none.
    """

    def __init__(self, members: Sequence[PropertyModel], factors: dict[str, float] | None = None) -> None:
        """
        Args:
            members: two or more, of the same targets.
        Raises:
            ConfigError: too few, of other targets, or two of them are the same.
        """
        super().__init__()
        if len(members) < 2:
            raise ConfigError(f"an ensemble of {len(members)} model has no spread; give two or more")
        for number, member in enumerate(members):
            if member.targets != members[0].targets:
                own, first = (", ".join(t.described for t in m.targets) for m in (member, members[0]))
                raise ConfigError(
                    f"model {number} of the ensemble predicts {own}, model 0 {first}; join models of the same targets"
                )
            if (member.cutoff, member.shells) != (members[0].cutoff, members[0].shells):
                raise ConfigError(
                    f"model {number} of the ensemble reads other edges than model 0; join models of one encoder"
                )
        for (one, a), (other, b) in combinations(enumerate(member.state_dict() for member in members), 2):
            if a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a):
                raise ConfigError(
                    f"models {one} and {other} of the ensemble are the same; models of other seeds differ"
                )
        self.models = nn.ModuleList(members)
        self.factors = dict(factors or {})
        wrong = [n for n, f in self.factors.items() if n not in {t.name for t in self.targets} or not 0 < f < math.inf]
        if wrong:
            raise ConfigError(f"the factor of {wrong[0]} is of no target, or no positive number")

    def check(self, structure: Data) -> None:
        """As of `PropertyModel.check`."""
        for member in self.members:
            member.check(structure)

    @property
    def members(self) -> list[PropertyModel]:
        return list(self.models)  # type: ignore[arg-type]

    @property
    def targets(self) -> tuple[Target, ...]:
        return self.members[0].targets

    @property
    def cutoff(self) -> float:
        return self.members[0].cutoff

    @property
    def shells(self) -> int | None:
        return self.members[0].shells

    @property
    def experts(self) -> tuple[str, ...]:
        """As of `PropertyModel`; none if members mix others."""
        kinds = {member.experts for member in self.members}
        return kinds.pop() if len(kinds) == 1 else ()

    @property
    def elements(self) -> list[int]:
        """Atomic numbers that any member was fitted to."""
        return sorted({z for member in self.members for z in member.elements})

    def set_precision(self, dtype: torch.dtype) -> PropertyEnsemble:
        for member in self.members:
            member.set_precision(dtype)
        return self

    def predict(self, batch: Data) -> PropertyOutput:
        """Means over the members, and standard deviations (divided by their number - 1) times `factors`."""
        outputs = [member.predict(batch) for member in self.members]
        values = torch.stack([output.values for output in outputs])
        factors = values.new_tensor([self.factors.get(target.name, 1.0) for target in self.targets])
        gates = (_mean([output.gates for output in outputs]), _mean([output.encoder_gates for output in outputs]))
        return PropertyOutput(values.mean(dim=0), factors * values.std(dim=0), *gates)


def _mean(gates: Sequence[Tensor | None]) -> Tensor | None:
    """Over members, or None where one of them has none."""
    present = [own for own in gates if own is not None]
    return torch.stack(present).mean(dim=0) if len(present) == len(gates) else None
