"""All settings of a fit."""

from __future__ import annotations

import yaml
from pydantic import Field, model_validator

from lrpot.config.data import DataConfig
from lrpot.config.model import ModelConfig
from lrpot.config.section import Section
from lrpot.config.training import CHARGE_WEIGHTS, TrainingConfig


class FitConfig(Section):
    """All settings of `lrpot fit`."""

    data: DataConfig = Field(DataConfig(), description="The structures.")
    model: ModelConfig = Field(ModelConfig(), description="The potential.")
    training: TrainingConfig = Field(TrainingConfig(), description="The fit.")

    @model_validator(mode="after")
    def _schedule(self) -> FitConfig:
        form, schedule = self.model.kernel.form, self.training.schedule
        if schedule == "physics-first" and form == "none":
            raise ValueError("schedule physics-first needs a long-range part, but kernel.form is none; choose coulomb")
        return self

    @model_validator(mode="after")
    def _labels_have_charges(self) -> FitConfig:
        weights = [
            name for name in (*CHARGE_WEIGHTS.values(), "total_charge_weight") if getattr(self.training, name) > 0
        ]
        if weights and self.model.kernel.form == "none":
            raise ValueError(f"training.{weights[0]} needs charges, but kernel.form is none; choose coulomb")
        return self

    @model_validator(mode="after")
    def _processes(self) -> FitConfig:
        training = self.training
        size = training.devices * training.nodes
        if size > training.batch_size:
            raise ValueError(
                f"{size} processes (training.devices x training.nodes) share the structures of a step, but "
                f"training.batch_size is {training.batch_size}; raise it to {size} or more"
            )
        if size > 1 and ":" in training.device:
            raise ValueError(
                f"training.device = {training.device} is one GPU, but training.devices x training.nodes is {size}; "
                "write cuda"
            )
        return self

    @property
    def schedule(self) -> str:
        """The schedule, with "auto" decided."""
        if self.training.schedule != "auto":
            return self.training.schedule
        return "physical-start" if self.model.kernel.form == "coulomb" else "published"

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)
