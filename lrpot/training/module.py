"""One stage of the fit of a potential: what is minimised, of which parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Batch

from lrpot.charges.polarisation import charge_quantities
from lrpot.config import CHARGE_WEIGHTS, TrainingConfig
from lrpot.kspace.neutrality import net_charge
from lrpot.potential import Potential
from lrpot.structure import LABELS, Structure, batch_index, collate
from lrpot.training.baseline import add_offsets, composition
from lrpot.training.epochs import EpochModule, Term, n_in_step
from lrpot.training.layers import freeze_deepest, parameter_groups
from lrpot.training.loss import penalty
from lrpot.training.parallel import ALONE, Processes
from lrpot.training.stages import Stage

# Training structures from which the offsets are fitted in every epoch, and how many at a time.
OFFSETS_FROM, OFFSET_BATCH = 128, 16

# Sum over a step of the squares by which shares of the elements differ from their mean, from which on the step itself
# is believed about what differs with them. A smaller one would take the energy of the only defect in a step for an
# offset of the elements, and nothing would be learned about it.
BELIEVED = 1.0


class StageModule(EpochModule):
    """Fits `stage.trained` of a potential to labels minus what the frozen parts give (`known_*`).

    The loss is the weighted sum of `penalty` of the errors of the energy per atom, the forces and the stress, each in
    units of what there is to learn at the start of the stage; with `total_charge_weight`, also the mean square of what
    the charges of a structure lack to its total charge, in e. What an offset of each element can take up is taken
    off the energies of a batch, and the offsets are fitted before each validation: otherwise the mean energy, which
    every change of charges or kernel shifts by far more than the errors, would hold charges and kernel fast.
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
        for part in ("short", "long"):
            module = getattr(model, part)
            if module is not None:
                module.requires_grad_(part in stage.trained)
        freeze_deepest(model.short.backbone, config.finetune.freeze_layers)
        if model.long is not None and not stage.surroundings:
            model.long.charges.freeze_surroundings()
        super().__init__(model, stage.title, config, processes)
        self.stage = stage
        # by the place of their first structure; each process evaluates some of them
        self.n_offsets = min(len(structures), OFFSETS_FROM)
        # all over the file, which may be in the order of compositions
        chosen = [n * len(structures) // self.n_offsets for n in range(self.n_offsets)]
        self.offset_batches = {
            start: collate([structures[n] for n in chosen[start : start + OFFSET_BATCH]])
            for start in range(0, self.n_offsets, OFFSET_BATCH)[processes.rank :: processes.size]
        }
        self.scales = scales
        self.lr_long = lr_long
        self.weights = {"energy": config.energy_weight, "forces": config.force_weight, "stress": config.stress_weight}
        self.weights |= {label: getattr(config, name) for label, name in CHARGE_WEIGHTS.items()}

    def groups(self) -> list[dict[str, Any]]:
        return parameter_groups(self.model, self.config.lr, self.lr_long, self.config.finetune.layer_decay)

    def before_validation(self) -> None:
        """Fit the offsets of the elements to what the model now leaves of the training energies; with averaged weights,
        as the whole validation."""
        # the energies in the last column
        found = torch.zeros(self.n_offsets, len(self.model.elements) + 1, dtype=torch.float64)
        for start, batch in self.offset_batches.items():
            batch = batch.to(self.device)
            output = self.model(batch, forces=False, parts=self.stage.evaluated)
            left = (batch.energy - batch.known_energy - output["energy"]) / _n_atoms(batch)
            found[start : start + len(left)] = torch.column_stack([composition(self.model, batch), left]).cpu()
        self.processes.add(found)
        add_offsets(self.model, found[:, :-1], found[:, -1])

    def training_step(self, batch: Batch, index: int) -> Tensor:
        self.model.short.mixed_precision = self.config.precision == "bf16"
        loss = super().training_step(batch, index)
        self.model.short.mixed_precision = False  # what is validated, told and kept is not rounded
        return loss

    def _terms(self, batch: Batch, *, create_graph: bool) -> dict[str, Term]:
        """Errors are in the units of `lrpot.evaluation`; means are taken over the structures of all processes."""
        counts = self._counts(batch)
        output = self._output(batch, create_graph=create_graph)
        output = output | charge_quantities(batch, output)
        zero = batch.positions.new_zeros(())
        terms = {label: Term(zero, 0.0, count) for label, count in counts.items() if count}
        for label, term in terms.items():
            if label not in output or label not in batch:
                continue
            difference = output[label] - batch[label]
            if label in LABELS:
                difference = difference + batch[f"known_{label}"]
            # every row has an energy; rows without another label have nan in its place
            difference = difference / _n_atoms(batch) if label == "energy" else difference[batch[label].isfinite()]
            error = float(difference.detach().abs().sum()) / term.n
            if label == "energy" and create_graph:
                difference = self._without_offsets(difference, batch)
            loss = self.weights[label] * penalty(difference / self.scales[label], self.config).sum() / term.n
            terms[label] = Term(loss, error, term.n)
        if self.config.total_charge_weight > 0:
            excess = (_excess_charge(output["charges"], batch) ** 2).sum() if "charges" in output else zero
            n = n_in_step(batch)
            terms["total_charge"] = Term(self.config.total_charge_weight * excess / n, None, n)
        return terms

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
        mean square of what is random; a step of one keeps its energy.

        Their mean is taken off whole. What goes with the composition is fitted with a penalty (ridge regression), so
        that it is taken off where compositions differ widely, and stays where few structures differ a little.
        """
        own = composition(self.model, batch)
        n = n_in_step(batch)
        if n == 1:
            return energies
        places = batch.places if "places" in batch else torch.arange(n, device=own.device)
        # of the whole step, whoever evaluates it
        fractions = self.processes.add(own.new_zeros(n, own.shape[1]).index_copy(0, places, own))
        fitted = torch.cat([torch.ones_like(fractions[:, :1]), fractions - fractions.mean(dim=0)], dim=1)
        ridge = torch.full_like(fitted[0], BELIEVED)
        ridge[0] = 0.0
        gram = fitted.T @ fitted
        penalised = gram + ridge.diag()
        offsets = torch.linalg.solve(penalised, self.processes.add_differentiably(fitted[places].T @ energies))
        # tr (1 - H)^2 of the fit H
        taken = torch.linalg.solve(penalised, gram)
        kept = n - 2.0 * taken.trace() + (taken * taken.T).sum()
        return (energies - fitted[places] @ offsets) * (n / kept).sqrt()


def _excess_charge(charges: Tensor, batch: Batch) -> Tensor:
    """(G,), e: what the charges (N,) of each structure add up to, less its total charge."""
    return net_charge(charges[:, None], batch_index(batch), batch.cell.shape[0])[:, 0] - batch.total_charge


def _n_atoms(batch: Batch) -> Tensor:
    return torch.bincount(batch_index(batch), minlength=batch.cell.shape[0])
