"""Arrays of several structures -> one batch, without a structure for each: what a training step waits for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch_geometric.data import Batch

from lrpot.structure import Structure, gap


def stack(structures: Sequence[Mapping[str, np.ndarray]], dtypes: Mapping[str, str]) -> Batch:
    """The same as `lrpot.structure.collate_with_gaps`, three to five times faster.

    Args:
        structures: the fields of each, in any type that holds them exactly.
        dtypes: the type of each field in the batch.
    """
    atoms = np.array([len(fields["numbers"]) for fields in structures])
    starts = np.concatenate([[0], np.cumsum(atoms)])
    batch = Batch(_base_cls=Structure)
    for name in dict.fromkeys(name for fields in structures for name in fields):
        parts = [fields[name] if name in fields else _gap(name, n) for fields, n in zip(structures, atoms, strict=True)]
        values = np.concatenate(parts, axis=1 if name == "edge_index" else 0).astype(dtypes[name], copy=False)
        if name == "edge_index":
            values += np.repeat(starts[:-1], [part.shape[1] for part in parts])
        batch[name] = torch.from_numpy(values)
    batch.batch = torch.from_numpy(np.repeat(np.arange(len(atoms)), atoms))
    batch.ptr = torch.from_numpy(starts)
    batch.num_nodes = int(starts[-1])
    return batch


def _gap(name: str, n_atoms: int) -> np.ndarray:
    """What stands for a label that a structure lacks."""
    label = name.removeprefix("known_")
    return np.full(gap(label, n_atoms), 0.0 if label != name else np.nan)
