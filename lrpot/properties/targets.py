"""What is predicted: names, kinds, units, and the scales in which a network learns them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lrpot.config import PropertiesConfig
from lrpot.errors import DataError


@dataclass(frozen=True)
class Target:
    """One property of crystals.

    Attributes:
        name: as the data call it. unit: for tables and pictures.
        classification: whether it is 0 or 1, and its probability is predicted.
        extensive: whether it grows with the cell. log: whether its logarithm is learned.
    """

    name: str
    unit: str = ""
    classification: bool = False
    extensive: bool = False
    log: bool = False

    @property
    def label(self) -> str:
        """Name and unit, for tables and pictures."""
        return f"{self.name} ({self.unit})" if self.unit else self.name

    @property
    def kind(self) -> str:
        """For metrics and pictures."""
        return "classification" if self.classification else "regression"

    @property
    def described(self) -> str:
        """Name, unit and kind."""
        kinds = [kind for kind in ("classification", "extensive", "log") if getattr(self, kind)]
        return self.label + (f" [{', '.join(kinds)}]" if kinds else "")


def targets_from(config: PropertiesConfig) -> tuple[Target, ...]:
    """The targets that a configuration names, in its order."""
    return tuple(
        Target(
            name,
            unit=config.units.get(name, ""),
            classification=name in config.classification,
            extensive=name in config.extensive,
            log=name in config.log,
        )
        for name in config.targets
    )


def check_values(targets: Sequence[Target], values: Tensor) -> None:
    """Refuse values (T,) of one crystal that the kinds of their targets rule out; nan is no value.

    Raises:
        DataError: names the target.
    """
    for target, value in zip(targets, values.tolist(), strict=True):
        if target.classification and value == value and value not in (0.0, 1.0):
            raise DataError(f"{target.name} = {value:g}, but a class is 0 or 1; correct it, or learn it as a number")
        if target.log and value <= 0.0:
            raise DataError(
                f"{target.name} = {value:g} has no logarithm; correct it, or take {target.name} out of properties.log"
            )
