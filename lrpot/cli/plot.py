"""`lrpot plot`: pictures of what a model has learned."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lrpot.cli.crystal import Crystal
from lrpot.cli.options import Model

if TYPE_CHECKING:
    from lrpot.data.readers import Row
    from lrpot.properties.model import PropertyEnsemble, PropertyModel

app = typer.Typer(help="Pictures of what a model has learned.", no_args_is_help=True)

# A, from the nearest neighbours to where only the long range is left.
DISTANCES = (2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0)


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
    from lrpot.model_file import load
    from lrpot.plot_style import check_picture
    from lrpot.units import COULOMB_CONSTANT

    console = Console()
    picture = model.with_name(f"kernel-{model.stem}.png") if out is None else out
    check_picture(picture)
    potential = load(model)
    if potential.long is None:
        raise ConfigError(f"{model}: this model has no long-range part, so there is no kernel to draw")
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


@app.command("diffraction")
def diffraction(
    model: Annotated[Path, typer.Argument(help="Model file of lrpot fit --encoder ... --diffraction on.")],
    crystal: Crystal,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Picture (png, pdf, svg).", show_default="diffraction-CRYSTAL.png beside MODEL"),
    ] = None,
) -> None:
    """The pattern that pseudo-particles of a model scatter from a crystal, beside that of X-rays."""
    from lrpot.console import Console
    from lrpot.properties.spectra import draw, pseudo_lines, strongest, xray_lines

    console = Console()
    loaded, row, picture = _opened("diffraction", model, crystal, out)
    with _naming(model, row):
        pseudo = pseudo_lines(loaded, row.atoms)
        xray = xray_lines(row.atoms, pseudo.q_max)
    rows = [[f"{q:.3f}", f"{one:.1f}", f"{other:.1f}"] for q, one, other in strongest(pseudo, xray)]
    console.table("strongest lines, in hundredths of the first", ["|Q| (1/A)", "pseudo-particles", "X-rays"], rows)
    draw(pseudo, xray, picture, row.atoms.get_chemical_formula("metal"))
    console.line(f"wrote {picture}")


@app.command("attention")
def attention(
    model: Annotated[Path, typer.Argument(help="Model of properties whose encoder is crystograph.")],
    crystal: Crystal,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Picture (png, pdf, svg).", show_default="attention-CRYSTAL.png beside MODEL"),
    ] = None,
) -> None:
    """How much atoms attend to atoms of the same crystal, against their distance."""
    from lrpot.console import Console
    from lrpot.properties.attention_range import attention_range, draw_attention

    console = Console()
    loaded, row, picture = _opened("attention", model, crystal, out)
    with _naming(model, row):
        found = attention_range(loaded, row.atoms)
    mean = found.attention.mean(axis=1)
    header = ["distance (A)", "pairs", *(f"layer {number}" for number in range(1, len(mean) + 1))]
    rows = [
        [f"{distance:.2f}", str(pairs), *(f"{value:.3f}" for value in values)]
        for distance, pairs, values in zip(found.distance, found.pairs, mean.T, strict=True)
    ]
    console.table("attention x number of atoms, mean over heads", header, rows)
    title = f"{row.atoms.get_chemical_formula('metal')}, {len(row.atoms)} atoms"
    console.line(f"wrote {draw_attention(found, picture, title)}")


def _opened(
    what: str, model: Path, crystal: Path, out: Path | None
) -> tuple[PropertyModel | PropertyEnsemble, Row, Path]:
    """A model of properties, a crystal, and where the picture goes."""
    from lrpot.data.readers import read_rows
    from lrpot.errors import ConfigError
    from lrpot.model_file import load_model
    from lrpot.plot_style import check_picture
    from lrpot.potential import Potential

    picture = model.with_name(f"{what}-{crystal.stem}.png") if out is None else out
    check_picture(picture)
    loaded = load_model(model)
    if isinstance(loaded, Potential):
        raise ConfigError(f"{model}: is a potential; {what} is drawn of models of lrpot fit --encoder")
    return loaded, read_rows(crystal)[-1], picture


@contextmanager
def _naming(model: Path, row: Row) -> Iterator[None]:
    """Errors say which file they are about."""
    from lrpot.errors import ConfigError, LrpotError

    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{model}: {error}") from error
    except LrpotError as error:
        raise type(error)(f"{row}: {error}") from error
