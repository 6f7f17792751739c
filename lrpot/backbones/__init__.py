"""Short-range networks: a graph goes in, atom features come out.

A backbone is a module with `forward(batch, vectors) -> AtomFeatures` and the attributes `cutoff` (A) and `features`;
`lrpot.testing.check_backbone` checks that contract. `register` makes one of your own known.
"""

from torch import nn

from lrpot.backbones.dimenetpp import DimeNetPlusPlus
from lrpot.backbones.equivariant import Equivariant
from lrpot.backbones.features import AtomFeatures
from lrpot.backbones.painn import PaiNN
from lrpot.backbones.registry import section_of
from lrpot.config import REGISTERED_BACKBONES
from lrpot.errors import ConfigError

BACKBONES: dict[str, type[nn.Module]] = {"painn": PaiNN, "dimenet++": DimeNetPlusPlus, "equivariant": Equivariant}
"""By name, those of the user's own included."""

__all__ = ["BACKBONES", "AtomFeatures", "DimeNetPlusPlus", "Equivariant", "PaiNN", "register"]


def register(name: str, backbone: type[nn.Module]) -> None:
    """Make a backbone of your own known in this process, so that `fit` and `load` find it by its name.

    Its settings, `model.backbone.*`, are the arguments of its class, with their types and defaults. A model file holds
    name, settings and weights but no code: whoever loads it must register the same class first.

    Args:
        name: by which settings and model files call it; a second registration replaces the first.
        backbone: the class; every argument has a type, and one of them is `cutoff` (A).
    Raises:
        ConfigError: a name that is taken by lrpot, or arguments that cannot be settings.
    """
    if name in BACKBONES and name not in REGISTERED_BACKBONES:
        raise ConfigError(f"backbone {name!r} belongs to lrpot; register yours under another name")
    REGISTERED_BACKBONES[name] = section_of(name, backbone)
    BACKBONES[name] = backbone
