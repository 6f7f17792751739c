"""A checkpoint after every epoch: the newest, and the one before in case the newest was cut short."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from lrpot.errors import Interrupted
from lrpot.files import atomic_path

NEWEST, PREVIOUS = "newest.ckpt", "previous.ckpt"


class SaveEveryEpoch(Checkpoint):
    """Saves after each epoch, when everything that the epoch changes is done."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        trainer.save_checkpoint(self.folder / NEWEST)


class TwoCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint whole or not at all, beside its place, and keeps the one before."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """
        Raises:
            OutputError: the disk is full, or the folder cannot be written.
        """
        newest = Path(path)
        for left in newest.parent.glob(f".{newest.stem}-*"):  # by a process that was killed
            left.unlink()
        content = io.BytesIO()  # torch's writer of archives hides that a disk is full
        torch.save(checkpoint, content)
        with atomic_path(newest) as temporary:
            temporary.write_bytes(content.getbuffer())
            if newest.exists():
                newest.replace(newest.with_name(PREVIOUS))


def usable_checkpoint(folder: Path, report: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that can be read, if any; says so when it is not the newest."""
    for name in (NEWEST, PREVIOUS):
        path = folder / name
        if not path.exists():
            continue
        try:
            # torch.load does not look at the checksums of the archive
            with zipfile.ZipFile(path) as archive:
                if damaged := archive.testzip():
                    raise zipfile.BadZipFile(damaged)
            torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a truncated archive fails in many ways
            report(f"{path}: cannot be read ({type(error).__name__}); going back to the one before")
            continue
        return path
    return None


class StopOnSignal(lightning.Callback):
    """Ends the fit after the step in hand once `requested` says so."""

    def __init__(self, requested: Callable[[], bool], folder: Path) -> None:
        self.requested = requested
        self.folder = folder

    def on_train_batch_end(self, *args: object, **kwargs: object) -> None:
        if self.requested():
            raise Interrupted(f"stopped by Ctrl-C; go on with: lrpot fit --resume --out {self.folder}")
