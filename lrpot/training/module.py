"""One stage of a fit as a Lightning module: loss, optimiser, learning rate, validation, end."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch_geometric.data import Batch

from lrpot.charges.polarisation import charge_quantities
from lrpot.config import CHARGE_WEIGHTS, TrainingConfig
from lrpot.errors import TrainingError
from lrpot.kspace.neutrality import net_charge
from lrpot.potential import Potential
from lrpot.structure import LABELS, Structure, batch_index, collate
from lrpot.training.baseline import add_offsets, composition
from lrpot.training.ema import AveragedWeights
from lrpot.training.layers import freeze_deepest, parameter_groups
from lrpot.training.loss import penalty
from lrpot.training.parallel import ALONE, Processes
from lrpot.training.stages import Stage

# Of the learning rate, at the end of the cosine.
LAST_LR = 0.01

# Training structures from which the offsets are fitted in every epoch, and how many at a time.
OFFSETS_FROM, OFFSET_BATCH = 128, 16

# What a checkpoint keeps of a stage beside the weights and the optimiser.
STATE = ("best_loss", "best_weights", "stale_epochs", "history", "plateau_factor", "plateau_epochs")


class StageModule(lightning.LightningModule):
    """Fits `stage.trained` of a potential to labels minus what the frozen parts give (`known_*`).

    The loss is the weighted sum of `penalty` of the errors of the energy per atom, the forces and the stress, each in
    units of what there is to learn at the start of the stage; with `total_charge_weight`, also the mean square of what
    the charges of a structure lack to its total charge, in e. What an offset of each element can take up is projected
    out of the energies of a batch, and the offsets are fitted before each validation: otherwise the mean energy, which
    every change of charges or kernel shifts by far more than the errors, would hold charges and kernel fast. The best
    weights by validation loss are kept; the weights before the first epoch are the first candidate, so no stage ends
    worse than it began. With `ema`, the weights that are validated and kept are averages over steps.
    """

    def __init__(
        self,
        model: Potential,
        stage: Stage,
        config: TrainingConfig,
        structures: Sequence[Structure],
        scales: dict[str, float],
        lr_long: float,
        processes: Processes = ALONE,
    ) -> None:
        """
        Args:
            structures: the training structures, from which the offsets are fitted.
            scales: by label, from `residual_scales`; a label that is missing is not fitted.
            lr_long: learning rate of charges and kernel.
            processes: those that share each step.
        """
        super().__init__()
        self.model = model
        self.stage = stage
        self.config = config
        self.processes = processes
        # by the place of their first structure; each process evaluates some of them
        self.n_offsets = min(len(structures), OFFSETS_FROM)
        self.offset_batches = {
            start: collate(structures[start : min(start + OFFSET_BATCH, self.n_offsets)])
            for start in range(0, self.n_offsets, OFFSET_BATCH)[processes.rank :: processes.size]
        }
        self.scales = scales
        self.lr_long = lr_long
        self.weights = {"energy": config.energy_weight, "forces": config.force_weight, "stress": config.stress_weight}
        self.weights |= {label: getattr(config, name) for label, name in CHARGE_WEIGHTS.items()}
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
        for part in ("short", "long"):
            module = getattr(model, part)
            if module is not None:
                module.requires_grad_(part in stage.trained)
        freeze_deepest(model.short.backbone, config.finetune.freeze_layers)
        if model.long is not None and not stage.surroundings:
            model.long.charges.freeze_surroundings()
        self.averaged = AveragedWeights(model, config.ema)
        self._epoch_began = time.monotonic()

    def configure_optimizers(self) -> dict[str, Any]:
        groups = parameter_groups(self.model, self.config.lr, self.lr_long, self.config.finetune.layer_decay)
        self.optimizer = torch.optim.Adam(groups)
        self._full_lr = [group["lr"] for group in self.optimizer.param_groups]
        return {"optimizer": self.optimizer}

    def on_train_batch_start(self, batch: Batch, index: int) -> None:
        """Set the learning rate: warm-up, times the fall over the stage or what plateaus have left of it."""
        assert self.optimizer is not None
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
        self.on_validation_epoch_start()
        for index, batch in enumerate(loader):
            self.validation_step(batch.to(self.device), index)
        self.on_validation_epoch_end()

    @torch.no_grad()
    def on_validation_epoch_start(self) -> None:
        """Fit the offsets of the elements to what the model now leaves of the training energies; with averaged weights,
        as the whole validation."""
        self.averaged.swap_in()
        # the energies in the last column
        found = torch.zeros(self.n_offsets, len(self.model.elements) + 1, dtype=torch.float64)
        for start, batch in self.offset_batches.items():
            batch = batch.to(self.device)
            output = self.model(batch, forces=False, parts=self.stage.evaluated)
            left = (batch.energy - batch.known_energy - output["energy"]) / _n_atoms(batch)
            found[start : start + len(left)] = torch.column_stack([composition(self.model, batch), left]).cpu()
        self.processes.add(found)
        add_offsets(self.model, found[:, :-1], found[:, -1])

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Sum the gradients of all processes; Lightning clips them afterwards."""
        self.processes.add_gradients(p for p in self.model.parameters() if p.requires_grad)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        self.model.short.mixed_precision = self.config.precision == "bf16"
        loss, _ = self._loss(batch, create_graph=True)
        self.model.short.mixed_precision = False  # what is validated, told and kept is not rounded
        if not bool(torch.isfinite(loss)):
            rows = ", ".join(str(int(row)) for row in batch.row)
            raise TrainingError(
                f"the loss is not finite in {self.stage.title}, epoch {self.current_epoch}, for rows {rows} of the "
                "training file; look for wrong labels there, or lower training.lr"
            )
        total, weight = self._train_sum
        n = _n_in_step(batch)
        self._train_sum = total + n * float(loss.detach()), weight + n
        # Lightning divides by `accumulate`, also at the end of an epoch, where fewer batches may share a step
        accumulate = self.config.accumulate
        sharing = min(accumulate, self.trainer.num_training_batches - index // accumulate * accumulate)
        return loss * (accumulate / sharing)

    def validation_step(self, batch: Batch, index: int) -> None:
        with torch.enable_grad():
            loss, errors = self._loss(batch, create_graph=False)
        n = _n_in_step(batch)
        for name, value in {"loss": float(loss.detach()), **errors}.items():
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
                f"the validation loss is not finite in {self.stage.title}, epoch {len(self.history)}; lower training.lr"
            )
        if record["loss"] < self.best_loss * (1.0 - self.config.min_improvement) or not self.history:
            self.stale_epochs = self.plateau_epochs = 0
        else:
            self.stale_epochs += 1
            self.plateau_epochs += 1
        if self.plateau_epochs > self.config.lr_patience:
            self.plateau_factor *= 0.5
            self.plateau_epochs = 0
        if record["loss"] < self.best_loss:
            self.best_loss = record["loss"]
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

    def _loss(self, batch: Batch, *, create_graph: bool) -> tuple[Tensor, dict[str, float]]:
        """What this process adds to the loss of the step, and to mean absolute errors by label, in the units of
        `lrpot.evaluation`: means are taken over the structures of all processes."""
        counts = self._counts(batch)
        output = self._output(batch, create_graph=create_graph)
        output = output | charge_quantities(batch, output)
        loss = batch.positions.new_zeros(())
        errors = dict.fromkeys((label for label, count in counts.items() if count), 0.0)
        for label, scale in self.scales.items():
            if label not in output or label not in batch or not counts[label]:
                continue
            difference = output[label] - batch[label]
            if label in LABELS:
                difference = difference + batch[f"known_{label}"]
            # every row has an energy; rows without another label have nan in its place
            difference = difference / _n_atoms(batch) if label == "energy" else difference[batch[label].isfinite()]
            errors[label] = float(difference.detach().abs().sum()) / counts[label]
            if label == "energy" and create_graph:
                difference = self._without_offsets(difference, batch)
            loss = loss + self.weights[label] * penalty(difference / scale, self.config).sum() / counts[label]
        if self.config.total_charge_weight > 0 and "charges" in output:
            excess = (_excess_charge(output["charges"], batch) ** 2).sum() / _n_in_step(batch)
            loss = loss + self.config.total_charge_weight * excess
        return loss, errors

    def _counts(self, batch: Batch) -> dict[str, int]:
        """How many numbers are compared by label in the step that all processes share."""
        own = [
            float(batch[label].isfinite().sum())
            if label in batch and (label != "stress" or self.weights["stress"] > 0)
            else 0.0
            for label in self.scales
        ]
        counts = self.processes.add(torch.tensor(own, dtype=torch.float64))
        return dict(zip(self.scales, map(int, counts.tolist()), strict=True))

    def _output(self, batch: Batch, *, create_graph: bool) -> dict[str, Tensor]:
        """What the model says of the batch; of no structures, nothing, as their labels do."""
        if not len(batch.cell):
            return {label: batch[label].clone().requires_grad_() for label in LABELS if label in batch}
        born: bool | Tensor = False
        if "born_charges" in self.scales and "born_charges" in batch:
            found = batch.born_charges[:, 0, 0].isfinite().to(torch.int64)
            born = torch.zeros_like(batch.total_charge, dtype=torch.int64).index_add(0, batch_index(batch), found) > 0
            if not bool(born.any()):
                born = False
        return self.model(
            batch,
            forces="forces" in batch,
            stress="stress" in batch and self.weights["stress"] > 0,
            born_charges=born,
            create_graph=create_graph,
            parts=self.stage.evaluated,
        )

    def _without_offsets(self, energies: Tensor, batch: Batch) -> Tensor:
        """(G,) energies per atom less what offsets of the elements would fit to all of the step, scaled to keep the
        mean square.

        At most half of the directions are given up, the strongest: a step of as many compositions as structures
        would lose all that its energies say, and a step of one keeps its energy.
        """
        own = composition(self.model, batch)
        n = _n_in_step(batch)
        places = batch.places if "places" in batch else torch.arange(n, device=own.device)
        # of the whole step, in the order of one process: equal strengths are told apart by it
        fractions = self.processes.add(own.new_zeros(n, own.shape[1]).index_copy(0, places, own))
        left, singular, _ = torch.linalg.svd(fractions, full_matrices=False)
        rank = min(int((singular > 1e-8 * singular.max()).sum()), n // 2)
        fitted = left[places, :rank]
        common = self.processes.add_differentiably(fitted.T @ energies)
        return (energies - fitted @ common) * math.sqrt(n / (n - rank))


def _n_in_step(batch: Batch) -> int:
    """Structures of the step that a batch is, or is a share of."""
    return int(batch.n_structures) if "n_structures" in batch else len(batch.cell)


def _excess_charge(charges: Tensor, batch: Batch) -> Tensor:
    """(G,), e: what the charges (N,) of each structure add up to, less its total charge."""
    return net_charge(charges[:, None], batch_index(batch), batch.cell.shape[0])[:, 0] - batch.total_charge


def _n_atoms(batch: Batch) -> Tensor:
    return torch.bincount(batch_index(batch), minlength=batch.cell.shape[0])
