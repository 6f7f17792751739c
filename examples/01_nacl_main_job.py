"""The main job: compute a data set, fit a long-range potential in three stages, and run MD with it.

    python examples/01_nacl_main_job.py --out runs/demo

The labels are Ewald energies and forces of rattled NaCl with charges +1 and -1 (model system of Yu et al., Table 2):
54 atoms to train on; 54, 432, and 432 atoms less one to test on. A network alone is fitted beside the three stages,
to the same structures and for as many epochs. `make demo` runs this file.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

# Table 2 of Yu et al. 2022: mean absolute error of the total energy, eV/atom, with DimeNet++
PUBLISHED = {
    "3x3x3": ("1.05e-3", "5.86e-4"),
    "6x6x6": ("4.19e-3", "4.63e-3"),
    "6x6x6, vacancy": ("1.83e-2", "1.33e-2"),
}


def main() -> None:
    arguments = parse()
    started = time.monotonic()
    files = compute_labels(arguments.out / "data", arguments.structures, arguments.test_structures)
    alone, fitted = fit_both(files["train"], arguments.out, arguments.epochs, arguments.overwrite)
    results = compare(alone, fitted, files, arguments.out)
    results["md"] = simulate(fitted, arguments.out, arguments.steps)
    results["seconds without installation"] = round(time.monotonic() - started)
    (arguments.out / "results.json").write_text(json.dumps(results, indent=1))
    print(f"wrote {arguments.out / 'results.json'}\nall of it took {results['seconds without installation']} s")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="directory (default: runs/demo)")
    parser.add_argument("--structures", type=int, default=200, help="to train and validate on (default: 200)")
    parser.add_argument("--test-structures", type=int, default=20, help="of each test set (default: 20)")
    parser.add_argument("--epochs", type=int, default=12, help="of each stage (default: 12)")
    parser.add_argument("--steps", type=int, default=1000, help="of MD, 1 fs each (default: 1000)")
    parser.add_argument("--overwrite", action="store_true", help="replace what an earlier run left in --out")
    return parser.parse_args()


def compute_labels(folder: Path, n_train: int, n_test: int) -> dict[str, Path]:
    """The data sets; one that is there already is kept."""
    from lrpot.data.builders.nacl import build_nacl

    recipes = {
        "train": {"n": n_train, "supercell": 3, "seed": 0},
        "3x3x3": {"n": n_test, "supercell": 3, "seed": 1},
        "6x6x6": {"n": n_test, "supercell": 6, "seed": 2},
        "6x6x6, vacancy": {"n": n_test, "supercell": 6, "seed": 3, "defect": "vacancy"},
    }
    files = {}
    for name, recipe in recipes.items():
        files[name] = folder / f"nacl-{name.replace(', ', '-')}-{recipe['n']}.extxyz"
        if not files[name].exists():
            started = time.monotonic()
            build_nacl(files[name], rattle=0.1, jobs=2, **recipe)
            print(f"computed {files[name]} in {time.monotonic() - started:.1f} s")
    return files


def fit_both(train: Path, out: Path, epochs: int, overwrite: bool) -> tuple[Path, Path]:
    """The network alone, and network + reciprocal potential in three stages; the paths of the models."""
    from lrpot import fit

    settings = {
        "model.backbone.features": 32,
        "model.backbone.interactions": 2,
        "training.lr": 5e-3,
        "data.test_fraction": 0.0,  # the test sets are files of their own
    }
    print("\nthe network alone, as many epochs as three stages")
    alone = fit(
        train,
        out=out / "backbone",
        settings=settings | {"model.kernel.form": "none", "training.max_epochs": 3 * epochs},
        overwrite=overwrite,
    )
    print("\nnetwork + reciprocal potential, three stages")
    fitted = fit(train, out=out / "fit", settings=settings | {"training.max_epochs": epochs}, overwrite=overwrite)
    model = out / "model.pt"
    model.write_bytes(fitted.path.read_bytes())
    return alone.path, model


def compare(alone: Path, fitted: Path, files: dict[str, Path], out: Path) -> dict[str, Any]:
    """The error table, beside the published rows; parity pictures. Returns the errors."""
    import torch

    from lrpot import load, plots
    from lrpot.console import Console
    from lrpot.data.readers import read_rows, to_structures
    from lrpot.evaluation import evaluate_structures

    models = {"network alone": alone, "start, before training": fitted.parent / "fit/stages/0.pt"}
    models |= {f"after stage {n}": fitted.parent / f"fit/stages/{n}.pt" for n in (1, 2, 3)}
    errors: dict[str, dict[str, dict]] = {name: {} for name in models}
    pictures = []
    for test, file in files.items():
        if test == "train":
            continue
        for name, path in models.items():
            model = load(path, dtype=torch.float64)
            evaluation = evaluate_structures(model, to_structures(read_rows(file), model.cutoff))
            errors[name][test] = evaluation.errors()
            if path == alone or name == "after stage 3":
                kind = "backbone" if path == alone else "model"
                title = f"{test}, {name}"
                pictures.append(plots.parity(evaluation, out / f"parity-{kind}-{test.replace(', ', '-')}.png", title))
    tests = list(errors["network alone"])
    rows = [
        [name, *(f"{row[test][label]['mae']:.2e}" for test in tests for label in ("energy", "forces"))]
        for name, row in errors.items()
    ]
    last = rows[-1][0]
    ratios = [
        errors["network alone"][test][label]["mae"] / errors[last][test][label]["mae"]
        for test in tests
        for label in ("energy", "forces")
    ]
    rows.append(["network alone / stage 3", *(f"{ratio:.0f}x" for ratio in ratios)])
    for n, name in enumerate(("published: DimeNet++ alone", "published: + reciprocal, 3 steps")):
        rows.append([name, *(cell for test in tests for cell in (PUBLISHED[test][n], "-"))])
    columns = ["mean absolute error", *(f"{test}\n{unit}" for test in tests for unit in ("E (eV/atom)", "F (eV/A)"))]
    print()
    Console().table("test errors", columns, rows)
    for name in ("learning_curves.png", "kernel.png"):
        picture = out / name
        picture.write_bytes((out / "fit" / name).read_bytes())
        pictures.append(picture)
    for path in (fitted, *pictures):
        print(f"wrote {path}")
    return {"test errors": errors, "network alone / stage 3": [round(ratio) for ratio in ratios]}


def simulate(model: Path, out: Path, steps: int) -> dict[str, float]:
    """NVE of 432 atoms: the learned Coulomb part, and repulsion and dispersion, which the labels do not contain."""
    from ase.build import bulk
    from ase.calculators.mixing import SumCalculator

    from lrpot import LRCalculator, plots
    from lrpot.data.builders.tosi_fumi import TosiFumi
    from lrpot.md import run_md

    atoms = bulk("NaCl", "rocksalt", a=5.64).repeat(6)
    atoms.calc = SumCalculator([LRCalculator(model, dtype="float64"), TosiFumi(coulomb=False)])
    trajectory = out / "nve.traj"
    run = run_md(atoms, ensemble="nve", temperature=300.0, steps=steps, interval=5, trajectory=trajectory)
    picture = plots.energy_conservation(
        run.time_fs, run.potential, run.kinetic, run.n_atoms, out / "energy_conservation.png"
    )
    print(
        f"\nNVE of {len(atoms)} atoms, {steps} steps of 1 fs: {1e3 * run.seconds_per_step:.0f} ms/step, "
        f"drift of the total energy {run.drift:.1e} eV/atom/ps"
    )
    print(f"wrote {trajectory}\nwrote {picture}")
    return {"atoms": len(atoms), "steps": steps, "drift (eV/atom/ps)": run.drift, "s/step": run.seconds_per_step}


if __name__ == "__main__":
    main()
