"""`lrpot charges`: effective charges from forces, before any network."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from lrpot.charges.prefit import Prefit
    from lrpot.console import Console


class Molecules(StrEnum):
    auto = "auto"
    off = "off"


def charges(
    data: Annotated[Path, typer.Argument(help="Structures with forces (eV/A), periodic in all directions.")],
    out: Annotated[Path, typer.Option("--out", help="YAML file of charges, e; a picture is written beside it.")] = Path(
        "charges.yaml"
    ),
    pair_cutoff: Annotated[
        float | None,
        typer.Option(
            "--pair-cutoff", help="Reach of the pair splines, A.", show_default="where charges are determined best"
        ),
    ] = None,
    molecules: Annotated[
        Molecules,
        typer.Option("--molecules", help="auto: forces are summed over bonded molecules, where there are any; off."),
    ] = Molecules.auto,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the files if they are there.")] = False,
) -> None:
    """Charges of all elements from forces by linear least squares, and how well the data determine them.

    `lrpot fit DATA --set model.charges.init=charges.yaml` starts from them. Data that do not determine charges are
    refused.
    """
    from lrpot import plots
    from lrpot.charges.charge_file import write_charges
    from lrpot.charges.prefit import PrefitRefused, fit_charges
    from lrpot.console import Console
    from lrpot.data.readers import StructureFile
    from lrpot.errors import ConfigError, OutputError
    from lrpot.files import check_writable

    console = Console()
    if out.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"{out}: a file of charges ends in .yaml; choose such a name for --out")
    picture = out.with_suffix(".png")
    for file in (out, picture):
        if file.exists() and not overwrite:
            raise OutputError(f"{file}: is already there; add --overwrite to replace it, or choose another --out")
        check_writable(file)
    try:
        fit = fit_charges(
            StructureFile(data), pair_cutoff=pair_cutoff, sum_molecules=molecules is Molecules.auto, console=console
        )
    except PrefitRefused as refusal:
        raise PrefitRefused(f"{data}: no charges: {refusal}") from refusal
    _show_data(fit, console)
    if fit.refusal is not None:
        _show_quality(fit, console, accepted=False)
        raise PrefitRefused(f"{data}: no charges: {fit.refusal}")
    _show_charges(fit, console)
    _show_quality(fit, console, accepted=True)
    console.line("verdict: the data determine these charges")
    write_charges(fit, out, str(data))
    plots.charges(fit, picture)
    console.line(f"wrote {out}")
    console.line(f"wrote {picture}")


def _show_data(fit: Prefit, console: Console) -> None:
    from lrpot.charges.survey import formula

    found = fit.found
    console.line(f"{found.n_frames} periodic frames with forces, {fit.equations.n_equations} force components used")
    if found.n_unusable:
        console.line(f"left out {found.n_unusable} frames without forces or not periodic in all directions")
    if found.n_too_large:
        console.line(
            f"left out {found.n_too_large} frames whose root mean square force is above {found.largest_size:.3g} eV/A, "
            "four times the lower quartile"
        )
    if fit.equations.molecules:
        kinds = ", ".join(f"{formula(kind)} ({count})" for kind, count in fit.equations.molecules.most_common(5))
        console.line(f"forces are summed over molecules: {kinds}")


def _show_charges(fit: Prefit, console: Console) -> None:
    from ase.data import chemical_symbols

    rows = [
        [chemical_symbols[z], f"{charge:+.4f}", f"{uncertainty:.4f}", f"{free:+.4f}"]
        for z, charge, uncertainty, free in zip(
            fit.elements, fit.best.charges, fit.best.uncertainties, fit.best.free, strict=True
        )
    ]
    title = f"charges (e), pair cutoff {fit.best.pair_cutoff:g} A"
    console.table(title, ["element", "charge", "uncertainty", "not made neutral"], rows)


def _show_quality(fit: Prefit, console: Console, *, accepted: bool) -> None:
    """Measures, with charges only where they are accepted: refused ones are not to be copied from a table."""
    from lrpot.charges.prefit import LONGER, words

    rows = []
    for at in fit.cutoffs:
        name = f"{at.pair_cutoff:g}{' (chosen)' if at is fit.best else ''}"
        measures = [f"{at.rank_one:.3f}", f"{at.explained:.1%}", f"{at.longer:.1%}", f"{at.wins:.0%}"]
        shown = words(dict(zip(fit.elements, at.charges.tolist(), strict=True))) if accepted else "-"
        rows.append([name, *measures, shown])
    header = [
        "pair cutoff (A)",
        "rank-one share",
        "charges explain",
        f"{LONGER:g} A longer splines explain",
        "blocks won",
    ]
    console.table("quality: of what splines leave, on held-out forces", [*header, "charges (e)"], rows)
    if accepted:
        console.line(f"largest change with the pair cutoff: {fit.spread:.1%}")
        for name, charge in fit.molecules.items():
            console.line(f"net charge of {name}, not made neutral: {charge:+.4f} e")
