"""The pictures of an evaluation of a property model, and of its fit."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from lrpot.properties import plots
from lrpot.properties.evaluation import PropertyEvaluation
from lrpot.properties.plots import TargetPredictions


def draw(
    found: PropertyEvaluation, folder: Path, *, history: Sequence[Mapping[str, float]] = (), name: str = ""
) -> list[Path]:
    """Draw what there is to draw, and say where.

    Args:
        history: records of the epochs of a fit. name: what the names of the files end with.
    """
    ending = f"-{name}.png" if name else ".png"
    written = []
    labelled = []
    for place, target in enumerate(found.targets):
        columns = found.reference[:, place], found.predicted[:, place]
        if np.isfinite(columns[0]).any():
            labelled.append(TargetPredictions(target.name, target.kind, target.unit, *columns))
    if labelled:
        written.append(plots.parity(labelled, folder / f"parity{ending}"))
    if found.numbers is not None:
        for own in labelled:
            file = folder / f"residuals-{re.sub('[^0-9A-Za-z_.-]+', '-', own.name)}{ending}"
            written.append(plots.residuals(own, found.numbers, file))
    if history:
        errors = {
            target.name: "share of wrong classes" if target.classification else f"MAE {target.unit}".strip()
            for target in found.targets
        }
        written.append(plots.learning_curves(history, errors, folder / f"learning_curves{ending}"))
    if found.gates is not None:
        names = [target.name for target in found.targets]
        written.append(plots.expert_usage(names, found.gates.mean(axis=0), folder / f"experts{ending}"))
    if found.encoder_gates is not None and found.numbers is not None:
        written.append(plots.gate_usage(found.experts, found.encoder_gates, found.numbers, folder / f"gates{ending}"))
    return written
