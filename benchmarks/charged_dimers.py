"""Molecules that move apart: is the tail of their interaction learned from shorter distances?

    python benchmarks/charged_dimers.py FOLDER [MODEL ...]

FOLDER holds train.xyz.gz and test.xyz.gz: DFT energies and forces of six pairs of molecules (C charged, P polar,
A apolar) in a box of 30 A, each at ten distances for training and at three longer ones for the test (BioFragment dimers
of Huguenin-Dumittan et al., J. Phys. Chem. Lett. 2023, as repacked in the data of CACE-LR). They are not part of lrpot.
The forces are those of the interaction: the ones inside an isolated molecule are taken off.

The models differ in the charges alone and see energies, forces and the total charge, no charge of an atom or molecule.
A tenth of the training rows, drawn at random, decides when a fit is best; no choice was made by the test rows.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ase.io
import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from ase import Atoms
from timing import machine, write

import lrpot
from lrpot.console import Console
from lrpot.units import COULOMB_CONSTANT

CLASSES = ("CC", "CP", "PP", "CA", "PA", "AA")
PICTURE = Path(__file__).resolve().parents[1] / "docs" / "images" / "charged-dimers.png"

SETTINGS: dict[str, Any] = {
    "data.valid_fraction": 0.1,
    "data.test_fraction": 0.0,
    "model.backbone.features": 32,
    "model.backbone.interactions": 2,
    "model.kernel.tolerance": 1e-4,
    "training.stages": 1,
    "training.max_epochs": 130,
    "training.patience": 130,
    "training.batch_size": 8,
    "training.energy_weight": 10.0,
}
CHARGED: dict[str, Any] = {
    # small, with the signs of the electronegativities
    "model.charges.init": {"H": 0.1, "C": 0.1, "N": -0.2, "O": -0.2},
    # a single cosine is a constant: the kernel stays that of Coulomb
    "model.kernel.basis": 1,
    "training.total_charge_weight": 10.0,
}
MODELS: dict[str, dict[str, Any]] = {
    "network alone": {"model.kernel.form": "none"},
    **{kind: CHARGED | {"model.charges.kind": kind} for kind in ("embedding", "environment", "equilibration")},
}
# A, of two molecules without periodic images: where the exponent of the tail is read off.
FAR = (50.0, 100.0, 200.0)

Curves = dict[str, list[Atoms]]


def main() -> None:
    folder = Path(sys.argv[1])
    chosen = sys.argv[2:] or list(MODELS)
    train, test = (read(folder / f"{name}.xyz.gz") for name in ("train", "test"))
    energies, records = {}, {}
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "train.extxyz"
        ase.io.write(file, [atoms for rows in train.values() for atoms in rows], format="extxyz")
        for name in chosen:
            start = time.perf_counter()
            result = lrpot.fit(file, out=Path(scratch) / name.replace(" ", "-"), settings=SETTINGS | MODELS[name])
            seconds = time.perf_counter() - start
            calculator = lrpot.LRCalculator(result.model)
            energies[name] = {label: predicted(calculator, train[label] + test[label]) for label in CLASSES}
            records[name] = {
                "seconds": seconds,
                "epochs": [stage.get("epochs", 0) for stage in result.stages],
                "validation": result.stages[-1]["validation"],
                "test": {label: tail_error(energies[name][label], train[label], test[label]) for label in CLASSES},
                "train": {label: shape_error(energies[name][label], train[label]) for label in CLASSES},
                **tail_of(calculator, train["CC"]),
            }
            print(name, records[name], flush=True)
    flat = {
        label: tail_error(np.zeros(len(train[label] + test[label])), train[label], test[label]) for label in CLASSES
    }
    show(records, flat)
    print("wrote", write("charged_dimers", {"machine": machine(), "flat line": flat, "records": records}))
    print("wrote", draw(energies, train, test))


def read(file: Path) -> Curves:
    """The rows of each class by distance, with their total charge where lrpot looks for it."""
    rows = ase.io.read(file, ":")
    for atoms in rows:
        atoms.info["charge"] = float(atoms.info["chargeA"] + atoms.info["chargeB"])
    return {
        label: sorted((a for a in rows if a.info["label"] == label), key=lambda a: a.info["distance"])
        for label in CLASSES
    }


def labels(rows: list[Atoms]) -> np.ndarray:
    """(R,), eV."""
    return np.array([atoms.get_potential_energy() for atoms in rows])


def predicted(calculator: lrpot.LRCalculator, rows: list[Atoms]) -> np.ndarray:
    """(R,), eV."""
    return np.array([energy_of(calculator, atoms) for atoms in rows])


def energy_of(calculator: lrpot.LRCalculator, atoms: Atoms) -> float:
    atoms = atoms.copy()
    atoms.calc = calculator
    return atoms.get_potential_energy()


def tail_error(energies: np.ndarray, train: list[Atoms], test: list[Atoms]) -> float:
    """meV, mean absolute error over the test rows of the energy relative to the longest distance of training.

    Args:
        energies: (R,), eV, of the rows for training and then of those for the test.
    """
    last = len(train) - 1
    return 1e3 * float(
        np.abs((energies - energies[last] - labels(train + test) + labels(train)[last])[last + 1 :]).mean()
    )


def shape_error(energies: np.ndarray, train: list[Atoms]) -> float:
    """meV, mean absolute error over the training rows, apart from a constant."""
    errors = energies[: len(train)] - labels(train)
    return 1e3 * float(np.abs(errors - np.median(errors)).mean())


def tail_of(calculator: lrpot.LRCalculator, rows: list[Atoms]) -> dict[str, float | None]:
    """Exponent and strength of the interaction of two molecules that are far apart and have no periodic images.

    Returns:
        exponent: n of 1/d^n, None without any interaction. product: of the charges of the molecules, e^2, if n is one.
    """
    atoms = rows[-1].copy()
    second = np.arange(len(atoms)) >= atoms.info["indexB"]
    direction = (rows[-1].positions - rows[0].positions)[second].mean(axis=0)
    direction /= np.linalg.norm(direction)
    atoms.pbc = False
    energies = []
    for distance in FAR:
        moved = atoms.copy()
        moved.positions[second] += (distance - atoms.info["distance"]) * direction
        energies.append(energy_of(calculator, moved))
    near, far = np.diff(energies)
    if near == 0.0:
        return {"exponent": None, "product": 0.0}
    product = (energies[1] - energies[2]) / (COULOMB_CONSTANT * (1.0 / FAR[1] - 1.0 / FAR[2]))
    return {"exponent": float(np.log2(near / far)), "product": float(product)}


def show(records: Mapping[str, Mapping[str, Any]], flat: Mapping[str, float]) -> None:
    lines = [["flat line", *(f"{flat[label]:.2f}" for label in CLASSES), "", ""]]
    for name, record in records.items():
        errors = [f"{record['test'][label]:.2f}" for label in CLASSES]
        exponent = "" if record["exponent"] is None else f"{record['exponent']:.2f}"
        lines.append([name, *errors, exponent, f"{record['product']:+.3f}"])
    columns = ["model", *(f"{label} (meV)" for label in CLASSES), "exponent (CC)", "Q Q' (e^2)"]
    Console().table("error of E(d) - E(longest training distance), mean over the test rows", columns, lines)


def draw(energies: Mapping[str, Mapping[str, np.ndarray]], train: Curves, test: Curves) -> Path:
    """E(d) of all classes, relative to the longest training distance; the distances of the test are shaded."""
    with plt.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure, axes = plt.subplots(2, 3, figsize=(11.0, 6.2), constrained_layout=True)
        for label, axis in zip(CLASSES, axes.flat, strict=True):
            rows = train[label] + test[label]
            last = len(train[label]) - 1
            distance = np.array([atoms.info["distance"] for atoms in rows])
            axis.axvspan(0.5 * (distance[last] + distance[last + 1]), distance[-1] + 0.3, color="0.93", lw=0)
            reference = 1e3 * (labels(rows) - labels(rows)[last])
            axis.plot(distance, reference, "o", ms=5, mfc="none", color="k", label="DFT", zorder=5)
            for n, (name, curves) in enumerate(energies.items()):
                axis.plot(
                    distance, 1e3 * (curves[label] - curves[label][last]), ".-", ms=4, lw=1.1, color=f"C{n}", label=name
                )
            # a model that is wrong by far must not hide the others
            room = 0.15 * np.ptp(reference)
            axis.set_ylim(reference.min() - room, reference.max() + room)
            axis.set(title=label, xlabel="distance (Å)")
        for axis in axes[:, 0]:
            axis.set_ylabel("E(d) - E(longest for training) (meV)")
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=5, frameon=False)
        figure.savefig(PICTURE, dpi=130)
        plt.close(figure)
    return PICTURE


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
