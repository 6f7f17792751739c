"""The Lightning trainer of a stage."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import lightning.pytorch as lightning
import torch
from lightning.fabric.plugins.environments import LightningEnvironment

from lrpot.config import TrainingConfig
from lrpot.training.checkpoint import SaveEveryEpoch, StopOnSignal, TwoCheckpoints
from lrpot.training.parallel import Processes


@contextmanager
def stage_trainer(
    config: TrainingConfig,
    *,
    run: Path,
    checkpoints: Path,
    device: str,
    interrupted: Callable[[], bool],
    report: Callable[[], None],
    processes: Processes,
) -> Iterator[lightning.Trainer]:
    """A trainer that saves after every epoch, stops on Ctrl-C and says nothing by itself.

    Each process has one of its own, which knows of no others: steps are shared, and gradients summed, by `StageModule`.

    Args:
        run: directory of the run. checkpoints: where those of the stage go.
        device: cpu, cuda or cuda:N.
        interrupted: whether Ctrl-C was pressed here.
        report: called after each validation.
    """
    callbacks: list[lightning.Callback] = [
        StopOnSignal(lambda: processes.any(interrupted()), run),
        _Report(report),
    ]
    if processes.first:
        callbacks.insert(0, SaveEveryEpoch(checkpoints))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")  # its hints on loaders and its use of old torch names
        yield lightning.Trainer(
            max_epochs=config.max_epochs,
            accelerator=torch.device(device).type,
            devices=1 if device in ("cpu", "cuda") else [int(device.split(":")[1])],
            # without an environment it would look for other processes in that of torchrun or SLURM
            plugins=[LightningEnvironment(), TwoCheckpoints()],
            gradient_clip_val=config.gradient_clip,
            accumulate_grad_batches=config.accumulate,
            callbacks=callbacks,
            logger=False,
            enable_checkpointing=processes.first,  # or it would add one of its own
            enable_progress_bar=False,
            enable_model_summary=False,
            inference_mode=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
        )


class _Report(lightning.Callback):
    def __init__(self, report: Callable[[], None]) -> None:
        self.report = report

    def on_validation_end(self, *args: object) -> None:
        self.report()
