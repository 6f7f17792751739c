"""Every structure comes once in an epoch, no step is larger than allowed, and seed and epoch decide the order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrpot.config import TrainingConfig
from lrpot.errors import DataError
from lrpot.training.batches import BUCKET, BucketBatches, EpochShuffle, buckets, check_sizes, train_loader, valid_loader


class Sized:
    """Structures of which only the sizes are known."""

    def __init__(self, edges: Any, atoms: Any | None = None) -> None:
        self.edges = np.array(edges, dtype=np.uint32)
        self.atoms = np.ones_like(self.edges) if atoms is None else np.array(atoms, dtype=np.uint32)
        self.rows = np.arange(len(self.edges)) + 100

    def __len__(self) -> int:
        return len(self.edges)


def batches_of(structures: Sized, epoch: int = 0, seed: int = 5, **settings: Any) -> list[list[int]]:
    loader = train_loader(structures, TrainingConfig(**settings), seed)  # type: ignore[arg-type]
    loader.batch_sampler.sampler.set_epoch(epoch)  # type: ignore[union-attr]
    found = list(loader.batch_sampler)  # type: ignore[arg-type]
    assert len(loader) == len(found)
    return found


SIZES = st.lists(st.tuples(st.integers(0, 3000), st.integers(1, 200)), min_size=1, max_size=120)


@given(SIZES, st.integers(1, 9), st.booleans(), st.booleans(), st.integers(0, 9))
def test_limits_hold_and_nothing_is_lost(
    sizes: list[tuple[int, int]], batch_size: int, edges: bool, atoms: bool, epoch: int
) -> None:
    structures = Sized(*zip(*sizes, strict=True))
    limits = {"max_edges": 3000 if edges else None, "max_atoms": 200 if atoms else None}
    found = batches_of(structures, epoch, batch_size=batch_size, **limits)
    in_order = list(valid_loader(structures, TrainingConfig(batch_size=batch_size, **limits)).batch_sampler)  # type: ignore[arg-type]
    assert sorted(n for batch in found for n in batch) == list(range(len(sizes)))
    assert [n for batch in in_order for n in batch] == list(range(len(sizes)))
    for batch in found + in_order:
        assert 1 <= len(batch) <= batch_size
        assert not edges or structures.edges[batch].sum() <= 3000
        assert not atoms or structures.atoms[batch].sum() <= 200


def test_without_limits_the_order_is_that_of_the_shuffle() -> None:
    """Cut into pieces: what every run had before there were limits."""
    order = EpochShuffle(11, 5)
    order.set_epoch(3)
    expected = list(order)
    assert batches_of(Sized([9] * 11), 3, batch_size=4) == [expected[:4], expected[4:8], expected[8:]]


def test_epochs_differ_and_repeat() -> None:
    structures = Sized(np.random.default_rng(0).integers(10, 900, 80))
    settings = {"batch_size": 8, "max_edges": 1000}
    epochs = [batches_of(structures, epoch, **settings) for epoch in (0, 1, 0)]
    assert epochs[0] == epochs[2]
    assert epochs[0] != epochs[1]
    assert len(epochs[0]) == len(epochs[1])
    assert batches_of(structures, 0, seed=6, **settings) != epochs[0]


@pytest.mark.parametrize("length", [1, 3, 4, 7])
def test_epochs_that_are_a_part_of_a_pass_go_on_from_each_other(length: int) -> None:
    """One after the other they are whole passes, each in its own order; any of them is found by its number alone."""
    bucket, capacity = np.array([0] * 7 + [1] * 5), np.array([3, 2])  # 3 + 3 batches in a pass

    def epochs(number: int, size: int | None) -> list[list[int]]:
        batches = BucketBatches(EpochShuffle(12, 5), bucket, capacity, size)
        assert len(batches) == (size or 6)
        found = []
        for epoch in range(number):
            batches.sampler.set_epoch(epoch)
            found += list(batches)
        return found

    assert epochs(6, length) == epochs(length, None)


def test_little_of_a_step_stays_unused() -> None:
    """All but the last batch of a bucket are full to within the width of the bucket, and one structure."""
    edges = np.random.default_rng(0).integers(100, 1000, 3000)
    found = batches_of(Sized(edges), batch_size=1000, max_edges=20_000)
    filled = np.sort([edges[batch].sum() for batch in found])
    n_buckets = len(np.unique(buckets(Sized(edges), TrainingConfig(max_edges=20_000))[0]))  # type: ignore[arg-type]
    assert filled[n_buckets:].min() > (20_000 - 1000) / BUCKET


def test_structures_of_one_size_fill_a_step_exactly() -> None:
    assert [len(batch) for batch in batches_of(Sized([100] * 12), batch_size=99, max_edges=300)] == [3] * 4
    assert [len(batch) for batch in batches_of(Sized([7] * 12), batch_size=99, max_edges=49)] == [7, 5]


def test_lightning_finds_the_sampler_that_knows_the_epoch() -> None:
    from lightning.fabric.utilities.data import _set_sampler_epoch

    loader = train_loader(Sized([1] * 9), TrainingConfig(), 0)  # type: ignore[arg-type]
    _set_sampler_epoch(loader, 4)
    assert isinstance(loader.batch_sampler, BucketBatches)
    assert loader.batch_sampler.sampler.epoch == 4


def test_a_structure_that_no_step_can_hold_is_named() -> None:
    structures = Sized([5, 900, 3], [1, 2, 70])
    check_sizes(structures, TrainingConfig(max_edges=900, max_atoms=70))  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"row 101 has 900 edges, more than training.max_edges = 899; raise that"):
        check_sizes(structures, TrainingConfig(max_edges=899))  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"row 102 has 70 atoms, more than training.max_atoms = 69"):
        check_sizes(structures, TrainingConfig(max_atoms=69))  # type: ignore[arg-type]
