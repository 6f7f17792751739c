"""`lrpot ensemble`: models that were fitted before -> one file of them all."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def ensemble(
    models: Annotated[list[Path], typer.Argument(help="Model files, of the same elements; cutoffs may differ.")],
    out: Annotated[Path, typer.Option("--out", help="Model file to write.")],
    calibrate: Annotated[
        Path | None,
        typer.Option(
            "--calibrate",
            metavar="DATA",
            help="Labelled structures (eV, eV/A) that no model was trained on, to scale the uncertainties by.",
            show_default="none",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
) -> None:
    """Join models into an ensemble: its energies and forces are their means, its uncertainties come from their spread.

    `lrpot fit --ensemble 4` fits, joins and calibrates in one go.
    """
    from lrpot.calibration import calibrate as fit_factors
    from lrpot.calibration import doubts
    from lrpot.console import Console
    from lrpot.data.readers import read_rows, to_structures
    from lrpot.ensemble import Ensemble
    from lrpot.errors import ConfigError, DataError, OutputError
    from lrpot.files import check_writable
    from lrpot.model_file import load_model, save
    from lrpot.potential import Potential
    from lrpot.prediction import check_supported
    from lrpot.properties.model import PropertyEnsemble

    console = Console()
    if out.exists() and not overwrite:
        raise OutputError(f"{out}: exists already; add --overwrite to replace it, or choose another --out")
    check_writable(out)
    loaded = [load_model(path) for path in models]
    of_properties = [not isinstance(model, Potential) for model in loaded]
    if any(of_properties) and not all(of_properties):
        one = models[of_properties.index(False)]
        raise ConfigError(f"{one}: is a potential, but others predict properties; join models of one kind")
    members: list[Any] = [member for model in loaded for member in model.members]
    try:
        joined = PropertyEnsemble(members).eval() if all(of_properties) else Ensemble(members).eval()
    except ConfigError as error:
        names = ", ".join(f"{n} {path}" for n, path in enumerate(models))
        raise ConfigError(f"{error} ({names})") from error
    if isinstance(joined, PropertyEnsemble):
        if calibrate is not None:
            raise ConfigError("--calibrate is for potentials; lrpot fit --ensemble calibrates models of properties")
        console.warn("the uncertainties are the plain spread of the members, mostly too small")
        console.line(f"wrote {save(joined, out)}")
        return
    if calibrate is not None:
        structures = to_structures(
            read_rows(calibrate),
            joined.cutoff,
            elements=joined.elements,
            check=lambda s: check_supported(joined, s),
        )
        try:
            found = fit_factors(joined, structures)
        except DataError as error:
            raise DataError(f"{calibrate}: {error}") from error
        factors = ", ".join(f"{name} x {factor:.3f}" for name, factor in found.factors.items())
        console.line(
            f"spread of {len(joined.members)} models, calibrated on {found.n_structures} structures: {factors}"
        )
    for doubt in doubts(joined):
        console.warn(doubt)
    console.line(f"wrote {save(joined, out)}")
