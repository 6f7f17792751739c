"""Configuration -> property model with fresh weights."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import nn

from lrpot.backbones import BACKBONES
from lrpot.config import (
    CGCNNConfig,
    CrysToGraphConfig,
    DescriptorConfig,
    DiffractionConfig,
    EncoderConfig,
    HeadConfig,
    MoCEConfig,
    PRDNetConfig,
    PropertiesConfig,
    ReGNetConfig,
    Section,
    StatisticsConfig,
    YuConfig,
)
from lrpot.properties.cgcnn import CGCNN
from lrpot.properties.crystograph import CrysToGraph
from lrpot.properties.diffraction import Diffraction, make_diffraction
from lrpot.properties.heads import ExpertsHead, SharedHead
from lrpot.properties.moce import MoCE
from lrpot.properties.model import PropertyModel, largest_cutoff
from lrpot.properties.prdnet import PRDNet
from lrpot.properties.regnet import ReGNet
from lrpot.properties.statistics import Statistics
from lrpot.properties.targets import Target, targets_from
from lrpot.properties.trees import TreesHead
from lrpot.properties.yu import ReciprocalDescriptor, ReciprocalPotential, Yu

# Encoders whose settings are their arguments.
ENCODERS: dict[type[Section], type[nn.Module]] = {
    CGCNNConfig: CGCNN,
    CrysToGraphConfig: CrysToGraph,
    MoCEConfig: MoCE,
    PRDNetConfig: PRDNet,
    ReGNetConfig: ReGNet,
    StatisticsConfig: Statistics,
}


def build_property_model(config: PropertiesConfig, elements: Iterable[int]) -> PropertyModel:
    """A property model with random weights, whose scales are not set.

    Args:
        config: with targets. elements: atomic numbers that it is fitted to.
    """
    encoder = build_encoder(config.encoder)
    diffraction = build_diffraction(config.diffraction, encoder) if config.diffracts else None
    targets = targets_from(config)
    head = build_head(config.head, diffraction or encoder, targets)
    return PropertyModel(encoder, head, targets, sorted(elements), diffraction)


class Reach(NamedTuple):
    """What a model reads of a crystal.

    Attributes:
        cutoff: A; no edge is longer. shells: edges from so many nearest neighbours; None: from all within the cutoff.
        wave_cutoff: 1/A; None without waves.
    """

    cutoff: float
    shells: int | None
    wave_cutoff: float | None


def reach_of(config: PropertiesConfig) -> Reach:
    """That of the encoder of these settings, and of the diffraction beside it."""
    with warnings.catch_warnings():  # a form that is warned of is told once, when the model is built
        warnings.simplefilter("ignore")
        encoder: Any = build_encoder(config.encoder)
    beside = config.diffraction.k_cutoff if config.diffracts else None
    return Reach(float(encoder.cutoff), encoder.shells, largest_cutoff(encoder.wave_cutoff, beside))


def build_encoder(config: EncoderConfig) -> nn.Module:
    """The encoder of a section of settings."""
    if not isinstance(config, YuConfig):
        return ENCODERS[type(config)](**config.model_dump(exclude={"name"}))
    backbone = None
    if config.backbone is not None:
        backbone = BACKBONES[config.backbone.name](**config.backbone.model_dump(exclude={"name"}))
    return Yu(backbone, None if config.descriptor is None else _descriptor(config.descriptor))


def _descriptor(config: DescriptorConfig) -> ReciprocalDescriptor | ReciprocalPotential:
    if config.form == "descriptor":
        return ReciprocalDescriptor(**config.model_dump(exclude={"form"}))
    return ReciprocalPotential(**config.model_dump(exclude={"form", "outputs", "variant"}))


def build_diffraction(config: DiffractionConfig, encoder: nn.Module) -> Diffraction:
    """The diffraction of a section of settings, beside an encoder."""
    return make_diffraction(*_widths(encoder), **config.model_dump(exclude={"use"}))


def build_head(config: HeadConfig, encoder: nn.Module, targets: Iterable[Target]) -> nn.Module:
    """The head of a section of settings, for what an encoder, or the diffraction beside it, gives."""
    widths = _widths(encoder)
    targets = list(targets)
    extensive = [target.extensive for target in targets]
    if config.kind == "trees":
        classes = [target.classification for target in targets]
        own = config.model_dump(include={"trees", "max_features", "min_leaf"})
        return TreesHead(widths[0], extensive, classes, **own)
    if config.kind != "experts":
        return SharedHead(*widths, extensive)
    published = config.variant == "published"
    return ExpertsHead(*widths, extensive, experts=config.experts, top=config.top, published=published)


def _widths(encoder: nn.Module) -> tuple[int, int]:
    return int(encoder.features), int(encoder.atom_features)  # type: ignore[arg-type]
