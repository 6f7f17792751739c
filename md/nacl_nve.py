"""NVE of rock-salt NaCl with a model: drift of the total energy, a trajectory and a picture.

python md/nacl_nve.py MODEL [--steps 500] [--temperature 300] [--born-mayer]
"""

from __future__ import annotations

import argparse

from ase.build import bulk
from ase.calculators.mixing import SumCalculator
from script import make_parser, run_script, simulate

from lrpot import LRCalculator, plots
from lrpot.data.builders.tosi_fumi import TosiFumi


def main() -> None:
    arguments = parse()
    atoms = bulk("NaCl", "rocksalt", a=5.64).repeat(arguments.cells)
    atoms.calc = LRCalculator(arguments.model, device=arguments.device)
    if arguments.born_mayer:
        atoms.calc = SumCalculator([atoms.calc, TosiFumi(coulomb=False)])
    run = simulate(
        atoms, arguments, "NVE", arguments.out, steps=arguments.steps, ensemble="nve", temperature=arguments.temperature
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
    parser = make_parser(__doc__, model=None, timestep=1.0, interval=5, out="nacl-nve.traj")
    parser.add_argument("--steps", type=int, default=500, help="(default: 500)")
    parser.add_argument("--temperature", type=float, default=300.0, help="of the first velocities, K (default: 300)")
    parser.add_argument("--cells", type=int, default=6, help="N: N x N x N primitive cells (default: 6, 432 atoms)")
    parser.add_argument(
        "--born-mayer",
        action="store_true",
        help="add repulsion and dispersion of the Tosi-Fumi potential; a model of Coulomb labels alone needs it",
    )
    return parser.parse_args()


if __name__ == "__main__":
    run_script(main)
