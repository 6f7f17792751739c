"""The tabulated complement against its formula: value, both derivatives, the ends, and what is not a number."""

from __future__ import annotations

import pickle

import pytest
import torch

from lrpot.kspace import CoulombComplement, Dispersion, DispersionComplement, GaussianCoulomb
from lrpot.smooth import taper

COMPLEMENTS = {
    "Coulomb": CoulombComplement(GaussianCoulomb(1.0), 5.0),
    "Coulomb, narrow": CoulombComplement(GaussianCoulomb(0.35), 2.5, onset=0.5),
    "Coulomb, never tapered before": CoulombComplement(GaussianCoulomb(2.0), 12.0, onset=0.0),
    "dispersion": DispersionComplement(Dispersion(0.5), 6.0),
}


def formula(complement: CoulombComplement | DispersionComplement, r: torch.Tensor) -> torch.Tensor:
    return complement.bare(r) * taper(r, complement.cutoff, complement.onset)


@pytest.mark.parametrize("name", COMPLEMENTS)
def test_value_and_derivatives_are_those_of_the_formula(name: str) -> None:
    complement = COMPLEMENTS[name]
    generator = torch.Generator().manual_seed(0)
    share = torch.cat(
        [torch.rand(5000, generator=generator, dtype=torch.float64), torch.linspace(0.02, 0.99, 98).double()]
    )
    r = (share.clamp(min=0.02) * complement.cutoff).requires_grad_()
    found, expected = complement.pair(r), formula(complement, r)
    seed = torch.randn(len(r), generator=generator, dtype=torch.float64)
    (slope,) = torch.autograd.grad(found, r, seed)
    (exact,) = torch.autograd.grad(expected, r, seed, create_graph=True)
    # relative to what it is without screening, of which the table is a share
    near = torch.tensor([1e-2], dtype=torch.float64)
    scale = complement.bare(near) * (near / r.detach()) ** complement.power
    assert float(((found - expected).detach().abs() / scale).max()) < 1e-15
    # a rounding of 1e-16 in a value, over the distance of the points in an interval of 0.002 A
    assert float(((slope - exact.detach()).abs() / (seed.abs() * scale)).max()) < 5e-12
    (again,) = torch.autograd.grad(complement.pair(r), r, seed, create_graph=True)
    torch.testing.assert_close(again, exact, rtol=1e-12, atol=1e-20)
    (second,) = torch.autograd.grad(again.sum(), r)
    (exact_second,) = torch.autograd.grad(exact.sum(), r)
    torch.testing.assert_close(second, exact_second, rtol=1e-11, atol=1e-15)


def test_gradgradcheck() -> None:
    r = torch.tensor([1.0, 2.3, 4.49, 4.51, 4.9], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(COMPLEMENTS["Coulomb"].pair, r)
    assert torch.autograd.gradgradcheck(COMPLEMENTS["Coulomb"].pair, r)


@pytest.mark.parametrize("name", COMPLEMENTS)
def test_beyond_the_cutoff_there_is_nothing_and_nan_stays(name: str) -> None:
    complement = COMPLEMENTS[name]
    r = torch.tensor([complement.cutoff, 2.0 * complement.cutoff, torch.nan], dtype=torch.float64, requires_grad=True)
    energy = complement.pair(r)
    (slope,) = torch.autograd.grad(energy[:2].sum(), r)
    assert energy[:2].tolist() == [0.0, 0.0]
    assert bool(energy[2].isnan())
    assert slope[:2].tolist() == [0.0, 0.0]


def test_other_precisions_and_no_edges() -> None:
    complement = COMPLEMENTS["Coulomb"]
    r = torch.tensor([1.0, 2.0])
    torch.testing.assert_close(complement.pair(r), complement.pair(r.double()).float())
    assert complement.pair(torch.zeros(0, dtype=torch.float64)).shape == (0,)


def test_a_copy_has_its_own() -> None:
    complement = COMPLEMENTS["dispersion"]
    r = torch.tensor([2.0, 3.0], dtype=torch.float64)
    before = complement.pair(r)
    assert torch.equal(pickle.loads(pickle.dumps(complement)).pair(r), before)
