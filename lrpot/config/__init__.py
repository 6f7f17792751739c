"""Every setting, with its unit, default and meaning; YAML in, YAML out."""

from lrpot.config.backbone import (
    REGISTERED_BACKBONES,
    BackboneConfig,
    DimeNetPlusPlusConfig,
    EquivariantConfig,
    PaiNNConfig,
    RegisteredConfig,
)
from lrpot.config.data import DataConfig
from lrpot.config.fit import FitConfig
from lrpot.config.model import PAIR_CUTOFF_RANGE, ChargesConfig, KernelConfig, ModelConfig
from lrpot.config.reading import field_names, locate, make_config, parse_settings
from lrpot.config.training import CHARGE_WEIGHTS, StageConfig, TrainingConfig

__all__ = [
    "CHARGE_WEIGHTS",
    "PAIR_CUTOFF_RANGE",
    "REGISTERED_BACKBONES",
    "BackboneConfig",
    "ChargesConfig",
    "DataConfig",
    "DimeNetPlusPlusConfig",
    "EquivariantConfig",
    "FitConfig",
    "KernelConfig",
    "ModelConfig",
    "PaiNNConfig",
    "RegisteredConfig",
    "StageConfig",
    "TrainingConfig",
    "field_names",
    "locate",
    "make_config",
    "parse_settings",
]
