"""Diffraction against plain sums, its settings, and what it needs of an encoder and of a crystal."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from lrpot.config import PropertiesConfig, make_config, parse_settings, without_effect
from lrpot.data.readers import to_structure
from lrpot.errors import ConfigError, StructureError
from lrpot.kspace.lattice import half_sphere, reciprocal_cell
from lrpot.properties.build import reach_of
from lrpot.properties.diffraction import (
    ATOM_DENSITY,
    FormFactors,
    MillerDiffraction,
    ShellDiffraction,
    make_diffraction,
    miller_indices,
)
from lrpot.properties.prdnet import CrystalAttention, PRDNet
from lrpot.properties.radial_table import RadialTable, interpolation
from lrpot.structure import Structure, collate, edge_vectors
from tests.unit.properties.crystals import CRYSTALS, graph, triclinic
from tests.unit.properties.property_data import ENCODERS, small_model

K_CUTOFF = 3.0
N_CHANNELS, N_BASIS, N_SHELLS = 2, 3, 5


def shell_diffraction(atom_features: int = 4) -> ShellDiffraction:
    torch.manual_seed(0)
    found = ShellDiffraction(4, atom_features, 8, K_CUTOFF, N_CHANNELS, N_BASIS, N_SHELLS)
    return found.double().eval()


def atom_features(structure: Structure) -> torch.Tensor:
    return torch.randn(len(structure.numbers), 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def gaussian(k: float, number: int, count: int) -> float:
    """Of `count` that lie between 0 and the cutoff."""
    width = K_CUTOFF / (count - 1)
    return math.exp(-(((k - number * width) / width) ** 2))


def basis(k: float) -> torch.Tensor:
    return torch.tensor([gaussian(k, number, N_BASIS) for number in range(N_BASIS)], dtype=torch.float64)


def test_a_pattern_is_the_plain_sum() -> None:
    structure, diffraction = graph(triclinic()), shell_diffraction()
    atom = atom_features(structure)
    with torch.no_grad():
        found = diffraction.pattern(atom, structure)[0]
        coefficients = diffraction.form(atom, structure.numbers).view(-1, N_CHANNELS, N_BASIS)
    cell = structure.cell[0]
    volume = abs(float(torch.linalg.det(cell)))
    half = torch.from_numpy(half_sphere(cell.numpy(), K_CUTOFF)).double() @ reciprocal_cell(cell)
    shells = np.zeros((N_CHANNELS, N_SHELLS))
    for vector in torch.cat([half, -half]):
        k = float(vector.norm())
        turns = np.exp(1j * (structure.positions @ vector).numpy())
        amplitudes = turns @ (coefficients @ basis(k)).numpy() / volume
        within = np.array([gaussian(k, s, N_SHELLS) for s in range(N_SHELLS)]) * (1 - (k / K_CUTOFF) ** 2) ** 3
        shells += np.abs(amplitudes[:, None]) ** 2 * within
    forward = (coefficients @ basis(0.0)).sum(dim=0).numpy() / volume
    expected = np.log1p([*(shells / diffraction.usual).ravel(), *(forward / ATOM_DENSITY) ** 2])
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)


def test_the_published_pattern_is_the_plain_sum() -> None:
    structures = [graph(make()) for make in CRYSTALS.values()]
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="for comparison with the paper"):
        diffraction = make_diffraction(4, 4, variant="published", features=8, max_index=2).double()
    assert isinstance(diffraction, MillerDiffraction)
    for structure in structures:
        structure.own = atom_features(structure)
    batch = collate(structures)
    with torch.no_grad():
        found = diffraction.pattern(batch.own, batch)
        for structure, row in zip(structures, found, strict=True):
            factors = diffraction.form(structure.own, structure.numbers).numpy()
            fractional = structure.positions.numpy() @ np.linalg.inv(structure.cell[0].numpy())
            turns = 2.0 * math.pi * fractional @ miller_indices(2).T
            expected = [*(factors * np.cos(turns)).sum(axis=0), *(factors * np.sin(turns)).sum(axis=0)]
            np.testing.assert_allclose(row.numpy(), expected, rtol=1e-9, atol=1e-12)


def test_the_list_of_miller_indices() -> None:
    """As many as the paper's limit of 8 gives, each with its opposite, no multiple of another, none of zeros."""
    indices = {tuple(triple) for triple in miller_indices(8).tolist()}
    assert len(indices) == len(miller_indices(8)) == 4034
    assert all(tuple(-n for n in triple) in indices for triple in indices)
    assert not {(0, 0, 0), (2, 0, 0), (2, 4, -6)} & indices


def test_form_factors_start_at_the_scale_of_intensities() -> None:
    torch.manual_seed(0)
    form = FormFactors(64, 64, 256)
    with torch.no_grad():
        size = form(torch.randn(20, 64), torch.arange(1, 21)).square().mean().sqrt()
    assert 0.3 < float(size) < 3.0


def test_form_factors_see_the_surroundings_and_the_angle() -> None:
    """Two chlorine atoms of one crystal scatter differently, and not in one proportion at all |Q|; by elements alone,
    they are the same."""
    model = small_model(encoder="prdnet", dtype=torch.float64)
    structure = to_structure(triclinic(), model.cutoff, shells=model.shells, labels=False)
    one, other = (structure.numbers == 17).nonzero()[:, 0].tolist()
    assert isinstance(model.diffraction, ShellDiffraction)
    with torch.no_grad():
        factors = model.diffraction.form(model.encoder(structure).atom, structure.numbers)[[one, other]]
    # what is left of the one when the most of the other is taken off
    apart = factors[0] - factors[1] * (factors[0] @ factors[1]) / (factors[1] @ factors[1])
    assert float(apart.norm() / factors[0].norm()) > 1e-3
    bare = shell_diffraction(0).form(None, structure.numbers)
    assert torch.equal(bare[one], bare[other])


def test_strain_across_a_shell_of_waves() -> None:
    """A reflection that leaves the sphere takes nothing along."""
    atoms, diffraction = CRYSTALS["rock salt"](), shell_diffraction(0)
    values, numbers = [], set()
    for strain in torch.linspace(0.0, 0.1, 101).tolist():
        strained = atoms.copy()
        strained.set_cell(atoms.cell.array * (1.0 + strain), scale_atoms=True)
        structure = graph(strained)
        with torch.no_grad():
            values.append(diffraction.pattern(None, structure)[0])
        numbers.add(len(half_sphere(strained.cell.array, K_CUTOFF)))
    assert len(numbers) > 1
    jumps = torch.stack(values).diff(dim=0).abs().amax(dim=1)
    assert float(jumps.max() / jumps.median()) < 10.0


def test_attention_is_the_plain_one() -> None:
    """Edge by edge and head by head; the table of edges against the network itself."""
    torch.manual_seed(0)
    structure, encoder = graph(triclinic(), 4), PRDNet(features=8, blocks=1, heads=2, basis=16).double().eval()
    block = encoder.blocks[0]
    assert isinstance(block, CrystalAttention)
    h = torch.randn(len(structure.numbers), 8, dtype=torch.float64)
    distances = edge_vectors(structure).norm(dim=1)
    table = RadialTable(encoder._edge_features, interpolation(distances, 0.0, encoder.cutoff, h.dtype))
    with torch.no_grad():
        found = block(h, structure.edge_index, table)
        gathered = torch.zeros_like(h)
        for (j, i), distance in zip(structure.edge_index.T.tolist(), distances, strict=True):
            edge = encoder._edge_features(distance)
            query, keys = block.query(h[i]), (block.key(h[i]), block.key(h[j]), block.edge_key(edge))
            values = block.centre(h[i]) + block.neighbour(h[j]) + block.edge(edge)
            for head in range(2):
                own = slice(4 * head, 4 * head + 4)
                scores = torch.cat([query[own] * key[own] for key in keys]) / math.sqrt(12)
                gate = block.gate_norm(scores).sigmoid()
                gathered[i, own] += block.message_norm(block.message(values[12 * head : 12 * head + 12] * gate))
        b = block.balance(torch.cat([h, gathered], dim=1)).sigmoid()
        update = block.norm(block.update(gathered))
        expected = b * h + (1 - b) * update * update.sigmoid()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)  # a table of 510 rows per A


# --- beside any encoder


def properties(**settings: Any) -> PropertiesConfig:
    return make_config({"task": "property", "properties": {"targets": ["gap"], **settings}}).properties


@pytest.mark.parametrize("encoder", ENCODERS)
def test_it_stands_beside_any_encoder(encoder: str) -> None:
    """On, the head reads fused features, which waves reach; off, those of the encoder."""
    for use in ("on", "off"):
        section = {"use": use, "features": 16, "k_cutoff": 4.5}
        model = small_model(("gap", "energy"), encoder, extensive=["energy"], diffraction=section)
        structure = to_structure(triclinic(), model.cutoff, shells=model.shells, labels=False)
        assert (model.diffraction is not None) == (use == "on")
        values = model.predict(structure).values
        assert bool(values.isfinite().all())
        reach = reach_of(properties(encoder=ENCODERS[encoder], diffraction=section))
        assert (reach.wave_cutoff == 4.5) == (use == "on")
        structure.pbc[0, 2] = False
        if use == "on":
            with pytest.raises(StructureError, match="periodic in all directions"):
                model.check(structure)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_it_is_on_for_prdnet_alone_unless_it_is_said(encoder: str) -> None:
    assert properties(encoder={"name": encoder}).diffracts == (encoder == "prdnet")
    for written, diffracts in (("on", True), ("off", False), ("true", True)):
        settings = parse_settings([f"properties.diffraction.use={written}", f"properties.encoder.name={encoder}"])
        assert make_config(None, settings).properties.diffracts == diffracts


def test_all_of_it_learns() -> None:
    """Gradients of a loss reach every weight but those of elements that are not there."""
    torch.manual_seed(0)
    model = small_model(encoder="prdnet", dtype=torch.float64)
    model.diffraction.train()  # type: ignore[union-attr]
    structure = to_structure(triclinic(), model.cutoff, shells=model.shells, labels=False)
    model(structure).values.sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in model.diffraction.parameters())  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"encoder.name": "cgcnn", "diffraction.shells": 8}, "no diffraction beside this encoder"),
        ({"encoder.name": "prdnet", "diffraction.variant": "published", "diffraction.shells": 8}, "is published"),
        ({"encoder.name": "prdnet", "diffraction.max_index": 4}, "variant is invariant"),
        ({"encoder.name": "prdnet", "diffraction.shells": 8}, None),
        ({"encoder.name": "cgcnn", "diffraction.use": "off"}, None),
        ({"encoder.name": "cgcnn", "diffraction.use": "on", "diffraction.shells": 8}, None),
    ],
)
def test_settings_without_effect_are_told(settings: dict[str, Any], expected: str | None) -> None:
    config = make_config({"task": "property"}, {f"properties.{name}": value for name, value in settings.items()})
    lines = without_effect(config)
    assert lines == [] if expected is None else (len(lines) == 1 and expected in lines[0])


def test_heads_that_do_not_share_the_width_are_refused() -> None:
    with pytest.raises(ConfigError, match="features = 10 is no multiple of heads = 4"):
        PRDNet(features=10, heads=4)
    with pytest.raises(ConfigError, match="features = 10 is no multiple of heads = 4"):
        properties(encoder={"name": "prdnet", "features": 10, "heads": 4})
