"""How well data determine the charges of a model: errors along the scale of all charges, with the network frozen.

With all charges multiplied by s, E_long becomes s^2 E_long: it is quadratic in the charges, and charges that are
equilibrated are s times as large when their electronegativities and the total charge are. So with r = prediction -
label and f the long-range part of the prediction,

    L(s) = < [r + (s^2 - 1) f]^2 >

of forces, and of energies per atom from which an offset per element is fitted out at every s, as training does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lrpot.evaluation import Evaluation, predict_structures
from lrpot.potential import Potential
from lrpot.structure import MAX_ATOMIC_NUMBER, Structure

# The scales that are shown.
SCALES = tuple(round(0.8 + 0.02 * n, 2) for n in range(21))

# Relative: what is left of numbers that cancel.
ROUNDING = 1e-9


@dataclass(frozen=True)
class ErrorAlongScale:
    """L(s) of one quantity.

    Attributes:
        square: <r^2>. mixed: <r f>. long: <f^2>. All in the square of the quantity's unit.
    """

    square: float
    mixed: float
    long: float

    def loss(self, scale: float) -> float:
        """L(s), in the square of the unit."""
        change = scale**2 - 1.0
        return max(self.square + 2.0 * change * self.mixed + change**2 * self.long, 0.0)

    def rmse(self, scale: float) -> float:
        """In the unit of the quantity."""
        return math.sqrt(self.loss(scale))

    @property
    def best(self) -> float:
        """The scale at which L is least."""
        return math.sqrt(max(1.0 - self.mixed / self.long, 0.0))

    def curvature(self, scale: float) -> float:
        """d^2 L / ds^2, in the square of the unit."""
        return 4.0 * self.mixed + (12.0 * scale**2 - 4.0) * self.long

    @property
    def width(self) -> float:
        """How far from the best scale L is twice its least value, by its curvature there; infinite without one."""
        curvature = self.curvature(self.best)
        return math.sqrt(2.0 * self.loss(self.best) / curvature) if curvature > 0 else math.inf

    def record(self) -> dict[str, float | list[float]]:
        """Everything of it, for JSON."""
        numbers = {"best": self.best, "width": self.width, "curvature": self.curvature(self.best)}
        return {**numbers, "scales": list(SCALES), "rmse": [self.rmse(s) for s in SCALES]}


def errors_along_scale(
    model: Potential, structures: Sequence[Structure], evaluation: Evaluation
) -> dict[str, ErrorAlongScale]:
    """L(s) of "energy" (eV/atom) and "forces" (eV/A), as far as there are labels.

    Args:
        model: with charges that are not all zero; else nothing comes back.
        structures: with edges up to the model's cutoff.
        evaluation: of this model on them.
    """
    if all(member.long is None for member in model.members):
        return {}
    long: dict[str, list[Tensor]] = {"energy": [], "forces": []}
    fractions = []
    for group, output in predict_structures(model, structures, parts={"long"}):
        start = 0
        for n, structure in enumerate(group):
            atoms = slice(start, start + structure.num_nodes)
            start = atoms.stop
            if "energy" in structure:
                long["energy"].append(output["energy"][n : n + 1].cpu() / structure.num_nodes)
                counts = torch.bincount(structure.numbers.cpu(), minlength=MAX_ATOMIC_NUMBER + 1).double()
                fractions.append(counts / structure.num_nodes)
            if "forces" in structure:
                long["forces"].append(output["forces"][atoms].reshape(-1).cpu())
    found = {}
    for name, parts in long.items():
        if not parts:
            continue
        both = torch.stack([evaluation.predicted[name] - evaluation.reference[name], torch.cat(parts)], dim=1)
        if name == "energy":
            both = _without_offsets(both, torch.stack(fractions))
        square, mixed, own = (float((both[:, a] * both[:, b]).mean()) for a, b in ((0, 0), (0, 1), (1, 1)))
        # energies that offsets explain, and forces of perfect crystals, say nothing about charges
        if own > ROUNDING**2 * float((torch.cat(parts) ** 2).mean()):
            found[name] = ErrorAlongScale(square, mixed, own)
    return found


def _without_offsets(energies: Tensor, fractions: Tensor) -> Tensor:
    """Columns (G, X) less what an offset per element, with shares (G, Z), fits best."""
    return energies - fractions @ torch.linalg.lstsq(fractions, energies, driver="gelsd").solution
