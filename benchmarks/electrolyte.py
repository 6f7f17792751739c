"""NaCl in water: network alone, and with each charge model, fitted to the same DFT rows by one command each.

    python benchmarks/electrolyte.py FILE [--only WORD]

FILE holds energies and forces of periodic boxes of ions in water, e.g. the revPBE0-D3 set of O'Neill et al., J. Phys.
Chem. Lett. 2024 (arXiv 2311.01527). It is not part of lrpot. A fixed choice of rows is fitted, and tested on others
that no fit saw.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from timing import machine, write

TRAIN, TEST = 110, 60  # rows; a tenth of the first validates
EPOCHS = 20  # of each stage
COMMON = ["--set", "model.backbone.features=32", "data.test_fraction=0", "training.batch_size=2"]
RUNS = {
    "network alone": ["--kernel", "none", *COMMON, f"training.max_epochs={3 * EPOCHS}"],
    **{
        f"+ {kind} charges": ["--charges", kind, *COMMON, f"training.max_epochs={EPOCHS}"]
        for kind in ("embedding", "environment", "equilibration")
    },
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("--only", default="", help="runs whose name holds this word")
    arguments = parser.parse_args()
    records = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        frames = ase.io.read(arguments.file, index=":")
        order = np.random.default_rng(0).permutation(len(frames))
        ase.io.write(folder / "train.extxyz", [frames[n] for n in order[:TRAIN]])
        ase.io.write(folder / "test.extxyz", [frames[n] for n in order[TRAIN : TRAIN + TEST]])
        for name, options in RUNS.items():
            if arguments.only in name:
                records[name] = _fit(folder, name, options)
                print(name, json.dumps(records[name]), flush=True)
    if not arguments.only:
        content = {"machine": machine(), "train": TRAIN, "test": TEST, "epochs": EPOCHS, "records": records}
        print("wrote", write("electrolyte", content))


def _fit(folder: Path, name: str, options: list[str]) -> dict[str, Any]:
    run = folder / name.replace(" ", "-")
    start = time.perf_counter()
    for words in (
        ["fit", folder / "train.extxyz", "--out", run, *options],
        ["evaluate", run / "model.pt", folder / "test.extxyz"],
    ):
        print("lrpot", *words, flush=True)
        subprocess.run([Path(sys.executable).parent / "lrpot", *map(str, words)], check=True, stdout=subprocess.DEVNULL)
    evaluation = json.loads((run / "evaluation-test.json").read_text())
    return {"seconds": time.perf_counter() - start, **evaluation}


if __name__ == "__main__":
    main()
