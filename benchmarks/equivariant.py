"""One training step (energy and forces, Adam) of the equivariant network beside MACE of the same size.

    python benchmarks/equivariant.py [MODEL ...]

Eight cells of GaN with eight atoms each. Both have 32x0e + 32x1o and two steps, the same edges, and a loss of energies
and forces. MACE has its defaults (harmonics up to l = 3, correlation 3); "light" is as close to ours as it gets
(harmonics up to l = 1, correlation 1). MACE needs an e3nn of its own, so it lives in another environment:
`pip install mace-torch` there, and run this with that Python. Where it is missing, it is left out.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from timing import alternate, machine, median_ratio, write
from torch import Tensor, nn
from torch_geometric.data import Batch

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a peer's import
        # first, as it sets what its e3nn needs to load
        import mace.modules as mace
except ImportError:
    mace = None

from lrpot.backbones import Equivariant
from lrpot.console import Console
from lrpot.data.neighbours import add_edges
from lrpot.potential import Potential, ShortRange
from lrpot.structure import collate, make_structure

CUTOFF = 5.0  # A
ELEMENTS = (7, 31)
OURS = {"lmax 1": {"lmax": 1}, "lmax 1, tensors": {"lmax": 1, "tensors": True}, "lmax 2": {"lmax": 2}}
PEERS = {"MACE": (3, 3), "MACE light": (1, 1)}  # harmonics up to l, correlation


def main() -> None:
    batch = _batch()
    if mace is None:
        print("MACE is not installed here (pip install mace-torch, in an environment of its own): it is left out")
    records = []
    for dtype in (torch.float32, torch.float64):
        cases = dict(_cases(batch, dtype))
        seconds = alternate(cases)
        record = {
            "dtype": str(dtype),
            "milliseconds": {name: 1e3 * statistics.median(s) for name, s in seconds.items()},
        }
        record["to MACE"] = {n: median_ratio(s, seconds["MACE"]) for n, s in seconds.items() if "MACE" in seconds}
        records.append(record)
    rows = [
        [
            name,
            record["dtype"].removeprefix("torch."),
            f"{value:.1f}",
            f"{record['to MACE'][name]:.2f}" if name in record["to MACE"] else "-",
        ]
        for record in records
        for name, value in record["milliseconds"].items()
    ]
    edges = batch.edge_index.shape[1]
    Console().table("A training step", [f"64 atoms, {edges} edges", "precision", "ms", "/ MACE"], rows)
    print("wrote", write("equivariant", {"machine": machine(), "edges": edges, "records": records}))


def _batch() -> Batch:
    structures = []
    for seed in range(8):
        atoms: Atoms = bulk("GaN", "zincblende", a=4.50, cubic=True)
        atoms.rattle(0.1, seed=seed)
        structure = make_structure(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)
        structures.append(add_edges(structure, CUTOFF))
    return collate(structures)


def _cases(batch: Batch, dtype: torch.dtype) -> Iterator[tuple[str, Callable[[], object]]]:
    for name, settings in OURS.items():
        torch.manual_seed(0)
        short = ShortRange(Equivariant(features=32, interactions=2, cutoff=CUTOFF, **settings), max(ELEMENTS) + 1)
        torch.nn.init.normal_(short.readout.last.weight)
        model = Potential(short, None, list(ELEMENTS)).set_precision(dtype)
        yield name, _step(model, lambda model=model: model(batch, create_graph=True))
    for name, (harmonics, correlation) in PEERS.items() if mace is not None else ():
        peer, inputs = make_mace(batch, dtype, harmonics, correlation), mace_inputs(batch, dtype)
        yield name, _step(peer, lambda peer=peer, inputs=inputs: peer(inputs, training=True))


def _step(model: nn.Module, predict: Callable[[], dict[str, Tensor]]) -> Callable[[], object]:
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-4)

    def step() -> None:
        optimiser.zero_grad()
        output = predict()
        loss = output["energy"].square().mean() + output["forces"].square().mean()
        loss.backward()
        optimiser.step()

    return step


def make_mace(
    batch: Batch,
    dtype: torch.dtype,
    harmonics: int,
    correlation: int,
    *,
    offsets: np.ndarray | None = None,
    scale: float = 1.0,
) -> nn.Module:
    """MACE for the elements of a batch; offsets (1, 2), eV, and the scale of what is learned, eV."""
    from e3nn import o3

    warnings.filterwarnings("ignore", "The TorchScript type system", UserWarning)
    torch.manual_seed(0)
    block = mace.interaction_classes["RealAgnosticResidualInteractionBlock"]
    return mace.ScaleShiftMACE(
        r_max=CUTOFF,
        num_bessel=8,
        num_polynomial_cutoff=5,
        max_ell=harmonics,
        interaction_cls=block,
        interaction_cls_first=block,
        num_interactions=2,
        num_elements=len(ELEMENTS),
        hidden_irreps=o3.Irreps("32x0e+32x1o"),
        MLP_irreps=o3.Irreps("16x0e"),
        atomic_energies=np.zeros((1, len(ELEMENTS))) if offsets is None else offsets,
        avg_num_neighbors=batch.edge_index.shape[1] / batch.num_nodes,
        atomic_numbers=list(ELEMENTS),
        correlation=correlation,
        gate=nn.functional.silu,
        atomic_inter_scale=scale,
        atomic_inter_shift=0.0,
    ).to(dtype)


def mace_inputs(batch: Batch, dtype: torch.dtype) -> dict[str, Tensor]:
    # its edges point from neighbour to centre
    shifts = torch.einsum("ea,eab->eb", batch.edge_shift, batch.cell[batch.batch[batch.edge_index[1]]])
    return {
        "positions": batch.positions.to(dtype),
        "node_attrs": (batch.numbers[:, None] == torch.tensor(ELEMENTS)).to(dtype),
        "edge_index": batch.edge_index,
        "shifts": -shifts.to(dtype),
        "unit_shifts": -batch.edge_shift.to(dtype),
        "cell": batch.cell.flatten(0, 1).to(dtype),
        "batch": batch.batch,
        "ptr": batch.ptr,
    }


if __name__ == "__main__":
    main()
