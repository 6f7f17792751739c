"""`lrpot export`: predictions in the form in which leaderboards take them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from lrpot.config import FitConfig
    from lrpot.properties.evaluation import PropertyEvaluation

app = typer.Typer(help="Predictions in the form in which leaderboards take them.", no_args_is_help=True)


@app.command("matbench")
def matbench(
    run: Annotated[Path, typer.Argument(help="Directory of `lrpot cv ... --matbench TASK`.")],
    task: Annotated[str, typer.Option("--task", help="Such as matbench_jdft2d.")],
    about: Annotated[
        Path,
        typer.Option("--about", help="YAML file: authors, algorithm, algorithm_long, bibtex_refs; notes if you like."),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder to make.")],
) -> None:
    """results.json.gz, info.json and a script for MatBench, from a cross-validation on its official folds."""
    from lrpot.console import Console
    from lrpot.properties.leaderboards.matbench import About, Predictions, write_submission

    config, found, _ = _predictions(run, "predictions.csv")
    predictions = Predictions(found.reference[:, 0], found.predicted[:, 0], _parameters(config))
    folder = write_submission(out, {task: predictions}, _about(about, About), _commands(run))
    Console().line(f"wrote {folder}")


@app.command("jarvis")
def jarvis(
    run: Annotated[Path, typer.Argument(help="Directory of a fit whose test rows are those of the leaderboard.")],
    name: Annotated[
        str, typer.Option("--property", help="As the leaderboard calls it, such as formation_energy_peratom.")
    ],
    dataset: Annotated[str, typer.Option("--dataset", help="Such as dft_3d.")],
    about: Annotated[
        Path,
        typer.Option(
            "--about",
            help="YAML file: model_name, team_name, author_email, project_url, git_url, time_taken_seconds, "
            "hardware_used.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder to make.")],
) -> None:
    """A contribution to the JARVIS-Leaderboard: the predictions of its test set, metadata.json and run.sh."""
    from lrpot.console import Console
    from lrpot.properties.leaderboards.jarvis import About, Benchmark, write_contribution

    _, found, names = _predictions(run, "test.csv")
    kind = found.targets[0].kind
    benchmark = Benchmark(name, dataset, names, found.reference[:, 0], found.predicted[:, 0], kind)
    folder = write_contribution(out, [benchmark], _about(about, About), _commands(run))
    Console().line(f"wrote {folder}")


def _predictions(run: Path, table: str) -> tuple[FitConfig, PropertyEvaluation, list[str]]:
    """Settings of a run of one target, what it predicts, and names of the crystals."""
    from lrpot.config import make_config
    from lrpot.errors import ConfigError
    from lrpot.properties.tables import read_predictions
    from lrpot.properties.targets import targets_from

    config = make_config(run / "config.yaml")
    targets = targets_from(config.properties)
    if len(targets) != 1:
        told = ", ".join(target.name for target in targets) or "none: it is a potential"
        raise ConfigError(f"{run}: a leaderboard takes one property at a time, this run has {told}")
    found, _, names = read_predictions(run / table, targets)
    return config, found, names


def _parameters(config: FitConfig) -> dict[str, Any]:
    return {
        "properties": config.properties.model_dump(mode="json"),
        "training": config.training.model_dump(mode="json"),
    }


def _about(path: Path, kind: type[Any]) -> Any:
    """What a user tells in a YAML file.

    Raises:
        ConfigError: no such file, a name that is none, or one that is missing.
    """
    from dataclasses import MISSING, fields

    from lrpot.config.reading import read_yaml
    from lrpot.errors import ConfigError

    values = read_yaml(path)
    known = [field.name for field in fields(kind)]
    unknown = [name for name in values if name not in known]
    if unknown:
        raise ConfigError(f"{path}: {unknown[0]} is none of {', '.join(known)}")
    needed = [field.name for field in fields(kind) if field.default is MISSING]
    return kind(**dict.fromkeys(needed, "") | values)


def _commands(run: Path) -> list[str]:
    """How the run was made, from its record."""
    import json

    from lrpot.errors import DataError

    try:
        sessions = json.loads((run / "record.json").read_text(encoding="utf-8"))["sessions"]
        return list(dict.fromkeys(session["command"] for session in sessions))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{run}: has no record.json that can be read, so how it was made is not known") from error
