"""`lrpot data`: computes data sets from scratch, packs them, and looks after the cache of their graphs."""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lrpot.cli.options import Seed

if TYPE_CHECKING:
    from lrpot.data.builders.rows import Progress

app = typer.Typer(help="Compute a data set, pack one into shards, or clean the cache of graphs.", no_args_is_help=True)


class Defect(StrEnum):
    none = "none"
    vacancy = "vacancy"


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
    from lrpot.data.builders.nacl import atoms_per_structure, build_nacl

    def build(progress: Progress) -> object:
        return build_nacl(
            out,
            n=n,
            supercell=supercell,
            rattle=rattle,
            seed=seed,
            defect=defect.value,
            jobs=jobs,
            overwrite=overwrite,
            progress=progress,
        )

    _build(out, n, f"{atoms_per_structure(supercell, defect.value)} atoms", build)


@app.command("molten-salt")
def molten_salt(
    out: Annotated[Path, typer.Option("--out", help="File to write: name.extxyz.", show_default=False)],
    n: Annotated[int, typer.Option("--n", help="Number of structures.")] = 400,
    supercell: Annotated[
        int, typer.Option("--supercell", help="Cubic cells along each axis; N gives 8 N^3 atoms.")
    ] = 2,
    seed: Seed = 0,
    jobs: Annotated[int, typer.Option("--jobs", help="Number of processes.")] = 1,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it is there.")] = False,
) -> None:
    """NaCl, strained, hot, with vacancies and molten: energies (eV), forces (eV/A) and stress (eV/A^3) of the potential
    of Fumi and Tosi.

    An interrupted build goes on when the same command is given again.
    """
    from lrpot.data.builders.molten_salt import build_molten_salt

    def build(progress: Progress) -> object:
        return build_molten_salt(
            out, n=n, supercell=supercell, seed=seed, jobs=jobs, overwrite=overwrite, progress=progress
        )

    _build(out, n, f"up to {8 * supercell**3} atoms", build)


def _build(out: Path, n: int, size: str, build: Callable[[Progress], object]) -> None:
    """Compute rows with a bar, and say how many there are and how quickly they came.

    Args:
        n: rows. size: of each, in words.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    found: list[int] = []  # rows that were there before
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bars(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=n)

        def show(done: int, total: int) -> None:
            if not found:
                found.append(done)
            bar.update(task, completed=done, total=total)

        start = time.perf_counter()
        build(show)
        seconds = time.perf_counter() - start
    made = n - found[0]
    earlier = f", {found[0]} of them made earlier" if found[0] else ""
    print(f"{out}: {n} rows of {size}{earlier}; {seconds:.1f} s, {made / seconds:.1f} structures/s")


@app.command()
def shards(
    files: Annotated[list[str], typer.Argument(help="Files or patterns, in any format that ASE reads.")],
    out: Annotated[Path, typer.Option("--out", help="Directory of the shards.", show_default=False)],
    rows: Annotated[int, typer.Option("--rows", min=1, help="Rows of a shard.")] = 10_000,
) -> None:
    """Pack labelled structures into HDF5 shards, which are read faster than text.

    `lrpot fit "OUT/*.h5"` reads them; rows count on from shard to shard.
    """
    from lrpot.console import Console
    from lrpot.data.packing import write_shards
    from lrpot.data.sources import expand

    with Console().progress("shards", None, "rows") as update:
        written = write_shards(out, expand(files), rows, progress=update)
    print(f"{out}: {len(written)} shards of up to {rows} rows, {sum(path.stat().st_size for path in written)} bytes")


@app.command()
def cache(
    folder: Annotated[
        Path | None, typer.Option("--folder", help="The cache.", show_default="LRPOT_CACHE, or ~/.cache/lrpot")
    ] = None,
    clean: Annotated[bool, typer.Option("--clean", help="Remove all graphs in it.")] = False,
) -> None:
    """Show or clean the cache of graphs, which fits fill and find again (`data.cache`)."""
    from lrpot.data import cache as graphs

    place = folder or graphs.default_folder()
    if clean:
        print(f"{place}: removed {graphs.clean(place) / 1e6:.1f} MB")
        return
    found = graphs.entries(place)
    for entry in found:
        print(f"{entry.size / 1e6:12.1f} MB  {entry.path.name}")
    print(f"{sum(entry.size for entry in found) / 1e6:12.1f} MB  in {place}")
