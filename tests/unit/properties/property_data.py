"""Crystals with properties that depend on what is in them, and models of them as small as they can be."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk

from lrpot.config import make_config
from lrpot.model_file import ModelInfo, symbols
from lrpot.properties.build import build_property_model
from lrpot.properties.model import PropertyModel

ENCODERS: dict[str, dict[str, Any]] = {
    "cgcnn": {"name": "cgcnn", "features": 8, "blocks": 1, "neighbours": 4, "basis": 8},
    "yu": {
        "name": "yu",
        "backbone": {"name": "painn", "features": 8, "interactions": 1, "radial_basis": 4, "cutoff": 4.0},
        "descriptor": {"charges": 2, "hidden": 8, "k_cutoff": 3.0},
    },
    "regnet": {"name": "regnet", "features": 16, "blocks": 1, "neighbours": 4, "waves": 8, "basis": 16},
    "prdnet": {"name": "prdnet", "features": 16, "blocks": 1, "heads": 4, "neighbours": 4, "basis": 16},
    "crystograph": {
        "name": "crystograph",
        "features": 8,
        "blocks": 1,
        "neighbours": 4,
        "edge_features": 6,
        "heads": 2,
        "basis": 8,
        "angle_basis": 6,
    },
    "moce": {"name": "moce", "features": 8, "heads": 2, "blocks": 1, "reach": 4.0, "basis": 8, "degree": 2},
    "statistics": {"name": "statistics", "features": 16},
}
HEADS: dict[str, dict[str, Any]] = {"shared": {}, "experts": {"kind": "experts", "experts": 4, "top": 2}}

# A fit as small as it can be.
SMALL: dict[str, Any] = {
    **{f"properties.encoder.{name}": value for name, value in ENCODERS["cgcnn"].items()},
    "training.max_epochs": 2,
    "training.batch_size": 8,
}


def salts(n: int = 24, seed: int = 0) -> list[Atoms]:
    """n alkali halides, no two alike; `info`: id, gap (mean atomic number over 10), bulk (100 over that), metal."""
    rng = np.random.default_rng(seed)
    pairs = [(a, b) for a in ("Na", "K", "Li", "Rb", "Cs") for b in ("F", "Cl", "Br", "I")]
    found = []
    for number in range(n):
        one, other = pairs[number % len(pairs)]
        structure, a = ("rocksalt", 5.0) if number < len(pairs) else ("cesiumchloride", 3.2)
        atoms = bulk(one + other, structure, a=a + 0.6 * rng.random())
        gap = float(atoms.numbers.mean()) / 10
        atoms.info = {"id": f"salt-{number}", "gap": gap, "bulk": 100 / gap, "metal": int(gap > 3.0)}
        found.append(atoms)
    return found


def write_table(
    folder: Path, crystals: Sequence[Atoms], targets: Sequence[str] = ("gap",), name: str = "id_prop.csv"
) -> Path:
    """id_prop.csv beside a CIF of each crystal; what a crystal lacks stays empty."""
    folder.mkdir(exist_ok=True)
    with open(folder / name, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", *targets])
        for atoms in crystals:
            writer.writerow([atoms.info["id"], *(atoms.info.get(target, "") for target in targets)])
            bare = atoms.copy()
            bare.info = {}
            ase.io.write(folder / f"{atoms.info['id']}.cif", bare)
    return folder / name


def small_model(
    targets: Sequence[str] = ("gap",),
    encoder: str = "cgcnn",
    head: str = "shared",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    **properties: Any,
) -> PropertyModel:
    """A model with random weights, the last ones too, and scales."""
    section = {"targets": list(targets), "encoder": ENCODERS[encoder], "head": HEADS[head], **properties}
    config = make_config({"task": "property", "properties": section})
    elements = [3, 9, 11, 17, 19, 35, 37, 53, 55]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_property_model(config.properties, elements)
        for readout in model.head.readouts:  # type: ignore[union-attr]
            torch.nn.init.normal_(readout.network[-1].weight)  # type: ignore[union-attr]
    for place, target in enumerate(model.targets):
        if not target.classification:
            model.centre[place], model.scale[place] = 1.5 + place, 0.5
    model.info = ModelInfo(config=config.model_dump(mode="json"), elements=symbols(elements))
    return model.set_precision(dtype).eval()


def no_pictures() -> Iterator[None]:
    """The body of a fixture: fits without pictures, which take longer than a small fit."""
    from lrpot.properties import plots

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "parity", lambda _, path: path)
        patch.setattr(plots, "residuals", lambda *_: _[-1])
        patch.setattr(plots, "learning_curves", lambda *_: _[-1])
        patch.setattr(plots, "expert_usage", lambda *_: _[-1])
        patch.setattr(plots, "gate_usage", lambda *_: _[-1])
        yield
