"""Options that several commands share, worded once."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer


class DType(StrEnum):
    float32 = "float32"
    float64 = "float64"


class Encoder(StrEnum):
    """Encoders of crystals."""

    cgcnn = "cgcnn"
    yu = "yu"
    regnet = "regnet"
    prdnet = "prdnet"
    crystograph = "crystograph"
    moce = "moce"
    statistics = "statistics"


class Switch(StrEnum):
    on = "on"
    off = "off"


class Head(StrEnum):
    """Heads of property models."""

    single = "single"
    shared = "shared"
    experts = "experts"
    trees = "trees"


Model = Annotated[Path, typer.Argument(help="Model file, or the name of one that comes with lrpot.")]
Device = Annotated[str, typer.Option("--device", help="Where to compute: cpu, cuda, cuda:1, ...", show_default=True)]
Precision = Annotated[DType, typer.Option("--dtype", help="Precision of the network.", show_default=True)]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything random.", show_default=True)]

# Of fits; None where a file of settings, or the default, decides.
FitSeed = Annotated[int | None, typer.Option("--seed", help="Seed of weights, split and order.", show_default="0")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="YAML file with settings.", show_default="none")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Remove what is in --out first.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE ...",
        help="Any setting, such as training.max_epochs=50 training.lr=1e-3 model.backbone.cutoff=5 (A).",
        show_default="none",
    ),
]

# Of property models.
Targets = Annotated[
    list[str] | None,
    typer.Option(
        "--target",
        help="With --encoder: a property to learn, by its name in DATA; may be repeated.",
        show_default="all of id_prop.csv",
    ),
]
Classes = Annotated[
    list[str] | None,
    typer.Option("--classification", help="A target that is a class, 0 or 1; may be repeated.", show_default="none"),
]
HeadKind = Annotated[
    Head | None,
    typer.Option(
        "--head",
        help="With --encoder: a network for each target, experts that targets share, or, with statistics, trees.",
        show_default="shared",
    ),
]

DiffractionUse = Annotated[
    Switch | None,
    typer.Option(
        "--diffraction",
        help="With --encoder: diffraction of pseudo-particles beside it.",
        show_default="on for prdnet",
    ),
]


def property_settings(
    encoder: Encoder | None,
    targets: list[str] | None,
    classes: list[str] | None,
    head: Head | None,
    diffraction: Switch | None,
) -> dict[str, Any]:
    """The settings, by dotted name, that these options stand for; None where one is not given."""
    return {
        "properties.encoder.name": encoder and encoder.value,
        "properties.targets": targets or None,
        "properties.classification": classes or None,
        "properties.head.kind": head and head.value,
        "properties.diffraction.use": diffraction and diffraction.value,
    }


def check_crystals_out(out: Path | None) -> None:
    """Find out before any work whether predictions can be written there.

    Raises:
        ConfigError: an ending of no kind of table. OutputError: it cannot be written.
    """
    from lrpot.errors import ConfigError
    from lrpot.files import check_writable

    if out is None:
        return
    if out.suffix not in (".csv", ".extxyz", ".xyz"):
        raise ConfigError(f"--out {out}: unknown ending {out.suffix!r}; use .csv or .extxyz")
    check_writable(out)
