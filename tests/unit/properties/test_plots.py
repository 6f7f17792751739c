"""Pictures of property models are written whole, and show the numbers that they are about."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from ase.data import atomic_numbers
from matplotlib.figure import Figure

from lrpot.errors import DataError, ShapeError
from lrpot.properties import plots
from lrpot.properties.elements import element_table
from lrpot.properties.plots import TargetPredictions, expert_usage, gate_usage, learning_curves, parity, residuals
from tests.unit.test_plots import is_picture

RNG = np.random.default_rng(3)
GAP = TargetPredictions(
    "gap $pbe$", "regression", "eV", np.array([1.0, 2.0, np.nan, 4.0]), np.array([1.5, 2.0, 9.0, 3.0])
)
METAL = TargetPredictions("is_metal", "classification", "", np.array([0, 1, 1, 0]), np.array([0.1, 0.9, 0.4, 0.6]))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Figure]]:
    """Figures that would have been written."""
    figures: list[Figure] = []
    monkeypatch.setattr(plots, "save", lambda figure, path: figures.append(figure))
    yield figures
    for figure in figures:
        plt.close(figure)


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axis in figure.axes for text in axis.texts]


def titles(figure: Figure) -> list[str]:
    return [axis.get_title() for axis in figure.axes if axis.get_title()]


def test_pictures_are_written(tmp_path: Path) -> None:
    assert is_picture(parity([GAP, METAL] * 3, tmp_path / "parity.png", "a title with $"))
    history = [{"epoch": n, "loss": 1.0 / (n + 1), "train_loss": 0.9 / (n + 1), "gap": 0.5} for n in range(4)]
    assert is_picture(learning_curves(history, {"gap": "MAE (eV)"}, tmp_path / "curves.png"))
    numbers = [np.array([3, 8]), np.array([11]), np.array([92, 92]), np.array([3])]
    assert is_picture(residuals(GAP, numbers, tmp_path / "residuals.png"))
    assert is_picture(expert_usage(["a", "b"], np.array([[0.5, 0.5], [1.0, 0.0]]), tmp_path / "experts.png"))


def test_parity_shows_what_has_labels(drawn: list[Figure]) -> None:
    parity([GAP, METAL], "parity.png")
    (figure,) = drawn
    errors = np.array([0.5, 0.0, -1.0])
    assert titles(figure) == [
        f"gap \\$pbe\\$\nMAE {np.abs(errors).mean():.3g}, RMSE {(errors**2).mean() ** 0.5:.3g} eV, "
        f"R² {1 - (errors**2).sum() / np.var([1, 2, 4]) / 3:.3f}",
        "is_metal\nAUC 0.750, accuracy 0.500, F1 0.500",
    ]
    dots = figure.axes[0].get_lines()[0]
    np.testing.assert_array_equal(np.stack(dots.get_data()), [[1, 2, 4], [1.5, 2, 3]])


def test_one_class_has_no_curve(drawn: list[Figure]) -> None:
    parity([METAL._replace(reference=np.ones(4))], "parity.png")
    assert texts(drawn[0]) == ["one class only: no ROC curve"]


@pytest.mark.parametrize(("n", "columns", "rows"), [(1, 1, 1), (4, 4, 1), (5, 3, 2), (9, 3, 3)])
def test_many_targets_go_on_below(drawn: list[Figure], n: int, columns: int, rows: int) -> None:
    parity([GAP] * n, "parity.png")
    figure = drawn[0]
    assert len(figure.axes) == 2 * n
    assert figure.axes[0].get_gridspec().get_geometry() == (2 * rows, columns)


def test_the_best_epoch_is_that_of_the_least_validation_loss(drawn: list[Figure]) -> None:
    losses = [float("nan"), 0.9, 0.3, 0.5]
    history = [{"epoch": n, "loss": loss, "gap": 0.1 * n} for n, loss in enumerate(losses)]
    learning_curves(history, {"gap": "MAE (eV)"}, "curves.png")
    assert titles(drawn[0]) == ["best epoch: 2", "gap: 0.2 at that epoch"]
    for axis in drawn[0].axes:
        assert list(axis.get_lines()[-1].get_xdata()) == [2, 2]


def test_errors_by_element_count_crystals_with_labels(drawn: list[Figure]) -> None:
    """Li in two labelled crystals, whatever its atoms; U in none."""
    numbers = [np.array([3, 3, 8]), np.array([11]), np.array([92]), np.array([3])]
    residuals(GAP, numbers, "residuals.png")
    _, table, scale = drawn[0].axes
    counts = {}
    for place, text in enumerate(table.texts):
        if text.get_text().isdigit():
            counts[table.texts[place - 1].get_text()] = int(text.get_text())
    assert counts == {"Li": 2, "O": 1, "Na": 1}
    # errors 0.5, 0 and 1: the largest mean is that of Li, of 0.5 and 1
    assert scale.get_ylim() == pytest.approx((0.0, 0.75))
    means = drawn[0].axes[0].get_lines()[1]
    np.testing.assert_array_equal(np.stack(means.get_data()), [[1, 3], [0.5, 0.5]])


def test_every_element_has_a_place_of_its_own() -> None:
    places = {z: plots._place(z) for z in element_table()}
    assert len(set(places.values())) == len(places) == 118
    assert places[atomic_numbers["Fe"]] == (8, 4)
    # a column below each other
    assert places[atomic_numbers["Ce"]][0] == places[atomic_numbers["Th"]][0] == 4
    assert places[atomic_numbers["Lu"]][0] == places[atomic_numbers["Lr"]][0] == 17


def test_experts_show_gates_and_similarity(drawn: list[Figure]) -> None:
    gates = np.array([[0.6, 0.4, 0.0], [0.0, 0.0, 1.0]])
    expert_usage(["a", "b"], gates, "experts.png")
    assert texts(drawn[0]) == ["0.60", "0.40", "0.00", "0.00", "0.00", "1.00", "1.00", "0.00", "0.00", "1.00"]
    expert_usage(["a"], gates[:1], "experts.png")
    assert texts(drawn[1]) == ["0.60", "0.40", "0.00"]


def test_what_cannot_be_drawn_is_told() -> None:
    nothing = GAP._replace(reference=np.full(4, np.nan))
    with pytest.raises(DataError, match="has no labels"):
        parity([nothing], "parity.png")
    with pytest.raises(DataError, match="has no labels"):
        residuals(nothing, [np.array([1])] * 4, "residuals.png")
    with pytest.raises(ShapeError, match=r"labels \(4,\) and predictions \(2,\)"):
        parity([GAP._replace(predicted=np.zeros(2))], "parity.png")


def test_gates_are_shown_for_all_crystals_and_by_number_of_elements(drawn: list[Figure]) -> None:
    gates = np.array([[0.7, 0.3], [0.5, 0.5], [0.2, 0.8]])
    numbers = [np.array([11, 17]), np.array([11, 17, 17]), np.array([14])]
    gate_usage(["near", "far"], gates, numbers, "gates.png")
    (figure,) = drawn
    assert texts(figure) == ["0.47", "0.53", "0.20", "0.80", "0.60", "0.40"]
    labels = [label.get_text() for label in figure.axes[1].get_yticklabels()]
    assert labels == ["all (3)", "1 element (1)", "2 elements (2)"]
