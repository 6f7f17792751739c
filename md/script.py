"""What the scripts of this folder share: options, MD with a progress bar, errors in one line.

A script that is copied needs this file beside it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ase import Atoms

from lrpot.console import Console
from lrpot.errors import LrpotError
from lrpot.md import MDRun, run_md


def make_parser(text: str, *, model: str | None, timestep: float, interval: int, out: str) -> argparse.ArgumentParser:
    """A parser with the options that all scripts have; each adds its own.

    Args:
        text: of the script; its first line is what --help shows.
        model, timestep, interval, out: defaults; of a model None, where one must be named. timestep: fs.
            out: a trajectory if it has an ending, else a directory.
    """
    parser = argparse.ArgumentParser(description=text.splitlines()[0])
    known = "model file, or the name of one that comes with lrpot"
    if model is None:
        parser.add_argument("model", help=known)
    else:
        parser.add_argument("model", nargs="?", default=model, help=f"{known} (default: %(default)s)")
    parser.add_argument("--timestep", type=float, default=timestep, help="fs (default: %(default)g)")
    parser.add_argument(
        "--interval", type=int, default=interval, help="steps between recorded frames (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of velocities and bath (default: 0)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")
    what = "trajectory; an older one is" if Path(out).suffix else "directory; older results in it are"
    parser.add_argument("--out", type=Path, default=Path(out), help=f"{what} replaced (default: %(default)s)")
    return parser


def simulate(
    atoms: Atoms, arguments: argparse.Namespace, title: str, trajectory: Path, *, steps: int, **settings: Any
) -> MDRun:
    """MD with a progress bar; atoms and cell are left where it ends.

    Args:
        atoms: with a calculator.
        arguments: of a parser of `make_parser`: time step, interval, seed.
        title: beside the bar. trajectory: file for the frames.
        settings: others of `lrpot.md.Settings`: ensemble, temperature, ...
    """
    with Console().progress(f"{title}, {len(atoms)} atoms", steps, "steps") as update:
        return run_md(
            atoms,
            steps=steps,
            timestep=arguments.timestep,
            interval=arguments.interval,
            seed=arguments.seed,
            trajectory=trajectory,
            progress=update,
            **settings,
        )


def run_script(main: Callable[[], None]) -> None:
    """Run a script; what a user can mend is told in one line."""
    try:
        main()
    except (LrpotError, OSError) as error:
        sys.exit(f"error: {error}")
