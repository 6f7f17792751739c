"""Cross-validation of property models: every crystal is predicted by a model that has not seen it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError

from lrpot.config import FitConfig, make_config
from lrpot.console import Console
from lrpot.data.graphs import Graphs
from lrpot.errors import ConfigError, DataError, Interrupted
from lrpot.files import run_directory, write_text
from lrpot.properties.evaluation import PropertyEvaluation
from lrpot.properties.leaderboards.suites import SuiteTask
from lrpot.properties.tables import read_predictions, save_predictions
from lrpot.properties.targets import Target, targets_from
from lrpot.training.dataset import read_data
from lrpot.training.fit import CONFIG, fit
from lrpot.training.record import recorded
from lrpot.training.split import check_unchanged, fold_groups, fold_split, groups_of, write_split
from lrpot.training.target_names import with_targets

# In the directory of a cross-validation: predictions of all folds; what there is to say of them.
PREDICTIONS, RESULTS = "predictions.csv", "results.json"

_FOLDS = TypeAdapter(list[list[int]])


@dataclass(frozen=True)
class CrossValidation:
    """Predictions of all crystals that any fold tests.

    Attributes:
        targets: what is predicted.
        folds: errors of each fold, as of `PropertyEvaluation.errors`.
        whole: the predictions of all folds, in the order of `rows`.
        rows: (n,) indices, from 0 and through all files.
        names: (n,) ids; "" for none.
        fold: (n,) in which each was tested, counted from 1.
    """

    targets: tuple[Target, ...]
    folds: list[dict[str, Any]]
    whole: PropertyEvaluation
    rows: np.ndarray
    names: list[str]
    fold: np.ndarray

    def spread(self, target: str, error: str) -> tuple[float, float]:
        """Mean and standard deviation (divided by their number - 1) of an error over the folds."""
        values = [fold[target][error] for fold in self.folds if error in fold.get(target, {})]
        return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def cross_validate(
    data: str | Path | Sequence[str | Path] | None = None,
    *,
    out: str | Path,
    folds: int = 5,
    fold_file: str | Path | None = None,
    suite: SuiteTask | None = None,
    config: str | Path | Mapping[str, Any] | FitConfig | None = None,
    settings: Mapping[str, Any] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    verbose: bool = True,
) -> CrossValidation:
    """Fit a property model for each fold, and predict with it what the fold holds back.

    Of what is left beside a fold, `data.valid_fraction` (of all rows) says when to stop. Rows that stay together in a
    split (`data.split`) stay together in the folds.

    Args:
        data: as of `lrpot.fit`, of crystals with properties.
        config: as of `lrpot.fit`; the task is property.
        settings: as of `lrpot.fit`.
        out: directory; gets a run in fold-1, fold-2, ..., predictions.csv and results.json.
        folds: how many, drawn with `training.seed`.
        fold_file: JSON with the rows that each fold tests, [[0, 5, ...], [1, ...], ...], in place of drawn folds; rows
            count from 0 and through all files. An object that holds such a list under one of its names will do.
        suite: a task of a suite of benchmarks, whose official folds are taken.
        resume: go on with what is in `out`.
        overwrite: remove it first.
        verbose: print what happens.
    Raises:
        ConfigError, DataError, OutputError: before any work starts. TrainingError, Interrupted: as of `lrpot.fit`.
    """
    out, console = Path(out), Console(quiet=not verbose)
    settings = dict(settings or {})
    if data is not None:
        settings["data.train"] = str(data) if isinstance(data, (str, Path)) else [str(file) for file in data]
    settings.setdefault("task", "property")
    resolved = _checked(make_config(config, settings), folds)
    loaded = read_data(resolved, Console(quiet=True))
    places = np.sort(np.concatenate([part.position for part in (loaded.train, loaded.valid, loaded.test)]))
    everything = Graphs(loaded.train.files, places)
    rows, seed = everything.rows, resolved.training.seed
    groups = groups_of(resolved.data.split, everything)
    if suite is not None:
        labels = torch.cat([structure.targets[:, 0] for structure in everything]).numpy()
        parts = [{part: rows[places] for part, places in fold.items()} for fold in suite.folds(labels)]
        if suite.note(len(labels)):
            console.warn(suite.note(len(labels)))
    elif fold_file is None:
        parts = [{"test": rows[np.isin(groups, own)]} for own in fold_groups(groups, folds, seed)]
    else:
        parts = [{"test": own} for own in _given_folds(Path(fold_file), rows)]
    fraction = resolved.data.valid_fraction
    splits = [
        {name: own.tolist() for name, own in fold.items()}
        if "train" in fold
        else fold_split(rows, groups, np.isin(rows, fold["test"]), fraction, seed)
        for fold in parts
    ]
    left_out = len(rows) - min(sum(map(len, split.values())) for split in splits)
    if suite is not None and "train" not in parts[0] and left_out:
        console.warn(
            f"up to {left_out} rows may be crystals that a fold tests, and do not train there; in the suite they do; "
            "for numbers to compare with its own, add --set data.split=random"
        )
    with run_directory(out, resume=resume, overwrite=overwrite):
        _same_settings(out, resolved)
        _same_folds(out, splits, loaded.record["files"])
        about = {"seed": seed, "files": loaded.record["files"]} | ({} if suite is None else {"suite": suite.record()})
        with recorded(out, about, device=resolved.training.device, warn=console.warn):
            done = [_fold(out, number, split, resolved, console) for number, split in enumerate(splits, 1)]
        found = _joined(targets_from(resolved.properties), done)
        more = {"fold": found.fold.tolist()}
        save_predictions(found.whole, found.rows.tolist(), found.names, out / PREDICTIONS, more)
        write_text(out / RESULTS, json.dumps(_record(found), indent=1))
    return found


def _fold(
    out: Path, number: int, split: Mapping[str, list[int]], config: FitConfig, console: Console
) -> tuple[PropertyEvaluation, list[int], list[str]]:
    """Fit what a fold trains, or go on with it; the predictions of what it tests, their rows and names."""
    folder = out / f"fold-{number}"
    console.line(f"{folder.name}: {', '.join(f'{len(own)} {part}' for part, own in split.items())} rows")
    if not (folder / RESULTS).exists():
        begun = (folder / CONFIG).exists()
        own = make_config(config, {"data.split": str(_rows_file(out, number))})
        try:
            fit(out=folder, config=None if begun else own, resume=begun, verbose=not console.quiet)
        except Interrupted as error:
            raise Interrupted(
                f"stopped in {folder.name} by Ctrl-C; go on with the same command and --resume"
            ) from error
    return read_predictions(folder / "test.csv", targets_from(config.properties))


def table(found: CrossValidation) -> tuple[list[str], list[list[str]]]:
    """Columns and lines: errors of each fold, and their mean and spread."""
    shown = {True: ("accuracy", "roc_auc"), False: ("mae", "rmse")}
    kinds = [(target, kind) for target in found.targets for kind in shown[target.classification]]
    titles = {"mae": "MAE", "rmse": "RMSE", "accuracy": "accuracy", "roc_auc": "AUC"}
    header = ["fold", "crystals", *(f"{target.label} {titles[kind]}" for target, kind in kinds)]
    lines = [
        [str(number), str(fold["n_structures"]), *(_text(fold.get(t.name, {}).get(kind)) for t, kind in kinds)]
        for number, fold in enumerate(found.folds, 1)
    ]
    spreads = [found.spread(target.name, kind) for target, kind in kinds]
    lines.append(["mean", str(len(found.rows)), *(f"{mean:.4g} +- {spread:.2g}" for mean, spread in spreads)])
    return header, lines


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _checked(config: FitConfig, folds: int) -> FitConfig:
    if config.task != "property":
        raise ConfigError("cross-validation is of models of properties; name an encoder: --encoder regnet")
    if config.data.train is None:
        raise ConfigError("no data; name a file: lrpot cv DATA --encoder regnet --out DIR")
    if config.data.test is not None or config.data.valid is not None or config.data.split.endswith(".json"):
        raise ConfigError("the folds say which rows validate and test; leave data.valid, data.test and split lists out")
    if config.data.folds is not None:
        raise ConfigError("data.folds is of a single fit; say --folds")
    if folds < 2:
        raise ConfigError(f"folds = {folds}; choose 2 or more")
    return with_targets(config)


def _given_folds(path: Path, rows: np.ndarray) -> list[np.ndarray]:
    """The rows that each fold tests, of those that can be used."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; check the path") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: is not valid JSON; write it as [[0, 5], [1, 2], [3, 4]]") from error
    candidates = list(content.values()) if isinstance(content, dict) else [content]
    lists = []
    for candidate in candidates:
        try:
            lists.append(_FOLDS.validate_python(candidate, strict=True))
        except ValidationError:
            continue
    if len(lists) != 1 or len(lists[0]) < 2:
        raise ConfigError(f"{path}: is no list of folds; write the rows that each tests: [[0, 5], [1, 2], [3, 4]]")
    every = [row for fold in lists[0] for row in fold]
    if len(set(every)) != len(every):
        twice = next(row for row in every if every.count(row) > 1)
        raise DataError(f"{path}: row {twice} stands in two folds; a row is tested once")
    unknown = sorted(set(every) - set(rows.tolist()))
    if unknown:
        raise DataError(f"{path}: row {unknown[0]} is not in the data ({len(rows)} rows can be used); correct the list")
    return [np.array(sorted(fold)) for fold in lists[0]]


def _same_settings(out: Path, config: FitConfig) -> None:
    """Keep the settings, or refuse to go on with others."""
    text = config.to_yaml()
    stored = out / CONFIG
    if stored.exists() and stored.read_text(encoding="utf-8") != text:
        raise ConfigError(
            f"{out}: was begun with other settings (see {stored}); go on with those, or start anew in another --out"
        )
    write_text(stored, text)


def _same_folds(out: Path, splits: Sequence[Mapping[str, list[int]]], files: Sequence[Mapping[str, Any]]) -> None:
    """Keep the rows of every fold, or refuse to go on with other folds or other data."""
    wanted = {_rows_file(out, number): split for number, split in enumerate(splits, 1)}
    for path in sorted(out.glob("fold-*.json")):
        check_unchanged(path, files)
        before = json.loads(path.read_text(encoding="utf-8"))
        if any(before.get(part) != rows for part, rows in wanted.get(path, {"train": []}).items()):
            raise ConfigError(
                f"{out}: was begun with other folds (see {path}); go on with those (--folds, --fold-file or task), or "
                "start anew in another --out"
            )
    for path, split in wanted.items():
        write_text(path, write_split(split, files))


def _rows_file(out: Path, number: int) -> Path:
    """Where the rows of a fold lie."""
    return out / f"fold-{number}.json"


def _joined(
    targets: tuple[Target, ...], done: list[tuple[PropertyEvaluation, list[int], list[str]]]
) -> CrossValidation:
    rows = np.concatenate([rows for _, rows, _ in done])
    order = np.argsort(rows)
    fold = np.repeat(np.arange(1, len(done) + 1), [len(rows) for _, rows, _ in done])
    names = np.concatenate([np.array(names, dtype=object) for _, _, names in done])
    parts = [part for part, _, _ in done]
    uncertainty = None
    if all(part.uncertainty is not None for part in parts):
        uncertainty = np.concatenate([part.uncertainty for part in parts])[order]
    whole = PropertyEvaluation(
        targets,
        np.concatenate([part.reference for part in parts])[order],
        np.concatenate([part.predicted for part in parts])[order],
        uncertainty,
        None,
        np.concatenate([part.atoms for part in parts])[order],
    )
    errors = [part.errors() for part in parts]
    return CrossValidation(targets, errors, whole, rows[order], names[order].tolist(), fold[order])


def _record(found: CrossValidation) -> dict[str, Any]:
    spreads = {}
    for target in found.targets:
        kinds = found.folds[0].get(target.name, {}).keys() - {"n", "unit"}
        spreads[target.name] = {
            kind: dict(zip(("mean", "spread"), found.spread(target.name, kind), strict=True)) for kind in sorted(kinds)
        }
    return {"folds": found.folds, "over_folds": spreads, "all": found.whole.errors()}
