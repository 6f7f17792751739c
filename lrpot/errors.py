"""Exceptions whose message is one line: what is wrong, where, and what to do about it.

The command line prints that line and exits with 1; `--debug` shows the traceback as well.
"""

from __future__ import annotations


class LrpotError(Exception):
    """Anything a user can mend; the base of every exception that lrpot raises on purpose."""


class ShapeError(LrpotError):
    """Tensors whose shapes, dtypes or devices do not belong together."""


class StructureError(LrpotError):
    """A crystal that cannot be evaluated: singular cell, overlapping atoms, unsupported periodicity."""


class ConvergenceError(LrpotError):
    """Charges whose equilibrium does not exist or was not found."""


class UnknownElementError(LrpotError):
    """An element that a model has never seen."""


class DataError(LrpotError):
    """A file or a row of a data set that cannot be used."""


class UnlabelledError(DataError):
    """A crystal with none of the properties that are to be learned."""


class ModelFileError(LrpotError):
    """A file that is not a model of lrpot, or a damaged one."""


class ConfigError(LrpotError):
    """A setting that does not exist or has an impossible value."""


class ContractError(LrpotError):
    """A backbone that does not do what every backbone must (`lrpot.testing`)."""


class OutputError(LrpotError):
    """A place that cannot be written to, or that holds something worth keeping."""


class TrainingError(LrpotError):
    """A fit that cannot go on, such as one whose loss is not a number."""


class Interrupted(LrpotError):
    """Stopped by Ctrl-C after the step in hand was finished and saved."""


class WorkflowError(LrpotError):
    """A calculation on a crystal without a result, such as a relaxation that does not come to rest."""


class ProcessLost(LrpotError):
    """One of the processes that fit a model together has ended before its time."""
