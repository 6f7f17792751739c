"""Spherical Bessel functions of the distance that vanish at the cutoff: the radial half of a basis in a ball."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.special import spherical_jn
from torch import Tensor, nn
from torch_geometric.nn.models.dimenet import Envelope


class SphericalBesselBasis(nn.Module):
    """u(x) N_ln j_l(z_ln x) sqrt((2 l + 1) / 4 pi), x = d / cutoff, with the envelope u and the zeros z_ln of j_l.

    Times a Legendre polynomial P_l(cos theta) it is the basis of Eq. 6 with the envelope of Eq. 8.
    Source: Gasteiger, Groß, Günnemann, ICLR 2020 (arXiv:2003.03123).
    """

    def __init__(self, orders: int, radial: int, cutoff: float, envelope_exponent: int) -> None:
        """
        Args:
            orders: L >= 2; l = 0 ... L - 1.
            radial: functions n for each l.
            cutoff: A.
            envelope_exponent: torch_geometric's: p - 1 with the p of the paper.
        """
        super().__init__()
        self.orders = orders
        self.cutoff = cutoff
        self.envelope = Envelope(envelope_exponent)
        zeros = bessel_zeros(orders, radial)
        order = np.arange(orders)[:, None]
        norms = math.sqrt(2.0) / np.abs(spherical_jn(order + 1, zeros)) * np.sqrt((2 * order + 1) / (4.0 * np.pi))
        # no buffers: Module.to(float32) would round them
        self.zeros, self.norms = torch.from_numpy(zeros), torch.from_numpy(norms)

    def forward(self, distances: Tensor) -> Tensor:
        """(E, L, n) in the precision of the distances (E,), A."""
        # in float64: the recursion cancels digits at short distances, the more the higher the order
        x = distances.to(torch.float64) / self.cutoff
        z = x[:, None, None] * self.zeros.to(x.device)
        inverse = 1.0 / z
        before = torch.sin(z) * inverse
        last = (before - torch.cos(z)) * inverse
        # row l is needed at order l alone, so rows that are done drop out
        done = [before[:, :1], last[:, 1:2]]
        before, last = before[:, 2:], last[:, 2:]
        for order in range(2, self.orders):
            before, last = last, (2 * order - 1) * inverse[:, order:] * last - before
            done.append(last[:, :1])
            before, last = before[:, 1:], last[:, 1:]
        basis = torch.cat(done, dim=1) * self.norms.to(x.device) * self.envelope(x)[:, None, None]
        return basis.to(distances.dtype)


def bessel_zeros(orders: int, count: int) -> np.ndarray:
    """(orders, count) the first positive zeros of j_0 ... ; those of j_l lie between those of j_(l-1)."""
    rows = [np.pi * np.arange(1, count + orders)]
    for order in range(1, orders):
        function = partial(spherical_jn, order)
        intervals = zip(rows[-1][:-1], rows[-1][1:], strict=True)
        rows.append(np.array([brentq(function, a, b, xtol=1e-14) for a, b in intervals]))
    return np.stack([row[:count] for row in rows])
