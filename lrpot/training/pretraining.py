"""Pretraining of an encoder without labels: which element is hidden at an atom, told from all that is around it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch

from lrpot.config import TrainingConfig
from lrpot.errors import ConfigError
from lrpot.properties.model import PropertyModel
from lrpot.structure import MAX_ATOMIC_NUMBER
from lrpot.training.epochs import EpochModule, Term
from lrpot.training.parallel import ALONE
from lrpot.training.property_module import decayed_apart

# Share of atoms whose elements are to be told; of these, hidden behind number 0, or behind an element that is drawn.
# The others are shown as they are, so that features of atoms that are not hidden matter too.
CHOSEN, HIDDEN, REPLACED = 0.15, 0.8, 0.1

# Of what is hidden in validation, the same in each epoch.
SEED = 0


class MaskedAtoms(EpochModule):
    """Fits the encoder of a property model, and a linear layer that is then thrown away, to tell hidden elements.

    The loss is the mean cross entropy over the atoms chosen in a batch, one at least; `wrong_elements` is the share
    of them that is told wrong. An atom is hidden in all its images. Elements without a training row are no classes.

    Source: the shares, Devlin et al., BERT (2019); for crystals, Wang et al., CrysToGraph (2024).
    """

    classes: Tensor
    numbers: Tensor

    def __init__(self, model: PropertyModel, config: TrainingConfig, elements: Sequence[int]) -> None:
        """
        Args:
            elements: atomic numbers of the training part, which are the classes.
        Raises:
            ConfigError: an encoder without features of atoms.
        """
        encoder: Any = model.encoder
        if not encoder.atom_features:
            raise ConfigError(
                "training.pretrain_epochs: this encoder has no features of atoms that could tell an element; set it "
                "to 0, or choose another encoder"
            )
        model.head.requires_grad_(False)
        encoder.requires_grad_(True)
        super().__init__(model, "masked atoms", config, ALONE)
        weight = next(encoder.parameters())
        self.guess = nn.Linear(encoder.atom_features, len(elements), dtype=weight.dtype, device=weight.device)
        self.register_buffer("numbers", torch.tensor(elements, device=weight.device), persistent=False)
        classes = torch.full((MAX_ATOMIC_NUMBER + 1,), -1, device=weight.device)
        classes[self.numbers] = torch.arange(len(elements), device=weight.device)
        self.register_buffer("classes", classes, persistent=False)

    def groups(self) -> list[dict[str, Any]]:
        return decayed_apart(nn.ModuleList([self.model.encoder, self.guess]), self.config.lr)

    def _terms(self, batch: Batch, *, create_graph: bool) -> dict[str, Term]:
        """The error is the share of elements that is told wrong."""
        chosen, shown = self._chosen(batch, self._generator(training=create_graph))
        seen = copy.copy(batch)  # shallow: the batch keeps its elements
        seen.numbers = shown
        with torch.set_grad_enabled(create_graph):
            logits = self.guess(self.model.encoder(seen).atom[chosen])
        wanted = self.classes[batch.numbers[chosen]]
        if not len(wanted):
            return {"wrong_elements": Term(logits.sum(), 0.0, 0)}
        wrong = logits.detach().argmax(dim=1) != wanted
        loss = nn.functional.cross_entropy(logits, wanted)
        return {"wrong_elements": Term(loss, float(wrong.double().mean()), len(wanted))}

    def _chosen(self, batch: Batch, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """(N,) which atoms are to be told, and (N,) atomic numbers that are shown."""
        device, n = batch.numbers.device, len(batch.numbers)
        draw, kind = torch.rand(2, n, generator=generator).to(device)
        other = self.numbers[torch.randint(len(self.numbers), (n,), generator=generator).to(device)]
        known = self.classes[batch.numbers] >= 0
        draw = draw.masked_fill(~known, 1.0)
        chosen = (draw < CHOSEN) | (draw == draw.min()) & known
        shown = torch.where(kind < HIDDEN, 0, torch.where(kind < HIDDEN + REPLACED, other, batch.numbers))
        return chosen, torch.where(chosen, shown, batch.numbers)

    @staticmethod
    def _generator(*, training: bool) -> torch.Generator | None:
        """None draws what seed and epoch decide."""
        return None if training else torch.Generator().manual_seed(SEED)
