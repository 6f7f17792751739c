"""`lrpot ensemble`: models that were fitted before -> one file of them all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from lrpot.console import Console
    from lrpot.ensemble import Ensemble
    from lrpot.properties.model import PropertyEnsemble


def ensemble(
    models: Annotated[
        list[Path],
        typer.Argument(help="Model files: potentials of the same elements, or models of the same properties."),
    ],
    out: Annotated[Path, typer.Option("--out", help="Model file to write.")],
    calibrate: Annotated[
        Path | None,
        typer.Option(
            "--calibrate",
            metavar="DATA",
            help="Labelled structures that no model was trained on, to scale the uncertainties by.",
            show_default="none",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
) -> None:
    """Join models into an ensemble: what it predicts are their means, its uncertainties come from their spread.

    `lrpot fit --ensemble 4` fits, joins and calibrates in one go.
    """
    from lrpot.console import Console
    from lrpot.ensemble import Ensemble
    from lrpot.errors import ConfigError, OutputError
    from lrpot.files import check_writable
    from lrpot.model_file import load_model, save
    from lrpot.potential import Potential
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
    joined: PropertyEnsemble | Ensemble
    try:
        joined = PropertyEnsemble(members).eval() if all(of_properties) else Ensemble(members).eval()
    except ConfigError as error:
        names = ", ".join(f"{n} {path}" for n, path in enumerate(models))
        raise ConfigError(f"{error} ({names})") from error
    if isinstance(joined, PropertyEnsemble):
        _calibrate_properties(console, joined, calibrate)
    else:
        _calibrate(console, joined, calibrate)
    console.line(f"wrote {save(joined, out)}")


def _calibrate(console: Console, joined: Ensemble, data: Path | None) -> None:
    """Set the factors of potentials from labelled data, and tell what to doubt."""
    from lrpot.calibration import calibrate, doubts
    from lrpot.data.readers import read_rows, to_structures
    from lrpot.errors import DataError
    from lrpot.prediction import check_supported

    if data is not None:
        structures = to_structures(
            read_rows(data),
            joined.cutoff,
            elements=joined.elements,
            check=lambda s: check_supported(joined, s),
        )
        try:
            found = calibrate(joined, structures)
        except DataError as error:
            raise DataError(f"{data}: {error}") from error
        _tell(console, len(joined.members), found.n_structures, found.factors)
    for doubt in doubts(joined):
        console.warn(doubt)


def _calibrate_properties(console: Console, joined: PropertyEnsemble, data: Path | None) -> None:
    """The same of property models."""
    from lrpot.calibration import PLAIN_SPREAD, few_members, few_structures, spread_factors
    from lrpot.data.readers import read_rows, to_structures
    from lrpot.errors import DataError
    from lrpot.properties.evaluation import evaluate_properties

    members = len(joined.members)
    doubts = few_members(members)
    if data is None:
        doubts.append(PLAIN_SPREAD)
    else:
        names = [target.name for target in joined.targets]
        structures = to_structures(
            read_rows(data), joined.cutoff, check=joined.check, labels=False, shells=joined.shells, targets=names
        )
        found = evaluate_properties(joined, structures)
        joined.factors = spread_factors(found, members)
        if not joined.factors:
            raise DataError(
                f"{data}: the uncertainties cannot be calibrated: no row has a number for {' or '.join(names)}, or the "
                "members agree everywhere; give labelled crystals, or members that differ"
            )
        errors = found.errors()
        fewest = min(errors[name]["n"] for name in joined.factors)
        _tell(console, members, fewest, joined.factors)
        doubts += few_structures(fewest, members)
    for doubt in doubts:
        console.warn(doubt)


def _tell(console: Console, members: int, structures: int, factors: dict[str, float]) -> None:
    """What the spread is multiplied by."""
    told = ", ".join(f"{name} x {factor:.3f}" for name, factor in factors.items())
    console.line(f"spread of {members} models, calibrated on {structures} structures: {told}")
