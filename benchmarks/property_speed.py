"""Encoders of crystals: the time of a prediction, time and memory of a training step, CrysToGraph beside plain code.

    python benchmarks/property_speed.py [--only memory|prediction|crystograph]

Settings are the defaults; one thread, float32. Predictions are of single crystals of 20 atoms whose graphs are there.
Memory is the most that a process of its own has held, python and torch included, in which one batch of four cells of
500 atoms was trained on. The plain code is CrysToGraph as its equations are printed, by torch_geometric, with the same
weights; before anything is timed both must agree.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from ase import Atoms
from cells import random_cell, supercell
from plain_crystograph import PlainCrysToGraph
from timing import RESULTS, alternate, machine, median_ratio, write
from torch import nn
from torch_geometric.data import Batch

from lrpot.config import make_config
from lrpot.console import Console
from lrpot.data.readers import to_structure
from lrpot.properties.build import build_property_model
from lrpot.properties.crystograph import CrysToGraph
from lrpot.properties.model import PropertyModel
from lrpot.structure import Structure, collate

# What is measured, by settings of `properties`.
MODELS: dict[str, dict[str, Any]] = {
    "ReGNet": {"encoder": {"name": "regnet"}},
    "PaiNN + descriptor": {"encoder": {"name": "yu"}},
    "CGCNN": {"encoder": {"name": "cgcnn"}},
    "PRDNet": {"encoder": {"name": "prdnet"}},
    "PRDNet, no diffraction": {"encoder": {"name": "prdnet"}, "diffraction": {"use": "off"}},
    "PRDNet, published": {"encoder": {"name": "prdnet"}, "diffraction": {"variant": "published"}},
    "CrysToGraph": {"encoder": {"name": "crystograph"}},
    "CrysToGraph, published": {"encoder": {"name": "crystograph", "variant": "published"}},
    "MoCE": {"encoder": {"name": "moce"}},
    "MoCE, published": {"encoder": {"name": "moce", "variant": "published"}},
}
ELEMENTS = (11, 13, 16, 17, 30, 55)  # of the cells

ATOMS, CRYSTALS = 20, 6  # of predictions
LARGE_ATOMS, LARGE_CELLS = 500, 4  # of a training step; both kinds of cell
# of training steps of CrysToGraph: atoms of a cell, cells in a batch
BATCHES = {"32 cells of 8 atoms": (8, 32), "16 cells of 20 atoms": (20, 16), "4 cells of 100 atoms": (100, 4)}
AGREEMENT = 1e-4  # relative, of features in float32
ROUNDS = {"prediction": 20, "crystograph": 8}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(PARTS), help="one part; the others stay as they are in the JSON")
    parser.add_argument("--step", choices=list(MODELS), help=argparse.SUPPRESS)  # in a process of its own
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.step:
        print(json.dumps(step_of(arguments.step)))
        return
    parts = {name: part() for name, part in PARTS.items() if arguments.only in (None, name)}
    stored = RESULTS / "property_speed.json"
    before = json.loads(stored.read_text()) if stored.exists() else {}
    print("wrote", write("property_speed", {**before, "machine": machine(), **parts}))


def predictions() -> dict[str, Any]:
    """Milliseconds by model."""
    crystals = [random_cell(ATOMS, seed) for seed in range(CRYSTALS)]
    models = {name: model_of(name).eval() for name in MODELS}
    ready = {name: structures_of(model, crystals) for name, model in models.items()}

    def one_after_another(name: str) -> Callable[[], object]:
        turns = itertools.cycle(ready[name])
        return lambda: models[name].predict(next(turns))

    seconds = alternate({name: one_after_another(name) for name in MODELS}, ROUNDS["prediction"])
    first = next(iter(MODELS))
    records = [
        {
            "model": name,
            "parameters": sum(parameter.numel() for parameter in models[name].parameters()),
            "milliseconds": 1e3 * statistics.median(own),
            f"over {first}": median_ratio(own, seconds[first]),
        }
        for name, own in seconds.items()
    ]
    lines = [
        [r["model"], f"{r['parameters']:,}", f"{r['milliseconds']:.1f}", f"{r[f'over {first}']:.2f}"] for r in records
    ]
    columns = ["model", "parameters", "ms", f"over {first}"]
    Console().table(f"prediction of a crystal of {ATOMS} atoms, one thread", columns, lines)
    return {"atoms": ATOMS, "records": records}


def memory() -> dict[str, Any]:
    """Seconds of a step, and the most that its process held, by model."""
    records = []
    for name in MODELS:
        command = [sys.executable, str(Path(__file__).resolve()), "--step", name]
        finished = subprocess.run(command, capture_output=True, text=True)
        if finished.returncode:
            raise SystemExit(f"{name}: the step failed\n{finished.stderr}")
        records.append({"model": name, **json.loads(finished.stdout.splitlines()[-1])})
        print(records[-1], flush=True)
    lines = [[r["model"], f"{r['edges']:,}", f"{r['s']:.1f}", f"{r['peak (GB)']:.2f}"] for r in records]
    title = f"training step, {LARGE_CELLS} cells of {LARGE_ATOMS} atoms"
    Console().table(title, ["model", "edges", "s", "peak (GB)"], lines)
    return {"atoms": LARGE_ATOMS, "cells": LARGE_CELLS, "records": records}


def step_of(name: str) -> dict[str, Any]:
    """One step of training, and what the process held so far."""
    model = model_of(name).train()
    optimiser = torch.optim.AdamW(model.parameters())
    makers = itertools.cycle((supercell, random_cell))
    cells = [next(makers)(LARGE_ATOMS, seed) for seed in range(LARGE_CELLS)]
    batch = collate(structures_of(model, cells))
    began = time.perf_counter()
    model(batch).values.square().mean().backward()
    optimiser.step()
    seconds = time.perf_counter() - began
    # Linux counts in kilobytes
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"edges": batch.num_edges, "s": seconds, "peak (GB)": peak / 1e9}


def beside_plain_code() -> dict[str, Any]:
    """Training steps of CrysToGraph by both codes."""
    torch.manual_seed(0)
    fast = CrysToGraph()
    plain = PlainCrysToGraph(fast)
    plain.put_into_shared()
    records = []
    for case, (n_atoms, n_cells) in BATCHES.items():
        cells = [make(n_atoms, seed) for seed in range(n_cells // 2) for make in (supercell, random_cell)]
        batch = collate([to_structure(atoms, fast.cutoff, shells=fast.shells, labels=False) for atoms in cells])
        check_agreement(batch, fast, plain)
        seconds = alternate(
            {"lrpot": lambda batch=batch: step(fast, batch), "torch_geometric": lambda batch=batch: step(plain, batch)},
            ROUNDS["crystograph"],
            warmup=1,
        )
        records.append(
            {
                "case": case,
                "edges": batch.num_edges,
                "crystals/s": {code: n_cells / statistics.median(own) for code, own in seconds.items()},
                "lrpot / torch_geometric": median_ratio(seconds["torch_geometric"], seconds["lrpot"]),
            }
        )
    lines = [
        [
            r["case"],
            f"{r['edges']:,}",
            *(f"{rate:.1f}" for rate in r["crystals/s"].values()),
            f"{r['lrpot / torch_geometric']:.2f}",
        ]
        for r in records
    ]
    columns = ["batch", "edges", "lrpot (crystals/s)", "torch_geometric", "ratio"]
    Console().table("training steps of CrysToGraph, one thread", columns, lines)
    return {"records": records}


def model_of(name: str) -> PropertyModel:
    torch.manual_seed(0)
    config = make_config({"task": "property", "properties": {"targets": ["gap"], **MODELS[name]}})
    with warnings.catch_warnings():  # the names of the models say which are the published forms
        warnings.simplefilter("ignore")
        return build_property_model(config.properties, ELEMENTS)


def structures_of(model: PropertyModel, crystals: Sequence[Atoms]) -> list[Structure]:
    return [to_structure(atoms, model.cutoff, shells=model.shells, labels=False) for atoms in crystals]


def step(network: nn.Module, batch: Batch) -> None:
    """Of training, but for the optimiser."""
    network.zero_grad()
    network(batch).graph.square().mean().backward()


def check_agreement(batch: Batch, *networks: nn.Module) -> None:
    with torch.no_grad():
        ours, theirs = (network.train()(batch).graph for network in networks)
    if float((ours - theirs).abs().max()) > AGREEMENT * float(ours.abs().max()):
        raise SystemExit("the two codes disagree; the comparison would mean nothing")


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "prediction": predictions,
    "memory": memory,
    "crystograph": beside_plain_code,
}

if __name__ == "__main__":
    main()
