"""`lrpot info`: what a model file is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def info(model: Annotated[Path, typer.Argument(help="Model file.")]) -> None:
    """Elements, units, settings, stages and errors of a model."""
    from lrpot.console import Console
    from lrpot.model_file import ModelInfo, load

    console = Console()
    potential = load(model)
    about = potential.info
    assert isinstance(about, ModelInfo)
    parameters = sum(p.numel() for p in potential.parameters())
    backbone, kernel = about.config["model"]["backbone"], about.config["model"]["kernel"]
    lines = [
        ("elements", ", ".join(about.elements)),
        ("made by", f"lrpot {about.version}, {about.created}"),
        ("units", ", ".join(f"{name} {unit}" for name, unit in about.units.items())),
        ("backbone", ", ".join(f"{name} {value}" for name, value in backbone.items())),
        ("kernel", ", ".join(f"{name} {value}" for name, value in kernel.items())),
        ("parameters", str(parameters)),
        ("precision", str(potential.short.readout.last.weight.dtype).removeprefix("torch.")),
        ("training data", ", ".join(f"{name} {value}" for name, value in about.data.items())),
    ]
    if potential.long is not None:
        lines.insert(5, ("k_cutoff", f"{potential.long.reciprocal.k_cutoff:.3f} 1/A"))
    for name, value in lines:
        console.line(f"{name + ':':15s} {value}")
    for stage in about.stages:
        errors = ", ".join(
            f"{name} {values['mae']:.3g} {values['unit']}"
            for name, values in stage["validation"].items()
            if isinstance(values, dict)
        )
        charges = ", ".join(f"{symbol} {charge:+.5f} e" for symbol, charge in stage["charges"].items())
        console.line(f"stage {stage['stage']}: {stage['title']}; {stage['epochs']} epochs; {errors}; {charges}")
