"""A model as the force engine of i-PI.

    python calculators/ipi/client.py MODEL CRYSTAL [--socket lrpot]

i-PI runs beside it: `i-pi input.xml`, with the same crystal and the same address.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import ase.io

from lrpot import LRCalculator
from lrpot.errors import LrpotError
from lrpot.interfaces.ipi import run_client


def main() -> None:
    arguments = parse()
    try:
        calculator = LRCalculator(arguments.model, device=arguments.device, skin=0.5)
        atoms = ase.io.read(arguments.crystal)
        atoms.calc = calculator
        where = (
            {"host": arguments.host, "port": arguments.port} if arguments.host else {"unix_socket": arguments.socket}
        )
        steps = run_client(atoms, stress=arguments.stress, **where)
    except (LrpotError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"i-PI has ended; {steps} configurations were computed")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "model", type=Path, help="model file, or the name of one that comes with lrpot, such as nacl.pt"
    )
    parser.add_argument("crystal", type=Path, help="file that i-PI starts from: elements in the same order")
    parser.add_argument("--socket", default="lrpot", help="address of i-PI's unix socket (default: lrpot)")
    parser.add_argument("--host", help="machine that i-PI runs on, for mode='inet' (default: the unix socket)")
    parser.add_argument("--port", type=int, default=31415, help="its port (default: 31415)")
    parser.add_argument("--stress", action="store_true", help="compute the stress, for constant pressure")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
