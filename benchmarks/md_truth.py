"""Is MD with `nacl.pt` and `gan.pt` true? Drift (NVE), temperature and its fluctuation (NVT), conserved energy (NPT).

    python benchmarks/md_truth.py FOLDER [--ps 20] [--only nve npt-full]

Each part is a run of its own in FOLDER, which goes on where it was when it is interrupted and the same command is given
again. float64, 1 fs, 64 atoms of NaCl or 72 of GaN. Also measured: what a step costs beside the model, in the same
process and in turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.build import bulk
from timing import machine, write

from lrpot import LRCalculator
from lrpot.console import Console
from lrpot.md import run_md

KELVIN = 300.0
CRYSTALS = {
    "nacl.pt": bulk("NaCl", "rocksalt", a=5.62, cubic=True) * (2, 2, 2),
    "gan.pt": bulk("GaN", "wurtzite", a=3.135, c=5.170) * (3, 3, 2),
}
EQUILIBRATION = 0.2  # of a run with a bath, left out of the means
BLOCKS = 20
SKIN = 0.5  # A
OVERHEAD_STEPS = 60

PARTS: dict[str, dict[str, Any]] = {
    "nve": {"ensemble": "nve"},
    "nve-gan": {"ensemble": "nve", "model": "gan.pt"},
    "nvt-langevin": {"ensemble": "nvt", "thermostat": "langevin", "friction": 0.01},
    "nvt-bussi": {"ensemble": "nvt", "thermostat": "bussi"},
    "nvt-nose-hoover": {"ensemble": "nvt", "thermostat": "nose-hoover"},
    "npt-isotropic": {"ensemble": "npt", "barostat": "isotropic"},
    "npt-full": {"ensemble": "npt", "barostat": "full"},
}
# times as long as the others: this bath exchanges energy slowly with so harmonic a crystal
LONGER = {"nvt-nose-hoover": 5}


def main() -> None:
    arguments = parse()
    console = Console()
    found: dict[str, Any] = {}
    for name in arguments.only or PARTS:
        found[name] = measure(name, PARTS[name], arguments, console)
        console.line(f"{name}: " + ", ".join(f"{key} {value:.3g}" for key, value in found[name].items()))
    found["overhead"] = overhead(arguments.folder)
    console.line("overhead: " + ", ".join(f"{key} {value:.3g}" for key, value in found["overhead"].items()))
    if arguments.only is None:
        console.line(f"wrote {write('md_truth', {'machine': machine(), 'parts': found})}")


def crystal(model: str = "nacl.pt", stress: bool = False) -> Atoms:
    """The atoms of a run, with the model."""
    atoms = CRYSTALS[model].copy()
    atoms.calc = LRCalculator(model, skin=SKIN, stress=stress)
    return atoms


def measure(name: str, settings: dict[str, Any], arguments: argparse.Namespace, console: Console) -> dict[str, float]:
    """One run, or the rest of it; means with standard errors from blocks."""
    ps = LONGER.get(name, 1) * arguments.ps
    steps = round(1000 * ps)
    done = arguments.folder / f"{name}.state"
    settings = dict(settings)
    atoms = crystal(settings.pop("model", "nacl.pt"), stress=settings["ensemble"] == "npt")
    with console.progress(name, steps, "steps") as update:
        run = run_md(
            atoms,
            # half of what a crystal at rest is given goes into its potential energy
            temperature=2.0 * KELVIN if settings["ensemble"] == "nve" else KELVIN,
            steps=steps,
            interval=5,
            save_every=500,
            table=arguments.folder / f"{name}.csv",
            state=done,
            resume=done.exists(),
            progress=update,
            **settings,
        )
    first = 0 if settings["ensemble"] == "nve" else round(EQUILIBRATION * len(run.time_fs))
    temperature, error = mean_and_error(run.temperature[first:])
    results = {"ps": ps, "T (K)": temperature, "error of T (K)": error}
    if run.conserved:
        results["drift (eV/atom/ps)"] = run.drift
        results["fluctuation of the conserved energy (eV/atom)"] = float(np.std(run.conserved)) / len(atoms)
    if settings["ensemble"] != "nve":
        freedom = 3 * len(atoms) - (0 if settings.get("thermostat") == "langevin" else 3)
        squares, error = mean_and_error((np.array(run.kinetic[first:]) - 0.5 * freedom * units.kB * KELVIN) ** 2)
        canonical = 0.5 * freedom * (units.kB * KELVIN) ** 2
        results |= {"variance of E_kin / canonical": squares / canonical, "error of that": error / canonical}
        results["T off by sigmas"] = (temperature - KELVIN) / results["error of T (K)"]
    if run.pressure:
        pressure, error = mean_and_error(run.pressure[first:])
        results |= {"p (GPa)": pressure, "error of p (GPa)": error}
        results["volume (A^3/atom)"] = float(np.mean(run.volume[first:])) / len(atoms)
    return results


def overhead(folder: Path) -> dict[str, float]:
    """Milliseconds of a step of NVE, all included but frames, and of the model in it; medians."""
    atoms = crystal()
    model, inside, steps = atoms.calc.model, [], []
    forward = model.forward

    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        output = forward(*args, **kwargs)
        inside.append(time.perf_counter() - start)
        return output

    def stop() -> bool:
        steps.append(time.perf_counter())
        return False

    model.forward = timed
    run_md(atoms, steps=OVERHEAD_STEPS, interval=OVERHEAD_STEPS, temperature=KELVIN, stop=stop)
    whole = np.diff(steps)[5:]
    beside = whole - np.array(inside)[-len(whole) :]
    return {
        "step (ms)": 1e3 * statistics.median(whole),
        "beside the model (ms)": 1e3 * statistics.median(beside),
        "least beside the model (ms)": 1e3 * float(beside.min()),
    }


def mean_and_error(values: Any) -> tuple[float, float]:
    """Mean, and its standard error from the means of blocks."""
    means = [float(block.mean()) for block in np.array_split(np.asarray(values), BLOCKS)]
    return statistics.mean(means), statistics.stdev(means) / BLOCKS**0.5


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the runs are kept")
    parser.add_argument("--ps", type=float, default=20.0, help="length of a run (default: 20)")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="some parts; nothing goes to results/ then")
    return parser.parse_args()


if __name__ == "__main__":
    main()
