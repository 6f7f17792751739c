"""Configuration -> property model with fresh weights."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import nn

from lrpot.backbones import BACKBONES
from lrpot.config import (
    CGCNNConfig,
    DescriptorConfig,
    EncoderConfig,
    HeadConfig,
    MoCEConfig,
    PropertiesConfig,
    ReGNetConfig,
    StatisticsConfig,
    YuConfig,
)
from lrpot.properties.cgcnn import CGCNN
from lrpot.properties.heads import ExpertsHead, SharedHead
from lrpot.properties.moce import MoCE
from lrpot.properties.model import PropertyModel
from lrpot.properties.regnet import ReGNet
from lrpot.properties.statistics import Statistics
from lrpot.properties.targets import Target, targets_from
from lrpot.properties.yu import ReciprocalDescriptor, ReciprocalPotential, Yu


def build_property_model(config: PropertiesConfig, elements: Iterable[int]) -> PropertyModel:
    """A property model with random weights, whose scales are not set.

    Args:
        config: with targets. elements: atomic numbers that it is fitted to.
    """
    encoder = build_encoder(config.encoder)
    targets = targets_from(config)
    return PropertyModel(encoder, build_head(config.head, encoder, targets), targets, sorted(elements))


class Reach(NamedTuple):
    """What an encoder reads of a crystal.

    Attributes:
        cutoff: A; no edge is longer. shells: edges from so many nearest neighbours; None: from all within the cutoff.
        wave_cutoff: 1/A; None without waves.
    """

    cutoff: float
    shells: int | None
    wave_cutoff: float | None


def reach_of(config: EncoderConfig) -> Reach:
    """That of the encoder of a section of settings."""
    with warnings.catch_warnings():  # a form that is warned of is told once, when the model is built
        warnings.simplefilter("ignore")
        encoder: Any = build_encoder(config)
    return Reach(float(encoder.cutoff), encoder.shells, encoder.wave_cutoff)


def build_encoder(config: EncoderConfig) -> nn.Module:
    """The encoder of a section of settings."""
    settings = config.model_dump(exclude={"name"})
    if isinstance(config, CGCNNConfig):
        return CGCNN(**settings)
    if isinstance(config, StatisticsConfig):
        return Statistics(**settings)
    if isinstance(config, ReGNetConfig):
        return ReGNet(**settings)
    if isinstance(config, MoCEConfig):
        return MoCE(**settings)
    assert isinstance(config, YuConfig)
    backbone = None
    if config.backbone is not None:
        backbone = BACKBONES[config.backbone.name](**config.backbone.model_dump(exclude={"name"}))
    return Yu(backbone, None if config.descriptor is None else _descriptor(config.descriptor))


def _descriptor(config: DescriptorConfig) -> ReciprocalDescriptor | ReciprocalPotential:
    if config.form == "descriptor":
        return ReciprocalDescriptor(**config.model_dump(exclude={"form"}))
    return ReciprocalPotential(**config.model_dump(exclude={"form", "outputs", "variant"}))


def build_head(config: HeadConfig, encoder: nn.Module, targets: Iterable[Target]) -> nn.Module:
    """The head of a section of settings, for what an encoder gives."""
    widths = int(encoder.features), int(encoder.atom_features)  # type: ignore[arg-type]
    extensive = [target.extensive for target in targets]
    if config.kind != "experts":
        return SharedHead(*widths, extensive)
    published = config.variant == "published"
    return ExpertsHead(*widths, extensive, experts=config.experts, top=config.top, published=published)
