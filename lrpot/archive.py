"""What a model file is on disk: weights (safetensors) and a JSON; nothing in it is ever unpickled or executed.

model.pt = zip archive, members stored without compression
    model.json
    weights.safetensors
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from lrpot.errors import ModelFileError
from lrpot.files import atomic_path

_MEMBERS = {"model.json": 16 * 2**20, "weights.safetensors": 2**33}  # name: largest size, bytes


def write_archive(path: Path, about: Mapping[str, Any], weights: dict[str, torch.Tensor]) -> Path:
    """Write a model file; an older one at that path stays whole until the new one is.

    Args:
        about: for model.json. weights: on the CPU, contiguous.
    Raises:
        OutputError: it cannot be written.
    """
    header = json.dumps(about, indent=1)
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        members = {"model.json": header.encode(), "weights.safetensors": safetensors.torch.save(weights)}
        for name, content in members.items():
            # a fixed date, so that equal models are equal files
            archive.writestr(zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0)), content)
    return path


def read_archive(path: Path) -> tuple[object, dict[str, torch.Tensor]]:
    """The content of model.json, whatever it is, and the weights by name.

    Raises:
        ModelFileError: not a model of lrpot, or damaged.
    """
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
        raise ModelFileError(f"{path}: is damaged ({brief(error)}); get it anew from where it was made") from error
    return header, weights


def brief(error: Exception | str) -> str:
    """The first words of an error, in one line."""
    return " ".join(str(error).split())[:120] or type(error).__name__
