"""CrysToGraph: beside a plain implementation of its equations, and what each of its parts is for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from torch import nn

from benchmarks.plain_crystograph import PlainCrysToGraph
from lrpot.errors import ConfigError
from lrpot.properties.crystograph import CrysToGraph
from lrpot.properties.walks import EIGENVECTORS, STEPS, published_encoding, walk_returns
from lrpot.structure import Structure, collate, make_structure
from tests.unit.properties.crystals import CRYSTALS, doubled, graph, triclinic
from tests.unit.properties.test_symmetry import change_of, ready

# Of float64, over a few layers.
EXACT = 1e-10


# --- beside the equations as they are printed


def twins(**settings: int) -> tuple[CrysToGraph, PlainCrysToGraph]:
    torch.manual_seed(0)
    fast = ready(lambda: CrysToGraph(features=16, blocks=2, edge_features=12, **settings))
    plain = PlainCrysToGraph(fast).double().eval()
    for name, parameter in plain.named_parameters():
        if "norm" in name or name.endswith("bias"):
            nn.init.uniform_(parameter, 0.5, 1.5)
    plain.put_into_shared()
    return fast, plain


def batch_of_all() -> Structure:
    return collate([graph(make()) for make in (*CRYSTALS.values(), lambda: triclinic(1, 4))])


@pytest.mark.parametrize("training", [False, True])
def test_it_is_what_its_equations_say(training: bool) -> None:
    """Also in training, where norms are of the batch: padding has no part in them."""
    fast, plain = twins()
    batch = batch_of_all()
    found, expected = fast.train(training)(batch), plain.train(training)(batch)
    torch.testing.assert_close(found.graph, expected.graph, rtol=EXACT, atol=EXACT)
    torch.testing.assert_close(found.atom, expected.atom, rtol=EXACT, atol=EXACT)


def test_gradients_are_those_of_the_equations() -> None:
    fast, plain = twins()
    batch = batch_of_all()
    found = []
    for network in (fast, plain):
        fast.zero_grad()
        features = network(batch).graph
        (features * torch.linspace(-1, 1, features.numel()).reshape(features.shape).double()).sum().backward()
        found.append([fast.embedding.linear.weight.grad.clone(), fast.edge.weight.grad.clone()])
    for one, other in zip(*found, strict=True):
        assert float(one.abs().max()) > 1e-3
        torch.testing.assert_close(one, other, rtol=1e-8, atol=EXACT)


# --- parts


def test_attention_adds_up_to_one_and_a_larger_cell_shares_it() -> None:
    encoder = ready(lambda: CrysToGraph(features=16, blocks=1, edge_features=12, layers=2))
    with torch.no_grad():
        one, two = (encoder.attention(graph(atoms)) for atoms in (triclinic(), doubled(triclinic())))
    assert one.shape == (2, 8, 5, 5)
    torch.testing.assert_close(one.sum(dim=3), torch.ones(2, 8, 5, dtype=torch.float64))
    torch.testing.assert_close(two[:, :, :5, :5], one / 2, rtol=1e-8, atol=EXACT)
    assert float(one.std()) > 1e-3


def test_attention_that_is_shown_is_the_one_at_work() -> None:
    encoder = ready(lambda: CrysToGraph(features=16, blocks=1, edge_features=12))
    (layer,) = encoder.layers
    structure = graph(triclinic())
    x = torch.randn(5, 16, dtype=torch.float64)
    value = layer._split(layer.query_key_value(x)[None])[2][0]
    mixed = (layer.weights(x) @ value).transpose(0, 1).flatten(1)
    expected = layer.forth(x + layer.norm(layer.last(mixed)))
    torch.testing.assert_close(layer(x, structure), expected, rtol=EXACT, atol=EXACT)


def test_the_sum_of_the_released_code_depends_on_the_cell() -> None:
    """A little: the norm that follows divides by its size, up to its epsilon."""
    with pytest.warns(UserWarning, match="for comparison with the paper"):
        encoder = ready(lambda: CrysToGraph(features=16, blocks=2, edge_features=12, variant="released"))
    assert 1e-8 < change_of(encoder, "triclinic", "doubled") < 1e-3
    assert change_of(encoder, "triclinic", "permuted") < 1e-9


def test_an_atom_alone() -> None:
    alone = graph(Atoms("He", positions=[[0.0, 0.0, 0.0]]))
    assert not alone.edge_index.numel()
    encoder = ready(lambda: CrysToGraph(features=16, blocks=2, edge_features=12))
    with torch.no_grad():
        together = encoder(collate([alone, graph(triclinic())])).graph
        torch.testing.assert_close(together[:1], encoder(alone).graph, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"encoding": "fourier"}, "encoding = 'fourier'; choose one of none"),
        ({"features": 20}, "no multiple of heads = 8"),
    ],
)
def test_settings_that_make_no_network(settings: dict[str, object], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        CrysToGraph(**settings)  # type: ignore[arg-type]


# --- positional encodings


def walked(structure: Structure, steps: int) -> np.ndarray:
    """(N, steps) returns, step by step through a table of all places."""
    neighbour, centre = structure.edge_index.tolist()
    shifts = [tuple(map(int, shift)) for shift in structure.edge_shift.tolist()]
    leaving: dict[int, list[tuple[int, tuple[int, ...]]]] = {}
    for i, j, shift in zip(centre, neighbour, shifts, strict=True):
        leaving.setdefault(i, []).append((j, shift))
    found = np.zeros((len(structure.numbers), steps))
    for atom in range(len(found)):
        places = {(atom, (0, 0, 0)): 1.0}
        for step in range(steps):
            reached: dict[tuple[int, tuple[int, ...]], float] = {}
            for (i, image), probability in places.items():
                for j, shift in leaving.get(i, []):
                    place = j, tuple(a + b for a, b in zip(image, shift, strict=True))
                    reached[place] = reached.get(place, 0.0) + probability / len(leaving[i])
            places = reached
            found[atom, step] = places.get((atom, (0, 0, 0)), 0.0)
    return found


def test_returns_of_walks_are_those_of_walking() -> None:
    structure = graph(triclinic(n=3), neighbours=4)
    np.testing.assert_allclose(walk_returns(structure).numpy(), walked(structure, STEPS), rtol=1e-12, atol=1e-15)


def test_returns_that_are_known() -> None:
    """fcc: 12 neighbours, each of which has 4 in common; there is no return at once."""
    found = walk_returns(graph(bulk("Cu", "fcc", a=3.6)))[0]
    np.testing.assert_allclose(found[:3].numpy(), [0.0, 1 / 12, 48 / 12**3], rtol=1e-12)


def test_walks_where_nothing_is_near() -> None:
    structure = make_structure([2], [[0.0, 0.0, 0.0]], np.zeros((3, 3)), [False] * 3)
    structure.edge_index, structure.edge_shift = torch.zeros(2, 0, dtype=torch.int64), torch.zeros(0, 3).double()
    assert not walk_returns(structure).any()
    assert published_encoding(structure).shape == (1, 40)


def test_an_encoding_that_was_prepared_is_the_one_found() -> None:
    encoder = ready(lambda: CrysToGraph(features=16, blocks=1, edge_features=12, encoding="bloch"))
    structures = [graph(make()) for make in CRYSTALS.values()]
    with torch.no_grad():
        expected = encoder(collate(structures)).graph
        for structure in structures:
            (structure.place,) = encoder.prepared(structure).values()
        size = sum(structure.place.nbytes for structure in structures)
        assert encoder.prepared_size(np.array([len(s.numbers) for s in structures])) == size
        torch.testing.assert_close(encoder(collate(structures)).graph, expected, rtol=EXACT, atol=EXACT)
        structures[0].place = structures[0].place + 1.0
        assert not torch.allclose(encoder(collate(structures)).graph[0], expected[0], rtol=1e-3)


def test_what_the_published_encoding_breaks() -> None:
    """It depends on the cell; and an eigenvector times -1 is one too, but gives other features."""
    with pytest.warns(UserWarning, match="for comparison with the paper"):
        encoder = ready(lambda: CrysToGraph(features=16, blocks=2, edge_features=12, encoding="published"))
    assert change_of(encoder, "triclinic", "doubled") > 1e-4
    assert change_of(encoder, "triclinic", "rotated") < 1e-9
    structure = graph(triclinic())
    with torch.no_grad():
        expected = encoder(structure).graph
        structure.place = published_encoding(structure)
        torch.testing.assert_close(encoder(structure).graph, expected, rtol=EXACT, atol=EXACT)
        structure.place[:, 0] *= -1.0
        assert float((encoder(structure).graph - expected).abs().max()) > 1e-4


def test_signs_of_eigenvectors_are_drawn_in_training() -> None:
    with pytest.warns(UserWarning, match="for comparison with the paper"):
        encoder = CrysToGraph(features=16, blocks=1, edge_features=12, encoding="published")
    structure = graph(triclinic())
    own = published_encoding(structure).float()
    torch.manual_seed(0)
    drawn = encoder.train()._places(structure)
    torch.testing.assert_close(drawn.abs(), own.abs())
    torch.testing.assert_close(drawn[:, EIGENVECTORS:], own[:, EIGENVECTORS:])
    signs = (drawn / own)[:, : len(own) - 1]
    assert {float(sign) for sign in signs.flatten()} == {-1.0, 1.0}
    torch.testing.assert_close(encoder.eval()._places(structure), own)
