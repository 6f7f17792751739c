"""Loops on several threads: every row once, about equal parts, errors that arrive."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch

from lrpot.threads import WORTH_A_THREAD, part_bounds, parts, share

Call = tuple[int, int, int]
SetThreads = Callable[[int], None]


@pytest.fixture
def set_threads() -> Iterator[SetThreads]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def pointers_of(counts: list[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def random_pointers(rows: int = 1000) -> np.ndarray:
    return pointers_of(np.random.default_rng(0).integers(0, 50, rows).tolist())


# --- how many


def test_a_thread_must_be_worth_it(set_threads: SetThreads) -> None:
    set_threads(4)
    works = (0, 1, WORTH_A_THREAD, 2 * WORTH_A_THREAD - 1, 2 * WORTH_A_THREAD, 10**12)
    assert [parts(work) for work in works] == [1, 1, 1, 1, 2, 4]
    set_threads(1)
    assert parts(10**12) == 1


# --- which rows


@pytest.mark.parametrize("n_parts", [1, 2, 3, 8])
@pytest.mark.parametrize(
    "counts",
    [[5] * 100, [0] * 10, [100, *[1] * 9], [*[1] * 9, 100], [7], [0, 0, 3, 0], []],
    ids=["even", "no entries", "first", "last", "one row", "gaps", "no rows"],
)
def test_parts_hold_every_row_once_in_order(counts: list[int], n_parts: int) -> None:
    bounds = part_bounds(pointers_of(counts), n_parts)
    assert len(bounds) == n_parts + 1
    assert bounds[0] == 0
    assert bounds[-1] == len(counts)
    assert bounds == sorted(bounds)
    assert {type(bound) for bound in bounds} == {int}


@pytest.mark.parametrize("n_parts", [2, 3, 8])
def test_parts_have_about_equally_many_entries(n_parts: int) -> None:
    pointers = random_pointers()
    bounds = part_bounds(pointers, n_parts)
    entries = [int(pointers[stop] - pointers[start]) for start, stop in pairwise(bounds)]
    most = int(np.diff(pointers).max())  # a row is not divided
    assert max(abs(n - pointers[-1] / n_parts) for n in entries) <= most


# --- running


@pytest.mark.parametrize(("threads", "expected"), [(1, 1), (2, 2), (5, 5)])
def test_each_part_is_run_once_with_all_arguments(set_threads: SetThreads, threads: int, expected: int) -> None:
    set_threads(threads)
    pointers, calls, result = random_pointers(), [], np.zeros(1000, dtype=np.int64)
    extra = object()

    def function(start: int, stop: int, part: int, given: np.ndarray, *args: object) -> None:
        assert given is pointers
        assert args == (extra, 3)
        result[start:stop] += np.diff(given)[start:stop]
        calls.append((start, stop, part))

    share(function, pointers, threads * WORTH_A_THREAD, extra, 3)
    bounds = part_bounds(pointers, threads)
    spans = [(start, stop, part) for part, (start, stop) in enumerate(pairwise(bounds))]
    assert len(spans) == expected
    assert sorted(calls) == spans
    assert np.array_equal(result, np.diff(pointers))


def test_little_work_stays_in_this_thread(set_threads: SetThreads) -> None:
    set_threads(4)
    names: list[str] = []
    share(lambda *_: names.append(threading.current_thread().name), random_pointers(), WORTH_A_THREAD)
    assert names == [threading.current_thread().name]


def test_parts_run_at_the_same_time(set_threads: SetThreads) -> None:
    """Two parts that wait for each other, one of them in the calling thread."""
    if os.cpu_count() == 1:
        pytest.skip("this machine has one processor, and the pool one thread for each")
    set_threads(2)
    meeting, names = threading.Barrier(2, timeout=10.0), []

    def function(*_: object) -> None:
        names.append(threading.current_thread().name)
        meeting.wait()

    share(function, random_pointers(), 2 * WORTH_A_THREAD)
    assert threading.current_thread().name in names
    assert len(set(names)) == 2


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_an_error_in_any_part_arrives_after_all_have_ended(set_threads: SetThreads, failing: int) -> None:
    """What a part still writes to must not be given back to the caller before."""
    set_threads(3)
    pointers, ended = random_pointers(), []
    slow = threading.Event()

    def function(start: int, stop: int, part: int, _: np.ndarray) -> None:
        if part == failing:
            raise ValueError(f"part {part}")
        slow.wait(0.05)
        ended.append(part)

    with pytest.raises(ValueError, match=f"part {failing}"):
        share(function, pointers, 3 * WORTH_A_THREAD)
    assert sorted(ended) == sorted({0, 1, 2} - {failing})


# from Python 3.12 on it warns of just this
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_fork_has_threads_of_its_own(set_threads: SetThreads) -> None:
    """The parent's do not exist there; waiting for them would last for ever."""
    set_threads(2)
    pointers, total = random_pointers(), np.zeros(2, dtype=np.int64)

    def function(start: int, stop: int, part: int, given: np.ndarray) -> None:
        total[part] = given[stop] - given[start]

    share(function, pointers, 2 * WORTH_A_THREAD)  # now the parent has a pool
    assert total.sum() == pointers[-1]
    child = os.fork()
    if child == 0:
        code = 1
        try:
            total[:] = 0
            share(function, pointers, 2 * WORTH_A_THREAD)
            code = int(total.sum() != pointers[-1])
        finally:
            os._exit(code)  # without the parent's clean-up
    waiting = threading.Event()
    for _ in range(1000):
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            break
        waiting.wait(0.01)
    else:
        os.kill(child, 9)
        os.waitpid(child, 0)
        pytest.fail("the child waits for threads of its parent")
    assert os.waitstatus_to_exitcode(status) == 0
