"""Errors of targets against what their definitions say, written out."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from lrpot.errors import DataError, ShapeError
from lrpot.properties.metrics import expert_similarity, roc_auc, roc_curve, target_errors

RNG = np.random.default_rng(7)


def test_regression_errors_are_their_definitions() -> None:
    reference, predicted = RNG.normal(size=50), RNG.normal(size=50)
    differences = [p - r for p, r in zip(predicted, reference, strict=True)]
    mean = sum(reference) / 50
    expected = {
        "mae": sum(abs(d) for d in differences) / 50,
        "rmse": (sum(d * d for d in differences) / 50) ** 0.5,
        "max": max(abs(d) for d in differences),
        "r2": 1 - sum(d * d for d in differences) / sum((r - mean) ** 2 for r in reference),
    }
    found = target_errors(reference, predicted, "regression", "eV")
    assert (found.pop("n"), found.pop("unit")) == (50, "eV")
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("decimals", [1, 12], ids=["ties", "none equal"])
def test_auc_is_the_share_of_pairs_in_the_right_order(decimals: int) -> None:
    labels = (RNG.random(80) < 0.3).astype(float)
    probabilities = np.round(np.clip(0.3 * labels + 0.7 * RNG.random(80), 0, 1), decimals)
    pairs = list(itertools.product(probabilities[labels == 1], probabilities[labels == 0]))
    expected = sum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs)
    assert 0.5 < expected < 1.0
    assert roc_auc(labels, probabilities) == pytest.approx(expected, rel=1e-12)
    false, true = roc_curve(labels, probabilities)
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
    area = float((np.diff(false) * (true[1:] + true[:-1]) / 2).sum())
    assert area == pytest.approx(expected, rel=1e-12)


def test_classes_are_told_by_one_half() -> None:
    labels = np.array([1, 1, 1, 0, 0, 0, 0])
    probabilities = np.array([0.9, 0.6, 0.5, 0.5, 0.7, 0.2, 0.1])
    # said to be of class 1: the crystals 0, 1 and 4; right are 0, 1, 3, 5 and 6
    found = target_errors(labels, probabilities, "classification", "")
    assert found["accuracy"] == pytest.approx(5 / 7)
    precision, recall = 2 / 3, 2 / 3
    assert found["f1"] == pytest.approx(2 * precision * recall / (precision + recall))


def test_what_has_no_label_is_left_out() -> None:
    reference = np.array([1.0, np.nan, 3.0])
    found = target_errors(reference, np.array([1.5, np.nan, 3.5]), "regression", "eV")
    assert found == {"n": 2, "unit": "eV", "mae": 0.5, "rmse": 0.5, "max": 0.5, "r2": 0.75}
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    ("reference", "predicted", "kind", "missing"),
    [
        ([], [], "regression", {"mae", "rmse", "max", "r2"}),
        ([2.0, 2.0], [1.0, 2.0], "regression", {"r2"}),
        ([1.0, 1.0], [0.2, 0.9], "classification", {"roc_auc"}),
        ([0.0, 0.0], [0.2, 0.3], "classification", {"roc_auc", "f1"}),
    ],
    ids=["nothing", "equal labels", "class 1 alone", "class 0 alone"],
)
def test_what_labels_do_not_determine_is_left_out(
    reference: list[float], predicted: list[float], kind: str, missing: set[str]
) -> None:
    possible = {"mae", "rmse", "max", "r2"} if kind == "regression" else {"accuracy", "f1", "roc_auc"}
    assert possible - target_errors(reference, predicted, kind, "").keys() == missing


@pytest.mark.parametrize(
    ("reference", "predicted", "error", "message"),
    [
        ([1.0, 0.0], [0.5], ShapeError, r"labels \(2,\) and predictions \(1,\)"),
        ([1.0, 0.0], [0.5, np.nan], DataError, "prediction 1 is nan, not a number"),
        ([np.nan, -np.inf], [0.5, 0.5], DataError, "label 1 is -inf; correct it"),
        ([1.0, 2.0], [0.5, 0.5], DataError, "label 1 is 2, but a class is 0 or 1"),
        ([1.0, 0.0], [0.5, 1.5], DataError, "prediction 1 is 1.5, not a probability"),
    ],
)
def test_bad_input_is_told(reference: list, predicted: list, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        target_errors(reference, predicted, "classification", "")


def test_similarity_of_experts() -> None:
    gates = np.array([[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.3, 0.7], [1.0, 0.0, 0.0, 0.0]])
    expected = [[1.0, 0.0, 0.5**0.5], [0.0, 1.0, 0.0], [0.5**0.5, 0.0, 1.0]]
    np.testing.assert_allclose(expert_similarity(gates), expected, atol=1e-15)
