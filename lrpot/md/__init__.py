"""Molecular dynamics with a model, by ASE's integrators, recorded so that it goes on exactly after any interruption."""

from lrpot.md.record import MDRun
from lrpot.md.run import run_md
from lrpot.md.settings import Settings
from lrpot.md.watch import SimulationError

__all__ = ["MDRun", "Settings", "SimulationError", "run_md"]
