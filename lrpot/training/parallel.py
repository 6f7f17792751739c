"""Processes that fit one model together: which is which, sums over all of them, what the first one says.

Everything that processes tell each other goes through `Processes`, and every process calls the same methods in the
same order. Gradients are summed in one piece and in a fixed order, so that a run that is resumed by as many processes
repeats the bits of one that was not interrupted.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import IO, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lrpot.errors import ProcessLost

# How long a process waits for the others. One that has ended is noticed at once; this is for a machine that has frozen.
TIMEOUT = timedelta(hours=1)

# Bytes of a file that are sent at once.
CHUNK = 16 * 2**20


@dataclass(frozen=True)
class Processes:
    """This process among those of a fit; by default it is the only one.

    Attributes:
        rank: counts from 0; process 0 writes and speaks.
        size: how many there are.
        local_rank: counts from 0 on each machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        return self.rank == 0

    def device(self, name: str) -> str:
        """Where this process computes: of several, each has a GPU of its own."""
        if self.size == 1 or name != "cuda":
            return name
        # SLURM may show each process its own GPU only
        return f"cuda:{self.local_rank if torch.cuda.device_count() > 1 else 0}"

    def part(self, n: int) -> range:
        """The places, of n in a row, that fall to this process; those of all processes one after the other are all."""
        return range(self.rank * n // self.size, (self.rank + 1) * n // self.size)

    def add(self, values: Tensor) -> Tensor:
        """The sum over all processes, the same bits in each; `values` may be changed. Not differentiable."""
        if self.size > 1 and values.numel():
            with _lost():
                dist.all_reduce(values)
        return values

    def add_differentiably(self, values: Tensor) -> Tensor:
        """The sum over all processes. Its derivative is that of the sum of all processes' losses."""
        return _Sum.apply(values, self) if self.size > 1 else values

    def any(self, flag: bool) -> bool:
        """Whether it is true in any process."""
        return bool(self.add(torch.tensor([float(flag)])).item())

    def wait(self) -> None:
        """Until all processes are here."""
        self.any(False)

    def from_first(self, value: Any) -> Any:
        """What process 0 gives, in types of JSON; what the others give is not looked at."""
        if self.size == 1:
            return value
        text = bytearray(json.dumps(value).encode() if self.first else b"")
        length = int(self._sent_by_first(torch.tensor([len(text)])).item())
        content = torch.frombuffer(text, dtype=torch.uint8) if self.first else torch.empty(length, dtype=torch.uint8)
        return json.loads(bytes(self._sent_by_first(content).numpy()))

    def copy_first(self, module: nn.Module) -> None:
        """Give parameters and buffers the values that they have in process 0."""
        if self.size > 1:
            with torch.no_grad():
                for value in module.state_dict().values():
                    self._sent_by_first(value)

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace the gradients by their sums over all processes; None counts as zero."""
        if self.size == 1:
            return
        parameters = list(parameters)
        for dtype in sorted({p.dtype for p in parameters}, key=str):
            group = [p for p in parameters if p.dtype == dtype]
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in group]
            total = self.add(torch.cat([gradient.reshape(-1) for gradient in gradients]))
            for p, gradient in zip(group, total.split([p.numel() for p in group]), strict=True):
                p.grad = gradient.view_as(p)

    def gather_files(self, file: IO[bytes]) -> list[IO[bytes]]:
        """The files of all processes, in their order: the own one, and copies without a name of the others'."""
        files = []
        for rank in range(self.size):
            own = rank == self.rank
            copy = file if own else tempfile.TemporaryFile()  # noqa: SIM115 (given to the caller)
            size = int(self._sent_by(rank, torch.tensor([copy.seek(0, 2)])).item()) if self.size > 1 else 0
            copy.seek(0)
            for start in range(0, size, CHUNK):
                length = min(CHUNK, size - start)
                content = bytearray(copy.read(length)) if own else bytearray(length)
                sent = self._sent_by(rank, torch.frombuffer(content, dtype=torch.uint8))
                if not own:
                    copy.write(sent.numpy().tobytes())
            copy.flush()
            files.append(copy)
        return files

    def _sent_by_first(self, values: Tensor) -> Tensor:
        return self._sent_by(0, values)

    def _sent_by(self, rank: int, values: Tensor) -> Tensor:
        with _lost():
            dist.broadcast(values, rank)
        return values


# For a fit by one process: nothing is sent.
ALONE = Processes()


def connect(store: dist.Store, processes: Processes) -> None:
    """Let this process meet the others of its fit.

    Args:
        store: where they find each other.
    Raises:
        ProcessLost: they did not come.
    """
    # counts and energies are summed on the CPU, gradients where they are
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    with _lost():
        dist.init_process_group(backend, store=store, rank=processes.rank, world_size=processes.size, timeout=TIMEOUT)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, values: Tensor, processes: Processes) -> Tensor:
        context.processes = processes
        return processes.add(values.clone())

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        # the loss of every process depends on the sum
        return context.processes.add(gradient.clone()), None


@contextmanager
def _lost() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # gloo and NCCL know no other
        raise ProcessLost(
            "another process of this fit has ended or cannot be reached; look for what it said, then go on with "
            "lrpot fit --resume"
        ) from error
