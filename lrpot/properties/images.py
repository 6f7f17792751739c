"""The atoms of crystals in pairs, and the images of each pair: what attention over a periodic crystal acts on.

Products of queries and keys, and sums of values, are the same for all images of a pair: they are matrices over the
atoms of each crystal. Only what depends on a distance or a direction is found for each image.

Source: Taniai et al. 2024 (Crystalformer), whose sum over all images is cut off here, smoothly, at a fixed distance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch_geometric.data import Data

from lrpot.backbones.coupling import spherical_harmonics
from lrpot.backbones.edge_pairs import EdgeRows
from lrpot.properties.features import at_rows, rows_by_size
from lrpot.smooth import taper
from lrpot.structure import edge_vectors

# Share of the reach at which the influence of an image begins to fade.
ONSET = 0.75


class Images:
    """The images within reach of each atom, itself among them, in rows padded to the longest, M.

    Attributes:
        distance: (N, M), A; 0 of the atom itself and of padding. directions: (N, M, 3) from each atom to its images,
            of length one; 0 of the atom itself and of padding.
        log_weight: (N, M), what is added to logits: 0 nearby, minus infinity from the reach on and of padding.
        neighbour: (N, M) which atom an image is of; 0 of padding.

    What pairs of atoms have is a list, a tensor (G', n, n, H) for each number n of atoms that crystals have.
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
        self._rows = list(rows_by_size(batch))
        first, column, pairs = torch.empty_like(atoms), torch.empty_like(atoms), 0
        for own in self._rows:
            size, number = own.shape[1], own.numel()
            first[own.flatten()] = pairs + size * torch.arange(number, device=atoms.device)
            column[own] = torch.arange(size, device=atoms.device)
            pairs += size * number
        self._pair = rows.spread(first[centre] + column[neighbour])

    def harmonics(self, degree: int) -> Tensor:
        """(N, M, (degree + 1)^2 - 1) of the directions, orders 1 to `degree`; 0 of the atom itself."""
        return spherical_harmonics(self.directions.flatten(0, 1), degree)[:, 1:].unflatten(0, self.distance.shape)

    def scores(self, query: Tensor, key: Tensor) -> list[Tensor]:
        """Of pairs of atoms, query_i . key_j / sqrt(D), from (N, H, D) each."""
        query = query * query.shape[2] ** -0.5
        return [torch.einsum("gihd,gjhd->gijh", at_rows(query, own), at_rows(key, own)) for own in self._rows]

    def of_images(self, pairs: Sequence[Tensor]) -> Tensor:
        """(N, M, H) of the images, from what the pairs have."""
        return at_rows(torch.cat([own.flatten(0, 2) for own in pairs]), self._pair)

    def of_pairs(self, images: Tensor) -> list[Tensor]:
        """Of pairs of atoms, sums over the images of each, from (N, M, H)."""
        shapes = [(*own.shape, own.shape[1]) for own in self._rows]
        sizes = [math.prod(shape) for shape in shapes]
        sums = images.new_zeros(sum(sizes), images.shape[2])
        sums = sums.index_add(0, self._pair.flatten(), images.flatten(0, 1))
        return [part.unflatten(0, shape) for part, shape in zip(sums.split(sizes), shapes, strict=True)]

    def weighted(self, pairs: Sequence[Tensor], values: Tensor) -> Tensor:
        """(N, H, D): sum_j pairs_ij values_j, from what the pairs have and (N, H, D)."""
        found = torch.zeros_like(values)
        for own, rows in zip(pairs, self._rows, strict=True):
            sums = torch.einsum("gijh,gjhd->gihd", own, at_rows(values, rows))
            found = found.index_copy(0, rows.flatten(), sums.flatten(0, 1))
        return found
