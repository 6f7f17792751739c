"""Training steps of ReGNet(3): with its filters, without, and without them as plain scatter code; building of graphs.

    python benchmarks/regnet.py JDFT2D

JDFT2D is a file of crystals, matbench_jdft2d as extended XYZ for the table of the README; lrpot does not bring it. The
other batches are cells of 100 to 500 atoms made here: rattled supercells, and atoms at random in triclinic cells. The
plain code does what PotNet's does (edge features for every edge, networks on [h_i, h_j, v_ij]) with the same weights;
before anything is timed both must agree.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cells import random_cell, supercell
from timing import alternate, machine, median_ratio, write
from torch import Tensor, nn
from torch_geometric.data import Batch, Data

from lrpot.console import Console
from lrpot.data.cache import load_graphs
from lrpot.data.graph_builder import GraphSettings
from lrpot.data.graphs import Graphs
from lrpot.data.readers import to_structure
from lrpot.data.shells import FARTHEST
from lrpot.properties.features import CrystalFeatures, mean_over_atoms
from lrpot.properties.regnet import POTENTIAL, GatedMessages, ReGNet
from lrpot.structure import Structure, collate, edge_vectors

NEIGHBOURS = 16
BATCH = 64  # of jdft2d
SIZES = {"100 atoms": (100, 8), "200 atoms": (200, 4), "500 atoms": (500, 2)}  # of a cell, cells in a batch
AGREEMENT = 1e-4  # relative, of features; ours reads edge features from a table
ROUNDS = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="JDFT2D")
    path = parser.parse_args().file
    torch.set_num_threads(1)
    torch.manual_seed(0)
    building, graphs = built(path)
    chosen = graphs.select(np.random.default_rng(0).permutation(len(graphs))[:BATCH])
    records = [record(f"{path.name.split('.')[0]}, {BATCH} crystals", chosen)]
    for name, (n_atoms, n_cells) in SIZES.items():
        for kind, make in (("supercells", supercell), ("random cells", random_cell)):
            cells = [make(n_atoms, seed) for seed in range(n_cells)]
            structures = [to_structure(atoms, FARTHEST, shells=NEIGHBOURS) for atoms in cells]
            records.append(record(f"{n_cells} {kind}, {name}", structures))
    columns = ["batch", "atoms", "plain (s)", "messages (s)", "ReGNet (s)", "plain / ReGNet", "filters", "not prepared"]
    lines = [
        [
            entry["case"],
            str(entry["atoms"]),
            *(f"{entry['s'][name]:.3f}" for name in ("plain messages", "messages", "ReGNet")),
            f"{entry['plain messages / ReGNet']:.2f}",
            f"+{100 * entry['filters']:.0f} %",
            f"+{100 * entry['filters, not prepared']:.0f} %",
        ]
        for entry in records
    ]
    Console().table("training steps of ReGNet(3), F=256, one thread", columns, lines)
    print(f"{building:.0f} graphs per second and core from {path.name}")
    content = {"machine": machine(), "neighbours": NEIGHBOURS, "graphs/s/core": building, "records": records}
    print("wrote", write("regnet", content))


def built(path: Path) -> tuple[float, Graphs]:
    """Graphs per second of one core, reading of the file included; and the graphs."""
    seconds = []
    for _ in range(3):
        # of the processor: other work on the machine shares the core
        began = time.process_time()
        graphs = Graphs([load_graphs(path, GraphSettings(FARTHEST, shells=NEIGHBOURS, labels=False))])
        seconds.append(time.process_time() - began)
    return len(graphs) / statistics.median(seconds), graphs


def record(case: str, structures: Sequence[Structure]) -> dict[str, Any]:
    """Steps of one batch."""
    messages, whole = ReGNet(reciprocal=False), ReGNet()
    plain = PlainMessages(messages)
    batch = collate(structures)
    check_agreement(batch, messages, plain)
    began = time.perf_counter()
    prepared = [Structure.from_dict(each.to_dict() | whole.prepared(each)) for each in structures]
    preparing = time.perf_counter() - began
    with_pairs = collate(prepared)
    seconds = alternate(
        {
            "plain messages": lambda: step(plain, batch),
            "messages": lambda: step(messages, batch),
            "ReGNet": lambda: step(whole, with_pairs),
            "ReGNet, not prepared": lambda: step(whole, batch),
        },
        ROUNDS,
        warmup=2,
    )
    found = {
        "case": case,
        "atoms": batch.num_nodes,
        "edges": batch.num_edges,
        "s": {name: statistics.median(values) for name, values in seconds.items()},
        "preparing (s/crystal)": preparing / len(structures),
        "plain messages / messages": median_ratio(seconds["plain messages"], seconds["messages"]),
        "plain messages / ReGNet": median_ratio(seconds["plain messages"], seconds["ReGNet"]),
        "filters": median_ratio(seconds["ReGNet"], seconds["messages"]) - 1.0,
        "filters, not prepared": median_ratio(seconds["ReGNet, not prepared"], seconds["messages"]) - 1.0,
    }
    print(found, flush=True)
    return found


def step(network: nn.Module, batch: Batch) -> None:
    """Of training, but for the optimiser."""
    network.zero_grad()
    network(batch).graph.square().mean().backward()


def check_agreement(batch: Batch, *networks: nn.Module) -> None:
    with torch.no_grad():
        ours, theirs = (copy.deepcopy(network).eval()(batch).graph for network in networks)
    if float((ours - theirs).abs().max()) > AGREEMENT * float(ours.abs().max()):
        raise SystemExit("the two forms of the messages disagree; the comparison would mean nothing")


class PlainMessages(nn.Module):
    """`ReGNet(reciprocal=False)` with the same weights, written down as its formulas are."""

    def __init__(self, network: ReGNet) -> None:
        super().__init__()
        network = copy.deepcopy(network)
        self.embedding, self.basis, self.edge = network.embedding, network.basis, network.edge
        self.blocks = nn.ModuleList(PlainBlock(each) for each in network.messages)

    def forward(self, batch: Data) -> CrystalFeatures:
        h = self.embedding(batch.numbers)
        distances = torch.linalg.vector_norm(edge_vectors(batch), dim=1)
        edges = nn.functional.softplus(self.edge(self.basis((POTENTIAL / distances).to(h.dtype))))
        for block in self.blocks:
            h = block(h, batch.edge_index, edges)
        return CrystalFeatures(mean_over_atoms(h, batch), h)


class PlainBlock(nn.Module):
    """Two networks on [h_i, h_j, v_ij] for every edge, and a sum over edges."""

    def __init__(self, messages: GatedMessages) -> None:
        super().__init__()
        features = messages.norm.num_features
        first = [nn.Linear(3 * features, features) for _ in range(2)]
        parts = [layer.weight.detach().chunk(2) for layer in (messages.centre, messages.neighbour, messages.edge)]
        for number, layer in enumerate(first):
            layer.weight.data = torch.cat([part[number] for part in parts], dim=1)
            layer.bias.data = messages.centre.bias.detach().chunk(2)[number].clone()
        self.gate = nn.Sequential(first[0], nn.SiLU(), messages.gate)
        self.message = nn.Sequential(first[1], nn.SiLU(), messages.message)
        self.gate_norm, self.norm = messages.gate_norm, messages.norm

    def forward(self, h: Tensor, edge_index: Tensor, edges: Tensor) -> Tensor:
        neighbour, centre = edge_index
        z = torch.cat([h[centre], h[neighbour], edges], dim=1)
        gated = torch.sigmoid(self.gate_norm(self.gate(z))) * self.message(z)
        return torch.relu(h + self.norm(torch.zeros_like(h).index_add(0, centre, gated)))


if __name__ == "__main__":
    main()
