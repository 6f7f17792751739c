"""Sums of tabulated pair energies against the formula: values, first and second derivatives, ends, not-a-number."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torch import Tensor

from lrpot.kspace import CoulombComplement, Dispersion, DispersionComplement, GaussianCoulomb
from lrpot.kspace.pair_table import DEGREE

Complement = CoulombComplement | DispersionComplement

COMPLEMENTS: dict[str, Complement] = {
    "Coulomb": CoulombComplement(GaussianCoulomb(1.0), 5.0),
    "Coulomb, narrow": CoulombComplement(GaussianCoulomb(0.35), 2.5, onset=0.5),
    "Coulomb, tapered from zero on": CoulombComplement(GaussianCoulomb(2.0), 12.0, onset=0.0),
    "dispersion": DispersionComplement(Dispersion(0.5), 6.0),
}


def pairs(complement: Complement, channels: int = 2, n: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    """Charges, edges of all pairs in both directions, distances up to beyond the cutoff."""
    generator = torch.Generator().manual_seed(0)
    charges = torch.randn(n, channels, generator=generator, dtype=torch.float64)
    first, second = torch.triu_indices(n, n, 1)
    r = (0.1 + torch.rand(len(first), generator=generator, dtype=torch.float64)) * complement.cutoff
    edges = torch.stack([torch.cat([first, second]), torch.cat([second, first])])
    return charges.requires_grad_(), edges, torch.cat([r, r]).requires_grad_()


@pytest.mark.parametrize("name", COMPLEMENTS)
def test_table_is_the_formula(name: str) -> None:
    complement = COMPLEMENTS[name]
    share = torch.cat([torch.rand(5000, dtype=torch.float64), torch.linspace(0.02, 0.99, 98, dtype=torch.float64)])
    r = (share.clamp(min=0.02) * complement.cutoff).requires_grad_()
    expected = complement.pair(r)
    (exact,) = torch.autograd.grad(expected.sum(), r)
    value, slope = complement.table.look_up(r)
    # relative to what it is without screening, of which the table is a share
    near = torch.tensor([1e-2], dtype=torch.float64)
    scale = complement.bare(near) * (near / r.detach()) ** complement.power
    assert float(((value - expected.detach()) / scale).abs().max()) < 4e-15  # some roundings
    # a rounding of 1e-16 in a value, over the distance of the points in an interval of 0.002 A
    assert float(((slope - exact) / scale).abs().max()) < 5e-12


@pytest.mark.parametrize("name", COMPLEMENTS)
@pytest.mark.parametrize("channels", [1, 3])
def test_sums_and_their_gradients_are_those_of_tensor_operations(name: str, channels: int) -> None:
    table = COMPLEMENTS[name].table
    charges, edges, r = pairs(COMPLEMENTS[name], channels)
    seed = torch.linspace(-1.0, 2.0, len(charges), dtype=torch.float64)
    found, expected = table.per_atom(charges, edges, r), table.plainly(charges, edges, r)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)
    gradients = torch.autograd.grad(found, (charges, r), seed, retain_graph=True)
    exact = torch.autograd.grad(expected, (charges, r), seed, create_graph=True)
    again = torch.autograd.grad(found, (charges, r), seed, create_graph=True)
    for one, two, three in zip(gradients, exact, again, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-11)
        torch.testing.assert_close(three, two, rtol=1e-12, atol=1e-12)


def test_gradgradcheck() -> None:
    complement = COMPLEMENTS["Coulomb"]
    charges, edges, r = pairs(complement, n=4)
    arguments = (lambda q, d: complement.table.per_atom(q, edges, d)), (charges, r)
    assert torch.autograd.gradcheck(*arguments)
    assert torch.autograd.gradgradcheck(*arguments)


def test_charges_that_depend_on_distances() -> None:
    """Their part of the derivative is counted once, whether or not it is to be differentiated again."""
    table = COMPLEMENTS["Coulomb"].table
    fixed, edges, r = pairs(COMPLEMENTS["Coulomb"])

    def energy(sums: object) -> Tensor:
        return sums(fixed.detach() * torch.cos(r).sum(), edges, r).sum()  # type: ignore[operator]

    (expected,) = torch.autograd.grad(energy(table.plainly), r)
    for create_graph in (False, True):
        (found,) = torch.autograd.grad(energy(table.per_atom), r, create_graph=create_graph)
        torch.testing.assert_close(found.detach(), expected, rtol=1e-10, atol=1e-10)


def test_only_one_of_them_is_differentiated() -> None:
    table = COMPLEMENTS["Coulomb"].table
    charges, edges, r = pairs(COMPLEMENTS["Coulomb"])
    for create_graph in (False, True):
        (by_r,) = torch.autograd.grad(table.per_atom(charges.detach(), edges, r).sum(), r, create_graph=create_graph)
        (by_q,) = torch.autograd.grad(
            table.per_atom(charges, edges, r.detach()).sum(), charges, create_graph=create_graph
        )
        both = torch.autograd.grad(table.plainly(charges, edges, r).sum(), (charges, r))
        torch.testing.assert_close(by_q.detach(), both[0], rtol=1e-10, atol=1e-11)
        torch.testing.assert_close(by_r.detach(), both[1], rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("name", COMPLEMENTS)
def test_beyond_the_cutoff_there_is_nothing_and_nan_stays(name: str) -> None:
    complement = COMPLEMENTS[name]
    r = torch.tensor([complement.cutoff, 2.0 * complement.cutoff, torch.nan], dtype=torch.float64)
    for found in complement.table.look_up(r):
        assert found[:2].tolist() == [0.0, 0.0]
        assert bool(found[2].isnan())


@pytest.mark.parametrize("cutoff", [3.8, 6.75])
def test_the_last_distance_below_the_cutoff_is_in_the_table(cutoff: float) -> None:
    """There, the place in the table is rounded up to its end for these cutoffs; what lies behind it is nan here."""
    table = CoulombComplement(GaussianCoulomb(1.0), cutoff).table
    n = len(table.coefficients)
    r = np.nextafter(cutoff, 0.0)
    assert r * (n / cutoff) == n
    memory = np.full((n + 1, DEGREE + 1), np.nan)
    memory[:n] = table.coefficients
    table.coefficients = memory[:n]
    value, slope = table.look_up(torch.tensor([r], dtype=torch.float64))
    assert [value.item(), slope.item()] == pytest.approx([0.0, 0.0], abs=1e-9)


def test_no_edges() -> None:
    charges = torch.ones(3, 1, dtype=torch.float64)
    none = torch.zeros(2, 0, dtype=torch.int64), torch.zeros(0, dtype=torch.float64)
    assert COMPLEMENTS["Coulomb"].table.per_atom(charges, *none).tolist() == [0.0, 0.0, 0.0]


def test_a_copy_has_its_own() -> None:
    complement = COMPLEMENTS["dispersion"]
    r = torch.tensor([2.0, 3.0], dtype=torch.float64)
    before, _ = complement.table.look_up(r)
    assert torch.equal(pickle.loads(pickle.dumps(complement)).table.look_up(r)[0], before)
