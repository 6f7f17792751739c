"""Errors of property models on real sets, every row by the same splits and the same number of epochs.

    python benchmarks/properties.py hoip FILE                 Table 1 of Yu et al.: gaps of hybrid perovskites
    python benchmarks/properties.py jdft2d FILE               MatBench: exfoliation energies, its official folds
    python benchmarks/properties.py defected FILE             UnconvBench: energies of vacancies, folds drawn as it does
    python benchmarks/properties.py multitask FOLDER          several properties of overlapping structures: heads
    ... [--only WORD] [--out FOLDER]                          the row of this name, or all whose name holds this word

FILE and FOLDER are not part of lrpot: the HSE06 gaps of 1,346 hybrid perovskites (Kim et al., Sci. Data 4, 170057
(2017)), matbench_jdft2d (Dunn et al., npj Comput. Mater. 6, 138 (2020)), cells with a vacancy (Choudhary and Sumpter,
AIP Adv. 13, 095109 (2023)), and the matminer sets of Chang et al., npj Comput. Mater. 8, 242 (2022), as extxyz. What is
fitted already in --out is not fitted again, and each row is in the JSON once it is done, with its settings. Test rows
decide nothing: settings were chosen by validation rows of the first split, widths of attention by what a fit costs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from timing import RESULTS, machine, write

from lrpot import fit
from lrpot.config import PROPERTY_DEFAULTS
from lrpot.console import Console
from lrpot.data.readers import read_rows
from lrpot.properties.leaderboards.suites import MatBenchTask, SuiteTask, UnconvTask
from lrpot.training.cross_validation import cross_validate

ENCODER = "properties.encoder."
BACKBONE = ENCODER + "backbone."
PAINN = {
    ENCODER + "name": "yu",
    BACKBONE + "features": 64,
    BACKBONE + "interactions": 2,
    BACKBONE + "cutoff": 4.0,
    BACKBONE + "epsilon": 1e-8,  # as published
}
LARGER = {**PAINN, BACKBONE + "interactions": 3, BACKBONE + "cutoff": 5.0}
ALONE = {ENCODER + "descriptor": None}
DESCRIPTOR = {ENCODER + "name": "yu", ENCODER + "backbone": None}
REGNET = {ENCODER + "name": "regnet", ENCODER + "features": 64, ENCODER + "waves": 32}
PRDNET = {ENCODER + "name": "prdnet", ENCODER + "features": 64, ENCODER + "blocks": 3}
CRYSTOGRAPH = {
    ENCODER + "name": "crystograph",
    ENCODER + "features": 64,
    ENCODER + "blocks": 2,
    ENCODER + "edge_features": 32,
}
MOCE = {ENCODER + "name": "moce", ENCODER + "features": 64, ENCODER + "blocks": 2, ENCODER + "reach": 6.0}
DIFFRACTION = "properties.diffraction."
# as wide as the encoders; a sphere of 3/A has a fifth of the waves of that of 5/A, which is the default
SCATTERED = {
    DIFFRACTION + "use": "on",
    DIFFRACTION + "features": 64,
    DIFFRACTION + "channels": 8,
    DIFFRACTION + "basis": 8,
    DIFFRACTION + "k_cutoff": 3.0,
}
UNSCATTERED = {DIFFRACTION + "use": "off"}
MILLER = {
    DIFFRACTION + "use": "on",
    DIFFRACTION + "features": 64,
    DIFFRACTION + "variant": "published",
    DIFFRACTION + "max_index": 3,
}
# 1/A; perovskites of 300 A^3 have some twenty waves below it, and validation rows saw no use in more beside a network
FEW_WAVES = {ENCODER + "descriptor.k_cutoff": 2.0}

TREES = {ENCODER + "name": "statistics", "properties.head.kind": "trees"}

HOIP_SPLITS = 5
HOIP = {
    "PaiNN, 2 steps, 4 A": {**PAINN, **ALONE},
    "PaiNN, 2 steps, 4 A + potential": {**PAINN, **FEW_WAVES, ENCODER + "descriptor.form": "potential"},
    "PaiNN, 2 steps, 4 A + descriptor": {**PAINN, **FEW_WAVES},
    "PaiNN, 3 steps, 5 A": {**LARGER, **ALONE},
    "CGCNN": {ENCODER + "name": "cgcnn"},
    "statistics": {ENCODER + "name": "statistics"},
    "statistics, trees": TREES,
    "descriptor": DESCRIPTOR,
    "ReGNet, no filters": {**REGNET, ENCODER + "reciprocal": False},
    "ReGNet": REGNET,
    # PRDNet's Table 4: the same networks with diffraction beside them
    "CGCNN + diffraction": {ENCODER + "name": "cgcnn", **SCATTERED},
    "PaiNN, 2 steps, 4 A + diffraction": {**PAINN, **ALONE, **SCATTERED},
    "ReGNet + diffraction": {**REGNET, **SCATTERED},
}

# Encoders and their printed forms, for every suite.
ENCODERS = {
    "PRDNet": {**PRDNET, **SCATTERED},
    "PRDNet, no diffraction": {**PRDNET, **UNSCATTERED},
    "PRDNet, published": {**PRDNET, **MILLER},
    "CrysToGraph": CRYSTOGRAPH,
    "CrysToGraph, published": {**CRYSTOGRAPH, ENCODER + "variant": "published"},
    "CrysToGraph, released": {**CRYSTOGRAPH, ENCODER + "variant": "released"},
    "MoCE": MOCE,
    "MoCE, published": {**MOCE, ENCODER + "variant": "published"},
    "ReGNet": REGNET,
    "ReGNet, published": {**REGNET, ENCODER + "variant": "literal"},
    "PaiNN, 2 steps, 4 A + descriptor": {**PAINN, **FEW_WAVES},
    "PaiNN, 2 steps, 4 A + descriptor, published": {
        **PAINN,
        **FEW_WAVES,
        ENCODER + "descriptor.variant": "published",
    },
    "statistics": {ENCODER + "name": "statistics"},
    "statistics, ensemble of 5": {ENCODER + "name": "statistics", "training.ensemble": 5},
    "statistics, trees": TREES,
}

JDFT2D = {
    "CGCNN": {ENCODER + "name": "cgcnn"},
    "PaiNN, 2 steps, 4 A": {**PAINN, **ALONE},
    "descriptor": {**DESCRIPTOR, **FEW_WAVES},
    "ReGNet, no filters": {**REGNET, ENCODER + "reciprocal": False},
    **ENCODERS,
    "statistics, ensemble of 20": {ENCODER + "name": "statistics", "training.ensemble": 20},
}

# vacancies of one host stand in several folds of UnconvBench; published errors are those of models that saw them
AS_PUBLISHED = {"data.split": "random"}
VACANCIES = {
    **ENCODERS,
    # the same, but that no fold tests a vacancy of a host that it trains on
    "statistics, hosts apart": {ENCODER + "name": "statistics", "data.split": "structure"},
    "statistics, trees, hosts apart": {**TREES, "data.split": "structure"},
}

# Suites: task, target, its unit, rows of the table, what these have in common.
SUITES: dict[str, tuple[SuiteTask, str, str, dict[str, dict[str, Any]], dict[str, Any]]] = {
    "jdft2d": (MatBenchTask("matbench_jdft2d"), "exfoliation_en", "meV/atom", JDFT2D, {}),
    "defected": (UnconvTask("unconvbench_defected"), "E_vac", "eV", VACANCIES, AS_PUBLISHED),
}

# Two-dimensional crystals of JARVIS-DFT: target, file, unit; dielectric constants are learned as logarithms.
SHEETS = {
    "e_form": ("jarvis_dft_2d_eform_2022-04-11", "eV/atom"),
    "gap_opt": ("jarvis_dft_2d_gap_opt_2022-04-11", "eV"),
    "gap_tbmbj": ("jarvis_dft_2d_gap_tbmbj_2022-04-11", "eV"),
    "dielectric_opt": ("jarvis_dft_2d_dielectric_opt_2022-04-11", ""),
    "dielectric_tbmbj": ("jarvis_dft_2d_dielectric_tbmbj_2022-04-11", ""),
}
LOGARITHMIC = ("dielectric_opt", "dielectric_tbmbj")
HEADS = {
    "shared": {"properties.head.kind": "shared"},
    "experts, 4 of 15": {"properties.head.kind": "experts", "training.lr": 3e-3},
    "experts, 4 of 4": {"properties.head.kind": "experts", "properties.head.experts": 4, "training.lr": 3e-3},
}
FOLDS = 5

EPOCHS = {"hoip": 60, "jdft2d": 100, "defected": 40, "multitask": 100}
TRAINING = {"training.lr": 2e-3, "training.patience": 1000}
# the suites have no validation rows: all but a few of a fold train, and these decide nothing
NO_VALIDATION = {"data.valid_fraction": 0.01, "training.keep": "last"}
# a network of a few wide layers bears larger steps than a graph network
STATISTICS = {"training.lr": 1e-2, "training.weight_decay": 5e-2}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=list(EPOCHS))
    parser.add_argument("data", type=Path)
    parser.add_argument("--only", default="", help="the row of this name, or all whose name holds this word")
    parser.add_argument("--out", type=Path, default=Path("runs/properties"), help="where runs lie, for another time")
    arguments = parser.parse_args()
    what, own = arguments.what, (arguments.data, arguments.out / arguments.what, arguments.only)
    rows = suite(what, *own) if what in SUITES else {"hoip": hoip, "multitask": multitask}[what](*own)
    # rows that were fitted another time stay
    stored = RESULTS / f"properties-{what}.json"
    before = json.loads(stored.read_text())["records"] if stored.exists() else []
    records = {_key(record): record for record in before}
    for record in rows:
        records[_key(record)] = record
        content = {"machine": machine(), "epochs": EPOCHS[what], "training": _training()}
        write(stored.stem, {**content, "records": list(records.values())})
    _table(what, list(records.values()))
    print("wrote", stored)


def hoip(data: Path, out: Path, only: str) -> Iterator[dict[str, Any]]:
    """Mean absolute errors of the gap over random splits, 80/10/10 by structure."""
    for name, settings in _chosen(HOIP, only):
        own = {**_common("hoip", name), "properties.units": {"gap_hse06": "eV"}, **settings}
        runs = [
            _fitted(data, out / _folder(name) / f"split-{seed}", {**own, "data.split_seed": seed}, "gap_hse06")
            for seed in range(HOIP_SPLITS)
        ]
        yield {"model": name, "settings": settings, **_means(runs)}


def suite(what: str, data: Path, out: Path, only: str) -> Iterator[dict[str, Any]]:
    """The same of a task over the folds of its suite."""
    task, target, unit, rows, common = SUITES[what]
    for name, settings in _chosen(rows, only):
        own = {**_common(what, name), **NO_VALIDATION, **common, "properties.units": {target: unit}, **settings}
        folds = _validated(data, out / _folder(name), own, [target], task)
        yield {"model": name, "settings": settings, **_means(folds[target])}


def multitask(data: Path, out: Path, only: str) -> Iterator[dict[str, Any]]:
    """The same of several properties, each alone and all together by two kinds of head; folds by structure."""
    joined = out / "sheets.extxyz"
    if not joined.exists():
        _join(data, joined)
    units = {name: unit for name, (_, unit) in SHEETS.items()}
    base = {**_common("multitask", "statistics"), ENCODER + "name": "statistics"}
    if only in "alone":
        for target in SHEETS:
            own = {**base, "properties.log": [target] if target in LOGARITHMIC else []}
            own["properties.units"] = {target: units[target]}
            folds = _validated(joined, out / f"alone-{target}", own, [target])
            yield {"model": "alone", "target": target, **_means(folds[target])}
    for name, settings in _chosen(HEADS, only):
        own = {**base, **settings, "properties.log": list(LOGARITHMIC), "properties.units": units}
        folds = _validated(joined, out / _folder(name), own, list(SHEETS))
        for target in SHEETS:
            yield {"model": name, "target": target, **_means(folds[target])}


def _key(record: dict[str, Any]) -> tuple[str, str]:
    return record["model"], record.get("target", "")


def _chosen(rows: dict[str, dict[str, Any]], only: str) -> list[tuple[str, dict[str, Any]]]:
    names = [only] if only in rows else [name for name in rows if only in name]
    return [(name, rows[name]) for name in names]


def _training() -> dict[str, Any]:
    """What all rows have in common, and what is different for statistics."""
    usual = PROPERTY_DEFAULTS["training"]
    return {**{f"training.{name}": value for name, value in usual.items()}, **TRAINING, "statistics": STATISTICS}


def _common(what: str, name: str) -> dict[str, Any]:
    epochs = {"training.max_epochs": EPOCHS[what], "training.warmup_epochs": EPOCHS[what] / 10}
    return {**TRAINING, **epochs, **(STATISTICS if name.startswith("statistics") else {})}


def _folder(name: str) -> str:
    return name.replace(" ", "-").replace(",", "")


def _fitted(data: Path, out: Path, settings: dict[str, Any], target: str) -> dict[str, Any]:
    """Test errors of one fit, and what it took."""
    if not (out / "results.json").exists():
        settings = {"task": "property", "properties.targets": [target], **settings}
        fit(data, out=out, settings=settings, overwrite=True, verbose=False)
    results = json.loads((out / "results.json").read_text())
    found = results["test"][target] | {"seconds": results["stages"][-1]["seconds"]}
    print(out, f"{found['mae']:.4g}", f"{found['seconds']:.0f} s", flush=True)
    return found


def _validated(
    data: Path, out: Path, settings: dict[str, Any], targets: list[str], suite: SuiteTask | None = None
) -> dict[str, list[dict[str, Any]]]:
    """The same for each fold, by target."""
    begun = (out / "config.yaml").exists()
    own = {"properties.targets": targets, **settings}
    cross_validate(data, out=out, folds=FOLDS, suite=suite, settings=own, resume=begun, verbose=False)
    results = json.loads((out / "results.json").read_text())
    seconds = [_seconds(folder) for folder in sorted(out.glob("fold-*/"))]
    for target in targets:
        print(out, target, [f"{fold[target]['mae']:.4g}" for fold in results["folds"]], flush=True)
    return {t: [fold[t] | {"seconds": s} for fold, s in zip(results["folds"], seconds, strict=True)] for t in targets}


def _seconds(run: Path) -> float:
    """That the fit in a directory took, or all of an ensemble."""
    members = sorted(run.glob("member-*/")) or [run]
    return sum(json.loads((m / "results.json").read_text())["stages"][-1]["seconds"] for m in members)


def _means(runs: list[dict[str, Any]]) -> dict[str, Any]:
    values = np.array([run["mae"] for run in runs])
    return {
        "mae": float(values.mean()),
        "spread": float(values.std(ddof=1)),
        "each": values.tolist(),
        "rmse": float(np.mean([run["rmse"] for run in runs])),
        "seconds of a fit": float(np.mean([run["seconds"] for run in runs])),
    }


def _join(folder: Path, path: Path) -> None:
    """One row for each crystal with all that is known of it; crystals are one by their id."""
    import ase.io

    crystals: dict[str, Any] = {}
    for target, (name, _) in SHEETS.items():
        for row in read_rows(folder / f"{name}.xyz.gz"):
            own = crystals.setdefault(row.atoms.info["mpid"], row.atoms)
            if own.get_chemical_formula() == row.atoms.get_chemical_formula():
                own.info[target] = float(row.atoms.info[target])
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = []
    for name, atoms in crystals.items():
        atoms.info = {"id": name} | {target: atoms.info[target] for target in SHEETS if target in atoms.info}
        kept.append(atoms)
    ase.io.write(path, kept, format="extxyz")


def _table(title: str, records: list[dict[str, Any]]) -> None:
    lines = [
        [
            f"{r['model']} {r.get('target', '')}".strip(),
            f"{r['mae']:.4g} +- {r['spread']:.2g}",
            f"{r['rmse']:.4g}",
            f"{r['seconds of a fit']:.0f}",
        ]
        for r in records
    ]
    Console().table(title, ["model", "MAE", "RMSE", "s / fit"], lines)


if __name__ == "__main__":
    main()
