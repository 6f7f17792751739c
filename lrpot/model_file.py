"""Model files: one archive with the weights (safetensors) and a JSON; nothing in it is ever unpickled or executed.

model.pt = zip archive, members stored without compression
    model.json            format, version, config, units, elements, stages, data
    weights.safetensors   every parameter and buffer

An ensemble has format 2: model.json holds the above of each model in `models`, and the calibration; the weights of
model n are named n.NAME.
"""

from __future__ import annotations

import json
import math
import reprlib
import zipfile
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from ase.data import atomic_numbers, chemical_symbols
from pydantic import TypeAdapter, ValidationError

from lrpot._version import __version__
from lrpot.build import build_potential
from lrpot.config import ModelConfig, RegisteredConfig, locate
from lrpot.ensemble import Calibration, Ensemble
from lrpot.errors import ConfigError, LrpotError, ModelFileError
from lrpot.files import atomic_path
from lrpot.potential import Potential

FORMAT, ENSEMBLE_FORMAT = 1, 2
UNITS = {"length": "A", "energy": "eV", "forces": "eV/A", "stress": "eV/A^3", "charge": "e", "wave vector": "1/A"}
_MEMBERS = {"model.json": 16 * 2**20, "weights.safetensors": 2**33}  # name: largest size, bytes


@dataclass
class ModelInfo:
    """What a model is and where it comes from.

    Attributes:
        config: the settings of the fit: sections data, model, training.
        elements: symbols that it was fitted to.
        stages: one entry per stage of the fit: name, epochs, validation errors, charges.
        data: the training set: file, rows, hash.
        record: what it was made with: versions of packages, state of the repository, device, threads, seed, and the
            model that it was fine-tuned from; empty for a model that no fit made.
        units: of everything that goes in and comes out.
        version: of lrpot that made it.
        created: date and time, UTC.
    """

    config: dict[str, Any]
    elements: list[str]
    stages: list[dict[str, Any]] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=lambda: dict(UNITS))
    version: str = __version__
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))


def save(model: Potential, path: str | Path) -> Path:
    """Write a model; an older file at that path stays whole until the new one is.

    Args:
        model: with `info` set; of an ensemble, that of each member.
        path: usually ends in .pt.
    Raises:
        OutputError: it cannot be written.
    """
    if isinstance(model, Ensemble):
        calibration = None if model.calibration is None else asdict(model.calibration)
        models = [_about(member, path) for member in model.members]
        about = {"format": ENSEMBLE_FORMAT, "version": __version__, "models": models, "calibration": calibration}
        weights = {f"{n}.{name}": value for n, m in enumerate(model.members) for name, value in _weights(m).items()}
    else:
        about = {"format": FORMAT, **_about(model, path)}
        weights = _weights(model)
    header = json.dumps(about, indent=1)
    path = Path(path)
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        members = {"model.json": header.encode(), "weights.safetensors": safetensors.torch.save(weights)}
        for name, content in members.items():
            # a fixed date, so that equal models are equal files
            archive.writestr(zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0)), content)
    return path


def load(path: str | Path, *, device: str = "cpu", dtype: torch.dtype | None = None) -> Potential:
    """Read a model.

    Args:
        path: the file.
        device: where its weights go.
        dtype: precision of the network; None keeps that of the file.
    Returns:
        the model, in evaluation mode, with `model.info`; an `Ensemble` if the file holds one.
    Raises:
        ModelFileError: no such file, not a model of lrpot, damaged, or of a newer format.
        ConfigError: a device that is not there.
    """
    path = Path(path)
    place = check_device(device)
    content, weights = _read(path)
    header = _check_format(path, content)
    build = _build_ensemble if header["format"] == ENSEMBLE_FORMAT else _build
    model = build(path, header, weights)
    if dtype is not None:
        model.set_precision(dtype)
    return model.to(place).eval()


def _about(model: Potential, path: str | Path) -> dict[str, Any]:
    if not isinstance(model.info, ModelInfo):
        raise ModelFileError(f"{path}: the model has no info; set model.info to a ModelInfo before saving it")
    return asdict(model.info)


def _weights(model: Potential) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}


def _build(path: Path, header: dict[str, Any], weights: dict[str, torch.Tensor]) -> Potential:
    """One model, of one object of model.json and its weights."""
    info, config, elements = _check_info(path, header)
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
        reason = _brief(error).removeprefix("Error(s) in loading state_dict for Potential: ").split(": copying")[0]
        raise ModelFileError(
            f"{path}: its weights and its settings do not fit each other ({reason}); get it anew from where it was made"
        ) from error
    model.info = info
    return model


def _build_ensemble(path: Path, header: dict[str, Any], weights: dict[str, torch.Tensor]) -> Ensemble:
    damaged = "get it anew from where it was made"
    try:
        calibration = TypeAdapter(Calibration | None).validate_python(header.get("calibration"))
    except (ValidationError, OverflowError) as error:
        raise ModelFileError(f"{path}: is damaged (calibration in model.json: {_brief(error)}); {damaged}") from error
    models = header.get("models")
    if not isinstance(models, list) or not all(isinstance(model, dict) for model in models):
        raise ModelFileError(f"{path}: is damaged (models in model.json is no list of objects); {damaged}")
    own: dict[str, dict[str, torch.Tensor]] = {str(n): {} for n in range(len(models))}
    for name, value in weights.items():
        number, _, rest = name.partition(".")
        if number not in own:
            raise ModelFileError(f"{path}: is damaged (weight {name[:40]!r} is of no model in it); {damaged}")
        own[number][rest] = value
    try:
        return Ensemble([_build(path, *both) for both in zip(models, own.values(), strict=True)], calibration)
    except ConfigError as error:
        raise ModelFileError(f"{path}: {error}") from error


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


def _read(path: Path) -> tuple[object, dict[str, torch.Tensor]]:
    if not path.exists():
        raise ModelFileError(f"{path}: no such file; check the path")
    if path.is_dir():
        raise ModelFileError(f"{path}: is a directory; name the model file in it, such as {path / 'model.pt'}")
    if not zipfile.is_zipfile(path):
        raise ModelFileError(
            f"{path}: is not a model of lrpot, or was cut short; give a whole file that `lrpot fit` wrote"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            found = {item.filename: item for item in archive.infolist()}
            if set(found) != set(_MEMBERS):
                # a checkpoint of torch.save is a zip archive too, with a pickle inside; it is not opened
                raise ModelFileError(
                    f"{path}: is not a model of lrpot (it holds {', '.join(sorted(found))[:80] or 'nothing'}); "
                    "give a file that `lrpot fit` wrote"
                )
            for name, limit in _MEMBERS.items():
                item = found[name]
                if item.compress_type != zipfile.ZIP_STORED or item.file_size > limit:
                    raise ModelFileError(
                        f"{path}: {name} in it is compressed or too large; get it from where it was made"
                    )
            header = json.loads(archive.read("model.json"))
            weights = safetensors.torch.load(archive.read("weights.safetensors"))
    except ModelFileError:
        raise
    except Exception as error:  # zip, JSON and safetensors each have exceptions of their own for damage
        raise ModelFileError(f"{path}: is damaged ({_brief(error)}); get it anew from where it was made") from error
    return header, weights


def _check_format(path: Path, header: object) -> dict[str, Any]:
    """What model.json holds, if it is of a format that this version reads."""
    damaged = "get it anew from where it was made"
    if not isinstance(header, dict):
        raise ModelFileError(f"{path}: is damaged (model.json is not an object); {damaged}")
    if not isinstance(header.get("format"), int):
        raise ModelFileError(f"{path}: is damaged (model.json does not say its format); {damaged}")
    if header["format"] not in (FORMAT, ENSEMBLE_FORMAT):
        raise ModelFileError(
            f"{path}: has model format {header['format']}, this lrpot reads {FORMAT} and {ENSEMBLE_FORMAT}; "
            f"use lrpot {str(header.get('version', 'of a newer version'))[:40]}"
        )
    return header


def _check_info(path: Path, header: dict[str, Any]) -> tuple[ModelInfo, ModelConfig, list[int]]:
    """What model.json says of a model, as the types that the rest of lrpot counts on."""
    damaged = "get it anew from where it was made"
    try:
        info = TypeAdapter(ModelInfo).validate_python(header)
        config = ModelConfig.model_validate(info.config.get("model"))
    except ValidationError as error:
        problem = error.errors()[0]
        if problem["type"] == "union_tag_invalid":
            raise ModelFileError(
                f"{path}: its backbone {reprlib.repr(problem['ctx']['tag'])} is none of lrpot's; import the module "
                "that registers it (lrpot.backbones.register) before loading the model"
            ) from error
        name = ".".join(locate(problem["loc"], ModelConfig)[1]) or "config.model"
        raise ModelFileError(f"{path}: is damaged (model.json, {name}: {problem['msg']}); {damaged}") from error
    unknown = [symbol for symbol in info.elements if atomic_numbers.get(symbol, 0) < 1]
    if unknown or not info.elements:
        raise ModelFileError(f"{path}: is damaged (elements {unknown[:3]} in model.json); {damaged}")
    return info, config, [atomic_numbers[symbol] for symbol in info.elements]


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__


def _check_weights(weights: dict[str, torch.Tensor]) -> None:
    for name, value in weights.items():
        if value.is_floating_point() and not math.isfinite(float(value.abs().sum())):
            raise ModelFileError(f"weight {name} is not finite; the fit that made it went wrong, fit it anew")
