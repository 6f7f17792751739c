"""Settings of a fit that starts from a model."""

from __future__ import annotations

from pydantic import Field, model_validator

from lrpot.config.section import Section

# What is usual for weights that are nearly right: one stage, and steps that do not throw them off.
FINETUNE_DEFAULTS = {"stages": 1, "lr": 5e-4}


class FinetuneConfig(Section):
    """What a fit takes over from a model, and how."""

    model: str | None = Field(
        None,
        min_length=1,
        description="Model file that the fit starts from; its weights, its elements and all its settings `model.*` are "
        f"taken over, and unless they are given, stages is {FINETUNE_DEFAULTS['stages']} and lr is "
        f"{FINETUNE_DEFAULTS['lr']:g}.",
    )
    layer_decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Factor of the learning rate from each layer of the network to the one before it: the readout has "
        "lr, the last interaction lr times this, and so on to the embeddings; charges and kernel keep lr_long.",
    )
    freeze_layers: int = Field(
        0,
        ge=0,
        description="How many of the deepest layers of the network stay as they are; 1: the embeddings, 2: the first "
        "interaction as well, and so on; the readout is always fitted.",
    )
    new_elements: bool = Field(
        False,
        description="Add the elements of the data that the model does not know; each starts as the nearest known "
        "element of its group, or as the mean of all.",
    )

    @model_validator(mode="after")
    def _model_is_there(self) -> FinetuneConfig:
        given = list(self.model_dump(exclude_defaults=True))
        if self.model is None and given:
            raise ValueError(f"{given[0]} needs a model to start from; name one with --from (finetune.model)")
        return self
