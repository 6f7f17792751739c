"""The fit of a property model: what is minimised."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch

from lrpot.config import TrainingConfig
from lrpot.properties.model import PropertyModel
from lrpot.training.epochs import EpochModule, Term
from lrpot.training.loss import penalty
from lrpot.training.parallel import ALONE


class PropertyModule(EpochModule):
    """Fits all of a property model.

    The loss is the mean over the targets that a batch has of the mean `penalty` of their errors, in units of the
    standard deviation in the training set; of classes, the mean cross entropy. Heads with experts add what keeps them
    in use.
    """

    def __init__(self, model: PropertyModel, config: TrainingConfig) -> None:
        model.requires_grad_(True)
        super().__init__(model, "fit", config, ALONE)

    def groups(self) -> list[dict[str, Any]]:
        return decayed_apart(self.model, self.config.lr)

    def _terms(self, batch: Batch, *, create_graph: bool) -> dict[str, Term]:
        """By target; errors in the units of the data, of classes the share that is wrong."""
        with torch.set_grad_enabled(create_graph):
            found = self.model(batch)
        wanted = self.model.learned(batch.targets, batch)
        terms = {}
        for place, target in enumerate(self.model.targets):
            known = batch.targets[:, place].isfinite()
            n = int(known.sum())
            if not n:
                continue
            values, own = found.values[known, place], wanted[known, place].to(found.values.dtype)
            if target.classification:
                loss = nn.functional.binary_cross_entropy_with_logits(values, own)
                error = float(((values.detach() > 0) != (own > 0)).double().mean())
            else:
                loss = penalty(values - own, self.config).mean()
                error = self._error(found.values.detach(), batch, place, known)
            # the mean over the targets has it once
            terms[target.name] = Term(loss + found.balance if create_graph else loss, error, n)
        return terms

    def _total(self, losses: Iterable[Tensor]) -> Tensor:
        return torch.stack(list(losses)).mean()

    def _error(self, values: Tensor, batch: Batch, place: int, known: Tensor) -> float:
        said = self.model.in_units(values, batch)[known, place]
        return float((said - batch.targets[known, place]).abs().mean())


def decayed_apart(module: nn.Module, lr: float) -> list[dict[str, Any]]:
    """Its parameters as groups of an optimiser: decay is for what multiplies features, not for offsets, norms and
    embeddings."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    embeddings = {id(p) for m in module.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    for name, parameter in module.named_parameters():
        plain = parameter.dim() < 2 or name.endswith("bias") or id(parameter) in embeddings
        (others if plain else matrices).append(parameter)
    return [{"params": others, "lr": lr, "weight_decay": 0.0}, {"params": matrices, "lr": lr}]
