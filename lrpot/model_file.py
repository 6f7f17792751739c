"""Model files: what the two members of `lrpot.archive` hold, written and checked.

format 1, a potential
    model.json            format, version, config, units, elements, stages, data
    weights.safetensors   every parameter and buffer
format 2, an ensemble of potentials
    model.json            the above of each in `models`, and the calibration
    weights.safetensors   those of model n, named n.NAME
format 3, one or more models of properties
    the same, with `factors` of uncertainties by target in place of the calibration
"""

from __future__ import annotations

import math
import re
import reprlib
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from ase.data import atomic_numbers, chemical_symbols
from pydantic import BaseModel, TypeAdapter, ValidationError

from lrpot._version import __version__
from lrpot.archive import brief, read_archive, write_archive
from lrpot.build import build_potential
from lrpot.config import ModelConfig, PropertiesConfig, RegisteredConfig, YuConfig, locate
from lrpot.coverage import Coverage
from lrpot.ensemble import Calibration, Ensemble
from lrpot.errors import ConfigError, LrpotError, ModelFileError
from lrpot.potential import Potential
from lrpot.properties.build import build_property_model
from lrpot.properties.model import PropertyEnsemble, PropertyModel
from lrpot.shipped import find_model

# What a model file may hold.
Model = Potential | PropertyModel | PropertyEnsemble

FORMAT, ENSEMBLE_FORMAT, PROPERTY_FORMAT = 1, 2, 3
CURE = "get it anew from where it was made"
UNITS = {"length": "A", "energy": "eV", "forces": "eV/A", "stress": "eV/A^3", "charge": "e", "wave vector": "1/A"}


@dataclass
class ModelInfo:
    """What a model is and where it comes from.

    Attributes:
        config: the settings of the fit: sections data, model, properties, training.
        elements: symbols that it was fitted to.
        stages: one entry per stage of the fit: name, epochs, validation errors, charges.
        data: the training set: file, rows, hash.
        record: what it was made with: versions of packages, state of the repository, device, threads, seed, and the
            model that it was fine-tuned from; empty for a model that no fit made.
        coverage: extremes of the training set of a potential; None where they are not known.
        units: of everything that goes in and comes out.
        version: of lrpot that made it.
        created: date and time, UTC.
    """

    config: dict[str, Any]
    elements: list[str]
    stages: list[dict[str, Any]] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)
    coverage: Coverage | None = None
    units: dict[str, str] = field(default_factory=lambda: dict(UNITS))
    version: str = __version__
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))


def save(model: Model, path: str | Path) -> Path:
    """Write a model; an older file at that path stays whole until the new one is.

    Args:
        model: with `info` set; of an ensemble, that of each member.
        path: usually ends in .pt.
    Raises:
        OutputError: it cannot be written.
    """
    about: dict[str, Any]
    if isinstance(model, Potential) and not isinstance(model, Ensemble):
        return write_archive(Path(path), {"format": FORMAT, **_about(model, path)}, _weights(model))
    models = [_about(member, path) for member in model.members]
    weights = {f"{n}.{name}": value for n, m in enumerate(model.members) for name, value in _weights(m).items()}
    if isinstance(model, Ensemble):
        calibration = None if model.calibration is None else asdict(model.calibration)
        about = {"format": ENSEMBLE_FORMAT, "version": __version__, "models": models, "calibration": calibration}
    else:
        factors = model.factors if isinstance(model, PropertyEnsemble) else {}
        about = {"format": PROPERTY_FORMAT, "version": __version__, "models": models, "factors": factors}
    return write_archive(Path(path), about, weights)


def load(path: str | Path, *, device: str = "cpu", dtype: torch.dtype | None = None) -> Potential:
    """Read a potential.

    Args:
        path: the file, or the name of a model that comes with lrpot (`lrpot.shipped`).
        device: where its weights go.
        dtype: precision of the network; None keeps that of the file.
    Returns:
        the model, in evaluation mode, with `model.info`; an `Ensemble` if the file holds one.
    Raises:
        ModelFileError: no such file, not a model of lrpot, damaged, of a newer format, or a model of properties.
        ConfigError: a device that is not there.
    """
    model = load_model(path, device=device, dtype=dtype)
    if not isinstance(model, Potential):
        names = ", ".join(target.name for target in model.targets)
        raise ModelFileError(
            f"{path}: predicts {names} of crystals, not energies and forces; use it with lrpot predict or lrpot screen"
        )
    return model


def load_for_inference(
    model: str | Path | Potential, *, device: str | torch.device, dtype: str | torch.dtype
) -> Potential:
    """A potential for a program that only asks for energies and their derivatives; its weights stay what they are.

    Args:
        model: file of a model, the name of one that comes with lrpot, or the model itself, which is changed.
        device: where its weights go.
        dtype: precision of network and structure factors; energies are summed in float64.
    Raises:
        ModelFileError: as `load`. ConfigError: an unknown precision or a device that is not there.
    """
    name = str(dtype).removeprefix("torch.")
    if name not in ("float64", "float32"):
        raise ConfigError(f"dtype = {name!r} is not known; use float64 or float32")
    precision = getattr(torch, name)
    if not isinstance(model, Potential):
        model = load(model, device=str(device))
    model = model.set_precision(precision, long_range=precision).to(check_device(device))
    return model.eval().requires_grad_(False)


def load_model(path: str | Path, *, device: str = "cpu", dtype: torch.dtype | None = None) -> Model:
    """Read a potential or a model of properties; arguments and errors as of `load`."""
    path = find_model(path)
    place = check_device(device)
    content, weights = read_archive(path)
    header = _check_format(path, content)
    build = {FORMAT: _build, ENSEMBLE_FORMAT: _build_ensemble, PROPERTY_FORMAT: _build_properties}[header["format"]]
    model = build(path, header, weights)
    if dtype is not None:
        model.set_precision(dtype)
    return model.to(place).eval()


def coverages(model: Potential) -> list[Coverage]:
    """What the members of a model have seen, of those that know it."""
    infos = [member.info for member in model.members]
    return [info.coverage for info in infos if isinstance(info, ModelInfo) and info.coverage is not None]


def _about(model: Potential | PropertyModel, path: str | Path) -> dict[str, Any]:
    if not isinstance(model.info, ModelInfo):
        raise ModelFileError(f"{path}: the model has no info; set model.info to a ModelInfo before saving it")
    return asdict(model.info)


def _weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}


def _build(path: Path, header: dict[str, Any], weights: dict[str, torch.Tensor]) -> Potential:
    """One model, of one object of model.json and its weights."""
    info, config, elements = _check_info(path, header)
    assert isinstance(config, ModelConfig)
    try:
        # each of these steps has weights of its own; more steps than weights would only take time and memory to build
        if max(getattr(config.backbone, "interactions", 0), config.kernel.layers) > len(weights):
            raise ModelFileError("its settings ask for more layers than it has weights; get it anew from its maker")
        if not isinstance(config.backbone, RegisteredConfig):  # which may not know how to be built without memory
            with torch.device("meta"):  # takes no memory, so that a hostile width is refused by its shapes
                build_potential(config, elements).load_state_dict(weights, assign=True)
        model = build_potential(config, elements)
        for part in (model.short.backbone, model.short.readout):
            part.to(weights["short.readout.last.weight"].dtype)
        _check_weights(weights)
        model.load_state_dict(weights)
    except LrpotError as error:
        raise ModelFileError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise _misfit(path, error) from error
    model.info = info
    return model


def _build_ensemble(path: Path, header: dict[str, Any], weights: dict[str, torch.Tensor]) -> Ensemble:
    try:
        calibration = TypeAdapter(Calibration | None).validate_python(header.get("calibration"))
    except (ValidationError, OverflowError) as error:
        raise ModelFileError(f"{path}: is damaged (calibration in model.json: {brief(error)}); {CURE}") from error
    members = _members(path, header, weights)
    try:
        return Ensemble([_build(path, *member) for member in members], calibration)
    except ConfigError as error:
        raise ModelFileError(f"{path}: {error}") from error


def _build_properties(
    path: Path, header: dict[str, Any], weights: dict[str, torch.Tensor]
) -> PropertyModel | PropertyEnsemble:
    try:
        factors = TypeAdapter(dict[str, float]).validate_python(header.get("factors"))
    except ValidationError as error:
        raise ModelFileError(f"{path}: is damaged (factors in model.json: {brief(error)}); {CURE}") from error
    models = [_build_property_model(path, *member) for member in _members(path, header, weights)]
    if len(models) == 1:
        return models[0]
    try:
        return PropertyEnsemble(models, factors)
    except ConfigError as error:
        raise ModelFileError(f"{path}: {error}") from error


def _build_property_model(path: Path, header: dict[str, Any], weights: dict[str, torch.Tensor]) -> PropertyModel:
    info, config, elements = _check_info(path, header, "properties", PropertiesConfig)
    assert isinstance(config, PropertiesConfig)
    encoder = config.encoder
    layers = [getattr(encoder, "blocks", 0)]
    backbone = None
    if isinstance(encoder, YuConfig):
        backbone = encoder.backbone
        layers += [getattr(backbone, "interactions", 0), getattr(encoder.descriptor, "layers", 0)]
    try:
        if max(layers) > len(weights):
            raise ModelFileError("its settings ask for more layers than it has weights; get it anew from its maker")
        if not isinstance(backbone, RegisteredConfig):
            with torch.device("meta"):
                build_property_model(config, elements).load_state_dict(weights, assign=True)
        model = build_property_model(config, elements)
        read = (value.dtype for name, value in weights.items() if name.startswith("head."))
        model.set_precision(next(dtype for dtype in read if dtype.is_floating_point))
        _check_weights(weights)
        model.load_state_dict(weights)
    except LrpotError as error:
        raise ModelFileError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError, RuntimeError, ArithmeticError, StopIteration) as error:
        raise _misfit(path, error) from error
    model.info = info
    return model


def _members(
    path: Path, header: dict[str, Any], weights: dict[str, torch.Tensor]
) -> list[tuple[dict[str, Any], dict[str, torch.Tensor]]]:
    """What model.json says of each of several models, and its weights."""
    models = header.get("models")
    if not isinstance(models, list) or not models or not all(isinstance(model, dict) for model in models):
        raise ModelFileError(f"{path}: is damaged (models in model.json is no list of objects); {CURE}")
    own: dict[str, dict[str, torch.Tensor]] = {str(n): {} for n in range(len(models))}
    for name, value in weights.items():
        number, _, rest = name.partition(".")
        if number not in own:
            raise ModelFileError(f"{path}: is damaged (weight {name[:40]!r} is of no model in it); {CURE}")
        own[number][rest] = value
    return list(zip(models, own.values(), strict=True))


def _misfit(path: Path, error: Exception) -> ModelFileError:
    reason = re.sub(r"^Error\(s\) in loading state_dict for \w+: ", "", brief(error)).split(": copying")[0]
    return ModelFileError(f"{path}: its weights and its settings do not fit each other ({reason}); {CURE}")


def check_device(device: str | torch.device) -> torch.device:
    """The device of that name.

    Raises:
        ConfigError: no such kind of device, or this machine has none.
    """
    unknown = f"device {str(device)!r} is not known; use cpu, cuda or cuda:N"
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(unknown) from error
    if found.type not in ("cpu", "cuda") or (found.type == "cpu" and found.index is not None):
        raise ConfigError(unknown)
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device {str(device)!r} is not there: this machine has {torch.cuda.device_count()} CUDA devices; use cpu"
        )
    return found


def symbols(elements: list[int]) -> list[str]:
    """Chemical symbols of atomic numbers."""
    return [chemical_symbols[z] for z in elements]


def _check_format(path: Path, header: object) -> dict[str, Any]:
    """What model.json holds, if it is of a format that this version reads."""
    if not isinstance(header, dict):
        raise ModelFileError(f"{path}: is damaged (model.json is not an object); {CURE}")
    if not isinstance(header.get("format"), int):
        raise ModelFileError(f"{path}: is damaged (model.json does not say its format); {CURE}")
    if header["format"] not in (FORMAT, ENSEMBLE_FORMAT, PROPERTY_FORMAT):
        raise ModelFileError(
            f"{path}: has model format {header['format']}, this lrpot reads {FORMAT} to {PROPERTY_FORMAT}; "
            f"use lrpot {str(header.get('version', 'of a newer version'))[:40]}"
        )
    return header


def _check_info(
    path: Path, header: dict[str, Any], section: str = "model", kind: type[BaseModel] = ModelConfig
) -> tuple[ModelInfo, BaseModel, list[int]]:
    """What model.json says of a model, as the types that the rest of lrpot counts on.

    Args:
        section: of the settings, which says how to build the model. kind: what it is.
    """
    try:
        info = TypeAdapter(ModelInfo).validate_python(header)
        config = kind.model_validate(info.config.get(section))
    except ValidationError as error:
        problem = error.errors()[0]
        if problem["type"] == "union_tag_invalid" and problem["loc"][-1] == "encoder":
            tag = reprlib.repr(problem["ctx"]["tag"])
            raise ModelFileError(
                f"{path}: its encoder {tag} is none of this lrpot's; use the lrpot that made it"
            ) from error
        if problem["type"] == "union_tag_invalid":
            raise ModelFileError(
                f"{path}: its backbone {reprlib.repr(problem['ctx']['tag'])} is none of lrpot's; import the module "
                "that registers it (lrpot.backbones.register) before loading the model"
            ) from error
        name = ".".join(locate(problem["loc"], kind)[1]) or f"config.{section}"
        where = brief(f"model.json, {name}: {problem['msg']}")
        raise ModelFileError(f"{path}: is damaged ({where}); {CURE}") from error
    unknown = [symbol for symbol in info.elements if atomic_numbers.get(symbol, 0) < 1]
    if unknown or not info.elements:
        raise ModelFileError(f"{path}: is damaged (elements {unknown[:3]} in model.json); {CURE}")
    return info, config, [atomic_numbers[symbol] for symbol in info.elements]


def _check_weights(weights: dict[str, torch.Tensor]) -> None:
    for name, value in weights.items():
        if value.is_floating_point() and not math.isfinite(float(value.abs().sum())):
            raise ModelFileError(f"weight {name} is not finite; the fit that made it went wrong, fit it anew")
