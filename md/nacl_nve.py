"""NVE of rock-salt NaCl with a model: drift of the total energy, a trajectory and a picture.

python md/nacl_nve.py MODEL [--steps 500] [--temperature 300] [--born-mayer]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ase.build import bulk
from ase.calculators.mixing import SumCalculator

from lrpot import LRCalculator, plots
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
    with Console().progress(f"NVE, {len(atoms)} atoms", arguments.steps, "steps") as update:
        run = run_md(
            atoms,
            ensemble="nve",
            temperature=arguments.temperature,
            steps=arguments.steps,
            timestep=arguments.timestep,
            interval=arguments.interval,
            seed=arguments.seed,
            trajectory=arguments.out,
            progress=update,
        )
    picture = plots.energy_conservation(
        run.time_fs, run.potential, run.kinetic, run.n_atoms, arguments.out.with_suffix(".energy.png")
    )
    mean = sum(run.temperature) / len(run.temperature)
    print(
        f"{arguments.steps} steps of {arguments.timestep:g} fs, {len(atoms)} atoms, "
        f"{1e3 * run.seconds_per_step:.1f} ms/step, mean temperature {mean:.0f} K"
    )
    print(f"drift of the total energy {run.drift:.1e} eV/atom/ps")
    print(f"wrote {arguments.out}\nwrote {picture}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="model file that knows Na and Cl")
    parser.add_argument("--steps", type=int, default=500, help="(default: 500)")
    parser.add_argument("--temperature", type=float, default=300.0, help="of the first velocities, K (default: 300)")
    parser.add_argument("--timestep", type=float, default=1.0, help="fs (default: 1)")
    parser.add_argument("--interval", type=int, default=5, help="steps between recorded frames (default: 5)")
    parser.add_argument("--cells", type=int, default=6, help="N: N x N x N primitive cells (default: 6, 432 atoms)")
    parser.add_argument(
        "--born-mayer",
        action="store_true",
        help="add repulsion and dispersion of the Tosi-Fumi potential; a model of Coulomb labels alone needs it",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the first velocities (default: 0)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("nacl-nve.traj"),
        help="trajectory; an older one is replaced (default: %(default)s)",
    )
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except LrpotError as error:
        sys.exit(f"error: {error}")
