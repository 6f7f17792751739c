"""The structures of a fit: read, checked, divided, and recorded."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase.data import chemical_symbols

from lrpot.charges import CHARGES
from lrpot.charges.polarisation import check_born_charges
from lrpot.config import CHARGE_WEIGHTS, FitConfig
from lrpot.console import Console
from lrpot.data.readers import read_rows, to_structures
from lrpot.errors import DataError
from lrpot.kspace.boundary import boundary_of
from lrpot.structure import CHARGE_LABELS, LABELS, Structure


@dataclass(frozen=True)
class FitData:
    """Labelled structures, divided.

    Attributes:
        train, valid, test: structures with edges; `test` may be empty.
        elements: atomic numbers in `train` and `valid`, ascending.
        record: file, hash, counts, labels and the rows of each part.
    """

    train: list[Structure]
    valid: list[Structure]
    test: list[Structure]
    elements: list[int]
    record: dict[str, Any]


def supervised(config: FitConfig) -> list[str]:
    """The labels of the charges that are in the loss."""
    return [label for label, weight in CHARGE_WEIGHTS.items() if getattr(config.training, weight) > 0]


def check_supervision(config: FitConfig, structure: Structure) -> None:
    """Refuse labels of the charges that a fit is to use and that mean nothing for a structure.

    Raises:
        DataError: a dipole that is not defined. StructureError: Born charges that the charges do not determine.
    """
    labels = [label for label in supervised(config) if label in structure]
    if "dipole" in labels and not bool(structure.dipole.isfinite().any()):
        charge = float(structure.total_charge)
        pbc = structure.pbc[0].tolist()
        why = f"a charge of {charge:g} e, where it depends on the origin" if charge else f"pbc = {pbc}"
        raise DataError(
            f"has a dipole, but {why}; only neutral molecules (pbc all False) and slabs have one: set pbc to False for "
            "a molecule in a box, remove the label, or set training.dipole_weight to 0"
        )
    if "born_charges" in labels:
        charges = config.model.charges
        check_born_charges(CHARGES[charges.kind], charges.neutrality, structure.pbc)


def read_data(config: FitConfig, console: Console) -> FitData:
    """Read and divide the structures that a configuration names.

    Raises:
        DataError, StructureError, UnknownElementError: bad rows, or too few.
    """
    data, cutoff = config.data, config.model.backbone.cutoff
    skip = console.warn if data.skip_bad_rows else None

    def check(structure: Structure) -> None:
        if config.model.kernel.form != "none":
            boundary_of(structure.pbc[0])
        check_supervision(config, structure)

    def read(file: str, elements: list[int] | None = None) -> list[Structure]:
        rows = read_rows(file)
        with console.progress(f"neighbours of {file}", len(rows), "structures") as update:
            return to_structures(
                rows, cutoff, elements=elements, require=("energy",), check=check, skip_bad=skip, progress=update
            )

    structures = read(str(data.train))
    order = np.random.default_rng(config.training.seed).permutation(len(structures)).tolist()
    n_valid = 0 if data.valid else max(1, round(data.valid_fraction * len(order)))
    n_test = 0 if data.test else round(data.test_fraction * len(order))
    if len(order) - n_valid - n_test < 1:
        raise DataError(
            f"{data.train}: {len(order)} rows are too few to train on and to hold some back; add rows, or name other "
            "files with --valid and --test"
        )
    train = [structures[i] for i in sorted(order[n_valid + n_test :])]
    valid = [structures[i] for i in sorted(order[:n_valid])]
    test = [structures[i] for i in sorted(order[n_valid : n_valid + n_test])]
    split = {
        name: [int(s.row) for s in part] for name, part in (("train", train), ("valid", valid), ("test", test)) if part
    }
    elements = sorted({int(z) for s in train for z in s.numbers.unique()})
    for structure in valid + test:
        unknown = sorted({int(z) for z in structure.numbers.unique()} - set(elements))
        if unknown:
            raise DataError(
                f"{data.train}: row {int(structure.row)} is held back, but no training row has its element "
                f"{chemical_symbols[unknown[0]]}; add such rows, change training.seed, or name data.valid and data.test"
            )
    for label in supervised(config):
        if not any(label in s for s in train):
            raise DataError(
                f"{data.train}: training.{CHARGE_WEIGHTS[label]} is set, but no training row has {label}; add that "
                "label to the file, or set the weight to 0"
            )
    valid = read(data.valid, elements) if data.valid else valid
    test = read(data.test, elements) if data.test else test
    digest = hashlib.sha256()
    with open(str(data.train), "rb") as content:
        while block := content.read(2**20):
            digest.update(block)
    record = {
        "train": str(data.train),
        "sha256": digest.hexdigest(),
        "structures": {"train": len(train), "valid": len(valid), "test": len(test)},
        "labels": sorted({label for s in train for label in LABELS + CHARGE_LABELS if label in s}),
        "split": split,
    }
    return FitData(train, valid, test, elements, record)
