"""Where potentials of crystals with defects err: by class of defect, by size of the cell, by rows to train on.

python benchmarks/defects_picture.py SET     (after defects.py SET; draws docs/images/defects-SET.png)
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from timing import RESULTS

from lrpot.plot_style import COLOURS, STYLE, save

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
SHOWN = (
    "PaiNN",
    "PaiNN, epsilon 0.01",
    "PaiNN, long range, one step",
    "PaiNN, long range, three steps",
    "equivariant",
)
SIZES = (1, 16, 32, 96, 256)  # edges of the groups of cells, atoms
UNITS = {"energy": "energy, RMSE (meV/atom)", "forces": "forces, MAE (meV/Å)"}


def draw(name: str) -> Path:
    records = json.loads((RESULTS / f"defects-{name}.json").read_text())["records"]
    records = [record for record in records if record["split"] == "random" and record["model"] in SHOWN]
    most = max(record["training rows"] for record in records)
    whole = [record for record in records if record["training rows"] == most]
    panels: list[Callable[[Axes, str], None]] = [lambda axis, label: by_class(axis, whole, label)]
    if len(set(np.digitize(whole[0]["rows"]["atoms"], SIZES))) > 2:
        panels.append(lambda axis, label: by_size(axis, whole, label))
    if len(whole) < len(records):
        panels.append(lambda axis, label: by_training_rows(axis, records, label))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(2, len(panels), figsize=(5.2 * len(panels), 7.2), squeeze=False)
        for row, label in zip(axes, UNITS, strict=True):
            for axis, panel in zip(row, panels, strict=True):
                panel(axis, label)
            row[0].set_ylabel(UNITS[label])
        handles, labels = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
        return save(figure, IMAGES / f"defects-{name}.png")


def error(rows: dict[str, list[Any]], chosen: np.ndarray, label: str) -> float:
    """meV/atom or meV/A, of the chosen test rows."""
    values = np.array(rows[label])[chosen]
    if label == "energy":
        return float(1e3 * np.sqrt((values**2).mean()))
    return float(1e3 * np.average(values, weights=np.array(rows["atoms"])[chosen]))


def by_class(axis: Axes, records: list[dict[str, Any]], label: str) -> None:
    classes = sorted(set(records[0]["rows"]["class"]), key=lambda kind: (kind not in ("", "none"), kind))
    width = 0.8 / len(records)
    for n, record in enumerate(records):
        kinds = np.array(record["rows"]["class"])
        heights = [error(record["rows"], kinds == kind, label) for kind in classes]
        axis.bar(np.arange(len(classes)) + n * width, heights, width, color=COLOURS[n], label=record["model"])
    middle = np.arange(len(classes)) + 0.5 * (len(records) - 1) * width
    axis.set_xticks(middle, [kind.replace("_", " ") or "none" for kind in classes], rotation=30, ha="right")


def by_size(axis: Axes, records: list[dict[str, Any]], label: str) -> None:
    for n, record in enumerate(records):
        groups = np.digitize(record["rows"]["atoms"], SIZES)
        atoms = np.array(record["rows"]["atoms"])
        found = [(atoms[groups == g].mean(), error(record["rows"], groups == g, label)) for g in np.unique(groups)]
        axis.plot(*zip(*found, strict=True), "o-", color=COLOURS[n])
    axis.set(xlabel="atoms in the cell", xscale="log", yscale="log")


def by_training_rows(axis: Axes, records: list[dict[str, Any]], label: str) -> None:
    for n, model in enumerate(dict.fromkeys(record["model"] for record in records)):
        found = sorted(
            (record["training rows"], error(record["rows"], np.ones(len(record["rows"]["atoms"]), bool), label))
            for record in records
            if record["model"] == model
        )
        axis.plot(*zip(*found, strict=True), "o-", color=COLOURS[n])
    axis.set(xlabel="rows to train on", xscale="log", yscale="log")


if __name__ == "__main__":
    print("wrote", draw(sys.argv[1]))
