"""All settings of a fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import yaml
from pydantic import Field, model_validator

from lrpot.config.data import DataConfig
from lrpot.config.model import ModelConfig
from lrpot.config.properties import PROPERTY_DEFAULTS, PropertiesConfig
from lrpot.config.section import Section
from lrpot.config.training import CHARGE_WEIGHTS, TrainingConfig


class FitConfig(Section):
    """All settings of `lrpot fit`."""

    task: Literal["potential", "property"] = Field(
        "potential",
        description="potential: energies and forces, by what `model` says; property: properties of crystals, by what "
        "`properties` says, which also makes it the task where none is named.",
    )
    data: DataConfig = Field(DataConfig(), description="The structures.")
    model: ModelConfig = Field(ModelConfig(), description="The potential.")
    properties: PropertiesConfig = Field(PropertiesConfig(), description="The model of properties.")
    training: TrainingConfig = Field(TrainingConfig(), description="The fit.")

    @model_validator(mode="before")
    @classmethod
    def _properties_have_their_own_defaults(cls, values: Any) -> Any:
        """Of data and training, where a file or command says nothing else."""
        if not isinstance(values, Mapping):
            return values
        values = dict(values)
        if "properties" in values:
            values.setdefault("task", "property")
        if values.get("task") == "property":
            for section, defaults in PROPERTY_DEFAULTS.items():
                given = values.get(section, {})
                if isinstance(given, Mapping):
                    values[section] = {**defaults, **given}
        return values

    @model_validator(mode="after")
    def _what_properties_need(self) -> FitConfig:
        training = self.training
        if self.task == "potential":
            if self.data.split == "structure":
                raise ValueError("data.split structure is for task property; choose random or formula")
            return self
        if training.finetune.model is not None:
            raise ValueError("a fit that starts from a model (--from) is of task potential; fit the property anew")
        if training.devices * training.nodes > 1:
            raise ValueError(
                "task property is fitted by one process, for its batches are normalised together; set training.devices "
                "and training.nodes to 1"
            )
        if self.properties.head.kind == "trees" and training.pretrain_epochs:
            raise ValueError("head trees trains no encoder; set training.pretrain_epochs to 0")
        if training.precision == "bf16":
            raise ValueError("training.precision bf16 is for task potential; choose full")
        return self

    @model_validator(mode="after")
    def _schedule(self) -> FitConfig:
        form, schedule = self.model.kernel.form, self.training.schedule
        if schedule in ("physics-first", "long-range-only") and form == "none":
            raise ValueError(f"schedule {schedule} needs a long-range part, but kernel.form is none; choose coulomb")
        if schedule == "long-range-only" and self.training.finetune.model is not None:
            raise ValueError(
                "schedule long-range-only fits no network, but a fit that starts from a model has one; choose auto"
            )
        if schedule == "published" and self.training.finetune.model is not None:
            raise ValueError(
                "schedule published fits a network before there are charges, but a fit that starts from a model has "
                "both; choose auto"
            )
        return self

    @model_validator(mode="after")
    def _labels_have_charges(self) -> FitConfig:
        weights = [name for name in (*CHARGE_WEIGHTS.values(), "total_charge_weight") if self.training.weight(name) > 0]
        if weights and self.model.kernel.form == "none":
            raise ValueError(f"training.{weights[0]} needs charges, but kernel.form is none; choose coulomb")
        return self

    @model_validator(mode="after")
    def _stages_exist(self) -> FitConfig:
        absent = max(self.training.per_stage, default=1)
        if absent > 1 and self.task == "property":
            raise ValueError(f"training.per_stage names stage {absent}, but a fit of properties has one; name stage 1")
        if absent > 1 and self.training.stages == 1:
            raise ValueError(f"training.per_stage names stage {absent}, but training.stages is 1; name stage 1")
        alone = "kernel.form none" if self.model.kernel.form == "none" else "schedule long-range-only"
        if absent > 1 and (self.model.kernel.form == "none" or self.training.schedule == "long-range-only"):
            raise ValueError(
                f"training.per_stage names stage {absent}, but with {alone} there is one stage; name stage 1"
            )
        return self

    @model_validator(mode="after")
    def _precision(self) -> FitConfig:
        if self.training.precision == "bf16" and self.training.dtype == "float64":
            raise ValueError("training.precision bf16 is beside dtype float32; with float64, choose precision full")
        return self

    @model_validator(mode="after")
    def _processes(self) -> FitConfig:
        training = self.training
        size = training.devices * training.nodes
        batch_size = min(training.for_stage(number).batch_size for number in (1, 2, 3))
        if size > batch_size:
            raise ValueError(
                f"{size} processes (training.devices x training.nodes) share the structures of a batch, but "
                f"training.batch_size is {batch_size}; raise it to {size} or more"
            )
        if size > 1 and training.ensemble > 1:
            raise ValueError(
                f"training.ensemble = {training.ensemble} is fitted by one process; leave --devices and --nodes out, "
                "or go on with each member by itself: lrpot fit --resume --out RUN/member-2 --devices 2"
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
        present = self.model.kernel.form == "coulomb" or self.training.finetune.model is not None
        return "physical-start" if present else "published"

    def to_yaml(self) -> str:
        """All settings as YAML that `lrpot fit --config` reads."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)
