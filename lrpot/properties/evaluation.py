"""What a property model says of many crystals, in bounded memory, and how far it is from their labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lrpot.properties.metrics import target_errors
from lrpot.properties.model import PropertyEnsemble, PropertyModel
from lrpot.properties.targets import Target
from lrpot.structure import Structure, collate

# Edges, and crystals, that are evaluated at once; they bound the memory of a batch.
MAX_EDGES, MAX_CRYSTALS = 30_000, 256


@dataclass(frozen=True)
class PropertyEvaluation:
    """Predictions of n crystals beside their labels.

    Attributes:
        targets: what is predicted.
        reference, predicted: (n, T), in the units of the data; nan where there is no label; of a class the probability.
        uncertainty: (n, T), or None if the model is no ensemble.
        gates: (n, T, experts) of the head, or None without experts.
        atoms: (n,) numbers of atoms.
        numbers: atomic numbers of each crystal, or None if they are not known.
        encoder_gates: (n, E), how much the encoder takes of each of its experts, or None without experts.
        experts: (E,) their names.
    """

    targets: tuple[Target, ...]
    reference: np.ndarray
    predicted: np.ndarray
    uncertainty: np.ndarray | None
    gates: np.ndarray | None
    atoms: np.ndarray
    numbers: list[np.ndarray] | None = None
    encoder_gates: np.ndarray | None = None
    experts: tuple[str, ...] = ()

    def errors(self) -> dict[str, Any]:
        """{target: errors as of `target_errors`}, n_structures and n_atoms; ready for JSON."""
        result: dict[str, Any] = {"n_structures": len(self.atoms), "n_atoms": int(self.atoms.sum())}
        for place, target in enumerate(self.targets):
            errors = target_errors(self.reference[:, place], self.predicted[:, place], target.kind, target.unit)
            if errors["n"]:
                result[target.name] = errors
        return result

    def gate_usage(self) -> dict[str, dict[str, float]]:
        """{expert of the encoder: mean and spread of its gate over the crystals}, ready for JSON; empty without any."""
        if self.encoder_gates is None:
            return {}
        return {
            name: {"mean": float(gate.mean()), "spread": float(gate.std())}
            for name, gate in zip(self.experts, self.encoder_gates.T, strict=True)
        }


def evaluate_properties(
    model: PropertyModel | PropertyEnsemble,
    structures: Iterable[Structure],
    *,
    progress: Callable[[int], None] | None = None,
) -> PropertyEvaluation:
    """Predict crystals, and keep the labels that they carry.

    Args:
        model: in evaluation mode. structures: with the edges that it wants; `targets`, (1, T), where they are known.
        progress: called with the number of crystals done.
    """
    device = model.members[0].centre.device
    found: dict[str, list[np.ndarray]] = {
        name: [] for name in ("reference", "predicted", "uncertainty", "gates", "encoder_gates", "atoms")
    }
    numbers: list[np.ndarray] = []
    for group in _groups(structures):
        batch = collate(group).to(device)
        output = model.predict(batch)
        values = output._asdict()
        values["predicted"] = values.pop("values")
        for name, value in values.items():
            if value is not None:
                found[name].append(value.cpu().numpy())
        missing = torch.full((len(group), len(model.targets)), torch.nan)
        found["reference"].append((batch.targets.cpu() if "targets" in batch else missing).numpy())
        found["atoms"].append(np.array([structure.num_nodes for structure in group]))
        numbers += [structure.numbers.numpy(force=True) for structure in group]
        if progress is not None:
            progress(len(numbers))
    whole = {name: np.concatenate(parts) if parts else None for name, parts in found.items()}
    return PropertyEvaluation(model.targets, **whole, numbers=numbers, experts=model.experts)  # type: ignore[arg-type]


def errors_text(errors: Mapping[str, Any], targets: Sequence[Target]) -> str:
    """Mean absolute errors, or accuracies of classes, in one line."""
    parts = []
    for target in targets:
        own = errors.get(target.name)
        if own is None:
            continue
        if target.classification:
            area = f", AUC {own['roc_auc']:.3f}" if "roc_auc" in own else ""
            parts.append(f"{target.name} accuracy {own['accuracy']:.3f}{area}")
        else:
            parts.append(f"{target.name} MAE {own['mae']:.4g} {target.unit}".rstrip())
    return ", ".join(parts)


def gates_text(found: PropertyEvaluation) -> str:
    """Means and spreads of the gates of the encoder in one line."""
    parts = [f"{name} {gate['mean']:.2f} +- {gate['spread']:.2f}" for name, gate in found.gate_usage().items()]
    return f"gates of the encoder: {', '.join(parts)}"


def _groups(structures: Iterable[Structure]) -> Iterator[list[Structure]]:
    group: list[Structure] = []
    edges = 0
    for structure in structures:
        size = structure.edge_index.shape[1]
        if group and (edges + size > MAX_EDGES or len(group) == MAX_CRYSTALS):
            yield group
            group, edges = [], 0
        group.append(structure)
        edges += size
    if group:
        yield group
