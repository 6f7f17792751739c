"""Fit your own labelled crystals from Python, then evaluate and predict with the model.

    python examples/02_fit_your_own_data.py [DATA] [--out runs/own]

DATA is any file that ASE reads, each row with an energy (eV), and best with forces (eV/A) and stress (eV/A^3). Without
it the sample of datasets/nacl is fitted, which takes less than a minute. The same from the command line:

    lrpot fit DATA --out runs/own
    lrpot evaluate runs/own/model.pt DATA
    lrpot predict runs/own/model.pt DATA --out runs/own/predictions.extxyz
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from lrpot import fit, load, predict
from lrpot.data.readers import read_rows, to_structures
from lrpot.errors import LrpotError
from lrpot.evaluation import evaluate_structures
from lrpot.prediction import write_predictions

SAMPLE = Path(__file__).parents[1] / "datasets" / "nacl" / "sample.extxyz"

# A small network, quick on two cores. Without settings, `fit` takes the defaults that `lrpot fit --help` tells of.
SETTINGS = {
    "model.backbone.features": 32,
    "model.backbone.interactions": 2,
}


def main() -> None:
    arguments = parse()

    # 1. Fit: three stages; the run directory gets the model, its errors and pictures.
    settings = SETTINGS | {"training.max_epochs": arguments.epochs}
    result = fit(arguments.data, out=arguments.out, settings=settings, overwrite=arguments.overwrite)
    print(f"charges after the last stage: {result.stages[-1]['charges']} e")

    # 2. Evaluate: errors on any labelled file; here the one that was fitted, so they say little about new crystals.
    model = load(result.path, dtype=torch.float64)
    structures = to_structures(read_rows(arguments.data), model.cutoff, elements=model.elements)
    errors = evaluate_structures(model, structures).errors()
    for quantity in ("energy", "forces", "stress"):
        if quantity in errors:
            values = errors[quantity]
            print(f"{quantity}: MAE {values['mae']:.2e}, largest {values['max']:.2e} {values['unit']}")

    # 3. Predict: labels in the file are not looked at.
    predictions = predict(model, arguments.data)
    first = predictions[0]
    print(f"{first.row}: {first.energy:.6f} eV, of which long range {first.energy_long:.6f} eV")
    print(f"wrote {write_predictions(predictions, arguments.out / 'predictions.extxyz')}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, nargs="?", default=SAMPLE, help="labelled crystals (default: NaCl sample)")
    parser.add_argument("--out", type=Path, default=Path("runs/own"), help="directory of the run (default: runs/own)")
    parser.add_argument("--epochs", type=int, default=20, help="of each stage, at most (default: 20)")
    parser.add_argument("--overwrite", action="store_true", help="replace what an earlier run left in --out")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except LrpotError as error:
        sys.exit(f"error: {error}")
