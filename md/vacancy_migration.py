"""A vacancy in NaCl: what a jump costs (nudged elastic band), and how often it happens (MD).

python md/vacancy_migration.py [MODEL] [--species Na] [--temperature 1000] [--steps 50000]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import ase.io
import matplotlib.pyplot as plt
import numpy as np
from ase import Atoms, units
from ase.build import bulk
from ase.mep import NEB
from ase.optimize import FIRE
from script import make_parser, run_script, simulate

from lrpot import LRCalculator
from lrpot.analysis import mean_square_displacement, unwrapped, vacant_sites
from lrpot.console import Console
from lrpot.errors import WorkflowError
from lrpot.plot_style import COLOURS, STYLE, save
from lrpot.workflows.relax import relax_fully

WAYS = 12  # an ion of rock salt has so many neighbours of its kind
CHARGE = {"Na": -1.0, "Cl": 1.0}  # e, of the cell without that ion


def main() -> None:
    arguments = parse()
    calculator = LRCalculator(arguments.model, device=arguments.device, skin=0.5)
    arguments.out.mkdir(parents=True, exist_ok=True)
    unit = bulk("NaCl", "rocksalt", a=5.64, cubic=True)
    unit.calc = calculator
    perfect = relax_fully(unit, "the crystal", cell="isotropic", fmax=0.001, symmetry=True).repeat(arguments.cells)
    images = band(perfect, calculator, arguments)
    energies = np.array([image.get_potential_energy() for image in images])
    barrier = float(energies.max() - energies[0])
    print(f"barrier of a jump of {arguments.species}: {barrier:.3f} eV ({len(images)} images, {len(images[0])} atoms)")
    ase.io.write(arguments.out / "band.extxyz", images)

    time, sites, msd = jumps(images[0], perfect, arguments)
    count, length = int((np.diff(sites) != 0).sum()), time[-1] / 1000.0
    rate = count / length
    spread = count**0.5 / length  # of a number of events that do not know each other
    print(f"MD at {arguments.temperature:g} K: {count} jumps in {length:.1f} ps, {rate:.3f} ± {spread:.3f} 1/ps")
    boltzmann = np.exp(-barrier / (units.kB * arguments.temperature))
    if count:
        print(f"rate / ({WAYS} exp(-barrier / k T)), the frequency of attempts: {rate / (WAYS * boltzmann):.2f} THz")
    else:
        print(f"with 5 attempts per ps, one jump takes about {1 / (5 * WAYS * boltzmann):.0f} ps: take more --steps")
    print(f"wrote {draw(energies, time, sites, msd, arguments)}")


def band(perfect: Atoms, calculator: LRCalculator, arguments: argparse.Namespace) -> list[Atoms]:
    """Images of the cheapest way of an ion into the vacancy beside it.

    Raises:
        WorkflowError: the band does not come to rest.
    """
    same = [atom.index for atom in perfect if atom.symbol == arguments.species]
    empty, jumping = same[0], min(same[1:], key=lambda n: perfect.get_distance(same[0], n, mic=True))
    ends = []
    for last in (False, True):
        end = perfect.copy()
        if last:
            end.positions[jumping] += end.get_distance(jumping, empty, mic=True, vector=True)
        del end[empty]
        end.info["charge"] = CHARGE[arguments.species]
        end.calc = calculator
        ends.append(relax_fully(end, "the crystal with a vacancy", fmax=arguments.fmax))
    images = [ends[0], *(ends[0].copy() for _ in range(arguments.images)), ends[1]]
    for image in images:
        image.calc = calculator
    path = NEB(images, climb=True, method="improvedtangent", allow_shared_calculator=True)
    path.interpolate(mic=True)
    with Console().progress("nudged elastic band", arguments.neb_steps, "steps", at_most=True) as update:
        optimiser = FIRE(path, logfile=None)
        optimiser.attach(lambda: update(optimiser.nsteps))
        if not optimiser.run(fmax=arguments.fmax, steps=arguments.neb_steps) and not arguments.quick:
            raise WorkflowError(f"the band is not at rest after {arguments.neb_steps} steps; allow more --neb-steps")
    for image in images:
        # one calculator knows the last image only
        image.calc = LRCalculator(calculator.model, device=arguments.device, skin=0.5)
    return images


def jumps(
    start: Atoms, perfect: Atoms, arguments: argparse.Namespace
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Times (fs), the empty site at each, and mean square displacements (A^2) by element, of a run of MD."""
    trajectory = arguments.out / "vacancy.traj"
    atoms = start.copy()
    atoms.calc = start.calc
    run = simulate(
        atoms, arguments, "MD", trajectory, steps=arguments.steps, ensemble="nvt", temperature=arguments.temperature
    )
    frames = ase.io.read(trajectory, index=":")
    paths = unwrapped(frames)
    moving = start.symbols == arguments.species
    # the lattice is where the other ions stay
    lattice = start.positions[~moving].mean(axis=0)
    paths = paths - paths[:, ~moving].mean(axis=1, keepdims=True) + lattice
    sites = perfect.positions[perfect.symbols == arguments.species]
    nearest = perfect.cell[0, 0] / arguments.cells / 2**0.5
    empty = vacant_sites(paths[:, moving], sites, start.cell.array, 0.45 * nearest)
    msd = {symbol: mean_square_displacement(paths[:, start.symbols == symbol]) for symbol in ("Na", "Cl")}
    return np.array(run.time_fs), empty, msd


def draw(
    energies: np.ndarray, time: np.ndarray, sites: np.ndarray, msd: dict[str, np.ndarray], arguments: argparse.Namespace
) -> Path:
    """The barrier, the vacancy's jumps, and displacements of both ions."""
    with plt.rc_context(STYLE):
        figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13.0, 3.8))
        left.plot(np.linspace(0, 1, len(energies)), energies - energies[0], "o-", color=COLOURS[0])
        left.set(xlabel="way into the vacancy", ylabel="energy (eV)", title=f"a jump of {arguments.species}")
        middle.plot(time / 1000, np.concatenate([[0], np.cumsum(np.diff(sites) != 0)]), color=COLOURS[1], ds="steps")
        middle.set(xlabel="time (ps)", ylabel="jumps so far", title=f"{arguments.temperature:g} K")
        for colour, (symbol, found) in zip(COLOURS, msd.items(), strict=False):
            right.plot(time / 1000, found, color=colour, label=symbol)
        right.set(xlabel="time (ps)", ylabel="mean square displacement (Å²)")
        right.legend(fontsize=8)
        return save(figure, arguments.out / "vacancy.png")


def parse() -> argparse.Namespace:
    parser = make_parser(__doc__, model="nacl.pt", timestep=2.0, interval=10, out="nacl-vacancy")
    parser.add_argument("--species", choices=sorted(CHARGE), default="Na", help="which ion is missing (default: Na)")
    parser.add_argument("--cells", type=int, default=2, help="N: N x N x N cubic cells (default: 2, 63 atoms)")
    parser.add_argument("--images", type=int, default=5, help="between the ends of the band (default: 5)")
    parser.add_argument("--fmax", type=float, default=0.02, help="largest force left, eV/A (default: 0.02)")
    parser.add_argument("--neb-steps", type=int, default=300, help="at most (default: 300)")
    parser.add_argument("--temperature", type=float, default=1150.0, help="K (default: 1150)")
    parser.add_argument("--steps", type=int, default=50_000, help="of MD (default: 50000)")
    parser.add_argument("--quick", action="store_true", help="few steps of few images, to see that it runs")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.images, arguments.neb_steps, arguments.steps, arguments.fmax = 1, 5, 50, 0.1
    return arguments


if __name__ == "__main__":
    run_script(main)
