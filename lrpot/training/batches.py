"""Which structures share a step: a number at most, and edges and atoms at most."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torch_geometric.data import Batch

from lrpot.config import TrainingConfig
from lrpot.data.graphs import Graphs
from lrpot.errors import DataError
from lrpot.training.parallel import ALONE, Processes

# Structures in one bucket differ in size by this factor at most: so much of the edges per step may stay unused.
BUCKET = 1.25


class EpochShuffle(Sampler[int]):
    """A new order every epoch that depends only on seed and epoch, so that a resumed run sees the same batches."""

    def __init__(self, length: int, seed: int) -> None:
        self.length = length
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        return self.order(self.epoch)

    def order(self, epoch: int) -> Iterator[int]:
        """That of any epoch."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        yield from torch.randperm(self.length, generator=generator).tolist()


class BucketBatches(Sampler[list[int]]):
    """Batches of structures of similar size, filled in the order of `EpochShuffle`.

    A bucket fills batches of as many structures as its largest leaves room for; so every epoch has the same number of
    batches, which the learning rate counts on, and none is larger than it may be. Structures meet only others of their
    bucket: where sizes differ widely, steps are less mixed than without a limit.

    An epoch may be a part of a pass over the structures; the next one then goes on where it ended, and through the end
    of the pass into another.

    Attributes:
        sampler: the order; Lightning tells it the epoch.
    """

    def __init__(
        self, sampler: EpochShuffle, bucket: np.ndarray, capacity: np.ndarray, length: int | None = None
    ) -> None:
        """
        Args:
            bucket: (n,) of each structure. capacity: structures per batch, by bucket.
            length: batches in an epoch; None for a whole pass.
        """
        self.sampler = sampler
        self.bucket = bucket
        self.capacity = capacity
        counts = np.bincount(bucket, minlength=len(capacity))
        self.in_a_pass = int((-(-counts // capacity)).sum())
        self.length = self.in_a_pass if length is None else length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[list[int]]:
        begin = self.sampler.epoch * self.length
        number, left_out = divmod(begin, max(self.in_a_pass, 1))
        passes = itertools.chain.from_iterable(map(self._pass, itertools.count(number)))
        yield from itertools.islice(passes, left_out, left_out + self.length)

    def _pass(self, epoch: int) -> Iterator[list[int]]:
        filling: list[list[int]] = [[] for _ in self.capacity]
        for number in self.sampler.order(epoch):
            bucket = self.bucket[number]
            filling[bucket].append(number)
            if len(filling[bucket]) == self.capacity[bucket]:
                yield filling[bucket]
                filling[bucket] = []
        yield from (batch for batch in filling if batch)


class Shares(Dataset[Batch]):
    """Steps of structures, of which only those that fall to this process are read."""

    def __init__(self, structures: Graphs, processes: Processes) -> None:
        self.structures = structures
        self.processes = processes

    def __getitems__(self, numbers: list[int]) -> Batch:
        """The share of a step of these structures, which may be of none; `DataLoader` asks for it by this name.

        `places` (of the structures in the step, ascending) and `n_structures` (of the whole step) say what it is.
        """
        places = shares(self.structures.edges[numbers].tolist(), self.processes.size)[self.processes.rank]
        batch = self.structures.batch([numbers[place] for place in places or [0]])
        if not places:
            for name, value in batch.to_dict().items():
                if isinstance(value, Tensor):
                    batch[name] = value[:, :0] if name == "edge_index" else value[:0]
        batch.places = torch.tensor(places, dtype=torch.int64)
        batch.n_structures = len(numbers)
        return batch


def train_loader(
    structures: Graphs, config: TrainingConfig, seed: int, processes: Processes = ALONE
) -> DataLoader[Any]:
    """This process' shares of batches in an order that depends on seed and epoch."""
    bucket, capacity = buckets(structures, config)
    batches = BucketBatches(EpochShuffle(len(structures), seed), bucket, capacity, config.epoch_batches)
    return _loader(structures, batches, processes)


def valid_loader(structures: Graphs, config: TrainingConfig, processes: Processes = ALONE) -> DataLoader[Any]:
    """This process' shares of batches of structures in their own order, within the same limits."""
    batches: list[list[int]] = []
    edges = atoms = 0
    for number, (n_edges, n_atoms) in enumerate(zip(structures.edges.tolist(), structures.atoms.tolist(), strict=True)):
        edges, atoms = edges + n_edges, atoms + n_atoms
        over = (config.max_edges and edges > config.max_edges) or (config.max_atoms and atoms > config.max_atoms)
        if not batches or over or len(batches[-1]) == config.batch_size:
            batches.append([])
            edges, atoms = n_edges, n_atoms
        batches[-1].append(number)
    return _loader(structures, batches, processes)


def _loader(structures: Graphs, batches: Iterable[list[int]], processes: Processes) -> DataLoader[Any]:
    steps: Graphs | Shares = structures if processes.size == 1 else Shares(structures, processes)
    return DataLoader(steps, batch_sampler=batches, collate_fn=_as_read)  # type: ignore[arg-type]


def _as_read(batch: Batch) -> Batch:
    """Steps are read as batches."""
    return batch


def check_sizes(structures: Graphs, config: TrainingConfig) -> None:
    """Refuse structures that no step may hold.

    Raises:
        DataError: names the row, its size and the setting.
    """
    for what, limit, sizes in (
        ("edges", config.max_edges, structures.edges),
        ("atoms", config.max_atoms, structures.atoms),
    ):
        if limit is not None and len(sizes) and sizes.max() > limit:
            largest = int(sizes.argmax())
            raise DataError(
                f"row {structures.rows[largest]} has {sizes[largest]} {what}, more than training.max_{what} = {limit}; "
                "raise that, or remove the row"
            )


def buckets(structures: Graphs, config: TrainingConfig) -> tuple[np.ndarray, np.ndarray]:
    """The bucket of each structure (n,), and how many structures of each bucket share a step.

    Without limits there is one bucket, of `batch_size` structures per step.
    """
    sizes = [
        (limit, np.maximum(found, 1).astype(np.float64))
        for limit, found in ((config.max_edges, structures.edges), (config.max_atoms, structures.atoms))
        if limit is not None
    ]
    if not sizes or not len(structures):
        return np.zeros(len(structures), dtype=np.int64), np.array([config.batch_size])
    # the share of a step that a structure takes: what decides how many fit
    share = np.max([found / limit for limit, found in sizes], axis=0)
    step = np.floor(np.log(share) / np.log(BUCKET)).astype(np.int64)
    _, bucket = np.unique(step, return_inverse=True)
    largest = np.zeros(int(bucket.max()) + 1)
    np.maximum.at(largest, bucket, share)
    # a share of exactly 1/3 must leave room for three
    capacity = np.clip(np.floor(1.0 / largest * (1.0 + 1e-12)), 1, config.batch_size).astype(np.int64)
    return bucket, capacity


def shares(sizes: Sequence[int], n: int) -> list[list[int]]:
    """Places of the structures of a step that fall to each of n processes, so that their edges add up to about the
    same: the largest first, each to whom has least. A process may have none.

    Args:
        sizes: number of edges of each structure.
    """
    found: list[list[int]] = [[] for _ in range(n)]
    load = [(0, 0)] * n  # edges, then structures, for those without edges
    for place in sorted(range(len(sizes)), key=lambda p: (-sizes[p], p)):
        least = load.index(min(load))
        found[least].append(place)
        load[least] = (load[least][0] + sizes[place], load[least][1] + 1)
    return [sorted(places) for places in found]
