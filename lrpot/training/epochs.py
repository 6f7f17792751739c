"""What every fit does epoch by epoch, as a Lightning module: optimiser, learning rate, validation, end."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

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

# Of the best loss: an epoch that ends above, and above that at the start of the stage, has lost what was learned.
LOST = 5.0

# What a checkpoint keeps of a stage beside the weights and the optimiser.
STATE = (
    "best_loss",
    "best_weights",
    "improved_loss",
    "stale_epochs",
    "history",
    "lost",
    "plateau_factor",
    "plateau_epochs",
)


class Term(NamedTuple):
    """What a step says of one label.

    Attributes:
        loss: what this process adds to its term of the loss, which is a mean.
        error: what it adds to a mean of errors, if there is one.
        n: how many numbers of all processes both means are taken over.
    """

    loss: Tensor
    error: float | None
    n: int


class EpochModule(lightning.LightningModule):
    """Fits a model; a subclass says what is minimised.

    The best weights by validation loss are kept, or those of the last epoch if so asked; the weights before the first
    epoch are the first candidate, so that no stage ends worse than it began. With `ema`, the weights that are validated
    and kept are averages over steps.

    Large steps can leave a network where its gradient vanishes, or ruin in an epoch what earlier stages have learned.
    After such an epoch the stage goes on from the weights kept before it, with half of the learning rate.

    Attributes:
        history: a record for each epoch: epoch, lr, train_loss (not of epoch 0), loss, mean absolute errors, seconds.
        lost: the epochs whose weights were given up.
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
        self.improved_loss = math.inf  # of the last epoch that was no stale one
        self.best_weights: dict[str, Tensor] = {}
        self.stale_epochs = 0
        self.history: list[dict[str, float]] = []
        self.lost: list[int] = []
        self.plateau_factor = 1.0
        self.plateau_epochs = 0
        self.optimizer: torch.optim.Optimizer | None = None
        self._full_lr: list[float] = []
        # over an epoch: the training loss, and the structures; loss, error and numbers by label of the validation
        self._train_sum: tuple[float, int] = (0.0, 0)
        self._sums: dict[str, tuple[float, float | None, int]] = {}
        self.averaged = AveragedWeights(model, config.ema)
        self._epoch_began = time.monotonic()

    def groups(self) -> list[dict[str, Any]]:
        """The parameters that are fitted, as groups of an optimiser."""
        raise NotImplementedError

    def before_validation(self) -> None:
        """Find what follows from the weights, before they are validated."""

    def _terms(self, batch: Batch, *, create_graph: bool) -> dict[str, Term]:
        """The terms of the loss by label, the same labels in all processes.

        Args:
            create_graph: in training; False in validation.
        """
        raise NotImplementedError

    def _total(self, losses: Iterable[Tensor]) -> Tensor:
        """The loss, of its terms."""
        return torch.stack(list(losses)).sum()

    def _loss(self, batch: Batch, *, create_graph: bool) -> tuple[Tensor, dict[str, float]]:
        """What this process adds to the loss of the step, and to mean absolute errors by label."""
        terms = self._terms(batch, create_graph=create_graph)
        errors = {name: term.error for name, term in terms.items() if term.error is not None}
        return self._total(term.loss for term in terms.values()), errors

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
        factor = min(factor, 1.0) * 0.5 ** len(self.lost)
        for group, lr in zip(self.optimizer.param_groups, self._full_lr, strict=True):
            group["lr"] = factor * lr

    def on_train_epoch_start(self) -> None:
        self._epoch_began = time.monotonic()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.averaged.update()

    def validate(self, loader: DataLoader[Any]) -> None:
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
            terms = self._terms(batch, create_graph=False)
        for name, term in terms.items():
            loss, error, n = self._sums.get(name, (0.0, 0.0, 0))
            error = None if error is None or term.error is None else error + term.n * term.error
            self._sums[name] = (loss + term.n * float(term.loss.detach()), error, n + term.n)

    def on_validation_epoch_end(self) -> None:
        trained, n_trained = self._train_sum
        labels = {name: max(n, 1) for name, (_, _, n) in self._sums.items()}
        own = [trained / max(n_trained, 1)]
        own += [total / labels[name] for name, (loss, error, _) in self._sums.items() for total in (loss, error or 0.0)]
        means = self.processes.add(torch.tensor(own, dtype=torch.float64))
        losses, errors = means[1::2], dict(zip(labels, means[2::2].tolist(), strict=True))
        record = {"train_loss": float(means[0])} if n_trained else {}
        record["loss"] = float(self._total(losses))
        record |= {name: error for name, error in errors.items() if self._sums[name][1] is not None}
        self._sums, self._train_sum = {}, (0.0, 0)
        if not math.isfinite(record["loss"]):
            raise TrainingError(
                f"the validation loss is not finite in {self.title}, epoch {len(self.history)}; lower training.lr"
            )
        if record["loss"] < self.improved_loss * (1.0 - self.config.min_improvement) or not self.history:
            self.improved_loss = record["loss"]
            self.stale_epochs = self.plateau_epochs = 0
        else:
            self.stale_epochs += 1
            self.plateau_epochs += 1
        if self.plateau_epochs > self.config.lr_patience:
            self.plateau_factor *= 0.5
            self.plateau_epochs = 0
        lost = self._is_lost(record["loss"])
        better = record["loss"] < self.best_loss
        self.best_loss = min(self.best_loss, record["loss"])
        if better or (self.config.keep == "last" and not lost):
            self.best_weights = copy.deepcopy({k: v.detach().cpu() for k, v in self.model.state_dict().items()})
        self.averaged.swap_out()
        if lost:
            self._go_back()
        lr = self.config.lr if self.optimizer is None else self.optimizer.param_groups[-1]["lr"]
        seconds = round(time.monotonic() - self._epoch_began, 3)
        self.history.append({"epoch": len(self.history), "lr": lr, **record, "seconds": seconds})

    def _is_lost(self, loss: float) -> bool:
        """Whether an epoch with this validation loss has lost what was learned."""
        if not self.history:
            return False
        began = self.history[0]["loss"]
        # a network that gives one number to all atoms is as good as none, which the first stage begins with
        dead = math.isclose(loss, began, rel_tol=1e-6) and self.best_loss < 0.9 * began
        # where the weights of the last epoch are kept, too few rows validate to tell
        return dead or (self.config.keep == "best" and loss > max(began, LOST * self.best_loss))

    def _go_back(self) -> None:
        """To the weights kept last; what the optimiser remembers is of others."""
        assert self.optimizer is not None
        self.lost.append(len(self.history))
        self.model.load_state_dict(self.best_weights)
        self.averaged = AveragedWeights(self.model, self.config.ema)
        self.optimizer.state.clear()

    def on_train_start(self) -> None:
        # of a stage that had come to its end when its last checkpoint was written
        self.on_train_epoch_end()

    def on_train_epoch_end(self) -> None:
        if self.stale_epochs >= self.config.patience:
            self.trainer.should_stop = True

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["stage"] = {name: getattr(self, name) for name in STATE} | {"averaged": self.averaged.state_dict()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """
        Raises:
            TrainingError: a checkpoint of a version that kept other things of a stage, or of other weights.
        """
        kept, weights = checkpoint["stage"].keys(), checkpoint["state_dict"].keys()
        if other := sorted(kept ^ {*STATE, "averaged"}) or sorted(weights ^ self.state_dict().keys()):
            raise TrainingError(
                f"{self.trainer.ckpt_path}: was written by another version of lrpot (it differs in "
                f"{', '.join(other[:3])}); go on with that version, which record.json of the run names, or start the "
                "run anew"
            )
        for name in STATE:
            setattr(self, name, checkpoint["stage"][name])
        if self.config.ema > 0:
            self.averaged.load_state_dict(checkpoint["stage"]["averaged"])


def n_in_step(batch: Batch) -> int:
    """Structures of the step that a batch is, or is a share of."""
    return int(batch.n_structures) if "n_structures" in batch else len(batch.cell)
