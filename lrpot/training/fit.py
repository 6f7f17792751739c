"""`fit`: labelled structures in, a run directory with a model and its errors out."""

from __future__ import annotations

import json
import logging
import shutil
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch

from lrpot.build import build_potential
from lrpot.charges.start import given_charges, starting_charges
from lrpot.config import FitConfig, make_config
from lrpot.console import Console
from lrpot.errors import ConfigError, Interrupted, OutputError
from lrpot.evaluation import Evaluation, evaluate_structures, predict_structures
from lrpot.files import run_directory, write_text
from lrpot.interrupts import finish_step_on_ctrl_c
from lrpot.kspace import CoulombComplement
from lrpot.model_file import ModelInfo, check_device, load, save, symbols
from lrpot.potential import Potential
from lrpot.training.baseline import (
    charge_scales,
    fit_baseline,
    relative_step,
    residual_scales,
    set_start,
    store_known,
)
from lrpot.training.batches import check_sizes, train_loader, valid_loader
from lrpot.training.checkpoint import SaveEveryEpoch, StopOnSignal, usable_checkpoint
from lrpot.training.dataset import FitData, read_data, supervised
from lrpot.training.module import StageModule
from lrpot.training.split import write_split
from lrpot.training.stages import Stage, plan
from lrpot.training.summary import (
    charge_sizes,
    charge_warnings,
    charges_of,
    charges_text,
    csv_text,
    errors_text,
    progress_note,
    stage_table,
)

# In the directory of the run: the rows of each part, and the files that they are of.
SPLIT = "split.json"

# In the directory of the run, until it is finished; a folder for each stage.
CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class FitResult:
    """What a fit leaves.

    Attributes:
        model: the fitted potential, in evaluation mode.
        path: of model.pt.
        stages: one entry per stage: title, epochs, seconds, validation errors, charges.
        test: errors on the test structures, or None without any.
    """

    model: Potential
    path: Path
    stages: list[dict[str, Any]]
    test: dict[str, Any] | None


def fit(
    data: str | Path | Sequence[str | Path] | None = None,
    *,
    out: str | Path,
    config: str | Path | Mapping[str, Any] | FitConfig | None = None,
    settings: Mapping[str, Any] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    verbose: bool = True,
) -> FitResult:
    """Fit a potential to labelled structures.

    Args:
        data: files of structures with energies and, best, forces and stress; the same as `data.train` of the config.
        out: directory of the run; gets model.pt, config.yaml, metrics.csv, results.json and pictures.
        config: a YAML file, nested settings, or a `FitConfig`; None for the defaults.
        settings: settings by dotted name, such as {"training.max_epochs": 50}; they win over `config`.
        resume: go on with an unfinished run in `out`, with its own configuration.
        overwrite: remove what is in `out` first.
        verbose: print what happens.
    Raises:
        ConfigError, DataError, OutputError: before any work starts.
        TrainingError: the loss is not a number; the last good checkpoint is kept.
        Interrupted: Ctrl-C; the run can be resumed.
    """
    out = Path(out)
    settings = dict(settings or {})
    if data is not None:
        settings["data.train"] = str(data) if isinstance(data, (str, Path)) else [str(file) for file in data]
    saved = out / "config.yaml"
    if resume:
        if not saved.exists():
            raise OutputError(f"{out}: holds no run to resume (no config.yaml); start it without --resume")
        resolved = make_config(saved)
        changed = make_config(config, settings) if config is not None else make_config(resolved, settings)
        if changed != resolved:
            raise ConfigError(
                f"{out}: the run was started with other settings (see {saved}); resume it without any, or start anew "
                "in another --out"
            )
    else:
        resolved = make_config(config, settings)
    if resolved.data.train is None:
        raise ConfigError("no training data; name a file: lrpot fit DATA --out DIR")
    check_device(resolved.training.device)
    # data and configuration are checked before the directory is touched
    split = out / SPLIT
    structures = read_data(resolved, Console(quiet=not verbose), stored=split if resume and split.exists() else None)
    for part in (structures.train, structures.valid):
        check_sizes(part, resolved.training)
    build_potential(resolved.model, structures.elements)  # tells a clash of settings
    if resolved.model.kernel.form != "none":
        given_charges(resolved.model.charges, structures.elements, structures.source)  # tells what is wrong with them
    with run_directory(out, resume=resume, overwrite=overwrite):
        write_text(saved, resolved.to_yaml())
        return _Run(out, resolved, structures, Console(quiet=not verbose)).run()


class _Run:
    """One fit in one directory."""

    def __init__(self, out: Path, config: FitConfig, data: FitData, console: Console) -> None:
        self.out = out
        self.config = config
        self.data = data
        self.console = console
        self.stages = plan(config)
        self.done: list[dict[str, Any]] = []
        self.interrupted: Callable[[], bool] = lambda: False

    def run(self) -> FitResult:
        console, training = self.console, self.config.training
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # its tips are not ours to give
        torch.manual_seed(training.seed)
        write_text(self.out / SPLIT, write_split(self.data.record["split"], self.data.record["files"]))
        model = self._resumed_model() or self._fresh_model()
        if len(self.done) <= len(self.stages):
            n = sum(p.numel() for p in model.parameters())
            sizes = f"{len(self.data.train)} training, {len(self.data.valid)} validation, {len(self.data.test)} test"
            schedule = f"; schedule {self.config.schedule}" if len(self.stages) > 1 else ""
            console.line(f"{sizes} structures; {n} parameters{schedule}")
        try:
            with finish_step_on_ctrl_c(console.warn) as self.interrupted:
                for number, stage in enumerate(self.stages, 1):
                    if number >= len(self.done):
                        self._stage(model, number, stage)
        except KeyboardInterrupt:
            raise Interrupted(f"stopped at once; go on with: lrpot fit --resume --out {self.out}") from None
        return self._finish(model)

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
        # what is known before any training: the yardstick for what the stages bring
        store_known(model, self.data.train, {"long"})
        fit_baseline(model, self.data.train)
        model.to(self.config.training.device)
        found = evaluate_structures(model, self.data.valid)
        entry = {"validation": found.errors(), "charges": charges_of(model, found), "origin": origin}
        entry["charge_sizes"] = charge_sizes(found)
        self._keep(model, {"stage": 0, "title": "start", **entry})
        if model.long is not None:
            model.long.charges.set_values({})  # until the stage that is to have them
        return model

    def _resumed_model(self) -> Potential | None:
        """The model after the last stage that was finished, with the entries of all finished stages."""
        model = None
        for number in range(len(self.stages) + 1):
            entry, weights = self._stage_files(number)
            if not (entry.exists() and weights.exists()):
                break
            self.done.append(json.loads(entry.read_text()))
            model = load(weights, device=self.config.training.device)
        if self.done:
            self.console.line(f"resuming after stage {len(self.done) - 1} of {len(self.stages)}")
        if len(self.done) == 1 and model is not None and model.long is not None:
            model.long.charges.set_values({})
        return model

    def _stage_files(self, number: int) -> tuple[Path, Path]:
        return self.out / "stages" / f"{number}.json", self.out / "stages" / f"{number}.pt"

    def _stage(self, model: Potential, number: int, stage: Stage) -> None:
        training, console = self.config.training, self.console
        started = time.monotonic()
        if stage.charged and model.long is not None:
            start = load(self._stage_files(0)[1]).long
            assert start is not None
            model.long.charges.load_state_dict(start.charges.state_dict())
        module = StageModule(model, stage, training, self.data.train, *self._prepare(model, stage))
        valid = valid_loader(self.data.valid, training)
        train = train_loader(self.data.train, training, seed=training.seed * 10 + number)
        folder = self.out / CHECKPOINTS / str(number)
        checkpoint = usable_checkpoint(folder, console.warn)
        if checkpoint is None:
            module.validate(valid)
        title = f"stage {number}/{len(self.stages)}: {stage.title}"
        with console.progress(title, training.max_epochs, "epochs") as update, warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")  # its hints on loaders and its use of old torch names
            trainer = lightning.Trainer(
                max_epochs=training.max_epochs,
                accelerator="cpu" if training.device == "cpu" else "gpu",
                devices=1 if training.device in ("cpu", "cuda") else [int(training.device.split(":")[1])],
                gradient_clip_val=training.gradient_clip,
                callbacks=[
                    SaveEveryEpoch(folder),
                    StopOnSignal(self.interrupted, self.out),
                    _Report(lambda: update(len(module.history) - 1, progress_note(module.history))),
                ],
                logger=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                inference_mode=False,
                num_sanity_val_steps=0,
                use_distributed_sampler=False,
            )
            trainer.fit(module, train, valid, ckpt_path=checkpoint, weights_only=True)
        model.load_state_dict(module.best_weights)
        model.to(training.device)
        self._finish_stage(model, number, stage, module, time.monotonic() - started)

    def _prepare(self, model: Potential, stage: Stage) -> tuple[dict[str, float], float]:
        """Scales of the loss and the learning rate of the long-range part; `known_*` of all structures are set."""
        training = self.config.training
        if stage.baseline:
            store_known(model, self.data.train, (stage.frozen | stage.trained) - {"short"})
            fit_baseline(model, self.data.train)
        # what everything present predicts now gives the scales; in the epochs only the frozen parts are known
        store_known(model, self.data.train, stage.frozen | stage.evaluated)
        scales = residual_scales(self.data.train)
        if "long" in stage.trained:
            scales |= charge_scales(model, self.data.train, supervised(self.config), stage.evaluated)
        lr_long = training.lr
        if training.lr_long != "auto":
            lr_long = training.lr_long
        elif "long" in stage.trained:
            long_range = (o["forces"].cpu() for _, o in predict_structures(model, self.data.train, parts={"long"}))
            lr_long = training.lr * relative_step(self.data.train, long_range)
        for part in (self.data.train, self.data.valid):
            store_known(model, part, stage.frozen)
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
        save(model, weights)
        write_text(entry_file, json.dumps(entry))

    def _info(self) -> ModelInfo:
        return ModelInfo(
            config=self.config.model_dump(mode="json"),
            elements=symbols(self.data.elements),
            stages=[{k: v for k, v in entry.items() if k != "history"} for entry in self.done],
            data={k: v for k, v in self.data.record.items() if k != "split"},
        )

    def _finish(self, model: Potential) -> FitResult:
        from lrpot import plots  # matplotlib takes a second

        model.eval().requires_grad_(False)
        model.info = self._info()
        path = save(model, self.out / "model.pt")
        table = [(entry["title"], entry["validation"], entry["charges"]) for entry in self.done]
        self.console.table("validation errors (mean absolute) after each stage", *stage_table(table))
        test = None
        shown: Evaluation = evaluate_structures(model, self.data.test or self.data.valid)
        if self.data.test:
            test = shown.errors()
            self.console.line("test " + errors_text(test))
        history = [{"stage": entry["stage"], **record} for entry in self.done[1:] for record in entry["history"]]
        write_text(self.out / "metrics.csv", csv_text(history))
        stages = [{k: v for k, v in entry.items() if k != "history"} for entry in self.done]
        write_text(self.out / "results.json", json.dumps({"stages": stages, "test": test}, indent=1))
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
        return FitResult(model, path, stages, test)


class _Report(lightning.Callback):
    def __init__(self, report: Callable[[], None]) -> None:
        self.report = report

    def on_validation_end(self, *args: object) -> None:
        self.report()
