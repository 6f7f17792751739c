"""Settings of a property model: its encoder, its head, what it predicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from lrpot.config.backbone import BackboneConfig, PaiNNConfig
from lrpot.config.section import Section

PROPERTY_DEFAULTS: dict[str, dict[str, Any]] = {
    "data": {"split": "structure"},
    "training": {
        "loss": "mae",
        "batch_size": 32,
        "lr": 1e-3,
        "weight_decay": 1e-2,
        "max_epochs": 200,
        "warmup_epochs": 10.0,
        "patience": 100,
        "ema": 0.99,
    },
}
"""What is usual for sets of crystals with properties, in place of the defaults of a potential."""

# What tables of predictions hold beside targets.
OWN_COLUMNS = ("row", "id", "fold", "file", "formula", "n_atoms", "n_elements")

# One name, or several.
Names = Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]


def _switch(value: Any) -> Any:
    """YAML reads on and off as true and false."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


class CGCNNConfig(Section):
    """CGCNN, the crystal graph convolution: the baseline."""

    name: Literal["cgcnn"] = Field("cgcnn", description="Which encoder.")
    features: int = Field(64, ge=1, description="Width: features per atom.")
    blocks: int = Field(3, ge=1, description="Convolutions.")
    neighbours: int = Field(12, ge=1, description="Nearest neighbours of each atom, at least; in whole shells.")
    reach: float = Field(8.0, gt=0, description="Longest edge, and the last Gaussian in the distance, A.")
    basis: int = Field(41, ge=2, description="Gaussians in the distance.")


class DescriptorConfig(Section):
    """Yu's reciprocal descriptor."""

    form: Literal["descriptor", "potential"] = Field(
        "descriptor",
        description="potential: what the long-range part of a potential would be, which the paper compares with.",
    )
    charges: int = Field(8, ge=1, description="Kinds of learned charge of each element.")
    k_cutoff: float = Field(4.0, gt=0, description="Largest |k|, 1/A.")
    basis: int = Field(32, ge=2, description="Gaussians in |k|.")
    hidden: int = Field(32, ge=1, description="Width of the network of |k| and |S|.")
    layers: int = Field(1, ge=0, description="Residual layers of that network.")
    outputs: int = Field(4, ge=1, description="Numbers for each kind of charge.")
    variant: Literal["invariant", "published"] = Field(
        "invariant", description="published: without an envelope in |k|, so that strain leads to steps."
    )


class YuConfig(Section):
    """A short-range network beside Yu's reciprocal descriptor, or either alone."""

    name: Literal["yu"] = Field("yu", description="Which encoder.")
    backbone: BackboneConfig | None = Field(PaiNNConfig(), description="The short-range network; null: none.")
    descriptor: DescriptorConfig | None = Field(DescriptorConfig(), description="The descriptor; null: none.")

    @model_validator(mode="after")
    def _something_is_there(self) -> YuConfig:
        if self.backbone is None and self.descriptor is None:
            raise ValueError("encoder yu has neither a backbone nor a descriptor; give it one of them")
        return self


class ReGNetConfig(Section):
    """ReGNet: messages between neighbours, and a filter in reciprocal space after each."""

    name: Literal["regnet"] = Field("regnet", description="Which encoder.")
    features: int = Field(256, ge=1, description="Width: features per atom.")
    blocks: int = Field(3, ge=1, description="Message-passing steps.")
    neighbours: int = Field(16, ge=1, description="Nearest neighbours of each atom, at least; in whole shells.")
    k_cutoff: float = Field(4.0, gt=0, description="Largest |k|, 1/A.")
    reciprocal: bool = Field(True, description="Whether there are filters in reciprocal space.")
    waves: int = Field(128, ge=8, multiple_of=8, description="Width of the features that are filtered, by 8 filters.")
    basis: int = Field(256, ge=2, description="Gaussians in -0.75 A / distance.")
    wave_basis: int = Field(16, ge=2, description="Gaussians in |k|.")
    variant: Literal["invariant", "literal", "threewave"] = Field(
        "invariant",
        description="literal and threewave: the filter as printed, which changes with how a crystal is written down.",
    )


class AttentionConfig(Section):
    """What encoders of attention have in common."""

    name: str = Field(description="Which encoder.")
    features: int = Field(128, ge=1, description="Width: features per atom; a multiple of heads.")
    heads: int = Field(8, ge=1, description="Heads of each attention, which share the width.")

    @model_validator(mode="after")
    def _heads_share_features(self) -> Self:
        if self.features % self.heads:
            raise ValueError(f"features = {self.features} is no multiple of heads = {self.heads}; change one of them")
        return self


class PRDNetConfig(AttentionConfig):
    """PRDNet: attention between neighbours, beside the diffraction of pseudo-particles."""

    name: Literal["prdnet"] = Field("prdnet", description="Which encoder.")
    blocks: int = Field(4, ge=1, description="Layers of attention.")
    neighbours: int = Field(12, ge=1, description="Nearest neighbours of each atom, at least; in whole shells.")
    reach: float = Field(8.0, gt=0, description="Longest edge, and the last Gaussian in the distance, A.")
    basis: int = Field(256, ge=2, description="Gaussians in the distance.")


class CrysToGraphConfig(AttentionConfig):
    """CrysToGraph: attention between neighbours, with angles, and then between all atoms of a crystal."""

    name: Literal["crystograph"] = Field("crystograph", description="Which encoder.")
    features: int = Field(256, ge=1, description="Width: features per atom; a multiple of heads.")
    blocks: int = Field(3, ge=0, description="Blocks of attention to neighbours (eTGC).")
    layers: int = Field(1, ge=0, description="Layers of attention to all atoms of the crystal (GwT).")
    neighbours: int = Field(12, ge=1, description="Nearest neighbours of each atom, at least; in whole shells.")
    edge_features: int = Field(76, ge=1, description="Features per edge.")
    basis: int = Field(41, ge=2, description="Gaussians in the distance, up to 8 A.")
    angle_basis: int = Field(30, ge=2, description="Gaussians in the cosine of the angle between two edges.")
    encoding: Literal["none", "bloch", "published"] = Field(
        "none",
        description="What atoms are told of their place in the graph before they attend to all others: bloch, how "
        "probable it is that a random walk returns; published: with eigenvectors, which change with the cell.",
    )
    variant: Literal["invariant", "published", "released"] = Field(
        "invariant",
        description="published: edges also know their angles with the axes, which change when the crystal is rotated; "
        "released: and atoms are summed up in place of attention, as in the code of the paper.",
    )


class MoCEConfig(AttentionConfig):
    """MoCE: attention that sees angles, distances, and elements alone, mixed by a gate for each crystal."""

    name: Literal["moce"] = Field("moce", description="Which encoder.")
    blocks: int = Field(4, ge=1, description="Layers of each of the three experts.")
    reach: float = Field(8.0, gt=0, description="Farthest image that attention sees, A.")
    basis: int = Field(64, ge=2, description="Gaussians in the distance.")
    degree: int = Field(5, ge=1, le=10, description="Highest order of the Legendre polynomials of angles.")
    threshold: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="Of the dynamic graph: share of the strongest connection below which others drop.",
    )
    variant: Literal["invariant", "published"] = Field(
        "invariant",
        description="published: angles with the vectors of the cell and the best atoms of a cell, which change with "
        "the choice of the cell.",
    )


class StatisticsConfig(Section):
    """Statistics of elements, density and neighbours, and a network on them; for small sets, and as a baseline."""

    name: Literal["statistics"] = Field("statistics", description="Which encoder.")
    features: int = Field(256, ge=1, description="Width of the network.")
    layers: int = Field(2, ge=0, description="Its layers; 0: none, so that the head reads the statistics themselves.")
    dropout: float = Field(0.1, ge=0, lt=1, description="Share of inputs and features that are left out in training.")


def _encoder_name(section: Any) -> Any:
    """Which of the encoders a section describes; without a name it is ReGNet."""
    return section.get("name", "regnet") if isinstance(section, Mapping) else getattr(section, "name", None)


EncoderConfig = Annotated[
    Annotated[CGCNNConfig, Tag("cgcnn")]
    | Annotated[YuConfig, Tag("yu")]
    | Annotated[ReGNetConfig, Tag("regnet")]
    | Annotated[PRDNetConfig, Tag("prdnet")]
    | Annotated[CrysToGraphConfig, Tag("crystograph")]
    | Annotated[MoCEConfig, Tag("moce")]
    | Annotated[StatisticsConfig, Tag("statistics")],
    Discriminator(_encoder_name),
]
"""The section of any encoder; its `name` says of which."""


class DiffractionConfig(Section):
    """Diffraction of pseudo-particles beside any encoder."""

    use: Annotated[Literal["auto", "on", "off"], BeforeValidator(_switch)] = Field(
        "auto", description="Whether it stands beside the encoder; auto: beside prdnet, which it belongs to."
    )
    features: int = Field(256, ge=1, description="Width of its networks, and of what comes out.")
    k_cutoff: float = Field(5.0, gt=0, description="Largest |Q|, 1/A.")
    channels: int = Field(16, ge=1, description="Kinds of pseudo-particle.")
    basis: int = Field(16, ge=2, description="Gaussians in |Q| of a form factor.")
    shells: int = Field(32, ge=2, description="Gaussians in |Q| of the pattern.")
    variant: Literal["invariant", "published"] = Field(
        "invariant",
        description="published: a list of Miller indices, which changes with origin and cell.",
    )
    max_index: int = Field(8, ge=1, le=16, description="Largest Miller index of the published list.")


class HeadConfig(Section):
    """How properties are read off the features of a crystal."""

    kind: Literal["single", "shared", "experts", "trees"] = Field(
        "shared",
        description="shared: a network for each target on the same features; experts: each target mixes a few of many "
        "networks (ReGNet-MT); single: one target, which shares nothing; trees: extremely randomised trees for each "
        "target, with encoder statistics alone.",
    )
    experts: int = Field(15, ge=1, description="Networks that targets share.")
    top: int = Field(4, ge=1, description="How many of them a target takes for a crystal.")
    variant: Literal["invariant", "published"] = Field(
        "invariant", description="published: the printed order of softmax and choice."
    )
    trees: int = Field(300, ge=1, description="Trees for each target.")
    max_features: float = Field(
        1.0, gt=0, le=1, description="Of trees: share of the statistics that a split chooses from."
    )
    min_leaf: int = Field(1, ge=1, description="Of trees: fewest crystals at a leaf; more make smaller model files.")

    @model_validator(mode="after")
    def _enough_experts(self) -> HeadConfig:
        if self.top > self.experts:
            raise ValueError(f"top = {self.top}, but there are {self.experts} experts; lower it")
        return self


class PropertiesConfig(Section):
    """What is predicted, and by what."""

    targets: Names = Field(
        [], description="Names of the properties; none: all columns of id_prop.csv, or the only one."
    )
    classification: Names = Field([], description="Targets that are classes, 0 or 1; their probability is predicted.")
    extensive: Names = Field([], description="Targets that grow with the cell; they are sums over atoms.")
    log: Names = Field([], description="Targets, all positive, that are learned as their logarithm.")
    units: dict[str, str] = Field({}, description="Unit of each target, for tables and pictures: {gap: eV}.")
    encoder: EncoderConfig = Field(ReGNetConfig(), description="Crystal -> features.")
    diffraction: DiffractionConfig = Field(
        DiffractionConfig(), description="Diffraction of pseudo-particles, fused with the features of the encoder."
    )
    head: HeadConfig = Field(HeadConfig(), description="Features -> targets.")

    @model_validator(mode="after")
    def _trees_read_statistics(self) -> PropertiesConfig:
        if self.head.kind != "trees":
            return self
        if not isinstance(self.encoder, StatisticsConfig):
            raise ValueError(
                f"head trees trains no encoder, so {self.encoder.name} would stay random; choose encoder statistics, "
                "or head shared"
            )
        if self.diffracts:
            raise ValueError("head trees trains no diffraction; set properties.diffraction.use to off")
        if self.encoder.layers:  # an assignment is validated again
            self.encoder = self.encoder.model_copy(update={"layers": 0})
        return self

    @property
    def diffracts(self) -> bool:
        """Whether there is diffraction beside the encoder."""
        return self.diffraction.use == "on" or (self.diffraction.use == "auto" and self.encoder.name == "prdnet")

    @model_validator(mode="after")
    def _targets_exist(self) -> PropertiesConfig:
        if len(set(self.targets)) != len(self.targets):
            raise ValueError("a target is named twice; name each once")
        own = [name for name in self.targets if name in OWN_COLUMNS]
        if own:
            raise ValueError(f"target {own[0]} is called like a column of lrpot's own tables; give it another name")
        if self.head.kind == "single" and len(self.targets) > 1:
            raise ValueError("head single is for one target; fit each by itself, or choose shared or experts")
        for setting in ("classification", "extensive", "log", "units"):
            unknown = [name for name in getattr(self, setting) if self.targets and name not in self.targets]
            if unknown:
                known = ", ".join(self.targets)
                raise ValueError(f"{setting} names {unknown[0]}, which is none of the targets {known}")
        for one, other in (("classification", "extensive"), ("classification", "log"), ("extensive", "log")):
            both = [name for name in getattr(self, one) if name in getattr(self, other)]
            if both:
                raise ValueError(f"{both[0]} cannot be in both {one} and {other}; take it out of one")
        return self
