"""Features of the elements."""

from __future__ import annotations

import csv
from importlib.resources import files

import torch
from ase.data import chemical_symbols

from lrpot.properties.elements import N_BINS, ElementEmbedding, element_bins


def test_layout() -> None:
    bins = element_bins()
    assert bins.shape == (119, N_BINS) == (119, 92)
    assert not bins[0].any()
    # one bin of each of nine blocks at most; group, period, radius, valence and block are known of all elements
    assert bins[1:].sum(dim=1).min() >= 5
    assert bins.sum(dim=1).max() == 9
    # sodium: group 1, period 3, s block
    group, period, block = bins[11, :19], bins[11, 19:26], bins[11, 78:82]
    assert (int(group.argmax()), int(period.argmax()), int(block.argmax())) == (1, 2, 0)


def test_table_has_every_element_once() -> None:
    text = (files("lrpot.properties") / "elements.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    assert [(int(row["number"]), row["symbol"]) for row in rows] == list(enumerate(chemical_symbols))[1:]


def test_bins_share_elements_but_what_is_learned_does_not() -> None:
    """The bins alone cannot tell every element from every other; the embedding can."""
    bins = element_bins()[1:]
    assert len(bins.unique(dim=0)) < len(bins)
    torch.manual_seed(0)
    features = ElementEmbedding(16).double()(torch.arange(1, 119))
    assert torch.pdist(features).min() > 1e-3
