"""Settings of the potential: its network, its charges, its kernel."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lrpot.config.backbone import BackboneConfig, PaiNNConfig
from lrpot.config.section import Section

PAIR_CUTOFF_RANGE = (2.0, 10.0)
"""A; shorter pair splines miss the nearest neighbours, longer ones imitate the Coulomb field."""

# A file of charges is told from a misspelt word by its ending.
ChargeFile = Annotated[str, Field(pattern=r"\.ya?ml$")]


class ChargesConfig(Section):
    """The charges of the long-range part."""

    kind: Literal["embedding", "environment", "equilibration"] = Field(
        "embedding",
        description="embedding: one learned charge per element; environment: that plus a network of the backbone's "
        "features; equilibration: electronegativities from the same, charges from the lowest energy at the total "
        "charge.",
    )
    channels: int = Field(
        1, ge=1, description="Charges per atom; the first is the charge, others are what training makes of them."
    )
    hidden: int = Field(32, ge=1, description="Width of the network that reads the backbone's features.")
    init: Literal["prefit", "born", "oxidation", "zero"] | ChargeFile | dict[str, float] = Field(
        "prefit",
        description="Where charges start: prefit (linear fit of forces before any network; needs kernel coulomb), "
        "a file ending in .yaml that lrpot charges wrote, born (Born charges over the square root of the dielectric "
        "constant), oxidation (oxidation states times one screening factor), zero, or a table {Na: 1.0, Cl: -1.0}, e.",
    )
    born: str | None = Field(
        None, description="File of Born charges and dielectric constant for init born; without one, labels in the data."
    )
    pair_cutoff: Annotated[float, Field(ge=PAIR_CUTOFF_RANGE[0], le=PAIR_CUTOFF_RANGE[1])] | Literal["auto"] = Field(
        "auto", description="Reach of the prefit's pair splines, A; auto: where the charges are determined best."
    )
    sum_molecules: bool = Field(
        True, description="The prefit sums forces over bonded molecules, whose inner forces would drown the rest."
    )
    neutrality: Literal["background", "shift"] = Field(
        "background", description="background: charges kept, uniform background; shift: mean taken off (published)."
    )


class KernelConfig(Section):
    """The learned kernel Phi(|k|) of E_long = 1/V sum_k Phi |S|^2."""

    form: Literal["coulomb", "free", "none"] = Field(
        "coulomb",
        description="coulomb: Gaussian Coulomb times (1 + FCN); free: FCN alone (published); none: no long range.",
    )
    k_cutoff: Annotated[float, Field(gt=0)] | Literal["auto"] = Field(
        "auto", description="Largest |k|, 1/A; auto: what `tolerance` needs at the backbone's cutoff."
    )
    tolerance: float = Field(
        1e-6,
        gt=0,
        le=1e-4,
        description="What the two halves of the Coulomb sum may leave out, relative; for k_cutoff auto.",
    )
    sigma: Annotated[float, Field(gt=0)] | Literal["auto"] = Field(
        "auto",
        description="Width of the Gaussian charges of the Coulomb kernel, A; auto: where both halves of the Coulomb "
        "sum are cut at the same depth.",
    )
    engine: Literal["auto", "separable", "nufft", "dense"] = Field(
        "auto",
        description="How the sum is computed: auto (exact for training and small cells, nufft for large ones), "
        "separable (exact), nufft, dense (the plain sum, slow).",
    )
    engine_tolerance: float = Field(
        1e-5, gt=0, lt=1, description="Relative error of long-range forces that engine nufft may make."
    )
    envelope: float = Field(
        0.9, ge=0, le=1, description="Fraction of a cutoff at which its taper begins; 1: no envelope in k (published)."
    )
    complement: Literal["coulomb", "none"] = Field(
        "coulomb", description="coulomb: the real-space half of the Coulomb sum is added; none: it is not (published)."
    )
    basis: int = Field(16, ge=1, description="Cosines in |k| that the FCN reads.")
    hidden: int = Field(32, ge=1, description="Width of the FCN.")
    layers: int = Field(2, ge=0, description="Residual layers of the FCN.")


class ModelConfig(Section):
    """What the potential consists of."""

    backbone: BackboneConfig = Field(PaiNNConfig(), description="The short-range network.")
    charges: ChargesConfig = Field(ChargesConfig(), description="The charges of the long-range part.")
    kernel: KernelConfig = Field(KernelConfig(), description="The learned kernel.")

    @model_validator(mode="after")
    def _charges_are_used(self) -> ModelConfig:
        if self.kernel.form == "none" and self.charges.kind != "embedding":
            raise ValueError(
                f"charges.kind {self.charges.kind} needs a long-range part, but kernel.form is none; choose coulomb"
            )
        return self
