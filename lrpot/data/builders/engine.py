"""What labels structures: tblite's xTB, or any calculator of ASE that a user names."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator

from lrpot.errors import ConfigError

XTB = "GFN2-xTB"

# An electronic temperature at which levels of a defect that lie close fill smoothly as the atoms move; GaN itself, with
# 2 eV between its bands, does not feel it. The energy is then the free energy, of which forces are the slope.
XTB_SETTINGS = {"electronic_temperature": 1500.0, "accuracy": 0.1}  # K; 1 is tblite's default, less is stricter

# Labels that are written where an engine has them; energy and forces it must have.
NEEDED = ("energy", "forces")
WRITTEN = (*NEEDED, "stress", "charges")

# Beyond this the structure is no material: atoms overlap, or the electronic structure is nonsense.
MAX_FORCE = 30.0  # eV/A


class LabelError(Exception):
    """A structure that the engine gave no sound labels for; the message says why in one line."""


@dataclass(frozen=True)
class Engine:
    """How labels are computed.

    Attributes:
        name: the method, or `module:factory`. settings: what else decides a label, in types of JSON.
        make: gives a calculator that has seen no structure yet: a label must not depend on the one before it.
    """

    name: str
    make: Callable[[], BaseCalculator]
    settings: dict[str, float] = field(default_factory=dict)
    release: str = ""

    def label(self, atoms: Atoms) -> dict[str, Any]:
        """energy (eV), forces ((n_atoms, 3), eV/A); stress ((6,), eV/A^3) and charges ((n_atoms,), e) if it has them.

        Raises:
            LabelError: the calculation failed, or its result is not finite or beyond sense.
        """
        atoms = atoms.copy()
        atoms.calc = self.make()
        names = [name for name in WRITTEN if name in NEEDED or name in atoms.calc.implemented_properties]
        try:
            labels = {name: np.asarray(atoms.calc.get_property(name, atoms), dtype=float) for name in names}
        except Exception as error:  # each engine fails in a way of its own
            raise LabelError(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from error
        for name, value in labels.items():
            if not np.isfinite(value).all():
                raise LabelError(f"{name} is not finite")
        largest = np.linalg.norm(labels["forces"], axis=1)
        if largest.max() > MAX_FORCE:
            raise LabelError(f"the force on atom {largest.argmax()} is {largest.max():.0f} eV/A, beyond {MAX_FORCE:g}")
        return labels


def find_engine(calculator: str | None) -> Engine:
    """The engine of this name, after a look whether it is there.

    Args:
        calculator: `module:factory`, where factory() gives a calculator of ASE; None for xTB by tblite.

    Raises:
        ConfigError: it is not installed, or no calculator of energies and forces.
    """
    if calculator is None:
        if importlib.util.find_spec("tblite") is None:
            raise ConfigError(
                "tblite is not installed; pip install 'lrpot[xtb]', or name another engine with --calculator"
            )
        return Engine(XTB, _tblite, XTB_SETTINGS, release=f"tblite {version('tblite')}")
    engine = Engine(calculator, _Factory(calculator))
    try:
        lacking = [name for name in NEEDED if name not in engine.make().implemented_properties]
    except Exception as error:
        raise ConfigError(
            f"calculator = {calculator}: gives no calculator ({type(error).__name__}: {' '.join(str(error).split())}); "
            "give module:factory, where factory() gives a calculator of ASE and the module can be imported (PYTHONPATH)"
        ) from error
    if lacking:
        raise ConfigError(f"calculator = {calculator}: has no {' and no '.join(lacking)}; name one that has")
    return engine


def _tblite() -> BaseCalculator:
    from tblite.ase import TBLite

    # what converges needs 50 to 100; some structures of much Ga that have not then, did not in 500 either
    return TBLite(method=XTB, max_iterations=150, verbosity=0, **XTB_SETTINGS)


@dataclass(frozen=True)
class _Factory:
    """Calls `module:factory`; unlike what it names, it can be sent to another process."""

    path: str

    def __call__(self) -> BaseCalculator:
        module, _, name = self.path.partition(":")
        return getattr(importlib.import_module(module), name)()
