"""The NaCl table of Yu et al. 2022 (arXiv:2211.16684, Table 2): which models learn a Coulomb crystal from 54 atoms?

    python benchmarks/nacl.py --resume                 the whole protocol; days on a CPU
    python benchmarks/nacl.py --resume --backbone painn --train 400 --features 32 --epochs 20 --seeds 1

Labels are Ewald energies and forces between fixed charges +1 and -1 e (datasets/nacl). Every model is fitted to rows of
54 atoms alone, and tested on 1,000 others, on 200 cells of 432 atoms, and on 200 such cells that lack an atom. Data and
fits that are missing in --out are made; --resume goes on with what is there. Options cut the fits, never the tests;
each record says what was run.

`default` contains the physics of this model system: Coulomb's law in both spaces, and charges that a linear fit finds
before any training. `published` contains neither: a free function of |k|, charges shifted to neutrality, no envelope.
`free` is that function with lrpot's envelope and background, fitted before the network. A fit in one stage has as many
epochs as three stages together. Forces are fitted too, but where a row says `energies only`.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import readme_tables
import torch
import yaml
from ase.calculators.singlepoint import SinglePointCalculator
from nacl_picture import draw
from timing import RESULTS, machine

import lrpot
from lrpot.data.readers import to_structure
from lrpot.evaluation import Evaluation, evaluate_structures
from lrpot.files import atomic_path, write_text
from lrpot.structure import Structure

RECORD = yaml.safe_load((Path(__file__).resolve().parents[1] / "datasets/nacl/record.yaml").read_text())
SMALL, LARGE, VACANCY = "nacl.extxyz", "nacl_432.extxyz", "nacl_431.extxyz"
SPLIT = {part: range(*RECORD["split"][part]) for part in ("train", "validation", "test")}
HELD_BACK = f"{SPLIT['test'].start}:{SPLIT['test'].stop}"
# by labels: tests, their files and rows
TESTS = {
    "total": {"3x3x3": (SMALL, HELD_BACK), "6x6x6": (LARGE, ":"), "6x6x6, vacancy": (VACANCY, ":")},
    "reciprocal": {"3x3x3": (SMALL, HELD_BACK)},
}

CUTOFF = 5.0  # A
LR = 5e-3
WIDTH = {"painn": 64, "dimenet++": 128}  # defaults of lrpot
DEPTH = {"painn": 3, "dimenet++": 4}
NO_NETWORK = "none"

Settings = dict[str, Any]
ALONE: Settings = {"model.kernel.form": "none"}
# charges +1 and -1: only their ratio says anything, for their size is a factor of the free kernel
FREE: Settings = {"model.kernel.form": "free", "model.charges.init": "oxidation"}
PUBLISHED: Settings = FREE | {"model.kernel.envelope": 1.0, "model.charges.neutrality": "shift"}
ONE: Settings = {"training.stages": 1}
PUBLISHED_SCHEDULE: Settings = {"training.schedule": "published"}
# what Yu et al. seem to have fitted
ENERGIES: Settings = {"training.force_weight": 0.0}
# of the reciprocal part of a sum over Gaussians exp(-eta r^2), which ends where the labels have no more digits
ETA, DIGITS = RECORD["settings"]["eta"], RECORD["settings"]["acc_factor"]
RECIPROCAL: Settings = {
    "training.schedule": "long-range-only",
    "model.kernel.complement": "none",
    "model.kernel.k_cutoff": 2.0 * math.sqrt(ETA * DIGITS * math.log(10.0)),
    "model.charges.init": "oxidation",
}

MODELS: dict[str, Settings] = {
    "network alone": ALONE,
    "published, one step": PUBLISHED | ONE,
    "published, three steps": PUBLISHED | PUBLISHED_SCHEDULE,
    "energies only, network alone": ENERGIES | ALONE,
    "energies only, published, one step": ENERGIES | PUBLISHED | ONE,
    "energies only, published, three steps": ENERGIES | PUBLISHED | PUBLISHED_SCHEDULE,
    "free, physics-first": FREE | {"training.schedule": "physics-first"},
    "default, one step": ONE,
    "default, published schedule": PUBLISHED_SCHEDULE,
    "default, physical-start": {"training.schedule": "physical-start"},
    "default, physics-first": {"training.schedule": "physics-first"},
    "default, physics-first from ±0.5 e": {
        "training.schedule": "physics-first",
        "model.charges.init": {"Na": 0.5, "Cl": -0.5},
    },
}
RECIPROCAL_MODELS: dict[str, Settings] = {
    "published": RECIPROCAL | PUBLISHED,
    "free": RECIPROCAL | FREE,
    "default, told another width": RECIPROCAL | {"model.kernel.sigma": 1.5},
    "default": RECIPROCAL | {"model.kernel.sigma": 1.0 / math.sqrt(2.0 * ETA)},  # 2.24 A
}


@dataclass(frozen=True)
class Job:
    """One fit: what is fitted to which labels, and by how much work."""

    labels: str
    backbone: str
    model: str
    seed: int
    train: int
    features: int
    interactions: int
    epochs: int  # of each stage

    @property
    def name(self) -> str:
        return f"{self.labels} energy, {self.backbone}, {self.model}, seed {self.seed}"

    @property
    def folder(self) -> str:
        words = (self.labels, self.backbone, self.model, f"seed-{self.seed}")
        return "/".join(word.replace(",", "").replace(" ", "-").replace("±", "") for word in words)

    @property
    def settings(self) -> Settings:
        """Of `lrpot fit`, without the data."""
        alone = self.backbone == NO_NETWORK
        backbone: Settings = {
            "name": "painn" if alone else self.backbone,
            "features": self.features,
            "interactions": self.interactions,
            "cutoff": CUTOFF,
        }
        if backbone["name"] == "painn":
            backbone |= {"epsilon": 1e-8}  # as published
        if self.backbone == "dimenet++":  # the other widths, in the ratios of lrpot's defaults
            backbone |= {"triplet_features": max(self.features // 2, 1), "output_features": 2 * self.features}
        models = RECIPROCAL_MODELS if alone else MODELS
        chosen = models[self.model]
        one = alone or chosen.get("training.stages") == 1 or chosen.get("model.kernel.form") == "none"
        epochs = 3 * self.epochs if one else self.epochs
        common: Settings = {"training.seed": self.seed, "training.max_epochs": epochs}
        if not one:
            common["training.per_stage"] = {3: {"lr": LR}}  # all stages began alike when these rows were fitted
        return {f"model.backbone.{name}": value for name, value in backbone.items()} | common | chosen


def main() -> None:
    arguments = parse()
    out: Path = arguments.out
    if (out / "fits").exists() and not arguments.resume:
        sys.exit(f"{out}: holds fits; go on with them by --resume, or choose another --out")
    torch.set_num_threads(1)
    make_data(out / "data")
    for job in jobs(arguments):
        if arguments.only in job.name:
            run(job, out)
    # what was fitted elsewhere stays
    stored = RESULTS / "nacl.json"
    before = json.loads(stored.read_text())["records"] if stored.exists() else []
    found = [json.loads(path.read_text()) for path in (out / "fits").rglob("tests.json")]
    records = {(record["job"]["labels"], *place(record)): record for record in [*before, *found]}
    content = {"machine": machine(), "records": sorted(records.values(), key=place)}
    for table in readme_tables.nacl(content):
        print(table, end="\n\n")
    write_text(stored, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    print("wrote", stored)
    if picture := draw(out / "fits" / "total" / "painn"):
        print("wrote", picture)


def parse() -> argparse.Namespace:
    kinds = (*WIDTH, NO_NETWORK)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/nacl"), help="data and fits (default: runs/nacl)")
    parser.add_argument("--resume", action="store_true", help="go on with the fits in --out")
    parser.add_argument("--backbone", choices=kinds, action="append", help="none: reciprocal potential (default: all)")
    parser.add_argument("--only", default="", help="fits whose name holds this")
    parser.add_argument("--train", type=int, default=len(SPLIT["train"]), help="rows; an eighth as many validate")
    parser.add_argument("--features", type=int, help="width of the network (default: of lrpot)")
    parser.add_argument("--interactions", type=int, help="steps of the network (default: of lrpot)")
    parser.add_argument("--epochs", type=int, default=100, help="of each stage (default: 100)")
    parser.add_argument("--seeds", type=int, default=3, help="fits of each model (default: 3)")
    arguments = parser.parse_args()
    if not 8 <= arguments.train <= len(SPLIT["train"]):
        parser.error(f"--train {arguments.train}: give 8 to {len(SPLIT['train'])} rows")
    arguments.backbone = arguments.backbone or kinds
    return arguments


def make_data(folder: Path) -> None:
    """The three sets, by the commands of their record."""
    folder.mkdir(parents=True, exist_ok=True)
    for command in RECORD["source"]["commands"].values():
        words = shlex.split(command)
        if not (folder / words[words.index("--out") + 1]).exists():
            subprocess.run([Path(sys.executable).parent / words[0], *words[1:]], cwd=folder, check=True)


def jobs(arguments: argparse.Namespace) -> Iterator[Job]:
    """In an order that gives a whole table early: all models with the first seed, then with the next."""
    for seed in range(arguments.seeds):
        for backbone in arguments.backbone:
            if backbone == NO_NETWORK:
                size = (arguments.train, 1, 1, arguments.epochs)  # the network stays zero
                yield from (Job("reciprocal", backbone, model, seed, *size) for model in RECIPROCAL_MODELS)
                continue
            width, depth = arguments.features or WIDTH[backbone], arguments.interactions or DEPTH[backbone]
            size = (arguments.train, width, depth, arguments.epochs)
            yield Job("reciprocal", backbone, "network alone", seed, *size)
            yield from (Job("total", backbone, model, seed, *size) for model in MODELS)


def place(record: dict[str, Any]) -> tuple[int, ...]:
    """Of a record in the table."""
    job, orders = record["job"], ([*WIDTH, NO_NETWORK], [*MODELS, *RECIPROCAL_MODELS])
    return *(order.index(job[name]) for order, name in zip(orders, ("backbone", "model"), strict=True)), job["seed"]


def run(job: Job, out: Path) -> None:
    """Fit and test, unless that was done."""
    folder, data = out / "fits" / job.folder, out / "data"
    found = folder / "tests.json"
    if found.exists():
        if (before := json.loads(found.read_text())["job"]) != asdict(job):
            sys.exit(f"{folder}: was fitted as {before}; choose another --out for {asdict(job)}")
        return
    print(f"--- {job.name}", flush=True)
    files = {
        "data.train": str(file_of(data, job.labels, "train", job.train)),
        "data.valid": str(file_of(data, job.labels, "validation", job.train // 8)),
        "data.test_fraction": 0.0,
    }
    resume = (folder / "config.yaml").exists()
    fitted = lrpot.fit(out=folder, settings=job.settings | files, resume=resume)
    evaluations = {
        test: evaluate_structures(fitted.model, structures(data / file, rows, job.labels))
        for test, (file, rows) in TESTS[job.labels].items()
    }
    keep_predictions(folder / "predictions.npz", evaluations)
    stages = [
        {name: stage[name] for name in ("title", "epochs", "seconds", "charges", "validation") if name in stage}
        for stage in fitted.stages
    ]
    errors = {test: evaluation.errors() for test, evaluation in evaluations.items()}
    record = {"job": asdict(job), "valid": job.train // 8, "test": errors, "stages": stages}
    write_text(found, json.dumps(record))
    for test, error in errors.items():
        print(f"{test}:", *(f"{name} {error[name]['mae']:.2e}" for name in ("energy", "forces") if name in error))


def file_of(data: Path, labels: str, part: str, n: int) -> Path:
    """The first rows of a part of the small cells."""
    path = data / f"{labels}-{part}-{n}.extxyz"
    if not path.exists():
        start = SPLIT[part].start
        with atomic_path(path) as temporary:
            ase.io.write(temporary, labelled(data / SMALL, f"{start}:{start + n}", labels))
    return path


@cache
def structures(file: Path, rows: str, labels: str) -> list[Structure]:
    """With edges; kept for the fits to come."""
    return [to_structure(atoms, CUTOFF) for atoms in labelled(file, rows, labels)]


def labelled(file: Path, rows: str, labels: str) -> list[ase.Atoms]:
    """Rows with total energies and forces, or with the reciprocal part of the energy as their only label."""
    found = ase.io.read(file, rows)
    if labels == "reciprocal":
        for atoms in found:
            atoms.calc = SinglePointCalculator(atoms, energy=atoms.info["energy_reciprocal"])
    return found


def keep_predictions(path: Path, evaluations: dict[str, Evaluation]) -> None:
    """For pictures: "TEST/QUANTITY/reference" and "TEST/QUANTITY/predicted"."""
    arrays = {}
    for test, evaluation in evaluations.items():
        for quantity, reference in evaluation.reference.items():
            arrays[f"{test}/{quantity}/reference"] = reference.numpy()
            arrays[f"{test}/{quantity}/predicted"] = evaluation.predicted[quantity].numpy()
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


if __name__ == "__main__":
    main()
