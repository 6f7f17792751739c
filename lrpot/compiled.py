"""How loops are compiled, and a sort that several of them need."""

# The types of the loops' arguments are the compiler's to find.
# mypy: disallow-untyped-defs=False

from __future__ import annotations

from collections.abc import Callable

import numba

# Sums may be reordered, for that makes them vector operations; not-a-number stays what it is.
OPTIONS = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract", "arcp", "nsz"}}


def compiled(function: Callable[..., None]) -> Callable[..., None]:
    """The function, compiled at its first call for each kind of arguments, and kept on disk."""
    try:
        return numba.njit(cache=True, **OPTIONS)(function)
    except RuntimeError:  # no folder can be written to: every process compiles for itself
        return numba.njit(**OPTIONS)(function)


@compiled
def group(keys, pointers, order):
    """Group entries by a key, in their order.

    Args:
        keys: (E,) int64, from 0 to N - 1.
        pointers: (N + 1,) int64, result: where the entries of each key begin.
        order: (E,) int64, result: the entries, those of one key beside each other.
    """
    pointers[:] = 0
    for key in keys:
        pointers[key + 1] += 1
    for key in range(len(pointers) - 1):
        pointers[key + 1] += pointers[key]
    place = pointers[:-1].copy()
    for e in range(len(keys)):
        order[place[keys[e]]] = e
        place[keys[e]] += 1
