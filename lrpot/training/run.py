"""One fit in one directory, stage by stage: what is the same for every kind of model."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from lrpot.config import FitConfig, TrainingConfig
from lrpot.console import Console
from lrpot.coverage import Coverage
from lrpot.errors import Interrupted
from lrpot.files import write_text
from lrpot.interrupts import finish_step_on_ctrl_c
from lrpot.model_file import Model, ModelInfo, load_model, save, symbols
from lrpot.training.batches import train_loader, valid_loader
from lrpot.training.checkpoint import usable_checkpoint
from lrpot.training.dataset import FitData
from lrpot.training.epochs import EpochModule
from lrpot.training.loggers import Record, open_loggers
from lrpot.training.parallel import Processes
from lrpot.training.split import write_split
from lrpot.training.trainer import stage_trainer

# In the directory of a run: the fitted model; the rows of each part, and the files that they are of.
MODEL, SPLIT = "model.pt", "split.json"

# In the directory of the run, until it is finished; a folder for each stage.
CHECKPOINTS = "checkpoints"

AnyModel = TypeVar("AnyModel", bound=Model)


class Run(Generic[AnyModel]):
    """One fit in one directory, as one of the processes that do it together. All of them compute the same; only the
    first writes and speaks.

    Attributes:
        done: what is known of the start and of each stage that is finished.
        test: errors on the test structures once all is done; None without any, and in all processes but the first.
    """

    def __init__(
        self,
        out: Path,
        config: FitConfig,
        data: FitData,
        console: Console,
        *,
        start: AnyModel | None,
        record: dict[str, Any],
        processes: Processes,
    ) -> None:
        """
        Args:
            out: directory of the run, which this process holds.
            start: the model to fine-tune, if any. record: what the model file keeps of the record of the run.
        """
        self.out = out
        self.config = config
        self.data = data
        self.console = console
        self.start = start
        self.record = record
        self.processes = processes
        self.device = processes.device(config.training.device)
        self.done: list[dict[str, Any]] = []
        self.test: dict[str, Any] | None = None
        self.interrupted: Callable[[], bool] = lambda: False
        self.log: Callable[[Sequence[Record]], None] = lambda records: None

    @property
    def titles(self) -> list[str]:
        """Of the stages, in order."""
        raise NotImplementedError

    @property
    def schedule(self) -> str:
        """What the stages see, to be told behind a list of other things; nothing where there is no choice."""
        return ""

    def stage_training(self, number: int) -> TrainingConfig:
        """Settings of the training of a stage, counted from 1."""
        return self.config.training.for_stage(number)

    def first_model(self) -> AnyModel:
        """The model before any training, kept as stage 0."""
        raise NotImplementedError

    def module(self, model: AnyModel, number: int) -> EpochModule:
        """What a stage, counted from 1, does with the model; all that it needs of the structures is attached to them.

        All processes must come out with the same.
        """
        raise NotImplementedError

    def results(self, model: AnyModel) -> dict[str, Any]:
        """What is kept of a stage beside its course: errors of the validation as `validation`, and others."""
        raise NotImplementedError

    def errors_text(self, errors: Mapping[str, Any]) -> str:
        """Such errors in one line."""
        raise NotImplementedError

    def progress_note(self, history: list[dict[str, float]]) -> str:
        """The last epoch, beside a progress bar."""
        raise NotImplementedError

    def warnings(self) -> list[str]:
        """What the last stage in `done` gives reason to say."""
        return []

    def finish(self, model: AnyModel) -> None:
        """Write the model, its errors and pictures."""
        raise NotImplementedError

    def fit(self) -> AnyModel:
        """The fitted model, in evaluation mode; all that a run leaves is written.

        Raises:
            TrainingError: the loss is not a number; the last good checkpoint is kept.
            Interrupted: Ctrl-C; the run can be resumed.
            MemoryError: of a GPU.
        """
        console, training = self.console, self.config.training
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # its tips are not ours to give
        torch.manual_seed(training.seed)
        if self.processes.first:
            write_text(self.out / SPLIT, write_split(self.data.record["split"], self.data.record["files"]))
        resumed = self._resumed_model()
        self.processes.wait()  # all have seen the same stages before another is finished
        model = resumed or self.first_model()
        titles = self.titles
        if len(self.done) <= len(titles):
            n = sum(p.numel() for p in model.parameters())
            size = f"; {n} parameters" if n else ""
            sizes = f"{len(self.data.train)} training, {len(self.data.valid)} validation, {len(self.data.test)} test"
            together = f"; {self.processes.size} processes" if self.processes.size > 1 else ""
            console.line(f"{sizes} structures{size}{self.schedule}{together}")
        loggers = open_loggers(self.config, self.out) if self.processes.first else nullcontext(self.log)
        try:
            with finish_step_on_ctrl_c(console.warn) as self.interrupted, loggers as self.log:
                for number, title in enumerate(titles, 1):
                    if number >= len(self.done):
                        self._stage(model, number, title)
        except torch.OutOfMemoryError as error:
            raise MemoryError(
                f"the GPU has no memory left; lower training.batch_size, or share it by more --devices; go on with: "
                f"lrpot fit --resume --out {self.out}"
            ) from error
        except KeyboardInterrupt:
            raise Interrupted(f"stopped at once; go on with: lrpot fit --resume --out {self.out}") from None
        model.eval().requires_grad_(False)
        model.info = self.info()
        if self.processes.first:
            self.finish(model)
            shutil.rmtree(self.out / CHECKPOINTS, ignore_errors=True)
        return model

    @property
    def summary(self) -> list[dict[str, Any]]:
        """What is known of the start and of each stage, without the course of the epochs."""
        return [{k: v for k, v in entry.items() if k != "history"} for entry in self.done]

    @property
    def coverage(self) -> Coverage | None:
        """Extremes of the training set, for models that tell what lies beyond."""
        return None

    def info(self) -> ModelInfo:
        """For the model file."""
        return ModelInfo(
            config=self.config.model_dump(mode="json"),
            elements=symbols(self.data.elements),
            stages=self.summary,
            data={k: v for k, v in self.data.record.items() if k != "split"},
            record=self.record,
            coverage=self.coverage,
        )

    def keep(self, model: AnyModel, entry: dict[str, Any]) -> None:
        """Keep the model after a stage, or before any as stage 0, and what is known of it."""
        self.done.append(entry)
        model.info = self.info()
        entry_file, weights = self.stage_files(entry["stage"])
        if self.processes.first:
            save(model, weights)
            write_text(entry_file, json.dumps(entry))
        self.processes.wait()  # the next stage reads them

    def stage_files(self, number: int) -> tuple[Path, Path]:
        """Where the entry and the model of a stage lie."""
        return self.out / "stages" / f"{number}.json", self.out / "stages" / f"{number}.pt"

    def _resumed_model(self) -> AnyModel | None:
        """The model after the last stage that was finished, with the entries of all finished stages."""
        model: Any = None
        for number in range(len(self.titles) + 1):
            entry, weights = self.stage_files(number)
            if not (entry.exists() and weights.exists()):
                break
            self.done.append(json.loads(entry.read_text()))
            model = load_model(weights, device=self.device)
        if self.done:
            self.console.line(f"resuming after stage {len(self.done) - 1} of {len(self.titles)}")
        return model

    def _stage(self, model: AnyModel, number: int, name: str) -> None:
        started = time.monotonic()
        history = self.train(model, number, name)
        model.to(self.device).eval()
        seconds = time.monotonic() - started
        entry: dict[str, Any] = {"stage": number, "title": name}
        if history:
            entry["epochs"] = len(history) - 1
        entry["seconds"] = round(seconds, 1)
        self.keep(model, entry | self.results(model) | {"history": history})
        done = name if len(self.titles) == 1 else f"stage {number}/{len(self.titles)} ({name})"
        self.console.line(
            f"{done}: {f'{len(history) - 1} epochs in ' if history else ''}{seconds:.0f} s; "
            f"validation {self.errors_text(self.done[-1]['validation'])}"
        )
        for warning in self.warnings():
            self.console.warn(warning)

    def train(self, model: AnyModel, number: int, name: str) -> list[dict[str, float]]:
        """Do a stage, counted from 1, with the model: epochs of steps.

        Args:
            name: of the stage.
        Returns:
            the records of its epochs, from the validation before the first on.
        """
        training, console = self.stage_training(number), self.console
        module = self.module(model, number).to(self.device)  # which it does not know otherwise, wherever its model is
        valid = valid_loader(self.data.valid, training, self.processes)
        train = train_loader(self.data.train, training, training.seed * 10 + number, self.processes)
        folder = self.out / CHECKPOINTS / str(number)
        found = usable_checkpoint(folder, console.warn) if self.processes.first else None
        checkpoint = self.processes.from_first(found and found.name)
        if checkpoint is None:
            module.validate(valid)
            self._log(number, module.history)
        title = name if len(self.titles) == 1 else f"stage {number}/{len(self.titles)}: {name}"

        def report() -> None:
            update(len(module.history) - 1, self.progress_note(module.history))
            self._log(number, module.history)
            if module.lost and module.lost[-1] == len(module.history) - 1:
                console.warn(
                    f"{title}, epoch {module.lost[-1]}: lost what was learned; goes on from the best weights with half "
                    "of the learning rate (if it happens often, lower training.lr)"
                )

        with (
            console.progress(title, training.max_epochs, "epochs", at_most=True) as update,
            stage_trainer(
                training,
                run=self.out,
                checkpoints=folder,
                device=self.device,
                interrupted=self.interrupted,
                report=report,
                processes=self.processes,
            ) as trainer,
        ):
            module.train()  # a model that comes from a file is in evaluation mode
            trainer.fit(module, train, valid, ckpt_path=checkpoint and folder / checkpoint, weights_only=True)
        model.load_state_dict(module.best_weights)
        return module.history

    def _log(self, number: int, history: list[dict[str, float]]) -> None:
        """Tell the loggers of the last epoch of a stage."""
        stages = [(entry["stage"], entry["history"]) for entry in self.done[1:]] + [(number, history)]
        self.log([{"stage": stage, **record} for stage, records in stages for record in records])
