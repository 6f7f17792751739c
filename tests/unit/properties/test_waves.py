"""Sums over waves against plain ones, and both ways of a filter against each other."""

from __future__ import annotations

import pytest
import torch
from ase.build import bulk

from lrpot.errors import StructureError
from lrpot.kspace.lattice import half_sphere, reciprocal_cell
from lrpot.properties import waves as module
from lrpot.properties.basis import Gaussians
from lrpot.properties.waves import envelope, wave_filter, wave_pairs, waves
from lrpot.structure import collate
from tests.unit.properties.crystals import CRYSTALS, graph, triclinic

K_CUTOFF = 3.5


def batch():
    return collate([graph(make()) for make in CRYSTALS.values()])


def test_sums_are_the_plain_ones() -> None:
    crystals = batch()
    values = torch.randn(len(crystals.numbers), 3, dtype=torch.float64)
    found = waves(crystals, K_CUTOFF, torch.float64)
    cosines, sines = found.sums(values)
    for number in range(len(crystals.cell)):
        own = crystals.batch == number
        indices = torch.from_numpy(half_sphere(crystals.cell[number].numpy(), K_CUTOFF)).double()
        k = indices @ reciprocal_cell(crystals.cell[number])
        phases = k @ crystals.positions[own].T
        n = len(k)
        assert torch.allclose(cosines[number, :n], phases.cos() @ values[own])
        assert torch.allclose(sines[number, :n], phases.sin() @ values[own])
        assert torch.allclose(found.k[number, :n], k.norm(dim=1))
        assert not found.weight[number, n:].any()


def test_both_ways_of_a_filter_agree() -> None:
    crystals, basis = batch(), Gaussians(0.0, K_CUTOFF, 6).double()
    torch.manual_seed(0)
    values, filters, mix = (
        torch.randn(*shape, dtype=torch.float64) for shape in ((len(crystals.numbers), 4), (6, 3), (3, 4))
    )
    pairs = wave_pairs(crystals, K_CUTOFF, basis, torch.float64).filtered(values, filters, mix)
    found = waves(crystals, K_CUTOFF, torch.float64)
    w = basis(found.k) @ filters @ mix
    w = w * (found.weight * envelope(found.k, K_CUTOFF) / found.volume[:, None])[..., None]
    assert torch.allclose(found.filtered(values, w), pairs, rtol=1e-10, atol=1e-12)


def test_the_way_with_less_work_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    for name in ("wave_pairs", "waves"):
        original = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *args, name=name, original=original: (taken.append(name), original(*args))[1]
        )
    basis = Gaussians(0.0, K_CUTOFF, 32)
    for atoms in (triclinic(), bulk("Cu", "fcc", a=3.6, cubic=True).repeat(4)):
        wave_filter(graph(atoms), K_CUTOFF, basis, torch.float32, rank=8, features=384)
    assert taken == ["wave_pairs", "waves"]


def test_a_molecule_is_refused() -> None:
    structure = graph(triclinic())
    structure.pbc[0, 2] = False
    with pytest.raises(StructureError, match="periodic in all directions"):
        waves(structure, K_CUTOFF, torch.float64)
