"""Thermal expansion of GaN or NaCl at constant pressure: lattice constants, and what the atoms do meanwhile.

python md/thermal_expansion.py [MODEL] [--temperatures 100 300 500] [--structure FILE]

Classical nuclei: below the Debye temperature (GaN 600 K, NaCl 320 K) real crystals expand less.
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
from lrpot.analysis import mean_square_displacement, pair_distribution, unwrapped, velocity_spectrum
from lrpot.errors import ConfigError
from lrpot.plot_style import COLOURS, STYLE, save
from lrpot.supercell import repeated

# What a model of these elements is tried on: a crystal and how often it is repeated.
CRYSTALS = {
    frozenset({"Ga", "N"}): (bulk("GaN", "wurtzite", a=3.19, c=5.19), (4, 4, 2)),
    frozenset({"Na", "Cl"}): (bulk("NaCl", "rocksalt", a=5.64, cubic=True), (3, 3, 3)),
}
RMAX = 6.0  # A


def main() -> None:
    arguments = parse()
    calculator = LRCalculator(arguments.model, device=arguments.device, skin=0.5, stress=True)
    atoms, repeats = crystal(calculator, arguments.structure)
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.quick:
        repeats = (2, 2, 1) if len(atoms) < 8 else (1, 1, 1)
    atoms = repeated(atoms, arguments.cells or repeats)
    repeats = np.array(arguments.cells or repeats)
    atoms.calc = calculator
    frames, lengths = {}, []
    for temperature in sorted(arguments.temperatures):
        frames[temperature] = expanded(atoms, arguments, temperature)
        lengths.append(np.array([frame.cell.lengths() for frame in frames[temperature]]).mean(axis=0) / repeats)
        print(f"{temperature:6g} K: a, b, c = " + ", ".join(f"{x:.4f}" for x in lengths[-1]) + " A", flush=True)
    expansion = np.polyfit(list(frames), lengths, 1)
    for name, slope, length in zip("abc", expansion[0], np.mean(lengths, axis=0), strict=True):
        print(f"expansion of {name}: {1e6 * slope / length:.2f}e-6 1/K")
    print(f"wrote {draw(frames, np.array(lengths), expansion, arguments)}")


def crystal(calculator: LRCalculator, path: Path | None) -> tuple[Atoms, tuple[int, int, int]]:
    """The crystal of a file, or the one that suits the elements of the model.

    Raises:
        ConfigError: no file, and other elements.
    """
    if path is not None:
        return ase.io.read(path), (1, 1, 1)
    elements = frozenset(Atoms(calculator.model.elements).get_chemical_symbols())
    if elements not in CRYSTALS:
        raise ConfigError(f"the model knows {', '.join(sorted(elements))}; name a crystal of these with --structure")
    return CRYSTALS[elements]


def expanded(atoms: Atoms, arguments: argparse.Namespace, temperature: float) -> list[Atoms]:
    """Frames of the last two thirds of a run at one temperature; atoms and cell are left where it ends."""
    trajectory = arguments.out / f"{temperature:g}K.traj"
    simulate(
        atoms,
        arguments,
        f"{temperature:g} K",
        trajectory,
        steps=arguments.steps,
        ensemble="npt",
        barostat="full",
        temperature=temperature,
        pressure=arguments.pressure,
    )
    frames = ase.io.read(trajectory, index=":")
    return frames[len(frames) // 3 :]


def draw(
    frames: dict[float, list[Atoms]], lengths: np.ndarray, expansion: np.ndarray, arguments: argparse.Namespace
) -> Path:
    """Lattice constants, pair distributions, displacements and vibrations by temperature."""
    temperatures = np.array(list(frames))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(2, 2, figsize=(9.6, 7.2))
        for n, name in enumerate("abc"):
            axes[0, 0].plot(temperatures, lengths[:, n] / lengths[0, n], "o", color=COLOURS[n], label=name)
            line = np.polyval(expansion[:, n], temperatures) / lengths[0, n]
            axes[0, 0].plot(temperatures, line, color=COLOURS[n], lw=1.0)
        axes[0, 0].set(xlabel="temperature (K)", ylabel="length / that at the lowest temperature")
        axes[0, 0].legend(fontsize=8)
        for n, (temperature, found) in enumerate(frames.items()):
            colour, label = COLOURS[n % len(COLOURS)], f"{temperature:g} K"
            symbols = sorted(set(found[0].symbols))
            one, other = symbols[0], symbols[-1]  # the same of an element alone
            axes[0, 1].plot(*pair_distribution(found[::5], one, other, RMAX), color=colour, lw=1.2, label=label)
            step = arguments.interval * arguments.timestep
            msd = mean_square_displacement(unwrapped(found))
            axes[1, 0].plot(step / 1000 * np.arange(len(msd)), msd, color=colour, lw=1.2, label=label)
            velocities = np.array([frame.get_velocities() for frame in found])
            spectrum = velocity_spectrum(velocities, found[0].get_masses(), step)
            axes[1, 1].plot(*spectrum, color=colour, lw=0.8, label=label)
        axes[0, 1].set(xlabel="r (Å)", ylabel=f"g(r), {one}-{other}")
        axes[1, 0].set(xlabel="time (ps)", ylabel="mean square displacement (Å²)")
        axes[1, 1].set(
            xlabel="frequency (THz)", ylabel="vibrations (1/THz)", xlim=(0, 30 if "N" in (one, other) else 12)
        )
        for axis in axes.flat[1:]:
            axis.legend(fontsize=8)
        return save(figure, arguments.out / "expansion.png")


def parse() -> argparse.Namespace:
    parser = make_parser(__doc__, model="gan.pt", timestep=1.0, interval=10, out="expansion")
    parser.add_argument(
        "--structure", type=Path, default=None, help="another crystal (default: by the model's elements)"
    )
    parser.add_argument(
        "--cells", type=int, nargs=3, default=None, help="repeats (default: 128 atoms of GaN, 216 of NaCl)"
    )
    parser.add_argument(
        "--temperatures", type=float, nargs="+", default=[100, 300, 500, 700], help="K (default: 100 300 500 700)"
    )
    parser.add_argument("--steps", type=int, default=10_000, help="at each of them (default: 10000)")
    parser.add_argument("--pressure", type=float, default=0.0, help="GPa (default: 0)")
    parser.add_argument("--quick", action="store_true", help="few steps of few atoms, to see that it runs")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.steps, arguments.temperatures = 60, [100.0, 300.0]
    if len(set(arguments.temperatures)) < 2:
        parser.error("--temperatures: give two or more, or there is no expansion")
    return arguments


if __name__ == "__main__":
    run_script(main)
