"""`lrpot plot`: pictures of what a model has learned."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lrpot.cli.options import Model

app = typer.Typer(help="Pictures of what a model has learned.", no_args_is_help=True)

# A, from the nearest neighbours to where only the long range is left.
DISTANCES = (2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0)


@app.callback()
def root() -> None:
    pass  # with one command only, typer would drop its name


@app.command("kernel")
def kernel(
    model: Model,
    out: Annotated[
        Path | None, typer.Option("--out", help="Picture (png, pdf, svg).", show_default="kernel-MODEL.png beside it")
    ] = None,
) -> None:
    """The learned kernel: Phi(|k|), and the energy of two unit charges in real space beside Coulomb's."""
    import torch

    from lrpot import plots
    from lrpot.console import Console
    from lrpot.errors import ConfigError
    from lrpot.files import check_writable
    from lrpot.model_file import load
    from lrpot.units import COULOMB_CONSTANT

    console = Console()
    potential = load(model)
    if potential.long is None:
        raise ConfigError(f"{model}: this model has no long-range part, so there is no kernel to draw")
    picture = model.with_name(f"kernel-{model.stem}.png") if out is None else out
    check_writable(picture)
    distances = torch.tensor(DISTANCES, dtype=torch.float64)
    learned = potential.long.pair_energy(distances)
    bare = COULOMB_CONSTANT / distances
    rows = [
        [f"{r:g}", f"{u:.6f}", f"{c:.6f}", f"{u / c - 1.0:+.2e}"]
        for r, u, c in zip(DISTANCES, learned.tolist(), bare.tolist(), strict=True)
    ]
    header = ["r (A)", "learned (eV)", "Coulomb (eV)", "learned / Coulomb - 1"]
    console.table("energy of two unit charges", header, rows)
    plots.kernel(potential, picture)
    console.line(f"wrote {picture}")
