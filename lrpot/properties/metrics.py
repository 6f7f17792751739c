"""How far predictions of a property are from its labels: errors of numbers, and of probabilities of a class."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from lrpot.errors import DataError, ShapeError

# Above this probability a crystal is said to be of class 1.
THRESHOLD = 0.5


def target_errors(reference: ArrayLike, predicted: ArrayLike, kind: str, unit: str) -> dict[str, Any]:
    """Errors of one target, ready for JSON; what the labels do not determine is left out.

    Args:
        reference: (n,), in `unit`, or classes 0 and 1; nan where there is no label.
        predicted: (n,), in `unit`, or probabilities of class 1.
        kind: "regression" or "classification".
        unit: of a regression; "" of a classification.
    Returns:
        "n", the number of labels, and "unit"; of a regression "mae", "rmse", "max" and, if labels differ, "r2"; of a
        classification "accuracy" and, where defined, "f1" and "roc_auc".
    Raises:
        ShapeError: the shapes disagree; both are printed.
        DataError: a prediction is no number, a label no class, a probability not in 0 to 1; the first is named.
    """
    reference, predicted = labelled(reference, predicted)
    errors: dict[str, Any] = {"n": len(reference), "unit": unit}
    if len(reference) == 0:
        return errors
    return errors | (
        regression_errors(reference, predicted) if kind == "regression" else class_errors(reference, predicted)
    )


def labelled(reference: ArrayLike, predicted: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Labels that are there, and their predictions: two (m,) of (n,) each.

    Raises:
        ShapeError: the shapes disagree. DataError: a label is infinite, or a prediction beside one no finite number.
    """
    reference, predicted = np.asarray(reference, dtype=float), np.asarray(predicted, dtype=float)
    if reference.ndim != 1 or reference.shape != predicted.shape:
        raise ShapeError(f"labels {reference.shape} and predictions {predicted.shape}: expected (n,) and (n,)")
    infinite = np.flatnonzero(np.isinf(reference))
    if len(infinite):
        raise DataError(f"label {infinite[0]} is {reference[infinite[0]]}; correct it, or make it nan to leave it out")
    known = ~np.isnan(reference)
    bad = np.flatnonzero(known & ~np.isfinite(predicted))
    if len(bad):
        raise DataError(f"prediction {bad[0]} is {predicted[bad[0]]}, not a number; look for a fit that diverged")
    return reference[known], predicted[known]


def regression_errors(reference: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """mae, rmse and max in the unit of the labels, and r2, which equal labels do not have; of (n,), n > 0."""
    difference = predicted - reference
    errors = {
        "mae": float(np.abs(difference).mean()),
        "rmse": float(np.sqrt((difference**2).mean())),
        "max": float(np.abs(difference).max()),
    }
    if np.ptp(reference) > 0:
        errors["r2"] = float(1.0 - (difference**2).sum() / ((reference - reference.mean()) ** 2).sum())
    return errors


def class_errors(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """accuracy and f1 with classes by `THRESHOLD`, and roc_auc; of (n,), n > 0.

    Without crystals of class 1 that are or are said to be there is no f1, and of one class no roc_auc.

    Raises:
        DataError: as of `check_classes`.
    """
    check_classes(labels, probabilities)
    true, said = labels == 1, predicted_classes(probabilities)
    errors = {"accuracy": float((true == said).mean())}
    if true.any() or said.any():
        errors["f1"] = float(2 * (true & said).sum() / (true.sum() + said.sum()))
    if true.any() and not true.all():
        errors["roc_auc"] = roc_auc(labels, probabilities)
    return errors


def predicted_classes(probabilities: np.ndarray) -> np.ndarray:
    """(n,) booleans: whether class 1 is more likely than not."""
    return probabilities > THRESHOLD


def roc_auc(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """How often a crystal of class 1 gets a higher probability than one of class 0; equal ones count half.

    Source: Hanley and McNeil, Radiology 143, 29 (1982): the area is Wilcoxon's statistic, hence a sum of ranks.

    Args:
        labels: (n,), 0 and 1, both of them there. probabilities: (n,), or anything that ranks crystals.
    """
    true = labels == 1
    n, others = int(true.sum()), int((~true).sum())
    return float((rankdata(probabilities)[true].sum() - n * (n + 1) / 2) / (n * others))


def roc_curve(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of class 0 and share of class 1 (m,) that lie above a threshold, as it falls: from (0, 0) to (1, 1).

    Args:
        As of `roc_auc`, which is the area below this curve.
    """
    order = np.argsort(-probabilities, kind="stable")
    true = labels[order] == 1
    # crystals of equal probability pass the threshold together
    last = np.append(np.flatnonzero(np.diff(probabilities[order])), len(order) - 1)
    above, below = np.cumsum(true)[last], np.cumsum(~true)[last]
    return np.append(0.0, below / below[-1]), np.append(0.0, above / above[-1])


def expert_similarity(gates: np.ndarray) -> np.ndarray:
    """(T, T) cosines between the mean gates (T, experts) of targets: 1 if two use experts alike, 0 if none in common.

    Source: Nie et al. 2025 (ReGNet-MT), Fig. 3.
    """
    unit = gates / np.linalg.norm(gates, axis=1, keepdims=True)
    return unit @ unit.T


def check_classes(labels: np.ndarray, probabilities: np.ndarray) -> None:
    """
    Raises:
        DataError: a label is not 0 or 1, or a probability is not between them; the first is named.
    """
    bad = np.flatnonzero((labels != 0) & (labels != 1))
    if len(bad):
        raise DataError(f"label {bad[0]} is {labels[bad[0]]:g}, but a class is 0 or 1; correct it")
    bad = np.flatnonzero((probabilities < 0) | (probabilities > 1))
    if len(bad):
        raise DataError(f"prediction {bad[0]} is {probabilities[bad[0]]:g}, not a probability; give one from 0 to 1")
