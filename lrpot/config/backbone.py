"""Settings of the short-range networks, one section each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from lrpot.config.section import Section


class PaiNNConfig(Section):
    """PaiNN, the polarizable interaction network."""

    name: Literal["painn"] = Field("painn", description="Which network.")
    features: int = Field(64, ge=1, description="Width: features per atom.")
    interactions: int = Field(3, ge=1, description="Message-passing steps.")
    radial_basis: int = Field(20, ge=2, description="Gaussians in the distance.")
    cutoff: float = Field(5.0, gt=0, description="Reach of an edge, A.")
    cutoff_function: Literal["smooth", "cosine"] = Field(
        "smooth", description="smooth: two continuous derivatives; cosine: one (SchNetPack's)."
    )
    epsilon: float = Field(
        0.01,
        gt=0,
        description="Norms of vectors are sqrt(|v|^2 + epsilon). As published (1e-8 in SchNetPack) they leave a cusp "
        "of the energy at the sites of perfect crystals, which spoils phonons; 0.01 rounds it.",
    )


class DimeNetPlusPlusConfig(Section):
    """DimeNet++, directional message passing over triplets."""

    name: Literal["dimenet++"] = Field("dimenet++", description="Which network.")
    features: int = Field(128, ge=1, description="Width: features per atom and per edge.")
    interactions: int = Field(4, ge=1, description="Message-passing steps.")
    triplet_features: int = Field(64, ge=1, description="Width in which messages meet, at an angle.")
    basis_features: int = Field(8, ge=1, description="Width in which the bases are embedded.")
    output_features: int = Field(256, ge=1, description="Width of the output blocks.")
    radial_basis: int = Field(6, ge=1, le=64, description="Bessel functions in the distance, for each order l.")
    spherical_basis: int = Field(7, ge=2, le=16, description="Orders l of Legendre polynomials in the angle.")
    envelope_exponent: int = Field(
        5, ge=2, le=32, description="How long the envelope stays near one; any value gives two continuous derivatives."
    )
    cutoff: float = Field(5.0, gt=0, description="Reach of an edge, A.")


class EquivariantConfig(Section):
    """An E(3)-equivariant network of tensor products (NequIP's kind)."""

    name: Literal["equivariant"] = Field("equivariant", description="Which network.")
    features: int = Field(32, ge=1, description="Width: features of every order l and parity.")
    lmax: int = Field(1, ge=0, le=4, description="Highest order l of features and spherical harmonics.")
    interactions: int = Field(3, ge=1, description="Message-passing steps.")
    radial_basis: int = Field(8, ge=1, description="Bessel functions in the distance.")
    radial_hidden: int = Field(64, ge=1, description="Width of the network that makes the radial weights.")
    tensors: bool = Field(False, description="Keep vectors and tensors of the last step; energies need scalars only.")
    cutoff: float = Field(5.0, gt=0, description="Reach of an edge, A.")


REGISTERED = "(registered)"

REGISTERED_BACKBONES: dict[str, type[BaseModel]] = {}
"""Sections of the backbones that `lrpot.backbones.register` made known in this process, by name."""


class RegisteredConfig(Section):
    """A backbone of the user's own; its settings are the arguments of its class."""

    model_config = ConfigDict(extra="allow")

    name: str = Field(REGISTERED, description="Which network.")
    cutoff: float = Field(gt=0, description="Reach of an edge, A.")

    @model_validator(mode="before")
    @classmethod
    def _as_registered(cls, values: Any) -> Any:
        """Checked against the arguments of the class, and with its defaults, so that a file records them."""
        name = values.get("name")
        if name not in REGISTERED_BACKBONES:
            raise ValueError(f"no backbone {name!r} is registered; call lrpot.backbones.register first")
        section = REGISTERED_BACKBONES[name]
        try:
            return section.model_validate(values).model_dump()
        except ValidationError as error:
            problem = error.errors()[0]
            setting = ".".join(map(str, problem["loc"]))
            known = ", ".join(section.model_fields)
            raise ValueError(f"{setting}: {problem['msg']}; settings of {name} are {known}") from None


def _backbone_name(section: Any) -> Any:
    """Which of the networks a section describes; without a name it is PaiNN's."""
    name = section.get("name", "painn") if isinstance(section, Mapping) else getattr(section, "name", None)
    return REGISTERED if isinstance(name, str) and name in REGISTERED_BACKBONES else name


BackboneConfig = Annotated[
    Annotated[PaiNNConfig, Tag("painn")]
    | Annotated[DimeNetPlusPlusConfig, Tag("dimenet++")]
    | Annotated[EquivariantConfig, Tag("equivariant")]
    | Annotated[RegisteredConfig, Tag(REGISTERED)],
    Discriminator(_backbone_name),
]
"""The section of any backbone; its `name` says of which."""
