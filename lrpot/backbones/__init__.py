"""Short-range networks: a graph goes in, atom features come out.

A backbone is a module with `forward(batch, vectors) -> AtomFeatures` and the attributes `cutoff` (A) and `features`.
"""

from lrpot.backbones.dimenetpp import DimeNetPlusPlus
from lrpot.backbones.equivariant import Equivariant
from lrpot.backbones.features import AtomFeatures
from lrpot.backbones.painn import PaiNN

BACKBONES = {"painn": PaiNN, "dimenet++": DimeNetPlusPlus, "equivariant": Equivariant}

__all__ = ["BACKBONES", "AtomFeatures", "DimeNetPlusPlus", "Equivariant", "PaiNN"]
