"""Where the metrics of every epoch go while a fit runs: metrics.csv, TensorBoard, Weights & Biases."""

from __future__ import annotations

import importlib
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

from lrpot.config import FitConfig
from lrpot.errors import ConfigError
from lrpot.files import write_text
from lrpot.training.summary import csv_text

# Of one epoch: stage, epoch, lr, train_loss (not of epoch 0), loss, mean absolute errors by label, seconds.
Record = Mapping[str, float]

# What must be installed beside lrpot, by logger: the module, and how to get it.
NEEDED = {
    "tensorboard": ("torch.utils.tensorboard", "pip install 'lrpot[loggers]'"),
    "wandb": ("wandb", "pip install wandb"),
}


class _Logger(Protocol):
    def log(self, records: Sequence[Record]) -> None:
        """Take the records of all epochs so far, in order; the last is new."""

    def close(self) -> None: ...


def check_loggers(config: FitConfig) -> None:
    """Find out before any work starts whether what the loggers need is installed.

    Raises:
        ConfigError: it is not; says how to install it.
    """
    for name in config.training.logger:
        if name in NEEDED:
            module, cure = NEEDED[name]
            try:
                importlib.import_module(module)
            except ImportError as error:
                raise ConfigError(
                    f"training.logger: {name} is not installed; {cure}, or choose csv, which needs nothing"
                ) from error


@contextmanager
def open_loggers(config: FitConfig, out: Path) -> Iterator[Callable[[Sequence[Record]], None]]:
    """Give a function that takes the records of all epochs so far, and closes all loggers at the end, however it comes.

    Args:
        out: directory of the run. A resumed run goes on with what lies there: no epoch is missing or there twice.
    """
    kinds: dict[str, Callable[[FitConfig, Path], _Logger]] = {
        "csv": _Csv,
        "tensorboard": _TensorBoard,
        "wandb": _WeightsAndBiases,
    }
    with ExitStack() as stack:
        loggers = []
        for name in dict.fromkeys(config.training.logger):
            loggers.append(kinds[name](config, out))
            stack.callback(loggers[-1].close)

        def log(records: Sequence[Record]) -> None:
            for logger in loggers:
                logger.log(records)

        yield log


class _Csv:
    """metrics.csv, written anew after every epoch: whole at any moment, and an epoch done twice is there once."""

    def __init__(self, config: FitConfig, out: Path) -> None:
        self.path = out / "metrics.csv"

    def log(self, records: Sequence[Record]) -> None:
        write_text(self.path, csv_text(records))

    def close(self) -> None:
        pass


class _TensorBoard:
    """Files of events in the folder tensorboard; steps count the epochs of all stages."""

    def __init__(self, config: FitConfig, out: Path) -> None:
        self.folder = out / "tensorboard"
        self.writer: Any = None

    def log(self, records: Sequence[Record]) -> None:
        step = len(records) - 1
        if self.writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # of an epoch that was told before the run was stopped, and is done again, only the new telling counts
            self.writer = SummaryWriter(str(self.folder), purge_step=step)
        for name, value in _named(records[-1]).items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


class _WeightsAndBiases:
    """A run of the project lrpot; a resumed fit goes on with the same one, which drops steps that it has."""

    def __init__(self, config: FitConfig, out: Path) -> None:
        import wandb

        file = out / "wandb-id.txt"
        if not file.exists():
            write_text(file, secrets.token_hex(8))
        try:
            self.run = wandb.init(
                project="lrpot",
                name=out.name,
                id=file.read_text().strip(),
                resume="allow",
                dir=str(out),
                config=config.model_dump(mode="json"),
            )
        except wandb.Error as error:
            raise ConfigError(
                f"training.logger: wandb cannot be used ({error}); log in with `wandb login`, set WANDB_MODE=offline, "
                "or choose csv"
            ) from error

    def log(self, records: Sequence[Record]) -> None:
        self.run.log(_named(records[-1]), step=len(records) - 1)

    def close(self) -> None:
        self.run.finish()


def _named(record: Record) -> dict[str, float]:
    """A record by the names of curves, which the part before the slash groups."""
    names = {"loss": "loss/validation", "train_loss": "loss/training"}
    names |= {name: name for name in ("stage", "epoch", "lr", "seconds")}
    return {names.get(name, f"error/{name}"): value for name, value in record.items()}
