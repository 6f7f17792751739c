"""What all figures of a report share: colours, axes, numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

# Okabe and Ito's colours, which people with any kind of colour vision can tell apart, on white.
BLUE, ORANGE, GREEN, PINK, YELLOW = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B87A00"
COLOURS = (BLUE, ORANGE, GREEN, PINK, YELLOW)
GREY = "#767676"
GREEN_BAND = "rgba(0,158,115,0.14)"  # for an area behind curves
# From little to much, dark enough at its beginning to be seen on white.
DENSITY = [[0.0, "#c6dbef"], [0.35, "#6baed6"], [0.7, "#2171b5"], [1.0, "#08306b"]]

FONT = "system-ui, -apple-system, 'Segoe UI', 'Liberation Sans', Arial, sans-serif"

# Digits that are kept of what is drawn.
DIGITS = 6


@dataclass(frozen=True)
class Figure:
    """A figure as plotly takes it.

    Attributes:
        data, layout: of plotly. title: a heading in plain words. caption: what is to be seen.
    """

    data: list[dict[str, Any]]
    layout: dict[str, Any]
    title: str
    caption: str


def numbers(values: Iterable[float]) -> list[float | None]:
    """Numbers for JSON with `DIGITS` digits; what is not finite is a gap."""
    return [float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None for value in np.asarray(values).tolist()]


def axis(title: str, **more: Any) -> dict[str, Any]:
    return {
        "title": {"text": title, "standoff": 8},
        "showline": True,
        "linecolor": "#444",
        "gridcolor": "#e6e6e6",
        "zeroline": False,
        "ticks": "outside",
        "ticklen": 4,
        "tickcolor": "#444",
        "automargin": True,
        "exponentformat": "power",
        **more,
    }


def log_axis(title: str, values: Iterable[float], **more: Any) -> dict[str, Any]:
    """A logarithmic axis for these values."""
    positive = [value for value in values if value > 0]
    decades = math.log10(max(positive) / min(positive)) if positive else 0.0
    # between one decade and four, plotly's own ticks run into each other; 1, 2, 5, 10, ... do not
    few = {"dtick": "D2"} if 0.9 < decades < 4.0 else {"nticks": 7}
    # with a format of their own, ticks between powers of ten are whole numbers too, not single digits
    return axis(title, type="log", tickformat="~g", **few, **more)


def layout(height: int, **more: Any) -> dict[str, Any]:
    return {
        "height": height,
        "margin": {"l": 64, "r": 16, "t": 12, "b": 48},
        "font": {"family": FONT, "size": 13, "color": "#222"},
        "paper_bgcolor": "#fff",
        "plot_bgcolor": "#fff",
        "hovermode": "closest",
        "hoverlabel": {"font": {"family": FONT, "size": 13}, "align": "left"},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"size": 12}},
        **more,
    }


def line(x: Iterable[float], y: Iterable[float], name: str, colour: str, **more: Any) -> dict[str, Any]:
    dash = more.pop("dash", "solid")
    return {
        "type": "scatter",
        "mode": "lines",
        "x": numbers(x),
        "y": numbers(y),
        "name": name,
        "line": {"color": colour, "width": 2, "dash": dash},
        **more,
    }


def level(along: str, value: float, **more: Any) -> dict[str, Any]:
    """A thin line across the figure at a value of "x" or "y"."""
    other = "y" if along == "x" else "x"
    return {
        "type": "line",
        f"{along}0": value,
        f"{along}1": value,
        f"{other}0": 0,
        f"{other}1": 1,
        f"{other}ref": f"{other} domain",
        "line": {"color": GREY, "width": 1},
        "layer": "below",
        **more,
    }
