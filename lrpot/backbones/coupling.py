"""Constants of the rotation group: how harmonics and tensors couple, for feature blocks of one order l and parity.

An irrep is (l, parity): parity is +1 where a reflection through the origin keeps its sign ("e"), else -1 ("o"). Bases
and signs are e3nn's, in which the order l = 1 is x, y, z. Everything is computed on the CPU in float64 and kept for
each precision and device, so that no module has such a constant in its state; outside inference mode, whose tensors
could not serve a later call that is differentiated.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

Irrep = tuple[int, int]
# A harmonic l2 and the order l3 that its product with features of order l1 is projected on.
Product = tuple[int, int]


def name_of(irrep: Irrep) -> str:
    """(1, -1) -> "1o"."""
    return f"{irrep[0]}{'e' if irrep[1] == 1 else 'o'}"


@cache
@torch.inference_mode(False)
def coupling(l1: int, l2: int, l3: int) -> Tensor:
    """(2 l1 + 1, 2 l2 + 1, 2 l3 + 1) float64: sqrt(2 l3 + 1) times the real Wigner 3j symbol.

    With this factor, inputs whose components have unit variance give outputs whose components have it, too.
    """
    from e3nn import o3  # loads for more than a second; only this network needs it

    with torch.device("cpu"):  # a model that is checked on the meta device must not leave its constants there
        symbol: Tensor = o3.wigner_3j(l1, l2, l3, dtype=torch.float64)
        return math.sqrt(2 * l3 + 1) * symbol


def spherical_harmonics(directions: Tensor, lmax: int) -> Tensor:
    """Real spherical harmonics of orders 0 to lmax, with sum_m Y_lm^2 = 2 l + 1.

    Each order is the product of the one below with the direction, so that all derivatives are those of polynomials.

    Args:
        directions: (E, 3), of length one.
        lmax: the highest order.
    Returns:
        (E, (lmax + 1)^2).
    """
    orders = [torch.ones_like(directions[:, :1]), math.sqrt(3.0) * directions]
    for order in range(2, lmax + 1):
        product = (orders[-1][:, :, None] * orders[1][:, None, :]).flatten(1)
        orders.append(product @ _raising(order, directions.dtype, directions.device))
    return torch.cat(orders[: lmax + 1], dim=1)


def product_matrix(harmonics: Tensor, l1: int, products: tuple[Product, ...]) -> Tensor:
    """The products with harmonics, as one matrix per edge that acts on the components of a feature of order l1.

    Args:
        harmonics: (E, (lmax + 1)^2), see `spherical_harmonics`.
        l1: the order of what is multiplied.
        products: (l2, l3) of each product.
    Returns:
        (E, sum of 2 l3 + 1, 2 l1 + 1); rows in the order of `products`.
    """
    n_harmonics = harmonics.shape[1]
    constants = _products(l1, products, n_harmonics, harmonics.dtype, harmonics.device)
    return (harmonics @ constants).view(harmonics.shape[0], constants.shape[1] // (2 * l1 + 1), 2 * l1 + 1)


@cache
@torch.inference_mode(False)
def _raising(order: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """((2 l - 1) * 3, 2 l + 1): Y_(l-1) times Y_1 -> Y_l."""
    matrix = coupling(order - 1, 1, order).flatten(0, 1)
    # e3nn's polar axis is y: there, only the component in the middle is not zero, and it is positive
    with torch.device("cpu"):
        pole = spherical_harmonics(torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64), order - 1)
        below = pole[:, (order - 1) ** 2 :]
        product = (below[:, :, None] * pole[:, None, 1:4]).flatten(1) @ matrix
    return (matrix * (math.sqrt(2 * order + 1) / product[0, order])).to(device, dtype)


@cache
@torch.inference_mode(False)
def _products(
    l1: int, products: tuple[Product, ...], n_harmonics: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """(n_harmonics, sum of (2 l3 + 1) * (2 l1 + 1))."""
    columns = []
    for l2, l3 in products:
        block = torch.zeros(n_harmonics, 2 * l3 + 1, 2 * l1 + 1, dtype=torch.float64, device="cpu")
        block[l2**2 : (l2 + 1) ** 2] = coupling(l1, l2, l3).permute(1, 2, 0)
        columns.append(block.flatten(1))
    return torch.cat(columns, dim=1).to(device, dtype)
