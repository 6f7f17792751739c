"""Pretraining: what is hidden, that it is learned, and that nothing of it comes from rows that do not train."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lrpot import fit
from lrpot.config import make_config, without_effect
from lrpot.data.readers import to_structure
from lrpot.errors import ConfigError
from lrpot.model_file import load_model
from lrpot.structure import collate
from lrpot.training.pretraining import CHOSEN, HIDDEN, REPLACED, MaskedAtoms
from tests.unit.properties import property_data
from tests.unit.properties.property_data import ENCODERS, salts, small_model, write_table

without_pictures = pytest.fixture(autouse=True)(property_data.no_pictures)

ELEMENTS = [3, 9, 11, 17, 19, 35, 37, 53, 55]
SMALL: dict[str, Any] = {
    "task": "property",
    **{f"properties.encoder.{name}": value for name, value in ENCODERS["crystograph"].items()},
    "training.max_epochs": 1,
    "training.pretrain_epochs": 2,
    "training.batch_size": 8,
}


def module(encoder: str = "crystograph", elements: list[int] = ELEMENTS) -> MaskedAtoms:
    torch.manual_seed(0)
    model = small_model(encoder=encoder)
    return MaskedAtoms(model, make_config(None, {"task": "property"}).training, elements)


def batch_of(own: MaskedAtoms, n: int = 24) -> Any:
    structures = [to_structure(atoms, own.model.cutoff, shells=own.model.shells, labels=False) for atoms in salts(n)]
    return collate(structures)


def weights(run: Path, stage: int) -> dict[str, torch.Tensor]:
    return load_model(run / "stages" / f"{stage}.pt").state_dict()


def test_shares_of_what_is_hidden() -> None:
    own = module()
    batch = batch_of(own)
    torch.manual_seed(0)
    drawn = [own._chosen(batch, None) for _ in range(400)]
    chosen, shown = (torch.stack(part) for part in zip(*drawn, strict=True))
    n = int(chosen.sum())
    # five standard deviations of a share of n
    assert float(chosen.double().mean()) == pytest.approx(CHOSEN, abs=5 * (CHOSEN / chosen.numel()) ** 0.5)
    assert float((shown[chosen] == 0).double().mean()) == pytest.approx(HIDDEN, abs=5 * n**-0.5)
    kept = (shown == batch.numbers)[chosen].double().mean()
    same = REPLACED / len(ELEMENTS)  # an element that is drawn may be the one that was there
    assert float(kept) == pytest.approx(1.0 - HIDDEN - REPLACED + same, abs=5 * n**-0.5)
    assert torch.equal(shown[~chosen], batch.numbers.expand_as(shown)[~chosen])
    assert set(shown.unique().tolist()) <= {0, *ELEMENTS}


def test_one_atom_is_always_told_and_unknown_elements_never() -> None:
    own = module(elements=[3, 9])
    batch = batch_of(own, 1)  # NaF
    for seed in range(20):
        chosen, _ = own._chosen(batch, torch.Generator().manual_seed(seed))
        assert batch.numbers[chosen].tolist() == [9]
    unknown = batch_of(module(elements=[3]), 1)
    loss, errors = module(elements=[3])._loss(unknown, create_graph=False)
    assert (float(loss), errors) == (0.0, {"wrong_elements": 0.0})


def test_loss_is_that_of_the_atoms_chosen_and_the_batch_keeps_its_elements() -> None:
    own = module().eval()
    batch = batch_of(own)
    before = batch.numbers.clone()
    chosen, shown = own._chosen(batch, own._generator(training=False))
    loss, errors = own._loss(batch, create_graph=False)
    assert torch.equal(batch.numbers, before)
    batch.numbers = shown
    logits = own.guess(own.model.encoder(batch).atom)[chosen]
    wanted = torch.tensor([ELEMENTS.index(z) for z in before[chosen].tolist()])
    expected = -(logits.exp() / logits.exp().sum(dim=1, keepdim=True))[torch.arange(len(wanted)), wanted].log().mean()
    assert float(loss) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert errors["wrong_elements"] == pytest.approx(float((logits.argmax(dim=1) != wanted).double().mean()))
    batch.numbers = before
    assert own._terms(batch, create_graph=False)["wrong_elements"].n == int(chosen.sum())


@pytest.mark.parametrize("name", ["cgcnn", "crystograph", "prdnet", "moce"])
def test_every_encoder_with_atoms_learns_to_tell_elements(name: str) -> None:
    own = module(name).train()
    batch = batch_of(own)
    optimiser = torch.optim.Adam(own.groups(), lr=1e-2)
    losses = []
    for step in range(60):
        torch.manual_seed(step % 2)
        loss, _ = own._loss(batch, create_graph=True)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-2] < 0.9 * losses[0]  # of the same atoms
    assert all(p.grad is None for p in own.model.head.parameters())


def test_an_encoder_without_atoms_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"training.pretrain_epochs: this encoder has no features of atoms"):
        module("statistics")


def test_a_pretrained_fit(tmp_path: Path) -> None:
    """Two stages; what is learned in the first depends on crystals of the training part alone, and on no label."""
    rows = salts()
    fit(write_table(tmp_path / "a", rows), out=tmp_path / "run-a", settings=SMALL, verbose=False)
    split = json.loads((tmp_path / "run-a" / "split.json").read_text())
    with open(tmp_path / "run-a" / "metrics.csv", newline="", encoding="utf-8") as file:
        metrics = list(csv.DictReader(file))
    assert [line["stage"] for line in metrics] == ["1", "1", "1", "2", "2"]
    assert 0.0 < float(metrics[2]["wrong_elements"]) <= 1.0
    assert metrics[2]["gap"] == ""
    assert float(metrics[4]["gap"]) > 0.0

    for row in (*split["valid"], *split["test"]):
        rows[row].set_cell(1.1 * rows[row].cell, scale_atoms=True)
    for atoms in rows:
        atoms.info["gap"] *= 1.0 + 0.5 * (atoms.info["id"] == "salt-0")
    listed = tmp_path / "split.json"
    listed.write_text(json.dumps({part: split[part] for part in ("train", "valid", "test")}))
    other = {**SMALL, "data.split": str(listed)}
    fit(write_table(tmp_path / "b", rows), out=tmp_path / "run-b", settings=other, verbose=False)
    start, pretrained = weights(tmp_path / "run-a", 0), weights(tmp_path / "run-a", 1)
    again = weights(tmp_path / "run-b", 1)
    encoder = [name for name in start if name.startswith("encoder")]
    assert any(not torch.equal(start[name], pretrained[name]) for name in encoder)
    assert all(torch.equal(again[name], pretrained[name]) for name in encoder)
    assert all(torch.equal(start[name], pretrained[name]) for name in start if name.startswith("head"))


def test_a_potential_is_not_pretrained() -> None:
    (line,) = without_effect(make_config(None, {"training.pretrain_epochs": 5}))
    assert line == "training.pretrain_epochs: no effect, since task is potential"
