"""What a run directory holds, of a fit that is finished or not."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lrpot.config import FitConfig, make_config
from lrpot.errors import DataError
from lrpot.training.checkpoint import usable_checkpoint
from lrpot.training.record import RECORD
from lrpot.training.run import CHECKPOINTS, SPLIT
from lrpot.training.stages import Stage, decided, plan
from lrpot.training.summary import charge_warnings, idle_warnings


@dataclass(frozen=True)
class Run:
    """A run directory.

    Attributes:
        path: of it.
        config: its settings.
        plan: the stages that it has, or will have.
        stages: the entries of the start and of every stage that is finished, as `fit` writes them.
        running: the history of the stage in hand, as far as its newest checkpoint knows it.
        models: the model after the start and after each finished stage, by number; files that are there.
        weights: the best of them, model.pt of a finished run; None before the first is written.
        split: rows by part. files: what they are rows of, with hashes. Both empty before the split is written.
        record: what record.json says.
        warnings: what a reader should know, one sentence each.
    """

    path: Path
    config: FitConfig
    plan: list[Stage]
    stages: list[dict[str, Any]] = field(default_factory=list)
    running: list[dict[str, float]] = field(default_factory=list)
    models: dict[int, Path] = field(default_factory=dict)
    weights: Path | None = None
    split: dict[str, list[int]] = field(default_factory=dict)
    files: list[dict[str, Any]] = field(default_factory=list)
    record: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        return self.weights is not None and self.weights.name == "model.pt"

    @property
    def state(self) -> str:
        """How far it is, in words."""
        if self.finished:
            return "finished"
        done = max(len(self.stages) - 1, 0)
        return f"not finished: {done} of {len(self.plan)} stages are done"


def read_run(path: Path) -> Run:
    """Read what is there.

    Raises:
        DataError: no run, or a file of it that is damaged. ConfigError: settings of another version.
    """
    if not (path / "config.yaml").is_file():
        raise DataError(f"{path}: holds no run (no config.yaml); name the directory that lrpot fit wrote (--out)")
    config = make_config(path / "config.yaml")
    if config.task == "property":
        raise DataError(
            f"{path}: is a fit of properties, and a report is of a potential; look at its pictures (parity.png, ...) "
            "and at test.csv"
        )
    if config.training.ensemble > 1:
        raise DataError(f"{path}: is a fit of several models; report on one of them: lrpot report {path / 'member-1'}")
    stages, models = [], {}
    for number in range(len(plan(config)) + 1):
        entry, model = path / "stages" / f"{number}.json", path / "stages" / f"{number}.pt"
        if not (entry.exists() and model.exists()):
            break
        stages.append(_json(entry))
        models[number] = model
    model = path / "model.pt"
    weights = model if model.exists() else models.get(len(stages) - 1)
    split = _json(path / SPLIT)
    warnings: list[str] = []
    return Run(
        path=path,
        config=config,
        plan=plan(decided(config, stages)),
        stages=stages,
        running=[] if model.exists() else _history(path / CHECKPOINTS / str(max(len(stages), 1)), warnings),
        models=models,
        weights=weights,
        files=split.pop("files", []),
        split=split,
        record=_json(path / RECORD),
        warnings=[*warnings, *_stage_warnings(config, stages)],
    )


def _json(path: Path) -> dict[str, Any]:
    """What a file says; nothing if it is not there."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: is damaged ({error}); the run has to be made anew") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: is damaged (not an object); the run has to be made anew")
    return found


def _history(folder: Path, warnings: list[str]) -> list[dict[str, float]]:
    """The epochs of a stage that is not finished."""
    checkpoint = usable_checkpoint(folder, warnings.append)
    if checkpoint is None:
        return []
    return torch.load(checkpoint, map_location="cpu", weights_only=True).get("stage", {}).get("history", [])


def _stage_warnings(config: FitConfig, stages: list[dict[str, Any]]) -> list[str]:
    found = []
    for number, entry in enumerate(stages):
        if all("charge_sizes" in before for before in stages[: number + 1]):
            found += charge_warnings(stages[: number + 1], config)
        losses = [record["loss"] for record in entry.get("history", [])]
        if len(losses) > config.training.max_epochs and min(losses) == losses[-1]:
            found.append(
                f"stage {number} ({entry['title']}) was still improving in its last epoch; a larger "
                f"training.max_epochs than {config.training.max_epochs} may lower the errors"
            )
    return found + idle_warnings(stages, config)
