"""Run every benchmark, one after the other, on a machine that does nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPTS = (
    "nacl_builder.py",
    "calculator.py",
    "painn.py",
    "training.py",
    "dimenetpp.py",
    "equivariant.py",
    "charges.py",
    "kspace.py",
    "property_speed.py",
    "kills.py",
    "fuzz.py",
    "scaling.py",
    "lammps_ranks.py",
    "demo.py",
)

if __name__ == "__main__":
    for script in SCRIPTS:
        print(f"--- {script}", flush=True)
        subprocess.run([sys.executable, str(Path(__file__).parent / script)], check=True)
