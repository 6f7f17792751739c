"""DimeNet++ without a list of triplets beside torch_geometric's layers with one: energy + forces, and a training step.

    python benchmarks/dimenetpp.py

Both get the same weights and the same edges of rattled NaCl, and both start from edge vectors, so that the peer's list
of triplets and our pairs of edges are in the time. Memory is what autograd keeps for the backward pass of the energy.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial

import torch
from ase.build import bulk
from timing import alternate, machine, median_ratio, write
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.nn.models import DimeNetPlusPlus as GeometricDimeNetPlusPlus

from lrpot.backbones import DimeNetPlusPlus
from lrpot.config import DimeNetPlusPlusConfig
from lrpot.console import Console
from lrpot.data.readers import to_structure
from lrpot.structure import Structure, collate, edge_vectors

Network = Callable[[Data, Tensor], Tensor]
AGREEMENT = 1e-4  # relative, of forces in float32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="how often each case runs")
    rounds = parser.parse_args().rounds
    ours, theirs = _networks()
    networks: dict[str, Network] = {
        "lrpot": lambda batch, vectors: ours(batch, vectors).scalar.sum(dim=1),
        "torch_geometric": lambda batch, vectors: _by_triplets(theirs, batch, vectors).sum(dim=1),
    }
    cases = {
        "54 atoms, E + F": (_crystal(3, 0), False),
        "432 atoms, E + F": (_crystal(6, 0), False),
        "8 x 54 atoms, training step": (collate([_crystal(3, seed) for seed in range(8)]), True),
    }
    records = []
    for case, (batch, training) in cases.items():
        vectors = edge_vectors(batch).float()
        for module in (ours, theirs):
            module.requires_grad_(training)
        forces = [_forces(network, batch, vectors) for network in networks.values()]
        if float((forces[0] - forces[1]).abs().max()) > AGREEMENT * float(forces[1].abs().max()):
            raise SystemExit(f"{case}: the two networks disagree; the comparison would mean nothing")
        step = _training_step if training else _forces
        seconds = alternate(
            {name: partial(step, network, batch, vectors) for name, network in networks.items()},
            rounds,
            warmup=1,
        )
        records.append(
            {
                "case": case,
                "edges": vectors.shape[0],
                "milliseconds": {name: 1e3 * statistics.median(values) for name, values in seconds.items()},
                "megabytes kept": {name: _kept(network, batch, vectors) for name, network in networks.items()},
                "torch_geometric / lrpot": median_ratio(seconds["torch_geometric"], seconds["lrpot"]),
            }
        )
    rows = [
        [
            record["case"],
            *(f"{record['milliseconds'][name]:.0f}" for name in networks),
            f"{record['torch_geometric / lrpot']:.2f}",
            *(f"{record['megabytes kept'][name]:.0f}" for name in networks),
        ]
        for record in records
    ]
    columns = ["float32", "lrpot (ms)", "torch_geometric (ms)", "ratio", "lrpot (MB)", "torch_geometric (MB)"]
    Console().table("DimeNet++", columns, rows)
    print("wrote", write("dimenetpp", {"machine": machine(), "rounds": rounds, "records": records}))


def _crystal(repeat: int, seed: int) -> Structure:
    atoms = bulk("NaCl", "rocksalt", a=5.64).repeat(repeat)
    atoms.rattle(0.1, seed=seed)
    return to_structure(atoms, DimeNetPlusPlusConfig().cutoff)


def _networks() -> tuple[DimeNetPlusPlus, GeometricDimeNetPlusPlus]:
    """Ours and the peer's, with the default settings and the same random weights."""
    config = DimeNetPlusPlusConfig()
    torch.manual_seed(0)
    ours = DimeNetPlusPlus(**config.model_dump(exclude={"name"}))
    theirs = GeometricDimeNetPlusPlus(
        hidden_channels=config.features,
        out_channels=config.features,
        num_blocks=config.interactions,
        int_emb_size=config.triplet_features,
        basis_emb_size=config.basis_features,
        out_emb_channels=config.output_features,
        num_spherical=config.spherical_basis,
        num_radial=config.radial_basis,
        cutoff=config.cutoff,
        envelope_exponent=config.envelope_exponent,
    )
    weights = dict(ours.state_dict())
    weights["emb.emb.weight"] = weights["emb.emb.weight"][: theirs.emb.emb.num_embeddings]
    theirs.load_state_dict(weights)
    return ours, theirs


def _by_triplets(network: GeometricDimeNetPlusPlus, batch: Data, vectors: Tensor) -> Tensor:
    """(N, F): the peer's layers, on every periodic triplet that its own list for molecules would have."""
    neighbour, centre = batch.edge_index
    n_atoms = batch.numbers.shape[0]
    kj, ji = _triplets(batch)
    distances = torch.linalg.vector_norm(vectors, dim=1)
    sine = torch.linalg.vector_norm(torch.linalg.cross(vectors[ji], vectors[kj]), dim=1)
    angles = torch.atan2(sine, (vectors[ji] * vectors[kj]).sum(dim=1))
    radial = network.rbf(distances)
    basis = network.sbf(distances, angles, kj)
    messages = network.emb(batch.numbers, radial, centre, neighbour)
    features = network.output_blocks[0](messages, radial, centre, num_nodes=n_atoms)
    for interact, output in zip(network.interaction_blocks, network.output_blocks[1:], strict=True):
        messages = interact(messages, radial, basis, kj, ji)
        features = features + output(messages, radial, centre, num_nodes=n_atoms)
    return features


def _triplets(batch: Data) -> tuple[Tensor, Tensor]:
    """Edges k -> j and j -> i of all triplets but those that go straight back."""
    neighbour, centre = batch.edge_index
    counts = torch.bincount(centre, minlength=batch.numbers.shape[0])
    first = counts.cumsum(0) - counts  # edges are sorted by centre
    arriving = counts[neighbour]
    ji = torch.arange(len(centre)).repeat_interleave(arriving)
    kj = first[neighbour[ji]] + torch.arange(len(ji)) - (arriving.cumsum(0) - arriving)[ji]
    back = (neighbour[kj] == centre[ji]) & (batch.edge_shift[kj] == -batch.edge_shift[ji]).all(dim=1)
    return kj[~back], ji[~back]


def _forces(network: Network, batch: Data, vectors: Tensor, *, create_graph: bool = False) -> Tensor:
    vectors = vectors.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(network(batch, vectors).sum(), vectors, create_graph=create_graph)
    return gradient


def _training_step(network: Network, batch: Data, vectors: Tensor) -> None:
    _forces(network, batch, vectors, create_graph=True).square().mean().backward()


def _kept(network: Network, batch: Data, vectors: Tensor) -> float:
    """Megabytes of the storages that autograd keeps between the energy and its derivative."""
    storages: dict[int, int] = {}
    alive = []

    def keep(tensor: Tensor) -> Tensor:
        alive.append(tensor)  # an address must not be given out twice
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(batch, vectors.detach().requires_grad_()).sum()
    return sum(storages.values()) / 1e6


if __name__ == "__main__":
    main()
