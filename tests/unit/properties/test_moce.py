"""MoCE: sums over images and over angles beside plain loops, the dynamic graph, gates and where they are told."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from numpy.polynomial.legendre import Legendre
from torch.nn.functional import elu, softplus

from lrpot.config import make_config
from lrpot.data.readers import to_structure
from lrpot.errors import ConfigError
from lrpot.properties.angles import NeighbourAngles
from lrpot.properties.basis import Gaussians
from lrpot.properties.evaluation import evaluate_properties, gates_text
from lrpot.properties.images import ONSET, Images
from lrpot.properties.moce import CHANGE, NARROW, WIDEST, DynamicGraph, ImageAttention, MoCE
from lrpot.properties.model import PropertyEnsemble
from lrpot.smooth import taper
from lrpot.structure import Structure, edge_vectors
from tests.unit.properties.crystals import triclinic
from tests.unit.properties.property_data import salts, small_model

REACH = 4.5
CLOSE = {"rtol": 1e-10, "atol": 1e-12}


@pytest.fixture
def crystal() -> Structure:
    return to_structure(triclinic(), REACH)


@pytest.fixture
def images(crystal: Structure) -> Images:
    return Images(crystal, REACH, torch.float64)


@pytest.fixture
def x() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(5, 8, dtype=torch.float64)


def seen_from(crystal: Structure, atom: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of the images that an atom sees, itself last: which atoms they are, where, and their weights."""
    own = crystal.edge_index[1] == atom
    vectors = torch.cat([edge_vectors(crystal)[own], torch.zeros(1, 3)])
    neighbour = torch.cat([crystal.edge_index[0][own], torch.tensor([atom])])
    return neighbour, vectors, taper(vectors.norm(dim=1), REACH, ONSET)


@pytest.mark.parametrize("learned_distance", [False, True])
def test_attention_is_the_plain_sum_over_all_images(
    learned_distance: bool, crystal: Structure, images: Images, x: torch.Tensor
) -> None:
    """Equations (3) and (6) of the paper, image by image."""
    attention, basis = ImageAttention(8, 2, 6, learned_distance).double(), Gaussians(0.0, REACH, 6).double()
    found = attention(x, images, basis(images.distance))
    query, key, value = attention.parts(x)
    inverse_square = ((1.0 - WIDEST) * elu(CHANGE * attention.width(x) / (1.0 - WIDEST)) + 1.0) / NARROW**2
    for atom in range(5):
        neighbour, vectors, weights = seen_from(crystal, atom)
        r = vectors.norm(dim=1)
        e, theta, seen = basis(r), r[:, None] ** 2, value[neighbour]
        if attention.theta is not None:
            theta = softplus(attention.slope) * theta + attention.theta(e)
        if attention.encode is not None:
            seen = seen + torch.einsum("je,hed->jhd", e, attention.encode)
        logits = (query[atom] * key[neighbour]).sum(dim=2) / 2.0 - theta * inverse_square[atom] / 2.0
        a = weights[:, None] * logits.exp()
        expected = attention.last(torch.einsum("jh,jhd->hd", a / a.sum(dim=0), seen).flatten())
        torch.testing.assert_close(found[atom], expected, **CLOSE)


def test_angles_are_means_of_legendre_polynomials(crystal: Structure, images: Images, x: torch.Tensor) -> None:
    angles = NeighbourAngles(8, degree=4).double()
    found = angles(x, images, crystal)
    for atom in range(5):
        neighbour, vectors, weights = seen_from(crystal, atom)
        r = vectors.norm(dim=1)[:, None]
        w = weights[:, None] * (angles.score(x)[neighbour] - r**2 / (2.0 * angles.log_width.exp() ** 2)).exp()
        w = (w / w.sum(dim=0))[:-1].detach().numpy()
        units = (vectors / r)[:-1].numpy()
        cosines = units @ units.T
        polynomials = [Legendre.basis(order)(cosines) @ w for order in range(1, 5)]
        row = found[atom, images.distance[atom] > 0].detach().numpy()
        np.testing.assert_allclose(row, np.concatenate(polynomials, axis=1), rtol=1e-9, atol=1e-12)


def test_the_dynamic_graph_drops_weak_connections(images: Images, x: torch.Tensor) -> None:
    graph = DynamicGraph(8, 1, threshold=0.4, published=False).double()
    torch.nn.init.constant_(graph.static, -50.0)  # nothing but the graph that is learned
    x = 2.0 * x
    query, key, value = graph.parts(x)
    softmax = torch.softmax(torch.einsum("ihd,jhd->ij", query, key) / 8**0.5, dim=1)
    share = softmax / softmax.max(dim=1, keepdim=True).values
    assert 0 < int((share < 0.4).sum()) < share.numel() - 5
    kept = torch.relu(share - 0.4)
    expected = graph.last((kept / kept.sum(dim=1, keepdim=True)) @ value[:, 0])
    torch.testing.assert_close(graph(x, images, x), expected, **CLOSE)


def test_an_image_that_comes_into_reach_comes_without_a_step() -> None:
    torch.manual_seed(0)
    encoder = MoCE(features=8, heads=2, blocks=2, reach=4.0, basis=8).double().eval()
    values = []
    for distance in (4.0 - 1e-5, 4.0 + 1e-5):
        pair = Atoms("NaCl", positions=[[0, 0, 0], [distance, 0, 0]], cell=[20.0] * 3, pbc=True)
        values.append(encoder(to_structure(pair, 4.0)).graph)
    far = encoder(to_structure(Atoms("NaCl", positions=[[0, 0, 0], [3, 0, 0]], cell=[20.0] * 3, pbc=True), 4.0)).graph
    torch.testing.assert_close(values[0], values[1], rtol=0.0, atol=1e-12)
    assert float((far - values[0]).detach().abs().max()) > 1e-4


def test_atoms_without_neighbours_have_features() -> None:
    encoder = MoCE(features=8, heads=2, blocks=1, reach=4.0, basis=8).eval()
    found = encoder(to_structure(Atoms("Ar", cell=[20.0] * 3, pbc=True), 4.0))
    assert bool(found.graph.isfinite().all())
    found.graph.sum().backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in encoder.parameters())


def test_features_are_those_of_the_experts_mixed_by_gates() -> None:
    model = small_model(encoder="moce", dtype=torch.float64)
    structure = to_structure(triclinic(), model.cutoff)
    with torch.no_grad():
        whole = model.encoder(structure)
    alone = []
    for expert in range(3):
        with torch.no_grad():  # a gate that takes one of them
            model.encoder.gate[-1].weight.zero_()
            model.encoder.gate[-1].bias.copy_(100.0 * torch.eye(3)[expert])
            alone.append(model.encoder(structure).graph)
    torch.testing.assert_close(whole.gates.sum(dim=1), torch.ones(1, dtype=torch.float64))
    assert float(whole.gates.min()) > 0.0
    torch.testing.assert_close(whole.graph, whole.gates @ torch.cat(alone), **CLOSE)
    assert float(torch.cdist(torch.cat(alone), torch.cat(alone)).max()) > 0.1


def test_an_evaluation_tells_the_gates() -> None:
    members = [small_model(encoder="moce", seed=seed, dtype=torch.float64) for seed in range(2)]
    structures = [to_structure(atoms, members[0].cutoff) for atoms in salts(4)]
    found, other = (evaluate_properties(member, structures) for member in members)
    gates = torch.cat([members[0].encoder(structure).gates for structure in structures]).detach()
    assert found.experts == ("angles", "distances", "dynamic graph")
    np.testing.assert_allclose(found.encoder_gates, gates.numpy(), rtol=1e-10)
    usage = found.gate_usage()
    for place, name in enumerate(found.experts):
        assert usage[name]["mean"] == pytest.approx(float(gates[:, place].mean()))
        assert usage[name]["spread"] == pytest.approx(float(gates[:, place].std(correction=0)))
    assert f"distances {usage['distances']['mean']:.2f} +- " in gates_text(found)
    joined = evaluate_properties(PropertyEnsemble(members).eval(), structures)
    np.testing.assert_allclose(joined.encoder_gates, (found.encoder_gates + other.encoder_gates) / 2)  # type: ignore[operator]
    assert evaluate_properties(small_model(), structures).gate_usage() == {}


def test_widths_that_heads_cannot_share_are_refused() -> None:
    with pytest.raises(ConfigError, match="features = 10 is no multiple of heads = 4"):
        MoCE(features=10, heads=4)
    with pytest.raises(ConfigError, match="features = 10 is no multiple of heads = 4"):
        make_config({"properties": {"encoder": {"name": "moce", "features": 10, "heads": 4}}})
    with pytest.raises(ConfigError, match="moce: variant = 'printed'; choose one of invariant, published"):
        MoCE(variant="printed")
