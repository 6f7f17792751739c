"""Parity as in Fig. 3 of Yu et al. 2022, for the fits of nacl.py."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from lrpot.plot_style import COLOURS, STYLE, save, thinned

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "images" / "nacl-parity.png"
MODELS = ("network alone", "published, three steps", "default, physics-first")
UNITS = {"energy": "energy (eV/atom)", "forces": "forces (eV/Å)"}
MOST = 4000  # dots of a model in a panel


def draw(fits: Path) -> Path | None:
    """Predicted against reference: a column for each test, a row for each quantity; None while a fit is missing.

    Args:
        fits: folder of the fits with one backbone; those of the first seed are drawn.
    """
    files = {model: fits / model.replace(",", "").replace(" ", "-") / "seed-0" / "predictions.npz" for model in MODELS}
    if not all(file.exists() for file in files.values()):
        return None
    predictions = {model: dict(np.load(file)) for model, file in files.items()}
    tests = list(dict.fromkeys(key.split("/")[0] for key in predictions[MODELS[0]]))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(len(UNITS), len(tests), figsize=(3.9 * len(tests), 7.4), squeeze=False)
        for row, quantity in zip(axes, UNITS, strict=True):
            for axis, test in zip(row, tests, strict=True):
                for colour, (model, arrays) in zip(COLOURS, predictions.items(), strict=False):
                    reference = arrays[f"{test}/{quantity}/reference"]
                    difference = arrays[f"{test}/{quantity}/predicted"] - reference
                    reference, difference = thinned(reference, difference, MOST)
                    axis.plot(
                        reference,
                        reference + difference,
                        ".",
                        ms=3,
                        alpha=0.5,
                        color=colour,
                        label=model,
                        rasterized=True,
                    )
                axis.axline((reference[0], reference[0]), slope=1, color="0.3", lw=0.8, zorder=0)
                axis.set(xlabel=f"reference {UNITS[quantity]}")
                axis.locator_params(nbins=5)
            row[0].set_ylabel(f"predicted {UNITS[quantity]}")
        for axis, test in zip(axes[0], tests, strict=True):
            axis.set_title(test)
        figure.legend(
            *axes[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=3, markerscale=4, frameon=False
        )
        return save(figure, PICTURE)
