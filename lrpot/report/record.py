"""The record in a report: with what data, settings and versions a run was made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lrpot.model_file import ModelInfo
from lrpot.potential import Potential
from lrpot.report import markup
from lrpot.report.markup import Cell
from lrpot.report.run import Run


def record(run: Run, model: Potential | None) -> str:
    """Data, model, versions and settings of a run."""
    found = "<h3>Data</h3>" + _data(run)
    if model is not None:
        found += "<h3>Model</h3>" + _model(model)
    if run.record:
        found += "<h3>Made with</h3>" + _nested(run.record, "made-with")
    return found + f"<h3>Settings</h3><pre>{markup.text(run.config.to_yaml())}</pre>"


def _data(run: Run) -> str:
    """Files, hashes and the sizes of the parts."""
    rows: list[list[Cell | str | int]] = [
        [str(file.get("part", "")), str(file.get("file", "")), int(file.get("rows", 0)), str(file.get("sha256", ""))]
        for file in run.files
    ]
    uses = {"train": "to train", "valid": "to validate", "test": "to test"}
    sizes = ", ".join(f"{len(found):,} {uses.get(part, part)}" for part, found in run.split.items())
    files = markup.table(["part", "file", "rows", "SHA-256"], rows, name="files") if rows else ""
    return files + (markup.paragraph(f"Structures of the training files: {sizes}.") if sizes else "")


def _model(model: Potential) -> str:
    """What the model is."""
    info = model.info
    assert isinstance(info, ModelInfo)
    parameters = sum(p.numel() for p in model.parameters())
    rows: list[list[Cell | str | int]] = [
        ["elements", ", ".join(info.elements)],
        ["made by", f"lrpot {info.version}, {info.created}"],
        ["parameters", f"{parameters:,}"],
        ["cutoff", f"{model.cutoff:g} Å"],
    ]
    if model.long is not None:
        rows.append(["k_cutoff", f"{model.long.reciprocal.k_cutoff:.3f} 1/Å"])
    return markup.table(["what", "value"], rows, name="model")


def _nested(values: Mapping[str, Any], name: str) -> str:
    """Any record as a table of names with dots and values."""
    rows: list[list[Cell | str | int]] = [[key, value] for key, value in _flat(values)]
    return markup.table(["what", "value"], rows, name=name)


def _flat(values: Mapping[str, Any], before: str = "") -> list[tuple[str, str]]:
    found = []
    for key, value in values.items():
        if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            value = {str(place): item for place, item in enumerate(value, 1)}
        if isinstance(value, Mapping):
            found += _flat(value, f"{before}{key}.")
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            found.append((f"{before}{key}", "-" if value is None else shown))
    return found
