"""Readouts of tensors: change of basis, symmetry, sum rule, batches, and that each of them learns."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lrpot.backbones import AtomFeatures, Equivariant
from lrpot.errors import ConfigError
from lrpot.structure import Structure, batch_index, collate, edge_vectors
from lrpot.tensors import GENERAL, SYMMETRIC, BornChargeReadout, DipoleReadout, PolarizabilityReadout, cartesian
from tests.unit.equivariance import CUTOFF, assert_near, rebuilt

ELEMENTS = (8, 11, 17)
READOUTS: dict[str, Callable[[str], nn.Module]] = {
    "dipole": DipoleReadout,
    "polarizability": PolarizabilityReadout,
    "dielectric": lambda irreps: PolarizabilityReadout(irreps, intensive=True),
    "born": BornChargeReadout,
}
PER_ATOM = {"born"}

each_readout = pytest.mark.parametrize("quantity", READOUTS)


class Model(nn.Module):
    """A backbone with one readout."""

    def __init__(self, quantity: str) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.backbone = Equivariant(
                features=6, lmax=2, interactions=2, radial_hidden=8, tensors=True, cutoff=CUTOFF
            )
            self.readout = READOUTS[quantity](self.backbone.irreps_out)
        self.double()

    def forward(self, batch: Structure) -> Tensor:
        return self.readout(batch, self.backbone(batch, edge_vectors(batch)))


def predicted(quantity: str, s: Structure) -> Tensor:
    with torch.no_grad():
        return Model(quantity)(s)


@pytest.fixture(scope="module")
def crystal(random_crystal) -> Structure:
    return random_crystal(4, 7, elements=ELEMENTS)


@pytest.mark.parametrize(("formula", "irreps"), [("ij=ji", SYMMETRIC), ("ij", GENERAL)])
def test_change_of_basis_is_that_of_e3nn(formula: str, irreps) -> None:
    from e3nn.io import CartesianTensor

    theirs = CartesianTensor(formula)
    matrices = torch.randn(5, 3, 3, generator=torch.Generator().manual_seed(0)).double()
    if formula == "ij=ji":
        matrices = matrices + matrices.mT
    components = theirs.from_cartesian(matrices.float()).double()
    assert [(ir.l, ir.p) for _, ir in theirs] == list(irreps)
    for chosen in theirs.slices():
        only = torch.zeros_like(components)
        only[:, chosen] = components[:, chosen]
        expected = theirs.to_cartesian(only.float()).double()
        found = cartesian([only[:, place] for place in theirs.slices()], irreps)
        # the sign of a whole irrep is free; e3nn's constants are in float32
        sign = torch.sign((found * expected).sum())
        assert_near(sign * found, expected, 1e-6)


@pytest.mark.parametrize("irreps", [SYMMETRIC, GENERAL])
def test_change_of_basis_is_orthonormal(irreps) -> None:
    width = sum(2 * order + 1 for order, _ in irreps)
    unit = torch.eye(width, dtype=torch.float64)
    matrices = cartesian(list(unit.split([2 * order + 1 for order, _ in irreps], dim=1)), irreps).flatten(1)
    torch.testing.assert_close(matrices @ matrices.T, unit, atol=1e-14, rtol=0.0)


@each_readout
@pytest.mark.parametrize("mirror", [False, True])
def test_rotation_and_reflection(quantity: str, mirror: bool, crystal: Structure) -> None:
    q = np.linalg.qr(np.random.default_rng(5).normal(size=(3, 3)))[0]
    turn = torch.from_numpy(-q if (np.linalg.det(q) < 0) != mirror else q)
    one = predicted(quantity, crystal)
    other = predicted(quantity, rebuilt(crystal, positions=crystal.positions @ turn, cell=crystal.cell[0] @ turn))
    assert_near(other, one @ turn if quantity == "dipole" else turn.T @ one @ turn)


@each_readout
def test_shapes_and_inner_symmetry(quantity: str, crystal: Structure) -> None:
    value = predicted(quantity, crystal)
    shapes = {"dipole": (1, 3), "polarizability": (1, 3, 3), "dielectric": (1, 3, 3), "born": (7, 3, 3)}
    assert value.shape == shapes[quantity]
    if quantity in ("polarizability", "dielectric"):
        assert_near(value.mT, value, 1e-14)
    if quantity == "born":  # nothing makes these symmetric: all three irreps are at work
        assert float((value - value.mT).abs().max()) > 1e-3 * float(value.abs().max())


def test_born_charges_obey_the_acoustic_sum_rule(random_crystal) -> None:
    batch = collate([random_crystal(seed, n, elements=ELEMENTS) for seed, n in ((1, 5), (2, 1), (3, 8))])
    charges = predicted("born", batch)
    total = torch.zeros(3, 3, 3, dtype=torch.float64).index_add(0, batch_index(batch), charges)
    assert float(charges.abs().max()) > 1e-3
    assert float(total.abs().max()) < 1e-14


@each_readout
def test_translation_and_permutation(quantity: str, crystal: Structure) -> None:
    order = torch.tensor([3, 0, 6, 2, 5, 1, 4])
    one = predicted(quantity, crystal)
    shifted = crystal.positions + torch.tensor([4.0, -7.0, 0.3]) + 2.0 * crystal.cell[0, 1] * (order % 2)[:, None]
    other = predicted(quantity, rebuilt(crystal, numbers=crystal.numbers[order], positions=shifted[order]))
    assert_near(other, one[order] if quantity in PER_ATOM else one)


@each_readout
def test_batch_is_single(quantity: str, random_crystal) -> None:
    structures = [
        random_crystal(1, 5, elements=ELEMENTS),
        random_crystal(2, 3, elements=ELEMENTS, cutoff=1.0),  # no edges
        random_crystal(3, 4, elements=ELEMENTS, left_handed=True),
    ]
    together = predicted(quantity, collate(structures))
    assert_near(together, torch.cat([predicted(quantity, s) for s in structures]))


@each_readout
def test_supercell(quantity: str, crystal: Structure) -> None:
    large = rebuilt(
        crystal,
        numbers=crystal.numbers.repeat(2),
        positions=torch.cat([crystal.positions, crystal.positions + crystal.cell[0, 0]]),
        cell=crystal.cell[0] * torch.tensor([[2.0], [1.0], [1.0]]),
    )
    one = predicted(quantity, crystal)
    expected = {"dipole": 2 * one, "polarizability": 2 * one, "dielectric": one, "born": one.repeat(2, 1, 1)}
    assert_near(predicted(quantity, large), expected[quantity])


def labels(quantity: str, s: Structure) -> Tensor:
    """Something smooth and local with the right symmetry: sums over edges of products of the bond's direction."""
    vectors = edge_vectors(s)
    neighbour, centre = s.edge_index
    directions = vectors / vectors.norm(dim=1, keepdim=True)
    weight = torch.exp(-vectors.norm(dim=1)) * (s.numbers[neighbour] - 0.5 * s.numbers[centre])
    index = batch_index(s)
    pairs = weight[:, None, None] * directions[:, :, None] * directions[:, None, :]
    if quantity == "dipole":
        values = weight[:, None] * directions
        return values.new_zeros(len(s.cell), 3).index_add(0, index[centre], values)
    if quantity == "born":
        charges = pairs.new_zeros(len(index), 3, 3).index_add(0, centre, pairs)
        total = pairs.new_zeros(len(s.cell), 3, 3).index_add(0, index, charges)
        return charges - (total / torch.bincount(index)[:, None, None])[index]
    total = pairs.new_zeros(len(s.cell), 3, 3).index_add(0, index[centre], pairs)
    return total / torch.bincount(index)[:, None, None] if quantity == "dielectric" else total


@each_readout
def test_each_readout_learns(quantity: str, random_crystal) -> None:
    batch = collate([random_crystal(seed, 5, elements=ELEMENTS) for seed in range(3)])
    target = labels(quantity, batch)
    model = Model(quantity)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        optimiser.zero_grad()
        loss = (model(batch) - target).square().mean() / target.square().mean()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 * losses[0]
    assert losses[-1] < 0.1  # of what a model that says zero has


@pytest.mark.parametrize(
    ("readout", "settings", "missing"),
    [
        (DipoleReadout, {"lmax": 0}, "1o"),
        (DipoleReadout, {"tensors": False}, "1o"),
        (PolarizabilityReadout, {"lmax": 1}, "2e"),
        (BornChargeReadout, {"interactions": 1}, "1e"),
    ],
)
def test_a_backbone_that_lacks_an_irrep_is_refused(readout, settings: dict[str, int], missing: str) -> None:
    backbone = Equivariant(**{"features": 2, "lmax": 2, "interactions": 2, "tensors": True, **settings})
    with pytest.raises(ConfigError, match=rf"the backbone gives .*, without {missing}; set tensors to true, lmax") as e:
        readout(backbone.irreps_out)
    assert "\n" not in str(e.value)


def test_features_without_irreps_are_refused(crystal: Structure) -> None:
    readout = DipoleReadout("4x0e+4x1o")
    with pytest.raises(ConfigError, match="scalars only; set its tensors to true"):
        readout(crystal, AtomFeatures(torch.ones(7, 4), None))
