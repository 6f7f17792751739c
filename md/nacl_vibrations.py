"""Vibrations of NaCl in MD beside its phonons: the spectrum of the velocities, and the static dielectric constant.

python md/nacl_vibrations.py [MODEL] [--temperature 100] [--steps 20000]     (needs the extra phonons)

The dipole of the cell fluctuates as much as the crystal is polarisable. In the harmonic crystal the result is
eps_0 / eps_inf = (LO / TO)^2 (Lyddane, Sachs, Teller), from the splitting that the model's charges give at Gamma.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import ase.io
import matplotlib.pyplot as plt
import numpy as np
from ase import Atoms
from ase.build import bulk
from script import make_parser, run_script, simulate

from lrpot import LRCalculator
from lrpot.analysis import dielectric_ratio, unwrapped, velocity_spectrum
from lrpot.plot_style import COLOURS, STYLE, save
from lrpot.workflows.nac import long_waves_of_model
from lrpot.workflows.phonons import Phonons, phonons, supercell_of
from lrpot.workflows.relax import relax_fully

BLOCKS = 8  # of the run, whose scatter says how sure the dielectric constant is


def main() -> None:
    arguments = parse()
    calculator = LRCalculator(arguments.model, device=arguments.device, skin=0.5)
    arguments.out.mkdir(parents=True, exist_ok=True)
    unit = bulk("NaCl", "rocksalt", a=5.64, cubic=True)
    unit.calc = calculator
    unit = relax_fully(unit, "the crystal", cell="isotropic", fmax=0.001, symmetry=True)
    harmonic = phonons(unit, supercell=(2, 2, 2))
    harmonic.set_long_waves(long_waves_of_model(calculator.model, *supercell_of(harmonic.phonopy)))
    harmonic.run(mesh=20.0 if arguments.quick else 80.0)
    to, lo = harmonic.at_gamma()[-1], harmonic.toward_gamma((1, 0, 0))[-1]
    print(f"phonons: TO {to:.2f} THz, LO {lo:.2f} THz, (LO / TO)^2 = {(lo / to) ** 2:.2f}")

    atoms = unit.repeat(arguments.cells)
    atoms.calc = calculator
    frames = vibrate(atoms, arguments)
    charges = calculator.get_property("charges", unit.repeat(arguments.cells))
    dipoles = np.einsum("n,tna->ta", charges, unwrapped(frames))
    volume = frames[0].get_volume()
    blocks = [dielectric_ratio(part, volume, arguments.temperature) for part in np.array_split(dipoles, BLOCKS)]
    ratio = dielectric_ratio(dipoles, volume, arguments.temperature)
    error = np.std(blocks) / (BLOCKS - 1) ** 0.5
    print(
        f"MD at {arguments.temperature:g} K: eps_0 / eps_inf = {ratio:.2f} ± {error:.2f} by fluctuations of the dipole"
    )
    velocities = np.array([frame.get_velocities() for frame in frames])
    spectrum = velocity_spectrum(velocities, frames[0].get_masses(), arguments.interval * arguments.timestep)
    print(f"wrote {draw(spectrum, dipoles, harmonic, arguments)}")


def vibrate(atoms: Atoms, arguments: argparse.Namespace) -> list[Atoms]:
    """Frames of a run with a weak bath that reaches every mode, without its first fifth."""
    trajectory = arguments.out / "vibrations.traj"
    simulate(
        atoms,
        arguments,
        "MD",
        trajectory,
        steps=arguments.steps,
        ensemble="nvt",
        temperature=arguments.temperature,
        friction=arguments.friction,
    )
    frames = ase.io.read(trajectory, index=":")
    return frames[len(frames) // 5 :]


def draw(
    spectrum: tuple[np.ndarray, np.ndarray], dipoles: np.ndarray, harmonic: Phonons, arguments: argparse.Namespace
) -> Path:
    """Densities of states of MD and of phonons, and the dipole in time."""
    dos = harmonic.phonopy.total_dos
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.8))
        left.plot(
            dos.frequency_points, dos.dos / np.trapezoid(dos.dos, dos.frequency_points), color="0.4", label="phonons"
        )
        left.plot(*spectrum, color=COLOURS[0], lw=1.0, label=f"MD, {arguments.temperature:g} K")
        left.set(xlabel="frequency (THz)", ylabel="density of states (1/THz)", xlim=(0, 1.2 * dos.frequency_points[-1]))
        left.legend(fontsize=8)
        time = arguments.interval * arguments.timestep / 1000 * np.arange(len(dipoles))
        for n, name in enumerate("xyz"):
            right.plot(time, dipoles[:, n] - dipoles[:, n].mean(), color=COLOURS[n], lw=0.8, label=name)
        right.set(xlabel="time (ps)", ylabel="dipole of the cell (e Å)")
        right.legend(fontsize=8)
        return save(figure, arguments.out / "vibrations.png")


def parse() -> argparse.Namespace:
    parser = make_parser(__doc__, model="nacl.pt", timestep=2.0, interval=4, out="nacl-vibrations")
    parser.add_argument("--cells", type=int, default=2, help="N: N x N x N cubic cells (default: 2, 64 atoms)")
    parser.add_argument("--temperature", type=float, default=100.0, help="K (default: 100)")
    parser.add_argument("--friction", type=float, default=0.001, help="of the bath, 1/fs (default: 0.001)")
    parser.add_argument("--steps", type=int, default=20_000, help="(default: 20000)")
    parser.add_argument("--quick", action="store_true", help="few steps of few atoms, to see that it runs")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.cells, arguments.steps = 1, 120
    return arguments


if __name__ == "__main__":
    run_script(main)
