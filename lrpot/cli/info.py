"""`lrpot info`: what a model file is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lrpot.cli.options import Model

if TYPE_CHECKING:
    from lrpot.console import Console
    from lrpot.ensemble import Calibration
    from lrpot.potential import Potential
    from lrpot.properties.model import PropertyModel


def info(model: Model) -> None:
    """Elements, units, settings, stages and errors of a model, or of each model of an ensemble."""
    from lrpot.console import Console
    from lrpot.ensemble import Ensemble
    from lrpot.model_file import load_model
    from lrpot.potential import Potential
    from lrpot.properties.model import PropertyEnsemble, PropertyModel
    from lrpot.shipped import find_model

    console = Console()
    loaded = load_model(model)
    console.line(f"{'file:':15s} {find_model(model)}")
    if isinstance(loaded, Ensemble):
        console.line(f"{'ensemble:':15s} {len(loaded.members)} models; {_calibration(loaded.calibration)}")
    if isinstance(loaded, PropertyEnsemble):
        factors = ", ".join(f"{name} x {factor:.3f}" for name, factor in loaded.factors.items())
        console.line(f"{'ensemble:':15s} {len(loaded.members)} models; spread calibrated: {factors or 'no'}")
    for number, member in enumerate(loaded.members, 1):
        if len(loaded.members) > 1:
            console.line()
            console.line(f"{'model:':15s} {number} of {len(loaded.members)}")
        if isinstance(member, Potential):
            _tell(console, member)
        elif isinstance(member, PropertyModel):
            _tell_properties(console, member)


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


def _tell_properties(console: Console, model: PropertyModel) -> None:
    about: Any = model.info
    settings = about.config["properties"]
    lines = [
        ("predicts", ", ".join(target.described for target in model.targets)),
        ("elements", ", ".join(about.elements)),
        ("made by", f"lrpot {about.version}, {about.created}"),
        ("encoder", _text(settings.get("encoder"))),
        ("diffraction", "none" if model.diffraction is None else _text(settings.get("diffraction"))),
        ("head", _head(settings.get("head", {}))),
        ("parameters", str(sum(p.numel() for p in model.parameters()))),
        ("training data", _text(about.data)),
    ]
    lines += [(name, _text(value)) for name, value in _origin(about.record)]
    for name, value in lines:
        console.line(f"{name + ':':15s} {value}")
    from lrpot.properties.evaluation import errors_text

    for stage in about.stages:
        epochs = f", {stage['epochs']} epochs" if "epochs" in stage else ""
        found = errors_text(stage.get("validation", {}), model.targets)
        console.line(f"{stage.get('title', 'fit')}{epochs}: validation {found}")


def _head(settings: dict[str, Any]) -> str:
    """The kind of a head, and what else is of that kind."""
    kind = settings.get("kind", "shared")
    of_kind = {"experts": ("experts", "top", "variant"), "trees": ("trees", "max_features", "min_leaf")}
    if kind not in of_kind:
        return kind
    return _text({"kind": kind} | {name: settings[name] for name in of_kind[kind] if name in settings})


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
