"""Errors of potentials of crystals with defects: the network alone, with its long range in one step, and in three.

    python benchmarks/defects.py SET FILE [--only WORD] [--without CLASS] [--train N] [--epochs N] [--out FOLDER]

It goes on where it was stopped.

Table 3 of Yu et al., whose 67,208 structures of GaN are not public. SET says which rows FILE holds:

- `gan`: 3,000 cells of wurtzite GaN, 8 atoms, with random lattice vectors; `inp`: 1,894 cells of InP with vacancies,
  antisites and interstitials, 4 to 217 atoms (Cusentino et al., J. Phys. Chem. A 124, 5456 (2020)). Both are DFT, come
  with FastPOD, and are not part of lrpot.
- `gan-xtb`: what `lrpot data gan` makes.

80/10/10 at random; of sets with classes of defects also without any row of one class, which is the test then. Every row
of the table with one network takes the same number of epochs. Test rows decide nothing.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from timing import RESULTS, machine, write

from lrpot import fit
from lrpot.console import Console
from lrpot.data.readers import read_rows, to_structures
from lrpot.evaluation import evaluate_structures
from lrpot.model_file import load

SETS = ("gan", "inp", "gan-xtb")
EPOCHS = {"gan": 20, "inp": 100, "gan-xtb": 60}
# of the classes of InP by the first letter of their names, behind "s_" where the cell is strained
INP = {"v": "vacancies", "a": "antisites", "i": "interstitials"}

KEYS = ("model", "split", "training rows")  # tell records apart

BACKBONE = "model.backbone."
# norms of vectors as published: with a cusp where those of a perfect crystal vanish
CUSP, ROUND = {BACKBONE + "epsilon": 1e-8}, {BACKBONE + "epsilon": 0.01}
PAINN = {BACKBONE + "name": "painn", BACKBONE + "features": 64, BACKBONE + "interactions": 3, **CUSP}
EQUIVARIANT = {BACKBONE + "name": "equivariant", BACKBONE + "features": 32, BACKBONE + "interactions": 2}
ALONE = {"model.kernel.form": "none"}
# cells of any composition are neutral, as those of the labels are
NEUTRAL = {"model.charges.neutrality": "shift"}
PHYSICAL_START = {"training.schedule": "physical-start"}
LABELLED = {"model.charges.kind": "equilibration", "training.charge_weight": 1.0}
ONE, THREE = {"training.stages": 1}, {"training.stages": 3}
MODELS = {
    "PaiNN": {**PAINN, **ALONE},
    "PaiNN, epsilon 0.01": {**PAINN, **ROUND, **ALONE},
    "PaiNN, long range, one step": {**PAINN, **ONE},
    "PaiNN, long range, three steps": {**PAINN, **THREE},
    "PaiNN, charges frozen first": {**PAINN, **THREE, **PHYSICAL_START},
    "PaiNN, charges frozen first, neutral": {**PAINN, **THREE, **PHYSICAL_START, **NEUTRAL},
    "PaiNN, labelled charges, three steps": {**PAINN, **THREE, **LABELLED},
    "equivariant": {**EQUIVARIANT, **ALONE},
    "equivariant, long range, one step": {**EQUIVARIANT, **ONE},
    "equivariant, long range, three steps": {**EQUIVARIANT, **THREE},
}
# energies of strained cells and of other defects differ by eV/atom; squares would care for the worst of them alone
TRAINING = {"training.loss": "mae", "training.patience": 1000, "training.ema": 0.99}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("set", choices=SETS)
    parser.add_argument("data", type=Path)
    parser.add_argument("--only", default="", help="the row of this name, or all whose name holds this word")
    parser.add_argument("--without", default="", help="leave out this class of defects instead of a random part")
    parser.add_argument("--train", type=int, help="rows to train on, of those that the split leaves (default: all)")
    parser.add_argument("--out", type=Path, default=Path("runs/defects"), help="where runs lie, for another time")
    parser.add_argument("--epochs", type=int, help="of a fit, all stages together")
    arguments = parser.parse_args()
    epochs = arguments.epochs or EPOCHS[arguments.set]
    split = f"without {arguments.without}" if arguments.without else "random"
    folder = arguments.out / arguments.set / split.replace(" ", "-")
    kinds = classes(arguments.set, arguments.data)
    parts = _split(kinds, arguments.data, arguments.without)
    if arguments.train:
        parts["train"] = parts["train"][: arguments.train]
        folder = folder / str(arguments.train)
    records = []
    chosen = [arguments.only] if arguments.only in MODELS else [name for name in MODELS if arguments.only in name]
    for name in chosen:
        settings = MODELS[name]
        run = folder / f"{name.replace(', ', '-').replace(' ', '-')}-{epochs}"
        found = _fitted(arguments.data, run, {**settings, **TRAINING}, epochs, parts)
        if any(kinds):
            found["rows"] = _by_row(run / "model.pt", arguments.data, kinds, parts["test"])
        trained = {"split": split, "training rows": len(parts["train"]), "epochs": epochs}
        records.append({"model": name, **trained, "settings": settings, **found})
    _show(f"{arguments.set}, {split}", records)
    # rows that were fitted another time stay
    stored = RESULTS / f"defects-{arguments.set}.json"
    before = json.loads(stored.read_text())["records"] if stored.exists() else []
    done = {tuple(record[key] for key in KEYS): record for record in [*before, *records]}
    content = {"machine": machine(), "training": TRAINING, "records": [done[key] for key in sorted(done, key=_order)]}
    print("wrote", write(stored.stem, content))


def _order(key: tuple[str, str, int]) -> tuple[Any, ...]:
    """Of records: splits, then sizes, then models as above."""
    model, split, train = key
    return (split != "random", split, -train, list(MODELS).index(model))


def classes(which: str, data: Path) -> np.ndarray:
    """(n,) the kind of defect of each row; "" for none."""
    if which == "inp":
        names = [row.atoms.info["config_type"].removeprefix("s_") for row in read_rows(data)]
        return np.array([INP.get(name[0], "") for name in names])
    return np.array([row.atoms.info.get("defect", "") for row in read_rows(data)])


def _split(kinds: np.ndarray, data: Path, without: str) -> dict[str, list[int]]:
    """The rows of each part, in random order."""
    order = np.random.default_rng(0).permutation(len(kinds))
    held = len(order) // 10
    test = order[:held]
    if without:
        test = np.flatnonzero(kinds == without)
        if not len(test):
            raise SystemExit(f"{data}: no row has {without}; there are {', '.join(sorted(set(kinds) - {''}))}")
    rest = order[~np.isin(order, test)]
    return {"train": rest[held:].tolist(), "valid": rest[:held].tolist(), "test": test.tolist()}


def _fitted(
    data: Path, out: Path, settings: dict[str, Any], epochs: int, parts: dict[str, list[int]]
) -> dict[str, Any]:
    """Errors on the test rows, and the charges."""
    split = out.with_name(f"{out.name}-split.json")
    split.parent.mkdir(parents=True, exist_ok=True)
    split.write_text(json.dumps({part: sorted(rows) for part, rows in parts.items()}))
    if settings.get("training.stages") == 3:
        # the second stage fits a few numbers, and the third polishes
        second, third = max(1, epochs // 10), max(1, epochs // 5)
        settings = {**settings, "training.per_stage": {2: {"max_epochs": second}, 3: {"max_epochs": third}}}
        epochs -= second + third
    settings = {**settings, "training.max_epochs": epochs, "data.split": str(split)}
    if not (out / "results.json").exists():
        begun = (out / "config.yaml").exists()
        fit(None if begun else data, out=out, settings=None if begun else settings, resume=begun, verbose=False)
    results = json.loads((out / "results.json").read_text())
    test, stages = results["test"], results["stages"]
    labels = [label for label in ("energy", "forces", "charges") if label in test]
    return {
        "test": {label: test[label] for label in labels},
        "validation": {label: stages[-1]["validation"][label] for label in labels},
        "n": test["n_structures"],
        "charges": stages[-1].get("charges", {}),
    }


def _by_row(model: Path, data: Path, kinds: np.ndarray, test: list[int]) -> dict[str, list[Any]]:
    """Of each test row: class, number of atoms, error of the energy (eV/atom), MAE of its forces (eV/A)."""
    potential, rows = load(model), read_rows(data)
    structures = to_structures([rows[number] for number in sorted(test)], potential.cutoff)
    errors = evaluate_structures(potential, structures)
    difference = {label: (errors.predicted[label] - errors.reference[label]).numpy() for label in ("energy", "forces")}
    of = errors.places["forces"][:, 0].numpy()
    return {
        "class": [str(kinds[number]) for number in sorted(test)],
        "atoms": [structure.num_nodes for structure in structures],
        "energy": difference["energy"].round(7).tolist(),
        "forces": (np.bincount(of, np.abs(difference["forces"])) / np.bincount(of)).round(6).tolist(),
    }


def _show(title: str, records: list[dict[str, Any]]) -> None:
    columns = ["model", "E MAE", "E RMSE (meV/atom)", "F MAE", "F RMSE (meV/A)"]
    lines = []
    for record in records:
        own = record["test"]
        numbers = [f"{1e3 * own[label][kind]:.3g}" for label in ("energy", "forces") for kind in ("mae", "rmse")]
        lines.append([record["model"], *numbers])
    Console().table(title, columns, lines)


if __name__ == "__main__":
    main()
