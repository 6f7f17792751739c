"""Every setting, with its unit, default and meaning; YAML in, YAML out."""

from lrpot.config.backbone import (
    REGISTERED_BACKBONES,
    BackboneConfig,
    DimeNetPlusPlusConfig,
    EquivariantConfig,
    PaiNNConfig,
    RegisteredConfig,
)
from lrpot.config.checking import Problem, check_config
from lrpot.config.data import DataConfig
from lrpot.config.finetune import FinetuneConfig
from lrpot.config.fit import FitConfig
from lrpot.config.listing import changes, commented_yaml, one_line, settings_of, without_effect
from lrpot.config.model import PAIR_CUTOFF_RANGE, ChargesConfig, KernelConfig, ModelConfig
from lrpot.config.properties import (
    PROPERTY_DEFAULTS,
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
    StatisticsConfig,
    YuConfig,
)
from lrpot.config.reading import field_names, locate, make_config, parse_settings
from lrpot.config.section import Section
from lrpot.config.training import CHARGE_WEIGHTS, StageConfig, TrainingConfig

__all__ = [
    "CHARGE_WEIGHTS",
    "PAIR_CUTOFF_RANGE",
    "PROPERTY_DEFAULTS",
    "REGISTERED_BACKBONES",
    "BackboneConfig",
    "CGCNNConfig",
    "ChargesConfig",
    "CrysToGraphConfig",
    "DataConfig",
    "DescriptorConfig",
    "DiffractionConfig",
    "DimeNetPlusPlusConfig",
    "EncoderConfig",
    "EquivariantConfig",
    "FinetuneConfig",
    "FitConfig",
    "HeadConfig",
    "KernelConfig",
    "MoCEConfig",
    "ModelConfig",
    "PRDNetConfig",
    "PaiNNConfig",
    "Problem",
    "PropertiesConfig",
    "ReGNetConfig",
    "RegisteredConfig",
    "Section",
    "StageConfig",
    "StatisticsConfig",
    "TrainingConfig",
    "YuConfig",
    "changes",
    "check_config",
    "commented_yaml",
    "field_names",
    "locate",
    "make_config",
    "one_line",
    "parse_settings",
    "settings_of",
    "without_effect",
]
