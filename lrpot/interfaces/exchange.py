"""What processes that share a crystal tell each other, over MPI: sums, and values of atoms that others need.

Every process calls the same methods in the same order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


class Exchange:
    """The processes of a simulation.

    Attributes:
        rank: counts from 0. size: how many there are.
    """

    def __init__(self, comm: Any) -> None:
        """
        Args:
            comm: a communicator of mpi4py; None if there is only this process.
        """
        self.comm = comm
        self.rank = 0 if comm is None else int(comm.Get_rank())
        self.size = 1 if comm is None else int(comm.Get_size())

    @property
    def first(self) -> bool:
        return self.rank == 0

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes; not differentiable."""
        mine = values.detach().cpu().contiguous().numpy()
        sums = np.empty_like(mine)
        self.comm.Allreduce(mine, sums)
        return torch.from_numpy(sums).to(values.device)

    def any(self, flag: bool) -> bool:
        """Whether it is true in any process."""
        return flag if self.size == 1 else bool(self.comm.allreduce(int(flag)))

    def first_message(self, message: str | None) -> str | None:
        """That of the first process that has one."""
        if self.size == 1 or not self.any(message is not None):
            return message
        return next(text for text in self.comm.allgather(message) if text is not None)

    def abort(self) -> None:
        """End all processes at once: the others wait for what will not come."""
        self.comm.Abort(1)

    def send(self, values: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows to all processes.

        Args:
            values: (n, ...) sorted by receiver. counts: (size,) how many rows each gets.
        Returns:
            the rows that came, sorted by sender, and how many came from each.
        """
        width = int(np.prod(values.shape[1:], dtype=int))
        came = np.empty_like(counts)
        self.comm.Alltoall(counts, came)
        received = np.empty((int(came.sum()), *values.shape[1:]), values.dtype)
        self.comm.Alltoallv(
            [np.ascontiguousarray(values), (counts * width, _starts(counts * width))],
            [received, (came * width, _starts(came * width))],
        )
        return received, came


class Owners:
    """Which process owns each atom of a halo, and the way of values there and back.

    Found through a directory: of each atom the process with the number id modulo their count is told by its owner, and
    asked by all that have a copy. So no process needs to know more atoms than its share.
    """

    def __init__(self, exchange: Exchange, own_ids: np.ndarray, other_ids: np.ndarray) -> None:
        """
        Args:
            own_ids: (n,) of the atoms of this process. other_ids: (m,) of the atoms of others that it needs.
        """
        self.exchange = exchange
        self.n_own = len(own_ids)
        size = exchange.size
        order, counts = _by_process(own_ids % size, size)
        told, from_each = exchange.send(np.stack([own_ids, np.arange(len(own_ids))], axis=1)[order], counts)
        owner = np.repeat(np.arange(size), from_each)
        by_id = np.argsort(told[:, 0])
        order, counts = _by_process(other_ids % size, size)
        asked, from_each = exchange.send(other_ids[order], counts)
        place = by_id[np.searchsorted(told[by_id, 0], asked)]
        answers, _ = exchange.send(np.stack([owner[place], told[place, 1]], axis=1), from_each)
        where = np.empty((len(other_ids), 2), np.int64)
        where[order] = answers
        # rows of others by owner, and those of mine that each of them needs
        self.order, self.counts = _by_process(where[:, 0], size)
        self.needed, self.needed_counts = exchange.send(where[self.order, 1], self.counts)

    def fetch(self, values: np.ndarray) -> np.ndarray:
        """(m, ...) values of the atoms of others, from (n, ...) those of the own atoms in each process."""
        came, _ = self.exchange.send(values[self.needed], self.needed_counts)
        found = np.empty_like(came)
        found[self.order] = came
        return found

    def give_back(self, values: np.ndarray) -> np.ndarray:
        """(n, ...) sums, over all processes, of the (m, ...) values that belong to own atoms: `fetch` transposed."""
        came, _ = self.exchange.send(values[self.order], self.counts)
        total = np.zeros((self.n_own, *values.shape[1:]), values.dtype)
        np.add.at(total, self.needed, came)
        return total


class Fetched(torch.autograd.Function):
    """`Owners.fetch`, whose derivative goes back to the owners."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, owners: Owners) -> Tensor:
        ctx.owners = owners
        return torch.from_numpy(owners.fetch(values.detach().cpu().numpy())).to(values.device)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return torch.from_numpy(ctx.owners.give_back(gradient.cpu().numpy())).to(gradient.device), None


def _by_process(process: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(n,) an order by process, and (size,) how many belong to each."""
    return np.argsort(process, kind="stable"), np.bincount(process, minlength=size).astype(np.int64)


def _starts(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)[:-1]])
