"""`lrpot export`: predictions in the form in which leaderboards take them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from lrpot.config import FitConfig
    from lrpot.properties.evaluation import PropertyEvaluation
    from lrpot.properties.leaderboards.suites import SuiteTask

app = typer.Typer(help="Predictions in the form in which leaderboards take them.", no_args_is_help=True)


@app.command("matbench")
def matbench(
    run: Annotated[Path, typer.Argument(help="Directory of `lrpot benchmark matbench`.")],
    task: Annotated[str, typer.Option("--task", help="Such as matbench_jdft2d.")],
    about: Annotated[
        Path,
        typer.Option("--about", help="YAML file: authors, algorithm, algorithm_long, bibtex_refs; notes if you like."),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder to make.")],
) -> None:
    """results.json.gz, info.json and a script for MatBench, from a run on its official folds."""
    from lrpot.console import Console
    from lrpot.properties.leaderboards.matbench import About, Predictions, write_submission
    from lrpot.properties.leaderboards.suites import MatBenchTask

    config, found, _ = _predictions(run, MatBenchTask(task))
    predictions = Predictions(found.reference[:, 0], found.predicted[:, 0], _parameters(config))
    folder = write_submission(out, {task: predictions}, _about(about, About), _commands(run))
    Console().line(f"wrote {folder}")


@app.command("jarvis")
def jarvis(
    run: Annotated[Path, typer.Argument(help="Directory of `lrpot benchmark jarvis`.")],
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
    from lrpot.properties.leaderboards.suites import JarvisTask

    _, found, names = _predictions(run, JarvisTask(name, dataset))
    kind = found.targets[0].kind
    benchmark = Benchmark(name, dataset, names, found.reference[:, 0], found.predicted[:, 0], kind)
    folder = write_contribution(out, [benchmark], _about(about, About), _commands(run))
    Console().line(f"wrote {folder}")


def _predictions(run: Path, task: SuiteTask) -> tuple[FitConfig, PropertyEvaluation, list[str]]:
    """Settings of a run on the official folds of a task, what it predicts, and names of the crystals.

    Raises:
        ConfigError: no run, one on other folds, or of several targets. DataError: it is not finished, or damaged.
    """
    from lrpot.config import make_config
    from lrpot.errors import ConfigError
    from lrpot.properties.tables import read_predictions
    from lrpot.properties.targets import targets_from

    config = make_config(run / "config.yaml")
    targets = targets_from(config.properties)
    if len(targets) != 1:
        told = ", ".join(target.name for target in targets) or "none: it is a potential"
        raise ConfigError(f"{run}: a leaderboard takes one property at a time, this run has {told}")
    if _record(run).get("suite") != task.record():
        told = ", ".join(f"{name} {value}" for name, value in task.record().items())
        raise ConfigError(
            f"{run}: is not of lrpot benchmark with {told}, and the leaderboard takes its official folds alone; make "
            f"it with lrpot benchmark {task.suite} DATA --task {task.name}"
        )
    found, _, names = read_predictions(run / "predictions.csv", targets)
    return config, found, names


def _parameters(config: FitConfig) -> dict[str, Any]:
    return {
        "properties": config.properties.model_dump(mode="json"),
        "training": config.training.model_dump(mode="json"),
    }


def _about(path: Path, kind: type[Any]) -> Any:
    """What a user tells in a YAML file.

    Raises:
        ConfigError: no such file, a name that is none, one that is missing, or a value of another type.
    """
    from dataclasses import MISSING, fields
    from typing import get_type_hints

    from pydantic import TypeAdapter, ValidationError

    from lrpot.config.reading import read_yaml
    from lrpot.errors import ConfigError

    values = read_yaml(path)
    known = [field.name for field in fields(kind)]
    unknown = [name for name in values if name not in known]
    if unknown:
        raise ConfigError(f"{path}: {unknown[0]} is none of {', '.join(known)}")
    types = get_type_hints(kind)
    told = {}
    for name, value in values.items():
        if value is None:  # a name without a value: told as missing
            continue
        try:
            told[name] = TypeAdapter(types[name]).validate_python(value)
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise ConfigError(f"{path}: {name} = {value!r}: {reason[0].lower()}{reason[1:]}; correct it") from None
    needed = [field.name for field in fields(kind) if field.default is MISSING]
    return kind(**dict.fromkeys(needed, "") | told)


def _commands(run: Path) -> list[str]:
    """How the run was made."""
    return list(dict.fromkeys(session["command"] for session in _record(run)["sessions"]))


def _record(run: Path) -> dict[str, Any]:
    """
    Raises:
        DataError: the run has no record, or a damaged one.
    """
    import json

    from lrpot.errors import DataError

    try:
        record = json.loads((run / "record.json").read_text(encoding="utf-8"))
        _ = [session["command"] for session in record["sessions"]]
        return dict(record)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{run}: has no record.json that can be read, so how it was made is not known") from error
