"""What an MD step costs against the number of atoms, beside SchNetPack's calculator.

python benchmarks/calculator_picture.py     (after calculator.py; draws docs/images/md-speed.png)
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from timing import RESULTS

from lrpot.plot_style import COLOURS, STYLE, save

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "images" / "md-speed.png"
FEATURES = 64  # the width that was measured at every number of atoms
LABELS = {
    "network + long range": "lrpot",
    "network alone": "lrpot, long range left out",
    "SchNetPack": "SchNetPack, no long range",
}


def draw() -> Path:
    records = json.loads((RESULTS / "calculator.json").read_text())["records"]
    records = [record for record in records if record["features"] == FEATURES]
    threads = sorted({record["threads"] for record in records})
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(threads), figsize=(4.6 * len(threads), 3.8), sharey=True, squeeze=False)
        for axis, count in zip(axes[0], threads, strict=True):
            for colour, (name, label) in zip(COLOURS, LABELS.items(), strict=False):
                measured = [
                    (record["atoms"], 1e3 * record["milliseconds"][name] / record["atoms"])
                    for record in records
                    if record["threads"] == count and record["milliseconds"].get(name)
                ]
                axis.plot(*zip(*measured, strict=True), "o-", color=colour, label=label)
            axis.set(xscale="log", yscale="log", xlabel="atoms", title=f"{count} thread{'s' if count > 1 else ''}")
        axes[0][0].set_ylabel("an MD step (µs/atom)")
        axes[0][0].yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes[0][0].yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes[0][0].yaxis.set_minor_formatter(NullFormatter())
        handles, labels = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(LABELS), frameon=False)
        return save(figure, PICTURE)


if __name__ == "__main__":
    print("wrote", draw())
