"""Figures of what a fit learned: its course, its kernel, its charges."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols

from lrpot.charge_scale import SCALES, ErrorAlongScale
from lrpot.potential import LongRange
from lrpot.report.comparison import SHOWN_UNITS, Comparison, Group
from lrpot.report.parity import TITLES
from lrpot.report.run import Run
from lrpot.report.style import (
    BLUE,
    COLOURS,
    GREEN_BAND,
    GREY,
    ORANGE,
    Figure,
    axis,
    layout,
    level,
    line,
    log_axis,
    numbers,
)
from lrpot.units import COULOMB_CONSTANT

HEIGHT = 320

# Epochs up to which each has a tick.
FEW_EPOCHS = 10

# Bars of a histogram of charges.
BARS = 40

# Charges that differ by less (e) are the same: all that is between them is rounding.
SAME_CHARGE = 1e-9

# A, between which the interaction of two charges is drawn, and the smallest |k|, 1/A.
DISTANCES = (0.5, 30.0)
SMALLEST_K = 0.02


def learning_curves(run: Run) -> list[Figure]:
    """Validation loss and errors, and the learning rate, over the epochs of all stages."""
    courses = [(entry["title"], entry["history"]) for entry in run.stages[1:]]
    if run.running:
        courses.append((f"{run.plan[len(courses)].title} (not finished)", run.running))
    names = list(dict.fromkeys(name for _, history in courses for record in history for name in record))
    wanted = [name for name in ("loss", *SHOWN_UNITS) if name in names]
    wanted += [name for name in names if name.startswith("lr")]
    return [_course(courses, name) for name in wanted]


def _course(courses: list[tuple[str, list[dict[str, float]]]], name: str) -> Figure:
    factor, unit = SHOWN_UNITS.get(name, (1.0, ""))
    data, borders, start = [], [], 0
    for number, (title, history) in enumerate(courses):
        epochs = [start + record["epoch"] for record in history]
        # a stage that leaves the charges alone has no errors of them; epoch 0 is before any step, at no learning rate
        without = name.startswith("lr")
        values = [
            math.nan if without and record["epoch"] == 0 else factor * record.get(name, math.nan) for record in history
        ]
        curve = line(epochs, values, f"{number + 1}: {title}", COLOURS[number % len(COLOURS)])
        curve |= {"mode": "lines+markers", "marker": {"size": 4}}
        curve["hovertemplate"] = f"epoch %{{x}}<br>%{{y:.4~g}} {unit}<extra>stage {number + 1}</extra>"
        data.append(curve)
        start = int(epochs[-1]) + 1
        borders.append(start - 0.5)
    if name == "loss":
        title, caption = "Loss", "Validation loss, in units of what there was to learn when the stage began."
    elif name.startswith("lr"):
        title = "Learning rate" if name == "lr" else f"Learning rate ({name})"
        caption = "Learning rate at the end of each epoch."
    else:
        title = TITLES[name]
        caption = f"Validation error (mean absolute) of {title.lower()}."
    shapes = [level("x", border, line={"color": GREY, "width": 1, "dash": "dot"}) for border in borders[:-1]]
    y_title = f"MAE ({unit})" if unit else title.lower()
    drawn = [value for curve in data for value in curve["y"] if value is not None]
    epochs_axis = axis("epoch", dtick=1) if start <= FEW_EPOCHS else axis("epoch")
    figure = layout(HEIGHT, xaxis=epochs_axis, yaxis=log_axis(y_title, drawn), shapes=shapes, showlegend=False)
    return Figure(data, figure, title, caption)


def kernel(long: LongRange) -> list[Figure]:
    """The kernel in reciprocal space, the interaction of two charges in real space, and how it differs from Coulomb."""
    k = torch.linspace(SMALLEST_K, long.reciprocal.k_cutoff, 300, dtype=torch.float64)
    with torch.no_grad():
        phi = long.reciprocal.phi(k).numpy()
    bare = 2.0 * math.pi * COULOMB_CONSTANT / k.numpy() ** 2
    r = np.geomspace(*DISTANCES, 300)
    pair = long.pair_energy(torch.from_numpy(r)).numpy()
    coulomb = COULOMB_CONSTANT / r
    in_two_halves = "" if long.complement is None else " It falls off earlier: short waves are summed in real space."
    figures = []
    for x, learned, reference, x_title, y_title, title, caption in (
        (
            k.numpy(), phi, bare, "|k| (1/Å)", "Φ (eV Å³/e²)", "Kernel in reciprocal space",
            "The learned Φ(|k|) and that of bare point charges, 2πkₑ/k²." + in_two_halves,
        ),
        (
            r, pair, coulomb, "r (Å)", "u(r) (eV)", "Interaction in real space",
            "The energy of two charges of 1 e, alone in space, and Coulomb's kₑ/r.",
        ),
    ):  # fmt: skip
        # what comes down to nothing would leave no room for the rest
        lowest = max(float(np.abs(learned).min()), 1e-3 * float(reference.min()))
        top, bottom = math.log10(reference.max()) + 0.3, math.log10(min(lowest, reference.min())) - 0.3
        data = [
            *_both_signs(x, learned),
            line(x, reference, "Coulomb", GREY, dash="dash"),
        ]
        y_axis = log_axis(y_title, [10**bottom, 10**top], range=[bottom, top])
        figures.append(Figure(data, layout(HEIGHT, xaxis=log_axis(x_title, x), yaxis=y_axis), title, caption))
    ratio = Figure(
        [line(r, pair / coulomb - 1.0, "learned / Coulomb - 1", BLUE)],
        layout(
            HEIGHT,
            xaxis=log_axis("r (Å)", r),
            yaxis=axis("learned / Coulomb - 1"),
            shapes=[level("y", 0.0)],
            showlegend=False,
        ),
        "Difference in real space",
        "Zero where two charges interact exactly as Coulomb says.",
    )
    return [*figures, ratio]


def _both_signs(x: np.ndarray, y: np.ndarray) -> list[dict[str, Any]]:
    """A curve on logarithmic axes; where it is negative, its opposite, dotted."""
    found = []
    for sign, name, colour, dash in ((1.0, "learned", BLUE, "solid"), (-1.0, "learned, negative", ORANGE, "dot")):
        if bool((sign * y > 0).any()):
            found.append(line(x, np.where(sign * y > 0, sign * y, np.nan), name, colour, dash=dash))
    return found


def charge_histograms(comparison: Comparison) -> list[Figure]:
    """How often each charge occurs, one figure for each element whose charges are not all the same."""
    q, z = comparison.evaluation.charges.numpy(), comparison.evaluation.numbers.numpy()
    figures = []
    for place, element in enumerate(np.unique(z).tolist()):
        mine, symbol = q[z == element], chemical_symbols[element]
        if np.ptp(mine) < SAME_CHARGE:
            continue
        counts, edges = np.histogram(mine, BARS)
        bars = {
            "type": "bar",
            "x": numbers((edges[1:] + edges[:-1]) / 2),
            "y": counts.tolist(),
            "width": float(edges[1] - edges[0]),
            "marker": {"color": COLOURS[place % len(COLOURS)]},
            "hovertemplate": "%{x:.4~g} e: %{y} atoms<extra></extra>",
        }
        drawn = layout(240, xaxis=axis("charge (e)", nticks=5), yaxis=axis("atoms"), showlegend=False)
        caption = f"Predicted charges of {len(mine):,} atoms of {symbol}."
        figures.append(Figure([bars], drawn, f"Charges of {symbol}", caption))
    return figures


def charge_scale(errors: Mapping[str, ErrorAlongScale]) -> list[Figure]:
    """Errors against the factor by which all charges are multiplied, one figure for each quantity."""
    figures = []
    for quantity, along in errors.items():
        factor, unit = SHOWN_UNITS[quantity]
        values = [factor * along.rmse(s) for s in SCALES]
        data = [line(SCALES, values, "RMSE", BLUE, mode="lines+markers")]
        shapes = [level("x", 1.0, line={"color": GREY, "width": 1, "dash": "dash"})]
        low, high = max(along.best - along.width, SCALES[0]), min(along.best + along.width, SCALES[-1])
        if low < high:
            shapes.append(
                {"type": "rect", "x0": low, "x1": high, "y0": 0, "y1": 1, "yref": "y domain", "line": {"width": 0},
                 "fillcolor": GREEN_BAND, "layer": "below"}
            )  # fmt: skip
        what = "energies per atom, offsets refitted" if quantity == "energy" else quantity
        y_axis = axis(f"RMSE ({unit})", rangemode="tozero")
        figures.append(
            Figure(
                data,
                layout(HEIGHT, xaxis=axis("all charges times"), yaxis=y_axis, shapes=shapes, showlegend=False),
                f"Scale of the charges: {TITLES[quantity].lower()}",
                f"RMSE of {what}, with all charges multiplied and the network as it is. Best at "
                f"{along.best:.3f} ± {along.width:.2g}; in the green band the mean square error is less than twice its "
                "least value. The dashed line is the model.",
            )
        )
    return figures


def bars(groups: list[Group], quantity: str, x_title: str) -> Figure:
    """Mean absolute error and RMSE of groups, beside each other."""
    unit = SHOWN_UNITS[quantity][1]
    shown = [group for group in groups if quantity in group.errors]
    names = [group.name for group in shown]
    data = [
        {
            "type": "bar",
            "x": names,
            "y": numbers([getattr(group.errors[quantity], kind) for group in shown]),
            "name": title,
            "marker": {"color": colour},
            "hovertemplate": f"%{{x}}: {title} %{{y:.4~g}} {unit}<extra></extra>",
        }
        for kind, title, colour in (("mae", "mean absolute", BLUE), ("rmse", "root mean square", ORANGE))
    ]
    figure = layout(HEIGHT, xaxis=axis(x_title, type="category"), yaxis=axis(f"error ({unit})"))
    return Figure(data, figure, f"{TITLES[quantity]} by {x_title}", "")
