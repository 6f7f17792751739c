"""Heads: sums over atoms, gates of experts."""

from __future__ import annotations

import pytest
import torch

from lrpot.config import make_config
from lrpot.errors import ConfigError
from lrpot.properties.cgcnn import CGCNN
from lrpot.properties.features import CrystalFeatures
from lrpot.properties.heads import ExpertsHead, HeadOutput, SharedHead
from lrpot.structure import collate
from tests.unit.properties.crystals import CHANGES, CRYSTALS, graph


def test_extensive_targets_grow_with_the_cell_and_intensive_ones_do_not() -> None:
    torch.manual_seed(0)
    encoder, head = CGCNN(features=8, blocks=1).double().eval(), SharedHead(8, 8, [True, False]).double()
    values = []
    with torch.no_grad():
        for change in ("moved", "doubled", "eightfold"):
            structure = graph(CHANGES[change](CRYSTALS["triclinic"]()))
            found: HeadOutput = head(encoder(structure), collate([structure]))
            values.append(found.values[0])
    for times, found_values in zip((1, 2, 8), values, strict=True):
        assert float(found_values[0]) == pytest.approx(times * float(values[0][0]), rel=1e-9)
        assert float(found_values[1]) == pytest.approx(float(values[0][1]), rel=1e-9)


def experts(n: int = 6, top: int = 2, **settings: bool) -> ExpertsHead:
    torch.manual_seed(0)
    head = ExpertsHead(8, 0, [False, False, False], experts=n, top=top, **settings).double()
    torch.nn.init.normal_(head.router)
    torch.nn.init.normal_(head.noise)
    return head


@pytest.mark.parametrize("published", [False, True])
def test_gates_keep_the_best_and_add_up_to_one(published: bool) -> None:
    """But for the printed order, which drops what the softmax gave to the others."""
    head = experts(published=published).eval()
    graph_features = torch.randn(5, 8, dtype=torch.float64)
    gates, balance = head.gates(graph_features)
    assert gates.shape == (5, 3, 6)
    sums = gates.sum(dim=2)
    assert bool((sums < 1 - 1e-6).all()) if published else torch.allclose(sums, torch.ones_like(sums))
    assert bool(((gates > 0).sum(dim=2) == 2).all())
    logits = torch.einsum("gf,tfe->gte", graph_features, head.router)
    best = torch.zeros_like(gates, dtype=torch.bool).scatter(2, logits.topk(2, dim=2).indices, True)
    assert torch.equal(gates > 0, best)
    assert float(balance) == 0.0


@pytest.mark.parametrize("top", [0, 7])
def test_more_experts_than_there_are(top: int) -> None:
    with pytest.raises(ConfigError, match="choose 1 to 6"):
        experts(n=6, top=top)


def test_mixing_all_experts_is_a_plain_sum() -> None:
    """The twin: expert by expert, target by target."""
    head = experts(n=4, top=4).eval()
    structures = [graph(make()) for make in CRYSTALS.values()]
    batch = collate(structures)
    features = torch.randn(4, 8, dtype=torch.float64)
    found = head(CrystalFeatures(features, None), batch)
    for target, readout in enumerate(head.readouts):
        weights = torch.softmax(features @ head.router[target], dim=1)
        mixed = features.clone()
        for expert in range(4):
            hidden = torch.nn.functional.silu(features @ head.first[expert] + head.first_bias[expert])
            mixed += weights[:, expert, None] * (hidden @ head.second[expert] + head.second_bias[expert])
        assert torch.allclose(found.values[:, target], readout.network(mixed)[:, 0])


def test_load_is_the_chance_of_being_taken() -> None:
    """Drawn again and again, an expert is taken as often as the smooth estimate says."""
    head = experts(n=5, top=2).train()
    features = torch.randn(1, 8, dtype=torch.float64)
    clean = torch.einsum("gf,tfe->gte", features, head.router)
    spread = torch.nn.functional.softplus(torch.einsum("gf,tfe->gte", features, head.noise)) + 1e-2
    estimated, taken, n = torch.zeros(3, 5), torch.zeros(3, 5), 4000
    for _ in range(n):
        noisy = clean + torch.randn_like(clean) * spread
        estimated += head._load(clean, noisy, spread).detach().float() / n
        taken += torch.zeros(3, 5).scatter(1, noisy[0].topk(2, dim=1).indices, 1.0) / n
    assert (estimated - taken).abs().max() < 0.03


def test_balance_falls_on_experts_that_nobody_takes() -> None:
    head = experts(n=6, top=2).train()
    features = torch.randn(64, 8, dtype=torch.float64)
    _, uneven = head.gates(features)
    torch.nn.init.zeros_(head.router)
    torch.nn.init.zeros_(head.noise)
    _, even = head.gates(features)
    assert float(even.detach()) < 0.2 * float(uneven.detach())
    uneven.backward()
    assert head.router.grad is not None
    assert bool(head.router.grad.any())


def test_a_single_expert_is_refused() -> None:
    """Its balance would be a spread of one number."""
    with pytest.raises(ConfigError, match="experts = 1: choose 2 or more"):
        experts(n=1, top=1)
    with pytest.raises(ConfigError, match=r"properties\.head\.experts"):
        make_config({"task": "property", "properties": {"head": {"kind": "experts", "experts": 1, "top": 1}}})
