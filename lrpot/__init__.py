"""lrpot: long-range machine-learned interatomic potentials, learned in reciprocal space.

The public names load on first use, so that ``import lrpot`` and ``lrpot --help`` stay quick:

    from lrpot import LRCalculator, load, fit, predict
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lrpot._version import __version__

if TYPE_CHECKING:
    from lrpot.interfaces.ase import LRCalculator
    from lrpot.model_file import load_model as load
    from lrpot.prediction import predict
    from lrpot.training.fit import fit

__all__ = ["LRCalculator", "__version__", "fit", "load", "predict"]

# Where each name is at home, and what it is called there.
_HOME = {
    "LRCalculator": ("lrpot.interfaces.ase", "LRCalculator"),
    "fit": ("lrpot.training.fit", "fit"),
    "load": ("lrpot.model_file", "load_model"),
    "predict": ("lrpot.prediction", "predict"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'lrpot' has no attribute {name!r}")
    module, own_name = _HOME[name]
    return getattr(importlib.import_module(module), own_name)


def __dir__() -> list[str]:
    return sorted(__all__)
