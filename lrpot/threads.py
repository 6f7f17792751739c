"""Loops over atoms on several threads, for compiled functions that release Python's lock."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache
from typing import Any

import torch

# Units of work below which a second thread costs more than it saves.
WORTH_A_THREAD = 20_000


def share(function: Callable[..., None], pointers: Any, work: int, *args: Any) -> None:
    """Call function(start, stop, part, pointers, *args) for parts of the rows, one part to each of torch's threads.

    Args:
        function: releases the lock, and writes nothing that another part reads.
        pointers: (N + 1,) where the entries of each of the N rows begin; parts have about equally many entries.
        work: units of work in all; see `WORTH_A_THREAD`.
    """
    bounds = part_bounds(pointers, parts(work))
    if len(bounds) == 2:
        function(0, len(pointers) - 1, 0, pointers, *args)
        return
    spans = list(zip(bounds[:-1], bounds[1:], range(len(bounds) - 1), strict=True))
    others = [_pool(os.getpid()).submit(function, *span, pointers, *args) for span in spans[1:]]
    try:
        function(*spans[0], pointers, *args)
    finally:
        wait(others)  # whatever happens here, nobody writes to the caller's arrays after the end
    for other in others:
        other.result()


def parts(work: int) -> int:
    """How many threads that much work is shared by."""
    return max(1, min(torch.get_num_threads(), work // WORTH_A_THREAD))


def part_bounds(pointers: Any, n_parts: int) -> list[int]:
    """Rows at which the parts begin, and the end of the last."""
    n_rows = len(pointers) - 1
    if n_parts == 1:
        return [0, n_rows]
    targets = pointers[-1] * (torch.arange(1, n_parts).numpy() / n_parts)
    return [0, *pointers.searchsorted(targets).tolist(), n_rows]


@lru_cache(maxsize=1)
def _pool(process: int) -> ThreadPoolExecutor:
    """The threads of this process; a fork begins with none."""
    return ThreadPoolExecutor(max_workers=os.cpu_count() or 1, thread_name_prefix="lrpot")
