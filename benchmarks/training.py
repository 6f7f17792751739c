"""Epochs of `lrpot fit` beside SchNetPack's trainer: the same PaiNN, weights, crystals and batches, energy and forces.

    python benchmarks/training.py

PaiNN, F=64, three interactions, cutoff 5 A, on NaCl of 54 atoms. lrpot's potential has a long-range part beside it,
which SchNetPack's lacks. Epochs count with their validation; starting, reading and building graphs or neighbour lists
do not: SchNetPack's are cached by its `CachedNeighborList`. Loading of data is what it takes to make an epoch's batches
alone.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import torch
from ase import Atoms
from schnetpack_peer import CUTOFF, make_network, same_in_lrpot, spk
from timing import machine, write

import lrpot
from lrpot.config import make_config
from lrpot.console import Console
from lrpot.data.cache import load_graphs
from lrpot.data.graph_builder import GraphSettings
from lrpot.data.graphs import Graphs
from lrpot.model_file import ModelInfo, save
from lrpot.training.batches import train_loader

TRAIN, VALID = 128, 16  # structures
FEATURES = 64
BATCH_SIZES = (4, 16)
EPOCHS = (2, 6)  # what the longer fit takes longer counts
THEIR_EPOCHS = 4  # the first, in which neighbours are cached, does not count
LR = 1e-4


def main() -> None:
    torch.set_num_threads(1)
    records = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        rows = folder / "nacl.extxyz"
        words = ["data", "nacl", "--n", TRAIN + VALID, "--out", rows]
        subprocess.run(
            [sys.executable, "-m", "lrpot.cli.main", *map(str, words)], check=True, stdout=subprocess.DEVNULL
        )
        crystals = ase.io.read(rows, ":")
        for name, part in (("train", crystals[:TRAIN]), ("valid", crystals[TRAIN:])):
            ase.io.write(folder / f"{name}.extxyz", part)
        for batch_size in BATCH_SIZES:
            network = make_network(FEATURES).train()
            theirs = their_epoch(folder / f"{batch_size}", crystals, network, batch_size)
            our_fit(folder, batch_size, 1)  # what is compiled is compiled now
            short, long = (our_fit(folder, batch_size, epochs) for epochs in EPOCHS)
            ours = (long - short) / (EPOCHS[1] - EPOCHS[0])
            loading = our_loading(folder, batch_size)
            records.append(
                {
                    "batch": batch_size,
                    "structures/s": {"lrpot": TRAIN / ours, "SchNetPack": TRAIN / theirs},
                    "lrpot / SchNetPack": theirs / ours,
                    "loading / epoch": loading / ours,
                    "loading (structures/s)": TRAIN / loading,
                }
            )
            print(records[-1], flush=True)
    lines = [
        [
            str(record["batch"]),
            *(f"{value:.0f}" for value in record["structures/s"].values()),
            f"{record['lrpot / SchNetPack']:.1f}",
            f"{100 * record['loading / epoch']:.1f} %",
            f"{record['loading (structures/s)']:.0f}",
        ]
        for record in records
    ]
    columns = ["batch", "lrpot (1/s)", "SchNetPack (1/s)", "ratio", "loading", "loaded (1/s)"]
    Console().table("training of PaiNN, structures per second, one thread", columns, lines)
    content = {"machine": machine(), "features": FEATURES, "train": TRAIN, "valid": VALID, "records": records}
    print("wrote", write("training", content))


def our_fit(folder: Path, batch_size: int, epochs: int) -> float:
    """Seconds of a whole fit that begins with SchNetPack's weights and charges of +-1 e."""
    model = same_in_lrpot(make_network(FEATURES), "coulomb").set_precision(torch.float32)
    settings: dict[str, Any] = {
        "data.valid": str(folder / "valid.extxyz"),
        "data.test_fraction": 0.0,
        "training.batch_size": batch_size,
        "training.max_epochs": epochs,
        "training.lr": LR,
    }
    model_settings = {
        "model.backbone.features": FEATURES,
        "model.backbone.cutoff": CUTOFF,
        "model.backbone.cutoff_function": "cosine",
    }
    model.info = ModelInfo(make_config(None, model_settings).model_dump(mode="json"), ["Na", "Cl"])
    start = save(model, folder / "start.pt")
    out = folder / f"fit-{batch_size}-{epochs}"
    began = time.perf_counter()
    lrpot.fit(folder / "train.extxyz", out=out, from_model=start, settings=settings, verbose=False)
    return time.perf_counter() - began


def our_loading(folder: Path, batch_size: int) -> float:
    """Seconds of reading the batches of an epoch."""
    graphs = Graphs([load_graphs(folder / "train.extxyz", GraphSettings(CUTOFF))])
    training = make_config(None, {"training.batch_size": batch_size}).training
    seconds = []
    for _ in range(7):
        began = time.perf_counter()
        for _ in train_loader(graphs, training, 0):
            pass
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


class EpochTimes(spk.task.pl.Callback):
    """From the start of an epoch to the start of the next."""

    def __init__(self) -> None:
        self.starts: list[float] = []

    def on_train_epoch_start(self, *args: object) -> None:
        self.starts.append(time.perf_counter())


def their_epoch(folder: Path, crystals: list[Atoms], network: torch.nn.Module, batch_size: int) -> float:
    """Seconds of an epoch, median without the first, in which neighbours are cached."""
    folder.mkdir()
    units = {"energy": "eV", "forces": "eV/Ang"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = spk.data.create_dataset(
            str(folder / "rows.db"), spk.data.AtomsDataFormat.ASE, distance_unit="Ang", property_unit_dict=units
        )
        labels = [
            {"energy": np.array([atoms.get_potential_energy()]), "forces": atoms.get_forces()} for atoms in crystals
        ]
        data.add_systems(property_list=labels, atoms_list=crystals)
        neighbours = spk.transform.CachedNeighborList(
            str(folder / "cache"), spk.transform.MatScipyNeighborList(cutoff=CUTOFF), keep_cache=True
        )
        module = spk.data.AtomsDataModule(
            str(folder / "rows.db"),
            batch_size=batch_size,
            num_train=TRAIN,
            num_val=VALID,
            num_test=0,
            split_file=str(folder / "split.npz"),
            transforms=[neighbours, spk.transform.CastTo32()],
            num_workers=0,
            property_units=units,
            distance_unit="Ang",
        )
        outputs = [
            spk.task.ModelOutput(name, torch.nn.MSELoss(), loss_weight=weight, metrics={})
            for name, weight in (("energy", 0.01), ("forces", 0.99))
        ]
        task = spk.task.AtomisticTask(network, outputs, torch.optim.AdamW, {"lr": LR})
        times = EpochTimes()
        trainer = spk.task.pl.Trainer(
            accelerator="cpu",
            max_epochs=THEIR_EPOCHS,
            callbacks=[times],
            logger=False,
            default_root_dir=str(folder),
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(task, datamodule=module)
    return statistics.median(b - a for a, b in zip(times.starts[1:], times.starts[2:], strict=False))


if __name__ == "__main__":
    main()
