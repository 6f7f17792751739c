"""What a backbone must do as a torch module: shapes, types, files, copies, devices."""

from __future__ import annotations

import copy
import pickle

import safetensors.torch
import torch
from torch import Tensor, nn

from lrpot.backbones import AtomFeatures
from lrpot.errors import ContractError
from lrpot.structure import collate, edge_vectors
from lrpot.testing.bench import Bench, check_finite, difference

SINGLE_PRECISION = 1e-5  # relative to the largest feature: float32 beside float64


def shapes(bench: Bench) -> float:
    batch = collate(bench.crystals)
    for dtype in (torch.float64, torch.float32):
        output = copy.deepcopy(bench.model).to(dtype)(batch, edge_vectors(batch).to(dtype))
        if not isinstance(output, AtomFeatures):
            raise ContractError(f"forward returned {type(output).__name__}")
        n, named = batch.num_nodes, getattr(bench.model, "irreps_out", None)
        if named is None and output.irreps is not None:
            raise ContractError("it has irreps, but no attribute irreps_out that says what they are")
        expected = {"scalar": (n, bench.features), "vector": (n, 3, bench.features), "irreps": (n, _width(named))}
        for name, shape in expected.items():
            values = getattr(output, name)
            if name != "scalar" and values is None:
                continue
            if tuple(values.shape) != shape or values.dtype != dtype:
                raise ContractError(
                    f"{name} features have shape {tuple(values.shape)} and type {values.dtype}, expected "
                    f"{shape} and {dtype}"
                )
            check_finite(values)
    return 0.0


def _width(irreps: str | None) -> int:
    if irreps is None:
        return 0
    from e3nn import o3  # loads for more than a second; few backbones need it

    return int(o3.Irreps(irreps).dim)


def input_is_kept(bench: Bench) -> float:
    batch = collate(bench.crystals)
    vectors = edge_vectors(batch)
    before = {name: batch[name].clone() for name in batch.keys() if isinstance(batch[name], Tensor)}  # noqa: SIM118
    names, kept = set(batch.keys()), vectors.clone()
    bench.run(batch, vectors)
    if set(batch.keys()) != names:
        raise ContractError(f"the batch has other fields than before: {sorted(names ^ set(batch.keys()))}")
    changed = [name for name, values in before.items() if not torch.equal(batch[name], values)]
    changed += [] if torch.equal(vectors, kept) else ["vectors"]
    if changed:
        raise ContractError(f"{', '.join(changed)} changed")
    return 0.0


def single_precision(bench: Bench) -> float:
    batch = collate(bench.crystals)
    with torch.no_grad():
        single = copy.deepcopy(bench.model).float()(batch, edge_vectors(batch).float())
    return difference(bench.run(batch), single)


def determinism(bench: Bench) -> float:
    batch = collate(bench.crystals)
    return difference(bench.run(batch), bench.run(batch))


def state_dict(bench: Bench) -> float:
    """Into a module with other weights, by way of what a model file holds."""
    state = {name: value.contiguous() for name, value in bench.model.state_dict().items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(bench.seed + 1)
        fresh = bench.make().double().eval()
    fresh.load_state_dict(safetensors.torch.load(safetensors.torch.save(state)))
    return _same_as(bench, fresh)


def pickling(bench: Bench) -> float:
    return _same_as(bench, pickle.loads(pickle.dumps(bench.model)))


def deep_copy(bench: Bench) -> float:
    """Other checks compute with deep copies; here none may share a weight with what it was made from."""
    parameters = [list(model.parameters()) for model in (copy.deepcopy(bench.model), bench.model)]
    places = [{p.data_ptr() for p in part if p.numel()} for part in parameters]
    if places[0] & places[1]:
        raise ContractError("a deep copy shares weights with what it was made from")
    return 0.0


def _same_as(bench: Bench, model: nn.Module) -> float:
    batch = collate(bench.crystals)
    with torch.no_grad():
        return difference(bench.run(batch), model(batch, edge_vectors(batch)))


def gpu_is_cpu(bench: Bench) -> float:
    batch = collate([*bench.crystals, bench.lonely])
    there = batch.clone().to("cuda")
    with torch.no_grad():
        output = copy.deepcopy(bench.model).to("cuda")(there, edge_vectors(there))
    output = AtomFeatures._make(None if values is None else values.cpu() for values in output)
    return difference(bench.run(batch), output)
