"""NVT (Langevin) of rock-salt NaCl with a model: mean temperature and first peak of the Na-Cl distances.

python md/nacl_nvt.py MODEL [--steps 1000] [--temperature 300] [--born-mayer]
"""

from __future__ import annotations

import argparse

import ase.io
import numpy as np
from ase.build import bulk
from ase.calculators.mixing import SumCalculator
from script import make_parser, run_script, simulate

from lrpot import LRCalculator
from lrpot.analysis import pair_distribution
from lrpot.data.builders.tosi_fumi import TosiFumi


def main() -> None:
    arguments = parse()
    atoms = bulk("NaCl", "rocksalt", a=5.64).repeat(arguments.cells)
    atoms.calc = LRCalculator(arguments.model, device=arguments.device)
    if arguments.born_mayer:
        atoms.calc = SumCalculator([atoms.calc, TosiFumi(coulomb=False)])
    run = simulate(
        atoms,
        arguments,
        "NVT",
        arguments.out,
        steps=arguments.steps,
        ensemble="nvt",
        temperature=arguments.temperature,
        friction=arguments.friction,
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
    parser = make_parser(__doc__, model=None, timestep=1.0, interval=10, out="nacl-nvt.traj")
    parser.add_argument("--steps", type=int, default=1000, help="(default: 1000)")
    parser.add_argument("--temperature", type=float, default=300.0, help="of the bath, K (default: 300)")
    parser.add_argument("--friction", type=float, default=0.01, help="of the bath, 1/fs (default: 0.01)")
    parser.add_argument("--cells", type=int, default=6, help="N: N x N x N primitive cells (default: 6, 432 atoms)")
    parser.add_argument("--rmax", type=float, default=6.0, help="reach of g(r), A (default: 6)")
    parser.add_argument(
        "--born-mayer",
        action="store_true",
        help="add repulsion and dispersion of the Tosi-Fumi potential; a model of Coulomb labels alone needs it",
    )
    return parser.parse_args()


if __name__ == "__main__":
    run_script(main)
