"""`lrpot info`: what a model file is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from lrpot.console import Console
    from lrpot.ensemble import Calibration
    from lrpot.potential import Potential


def info(model: Annotated[Path, typer.Argument(help="Model file.")]) -> None:
    """Elements, units, settings, stages and errors of a model, or of each model of an ensemble."""
    from lrpot.console import Console
    from lrpot.ensemble import Ensemble
    from lrpot.model_file import load

    console = Console()
    potential = load(model)
    if isinstance(potential, Ensemble):
        console.line(f"{'ensemble:':15s} {len(potential.members)} models; {_calibration(potential.calibration)}")
    for number, member in enumerate(potential.members, 1):
        if len(potential.members) > 1:
            console.line()
            console.line(f"{'model:':15s} {number} of {len(potential.members)}")
        _tell(console, member)


def _calibration(calibration: Calibration | None) -> str:
    if calibration is None:
        return "uncertainties are the plain spread, not calibrated"
    factors = ", ".join(f"{name} x {factor:.3f}" for name, factor in calibration.factors.items())
    return f"spread calibrated on {calibration.n_structures} structures: {factors}"


def _tell(console: Console, potential: Potential) -> None:
    about: Any = potential.info
    parameters = sum(p.numel() for p in potential.parameters())
    settings = about.config["model"]
    lines = [
        ("elements", ", ".join(about.elements)),
        ("made by", f"lrpot {about.version}, {about.created}"),
        ("units", _text(about.units)),
        ("backbone", _text(settings.get("backbone"))),
        ("kernel", _text(settings.get("kernel"))),
        ("charges", _text(settings.get("charges"))),
        ("parameters", str(parameters)),
        ("precision", str(potential.short.readout.last.weight.dtype).removeprefix("torch.")),
        ("training data", _text(about.data)),
    ]
    lines += [(name, _text(value)) for name, value in _origin(about.record)]
    if potential.long is not None:
        lines.insert(6, ("k_cutoff", f"{potential.long.reciprocal.k_cutoff:.3f} 1/A"))
    for name, value in lines:
        console.line(f"{name + ':':15s} {value}")
    for number, stage in enumerate(about.stages):
        console.line(f"stage {stage.get('stage', number)}: {'; '.join(_stage(stage))}")


def _origin(record: dict[str, Any]) -> list[tuple[str, object]]:
    """What a fit wrote down of how it was made; models of other origin have nothing."""
    found = [("versions", record.get("versions")), ("git", record.get("git")), ("started from", record.get("from"))]
    found.append(("computed on", record.get("device")))
    return [(name, value) for name, value in found if value]


def _stage(stage: dict[str, Any]) -> list[str]:
    """Title, epochs, validation errors and charges of a stage, those that it has."""
    title = stage.get("title", "no title")
    epochs = f"{stage['epochs']} epochs" if "epochs" in stage else ""  # the start has none
    errors = {name: value for name, value in stage.get("validation", {}).items() if isinstance(value, dict)}
    validation = ", ".join(f"{name} {value['mae']:.3g} {value['unit']}" for name, value in errors.items())
    charges = ", ".join(f"{symbol} {charge:+.5f} e" for symbol, charge in stage.get("charges", {}).items())
    return [part for part in (title, epochs, validation, charges) if part]


def _text(value: object) -> str:
    """A setting as words: {train: 8, test: 1} -> "train 8, test 1"."""
    if isinstance(value, dict):
        inner = {name: _text(v) for name, v in value.items()}
        return ", ".join(f"{name} ({text})" if "," in text else f"{name} {text}" for name, text in inner.items())
    return ", ".join(map(_text, value)) if isinstance(value, list) else str(value)
