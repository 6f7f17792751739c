"""The atoms of crystals in pairs, and the images of each pair: what attention over a periodic crystal acts on.

Products of queries and keys, and sums of values, are the same for all images of a pair: they are matrices over the
atoms of each crystal. Only what depends on a distance or a direction is found for each image.

Source: Taniai et al. 2024 (Crystalformer), whose sum over all images is cut off here, smoothly, at a fixed distance.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch_geometric.data import Data

from lrpot.backbones.coupling import spherical_harmonics
from lrpot.backbones.edge_pairs import EdgeRows
from lrpot.smooth import taper
from lrpot.structure import batch_index, edge_vectors

# Share of the reach at which the influence of an image begins to fade.
ONSET = 0.75


class Images:
    """The images within reach of each atom, itself among them, in rows padded to the longest, M.

    Attributes:
        distance: (N, M), A; 0 of the atom itself and of padding. directions: (N, M, 3) from each atom to its images,
            of length one; 0 of the atom itself and of padding.
        log_weight: (N, M), what is added to logits: 0 nearby, minus infinity from the reach on and of padding.
        neighbour: (N, M) which atom an image is of; 0 of padding.
        inside: (G, W, W), whether a pair of the W atoms in a row of each crystal is one, and not padding.
    """

    def __init__(self, batch: Data, reach: float, dtype: torch.dtype) -> None:
        """
        Args:
            batch: crystals with edges at least as far as `reach`, A. dtype: of what is found.
        """
        n = len(batch.numbers)
        atoms = torch.arange(n, device=batch.numbers.device)
        vectors = edge_vectors(batch)
        length = torch.linalg.vector_norm(vectors, dim=1)
        neighbour, centre = (torch.cat([own, atoms]) for own in batch.edge_index)
        vectors = torch.cat([vectors / length[:, None], vectors.new_zeros(n, 3)])
        length = torch.cat([length, length.new_zeros(n)])
        rows = EdgeRows(centre, n)
        self.distance = rows.spread(length).to(dtype)
        self.directions = rows.spread(vectors).to(dtype)
        self.log_weight = rows.spread(taper(length, reach, ONSET)).log().to(dtype)
        self.neighbour = rows.spread(neighbour)
        # the atoms of each crystal in a row, as the edges of an atom are
        self._crystals = EdgeRows(batch_index(batch), len(batch.cell))
        width, slot = self._crystals.width, self._crystals.slot
        self._pair = rows.spread(slot[centre] * width + slot[neighbour] % width)
        there = self._crystals.spread(torch.ones_like(atoms, dtype=torch.bool))
        self.inside = there[:, :, None] & there[:, None, :]

    def harmonics(self, degree: int) -> Tensor:
        """(N, M, (degree + 1)^2 - 1) of the directions, orders 1 to `degree`; 0 of the atom itself."""
        return spherical_harmonics(self.directions.flatten(0, 1), degree)[:, 1:].unflatten(0, self.distance.shape)

    def scores(self, query: Tensor, key: Tensor) -> Tensor:
        """(G, W, W, H): query_i . key_j / sqrt(D) of pairs of atoms, from (N, H, D) each."""
        rows = self._crystals.spread(query), self._crystals.spread(key)
        return torch.einsum("gihd,gjhd->gijh", *rows) * query.shape[2] ** -0.5

    def of_images(self, pairs: Tensor) -> Tensor:
        """(N, M, H) of the images, from (G, W, W, H) of the pairs."""
        return pairs.flatten(0, 2)[self._pair]

    def of_pairs(self, images: Tensor) -> Tensor:
        """(G, W, W, H): sums over the images of each pair, from (N, M, H)."""
        sums = images.new_zeros(self.inside.numel(), images.shape[2])
        return sums.index_add(0, self._pair.flatten(), images.flatten(0, 1)).unflatten(0, self.inside.shape)

    def weighted(self, pairs: Tensor, values: Tensor) -> Tensor:
        """(N, H, D): sum_j pairs_ij values_j, from (G, W, W, H) and (N, H, D)."""
        sums = torch.einsum("gijh,gjhd->gihd", pairs, self._crystals.spread(values))
        return self._crystals.collect(sums)
