"""Phonons of a rock salt by models fitted to its DFT forces, beside those of the DFT forces themselves.

    python benchmarks/phonons.py FORCES BORN [--models FOLDER]

FORCES holds energies and forces of supercells with small random displacements, such as NaCl-rd of phonopy's examples
(64 atoms); BORN its Born charges and dielectric constant (phonopy's BORN, or YAML or JSON with symbols, born_charges
and dielectric). Neither is part of lrpot. Force constants of DFT are fitted to all rows with symfc; those of the models
come from finite displacements, in the same supercell and in a larger one. --models keeps fits, and finds them there.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import ase.io
import matplotlib.pyplot as plt
import numpy as np
from ase import Atoms
from phonopy import Phonopy
from phonopy.structure.atoms import PhonopyAtoms
from timing import machine, write

from lrpot import LRCalculator
from lrpot.plot_style import COLOURS, STYLE, save
from lrpot.workflows.nac import long_waves_of_file, long_waves_of_model
from lrpot.workflows.phonons import Phonons, phonons, supercell_of
from lrpot.workflows.pictures import band_ticks

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "images" / "phonons.png"
EPOCHS = 30  # of each stage
COMMON = ["model.backbone.features=32", "model.backbone.interactions=1"]
FITS = {
    "network alone": ["--kernel", "none", "--set", *COMMON, f"training.max_epochs={3 * EPOCHS}"],
    "long range": ["--set", *COMMON, f"training.max_epochs={EPOCHS}"],
}
# Which Born charges split LO and TO; a network alone has none.
SOURCES = {"network alone": ("DFT",), "long range": ("its own", "DFT")}
MESH = 60.0  # A
LARGER = 3  # conventional cells along each axis, where the rows have two


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("forces", type=Path)
    parser.add_argument("born", type=Path)
    parser.add_argument("--models", type=Path, default=None, help="folder of the fits (default: none is kept)")
    arguments = parser.parse_args()
    frames = ase.io.read(arguments.forces, index=":")
    unit, repeats = conventional(frames[0])
    reference = of_rows(frames, unit, repeats)
    born = long_waves_of_file(arguments.born, reference.phonopy.primitive)
    reference.set_long_waves(born)
    reference.run(mesh=MESH)
    atoms = len(reference.phonopy.supercell)
    records = [{"model": "DFT", "atoms": atoms, "charges": "DFT", **record(reference, reference)}]
    drawn = {"DFT": reference}
    with tempfile.TemporaryDirectory() as scratch:
        for name, options in FITS.items():
            run = (arguments.models or Path(scratch)) / name.replace(" ", "-")
            fit(arguments.forces, run, options)
            unit.calc = LRCalculator(run / "model.pt")
            for size in (repeats, LARGER):
                for source in SOURCES[name]:
                    found = phonons(unit, supercell=(size,) * 3)
                    own = source == "its own"
                    found.set_long_waves(
                        long_waves_of_model(unit.calc.model, *supercell_of(found.phonopy)) if own else born
                    )
                    found.run(mesh=MESH)
                    drawn.setdefault(name, found)
                    records.append(
                        {"model": name, "atoms": len(found.phonopy.supercell), "charges": source}
                        | record(found, reference)
                    )
                    print(records[-1], flush=True)
    print("wrote", draw(drawn))
    content = {"machine": machine(), "file": arguments.forces.name, "rows": len(frames), "records": records}
    print("wrote", write("phonons", content))


def conventional(frame: Atoms) -> tuple[Atoms, int]:
    """The cubic cell of a rock salt, and how often it is repeated in a displaced cubic supercell of it."""
    repeats = round((len(frame) / 8) ** (1 / 3))
    length = frame.cell.lengths().mean() / repeats
    kinds = sorted(set(frame.numbers), key=lambda z: list(frame.numbers).index(z))
    sites = np.array([(0, 0, 0), (0, 0.5, 0.5), (0.5, 0, 0.5), (0.5, 0.5, 0)])
    scaled = np.concatenate([sites, (sites + np.array([0.5, 0, 0])) % 1.0])
    numbers = np.repeat(kinds, 4)
    return Atoms(numbers, scaled_positions=scaled, cell=length * np.eye(3), pbc=True), repeats


def of_rows(frames: list[Atoms], unit: Atoms, repeats: int) -> Phonons:
    """Force constants fitted to displacements and forces of all rows."""
    cell = PhonopyAtoms(
        symbols=unit.get_chemical_symbols(), cell=unit.cell.array, scaled_positions=unit.get_scaled_positions()
    )
    phonon = Phonopy(cell, np.eye(3, dtype=int) * repeats, primitive_matrix="F")
    sites, edge = phonon.supercell.positions, unit.cell[0, 0] * repeats
    displacements, forces = [], []
    for frame in frames:
        away = frame.positions[None] - sites[:, None]
        away -= edge * np.round(away / edge)
        same = frame.numbers[None] == phonon.supercell.numbers[:, None]
        nearest = np.where(same, np.linalg.norm(away, axis=2), np.inf).argmin(axis=1)
        if len(set(nearest)) != len(sites):
            raise SystemExit(f"the rows are no displaced rock salt whose cube has an edge of {edge:.3f} A")
        displacements.append(away[np.arange(len(sites)), nearest])
        forces.append(frame.get_forces()[nearest])
    phonon.dataset = {"displacements": np.array(displacements), "forces": np.array(forces)}
    phonon.produce_force_constants(fc_calculator="symfc", calculate_full_force_constants=False, show_drift=False)
    drift = float(np.abs(phonon.force_constants.sum(axis=1)).max())
    return Phonons(phonon, drift, 0.0)


def fit(rows: Path, run: Path, options: list[str]) -> None:
    """A model by one command, unless it is there already."""
    if not (run / "model.pt").exists():
        command = [sys.executable, "-m", "lrpot.cli.main", "fit", str(rows), "--out", str(run), *options]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def record(found: Phonons, reference: Phonons) -> dict[str, Any]:
    """Modes at Gamma, and how far all modes along the path are from those of the reference, THz."""
    to, lo = float(found.at_gamma()[-1]), float(found.toward_gamma((1, 0, 0))[-1])
    bands = [np.concatenate(phonon.phonopy.band_structure.frequencies) for phonon in (found, reference)]
    return {
        "acoustic": float(np.abs(found.at_gamma()[:3]).max()),
        "TO": to,
        "LO": lo,
        "splitting": lo - to,
        "path_rms": float(np.sqrt(np.mean((bands[0] - bands[1]) ** 2))),
        "charge": float(np.abs(found.long_waves.born[0]).max() / np.sqrt(found.long_waves.dielectric[0, 0])),
        "lowest": found.lowest,
    }


def draw(found: dict[str, Phonons]) -> Path:
    """Bands of DFT as points, those of the models as lines."""
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(7.6, 4.6))
        for number, (name, phonon) in enumerate(found.items()):
            bands = phonon.phonopy.band_structure
            style = (
                {"color": "0.55", "lw": 4, "alpha": 0.6} if number == 0 else {"color": COLOURS[2 - number], "lw": 1.2}
            )
            for leg, (distances, frequencies) in enumerate(zip(bands.distances, bands.frequencies, strict=True)):
                lines = axis.plot(distances, frequencies, **style)
                if leg == 0:
                    lines[0].set_label(name)
        places, names = band_ticks(phonon)
        axis.set_xticks(places, names)
        axis.axhline(0.0, color="0.4", lw=0.8)
        axis.set(ylabel="frequency (THz)", xlim=(0.0, places[-1]))
        axis.legend(fontsize=8, loc="upper right")
        return save(figure, PICTURE)


if __name__ == "__main__":
    main()
