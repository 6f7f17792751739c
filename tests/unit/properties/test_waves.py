"""Sums over waves against plain ones."""

from __future__ import annotations

import pytest
import torch

from lrpot.errors import StructureError
from lrpot.kspace.lattice import half_sphere, reciprocal_cell
from lrpot.properties.waves import waves
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


def test_a_molecule_is_refused() -> None:
    structure = graph(triclinic())
    structure.pbc[0, 2] = False
    with pytest.raises(StructureError, match="periodic in all directions"):
        waves(structure, K_CUTOFF, torch.float64)
