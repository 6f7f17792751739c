"""Filters on waves: against the plain sum, each way against the other, and prepared for a fit against made anew."""

from __future__ import annotations

import ase.io
import pytest
import torch
from ase.build import bulk
from torch import Tensor
from torch_geometric.data import Data

from lrpot.data.cache import load_graphs
from lrpot.data.graph_builder import GraphSettings
from lrpot.data.graphs import Graphs
from lrpot.data.shells import FARTHEST
from lrpot.errors import ConfigError
from lrpot.kspace.lattice import half_sphere, reciprocal_cell
from lrpot.properties import wave_filter as module
from lrpot.properties.basis import Gaussians
from lrpot.properties.regnet import ReGNet
from lrpot.properties.wave_filter import PAIRS, pair_functions, wave_filters
from lrpot.properties.waves import envelope
from lrpot.structure import collate
from tests.unit.properties.crystals import CRYSTALS, graph, triclinic

K_CUTOFF = 3.5
N_BASIS, N_FILTERS, N_FEATURES = 6, 3, 12
BASIS = Gaussians(0.0, K_CUTOFF, N_BASIS).double()
EXACT = {"rtol": 1e-10, "atol": 1e-12}
NEIGHBOURS = 12


def crystals() -> Data:
    """Five, two of which have two atoms each."""
    return collate([graph(make()) for make in (*CRYSTALS.values(), lambda: triclinic(n=2))])


def numbers(batch: Data) -> tuple[Tensor, list[Tensor]]:
    """Features, and two filters."""
    torch.manual_seed(0)
    values = torch.randn(len(batch.numbers), N_FEATURES, dtype=torch.float64)
    return values, [torch.randn(N_BASIS, N_FILTERS, dtype=torch.float64) for _ in range(2)]


def plain(batch: Data, values: Tensor, weights: Tensor) -> Tensor:
    """u_i = 1/V sum_k w(|k|) Re e^{ik.r_i} sum_j h_j e^{-ik.r_j}, over all waves, feature by feature."""
    field = torch.zeros_like(values)
    for number, cell in enumerate(batch.cell):
        own = batch.batch == number
        half = torch.from_numpy(half_sphere(cell.numpy(), K_CUTOFF)).double() @ reciprocal_cell(cell)
        k = torch.cat([half, -half])
        w = (BASIS(k.norm(dim=1)) @ weights) * envelope(k.norm(dim=1), K_CUTOFF)[:, None]
        turn = torch.exp(1j * (batch.positions[own] @ k.T))
        for feature in range(N_FEATURES):
            sums = turn.conj().T @ values[own, feature].to(turn.dtype)
            of_group = w[:, feature * N_FILTERS // N_FEATURES]
            field[own, feature] = (turn @ (of_group * sums)).real / torch.linalg.det(cell).abs()
    return field


def choose(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    cost = {"pairs": module.Work(0.0, 0.0, 1.0), "waves": module.Work(1.0, 0.0, 0.0)}[way]
    monkeypatch.setattr(module, "work", lambda *args: cost)


@pytest.mark.parametrize("way", ["pairs", "waves"])
def test_filters_are_the_plain_sum(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    choose(monkeypatch, way)
    batch = crystals()
    values, weights = numbers(batch)
    found = wave_filters(batch, K_CUTOFF, BASIS, weights, N_FEATURES)
    for filtered, each in zip(found, weights, strict=True):
        assert torch.allclose(filtered(values), plain(batch, values, each), **EXACT)


def test_both_ways_have_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = crystals()
    values, weights = numbers(batch)
    inputs = [tensor.requires_grad_() for tensor in (values, *weights)]
    gradients = []
    for way in ("pairs", "waves"):
        choose(monkeypatch, way)
        first, second = wave_filters(batch, K_CUTOFF, BASIS, weights, N_FEATURES)
        gradients.append(torch.autograd.grad(second(first(values)).square().sum(), inputs))
    for by_pairs, by_waves in zip(*gradients, strict=True):
        assert torch.allclose(by_pairs, by_waves, **EXACT)


def test_pairs_do_not_depend_on_how_many_are_made_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = crystals()
    whole = pair_functions(batch, K_CUTOFF, BASIS, torch.float64)
    monkeypatch.setattr(module, "_CHUNK", 1)
    assert torch.allclose(pair_functions(batch, K_CUTOFF, BASIS, torch.float64), whole, **EXACT)


def test_the_way_with_less_work_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    for name in ("pair_functions", "waves"):
        original = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *args, name=name, original=original: (taken.append(name), original(*args))[1]
        )
    weights = [torch.randn(N_BASIS, N_FILTERS)] * 3
    for atoms in (triclinic(), bulk("Cu", "fcc", a=3.6, cubic=True).repeat(4)):
        wave_filters(graph(atoms), K_CUTOFF, Gaussians(0.0, K_CUTOFF, N_BASIS), weights, n_features=126)
    assert taken == ["pair_functions", "waves"]


# --- prepared for a fit


def network() -> ReGNet:
    torch.manual_seed(0)
    found = ReGNet(features=16, waves=16, blocks=2).double()
    for block in found.filters:
        torch.nn.init.normal_(block.last.weight)
    return found


def outcome(encoder: ReGNet, batch: Data) -> list[Tensor]:
    """Features, and gradients of all parameters."""
    found = encoder(batch)
    gradients = torch.autograd.grad(found.graph.square().sum() + found.atom.square().sum(), list(encoder.parameters()))
    return [found.graph.detach(), found.atom.detach(), *gradients]


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() <= 1e-12 * max(1.0, float(b.abs().max()))


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Graphs:
    path = tmp_path_factory.mktemp("crystals") / "crystals.extxyz"
    ase.io.write(path, [make() for make in CRYSTALS.values()] + [triclinic(seed=1)])
    return Graphs([load_graphs(path, GraphSettings(FARTHEST, shells=NEIGHBOURS))])


@pytest.mark.parametrize("way", ["pairs", "waves"])
def test_prepared_batches_give_the_same(way: str, graphs: Graphs, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, places = network(), [3, 0, 4, 1, 2]
    choose(monkeypatch, way)
    expected = outcome(encoder, graphs.select(places).batch(range(5)))
    choose(monkeypatch, "pairs")
    chosen = graphs.select(places)
    chosen.attach(encoder.prepared(structure) for structure in chosen)
    for batch in (chosen.batch(range(5)), collate(list(chosen))):
        assert len(batch[PAIRS]) == int((chosen.atoms.astype(int) ** 2).sum())
        # what was prepared must do: there is no other way to them
        with monkeypatch.context() as patch:
            patch.delattr(module, "pair_functions")
            patch.delattr(module, "waves")
            assert_same(outcome(encoder, batch), expected)


@pytest.mark.parametrize(
    ("name", "value"),
    [("MOST_PAIRS", 4), ("work", lambda structure, *args: module.Work(0.0, len(structure.numbers) ** 2, 4.0))],
    ids=["too large", "waves are less work"],
)
def test_a_crystal_without_pairs_takes_none_of_its_batch(
    name: str, value: object, graphs: Graphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, chosen = network(), graphs.select(range(5))
    expected = outcome(encoder, chosen.batch(range(5)))
    with monkeypatch.context() as patch:
        patch.setattr(module, name, value)
        chosen.attach(encoder.prepared(structure) for structure in chosen)
    assert [len(structure[PAIRS]) for structure in chosen] == [n * n if n <= 2 else 0 for n in chosen.atoms.tolist()]
    assert_same(outcome(encoder, chosen.batch(range(5))), expected)


def test_networks_without_filters_prepare_nothing() -> None:
    structure = graph(triclinic())
    assert ReGNet(features=8, blocks=1, reciprocal=False).prepared(structure) == {}
    with pytest.warns(UserWarning, match="for comparison with the paper"):
        assert ReGNet(features=8, waves=8, blocks=1, variant="threewave").prepared(structure) == {}


def test_a_width_that_filters_cannot_share() -> None:
    with pytest.raises(ConfigError, match="waves = 20 is no multiple of its 8 filters"):
        ReGNet(features=16, waves=20)
