"""Pictures of property models: predictions beside labels, learning curves, residuals by size and element, experts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from ase.data import chemical_symbols
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from lrpot.errors import DataError
from lrpot.plot_style import COLOURS, STYLE, save, thinned
from lrpot.properties.elements import element_table
from lrpot.properties.metrics import (
    THRESHOLD,
    expert_similarity,
    labelled,
    roc_curve,
    target_errors,
)

# Targets beside each other; more go on below.
MAX_COLUMNS = 4

# Sizes of which each gets a mean of its own; more are put together.
MAX_SIZES = 12

# Elements in fewer crystals than this do not stretch the scale of colours: their errors are luck.
MIN_CRYSTALS = 5


class TargetPredictions(NamedTuple):
    """Predictions of one target beside its labels.

    Attributes:
        name: of the target. kind: "regression" or "classification". unit: "" if it has none.
        reference: (n,) labels in the unit, or classes 0 and 1; nan where there is none.
        predicted: (n,) in the unit, or probabilities of class 1.
    """

    name: str
    kind: str
    unit: str
    reference: np.ndarray
    predicted: np.ndarray


def parity(targets: Sequence[TargetPredictions], path: str | Path, title: str = "") -> Path:
    """Two panels of each target: predictions against labels above their errors, or the ROC curve above the
    probabilities of both classes.

    Args:
        targets: one at least, each with labels. path: of the picture; its ending names the format.
    Raises:
        DataError, ShapeError: as of `lrpot.properties.metrics.target_errors`; DataError also without any label.
    """
    with plt.rc_context(STYLE):
        figure, panels = _panels(len(targets), width=4.2, heights=(4.0, 1.8))
        for target, (top, bottom) in zip(targets, panels, strict=True):
            known = _with_labels(target)
            errors = target_errors(known.reference, known.predicted, known.kind, known.unit)
            draw = _regression if known.kind == "regression" else _classification
            draw(top, bottom, known, errors)
        if title:
            figure.suptitle(_plain(title))
        return save(figure, path)


def _with_labels(target: TargetPredictions) -> TargetPredictions:
    """What has labels of it."""
    reference, predicted = labelled(target.reference, target.predicted)
    if len(reference) == 0:
        raise DataError(f"{target.name}: has no labels, so there is nothing to draw; leave it out")
    return target._replace(reference=reference, predicted=predicted)


def _regression(top: Axes, bottom: Axes, target: TargetPredictions, errors: Mapping[str, Any]) -> None:
    reference, difference = thinned(target.reference, target.predicted - target.reference)
    dots: dict[str, Any] = {"ms": 4, "mew": 0, "alpha": _alpha(len(reference)), "color": COLOURS[0], "rasterized": True}
    top.plot(reference, reference + difference, "o", **dots)
    top.axline((reference[0], reference[0]), slope=1, color="0.4", lw=0.8, zorder=0)
    told = [f"MAE {errors['mae']:.3g}", f"RMSE {errors['rmse']:.3g}{_unit(target.unit)}"]
    told += [f"R² {errors['r2']:.3f}"] if "r2" in errors else []
    top.set(ylabel=f"predicted{_bracket(target.unit)}")
    top.set_title(f"{_plain(target.name)}\n{', '.join(told)}", fontsize=10)
    bottom.plot(reference, difference, "o", **dots)
    bottom.axhline(0.0, color="0.4", lw=0.8, zorder=0)
    bottom.set(xlabel=f"reference{_bracket(target.unit)}", ylabel="error", xlim=top.get_xlim())
    bottom.ticklabel_format(axis="y", style="sci", scilimits=(-3, 4))
    for axis in (top, bottom):
        axis.locator_params(axis="x", nbins=5)


def _classification(top: Axes, bottom: Axes, target: TargetPredictions, errors: Mapping[str, Any]) -> None:
    labels, probabilities = target.reference, target.predicted
    told = [f"accuracy {errors['accuracy']:.3f}"] + ([f"F1 {errors['f1']:.3f}"] if "f1" in errors else [])
    if "roc_auc" in errors:
        told.insert(0, f"AUC {errors['roc_auc']:.3f}")
        top.plot(*roc_curve(labels, probabilities), color=COLOURS[0])
        top.plot([0, 1], [0, 1], color="0.4", lw=0.8, zorder=0)
    else:
        top.text(0.5, 0.5, "one class only: no ROC curve", ha="center", va="center", color="0.4")
    top.set(xlabel="false positive rate", ylabel="true positive rate", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    top.set_title(f"{_plain(target.name)}\n{', '.join(told)}", fontsize=10)
    for label, colour in ((0, COLOURS[1]), (1, COLOURS[0])):
        mine = probabilities[labels == label]
        bottom.hist(
            mine, np.linspace(0, 1, 26).tolist(), color=colour, alpha=0.55, label=f"class {label} ({len(mine)})"
        )
    bottom.axvline(THRESHOLD, color="0.4", lw=0.8, ls=":")
    bottom.set(xlabel="probability of class 1", ylabel="crystals", xlim=(-0.02, 1.02))
    bottom.legend(fontsize=8, loc="upper center")


def learning_curves(history: Sequence[Mapping[str, float]], targets: Mapping[str, str], path: str | Path) -> Path:
    """Loss and the error of each target against epochs; a dotted line marks the epoch of the least validation loss.

    Args:
        history: records with "epoch", "loss" of the validation structures, "train_loss" where there is one, and an
            error by target.
        targets: what the error of each target is, such as {"gap": "MAE (eV)"}.
        path: of the picture.
    """
    epochs = [record["epoch"] for record in history]
    best = min(history, key=lambda record: _or_inf(record["loss"]))
    with plt.rc_context(STYLE):
        figure, panels = _panels(1 + len(targets), width=4.2, heights=(3.4,))
        axes = [axis for (axis,) in panels]
        for name, label, colour in (("train_loss", "training", COLOURS[1]), ("loss", "validation", COLOURS[0])):
            values = [record.get(name, math.nan) for record in history]
            axes[0].plot(epochs, values, ".-", ms=3, lw=1.2, color=colour, label=label)
        axes[0].set(ylabel="loss", title=f"best epoch: {best['epoch']:g}")
        axes[0].legend(fontsize=8)
        for (name, label), axis in zip(targets.items(), axes[1:], strict=True):
            axis.plot(epochs, [record.get(name, math.nan) for record in history], ".-", ms=3, lw=1.2, color=COLOURS[0])
            axis.set(ylabel=_plain(label), title=f"{_plain(name)}: {best.get(name, math.nan):.4g} at that epoch")
        for axis in axes:
            axis.set_xlabel("epoch")
            _log_if_wide(axis)
            axis.axvline(best["epoch"], color="0.5", lw=0.8, ls=":", zorder=0)
        return save(figure, path)


def residuals(target: TargetPredictions, numbers: Sequence[np.ndarray], path: str | Path) -> Path:
    """Absolute errors of one target by number of atoms and by element.

    On the right each element has the mean error of the labelled crystals that hold it, and their number. The colours
    end at the largest mean of elements in at least `MIN_CRYSTALS` crystals.

    Args:
        target: its n crystals, with labels or without; of a classification, |probability - class| is drawn.
        numbers: atomic numbers of each of the n crystals, (n_atoms,).
        path: of the picture.
    Raises:
        DataError, ShapeError: as of `parity`.
    """
    known = _with_labels(target)
    error = np.abs(known.predicted - known.reference)
    crystals = [own for own, label in zip(numbers, target.reference, strict=True) if not math.isnan(label)]
    sizes = np.array([len(own) for own in crystals])
    what = "|error|" if target.kind == "regression" else "|probability - class|"
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(13.5, 4.6), width_ratios=(1, 2))
        _by_size(left, sizes, error)
        left.set(xlabel="atoms in the cell", ylabel=f"{what}{_bracket(target.unit)}", title=_plain(target.name))
        _by_element(figure, right, crystals, error, f"mean {what}{_bracket(target.unit)}")
        return save(figure, path)


def _by_size(axis: Axes, sizes: np.ndarray, error: np.ndarray) -> None:
    jitter = np.random.default_rng(0).uniform(-0.3, 0.3, len(sizes))  # crystals of one size would hide each other
    shown, dots = thinned(sizes + jitter, error)
    axis.plot(shown, dots, "o", ms=3, mew=0, alpha=_alpha(len(dots)), color="0.5", rasterized=True, label="one crystal")
    kinds = np.unique(sizes)
    if len(kinds) > MAX_SIZES:
        cuts = np.unique(np.quantile(sizes, np.linspace(0, 1, MAX_SIZES + 1)[1:-1], method="lower"))
        key = np.searchsorted(cuts, sizes)
    else:
        key = np.searchsorted(kinds, sizes)
    groups = [key == value for value in np.unique(key)]
    means = [error[mine].mean() for mine in groups]
    axis.plot([np.median(sizes[mine]) for mine in groups], means, "o-", ms=4, color=COLOURS[0], label="mean")
    if kinds[-1] > 10 * kinds[0]:
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
    else:
        axis.locator_params(axis="x", integer=True)
    # dots of a few bad crystals must not press all others onto the axis
    top = max(1.2 * max(means), 1.1 * float(np.quantile(error, 0.98)))
    outside = int((error > top).sum())
    if top > 0:
        axis.set_ylim(0.0, top)
    axis.legend(fontsize=8, title=f"{outside} crystals above" if outside else None, title_fontsize=8, loc="upper right")


def _by_element(figure: Figure, axis: Axes, crystals: Sequence[np.ndarray], error: np.ndarray, label: str) -> None:
    """A periodic table of mean errors and numbers of crystals."""
    present = [np.unique(own) for own in crystals]
    owner = np.repeat(np.arange(len(crystals)), [len(own) for own in present])
    number = np.concatenate(present).astype(int)
    counts = np.bincount(number, minlength=len(chemical_symbols))
    sums = np.bincount(number, weights=error[owner], minlength=len(chemical_symbols))
    means = sums / np.maximum(counts, 1)
    frequent = counts >= min(MIN_CRYSTALS, counts.max())
    most = float(means[frequent].max()) or 1.0  # perfect predictions need a scale too
    norm, colours = Normalize(0.0, most), plt.get_cmap("YlOrRd")
    for z in element_table():
        column, row = _place(z)
        shade = colours(norm(means[z])) if counts[z] else "white"
        axis.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=shade, edgecolor="0.8", lw=0.6))
        dark = counts[z] > 0 and norm(means[z]) > 0.6
        ink = "white" if dark else "black" if counts[z] else "0.75"
        axis.text(column, row - 0.1, chemical_symbols[z], ha="center", va="center", color=ink, fontsize=9)
        if counts[z]:
            axis.text(column, row + 0.3, str(counts[z]), ha="center", va="center", color=ink, fontsize=5)
    axis.set(xlim=(0.4, 18.6), ylim=(9.9, 0.4), aspect="equal", title="by element: mean, and number of crystals")
    axis.axis("off")
    extend = "max" if (means > most).any() else "neither"
    figure.colorbar(plt.cm.ScalarMappable(norm, colours), ax=axis, label=label, shrink=0.75, extend=extend)


def _place(z: int) -> tuple[float, float]:
    """Column and row in the periodic table; the f block stands below it."""
    row = element_table()[z]
    if row["group"]:
        return float(row["group"]), float(row["period"])
    first = 57 if row["period"] == "6" else 89  # La and Ac, of group 3
    return 3.0 + z - first, float(row["period"]) + 2.4


def expert_usage(names: Sequence[str], gates: np.ndarray, path: str | Path) -> Path:
    """How much each target takes of each expert, and how alike targets are in that.

    Source: Nie et al. 2025 (ReGNet-MT), Fig. 3.

    Args:
        names: of T targets. gates: (T, experts), means over crystals. path: of the picture.
    """
    n, experts = gates.shape
    labels = [_plain(name) for name in names]
    with plt.rc_context({**STYLE, "axes.grid": False}):
        columns = 1 if n == 1 else 2  # one target is like nothing but itself
        size = (2.5 + 0.5 * experts + (0.6 * n + 1.0) * (columns - 1), 1.8 + 0.4 * n)
        figure, axes = plt.subplots(1, columns, figsize=size, squeeze=False, width_ratios=(experts, 1.2 * n)[:columns])
        for axis, values, most, title in zip(
            axes[0],
            (gates, expert_similarity(gates)),
            (float(gates.max()), 1.0),
            ("mean gate", "cosine similarity"),
            strict=False,
        ):
            _matrix(axis, values, most)
            axis.set_title(title, fontsize=10)
            axis.set_yticks(range(n), labels if axis is axes[0, 0] else [""] * n)
        axes[0, 0].set_xlabel("expert")
        axes[0, 0].set_xticks(range(experts))
        if columns == 2:
            axes[0, 1].set_xticks(range(n), labels, rotation=90)
        return save(figure, path)


def gate_usage(experts: Sequence[str], gates: np.ndarray, numbers: Sequence[np.ndarray], path: str | Path) -> Path:
    """How much crystals take of each expert of their encoder: distributions; means by how many elements a crystal has.

    Args:
        experts: names of E. gates: (n, E). numbers: of each crystal, its atomic numbers. path: of the picture.
    """
    elements = np.array([len(np.unique(own)) for own in numbers])
    groups = {"all": np.ones(len(gates), dtype=bool)}
    groups |= {f"{n} element{'s' if n > 1 else ''}": elements == n for n in np.unique(elements)}
    labels = [f"{name} ({inside.sum()})" for name, inside in groups.items()]
    means = np.array([gates[inside].mean(axis=0) for inside in groups.values()])
    names = [_plain(name) for name in experts]
    with plt.rc_context({**STYLE, "axes.grid": False}):
        figure, axes = plt.subplots(1, 2, figsize=(9.0, max(3.0, 1.6 + 0.4 * len(groups))))
        for name, gate in zip(names, gates.T, strict=True):
            axes[0].hist(gate, bins=np.linspace(0.0, 1.0, 41), histtype="step", lw=1.5, label=name)
        axes[0].set(xlabel="gate", ylabel="crystals", xlim=(0.0, 1.0))
        axes[0].legend(fontsize=8)
        _matrix(axes[1], means, 1.0)
        axes[1].set_title("mean gate (crystals)", fontsize=10)
        axes[1].set_yticks(range(len(groups)), labels)
        axes[1].set_xticks(range(len(names)), names)
        return save(figure, path)


def _matrix(axis: Axes, values: np.ndarray, most: float) -> None:
    """Numbers from 0 to `most` as shades, written out."""
    axis.imshow(values, cmap="Blues", vmin=0.0, vmax=most, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        ink = "white" if value > 0.6 * most else "black"
        axis.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=ink)
    axis.tick_params(length=0)


def _panels(n: int, width: float, heights: Sequence[float]) -> tuple[Figure, list[list[Axes]]]:
    """n stacks of axes of these heights (inches), `MAX_COLUMNS` beside each other at most."""
    rows = math.ceil(n / MAX_COLUMNS)
    columns = math.ceil(n / rows)
    size = (width * columns, sum(heights) * rows)
    figure, axes = plt.subplots(
        len(heights) * rows, columns, figsize=size, squeeze=False, height_ratios=[*heights] * rows
    )
    groups = [
        list(axes[row * len(heights) : (row + 1) * len(heights), column])
        for row in range(rows)
        for column in range(columns)
    ]
    for spare in groups[n:]:
        for axis in spare:
            axis.remove()
    return figure, groups[:n]


def _log_if_wide(axis: Axes) -> None:
    """Logarithmic if all that is drawn is positive and spans a factor of three or more."""
    drawn = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in axis.get_lines()])
    drawn = drawn[np.isfinite(drawn)]
    if len(drawn) and drawn.min() > 0 and drawn.max() > 3 * drawn.min():
        axis.set_yscale("log")
        if drawn.max() < 30 * drawn.min():
            axis.yaxis.set_major_formatter(ScalarFormatter())
            axis.yaxis.set_minor_formatter(ScalarFormatter())
        else:
            axis.yaxis.set_minor_formatter(NullFormatter())


def _alpha(n: int) -> float:
    """A few dots must be seen, many see through."""
    return float(np.clip(300 / max(n, 1), 0.15, 0.8))


def _or_inf(value: float) -> float:
    return value if math.isfinite(value) else math.inf


def _plain(text: str) -> str:
    """Text that is no formula, whatever it holds."""
    return text.replace("$", r"\$")


def _unit(unit: str) -> str:
    return f" {_plain(unit)}" if unit else ""


def _bracket(unit: str) -> str:
    return f" ({_plain(unit)})" if unit else ""
