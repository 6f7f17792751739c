"""Charges by element: values, neutrality, gradients, what survives saving."""

from __future__ import annotations

import pytest
import torch

from lrpot.charges import CHARGES, EmbeddingCharges
from lrpot.errors import ConfigError, UnknownElementError
from lrpot.structure import collate

TOLERANCE = 1e-14  # e
ELEMENTS = [8, 11, 17]
VALUES = {8: -1.1, 11: 0.8, 17: -0.7}


def make(neutrality: str = "background") -> EmbeddingCharges:
    charges = EmbeddingCharges(ELEMENTS, neutrality=neutrality)
    charges.set_values(VALUES)
    return charges


@pytest.fixture(scope="module")
def batch(random_crystal):
    """Three structures of different composition and total charge."""
    return collate(
        [
            random_crystal(0, 5, elements=(11, 17), total_charge=0.0),
            random_crystal(1, 7, elements=(8, 11, 17), total_charge=-1.0),
            random_crystal(2, 1, elements=(8,), total_charge=2.0),
        ]
    )


def test_charges_start_at_zero(batch) -> None:
    assert not EmbeddingCharges(ELEMENTS)(batch).any()


def test_each_atom_has_the_charge_of_its_element(batch) -> None:
    found = make()(batch)
    assert found.shape == (13, 1)
    assert found.dtype == torch.float64
    assert found[:, 0].tolist() == [VALUES[z] for z in batch.numbers.tolist()]


def test_values_are_read_and_written_by_element() -> None:
    charges = make()
    assert charges.by_element() == VALUES
    charges.set_values({11: 0.5, 99: 3.0})
    assert charges.by_element() == {8: 0.0, 11: 0.5, 17: 0.0}


def test_background_keeps_a_charged_cell_as_it_is(batch) -> None:
    found = make()(batch)[:, 0]
    sums = torch.zeros(3, dtype=torch.float64).index_add(0, batch.batch, found.detach())
    expected = [3 * 0.8 - 2 * 0.7, -3 * 1.1 + 2 * 0.8 - 2 * 0.7, -1.1]
    torch.testing.assert_close(sums, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=TOLERANCE * 10)


def test_shift_makes_every_structure_sum_to_its_total_charge(batch) -> None:
    background, shifted = make()(batch)[:, 0].detach(), make("shift")(batch)[:, 0].detach()
    sums = torch.zeros(3, dtype=torch.float64).index_add(0, batch.batch, shifted)
    torch.testing.assert_close(sums, batch.total_charge, rtol=0, atol=TOLERANCE * 10)
    # by one number for all atoms of a structure
    for n in range(3):
        change = (shifted - background)[batch.batch == n]
        assert float(change.max() - change.min()) < TOLERANCE
    assert float((shifted - background).abs().min()) > 1e-3


def test_shift_of_one_structure_is_that_in_a_batch(batch, random_crystal) -> None:
    single = make("shift")(random_crystal(1, 7, elements=(8, 11, 17), total_charge=-1.0))
    torch.testing.assert_close(single, make("shift")(batch)[batch.batch == 1], rtol=0, atol=TOLERANCE)


def test_shift_does_nothing_to_a_neutral_cell(random_crystal) -> None:
    s = random_crystal(3, 6)
    charges = {n: EmbeddingCharges([11, 17], neutrality=n) for n in ("background", "shift")}
    for module in charges.values():
        module.set_values({11: 0.75, 17: -0.75})
    torch.testing.assert_close(charges["shift"](s), charges["background"](s), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("neutrality", ["background", "shift"])
def test_gradient_by_the_values(neutrality: str, batch) -> None:
    charges = make(neutrality)
    weights = torch.linspace(-1.0, 2.0, 13, dtype=torch.float64)

    def total(values: torch.Tensor) -> torch.Tensor:
        return (torch.func.functional_call(charges, {"values": values}, (batch,))[:, 0] ** 2 * weights).sum()

    assert torch.autograd.gradcheck(total, charges.values.detach().clone().requires_grad_())


def test_only_the_values_are_saved() -> None:
    assert set(make().state_dict()) == {"values"}
    other = EmbeddingCharges(ELEMENTS)
    other.load_state_dict(make().state_dict())
    assert other.by_element() == VALUES


def test_unknown_neutrality_is_refused() -> None:
    with pytest.raises(ConfigError, match="'jellium'; choose one of background, shift"):
        EmbeddingCharges(ELEMENTS, neutrality="jellium")


@pytest.mark.parametrize("kind", CHARGES)
@pytest.mark.parametrize("number", [9, 19], ids=["between those it knows", "beyond them"])
def test_an_element_without_a_charge_is_refused(kind: str, number: int, make_potential, random_crystal) -> None:
    model = make_potential(elements=tuple(ELEMENTS), charges=kind)
    crystal = random_crystal(0, 4, elements=(11, number))
    symbol = {9: "F", 19: "K"}[number]
    with pytest.raises(UnknownElementError, match=rf"element {symbol} \(atom 1\) is not known .* O, Na, Cl"):
        model(crystal)
