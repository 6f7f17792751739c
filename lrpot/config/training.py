"""Settings of the fit."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lrpot.config.section import Section


class TrainingConfig(Section):
    """How the model is fitted."""

    stages: Literal[1, 3] = Field(
        3, description="3: real space, then reciprocal space with the real part frozen, then both; 1: all at once."
    )
    schedule: Literal["auto", "published", "physical-start", "physics-first"] = Field(
        "auto",
        description="What the stages see: published (stage 1 has no long range), physical-start (stage 1 has it, "
        "frozen), physics-first (charges and kernel before the network); auto: physical-start for coulomb, else "
        "published.",
    )
    max_epochs: int = Field(100, ge=1, description="Epochs of each stage, at most.")
    batch_size: int = Field(
        4, ge=1, description="Structures per step, at most, of all processes together: their number changes no result."
    )
    max_edges: int | None = Field(
        None,
        ge=1,
        description="Edges per step, at most, of all processes together; structures of similar size then share a step.",
    )
    max_atoms: int | None = Field(None, ge=1, description="Atoms per step, at most; likewise.")
    lr: float = Field(5e-3, gt=0, description="Learning rate of Adam for the network.")
    lr_long: float | Literal["auto"] = Field(
        "auto", description="Learning rate for charges and kernel; auto: lr times (residual / long-range forces)."
    )
    lr_schedule: Literal["cosine", "plateau"] = Field(
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
        0.0, ge=0, description="Weight of the dipole in the loss, of neutral molecules and slabs that are labelled."
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
        description="Weight in the loss of what the charges add up to beside the total charge; for molecules and ions "
        "in vacuum, whose charges no medium screens.",
    )
    gradient_clip: float = Field(10.0, gt=0, description="Largest norm of the gradient of the loss.")
    dtype: Literal["float32", "float64"] = Field("float32", description="Precision of the network in training.")
    device: str = Field("cpu", description="cpu, cuda, cuda:1, ...")
    devices: int = Field(
        1, ge=1, description="Processes on each machine that share every step; with cuda each takes a GPU of its own."
    )
    nodes: int = Field(1, ge=1, description="Machines; more than one is started by torchrun or SLURM.")
    seed: int = Field(0, ge=0, description="Seed of weights, split and order.")


# The weight of each label of the charges, by the name of the label.
CHARGE_WEIGHTS = {"charges": "charge_weight", "dipole": "dipole_weight", "born_charges": "born_weight"}
