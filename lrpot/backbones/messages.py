"""PaiNN's messages along edges, with their first and second derivatives.

For an edge (j -> i) of length r and direction d (Schütt et al. 2021, Eqs. 7 and 8, in PaiNN's order of thirds)

    s_i += W_s(r) p_s[j],    v_i += (W_r(r) p_r[j]) d + (W_v(r) p_v[j]) v[j].

`plain_messages` says it in tensor operations, for any device and any derivative. `FusedMessages` is for the CPU: loops
that store nothing per edge (`lrpot.backbones.fused`), where the filters W are quintic splines.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from lrpot.backbones import fused
from lrpot.backbones.radial import ROWS, basis_splines
from lrpot.compiled import group
from lrpot.errors import ShapeError, StructureError
from lrpot.threads import parts, share

_state = threading.local()


@contextmanager
def positions_only() -> Iterator[None]:
    """Promise: the derivatives taken inside are by positions and strain, and are differentiated by weights only.

    That is training on forces. Outside of it every derivative of any order is right, but those that are to be
    differentiated again take the plain road, for one cannot see beforehand by what.
    """
    before = getattr(_state, "positions_only", False)
    _state.positions_only = True
    try:
        yield
    finally:
        _state.positions_only = before


def plain_messages(
    filters: Tensor,
    vectors: Tensor,
    neighbour: Tensor,
    centre: Tensor,
    phi: Tensor,
    scalar: Tensor,
    vector: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Scalars and vectors plus the messages to them.

    Args:
        filters: (E, 3F), W of each edge. vectors: (E, 3), A, from centre to neighbour.
        neighbour, centre: (E,).
        phi: (N, 3F), the scalar features that are sent. scalar: (N, F).
        vector: (N, 3, F), or None for zeros.
    Returns:
        (N, F) and (N, 3, F).
    """
    directions = vectors / torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    to_scalar, along_edge, along_vector = (filters * phi[neighbour]).chunk(3, dim=1)
    messages = along_edge[:, None, :] * directions[:, :, None]
    if vector is None:
        vector = scalar.new_zeros(scalar.shape[0], 3, scalar.shape[1])
    else:
        messages = messages + along_vector[:, None, :] * vector[neighbour]
    return scalar.index_add(0, centre, to_scalar), vector.index_add(0, centre, messages)


class FusedMessages:
    """The edges of a batch, ready for the loops; made once for all steps of a network."""

    def __init__(self, edge_index: Tensor, vectors: Tensor, n_atoms: int, end: float, intervals: int) -> None:
        """
        Args:
            edge_index: (2, E), neighbour and centre, on the CPU.
            vectors: (E, 3), A, float32 or float64; kept, for derivatives by them.
            n_atoms: N.
            end, intervals: of the splines (A); an edge beyond the end sends nothing.
        Raises:
            ShapeError: not one vector for each edge.
            StructureError: an edge of an atom that does not exist, which the loops would look for all the same.
        """
        if edge_index.ndim != 2 or len(edge_index) != 2 or vectors.shape != (edge_index.shape[1], 3):
            raise ShapeError(
                f"edge_index is {tuple(edge_index.shape)} and edge vectors are {tuple(vectors.shape)}; "
                "give (2, E) and (E, 3)"
            )
        if edge_index.numel():
            lowest, highest = (int(x) for x in edge_index.aminmax())
            if lowest < 0 or highest >= n_atoms:
                wrong = lowest if lowest < 0 else highest
                raise StructureError(f"edge_index names atom {wrong} of {n_atoms}; count atoms from 0")
        self.vectors = vectors
        self.edge_index = edge_index
        self.step, self.intervals = end / intervals, intervals
        xyz = vectors.detach().contiguous().numpy()
        self.neighbour, self.centre = edge_index.contiguous().numpy()
        self.rows = torch.empty(len(xyz), dtype=torch.int64).numpy()
        self.records = torch.empty((len(xyz), fused.RECORD), dtype=vectors.dtype).numpy()
        fused.edge_records(xyz, xyz.dtype.type(intervals / end), intervals, self.rows, self.records)
        self.by_centre = _sorted(self.centre, n_atoms)
        self.by_neighbour = _sorted(self.neighbour, n_atoms)

    def __call__(self, table: Tensor, phi: Tensor, scalar: Tensor, vector: Tensor | None) -> tuple[Tensor, Tensor]:
        """What `plain_messages` gives, with filters from a table.

        Args:
            table: (intervals + 5, 3F), see `lrpot.backbones.radial`. phi: (N, 3F). scalar: (N, F).
            vector: (N, 3, F) or None.
        """
        # the loops are compiled for the precision of the edges, also where layers before them work in a lower one
        phi, scalar = phi.to(self.vectors.dtype), scalar.to(self.vectors.dtype)
        vector = None if vector is None else vector.to(self.vectors.dtype)
        return _Messages.apply(self, table.to(self.vectors.dtype), self.vectors, phi, scalar, vector)

    def plainly(self, table: Tensor, phi: Tensor, scalar: Tensor, vector: Tensor | None) -> tuple[Tensor, Tensor]:
        """The same in tensor operations."""
        place = torch.linalg.vector_norm(self.vectors, dim=1) / self.step
        inside = (place.detach() < self.intervals).to(place.dtype)
        row = (place.detach() * inside).to(torch.int64)
        splines = basis_splines(place - row) * inside[:, None]
        filters = torch.stack([splines[:, m, None] * table[row + m] for m in range(ROWS)]).sum(dim=0)
        neighbour, centre = self.edge_index
        return plain_messages(filters, self.vectors, neighbour, centre, phi, scalar, vector)

    def run(self, loop: Any, features: int, *, by_neighbour: bool, args: tuple[Any, ...]) -> None:
        """Run a loop over all atoms, shared by threads."""
        pointers, order = self.by_neighbour if by_neighbour else self.by_centre
        other = self.centre if by_neighbour else self.neighbour
        share(loop, pointers, self.work(features), order, other, self.rows, self.records, *args)

    def work(self, features: int) -> int:
        return len(self.rows) * features // 16


class _Messages(Function):
    @staticmethod
    def forward(
        ctx: Any,
        edges: FusedMessages,
        table: Tensor,
        vectors: Tensor,
        phi: Tensor,
        scalar: Tensor,
        vector: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        n, features = scalar.shape
        to_scalar, to_vector = _result(scalar), scalar.new_empty(n, 3, features)
        v = _array(_vectors_or_none(vector, scalar))
        arrays = (_array(table), _array(phi), v, _array(scalar), v, to_scalar.numpy(), to_vector.numpy())
        edges.run(_loops(features, vector).forward, features, by_neighbour=False, args=arrays)
        ctx.edges = edges
        ctx.save_for_backward(table, vectors, phi, scalar, vector)
        return to_scalar, to_vector

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        a, b = gradients
        table, _, phi, scalar, vector = ctx.saved_tensors
        edges: FusedMessages = ctx.edges
        promised = getattr(_state, "positions_only", False)
        if torch.is_grad_enabled() and not promised:
            return (None, *_plain_gradients(edges, ctx.saved_tensors, ctx.needs_input_grad[1:], a, b))
        g_phi, g_v, g_vectors = _Gradients.apply(edges, table, phi, vector, a, b)
        g_table = None
        if ctx.needs_input_grad[1] and not promised:
            g_table = _table_sums(edges, table)
            features = scalar.shape[1]
            v = _array(_vectors_or_none(vector, scalar))
            arrays = (_array(phi), v, _array(a), _array(b), g_table.numpy())
            edges.run(_loops(features, vector).by_table, features, by_neighbour=False, args=arrays)
            g_table = g_table.sum(dim=0)
        return None, g_table, g_vectors, g_phi, a, None if vector is None else b + g_v


class _Gradients(Function):
    """Gradients of the messages by phi, v and the edge vectors, from those by s (a) and v (b)."""

    @staticmethod
    def forward(
        ctx: Any, edges: FusedMessages, table: Tensor, phi: Tensor, vector: Tensor | None, a: Tensor, b: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        features = a.shape[1]
        g_phi, g_v = _result(phi), _result(_vectors_or_none(vector, a))
        g_vectors = a.new_empty(len(edges.rows), 3)
        v = _array(_vectors_or_none(vector, a))
        arrays = (_array(table), _array(phi), v, _array(a), _array(b), g_phi.numpy(), g_v.numpy(), g_vectors.numpy())
        edges.run(_loops(features, vector).backward, features, by_neighbour=True, args=arrays)
        ctx.edges = edges
        ctx.save_for_backward(table, phi, vector, a, b)
        return g_phi, g_v, g_vectors

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        table, phi, vector, a, b = ctx.saved_tensors
        edges: FusedMessages = ctx.edges
        features = a.shape[1]
        loops = _loops(features, vector)
        g_a, g_b, g_phi = _result(a), _result(b), _result(phi)
        g_v, g_table = _result(_vectors_or_none(vector, a)), _table_sums(edges, table)
        v = _array(_vectors_or_none(vector, a))
        given = tuple(_array(x) for x in gradients)
        common = (_array(table), _array(phi), v)
        outputs = (g_phi.numpy(), g_v.numpy(), g_table.numpy())
        edges.run(
            loops.second_at_centre, features, by_neighbour=False, args=(*common, *given, g_a.numpy(), g_b.numpy())
        )
        edges.run(
            loops.second_at_neighbour,
            features,
            by_neighbour=True,
            args=(*common, _array(a), _array(b), *given, *outputs),
        )
        return None, g_table.sum(dim=0), g_phi, None if vector is None else g_v, g_a, g_b


def _plain_gradients(
    edges: FusedMessages, inputs: tuple[Tensor | None, ...], needed: tuple[bool, ...], a: Tensor, b: Tensor
) -> list[Tensor | None]:
    """Gradients that can be differentiated any number of times, by anything."""
    with torch.enable_grad():
        # views, for in a network of many steps an input depends on others, and only direct dependence counts here
        table, vectors, phi, scalar, vector = views = [None if x is None else x.view_as(x) for x in inputs]
        again = FusedMessages.__new__(FusedMessages)
        again.__dict__ = edges.__dict__ | {"vectors": vectors}
        outputs = again.plainly(table, phi, scalar, vector)  # type: ignore[arg-type]
        wanted = [x for x, needs in zip(views, needed, strict=True) if needs and x is not None]
        found = iter(torch.autograd.grad(outputs, wanted, (a, b), create_graph=True, materialize_grads=True))
    return [next(found) if needs else None for needs in needed]


def _loops(features: int, vector: Tensor | None) -> fused.Loops:
    return fused.loops(features, vector is not None)


def _sorted(keys: Any, n_atoms: int) -> tuple[Any, Any]:
    pointers = torch.empty(n_atoms + 1, dtype=torch.int64).numpy()
    order = torch.empty(len(keys), dtype=torch.int64).numpy()
    group(keys, pointers, order)
    return pointers, order


def _table_sums(edges: FusedMessages, table: Tensor) -> Tensor:
    """(parts, K + 5, 3F): each thread adds up its own."""
    return table.new_zeros(parts(edges.work(table.shape[1] // 3)), *table.shape)


def _array(tensor: Tensor) -> Any:
    return tensor.detach().contiguous().numpy()


def _result(like: Tensor) -> Tensor:
    """Of that shape and contiguous, for the loops are compiled anew for every other layout."""
    return torch.empty_like(like, memory_format=torch.contiguous_format)


def _vectors_or_none(vector: Tensor | None, scalar: Tensor) -> Tensor:
    """Vectors, or no rows of them, which the loops without vectors do not read."""
    return scalar.new_empty(0, 3, scalar.shape[1]) if vector is None else vector
