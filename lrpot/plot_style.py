"""What all pictures share: style, colours, how many dots are drawn, how a file is written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import matplotlib

# Pictures go to files; no display is needed. A notebook says where its own go, as module://...
if not os.environ.get("MPLBACKEND", "").startswith("module://"):
    matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure

from lrpot.errors import ConfigError
from lrpot.files import atomic_path, check_writable

STYLE: Any = {
    "font.size": 10,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")


def thinned(reference: np.ndarray, difference: np.ndarray, most: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """About `most` of the dots (n,), the largest differences among them."""
    if len(reference) <= most:
        return reference, difference
    chosen = np.random.default_rng(0).choice(len(reference), most, replace=False)
    # the worst are what one looks for in a parity picture
    chosen = np.union1d(chosen, np.argsort(-np.abs(difference))[:200])
    return reference[chosen], difference[chosen]


def check_picture(path: Path) -> None:
    """Find out before any work whether a picture can be written there.

    Raises:
        ConfigError: an ending of no format. OutputError: it cannot be written.
    """
    if path.suffix.lower().removeprefix(".") not in FigureCanvasBase.get_supported_filetypes():
        raise ConfigError(f"--out {path}: unknown ending {path.suffix!r}; use .png, .pdf or .svg")
    check_writable(path)


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure, in the format that the ending of `path` names, and close it."""
    path = Path(path)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150)
    plt.close(figure)
    return path
