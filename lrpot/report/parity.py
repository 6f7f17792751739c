"""Parity plots: every number, or where there are too many of them their density and the worst."""

from __future__ import annotations

import html
from typing import Any

import ase.units
import numpy as np
from ase.data import chemical_symbols

from lrpot.report.comparison import SHOWN_UNITS, Comparison
from lrpot.report.style import BLUE, DENSITY, GREY, ORANGE, Figure, axis, layout, level, numbers

# Points of one figure that can be looked at one by one; of more, the density is drawn, and so many of the worst.
MAX_POINTS = 2000
WORST = 150

# Cells of the density, along the label and along the other axis.
CELLS = (110, 90)

# How labels are told: factor from the units of `lrpot.evaluation`, and the name of the unit.
LABEL_UNITS = {
    "energy": (1.0, "eV/atom"),
    "forces": (1.0, "eV/Å"),
    "stress": (1.0 / ase.units.GPa, "GPa"),
    "charges": (1.0, "e"),
    "dipole": (1.0, "e Å"),
    "born_charges": (1.0, "e"),
}
TITLES = {
    "energy": "Energy per atom",
    "forces": "Forces",
    "stress": "Stress",
    "charges": "Charges",
    "dipole": "Dipoles",
    "born_charges": "Born effective charges",
}


def parity(comparison: Comparison, quantity: str) -> Figure:
    """Prediction over label, and below it the error over label."""
    factor, unit = LABEL_UNITS[quantity]
    error_factor, error_unit = SHOWN_UNITS[quantity]
    label = factor * comparison.reference(quantity)
    difference = comparison.differences(quantity)
    predicted, error = label + factor * difference, error_factor * difference
    many = len(label) > MAX_POINTS
    shown = np.sort(np.argsort(-np.abs(error), kind="stable")[: WORST if many else MAX_POINTS])
    texts = [_place(comparison, quantity, n) for n in shown.tolist()]
    data: list[dict[str, Any]] = []
    if many:
        data += [_density(label, predicted, "y"), _density(label, error, "y2")]
    for y, name in ((predicted, "y"), (error, "y2")):
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": numbers(label[shown]),
                "y": numbers(y[shown]),
                "customdata": numbers(error[shown]),
                "text": texts,
                "hovertemplate": f"%{{text}}<br>label %{{x:.5~g}} {unit}<br>"
                f"error %{{customdata:+.4~g}} {error_unit}<extra></extra>",
                "yaxis": name,
                "marker": {"size": 5, "color": ORANGE if many else BLUE, "opacity": 0.55},
                "showlegend": False,
            }
        )
    ends = [float(min(label.min(), predicted.min())), float(max(label.max(), predicted.max()))]
    data.insert(0, _diagonal(ends))
    what = TITLES[quantity].lower()
    figure = layout(
        460,
        xaxis=axis(f"label ({unit})", anchor="y2"),
        yaxis=axis(f"prediction ({unit})", domain=[0.36, 1.0]),
        yaxis2=axis(f"error ({error_unit})", domain=[0.0, 0.27]),
        shapes=[level("y", 0.0, yref="y2", xref="x domain")],
        showlegend=False,
    )
    count = f"{len(label):,} {_named(quantity)}"
    caption = f"{count}; every one is a point."
    if many:
        caption = (
            f"{count}: shades of blue are the density of all of them, in a logarithmic scale; the points in orange are "
            f"the {WORST} with the largest errors."
        )
    return Figure(data, figure, TITLES[quantity], f"{caption} Predicted {what} over the label, and the error below.")


def _diagonal(ends: list[float]) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "x": numbers(ends),
        "y": numbers(ends),
        "line": {"color": GREY, "width": 1},
        "hoverinfo": "skip",
        "showlegend": False,
    }


def _density(x: np.ndarray, y: np.ndarray, name: str) -> dict[str, Any]:
    """How many numbers lie in each cell of a mesh, in a logarithmic scale; empty cells are left out."""
    counts, x_edges, y_edges = np.histogram2d(x, y, bins=CELLS)
    with np.errstate(divide="ignore"):
        shade = np.log10(counts.T)
    return {
        "type": "heatmap",
        "x0": float(x_edges[0] + x_edges[1]) / 2,
        "dx": float(x_edges[1] - x_edges[0]),
        "y0": float(y_edges[0] + y_edges[1]) / 2,
        "dy": float(y_edges[1] - y_edges[0]),
        "z": [numbers(row) for row in shade],
        "colorscale": DENSITY,
        "showscale": False,
        "hoverinfo": "skip",
        "hoverongaps": False,
        "yaxis": name,
    }


def _place(comparison: Comparison, quantity: str, number: int) -> str:
    """File, row, atom and component of a number, as plotly's HTML."""
    structure = int(comparison.owner(quantity)[number])
    words = [comparison.where(structure)]
    place = int(comparison.place(quantity)[number])
    if quantity in ("forces", "charges", "born_charges"):
        atom = place // {"forces": 3, "charges": 1, "born_charges": 9}[quantity]
        symbol = chemical_symbols[comparison.numbers[comparison.first_atom[structure] + atom]]
        words.append(f"atom {atom} ({symbol})")
    if quantity in ("forces", "dipole"):
        words.append("xyz"[place % 3])
    elif quantity in ("stress", "born_charges"):
        words.append("xyz"[place % 9 // 3] + "xyz"[place % 3])
    return html.escape(", ".join(words))


def _named(quantity: str) -> str:
    return {
        "energy": "energies",
        "forces": "components of forces",
        "stress": "components of stress",
        "charges": "charges",
        "dipole": "components of dipoles",
        "born_charges": "components of Born charges",
    }[quantity]
