"""`predict`: a potential and files of crystals in, one record per crystal out; models of properties: see
`lrpot.properties.prediction`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import torch
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import chemical_symbols
from ase.stress import full_3x3_to_voigt_6_stress
from torch import Tensor

from lrpot.coverage import beyond
from lrpot.data.readers import Row, read_rows, to_structures
from lrpot.evaluation import predict_structures
from lrpot.files import atomic_path, write_csv
from lrpot.model_file import Model, coverages, load_model
from lrpot.potential import Potential
from lrpot.properties.prediction import PropertyPredictions, predict_properties
from lrpot.structure import Structure
from lrpot.units import GPA


@dataclass(frozen=True)
class Prediction:
    """One crystal as the model sees it.

    Attributes:
        row: file, number and atoms.
        energy: eV.
        energy_short: eV, the part of the network.
        energy_long: eV, the part of the charges.
        forces: (N, 3), eV/A.
        stress: (6,), eV/A^3, Voigt order and sign of ASE; None if the crystal is not periodic in three directions.
        charges: (N,), e, the first channel; None if the model has no charges.
        energy_uncertainty: eV/atom; None if the model is no ensemble.
        forces_uncertainty: (N,), eV/A, how far each force is likely to be off; None likewise.
        outside_training: what of it lies outside the training set, see `lrpot.coverage`; None if nothing is known to.
    """

    row: Row
    energy: float
    energy_short: float
    energy_long: float
    forces: np.ndarray
    stress: np.ndarray | None
    charges: np.ndarray | None
    energy_uncertainty: float | None = None
    forces_uncertainty: np.ndarray | None = None
    outside_training: str | None = None


def predict(
    model: Model | str | Path,
    files: str | Path | Sequence[str | Path],
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float64,
) -> list[Prediction] | PropertyPredictions:
    """Energies, forces, stress and charges, or the properties, of every crystal in some files.

    Args:
        model: a loaded model, or its file.
        files: one or more files in any format that ASE reads.
        device: where to compute, if `model` is a file: cpu, cuda, cuda:1, ...
        dtype: the precision of the network, if `model` is a file.
    Raises:
        DataError, StructureError, UnknownElementError: name the file, the row and what is wrong with it.
    """
    loaded = load_model(model, device=device, dtype=dtype) if isinstance(model, (str, Path)) else model
    if isinstance(loaded, Potential):
        return predict_crystals(loaded, *read_crystals(loaded, files))
    return predict_properties(loaded, files)


def read_crystals(
    model: Potential, files: str | Path | Sequence[str | Path], *, last: bool = False
) -> tuple[list[Row], list[Structure]]:
    """Crystals without labels, checked against what a model can treat; all before anything is computed.

    Args:
        files: one or more files in any format that ASE reads.
        last: only the last row of each.
    Raises:
        DataError, StructureError, UnknownElementError: as `predict`.
    """
    rows: list[Row] = []
    structures: list[Structure] = []
    for path in [files] if isinstance(files, (str, Path)) else files:
        found = read_rows(path)
        if last:
            found = found[-1:]
        for row in found:
            row.atoms.calc = None
        rows += found
        # labels are of no use here, and wrong ones must not stop a prediction
        structures += to_structures(
            found, model.cutoff, elements=model.elements, check=lambda s: check_supported(model, s), labels=False
        )
    return rows, structures


def predict_crystals(
    model: Potential,
    rows: Sequence[Row],
    structures: Sequence[Structure],
    *,
    progress: Callable[[int], None] | None = None,
) -> list[Prediction]:
    """Predictions for what `read_crystals` gave; `progress` is called with the number done."""
    predictions: list[Prediction] = []
    todo = iter(rows)
    for periodic in _runs([bool(s.pbc.all()) for s in structures]):
        for group, output in predict_structures(
            model, [structures[i] for i in periodic], stress=bool(structures[periodic[0]].pbc.all())
        ):
            start = 0
            for n, structure in enumerate(group):
                atoms = slice(start, start + structure.num_nodes)
                start = atoms.stop
                stress = full_3x3_to_voigt_6_stress(output["stress"][n].cpu().numpy()) if "stress" in output else None
                predictions.append(
                    Prediction(
                        row=next(todo),
                        energy=float(output["energy"][n]),
                        energy_short=float(output["energy_short"][n]),
                        energy_long=float(output["energy_long"][n]),
                        forces=output["forces"][atoms].cpu().numpy(),
                        stress=stress,
                        charges=output["charges"][atoms][:, 0].cpu().numpy() if "charges" in output else None,
                        **_uncertainty(output, n, atoms),
                        outside_training=_outside(model, structure),
                    )
                )
            if progress is not None:
                progress(len(predictions))
    return predictions


def _outside(model: Potential, structure: Structure) -> str | None:
    return next((reason for seen in coverages(model) if (reason := beyond(seen, structure)) is not None), None)


def check_supported(model: Potential, structure: Structure) -> None:
    """Find out, before anything is computed, whether the long-range part of a model can treat a structure.

    Raises:
        StructureError: it is periodic in one direction only, or its cell has no or too many wave vectors.
    """
    for member in model.members:
        if member.long is not None:
            member.long.reciprocal.check(structure.cell[0], structure.pbc[0])


def summary(predictions: Sequence[Prediction]) -> tuple[list[str], list[list[str]]]:
    """Column names and one line of text per crystal."""
    header = ["file", "row", "formula", "energy (eV)", "eV/atom", "long range (eV)", "max |F| (eV/A)", "P (GPa)"]
    header.append("charges (e)")
    if any(p.energy_uncertainty is not None for p in predictions):
        header += ["energy_uncertainty (eV/atom)", "max_force_uncertainty (eV/A)"]
    lines = []
    for p in predictions:
        numbers = p.row.atoms.numbers
        pressure = "" if p.stress is None else f"{-p.stress[:3].mean() * GPA:.3f}"
        charges = ""
        if p.charges is not None:
            charges = ", ".join(
                f"{chemical_symbols[z]} {p.charges[numbers == z].mean():+.3f}" for z in np.unique(numbers)
            )
        largest = np.linalg.norm(p.forces, axis=1).max()
        line = [str(p.row.file), str(p.row.number), p.row.atoms.get_chemical_formula(), f"{p.energy:.6f}"]
        line += [f"{p.energy / len(numbers):.6f}", f"{p.energy_long:.6f}", f"{largest:.6f}", pressure, charges]
        if p.energy_uncertainty is not None and p.forces_uncertainty is not None:
            line += [f"{p.energy_uncertainty:.3e}", f"{p.forces_uncertainty.max():.3e}"]
        lines.append(line)
    return header, lines


def write_predictions(predictions: Sequence[Prediction], path: str | Path) -> Path:
    """Write them as .csv (the table of `summary`) or .extxyz (crystals with energy, forces, stress, charges).

    Of an ensemble, crystals also have `energy_uncertainty`, eV/atom, and of each atom `force_uncertainty`, eV/A.
    """
    path = Path(path)
    if path.suffix == ".csv":
        write_csv(path, *summary(predictions))
        return path
    labelled = []
    for p in predictions:
        atoms = p.row.atoms.copy()
        results = {"energy": p.energy, "forces": p.forces}
        if p.stress is not None:
            results["stress"] = p.stress
        if p.charges is not None:
            results["charges"] = p.charges
        atoms.calc = SinglePointCalculator(atoms, **results)
        atoms.info |= {"energy_short": p.energy_short, "energy_long": p.energy_long}
        if p.energy_uncertainty is not None:
            atoms.info["energy_uncertainty"] = p.energy_uncertainty
            atoms.arrays["force_uncertainty"] = p.forces_uncertainty
        labelled.append(atoms)
    with atomic_path(path) as temporary:
        ase.io.write(temporary, labelled, format="extxyz")
    return path


def _uncertainty(output: Mapping[str, Tensor], structure: int, atoms: slice) -> dict[str, Any]:
    """Of one structure of a batch: the arguments of `Prediction`; none if the model is no ensemble."""
    if "energy_uncertainty" not in output:
        return {}
    return {
        "energy_uncertainty": float(output["energy_uncertainty"][structure]),
        "forces_uncertainty": output["forces_uncertainty"][atoms].cpu().numpy(),
    }


def _runs(flags: Sequence[bool]) -> list[list[int]]:
    """Indices in order, cut where the flag changes."""
    runs: list[list[int]] = []
    for index, flag in enumerate(flags):
        if runs and flags[runs[-1][0]] == flag:
            runs[-1].append(index)
        else:
            runs.append([index])
    return runs
