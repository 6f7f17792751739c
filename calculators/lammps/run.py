"""MD in LAMMPS with a model, in one process or, with mpiexec, in several.

    python calculators/lammps/run.py MODEL [INPUT] [--run "run 100"]
    mpiexec -n 2 python calculators/lammps/run.py MODEL

INPUT is LAMMPS's: it makes box, atoms and masses, and ends before the first run (default: in.nacl beside this script).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lrpot import load
from lrpot.errors import LrpotError
from lrpot.interfaces.lammps import LammpsModel, open_lammps, read_input

INPUT = Path(__file__).parent / "in.nacl"


def main() -> None:
    arguments = parse()
    lmp = None
    try:
        potential = load(arguments.model)
        lmp = open_lammps("-log", "none", *arguments.variable)
        read_input(lmp, arguments.input)
        model = LammpsModel(lmp, potential, species=arguments.species, device=arguments.device)
        for line in arguments.run or ["fix move all nve", "run 100"]:
            model.command(line)
        if model.exchange.first:
            print(
                f"{model.exchange.size} processes, ghosts up to {model.halo_width:g} A; the first has {model.n_own} of "
                f"{model.n_atoms} atoms and sees {len(model.structure.numbers)}"
            )
    except LrpotError as error:
        sys.exit(f"error: {error}")
    finally:
        if lmp is not None:
            lmp.close()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "model", type=Path, help="model file, or the name of one that comes with lrpot, such as nacl.pt"
    )
    parser.add_argument("input", type=Path, nargs="?", default=INPUT, help="LAMMPS input (default: in.nacl)")
    parser.add_argument("--species", nargs="+", default=["Na", "Cl"], help="of atom types 1, 2, ... (default: Na Cl)")
    parser.add_argument(
        "--run", action="append", help="command that follows; may be given several times (default: NVE)"
    )
    parser.add_argument("--var", nargs=2, dest="variable", default=[], help="a variable of the input, such as cells 4")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")
    arguments = parser.parse_args()
    if arguments.variable:
        arguments.variable = ["-var", *arguments.variable]
    return arguments


if __name__ == "__main__":
    main()
