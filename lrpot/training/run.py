"""One fit in one directory, stage by stage."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from lrpot.build import build_potential
from lrpot.charges.start import starting_charges
from lrpot.config import FitConfig, TrainingConfig
from lrpot.console import Console
from lrpot.errors import Interrupted
from lrpot.evaluation import Evaluation, evaluate_structures, predict_structures
from lrpot.files import write_text
from lrpot.interrupts import finish_step_on_ctrl_c
from lrpot.kspace import CoulombComplement
from lrpot.model_file import ModelInfo, load, save, symbols
from lrpot.potential import Potential
from lrpot.training.baseline import (
    charge_scales,
    fit_baseline,
    relative_step,
    residual_scales,
    set_start,
    store_known,
)
from lrpot.training.batches import train_loader, valid_loader
from lrpot.training.checkpoint import usable_checkpoint
from lrpot.training.dataset import FitData, supervised
from lrpot.training.finetune import take_over
from lrpot.training.loggers import Record, open_loggers
from lrpot.training.module import StageModule
from lrpot.training.parallel import Processes
from lrpot.training.split import write_split
from lrpot.training.stages import Stage, plan
from lrpot.training.summary import (
    charge_sizes,
    charge_warnings,
    charges_of,
    charges_text,
    errors_text,
    progress_note,
    stage_table,
)
from lrpot.training.trainer import stage_trainer

# In the directory of a run: the fitted model; the rows of each part, and the files that they are of.
MODEL, SPLIT = "model.pt", "split.json"

# In the directory of the run, until it is finished; a folder for each stage.
CHECKPOINTS = "checkpoints"


class Run:
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
        start: Potential | None,
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
        self.stages = plan(config)
        self.done: list[dict[str, Any]] = []
        self.test: dict[str, Any] | None = None
        self.interrupted: Callable[[], bool] = lambda: False
        self.log: Callable[[Sequence[Record]], None] = lambda records: None

    def fit(self) -> Potential:
        """The fitted potential, in evaluation mode; all that a run leaves is written.

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
        model = resumed or (self._fresh_model() if self.start is None else self._taken_over(self.start))
        if len(self.done) <= len(self.stages):
            n = sum(p.numel() for p in model.parameters())
            sizes = f"{len(self.data.train)} training, {len(self.data.valid)} validation, {len(self.data.test)} test"
            schedule = f"; schedule {self.config.schedule}" if len(self.stages) > 1 else ""
            together = f"; {self.processes.size} processes" if self.processes.size > 1 else ""
            console.line(f"{sizes} structures; {n} parameters{schedule}{together}")
        loggers = open_loggers(self.config, self.out) if self.processes.first else nullcontext(self.log)
        try:
            with finish_step_on_ctrl_c(console.warn) as self.interrupted, loggers as self.log:
                for number, stage in enumerate(self.stages, 1):
                    if number >= len(self.done):
                        self._stage(model, number, stage)
        except torch.OutOfMemoryError as error:
            raise MemoryError(
                f"the GPU has no memory left; lower training.batch_size, or share it by more --devices; go on with: "
                f"lrpot fit --resume --out {self.out}"
            ) from error
        except KeyboardInterrupt:
            raise Interrupted(f"stopped at once; go on with: lrpot fit --resume --out {self.out}") from None
        model.eval().requires_grad_(False)
        model.info = self._info()
        if self.processes.first:
            self._finish(model)
        return model

    @property
    def summary(self) -> list[dict[str, Any]]:
        """What is known of the start and of each stage, without the course of the epochs."""
        return [{k: v for k, v in entry.items() if k != "history"} for entry in self.done]

    def _fresh_model(self) -> Potential:
        model = build_potential(self.config.model, self.data.elements)
        model.set_precision(getattr(torch, self.config.training.dtype))
        origin = None
        if model.long is not None:
            start = starting_charges(
                self.config.model.charges,
                self.data.train,
                coulomb=isinstance(model.long.complement, CoulombComplement),
                source=self.data.source,
            )
            self.console.line(f"charges start at {charges_text(start.values)} from {start.origin}")
            if not any(start.values.values()):
                self.console.warn(
                    "charges that are zero stay zero, since the energy is quadratic in them; give a start, such as "
                    "--set model.charges.init='{Na: 0.5, Cl: -0.5}'"
                )
            set_start(model, start.values, self.data.train)
            origin = start.origin
        store_known(model, self.data.train, {"long"}, self.processes)
        fit_baseline(model, self.data.train)
        self._keep_start(model, origin)
        if model.long is not None:
            model.long.charges.set_values({})  # until the stage that is to have them
        return model

    def _taken_over(self, start: Potential) -> Potential:
        model = take_over(start, self.config, self.data, self.console.line, self.processes)
        self._keep_start(model, self.config.training.finetune.model)
        return model

    def _keep_start(self, model: Potential, origin: str | None) -> None:
        """The model before any training is kept like one after a stage: the yardstick for what the stages bring."""
        model.to(self.device)
        found = evaluate_structures(model, self.data.valid)
        entry = {"validation": found.errors(), "charges": charges_of(model, found), "origin": origin}
        entry["charge_sizes"] = charge_sizes(found)
        self._keep(model, {"stage": 0, "title": "start", **entry})

    def _resumed_model(self) -> Potential | None:
        """The model after the last stage that was finished, with the entries of all finished stages."""
        model = None
        for number in range(len(self.stages) + 1):
            entry, weights = self._stage_files(number)
            if not (entry.exists() and weights.exists()):
                break
            self.done.append(json.loads(entry.read_text()))
            model = load(weights, device=self.device)
        if self.done:
            self.console.line(f"resuming after stage {len(self.done) - 1} of {len(self.stages)}")
        if len(self.done) == 1 and model is not None and model.long is not None and self.start is None:
            model.long.charges.set_values({})
        return model

    def _stage_files(self, number: int) -> tuple[Path, Path]:
        return self.out / "stages" / f"{number}.json", self.out / "stages" / f"{number}.pt"

    def _stage(self, model: Potential, number: int, stage: Stage) -> None:
        training, console = self.config.training.for_stage(number), self.console
        started = time.monotonic()
        if stage.charged and model.long is not None:
            start = load(self._stage_files(0)[1]).long
            assert start is not None
            model.long.charges.load_state_dict(start.charges.state_dict())
        scales, lr_long = self._prepare(model, stage, training)
        # processes on machines of different kinds may have rounded differently
        self.processes.copy_first(model)
        scales, lr_long = self.processes.from_first((scales, lr_long))
        module = StageModule(model, stage, training, self.data.train, scales, lr_long, self.processes)
        valid = valid_loader(self.data.valid, training, self.processes)
        train = train_loader(self.data.train, training, training.seed * 10 + number, self.processes)
        folder = self.out / CHECKPOINTS / str(number)
        found = usable_checkpoint(folder, console.warn) if self.processes.first else None
        name = self.processes.from_first(found and found.name)
        if name is None:
            module.validate(valid)
            self._log(number, module.history)
        title = f"stage {number}/{len(self.stages)}: {stage.title}"

        def report() -> None:
            update(len(module.history) - 1, progress_note(module.history))
            self._log(number, module.history)

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
            trainer.fit(module, train, valid, ckpt_path=name and folder / name, weights_only=True)
        model.load_state_dict(module.best_weights)
        model.to(self.device)
        self._finish_stage(model, number, stage, module, time.monotonic() - started)

    def _log(self, number: int, history: list[dict[str, float]]) -> None:
        """Tell the loggers of the last epoch of a stage."""
        stages = [(entry["stage"], entry["history"]) for entry in self.done[1:]] + [(number, history)]
        self.log([{"stage": stage, **record} for stage, records in stages for record in records])

    def _prepare(self, model: Potential, stage: Stage, training: TrainingConfig) -> tuple[dict[str, float], float]:
        """Scales of the loss and the learning rate of the long-range part; `known_*` of all structures are set."""
        data, processes = self.data.train, self.processes
        if stage.baseline:
            store_known(model, data, (stage.frozen | stage.trained) - {"short"}, processes)
            fit_baseline(model, data)
        # what everything present predicts now gives the scales; in the epochs only the frozen parts are known
        store_known(model, data, stage.frozen | stage.evaluated, processes)
        scales = residual_scales(data)
        if "long" in stage.trained:
            scales |= charge_scales(model, data, supervised(training), stage.evaluated, processes)
        lr_long = training.lr
        if training.lr_long != "auto":
            lr_long = training.lr_long
        elif "long" in stage.trained:
            own = data.select(processes.part(len(data)))
            long_range = (output["forces"].cpu() for _, output in predict_structures(model, own, parts={"long"}))
            lr_long = training.lr * relative_step(data, long_range, processes)
        for part in (data, self.data.valid):
            store_known(model, part, stage.frozen, processes)
        return scales, lr_long

    def _finish_stage(self, model: Potential, number: int, stage: Stage, module: StageModule, seconds: float) -> None:
        found = evaluate_structures(model, self.data.valid)
        errors = found.errors()
        entry = {
            "stage": number,
            "title": stage.title,
            "epochs": len(module.history) - 1,
            "seconds": round(seconds, 1),
            "validation": errors,
            "charges": charges_of(model, found),
            "charge_sizes": charge_sizes(found),
            "history": module.history,
        }
        self._keep(model, entry)
        self.console.line(
            f"stage {number}/{len(self.stages)} ({stage.title}): {entry['epochs']} epochs in {seconds:.0f} s; "
            f"validation {errors_text(errors)}"
        )
        for warning in charge_warnings(self.done, self.config):
            self.console.warn(warning)

    def _keep(self, model: Potential, entry: dict[str, Any]) -> None:
        self.done.append(entry)
        model.info = self._info()
        entry_file, weights = self._stage_files(entry["stage"])
        if self.processes.first:
            save(model, weights)
            write_text(entry_file, json.dumps(entry))
        self.processes.wait()  # the next stage reads them

    def _info(self) -> ModelInfo:
        return ModelInfo(
            config=self.config.model_dump(mode="json"),
            elements=symbols(self.data.elements),
            stages=self.summary,
            data={k: v for k, v in self.data.record.items() if k != "split"},
            record=self.record,
        )

    def _finish(self, model: Potential) -> None:
        from lrpot import plots  # matplotlib takes a second

        path = save(model, self.out / MODEL)
        table = [(entry["title"], entry["validation"], entry["charges"]) for entry in self.done]
        self.console.table("validation errors (mean absolute) after each stage", *stage_table(table))
        shown: Evaluation = evaluate_structures(model, self.data.test or self.data.valid)
        if self.data.test:
            self.test = shown.errors()
            self.console.line("test " + errors_text(self.test))
        write_text(self.out / "results.json", json.dumps({"stages": self.summary, "test": self.test}, indent=1))
        pictures = [
            plots.parity(shown, self.out / "parity.png"),
            plots.learning_curves(self.done[1:], self.out / "learning_curves.png"),
        ]
        if model.long is not None:
            pictures.append(plots.kernel(model, self.out / "kernel.png"))
        shutil.rmtree(self.out / CHECKPOINTS, ignore_errors=True)
        for file in (path, *pictures):
            self.console.line(f"wrote {file}")
        self.console.line(f"a page with all of it, and the worst structures: lrpot report {self.out}")
