"""`lrpot data`: computes data sets from scratch, packs them, and looks after the cache of their graphs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lrpot.cli.options import Seed

app = typer.Typer(help="Compute a data set, pack one into shards, or clean the cache of graphs.", no_args_is_help=True)


class Defect(StrEnum):
    none = "none"
    vacancy = "vacancy"


Out = Annotated[Path, typer.Option("--out", help="File to write: name.extxyz.", show_default=False)]
Number = Annotated[int, typer.Option("--n", help="Number of structures.")]
Jobs = Annotated[int, typer.Option("--jobs", help="Number of processes.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the file if it is there.")]


@app.command()
def nacl(
    out: Out,
    n: Number = 1000,
    supercell: Annotated[
        int, typer.Option("--supercell", help="Primitive cells along each vector; N gives 2 N^3 atoms.")
    ] = 3,
    rattle: Annotated[
        float, typer.Option("--rattle", help="Standard deviation of each Cartesian displacement, A.")
    ] = 0.1,
    seed: Seed = 0,
    defect: Annotated[Defect, typer.Option("--defect", help="vacancy: one random ion is missing.")] = Defect.none,
    jobs: Jobs = 1,
    overwrite: Overwrite = False,
) -> None:
    """Rattled NaCl with fixed charges: Ewald energies (eV) and forces (eV/A) by pymatgen.

    An interrupted build goes on when the same command is given again.
    """
    from lrpot.data.builders.nacl import atoms_per_structure, build_nacl

    with _counted(n) as count:
        build_nacl(
            out,
            n=n,
            supercell=supercell,
            rattle=rattle,
            seed=seed,
            defect=defect.value,
            jobs=jobs,
            overwrite=overwrite,
            progress=count,
        )
    print(f"{out}: {n} rows of {atoms_per_structure(supercell, defect.value)} atoms{count.told()}")


@app.command("molten-salt")
def molten_salt(
    out: Out,
    n: Number = 300,
    supercell: Annotated[
        int, typer.Option("--supercell", help="Cubic cells along each axis; N gives 8 N^3 atoms.")
    ] = 2,
    seed: Seed = 0,
    jobs: Jobs = 1,
    overwrite: Overwrite = False,
) -> None:
    """NaCl, strained, hot, with vacancies and molten: energies (eV), forces (eV/A) and stresses (eV/A^3) of the
    potential of Fumi and Tosi.

    An interrupted build goes on when the same command is given again.
    """
    from lrpot.data.builders.molten_salt import build_molten_salt

    with _counted(n) as count:
        build_molten_salt(out, n=n, supercell=supercell, seed=seed, jobs=jobs, overwrite=overwrite, progress=count)
    print(f"{out}: {n} rows of up to {8 * supercell**3} atoms{count.told()}")


@app.command()
def gan(
    out: Out,
    n: Number = 1660,
    seed: Seed = 0,
    calculator: Annotated[
        str | None,
        typer.Option(
            "--calculator",
            metavar="MODULE:FACTORY",
            help="Another engine: FACTORY() gives an ASE calculator of energy (eV) and forces (eV/A); stress and "
            "charges are written if it has them. MODULE must be importable (PYTHONPATH).",
            show_default="GFN2-xTB by tblite",
        ),
    ] = None,
    scale: Annotated[
        float, typer.Option("--scale", help="Lattice constants of that engine over those of GFN2-xTB.")
    ] = 1.0,
    jobs: Jobs = 1,
    overwrite: Overwrite = False,
) -> None:
    """GaN with point defects, strained and hot: energies (eV), forces (eV/A), stresses (eV/A^3), charges (e) by xTB.

    Each structure takes seconds. An interrupted build goes on when the same command is given again. Structures that
    the engine fails at are left out and recorded in OUT.failed.json.
    """
    from lrpot.console import Console
    from lrpot.data.builders.gan import build_gan

    with _counted(n) as count:
        failed = build_gan(
            out,
            n=n,
            seed=seed,
            calculator=calculator,
            scale=scale,
            jobs=jobs,
            overwrite=overwrite,
            progress=count,
        )
    if failed:
        row, why = next(iter(failed.items()))
        Console().warn(
            f"{len(failed)} of {n} rows failed and are left out (row {row}: {why.reason}); {out}.failed.json has all"
        )
    print(f"{out}: {n - len(failed)} rows{count.told()}")


class _Count:
    """What is shown of a build while it goes on, and told of it at the end."""

    def __init__(self, update: Callable[[int], None]) -> None:
        self.update = update
        self.start = time.perf_counter()
        self.found: int | None = None  # rows that were there before
        self.done = 0

    def __call__(self, done: int, total: int) -> None:
        if self.found is None:
            self.found = done
        self.done = done
        self.update(done)

    def told(self) -> str:
        seconds = time.perf_counter() - self.start
        earlier = f", {self.found} of them made earlier" if self.found else ""
        return f"{earlier}; {seconds:.1f} s, {(self.done - (self.found or 0)) / seconds:.1f} structures/s"


@contextmanager
def _counted(n: int) -> Iterator[_Count]:
    """Counts the structures of a build, and shows how many there are."""
    from lrpot.console import Console

    with Console().progress("computing", n, "structures") as update:
        yield _Count(update)


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
