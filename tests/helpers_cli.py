"""What the tests of commands share: small models that nobody had to train, crystals, and ways to run a command."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import ase.io
import numpy as np
import torch
from ase import Atoms
from ase.build import bulk

from lrpot.build import build_potential
from lrpot.config import make_config
from lrpot.model_file import ModelInfo, save
from lrpot.potential import Potential

# A subprocess that takes longer than this hangs.
PATIENCE = 120.0  # s

NETWORK = {"features": 8, "interactions": 1, "radial_basis": 6, "cutoff": 4.0}

# The same network for `lrpot fit`, and as little of everything else as there can be.
FIT_SETTINGS = (
    *(f"model.backbone.{name}={value}" for name, value in NETWORK.items()),
    "model.kernel.tolerance=1e-5",
    "model.kernel.hidden=8",
    "training.max_epochs=2",
    "training.batch_size=4",
)


def small_model(form: str = "coulomb", *, neutrality: str = "background", seed: int = 0) -> Potential:
    """A float64 potential of Na and Cl with every part at work: forces of some 0.1 eV/A, charges of 0.8 e."""
    charges = {"init": "zero", "neutrality": neutrality}
    config = make_config({"model": {"backbone": NETWORK, "charges": charges, "kernel": {"form": form}}})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_potential(config.model, [11, 17]).set_precision(torch.float64)
        torch.nn.init.normal_(model.short.readout.last.weight, std=0.3)
        model.short.offset[11], model.short.offset[17] = -0.5, -1.5
        if model.long is not None:
            torch.nn.init.normal_(model.long.reciprocal.kernel.fcn.last.weight, std=0.1)
            model.long.charges.set_values({11: 0.8, 17: -0.8})
    model.info = ModelInfo(
        config=config.model_dump(mode="json"), elements=["Na", "Cl"], created="2026-01-01T00:00:00+00:00"
    )
    return model.eval()


def save_model(path: Path, form: str = "coulomb") -> Path:
    return save(small_model(form), path)


def rock_salt(n: int = 2, *, rattle: float = 0.05, seed: int = 0) -> Atoms:
    """2 n^3 atoms, sheared and rattled."""
    atoms = bulk("NaCl", "rocksalt", a=5.64) * (n, n, n)
    shear = np.array([[1.0, 0.02, 0.0], [0.0, 1.01, -0.01], [0.01, 0.0, 0.99]])
    atoms.set_cell(atoms.cell.array @ shear, scale_atoms=True)
    atoms.rattle(rattle, seed=seed)
    return atoms


def write_crystals(path: Path, n: int = 3, **kwargs: object) -> Path:
    """n rows without labels, in the format of the ending."""
    rows = [rock_salt(seed=seed) for seed in range(n)]
    ase.io.write(path, rows if n > 1 else rows[0], **kwargs)
    return path


def run_cli(*words: object) -> int:
    """Run a command in this process; gives its exit code."""
    from lrpot.cli.main import run

    return run([str(word) for word in words])


def start_cli(*words: object, cwd: Path | None = None) -> subprocess.Popen[str]:
    """Start a command as a shell would, with one thread, at the head of its own group."""
    code = "from lrpot.cli.main import main; main()"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=environment,
        start_new_session=True,
    )


def call_cli(*words: object, cwd: Path | None = None) -> tuple[int, str, str]:
    """Run a command in a process of its own; gives exit code, output and errors."""
    with start_cli(*words, cwd=cwd) as process:
        output, errors = process.communicate(timeout=PATIENCE)
    return process.returncode, output, errors


def listing(folder: Path) -> list[str]:
    """Every file and folder below, by relative path."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def one_error_line(errors: str, expected: Sequence[str]) -> None:
    """One line for the user, with these words in it, and no traceback."""
    lines = errors.splitlines()
    assert len(lines) == 1, errors
    assert lines[0].startswith("lrpot: error: ")
    for words in expected:
        assert words in lines[0], f"{words!r} is not in {lines[0]!r}"
