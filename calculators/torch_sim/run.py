"""Many cells relaxed at once in torch-sim, then moved at constant energy, all in one batch.

    python calculators/torch_sim/run.py MODEL [CRYSTALS] [--steps 100] [--md 20]

Without a file of crystals it takes NaCl at three lattice constants, each atom moved by a little from its place.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import ase.io
import torch_sim
from ase import Atoms
from ase.build import bulk

from lrpot.errors import LrpotError
from lrpot.interfaces.torch_sim import TorchSimModel


def main() -> None:
    arguments = parse()
    try:
        crystals = salts() if arguments.crystals is None else ase.io.read(arguments.crystals, index=":")
        model = TorchSimModel(arguments.model, device=arguments.device, skin=0.5)
        relaxed = torch_sim.optimize(
            crystals,
            model,
            optimizer=torch_sim.optimizers.fire,
            max_steps=arguments.steps,
            convergence_fn=torch_sim.generate_force_convergence_fn(arguments.fmax, include_cell_forces=False),
        )
        show("relaxed", relaxed)
        moved = torch_sim.integrate(
            relaxed,
            model,
            integrator=torch_sim.integrators.nve,
            n_steps=arguments.md,
            temperature=300.0,
            timestep=0.001,  # ps
        )
        show("moved", moved)
    except (LrpotError, OSError) as error:
        sys.exit(f"error: {error}")
    ase.io.write(arguments.out, relaxed.to_atoms())
    print(f"wrote the relaxed cells to {arguments.out}")


def show(what: str, state: torch_sim.SimState) -> None:
    counts = state.n_atoms_per_system.tolist()
    for n, forces in enumerate(state.forces.split(counts)):
        volume, energy = float(state.volume[n]) / counts[n], float(state.energy[n]) / counts[n]
        largest = float(forces.norm(dim=1).max())
        print(f"{what} cell {n}: {volume:.3f} A^3/atom, {energy:.5f} eV/atom, largest force {largest:.1e} eV/A")


def salts() -> list[Atoms]:
    crystals = []
    for seed, constant in enumerate((5.5, 5.6, 5.7)):
        crystals.append(bulk("NaCl", "rocksalt", a=constant, cubic=True))
        crystals[-1].rattle(0.1, seed=seed)
    return crystals


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "model", type=Path, help="model file, or the name of one that comes with lrpot, such as nacl.pt"
    )
    parser.add_argument("crystals", type=Path, nargs="?", help="any file that ASE reads (default: rattled NaCl)")
    parser.add_argument("--steps", type=int, default=100, help="of the relaxation, at most (default: 100)")
    parser.add_argument("--fmax", type=float, default=0.01, help="largest force that ends it, eV/A (default: 0.01)")
    parser.add_argument("--md", type=int, default=20, help="steps of 1 fs that follow, at 300 K (default: 20)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("relaxed.extxyz"),
        help="the relaxed cells; an older file is replaced (default: %(default)s)",
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
