"""Sums over waves against plain ones."""

from __future__ import annotations

import pytest
import torch
from ase.build import bulk

from lrpot.errors import StructureError
from lrpot.kspace.lattice import half_sphere, reciprocal_cell
from lrpot.properties import evaluation, wave_filter
from lrpot.properties.basis import Gaussians
from lrpot.properties.diffraction import ShellDiffraction
from lrpot.properties.waves import MOST_PADDING, expected_waves, phases, waves
from lrpot.properties.yu import ReciprocalDescriptor, ReciprocalPotential
from lrpot.structure import collate
from tests.unit.properties.crystals import CRYSTALS, graph, triclinic

K_CUTOFF = 3.5


def one_by_one(crystals):
    """Of each crystal its block, its place there, and its number."""
    return [
        (block, place, number)
        for block in waves(crystals, K_CUTOFF, torch.float64)
        for place, number in enumerate(block.crystals.tolist())
    ]


def batch():
    return collate([graph(make()) for make in CRYSTALS.values()])


def test_sums_are_the_plain_ones() -> None:
    crystals = batch()
    values = torch.randn(len(crystals.numbers), 3, dtype=torch.float64)
    assert sorted(number for _, _, number in one_by_one(crystals)) == list(range(len(crystals.cell)))
    for found, place, number in one_by_one(crystals):
        cosines, sines = found.sums(values)
        own = crystals.batch == number
        indices = torch.from_numpy(half_sphere(crystals.cell[number].numpy(), K_CUTOFF)).double()
        k = indices @ reciprocal_cell(crystals.cell[number])
        angles = k @ crystals.positions[own].T
        n = len(k)
        assert torch.allclose(cosines[place, :n], angles.cos() @ values[own])
        assert torch.allclose(sines[place, :n], angles.sin() @ values[own])
        assert torch.allclose(found.k[place, :n], k.norm(dim=1))
        assert not found.weight[place, n:].any()


def mixed():
    """Small crystals on both sides of a large one."""
    salt = bulk("NaCl", "rocksalt", a=5.6)
    large = salt.repeat((4, 3, 3))
    large.rattle(0.05, seed=0)
    return collate([graph(atoms) for atoms in (salt, salt, large, triclinic(), salt)])


def test_a_large_crystal_does_not_make_small_ones_dear() -> None:
    crystals = mixed()
    blocks = waves(crystals, K_CUTOFF, torch.float64)
    needed = sum(angles.numel() for angles, _ in phases(crystals, K_CUTOFF))
    assert sum(block.cosine.numel() for block in blocks) <= MOST_PADDING * needed
    assert len(blocks) > 1


def test_blocks_are_what_padding_all_to_one_size_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Filters, descriptors and patterns, with their gradients, in double precision."""
    crystals = mixed()
    torch.manual_seed(0)
    modules = [kind().double() for kind in (ReciprocalDescriptor, ReciprocalPotential, lambda: ShellDiffraction(4, 0))]
    values = torch.randn(len(crystals.numbers), 6, dtype=torch.float64, requires_grad=True)
    each = torch.randn(8, 3, dtype=torch.float64, requires_grad=True)
    basis = Gaussians(0.0, K_CUTOFF, 8).double()
    monkeypatch.setattr(wave_filter, "work", lambda *args: wave_filter.Work(1.0, 0.0, 0.0))

    def everything() -> list[torch.Tensor]:
        found = [wave_filter.wave_filters(crystals, K_CUTOFF, basis, [each], 6)[0](values)]
        inputs = [values, each]
        for module in modules:
            found.append(module.pattern(None, crystals) if isinstance(module, ShellDiffraction) else module(crystals))
            inputs += [weight for weight in module.parameters() if weight.requires_grad]
        gradients = torch.autograd.grad(
            sum(part.square().sum() for part in found), inputs, allow_unused=True, materialize_grads=True
        )
        return [*found, *gradients]

    in_blocks = everything()
    monkeypatch.setattr("lrpot.properties.waves.MOST_PADDING", 10**9)
    assert len(waves(crystals, K_CUTOFF, torch.float64)) == 1
    padded = everything()
    for one, other in zip(in_blocks, padded, strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-9 * float(other.detach().abs().max()))


def test_evaluation_bounds_the_phases_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Crystals go on in their order; one that is too large goes alone; without waves nothing is counted."""
    structures = mixed().to_data_list()
    sizes = [float(expected_waves(s, K_CUTOFF)) * s.num_nodes for s in structures]
    monkeypatch.setattr(evaluation, "MAX_PHASES", 2.5 * sizes[0])
    groups = list(evaluation._groups(structures, K_CUTOFF))
    assert [s.num_nodes for group in groups for s in group] == [s.num_nodes for s in structures]
    assert [len(group) for group in groups][:2] == [2, 1]
    of = iter(sizes)
    for group in groups:
        total = sum(next(of) for _ in group)
        assert len(group) == 1 or total <= 2.5 * sizes[0]
    assert [len(group) for group in evaluation._groups(structures, 0.0)] == [5]


def test_a_molecule_is_refused() -> None:
    structure = graph(triclinic())
    structure.pbc[0, 2] = False
    with pytest.raises(StructureError, match="periodic in all directions"):
        waves(structure, K_CUTOFF, torch.float64)
