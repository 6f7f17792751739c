"""`lrpot report`: a page about a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lrpot.cli.options import Device


def report(
    run: Annotated[Path, typer.Argument(help="Directory of a potential that lrpot fit wrote, finished or not.")],
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            help="Labelled structures to look at (eV, eV/A, eV/A^3).",
            show_default="those that the run held back to validate and to test",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="File to write.", show_default="report.html in the run")
    ] = None,
    device: Device = "cpu",
) -> None:
    """One HTML page about the fit of a potential: errors, parity plots, learning curves, kernel, charges, and the worst
    structures in 3-D.

    The page needs nothing beside itself and no network. Errors are computed anew with the run's model.
    """
    from lrpot.console import Console
    from lrpot.report.page import write_report

    console = Console()
    page = write_report(run, out, data=data, device=device, console=console)
    console.line(f"wrote {page} ({page.stat().st_size / 1e6:.1f} MB); open it in a browser")
