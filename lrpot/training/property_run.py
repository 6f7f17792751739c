"""The fit of a property model in one directory: scales, pretraining if asked for, one stage, tables and pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lrpot.config import TrainingConfig
from lrpot.data.sources import named
from lrpot.errors import DataError, Interrupted
from lrpot.files import write_text
from lrpot.model_file import save
from lrpot.properties.build import build_property_model
from lrpot.properties.evaluation import errors_text, evaluate_properties, gates_text
from lrpot.properties.model import PropertyModel
from lrpot.properties.tables import errors_table, save_predictions
from lrpot.properties.targets import Target, targets_from
from lrpot.properties.trees import TreesHead
from lrpot.training.batches import valid_loader
from lrpot.training.dataset import FitData
from lrpot.training.epochs import EpochModule
from lrpot.training.pretraining import MaskedAtoms
from lrpot.training.property_module import PropertyModule
from lrpot.training.run import MODEL, Run

# Bytes on disk for what depends on crystals alone; of more, each step finds it anew.
MOST_PREPARED = 8 * 2**30


class PropertyRun(Run[PropertyModel]):
    """The fit of a property model."""

    _prepared = False

    @property
    def targets(self) -> tuple[Target, ...]:
        """What is learned."""
        return targets_from(self.config.properties)

    @property
    def titles(self) -> list[str]:
        return ["masked atoms", "fit"] if self._pretraining else ["fit"]

    @property
    def _pretraining(self) -> int:
        """Epochs that come before the fit; 0: none."""
        return self.config.training.pretrain_epochs

    def stage_training(self, number: int) -> TrainingConfig:
        training = self.config.training
        if not self._pretraining:
            return training.for_stage(number)
        if number > 1:
            return training.for_stage(number - 1)
        # the validation part chooses nothing here: what is learned comes from the training part alone
        epochs = self._pretraining
        changed = {"max_epochs": epochs, "patience": epochs, "keep": "last", "ema": 0.0, "per_stage": {}}
        changed["warmup_epochs"] = min(training.warmup_epochs, epochs / 4)  # few epochs shall not all be warm-up
        return training.model_copy(update=changed)

    def first_model(self) -> PropertyModel:
        model = build_property_model(self.config.properties, self.data.elements)
        model.set_precision(getattr(torch, self.config.training.dtype))
        values = set_scales(model, self.data)
        encoder: Any = model.encoder
        if hasattr(encoder, "standardise"):
            self._prepare(encoder)
            encoder.standardise(self.data.train)
        for place, target in enumerate(model.targets):
            own = values[:, place]
            if not target.classification and bool(((own == 0) | (own == 1) | own.isnan()).all()):
                self.console.warn(
                    f"{target.name} is 0 or 1 everywhere, and is learned as a number; if it is a class, add "
                    f"--classification {target.name}"
                )
        model.to(self.device).eval()
        self.keep(model, {"stage": 0, "title": "start", **self.results(model)})
        return model

    def module(self, model: PropertyModel, number: int) -> EpochModule:
        self._prepare(model.encoder)
        training = self.stage_training(number)
        if number < len(self.titles):
            return MaskedAtoms(model, training, self.data.train.elements)
        return PropertyModule(model, training)

    def train(self, model: PropertyModel, number: int, name: str) -> list[dict[str, float]]:
        """As of any run; trees are grown at once, without epochs."""
        if not isinstance(model.head, TreesHead):
            return super().train(model, number, name)
        self._prepare(model.encoder)
        features, wanted = [], []
        with torch.no_grad():
            for batch in valid_loader(self.data.train, self.stage_training(number)):
                batch = batch.to(self.device)
                features.append(model.encoder(batch).graph)
                wanted.append(model.learned(batch.targets, batch))
        model.head.grow(torch.cat(features), torch.cat(wanted), self.config.training.seed)
        if self.interrupted():  # nothing is kept of trees, which grow again in as little time
            raise Interrupted(f"stopped by Ctrl-C; go on with: lrpot fit --resume --out {self.out}")
        return []

    def _prepare(self, encoder: Any) -> None:
        """Attach to the structures, once, what the encoder needs of them that does not change."""
        parts = (self.data.train, self.data.valid)
        if self._prepared or not hasattr(encoder, "prepared"):
            return
        self._prepared = True
        if sum(encoder.prepared_size(part.atoms) for part in parts) <= MOST_PREPARED:
            encoder.cpu()
            with torch.no_grad():
                for part in parts:
                    part.attach(encoder.prepared(structure) for structure in part)
            encoder.to(self.device)

    def results(self, model: PropertyModel) -> dict[str, Any]:
        return {"validation": evaluate_properties(model, self.data.valid).errors()}

    def errors_text(self, errors: Mapping[str, Any]) -> str:
        return errors_text(errors, self.targets)

    def progress_note(self, history: list[dict[str, float]]) -> str:
        last = history[-1]
        errors = [f"{t.name} {last[t.name]:.3g} {t.unit}".rstrip() for t in self.targets if t.name in last]
        return ", ".join([f"loss {last['loss']:.2e}", *errors, f"lr {last['lr']:.1e}"])

    def finish(self, model: PropertyModel) -> None:
        path = save(model, self.out / MODEL)
        where, shown = ("test", self.data.test) if self.data.test else ("validation", self.data.valid)
        found = evaluate_properties(model, shown)
        errors = found.errors()
        if self.data.test:
            self.test = errors
        self.console.table(f"errors, {len(shown)} {where} structures", *errors_table(found))
        if found.experts:
            self.console.line(gates_text(found))
        results = {"stages": self.summary, "test": self.test, "gates": found.gate_usage()}
        table = save_predictions(found, shown.rows.tolist(), shown.names.tolist(), self.out / f"{where}.csv")
        from lrpot.properties.pictures import draw  # matplotlib takes a second

        pictures = draw(found, self.out, history=self.done[-1]["history"])
        # last: who finds it finds all the rest
        write_text(self.out / "results.json", json.dumps(results, indent=1))
        for file in (path, table, *pictures):
            self.console.line(f"wrote {file}")


def set_scales(model: PropertyModel, data: FitData) -> Tensor:
    """Set centre and scale of each target from the training part; its values (n, T), nan where there is none.

    Raises:
        DataError: a target that cannot be learned from them; names the file.
    """
    values = torch.cat([structure.targets for structure in data.train])
    try:
        model.set_scales(values, torch.from_numpy(data.train.atoms.astype("int64")))
    except DataError as error:
        raise DataError(f"{named(data.record['train'])}: {error}") from error
    return values
