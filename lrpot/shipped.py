"""Models that come with lrpot: which there are, where their files are, what their cards say.

lrpot/models/NAME.pt    the model
lrpot/models/NAME.yaml  its card
"""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError

from lrpot.errors import ModelFileError

FOLDER = Path(__file__).parent / "models"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Error(_Part):
    """Mean absolute and root mean square error, in the units of the label."""

    mae: float
    rmse: float


class Errors(_Part):
    """Errors on labelled structures that no fit saw.

    Attributes:
        n_structures: how many. n_atoms: of all of them together.
        energy: eV/atom. forces: eV/A. stress: eV/A^3; None without such labels.
    """

    n_structures: PositiveInt
    n_atoms: PositiveInt
    energy: Error
    forces: Error
    stress: Error | None = None


class Range(_Part):
    """Where the model may be used.

    Attributes:
        phases: in words. temperature: K, lowest and highest. pressure: GPa, likewise.
        cells: which sizes, in words. not_for: what it was never shown.
    """

    phases: str
    temperature: tuple[float, float]
    pressure: tuple[float, float]
    cells: str
    not_for: str


class Card(_Part):
    """What to know of a model before use.

    Attributes:
        title: in a few words. elements: symbols.
        method: what computed the labels. why: why that. data: what they are labels of.
        range: of use. errors: by test set, the first that of the list of models.
        licence: SPDX. citation: of the method. commands: that made the model.
        sha256: of the model file.
    """

    title: str
    elements: list[str]
    method: str
    why: str
    data: str
    range: Range
    errors: dict[str, Errors]
    licence: str
    citation: str
    commands: list[str]
    sha256: str


def shipped_models() -> list[str]:
    """The names of all, in order."""
    return sorted(path.stem for path in FOLDER.glob("*.pt"))


def read_card(name: str) -> Card:
    """The card of one.

    Args:
        name: with or without .pt.
    Raises:
        ModelFileError: no such model, or its card is missing or damaged.
    """
    name = name.removesuffix(".pt")
    if name not in shipped_models():
        raise ModelFileError(f"{name}: no model of that name comes with lrpot; {_choice()}")
    path = FOLDER / f"{name}.yaml"
    try:
        return Card.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = f"{'.'.join(map(str, error.errors()[0]['loc']))}" if isinstance(error, ValidationError) else error
        raise ModelFileError(f"{path}: the card cannot be read ({reason}); install lrpot anew") from error


def find_model(path: str | Path) -> Path:
    """The file that a user means: one of that path, else the shipped model of that name.

    Args:
        path: of a file; or, with or without .pt, the name of a model that comes with lrpot.
    Raises:
        ModelFileError: neither is there; names the shipped models.
    """
    path = Path(path)
    name = path.name.removesuffix(".pt")
    if not path.is_file() and path.parent == Path() and name in shipped_models():
        return FOLDER / f"{name}.pt"
    if not path.exists():
        raise ModelFileError(f"{path}: no such file; check the path, or {_choice()}")
    return path


def _choice() -> str:
    return f"give one that comes with lrpot: {', '.join(shipped_models())}"
