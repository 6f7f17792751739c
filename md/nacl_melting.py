"""Heat NaCl through its melting at constant pressure, then look at the melt.

python md/nacl_melting.py [MODEL] [--cells 3] [--heat 20000] [--melt 10000]

A perfect crystal in a periodic cell has no surface where a melt could begin, so it is overheated before it melts, and
the more so the faster it is heated: the temperature that is printed, at which it collapses, is above the melting point.
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
from lrpot.analysis import diffusion, mean_square_displacement, pair_distribution, unwrapped
from lrpot.md import MDRun
from lrpot.plot_style import COLOURS, STYLE, save

PAIRS = (("Na", "Cl"), ("Na", "Na"), ("Cl", "Cl"))
RMAX = 8.0  # A


def main() -> None:
    arguments = parse()
    atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True).repeat(arguments.cells)
    atoms.calc = LRCalculator(arguments.model, device=arguments.device, skin=0.5, stress=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    out = arguments.out
    heated = at_pressure(atoms, arguments, "heating", arguments.heat, arguments.first, arguments.last)
    early = max(len(heated.time_fs) // 20, 1)  # the first frames are of a crystal that does not vibrate yet
    cold = ase.io.read(out / "heating.traj", index=f"{early}:{2 * early + 1}")
    molten = at_pressure(atoms, arguments, "melt", arguments.melt, arguments.last, None)
    hot = ase.io.read(out / "melt.traj", index=f"{len(molten.time_fs) // 5}:")  # what is left of the crystal is gone

    step = arguments.interval * arguments.timestep
    collapse = melting_temperature(np.array(heated.volume), bath(arguments, len(heated.volume)))
    print(f"the crystal collapses at {collapse:.0f} K (volume per ion pair {pair_volume(atoms):.1f} A^3 in the melt)")
    paths = unwrapped(hot)
    rates = {}
    for symbol in ("Na", "Cl"):
        msd = mean_square_displacement(paths[:, hot[0].symbols == symbol])
        time = step * np.arange(len(msd))
        rates[symbol] = (time, msd, diffusion(time, msd))
        print(f"D({symbol}) at {arguments.last:g} K: {1e-4 * rates[symbol][2]:.2e} cm^2/s")
    for name, frames in (("crystal", cold), ("melt", hot)):
        r, g = pair_distribution(frames[::5], "Na", "Cl", RMAX)
        print(f"first peak of g(r), Na-Cl, {name}: {r[g.argmax()]:.2f} A, height {g.max():.1f}")
    print(f"wrote {draw(heated, bath(arguments, len(heated.volume)), cold, hot, rates, out / 'melting.png')}")


def at_pressure(
    atoms: Atoms, arguments: argparse.Namespace, name: str, steps: int, first: float, last: float | None
) -> MDRun:
    """One run at constant pressure, atoms and cell left where it ends; recorded under that name."""
    return simulate(
        atoms,
        arguments,
        name,
        arguments.out / f"{name}.traj",
        steps=steps,
        ensemble="npt",
        temperature=first,
        temperature_end=last,
        pressure=arguments.pressure,
    )


def bath(arguments: argparse.Namespace, frames: int) -> np.ndarray:
    """K, the temperature of the bath at every frame of the heating."""
    return np.linspace(arguments.first, arguments.last, frames)


def melting_temperature(volume: np.ndarray, temperature: np.ndarray) -> float:
    """K, where the volume grows fastest over a tenth of the run."""
    span = max(len(volume) // 10, 1)
    growth = volume[span:] - volume[:-span]
    return float(temperature[growth.argmax() + span // 2])


def pair_volume(atoms: Atoms) -> float:
    return float(2.0 * atoms.get_volume() / len(atoms))


def draw(
    heated: MDRun,
    temperature: np.ndarray,
    cold: list[Atoms],
    hot: list[Atoms],
    rates: dict[str, tuple[np.ndarray, np.ndarray, float]],
    path: Path,
) -> Path:
    """Energy and volume against temperature, g(r) of both phases, displacements in the melt."""
    n = heated.n_atoms
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(2, 2, figsize=(9.6, 7.2))
        axes[0, 0].plot(temperature, np.array(heated.potential) / n, color=COLOURS[0], lw=1.0)
        axes[0, 0].set(xlabel="temperature of the bath (K)", ylabel="potential energy (eV/atom)")
        axes[0, 1].plot(temperature, 2 * np.array(heated.volume) / n, color=COLOURS[0], lw=1.0)
        axes[0, 1].set(xlabel="temperature of the bath (K)", ylabel="volume (Å³ per ion pair)")
        for colour, pair in zip(COLOURS, PAIRS, strict=False):
            for frames, style in ((cold, "-"), (hot, "--")):
                r, g = pair_distribution(frames[::5], *pair, RMAX)
                phase = "crystal" if style == "-" else "melt"
                axes[1, 0].plot(r, g, style, color=colour, lw=1.2, label=f"{'-'.join(pair)}, {phase}")
        axes[1, 0].set(xlabel="r (Å)", ylabel="g(r)")
        axes[1, 0].legend(fontsize=8)
        for colour, (symbol, (time, msd, rate)) in zip(COLOURS, rates.items(), strict=False):
            axes[1, 1].plot(time / 1000, msd, color=colour, label=f"{symbol}: D = {1e-4 * rate:.1e} cm²/s")
        axes[1, 1].set(xlabel="time (ps)", ylabel="mean square displacement, melt (Å²)")
        axes[1, 1].legend(fontsize=8)
        return save(figure, path)


def parse() -> argparse.Namespace:
    parser = make_parser(__doc__, model="nacl.pt", timestep=2.0, interval=20, out="nacl-melting")
    parser.add_argument("--cells", type=int, default=3, help="N: N x N x N cubic cells (default: 3, 216 atoms)")
    parser.add_argument("--first", type=float, default=300.0, help="K (default: 300)")
    parser.add_argument("--last", type=float, default=1800.0, help="K (default: 1800)")
    parser.add_argument("--heat", type=int, default=20_000, help="steps of heating (default: 20000)")
    parser.add_argument("--melt", type=int, default=10_000, help="steps of the melt (default: 10000)")
    parser.add_argument("--pressure", type=float, default=0.0, help="GPa (default: 0)")
    parser.add_argument("--quick", action="store_true", help="few steps of few atoms, to see that it runs")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.cells, arguments.heat, arguments.melt, arguments.interval = 1, 60, 60, 5
    return arguments


if __name__ == "__main__":
    run_script(main)
