"""Spreading charges onto a mesh and gathering a field from it, in compiled loops for the CPU.

The window of an atom is a product of three, w points along each axis, so a point's share costs one multiplication.
Atoms are visited in the order of the mesh's rows, for what one reads the next finds in the cache. Functions take a
range of rows and the number of the part, for `lrpot.threads.share`. A thread that spreads owns planes of the mesh and
takes from each atom what falls on them: no two threads write one number, and the sums do not depend on their number.
"""

# The types of the loops' arguments are the compiler's to find.
# mypy: disallow-untyped-defs=False

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from lrpot.compiled import compiled

Loop = Callable[..., None]


class Loops(NamedTuple):
    """The compiled loops for one width of the window; see the functions of the same names below."""

    windows: Loop
    spread: Loop
    gather: Loop
    look_up: Loop


@lru_cache(maxsize=16)
def loops(width: int) -> Loops:
    """The loops for a width; it is a constant in them."""
    W = width

    @compiled
    def windows(start, stop, part, pointers, fractional, polynomials, sizes, places, values):
        """Where the windows of the atoms start ... stop begin, and what they are there.

        fractional: (N, 3). polynomials: (D + 1, w), see `lrpot.kspace.window`. sizes: (3,) int64, points of the mesh.
        places: (N, 3) int64, result: first point along each axis. values: (N, 3, 2, w), result: the window at its
        points, and its slope by the mesh coordinate.
        """
        number = polynomials.dtype.type
        half, two, one, zero = number(0.5 * W), number(2.0), number(1.0), number(0.0)
        degree = polynomials.shape[0] - 1
        for i in range(start, stop):
            for axis in range(3):
                size = sizes[axis]
                begin = fractional[i, axis] * number(size) - half
                first = np.floor(begin)
                t = two * (begin - first) - one
                value, slope = values[i, axis, 0], values[i, axis, 1]
                for a in range(W):
                    value[a] = polynomials[degree, a]
                    slope[a] = zero
                for d in range(degree - 1, -1, -1):
                    for a in range(W):
                        slope[a] = slope[a] * t + value[a]
                        value[a] = value[a] * t + polynomials[d, a]
                for a in range(W):
                    slope[a] *= two  # t runs over [-1, 1] in one step of the mesh
                # the window's first point is the one after its beginning
                places[i, axis] = (int(first) + 1) % size

    @compiled
    def spread(start, stop, part, pointers, order, places, values, sizes, charges, density):
        """Add charges (N, C) to the planes start ... stop of the density (C, M1 M2 M3).

        pointers (M1 + 1,), order (N,): the atoms by the plane on which their windows begin.
        """
        M1, M2, M3 = sizes[0], sizes[1], sizes[2]
        for plane in range(M1):
            if not (start <= plane < stop or (start - plane) % M1 < W):
                continue
            for n in range(pointers[plane], pointers[plane + 1]):
                i = order[n]
                y, z = places[i, 1], places[i, 2]
                in_x, in_y, in_z = values[i, 0, 0], values[i, 1, 0], values[i, 2, 0]
                for channel in range(density.shape[0]):
                    mesh = density[channel]
                    for a in range(W):
                        row_x = plane + a
                        if row_x >= M1:
                            row_x -= M1
                        if row_x < start or row_x >= stop:
                            continue
                        share_x = charges[i, channel] * in_x[a]
                        for b in range(W):
                            row_y = y + b
                            if row_y >= M2:
                                row_y -= M2
                            share = share_x * in_y[b]
                            # an unsigned index cannot count from the end, which lets the inner loop be vectors
                            row = np.uintp((row_x * M2 + row_y) * M3)
                            if z + W <= M3:
                                row += np.uintp(z)
                                for c in range(W):
                                    mesh[row + np.uintp(c)] += share * in_z[c]
                            else:
                                for c in range(W):
                                    mesh[row + np.uintp((z + c) % M3)] += share * in_z[c]

    @compiled
    def gather(start, stop, part, pointers, order, places, values, sizes, charges, field, by_mesh, found):
        """The field (C, M1 M2 M3) under the windows of the atoms order[start ... stop].

        found: (N, C), result. by_mesh: (N, 3), result: its derivative by mesh coordinates, times charges (N, C), summed
        over channels.
        """
        M1, M2, M3 = sizes[0], sizes[1], sizes[2]
        zero = field.dtype.type(0.0)
        for n in range(start, stop):
            i = order[n]
            x, y, z = places[i, 0], places[i, 1], places[i, 2]
            in_x, in_y, in_z = values[i, 0, 0], values[i, 1, 0], values[i, 2, 0]
            d_x, d_y, d_z = values[i, 0, 1], values[i, 1, 1], values[i, 2, 1]
            total_x, total_y, total_z = zero, zero, zero
            for channel in range(field.shape[0]):
                mesh = field[channel]
                at, by_x, by_y, by_z = zero, zero, zero, zero
                for a in range(W):
                    row_x = x + a
                    if row_x >= M1:
                        row_x -= M1
                    plane, plane_y, plane_z = zero, zero, zero
                    for b in range(W):
                        row_y = y + b
                        if row_y >= M2:
                            row_y -= M2
                        line, line_z = zero, zero
                        row = np.uintp((row_x * M2 + row_y) * M3)
                        if z + W <= M3:
                            row += np.uintp(z)
                            for c in range(W):
                                line += mesh[row + np.uintp(c)] * in_z[c]
                                line_z += mesh[row + np.uintp(c)] * d_z[c]
                        else:
                            for c in range(W):
                                line += mesh[row + np.uintp((z + c) % M3)] * in_z[c]
                                line_z += mesh[row + np.uintp((z + c) % M3)] * d_z[c]
                        plane += in_y[b] * line
                        plane_y += d_y[b] * line
                        plane_z += in_y[b] * line_z
                    at += in_x[a] * plane
                    by_x += d_x[a] * plane
                    by_y += in_x[a] * plane_y
                    by_z += in_x[a] * plane_z
                found[i, channel] = at
                total_x += charges[i, channel] * by_x
                total_y += charges[i, channel] * by_y
                total_z += charges[i, channel] * by_z
            by_mesh[i, 0], by_mesh[i, 1], by_mesh[i, 2] = total_x, total_y, total_z

    @compiled
    def look_up(start, stop, part, pointers, order, places, values, sizes, field, found):
        """What `gather` finds, without derivatives."""
        M1, M2, M3 = sizes[0], sizes[1], sizes[2]
        zero = field.dtype.type(0.0)
        for n in range(start, stop):
            i = order[n]
            x, y, z = places[i, 0], places[i, 1], places[i, 2]
            in_x, in_y, in_z = values[i, 0, 0], values[i, 1, 0], values[i, 2, 0]
            for channel in range(field.shape[0]):
                mesh = field[channel]
                at = zero
                for a in range(W):
                    row_x = x + a
                    if row_x >= M1:
                        row_x -= M1
                    plane = zero
                    for b in range(W):
                        row_y = y + b
                        if row_y >= M2:
                            row_y -= M2
                        line = zero
                        row = np.uintp((row_x * M2 + row_y) * M3)
                        if z + W <= M3:
                            row += np.uintp(z)
                            for c in range(W):
                                line += mesh[row + np.uintp(c)] * in_z[c]
                        else:
                            for c in range(W):
                                line += mesh[row + np.uintp((z + c) % M3)] * in_z[c]
                        plane += in_y[b] * line
                    at += in_x[a] * plane
                found[i, channel] = at

    return Loops(windows, spread, gather, look_up)
