"""PaiNN's messages on the CPU: filter, gather, product and sum of an edge in one compiled loop.

Nothing is stored per edge but what all steps share: `edge_records`. The filter of a step comes from a spline's table
(`lrpot.backbones.radial`): six rows of it per edge take the place of a basis and a matrix product. A function and its
first and second derivatives are written out, for they share what they read.

Notation, as in `lrpot.backbones.messages`: for an edge (j -> i) of length r and direction d,

    s_i += W_s p_s[j],    v_i += (W_r p_r[j]) d + (W_v p_v[j]) v[j],

with the filters W_x(r) = sum_m b_m table[row + m, x] and the three thirds p_s, p_r, p_v of an atom's scalar features.
a, b are the gradients by s_i and v_i.

Functions take a range of atoms and the number of the part, for `lrpot.threads.share`. They are compiled at the first
call for a width, once for each precision, and kept on disk where that can be written to.
"""

# The types of the loops' arguments are the compiler's to find.
# mypy: disallow-untyped-defs=False

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lrpot.compiled import compiled

Array = NDArray[Any]
Loop = Callable[..., None]

# what a record of an edge holds: 6 splines, their derivatives by r, the direction, 1 / r
RECORD = 16


@compiled
def edge_records(vectors: Array, inverse_step: float, intervals: int, rows: Array, records: Array) -> None:
    """Where in the table an edge reads, and with what weights.

    Args:
        vectors: (E, 3), A. inverse_step: 1/A. intervals: of the spline; an edge beyond its end gets weights of zero.
        rows: (E,) int64, result: first row. records: (E, 16), result.
    """
    one = vectors.dtype.type(1.0)
    c = one / vectors.dtype.type(120.0)
    for e in range(vectors.shape[0]):
        x, y, z = vectors[e, 0], vectors[e, 1], vectors[e, 2]
        r = np.sqrt(x * x + y * y + z * z)
        record = records[e]
        record[12], record[13], record[14], record[15] = x / r, y / r, z / r, one / r
        place = r * inverse_step
        if not place < intervals:
            rows[e] = 0
            record[:12] = 0.0
            continue
        row = int(place)
        rows[e] = row
        t = place - row
        s = one - t
        record[0] = c * s * s * s * s * s
        record[1] = c * (1 + s * (5 + s * (10 + s * (10 + s * (5 - 5 * s)))))
        record[2] = c * (26 + s * (50 + s * (20 + s * (-20 + s * (-20 + 10 * s)))))
        record[3] = c * (26 + t * (50 + t * (20 + t * (-20 + t * (-20 + 10 * t)))))
        record[4] = c * (1 + t * (5 + t * (10 + t * (10 + t * (5 - 5 * t)))))
        record[5] = c * t * t * t * t * t
        c5 = 5 * c * inverse_step
        record[6] = -c5 * s * s * s * s
        record[7] = -c5 * (1 + s * (4 + s * (6 + s * (4 - 5 * s))))
        record[8] = -c5 * (10 + s * (8 + s * (-12 + s * (-16 + 10 * s))))
        record[9] = c5 * (10 + t * (8 + t * (-12 + t * (-16 + 10 * t))))
        record[10] = c5 * (1 + t * (4 + t * (6 + t * (4 - 5 * t))))
        record[11] = c5 * t * t * t * t


class Loops(NamedTuple):
    """The compiled loops for one width F; see the functions of the same names below."""

    forward: Loop
    backward: Loop
    by_table: Loop
    second_at_centre: Loop
    second_at_neighbour: Loop


@lru_cache(maxsize=16)
def loops(features: int, with_vectors: bool) -> Loops:
    """The loops for a width; it is a constant in them, and so is whether there are vectors yet (v = 0 before)."""
    F, F2, F3 = features, 2 * features, 3 * features
    V = with_vectors

    @compiled
    def forward(start, stop, part, pointers, order, neighbour, rows, records, table, phi, v, s_in, v_in, s_out, v_out):
        """s_out = s_in + messages, v_out = v_in + messages, for the centres start ... stop.

        pointers, order: edges by centre. neighbour, rows (E,), records (E, 16). table (K + 5, 3F), phi (N, 3F),
        v (N, 3, F), s (N, F).
        """
        sums = np.empty(4 * F, table.dtype)
        for i in range(start, stop):
            sums[:] = 0
            for q in range(pointers[i], pointers[i + 1]):
                e = order[q]
                j = neighbour[e]
                R = records[e]
                b0, b1, b2, b3, b4, b5 = R[0], R[1], R[2], R[3], R[4], R[5]
                x, y, z = R[12], R[13], R[14]
                T = table[rows[e] : rows[e] + 6]
                p, u = phi[j], v[j]
                for f in range(F):
                    g, h = F + f, F2 + f
                    ws = b0 * T[0, f] + b1 * T[1, f] + b2 * T[2, f] + b3 * T[3, f] + b4 * T[4, f] + b5 * T[5, f]
                    wr = b0 * T[0, g] + b1 * T[1, g] + b2 * T[2, g] + b3 * T[3, g] + b4 * T[4, g] + b5 * T[5, g]
                    sums[f] += ws * p[f]
                    mr = wr * p[g]
                    if V:
                        wv = b0 * T[0, h] + b1 * T[1, h] + b2 * T[2, h] + b3 * T[3, h] + b4 * T[4, h] + b5 * T[5, h]
                        mv = wv * p[h]
                        sums[g] += mr * x + mv * u[0, f]
                        sums[h] += mr * y + mv * u[1, f]
                        sums[F3 + f] += mr * z + mv * u[2, f]
                    else:
                        sums[g] += mr * x
                        sums[h] += mr * y
                        sums[F3 + f] += mr * z
            for f in range(F):
                s_out[i, f] = s_in[i, f] + sums[f]
            for c in range(3):
                for f in range(F):
                    if V:
                        v_out[i, c, f] = v_in[i, c, f] + sums[F + c * F + f]
                    else:
                        v_out[i, c, f] = sums[F + c * F + f]

    @compiled
    def backward(start, stop, part, pointers, order, centre, rows, records, table, phi, v, a, b, g_phi, g_v, g_vectors):
        """Gradients g_phi (N, 3F), g_v (N, 3, F) and g_vectors (E, 3) from a (N, F) and b (N, 3, F).

        pointers, order: edges by neighbour; start ... stop are neighbours.
        """
        sums = np.empty(6 * F, table.dtype)
        zero = table.dtype.type(0)
        for j in range(start, stop):
            sums[:] = 0
            p, u = phi[j], v[j]
            for q in range(pointers[j], pointers[j + 1]):
                e = order[q]
                i = centre[e]
                R = records[e]
                b0, b1, b2, b3, b4, b5 = R[0], R[1], R[2], R[3], R[4], R[5]
                c0, c1, c2, c3, c4, c5 = R[6], R[7], R[8], R[9], R[10], R[11]
                x, y, z = R[12], R[13], R[14]
                T = table[rows[e] : rows[e] + 6]
                ai, bi = a[i], b[i]
                along, gx, gy, gz = zero, zero, zero, zero
                for f in range(F):
                    g, h = F + f, F2 + f
                    ws = b0 * T[0, f] + b1 * T[1, f] + b2 * T[2, f] + b3 * T[3, f] + b4 * T[4, f] + b5 * T[5, f]
                    wr = b0 * T[0, g] + b1 * T[1, g] + b2 * T[2, g] + b3 * T[3, g] + b4 * T[4, g] + b5 * T[5, g]
                    ds = c0 * T[0, f] + c1 * T[1, f] + c2 * T[2, f] + c3 * T[3, f] + c4 * T[4, f] + c5 * T[5, f]
                    dr = c0 * T[0, g] + c1 * T[1, g] + c2 * T[2, g] + c3 * T[3, g] + c4 * T[4, g] + c5 * T[5, g]
                    bx, by, bz = bi[0, f], bi[1, f], bi[2, f]
                    bd = bx * x + by * y + bz * z
                    sums[f] += ws * ai[f]
                    sums[g] += wr * bd
                    t = wr * p[g]
                    gx += t * bx
                    gy += t * by
                    gz += t * bz
                    along += ds * p[f] * ai[f] + dr * p[g] * bd
                    if V:
                        wv = b0 * T[0, h] + b1 * T[1, h] + b2 * T[2, h] + b3 * T[3, h] + b4 * T[4, h] + b5 * T[5, h]
                        dv = c0 * T[0, h] + c1 * T[1, h] + c2 * T[2, h] + c3 * T[3, h] + c4 * T[4, h] + c5 * T[5, h]
                        bv = bx * u[0, f] + by * u[1, f] + bz * u[2, f]
                        sums[h] += wv * bv
                        along += dv * p[h] * bv
                        t = wv * p[h]
                        sums[F3 + f] += t * bx
                        sums[F3 + g] += t * by
                        sums[F3 + h] += t * bz
                # the direction changes only across itself
                across = gx * x + gy * y + gz * z
                g_vectors[e, 0] = along * x + (gx - across * x) * R[15]
                g_vectors[e, 1] = along * y + (gy - across * y) * R[15]
                g_vectors[e, 2] = along * z + (gz - across * z) * R[15]
            for f in range(F3):
                g_phi[j, f] = sums[f]
            if V:
                for c in range(3):
                    for f in range(F):
                        g_v[j, c, f] = sums[F3 + c * F + f]

    @compiled
    def by_table(start, stop, part, pointers, order, neighbour, rows, records, phi, v, a, b, g_table):
        """The gradient by the table, g_table (parts, K + 5, 3F), of the centres start ... stop, added to g_table[part].

        pointers, order: edges by centre.
        """
        y_ = np.empty(F3, a.dtype)
        y_[:] = 0
        G = g_table[part]
        for i in range(start, stop):
            ai, bi = a[i], b[i]
            for q in range(pointers[i], pointers[i + 1]):
                e = order[q]
                j = neighbour[e]
                R = records[e]
                x, y, z = R[12], R[13], R[14]
                p, u = phi[j], v[j]
                for f in range(F):
                    y_[f] = ai[f] * p[f]
                    y_[F + f] = (bi[0, f] * x + bi[1, f] * y + bi[2, f] * z) * p[F + f]
                    if V:
                        bv = bi[0, f] * u[0, f] + bi[1, f] * u[1, f] + bi[2, f] * u[2, f]
                        y_[F2 + f] = bv * p[F2 + f]
                for m in range(6):
                    weight, row = R[m], G[rows[e] + m]
                    for f in range(F3 if V else F2):
                        row[f] += weight * y_[f]

    @compiled
    def second_at_centre(
        start, stop, part, pointers, order, neighbour, rows, records, table, phi, v, d_phi, d_v, d_vectors, g_a, g_b
    ):
        """The gradients by a and b, g_a (N, F) and g_b (N, 3, F), of what `backward` gives.

        d_phi (N, 3F), d_v (N, 3, F) and d_vectors (E, 3) are the gradients by g_phi, g_v and g_vectors.
        pointers, order: edges by centre.
        """
        sums = np.empty(4 * F, table.dtype)
        for i in range(start, stop):
            sums[:] = 0
            for q in range(pointers[i], pointers[i + 1]):
                e = order[q]
                j = neighbour[e]
                R = records[e]
                b0, b1, b2, b3, b4, b5 = R[0], R[1], R[2], R[3], R[4], R[5]
                x, y, z = R[12], R[13], R[14]
                # how the length and the direction change along d_vectors
                dr = d_vectors[e, 0] * x + d_vectors[e, 1] * y + d_vectors[e, 2] * z
                dx = (d_vectors[e, 0] - dr * x) * R[15]
                dy = (d_vectors[e, 1] - dr * y) * R[15]
                dz = (d_vectors[e, 2] - dr * z) * R[15]
                c0, c1, c2, c3, c4, c5 = dr * R[6], dr * R[7], dr * R[8], dr * R[9], dr * R[10], dr * R[11]
                T = table[rows[e] : rows[e] + 6]
                p, dp, u, du = phi[j], d_phi[j], v[j], d_v[j]
                for f in range(F):
                    g, h = F + f, F2 + f
                    ws = b0 * T[0, f] + b1 * T[1, f] + b2 * T[2, f] + b3 * T[3, f] + b4 * T[4, f] + b5 * T[5, f]
                    wr = b0 * T[0, g] + b1 * T[1, g] + b2 * T[2, g] + b3 * T[3, g] + b4 * T[4, g] + b5 * T[5, g]
                    vs = c0 * T[0, f] + c1 * T[1, f] + c2 * T[2, f] + c3 * T[3, f] + c4 * T[4, f] + c5 * T[5, f]
                    vr = c0 * T[0, g] + c1 * T[1, g] + c2 * T[2, g] + c3 * T[3, g] + c4 * T[4, g] + c5 * T[5, g]
                    sums[f] += ws * dp[f] + vs * p[f]
                    mr = wr * dp[g] + vr * p[g]
                    nr = wr * p[g]
                    if V:
                        wv = b0 * T[0, h] + b1 * T[1, h] + b2 * T[2, h] + b3 * T[3, h] + b4 * T[4, h] + b5 * T[5, h]
                        vv = c0 * T[0, h] + c1 * T[1, h] + c2 * T[2, h] + c3 * T[3, h] + c4 * T[4, h] + c5 * T[5, h]
                        mv = wv * dp[h] + vv * p[h]
                        nv = wv * p[h]
                        sums[g] += mr * x + nr * dx + mv * u[0, f] + nv * du[0, f]
                        sums[h] += mr * y + nr * dy + mv * u[1, f] + nv * du[1, f]
                        sums[F3 + f] += mr * z + nr * dz + mv * u[2, f] + nv * du[2, f]
                    else:
                        sums[g] += mr * x + nr * dx
                        sums[h] += mr * y + nr * dy
                        sums[F3 + f] += mr * z + nr * dz
            for f in range(F):
                g_a[i, f] = sums[f]
            for c in range(3):
                for f in range(F):
                    g_b[i, c, f] = sums[F + c * F + f]

    @compiled
    def second_at_neighbour(
        start, stop, part, pointers, order, centre, rows, records, table, phi, v, a, b, d_phi, d_v, d_vectors,
        g_phi, g_v, g_table,
    ):  # fmt: skip
        """The gradients by phi, v and the table of what `backward` gives; see `second_at_centre`.

        pointers, order: edges by neighbour. g_phi (N, 3F), g_v (N, 3, F); g_table (parts, K + 5, 3F) is added to.
        """
        sums = np.empty(6 * F, table.dtype)
        y_ = np.zeros(F3, table.dtype)
        z_ = np.zeros(F3, table.dtype)
        G = g_table[part]
        for j in range(start, stop):
            sums[:] = 0
            p, dp, u, du = phi[j], d_phi[j], v[j], d_v[j]
            for q in range(pointers[j], pointers[j + 1]):
                e = order[q]
                i = centre[e]
                R = records[e]
                b0, b1, b2, b3, b4, b5 = R[0], R[1], R[2], R[3], R[4], R[5]
                x, y, z = R[12], R[13], R[14]
                dr = d_vectors[e, 0] * x + d_vectors[e, 1] * y + d_vectors[e, 2] * z
                dx = (d_vectors[e, 0] - dr * x) * R[15]
                dy = (d_vectors[e, 1] - dr * y) * R[15]
                dz = (d_vectors[e, 2] - dr * z) * R[15]
                c0, c1, c2, c3, c4, c5 = dr * R[6], dr * R[7], dr * R[8], dr * R[9], dr * R[10], dr * R[11]
                T = table[rows[e] : rows[e] + 6]
                ai, bi = a[i], b[i]
                for f in range(F):
                    g, h = F + f, F2 + f
                    wr = b0 * T[0, g] + b1 * T[1, g] + b2 * T[2, g] + b3 * T[3, g] + b4 * T[4, g] + b5 * T[5, g]
                    vs = c0 * T[0, f] + c1 * T[1, f] + c2 * T[2, f] + c3 * T[3, f] + c4 * T[4, f] + c5 * T[5, f]
                    vr = c0 * T[0, g] + c1 * T[1, g] + c2 * T[2, g] + c3 * T[3, g] + c4 * T[4, g] + c5 * T[5, g]
                    bx, by, bz = bi[0, f], bi[1, f], bi[2, f]
                    bd = bx * x + by * y + bz * z
                    bdd = bx * dx + by * dy + bz * dz
                    sums[f] += vs * ai[f]
                    sums[g] += vr * bd + wr * bdd
                    y_[f] = ai[f] * dp[f]
                    y_[g] = bd * dp[g] + bdd * p[g]
                    z_[f] = ai[f] * p[f]
                    z_[g] = bd * p[g]
                    if V:
                        wv = b0 * T[0, h] + b1 * T[1, h] + b2 * T[2, h] + b3 * T[3, h] + b4 * T[4, h] + b5 * T[5, h]
                        vv = c0 * T[0, h] + c1 * T[1, h] + c2 * T[2, h] + c3 * T[3, h] + c4 * T[4, h] + c5 * T[5, h]
                        bv = bx * u[0, f] + by * u[1, f] + bz * u[2, f]
                        bdv = bx * du[0, f] + by * du[1, f] + bz * du[2, f]
                        sums[h] += vv * bv + wv * bdv
                        y_[h] = bv * dp[h] + bdv * p[h]
                        z_[h] = bv * p[h]
                        t = wv * dp[h] + vv * p[h]
                        sums[F3 + f] += t * bx
                        sums[F3 + g] += t * by
                        sums[F3 + h] += t * bz
                for m in range(6):
                    y_weight, z_weight, row = R[m], dr * R[6 + m], G[rows[e] + m]
                    for f in range(F3 if V else F2):
                        row[f] += y_weight * y_[f] + z_weight * z_[f]
            for f in range(F3):
                g_phi[j, f] = sums[f]
            if V:
                for c in range(3):
                    for f in range(F):
                        g_v[j, c, f] = sums[F3 + c * F + f]

    return Loops(forward, backward, by_table, second_at_centre, second_at_neighbour)
