"""NVT (Langevin) of rock-salt NaCl with a model: mean temperature and first peak of the Na-Cl distances.

python md/nacl_nvt.py MODEL [--steps 1000] [--temperature 300] [--born-mayer]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import ase.io
import numpy as np
from ase.build import bulk
from ase.calculators.mixing import SumCalculator

from lrpot import LRCalculator
from lrpot.analysis import pair_distribution
from lrpot.console import Console
from lrpot.data.builders.tosi_fumi import TosiFumi
from lrpot.errors import LrpotError
from lrpot.md import run_md


def main() -> None:
    arguments = parse()
    atoms = bulk("NaCl", "rocksalt", a=5.64).repeat(arguments.cells)
    atoms.calc = LRCalculator(arguments.model, device=arguments.device)
    if arguments.born_mayer:
        atoms.calc = SumCalculator([atoms.calc, TosiFumi(coulomb=False)])
    with Console().progress(f"NVT, {len(atoms)} atoms", arguments.steps, "steps") as update:
        run = run_md(
            atoms,
            ensemble="nvt",
            temperature=arguments.temperature,
            steps=arguments.steps,
            timestep=arguments.timestep,
            friction=arguments.friction,
            interval=arguments.interval,
            seed=arguments.seed,
            trajectory=arguments.out,
            progress=update,
        )
    # the first half is for the crystal to come to the temperature of the bath
    late = len(run.temperature) // 2
    frames = ase.io.read(arguments.out, index=f"{late}:")
    r, g = pair_distribution(frames, "Na", "Cl", arguments.rmax)
    peak = int(g.argmax())
    print(
        f"{arguments.steps} steps of {arguments.timestep:g} fs, {len(atoms)} atoms, "
        f"{1e3 * run.seconds_per_step:.1f} ms/step; the last {len(frames)} of {len(run.temperature)} frames give"
    )
    print(f"mean temperature {np.mean(run.temperature[late:]):.0f} K (bath {arguments.temperature:g} K)")
    print(f"first peak of g(r), Na-Cl, at {r[peak]:.2f} A, height {g[peak]:.1f}")
    print(f"wrote {arguments.out}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="model file that knows Na and Cl")
    parser.add_argument("--steps", type=int, default=1000, help="(default: 1000)")
    parser.add_argument("--temperature", type=float, default=300.0, help="of the bath, K (default: 300)")
    parser.add_argument("--timestep", type=float, default=1.0, help="fs (default: 1)")
    parser.add_argument("--friction", type=float, default=0.01, help="of the bath, 1/fs (default: 0.01)")
    parser.add_argument("--interval", type=int, default=10, help="steps between recorded frames (default: 10)")
    parser.add_argument("--cells", type=int, default=6, help="N: N x N x N primitive cells (default: 6, 432 atoms)")
    parser.add_argument("--rmax", type=float, default=6.0, help="reach of g(r), A (default: 6)")
    parser.add_argument(
        "--born-mayer",
        action="store_true",
        help="add repulsion and dispersion of the Tosi-Fumi potential; a model of Coulomb labels alone needs it",
    )
    parser.add_argument("--seed", type=int, default=0, help="of velocities and bath (default: 0)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("nacl-nvt.traj"),
        help="trajectory; an older one is replaced (default: %(default)s)",
    )
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except LrpotError as error:
        sys.exit(f"error: {error}")
