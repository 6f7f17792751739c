"""What every fit does epoch by epoch, as a Lightning module: optimiser, learning rate, validation, end."""

from __future__ import annotations

import copy
import math
import time
from typing import Any

import lightning.pytorch as lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch_geometric.data import Batch

from lrpot.config import TrainingConfig
from lrpot.errors import TrainingError
from lrpot.training.ema import AveragedWeights
from lrpot.training.parallel import Processes

# Of the learning rate, at the end of the cosine.
LAST_LR = 0.01

# What a checkpoint keeps of a stage beside the weights and the optimiser.
STATE = ("best_loss", "best_weights", "stale_epochs", "history", "plateau_factor", "plateau_epochs")


class EpochModule(lightning.LightningModule):
    """Fits a model; a subclass says what is minimised.

    The best weights by validation loss are kept, or those of the last epoch if so asked; the weights before the first
    epoch are the first candidate, so that no stage ends worse than it began. With `ema`, the weights that are validated
    and kept are averages over steps.

    Attributes:
        history: a record for each epoch: epoch, lr, train_loss (not of epoch 0), loss, mean absolute errors, seconds.
    """

    def __init__(self, model: nn.Module, title: str, config: TrainingConfig, processes: Processes) -> None:
        """
        Args:
            model: with `requires_grad` set for what is to be fitted. title: of the stage, for messages.
            processes: those that share each step.
        """
        super().__init__()
        self.model: Any = model
        self.title = title
        self.config = config
        self.processes = processes
        self.best_loss = math.inf
        self.best_weights: dict[str, Tensor] = {}
        self.stale_epochs = 0
        self.history: list[dict[str, float]] = []
        self.plateau_factor = 1.0
        self.plateau_epochs = 0
        self.optimizer: torch.optim.Optimizer | None = None
        self._full_lr: list[float] = []
        # over the structures of an epoch: of the training loss, of the validation
        self._train_sum: tuple[float, int] = (0.0, 0)
        self._sums: dict[str, tuple[float, int]] = {}
        self.averaged = AveragedWeights(model, config.ema)
        self._epoch_began = time.monotonic()

    def groups(self) -> list[dict[str, Any]]:
        """The parameters that are fitted, as groups of an optimiser."""
        raise NotImplementedError

    def before_validation(self) -> None:
        """Find what follows from the weights, before they are validated."""

    def _loss(self, batch: Batch, *, create_graph: bool) -> tuple[Tensor, dict[str, float]]:
        """What this process adds to the loss of the step, and to mean absolute errors by name.

        Args:
            create_graph: in training; False in validation.
        """
        raise NotImplementedError

    def counts(self, batch: Batch) -> dict[str, int]:
        """How many numbers a mean absolute error of `_loss` is taken over, by name, where it is not the structures."""
        return {}

    def configure_optimizers(self) -> dict[str, Any]:
        groups = self.groups()
        decay = self.config.weight_decay
        self.optimizer = torch.optim.AdamW(groups, weight_decay=decay) if decay else torch.optim.Adam(groups)
        self._full_lr = [group["lr"] for group in self.optimizer.param_groups]
        return {"optimizer": self.optimizer}

    def on_train_batch_start(self, batch: Batch, index: int) -> None:
        """Set the learning rate: warm-up, times the fall over the stage or what plateaus have left of it."""
        assert self.optimizer is not None
        if index == 0:
            # what is drawn in an epoch depends on seed and epoch alone, so that a resumed run draws the same; here,
            # for loaders that are opened after the start of the epoch draw a number too
            torch.manual_seed(self.config.seed * 1_000_003 + self.current_epoch)
        steps = math.ceil(self.trainer.num_training_batches / self.config.accumulate)
        epochs = self.current_epoch + index // self.config.accumulate / steps
        factor = self.plateau_factor
        if self.config.lr_schedule == "cosine":
            factor = LAST_LR + (1.0 - LAST_LR) * 0.5 * (1.0 + math.cos(math.pi * epochs / self.config.max_epochs))
        if epochs < self.config.warmup_epochs:
            # never zero: an epoch may have a single step
            factor *= (epochs + 1.0 / steps) / self.config.warmup_epochs
        for group, lr in zip(self.optimizer.param_groups, self._full_lr, strict=True):
            group["lr"] = min(factor, 1.0) * lr

    def on_train_epoch_start(self) -> None:
        self._epoch_began = time.monotonic()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.averaged.update()

    def validate(self, loader: DataLoader) -> None:
        """The validation before any training: epoch 0 of the history."""
        self.eval()
        self.on_validation_epoch_start()
        for index, batch in enumerate(loader):
            self.validation_step(batch.to(self.device), index)
        self.on_validation_epoch_end()
        self.train()

    @torch.no_grad()
    def on_validation_epoch_start(self) -> None:
        self.averaged.swap_in()
        self.before_validation()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Sum the gradients of all processes; Lightning clips them afterwards."""
        self.processes.add_gradients(p for p in self.model.parameters() if p.requires_grad)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        loss, _ = self._loss(batch, create_graph=True)
        if not bool(torch.isfinite(loss)):
            rows = ", ".join(str(int(row)) for row in batch.row)
            raise TrainingError(
                f"the loss is not finite in {self.title}, epoch {self.current_epoch}, for rows {rows} of the "
                "training file; look for wrong labels there, or lower training.lr"
            )
        total, weight = self._train_sum
        n = n_in_step(batch)
        self._train_sum = total + n * float(loss.detach()), weight + n
        # Lightning divides by `accumulate`, also at the end of an epoch, where fewer batches may share a step
        accumulate = self.config.accumulate
        sharing = min(accumulate, self.trainer.num_training_batches - index // accumulate * accumulate)
        return loss * (accumulate / sharing)

    def validation_step(self, batch: Batch, index: int) -> None:
        with torch.enable_grad():
            loss, errors = self._loss(batch, create_graph=False)
        counts = self.counts(batch)
        for name, value in {"loss": float(loss.detach()), **errors}.items():
            n = counts.get(name, n_in_step(batch))
            total, weight = self._sums.get(name, (0.0, 0))
            self._sums[name] = (total + n * value, weight + n)

    def on_validation_epoch_end(self) -> None:
        sums = ({"train_loss": self._train_sum} if self._train_sum[1] else {}) | self._sums
        totals = self.processes.add(torch.tensor([total for total, _ in sums.values()], dtype=torch.float64))
        weights = [weight for _, weight in sums.values()]
        record = dict(zip(sums, (totals / torch.tensor(weights)).tolist(), strict=True))
        self._sums, self._train_sum = {}, (0.0, 0)
        if not math.isfinite(record["loss"]):
            raise TrainingError(
                f"the validation loss is not finite in {self.title}, epoch {len(self.history)}; lower training.lr"
            )
        if record["loss"] < self.best_loss * (1.0 - self.config.min_improvement) or not self.history:
            self.stale_epochs = self.plateau_epochs = 0
        else:
            self.stale_epochs += 1
            self.plateau_epochs += 1
        if self.plateau_epochs > self.config.lr_patience:
            self.plateau_factor *= 0.5
            self.plateau_epochs = 0
        better = record["loss"] < self.best_loss
        self.best_loss = min(self.best_loss, record["loss"])
        if better or self.config.keep == "last":
            self.best_weights = copy.deepcopy({k: v.detach().cpu() for k, v in self.model.state_dict().items()})
        self.averaged.swap_out()
        lr = self.config.lr if self.optimizer is None else self.optimizer.param_groups[-1]["lr"]
        seconds = round(time.monotonic() - self._epoch_began, 3)
        self.history.append({"epoch": len(self.history), "lr": lr, **record, "seconds": seconds})

    def on_train_epoch_end(self) -> None:
        if self.stale_epochs >= self.config.patience:
            self.trainer.should_stop = True

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["stage"] = {name: getattr(self, name) for name in STATE} | {"averaged": self.averaged.state_dict()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for name in STATE:
            setattr(self, name, checkpoint["stage"][name])
        if self.config.ema > 0:
            self.averaged.load_state_dict(checkpoint["stage"]["averaged"])


def n_in_step(batch: Batch) -> int:
    """Structures of the step that a batch is, or is a share of."""
    return int(batch.n_structures) if "n_structures" in batch else len(batch.cell)
