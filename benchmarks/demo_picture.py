"""Errors of the demo by stage, beside those of the network alone.

python benchmarks/demo_picture.py     (after demo.py; draws docs/images/demo-stages.png)
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.pyplot as plt
from timing import RESULTS

from lrpot.plot_style import COLOURS, STYLE, save

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "images" / "demo-stages.png"
UNITS = {"energy": "energy, MAE (eV/atom)", "forces": "forces, MAE (eV/Å)"}


def draw() -> Path:
    errors = json.loads((RESULTS / "demo.json").read_text())["test errors"]
    names = list(errors)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(UNITS), figsize=(9.2, 3.8))
        for axis, (quantity, label) in zip(axes, UNITS.items(), strict=True):
            for colour, test in zip(COLOURS, errors[names[0]], strict=False):
                heights = [errors[name][test][quantity]["mae"] for name in names]
                # the network alone is another fit: no line leads from it to the stages
                axis.plot(names[:1], heights[:1], "s", color=colour)
                axis.plot(names[1:], heights[1:], "o-", color=colour, label=test)
            axis.set(yscale="log", ylabel=label)
            axis.set_xticks(range(len(names)), names, rotation=20, ha="right")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
        return save(figure, PICTURE)


if __name__ == "__main__":
    print("wrote", draw())
