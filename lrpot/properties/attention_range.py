"""How far the attention between the atoms of a crystal reaches."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from lrpot.data.readers import to_structure
from lrpot.errors import ConfigError
from lrpot.plot_style import COLOURS, STYLE, save
from lrpot.properties.crystograph import CrysToGraph
from lrpot.properties.model import PropertyEnsemble, PropertyModel

# A, of a class of distances; atoms themselves are one of their own.
BIN = 0.5


class AttentionRange(NamedTuple):
    """Attention by distance, over that of a crystal whose atoms attend to all alike: 1 is none at all.

    Attributes:
        distance: (B,) A, means of the pairs of each class; the first is 0, an atom and itself.
        pairs: (B,) how many.
        attention: (layers, heads, B).
    """

    distance: np.ndarray
    pairs: np.ndarray
    attention: np.ndarray


def attention_range(model: PropertyModel | PropertyEnsemble, atoms: Atoms) -> AttentionRange:
    """Mean attention of the pairs of atoms of a crystal against the distance to the nearest image.

    Of an ensemble, the mean over its members.

    Raises:
        ConfigError: the model has no attention between all atoms.
        StructureError, DataError: a crystal that the model cannot treat.
    """
    structure = to_structure(atoms, model.cutoff, shells=model.shells, labels=False)
    model.check(structure)
    found: list[Tensor] = []
    for member in model.members:
        encoder = member.encoder
        if not isinstance(encoder, CrysToGraph) or not len(encoder.layers):
            raise ConfigError(
                "the encoder of this model has no layers in which all atoms of a crystal attend to each other, so "
                "there is nothing to draw; fit one with --encoder crystograph"
            )
        with torch.no_grad():
            own = encoder.attention(structure.to(str(next(encoder.parameters()).device)))
        # the sum of the paper's code weighs all alike
        found.append(own / own.sum(dim=3, keepdim=True))
    weights = torch.stack(found).mean(dim=0).double().cpu().numpy() * len(atoms)
    distances = atoms.get_all_distances(mic=bool(atoms.pbc.any()))
    np.fill_diagonal(distances, 0.0)
    kind = np.where(np.eye(len(atoms), dtype=bool), 0, 1 + (distances / BIN).astype(int))
    _, kind, pairs = np.unique(kind, return_inverse=True, return_counts=True)
    kind = kind.ravel()

    def mean(values: np.ndarray) -> np.ndarray:
        return np.bincount(kind, weights=values.ravel()) / pairs

    by_head = [[mean(head) for head in layer] for layer in weights]
    return AttentionRange(mean(distances), pairs, np.array(by_head))


def draw_attention(found: AttentionRange, path: str | Path, title: str = "") -> Path:
    """A panel for each layer: its heads, and their mean.

    Args:
        path: of the picture. title: above it.
    """
    layers = len(found.attention)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, layers, figsize=(1.0 + 4.5 * layers, 3.6), squeeze=False, sharey=True)
        for number, (axis, heads) in enumerate(zip(axes[0], found.attention, strict=True), 1):
            axis.axhline(1.0, color="0.5", linewidth=1.0, linestyle="--", label="all alike")
            for head, values in enumerate(heads):
                axis.plot(
                    found.distance, values, color=COLOURS[0], alpha=0.3, linewidth=1.0, label="" if head else "head"
                )
            mean = heads.mean(axis=0)
            axis.plot(found.distance, mean, color=COLOURS[1], marker="o", markersize=4, label="mean over heads")
            axis.set_xlabel("distance to the nearest image (Å)")
            if layers > 1:
                axis.set_title(f"layer {number}", fontsize=10)
        axes[0, 0].set_ylabel("attention x number of atoms")
        axes[0, -1].legend(frameon=False, fontsize=9)
        if title:
            figure.suptitle(title, fontsize=11)
        return save(figure, path)
