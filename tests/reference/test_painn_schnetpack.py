"""Our PaiNN with the cosine cutoff is SchNetPack's, weight for weight; SchNetPack is in the extra `peers`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.utils.data.dataloader
from torch import Tensor, nn

from lrpot.backbones import PaiNN
from lrpot.structure import MAX_ATOMIC_NUMBER, Structure, collate, edge_vectors

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}  # relative to the largest number
CUTOFF = 4.0  # A
FEATURES, INTERACTIONS, RADIAL_BASIS = 16, 3, 12


def both(schnetpack, dtype: torch.dtype) -> tuple[PaiNN, nn.Module]:
    """Our network and SchNetPack's with the same random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        ours = PaiNN(FEATURES, INTERACTIONS, RADIAL_BASIS, CUTOFF, cutoff_function="cosine", epsilon=1e-8)
        for parameter in ours.parameters():
            if parameter.ndim == 1:
                nn.init.normal_(parameter, std=0.2)  # biases start at zero and would hide
    theirs = schnetpack.representation.PaiNN(
        FEATURES,
        INTERACTIONS,
        schnetpack.nn.GaussianRBF(n_rbf=RADIAL_BASIS, cutoff=CUTOFF),
        schnetpack.nn.CosineCutoff(CUTOFF),
        max_z=MAX_ATOMIC_NUMBER + 1,
    )
    ours, theirs = ours.to(dtype), theirs.to(dtype)
    basis = {"centres"}
    copied = {name: value for name, value in ours.state_dict().items() if name not in basis}
    missing = theirs.load_state_dict(copied, strict=False)
    assert missing.unexpected_keys == []
    assert set(missing.missing_keys) == {"radial_basis.widths", "radial_basis.offsets", "cutoff_fn.cutoff"}
    # SchNetPack computes these in float32, ours the width in float64: the same numbers for both
    torch.testing.assert_close(theirs.radial_basis.offsets, ours.centres, rtol=1e-6, atol=1e-6)
    assert theirs.radial_basis.widths.tolist() == pytest.approx([ours.width] * RADIAL_BASIS, rel=1e-6)
    theirs.radial_basis.offsets.copy_(ours.centres)
    theirs.radial_basis.widths.fill_(ours.width)
    return ours, theirs


def features(schnetpack, structure: Structure, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Scalars, vectors and the gradient of a fixed function of both by the positions: ours, then theirs."""
    ours, theirs = both(schnetpack, dtype)
    names = schnetpack.properties
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(structure.num_nodes, n, FEATURES, generator=generator, dtype=dtype) for n in (1, 3)]
    for which in ("ours", "theirs"):
        moved = structure.clone()
        moved.positions = moved.positions.clone().requires_grad_()
        vectors = edge_vectors(moved).to(dtype)
        if which == "ours":
            scalar, vector, _ = ours(moved, vectors)
        else:
            neighbour, centre = moved.edge_index
            output = theirs({names.Z: moved.numbers, names.Rij: vectors, names.idx_i: centre, names.idx_j: neighbour})
            scalar, vector = output["scalar_representation"], output["vector_representation"]
        total = (weights[0][:, 0] * scalar).sum() + (weights[1] * vector).sum()
        (gradient,) = torch.autograd.grad(total, moved.positions)
        yield scalar.detach(), vector.detach(), gradient


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("left_handed", [False, True])
def test_features_and_gradients_are_the_same(schnetpack, dtype: torch.dtype, left_handed: bool, random_crystal) -> None:
    s = random_crystal(11, 10, elements=(11, 17, 8), left_handed=left_handed)
    ours, theirs = features(schnetpack, s, dtype)
    for name, one, other in zip(("scalar", "vector", "gradient"), ours, theirs, strict=True):
        scale = float(other.abs().max())
        assert scale > 0.1, name
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        # the positions are in float64, but the gradient came through `dtype`
        assert float((one - other).abs().max()) < TOLERANCE[dtype] * scale, name


def test_batches_and_atoms_without_neighbours_are_the_same(schnetpack, random_crystal) -> None:
    batch = collate([random_crystal(1, 5), random_crystal(2, 3, cutoff=1.0), random_crystal(3, 7)])
    assert not torch.isin(torch.arange(5, 8), batch.edge_index).any()
    ours, theirs = features(schnetpack, batch, torch.float64)
    for one, other in zip(ours, theirs, strict=True):
        assert float((one - other).abs().max()) < TOLERANCE[torch.float64] * float(other.abs().max())


def test_smooth_cutoff_is_another_function(schnetpack, random_crystal) -> None:
    """The comparison above can fail: another cutoff function is seen."""
    s = random_crystal(11, 10)
    cosine, _ = both(schnetpack, torch.float64)
    smooth = PaiNN(FEATURES, INTERACTIONS, RADIAL_BASIS, CUTOFF, epsilon=1e-8).double()
    smooth.load_state_dict(cosine.state_dict())
    difference = (smooth(s, edge_vectors(s)).scalar - cosine(s, edge_vectors(s)).scalar).abs().max()
    assert float(difference.detach()) > 1e-3
