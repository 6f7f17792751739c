"""`lrpot data`: computes data sets from scratch."""

from __future__ import annotations

import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lrpot.cli.options import Seed

app = typer.Typer(help="Compute a data set from scratch.", no_args_is_help=True)


class Defect(StrEnum):
    none = "none"
    vacancy = "vacancy"


@app.callback()
def data() -> None:
    """Keeps `nacl` a word of its own: typer would drop the name of an only command."""


@app.command()
def nacl(
    out: Annotated[Path, typer.Option("--out", help="File to write: name.extxyz.", show_default=False)],
    n: Annotated[int, typer.Option("--n", help="Number of structures.")] = 1000,
    supercell: Annotated[
        int, typer.Option("--supercell", help="Primitive cells along each vector; N gives 2 N^3 atoms.")
    ] = 3,
    rattle: Annotated[
        float, typer.Option("--rattle", help="Standard deviation of each Cartesian displacement, A.")
    ] = 0.1,
    seed: Seed = 0,
    defect: Annotated[Defect, typer.Option("--defect", help="vacancy: one random ion is missing.")] = Defect.none,
    jobs: Annotated[int, typer.Option("--jobs", help="Number of processes.")] = 1,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it is there.")] = False,
) -> None:
    """Rattled NaCl with fixed charges: Ewald energies (eV) and forces (eV/A) by pymatgen.

    An interrupted build goes on when the same command is given again.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    from lrpot.data.builders.nacl import atoms_per_structure, build_nacl

    console = Console(stderr=True)
    found: list[int] = []  # rows that were there before
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=n)

        def show(done: int, total: int) -> None:
            if not found:
                found.append(done)
            bar.update(task, completed=done, total=total)

        start = time.perf_counter()
        build_nacl(
            out,
            n=n,
            supercell=supercell,
            rattle=rattle,
            seed=seed,
            defect=defect.value,
            jobs=jobs,
            overwrite=overwrite,
            progress=show,
        )
        seconds = time.perf_counter() - start
    made = n - found[0]
    earlier = f", {found[0]} of them made earlier" if found[0] else ""
    print(
        f"{out}: {n} rows of {atoms_per_structure(supercell, defect.value)} atoms{earlier}; "
        f"{seconds:.1f} s, {made / seconds:.1f} structures/s"
    )
