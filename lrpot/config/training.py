"""Settings of the fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_serializer,
    model_validator,
)

from lrpot.config.finetune import FINETUNE_DEFAULTS, FinetuneConfig
from lrpot.config.section import Section

Loss = Literal["mse", "mae", "huber"]
LearningRateSchedule = Literal["cosine", "plateau"]
Logger = Literal["csv", "tensorboard", "wandb"]

# At the full rate the first epochs ruin what stage 1 has learned, and the rest of the stage mends it.
LAST_STAGE_LR = 0.2


class StageConfig(Section):
    """Settings of one stage that differ from those of the fit; null where they do not."""

    loss: Loss | None = Field(None, description="Instead of training.loss.")
    huber_threshold: PositiveFloat | None = Field(None, description="Instead of training.huber_threshold.")
    max_epochs: PositiveInt | None = Field(None, description="Instead of training.max_epochs.")
    batch_size: PositiveInt | None = Field(None, description="Instead of training.batch_size, structures.")
    accumulate: PositiveInt | None = Field(None, description="Instead of training.accumulate, batches.")
    lr: PositiveFloat | None = Field(None, description="Instead of training.lr.")
    lr_long: PositiveFloat | Literal["auto"] | None = Field(None, description="Instead of training.lr_long.")
    lr_schedule: LearningRateSchedule | None = Field(None, description="Instead of training.lr_schedule.")
    lr_patience: PositiveInt | None = Field(None, description="Instead of training.lr_patience, epochs.")
    warmup_epochs: NonNegativeFloat | None = Field(None, description="Instead of training.warmup_epochs.")
    patience: PositiveInt | None = Field(None, description="Instead of training.patience, epochs.")
    min_improvement: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None, description="Instead of training.min_improvement, relative."
    )
    energy_weight: NonNegativeFloat | None = Field(None, description="Instead of training.energy_weight.")
    force_weight: NonNegativeFloat | None = Field(None, description="Instead of training.force_weight.")
    stress_weight: NonNegativeFloat | None = Field(None, description="Instead of training.stress_weight.")
    charge_weight: NonNegativeFloat | None = Field(None, description="Instead of training.charge_weight.")
    dipole_weight: NonNegativeFloat | None = Field(None, description="Instead of training.dipole_weight.")
    born_weight: NonNegativeFloat | None = Field(None, description="Instead of training.born_weight.")
    total_charge_weight: NonNegativeFloat | None = Field(None, description="Instead of training.total_charge_weight.")

    @model_serializer
    def _changed(self) -> dict[str, Any]:
        """What differs, so that a file of settings shows no more."""
        return {name: value for name in type(self).model_fields if (value := getattr(self, name)) is not None}


class TrainingConfig(Section):
    """How the model is fitted."""

    stages: Literal[1, 3] = Field(
        3, description="3: real space, then reciprocal space with the real part frozen, then both; 1: all at once."
    )
    schedule: Literal["auto", "published", "physical-start", "physics-first", "long-range-only"] = Field(
        "auto",
        description="What the stages see: published (stage 1 has no long range), physical-start (stage 1 has it, "
        "frozen), physics-first (charges and kernel before the network), long-range-only (one stage of charges and "
        "kernel; the network stays zero); auto: physical-start for coulomb with charges that are given or that the "
        "forces tell, else published.",
    )
    loss: Loss = Field(
        "mse",
        description="What is minimised of every label's errors, in units of what there is to learn at the start of a "
        "stage: mse, the mean square; mae, the mean magnitude; huber, squares of small errors and magnitudes of large "
        "ones.",
    )
    huber_threshold: float = Field(
        1.0,
        gt=0,
        description="Where huber goes from squares to magnitudes; 1 is the size of what there is to learn.",
    )
    max_epochs: int = Field(100, ge=1, description="Epochs of each stage, at most.")
    pretrain_epochs: int = Field(
        0,
        ge=0,
        description="Epochs before the fit of a property model in which its encoder learns to tell elements that are "
        "hidden, from the crystals of the training part, labels unseen. 0: none.",
    )
    epoch_batches: int | None = Field(
        None,
        ge=1,
        description="Batches after which an epoch ends, with a validation and a checkpoint, of sets so large that a "
        "pass over them takes hours; the next epoch goes on from there. null: a whole pass.",
    )
    batch_size: int = Field(
        4, ge=1, description="Structures per batch, at most, of all processes together: their number changes no result."
    )
    max_edges: int | None = Field(
        None,
        ge=1,
        description="Edges per batch, at most, of all processes together; structures of similar size then share a "
        "batch.",
    )
    max_atoms: int | None = Field(None, ge=1, description="Atoms per batch, at most; likewise.")
    accumulate: int = Field(
        1,
        ge=1,
        description="Batches whose gradients are averaged before each step of the optimizer: a step sees up to "
        "accumulate x batch_size structures in the memory of one batch. The last step of an epoch takes the batches "
        "that are left.",
    )
    lr: float = Field(
        5e-3,
        gt=0,
        description=f"Learning rate of Adam for the network; the last of three stages, which begins with a fitted "
        f"network, takes {LAST_STAGE_LR:g} of it unless per_stage says otherwise.",
    )
    lr_long: PositiveFloat | Literal["auto"] = Field(
        "auto", description="Learning rate for charges and kernel; auto: lr times (residual / long-range forces)."
    )
    lr_schedule: LearningRateSchedule = Field(
        "cosine",
        description="cosine: the learning rate falls to a hundredth over max_epochs; plateau: it is halved whenever "
        "the validation loss has not improved for lr_patience epochs.",
    )
    lr_patience: int = Field(8, ge=1, description="Epochs without improvement before the learning rate is halved.")
    warmup_epochs: float = Field(1.0, ge=0, description="Epochs over which the learning rate rises from zero.")
    patience: int = Field(30, ge=1, description="Epochs without improvement that end a stage.")
    min_improvement: float = Field(1e-3, ge=0, lt=1, description="What counts as improvement, relative.")
    energy_weight: float = Field(1.0, ge=0, description="Weight of the energy per atom in the loss.")
    force_weight: float = Field(1.0, ge=0, description="Weight of the forces in the loss.")
    stress_weight: float = Field(0.1, ge=0, description="Weight of the stress in the loss, where it is labelled.")
    charge_weight: float = Field(0.0, ge=0, description="Weight of the charges in the loss, where they are labelled.")
    dipole_weight: float = Field(
        0.0,
        ge=0,
        description="Weight of the dipole in the loss, of neutral molecules and slabs that are labelled; it says "
        "nothing of a charge that all atoms share, total_charge_weight does.",
    )
    born_weight: float = Field(
        0.0,
        ge=0,
        description="Weight of the Born charges in the loss, where they are labelled. With environment charges a step "
        "on crystals takes as many backward passes as the largest of them has atoms.",
    )
    total_charge_weight: float = Field(
        0.0,
        ge=0,
        description="Weight in the loss of the squares of what the charges add up to beside the total charge, e^2; for "
        "molecules and ions in vacuum, whose charges no medium screens.",
    )
    weight_decay: float = Field(
        0.0, ge=0, description="Decoupled decay of the weights per step, times the learning rate (AdamW); 0: Adam."
    )
    gradient_clip: float = Field(10.0, gt=0, description="Largest norm of the gradient of the loss.")
    keep: Literal["best", "last"] = Field(
        "best",
        description="Weights that a stage ends with: best, those of the least validation loss; last, those of its last "
        "epoch, where so few rows validate that the least loss is luck.",
    )
    ema: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Decay per step of a running average of the weights, such as 0.99; validation and the saved model "
        "then have the averaged weights. 0: none.",
    )
    per_stage: dict[Literal[1, 2, 3], StageConfig] = Field(
        {},
        description="Settings of this section that differ in one stage, by its number: {2: {lr: 1.0e-3, max_epochs: "
        "50}}. Loss, weights, learning rates, epochs and sizes of batches may differ.",
    )
    dtype: Literal["float32", "float64"] = Field("float32", description="Precision of the network in training.")
    precision: Literal["full", "bf16"] = Field(
        "full",
        description="bf16: the backbone multiplies matrices in bfloat16 in the steps of training; energies, forces, "
        "the reciprocal sum, validation and the saved model stay as dtype says. For wide networks on processors that "
        "are made for it; narrow ones only lose by it.",
    )
    device: str = Field("cpu", description="cpu, cuda, cuda:1, ...")
    devices: int = Field(
        1, ge=1, description="Processes on each machine that share every step; with cuda each takes a GPU of its own."
    )
    nodes: int = Field(1, ge=1, description="Machines; more than one is started by torchrun or SLURM.")
    seed: int = Field(0, ge=0, description="Seed of weights, split and order.")
    ensemble: int = Field(
        1,
        ge=1,
        description="Models that are fitted to the same structures, with seeds from `seed` on; two or more predict "
        "their mean, and an uncertainty from their spread.",
    )
    logger: Annotated[list[Logger], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)] = (
        Field(
            ["csv"],
            description="Where the metrics of every epoch go: csv (metrics.csv in the run), tensorboard, wandb; one, "
            "or a list such as [csv, tensorboard].",
        )
    )

    finetune: FinetuneConfig = Field(FinetuneConfig(), description="A fit that starts from a model.")

    @field_validator("per_stage", mode="before")
    @classmethod
    def _stage_numbers(cls, value: Any) -> Any:
        """Numbers of stages, also if they were written as text."""
        if not isinstance(value, dict):
            raise ValueError("expected settings by number of a stage, such as {2: {lr: 1.0e-3}}")
        numbers = {str(number): number for number in (1, 2, 3)}
        for name in value:
            if str(name) not in numbers:
                nearest = 3 if str(name).isdigit() and int(name) > 3 else 1
                raise ValueError(f"there is no stage {name}; did you mean {nearest}? Stages are 1, 2 and 3")
        return {numbers[str(name)]: settings for name, settings in value.items()}

    def for_stage(self, number: int) -> TrainingConfig:
        """These settings with those of one stage in their place, and none by stage.

        Args:
            number: of the stage, from 1.
        """
        stage = self.per_stage.get(number)  # type: ignore[call-overload]
        own = stage.model_dump() if stage else {}
        # fine-tuning has a low rate in every stage
        if number == 3 and self.finetune.model is None:
            own = {"lr": self.lr * LAST_STAGE_LR} | own
        return self.model_copy(update={"per_stage": {}} | own)

    def weight(self, name: str) -> float:
        """The largest value that a weight has in any stage: 0 if it is used in none."""
        return max(getattr(self.for_stage(number), name) for number in (1, 2, 3))

    @model_validator(mode="before")
    @classmethod
    def _finetuning_has_its_own_defaults(cls, values: Any) -> Any:
        finetune = values.get("finetune") if isinstance(values, Mapping) else None
        start = finetune.get("model") if isinstance(finetune, Mapping) else getattr(finetune, "model", None)
        return values if start is None else {**FINETUNE_DEFAULTS, **values}


CHARGE_WEIGHTS = {"charges": "charge_weight", "dipole": "dipole_weight", "born_charges": "born_weight"}
"""The weight of each label of the charges, by the name of the label."""
