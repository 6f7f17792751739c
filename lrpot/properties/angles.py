"""Angles between the images that an atom sees and directions at that atom: what an encoder knows of three bodies."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from lrpot.properties.basis import Gaussians
from lrpot.properties.features import at_rows
from lrpot.properties.images import Images
from lrpot.structure import batch_index

# Directions at each atom, as many as a cell has axes.
N_AXES = 3

# A, how far the neighbours are, at the start of a fit, that make up a direction.
WIDTH = 2.0


class NeighbourAngles(nn.Module):
    """Sum over k of w_k P_l(cos theta_jik): mean Legendre polynomials of the angles between image j and neighbours k.

    The weights w are a softmax over the neighbours of atom i of a score of their element - r_ik^2 / 2 s^2, one for each
    of three sets. By the addition theorem a mean of harmonics does for all j at once, so that the work grows as the
    number of images and not as its square.
    """

    def __init__(self, features: int, degree: int) -> None:
        """
        Args:
            features: width of the atoms. degree: highest order of the polynomials; the lowest is 1.
        """
        super().__init__()
        self.degree = degree
        self.size = N_AXES * degree
        self.score = nn.Linear(features, N_AXES)
        self.log_width = nn.Parameter(torch.full((N_AXES,), WIDTH).log())

    def forward(self, x: Tensor, images: Images, batch: Data) -> Tensor:
        """(N, M, `size`).

        Args:
            x: (N, features) of the atoms, from their elements. batch: not needed; as of `CellAngles`.
        """
        decay = images.distance[:, :, None] ** 2 / (2.0 * torch.exp(2.0 * self.log_width))
        # the atom itself is among them, and has no direction: one without neighbours has means, too
        weights = torch.softmax(at_rows(self.score(x), images.neighbour) - decay + images.log_weight[:, :, None], dim=1)
        harmonics = images.harmonics(self.degree)
        means = weights.mT @ harmonics
        orders = [2 * order + 1 for order in range(1, self.degree + 1)]
        parts = zip(orders, harmonics.split(orders, dim=2), means.split(orders, dim=2), strict=True)
        return torch.cat([own @ mean.mT / order for order, own, mean in parts], dim=2)


class CellAngles(nn.Module):
    """Gaussians of the cosines between an image and the vectors of the cell, as printed.

    They change with the choice of the cell. The paper has 64 Gaussians, each four spacings wide; 16 of one spacing
    resolve as much.
    """

    def __init__(self, basis: int = 16) -> None:
        super().__init__()
        self.size = N_AXES * basis
        self.basis = Gaussians(-1.0, 1.0, basis)

    def forward(self, x: Tensor, images: Images, batch: Data) -> Tensor:
        """(N, M, `size`).

        Args:
            x: not needed; as of `NeighbourAngles`. batch: `cell` is read.
        """
        axes = nn.functional.normalize(batch.cell, dim=2)[batch_index(batch)].to(x.dtype)
        return self.basis(images.directions @ axes.mT).flatten(2)
