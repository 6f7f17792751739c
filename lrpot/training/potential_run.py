"""The fit of a potential in one directory: charges, stages, tables and pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch

from lrpot.build import build_potential
from lrpot.charges.start import starting_charges
from lrpot.config import TrainingConfig
from lrpot.coverage import Coverage, coverage_of
from lrpot.evaluation import Evaluation, evaluate_structures
from lrpot.files import write_text
from lrpot.kspace import CoulombComplement
from lrpot.model_file import load, save
from lrpot.potential import Potential
from lrpot.training.baseline import (
    charge_scales,
    fit_baseline,
    relative_step,
    residual_scales,
    set_start,
    store_known,
)
from lrpot.training.dataset import supervised
from lrpot.training.finetune import take_over
from lrpot.training.module import StageModule
from lrpot.training.run import MODEL, Run
from lrpot.training.stages import Stage, decided, plan
from lrpot.training.summary import (
    charge_sizes,
    charge_warnings,
    charges_of,
    charges_text,
    errors_text,
    idle_warnings,
    progress_note,
    stage_table,
)


class PotentialRun(Run[Potential]):
    """The fit of a potential, in stages."""

    @property
    def stages(self) -> list[Stage]:
        return plan(decided(self.config, self.done))

    @property
    def schedule(self) -> str:
        config = decided(self.config, self.done)
        if len(self.stages) == 1:
            return ""
        why = "" if config is self.config else ", for the forces do not tell the charges"
        return f"; schedule {config.schedule}{why}"

    @property
    def titles(self) -> list[str]:
        return [stage.title for stage in self.stages]

    @cached_property
    def coverage(self) -> Coverage:
        return coverage_of(self.data.train, self.config.model.backbone.cutoff)

    def first_model(self) -> Potential:
        return self._fresh_model() if self.start is None else self._taken_over(self.start)

    def module(self, model: Potential, number: int) -> StageModule:
        stage, training = self.stages[number - 1], self.config.training.for_stage(number)
        if model.long is not None and number == 1 and self.start is None:
            model.long.charges.set_values({})  # until the stage that is to have them
        if stage.charged and model.long is not None:
            start = load(self.stage_files(0)[1]).long
            assert start is not None
            model.long.charges.load_state_dict(start.charges.state_dict())
        scales, lr_long = self._prepare(model, stage, training)
        # processes on machines of different kinds may have rounded differently
        self.processes.copy_first(model)
        scales, lr_long = self.processes.from_first((scales, lr_long))
        return StageModule(model, stage, training, self.data.train, scales, lr_long, self.processes)

    def results(self, model: Potential) -> dict[str, Any]:
        found = evaluate_structures(model, self.data.valid)
        return {
            "validation": found.errors(),
            "charges": charges_of(model, found),
            "charge_sizes": charge_sizes(found),
        }

    def errors_text(self, errors: Mapping[str, Any]) -> str:
        return errors_text(errors)

    def progress_note(self, history: list[dict[str, float]]) -> str:
        return progress_note(history)

    def warnings(self) -> list[str]:
        return charge_warnings(self.done, self.config) + idle_warnings(self.done, self.config)

    def _fresh_model(self) -> Potential:
        model = build_potential(self.config.model, self.data.elements)
        model.set_precision(getattr(torch, self.config.training.dtype))
        origin, guessed = None, False
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
            origin, guessed = start.origin, self.processes.from_first(start.guessed)
        store_known(model, self.data.train, {"long"}, self.processes)
        fit_baseline(model, self.data.train)
        self._keep_start(model, origin, guessed)
        return model

    def _taken_over(self, start: Potential) -> Potential:
        model = take_over(start, self.config, self.data, self.console.line, self.processes)
        self._keep_start(model, self.config.training.finetune.model)
        return model

    def _keep_start(self, model: Potential, origin: str | None, guessed: bool = False) -> None:
        """The model before any training is kept like one after a stage: the yardstick for what the stages bring."""
        model.to(self.device)
        self.keep(model, {"stage": 0, "title": "start", "origin": origin, "guessed": guessed, **self.results(model)})

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
            lr_long = training.lr * relative_step(model, data, processes)
        for part in (data, self.data.valid):
            store_known(model, part, stage.frozen, processes)
        return scales, lr_long

    def finish(self, model: Potential) -> None:
        from lrpot import plots  # matplotlib takes a second

        path = save(model, self.out / MODEL)
        table = [(entry["title"], entry["validation"], entry["charges"]) for entry in self.done]
        self.console.table("validation errors (mean absolute) after each stage", *stage_table(table))
        shown: Evaluation = evaluate_structures(model, self.data.test or self.data.valid)
        if self.data.test:
            self.test = shown.errors()
            self.console.line("test " + errors_text(self.test))
        if doubt := shown.stress_doubt():
            self.console.warn(doubt)
        pictures = [
            plots.parity(shown, self.out / "parity.png"),
            plots.learning_curves(self.done[1:], self.out / "learning_curves.png"),
        ]
        if model.long is not None:
            pictures.append(plots.kernel(model, self.out / "kernel.png"))
        # last: who finds it finds all the rest
        write_text(self.out / "results.json", json.dumps({"stages": self.summary, "test": self.test}, indent=1))
        for file in (path, *pictures):
            self.console.line(f"wrote {file}")
        self.console.line(f"a page with all of it, and the worst structures: lrpot report {self.out}")
