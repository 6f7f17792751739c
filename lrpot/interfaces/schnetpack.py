"""SchNetPack's PaiNN potentials as models of lrpot. SchNetPack itself is needed only here, to read its files.

They are pickles of whole modules. What a pickle may make is limited to modules of SchNetPack and torch and a few
functions, so that no code in a file runs.
"""

from __future__ import annotations

import hashlib
import importlib
import typing
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from ase import units
from ase.data import atomic_numbers
from torch import Tensor, nn

from lrpot.build import build_potential
from lrpot.config import make_config
from lrpot.errors import ConfigError, ModelFileError
from lrpot.model_file import ModelInfo, symbols
from lrpot.potential import Potential
from lrpot.structure import MAX_ATOMIC_NUMBER

# SchNetPack's files do not say their units; these are the common ones, in eV and A.
ENERGY_UNITS = {
    "eV": 1.0,
    "meV": 1e-3,
    "kcal/mol": units.kcal / units.mol,
    "kJ/mol": units.kJ / units.mol,
    "Ha": units.Hartree,
}
LENGTH_UNITS = {"Ang": 1.0, "nm": units.nm, "Bohr": units.Bohr}

GRID = 1e-6  # of the cutoff: how far the centres of Gaussians, made in float32, may lie off an even grid
# What a file may ask for: modules from these places (SchNetPack's others open files and folders), and these functions.
MODULES = (
    "torch.nn.modules.",
    "schnetpack.atomistic.",
    "schnetpack.model.base",
    "schnetpack.nn.",
    "schnetpack.representation.",
    "schnetpack.transform.atomistic",
    "schnetpack.transform.casting",
)
FUNCTIONS = (
    "torch.nn.functional.silu",
    "torch.nn.functional.relu",
    "torch.nn.functional.softplus",
    "torch.nn.init.xavier_uniform_",
    "torch.nn.init.zeros_",
    "schnetpack.nn.activations.shifted_softplus",
)


def convert_schnetpack(
    path: str | Path,
    *,
    elements: Iterable[str],
    energy_unit: str,
    length_unit: str = "Ang",
) -> Potential:
    """Read a model that SchNetPack 2 saved whole (`best_model`), as a potential without long range.

    Args:
        path: a `NeuralNetworkPotential` with representation PaiNN, GaussianRBF, CosineCutoff, a two-layer Atomwise
            readout with silu, and AddOffsets.
        elements: symbols that it was fitted to; the file does not say.
        energy_unit: of the data that it was fitted to, one of ENERGY_UNITS.
        length_unit: of the same, one of LENGTH_UNITS.
    Returns:
        the same function in eV and A, in the precision of the file, with `info`.
    Raises:
        ConfigError: an unknown unit or element, or SchNetPack is missing.
        ModelFileError: not such a file, one that asks for anything but such modules, or a model that lrpot has no
            counterpart of.
    """
    path = Path(path)
    for name, value, table in (("energy", energy_unit, ENERGY_UNITS), ("length", length_unit, LENGTH_UNITS)):
        if value not in table:
            raise ConfigError(f"{name} unit {value!r} is not known; choose one of {', '.join(table)}")
    numbers = _numbers(elements)
    theirs = _load(path)
    painn, atomwise, offsets = _parts(theirs, path)
    energy, length = ENERGY_UNITS[energy_unit], LENGTH_UNITS[length_unit]
    settings = _settings(painn, path, length)
    config = make_config({"model": {"backbone": settings, "kernel": {"form": "none"}}})
    model = build_potential(config.model, numbers).set_precision(painn.embedding.weight.dtype)
    _copy_network(painn, model, length)
    _copy_readout(atomwise, model, path)
    model.short.scale.fill_(energy)
    for number in numbers:
        model.short.offset[number] = energy * sum(_offset(part, number, path) for part in offsets)
    made = {"converted_from": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    made |= {"energy_unit": energy_unit, "length_unit": length_unit}
    model.info = ModelInfo(config=config.model_dump(mode="json"), elements=symbols(numbers), data=made)
    return model.eval()


def _numbers(elements: Iterable[str]) -> list[int]:
    elements = list(elements)
    unknown = [symbol for symbol in elements if atomic_numbers.get(symbol, 0) < 1]
    if unknown or not elements:
        raise ConfigError(f"elements {', '.join(unknown) or '(none)'}: give symbols with commas, such as Na,Cl")
    return sorted({atomic_numbers[symbol] for symbol in elements})


@contextmanager
def _importable() -> Iterator[None]:
    """SchNetPack 2.0.4 imports a name from torch that torch no longer has; it is there as long as this lasts."""
    import torch.utils.data.dataloader as loader

    missing = not hasattr(loader, "T_co")
    if missing:
        loader.T_co = typing.TypeVar("T_co", covariant=True)  # type: ignore[attr-defined]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # SchNetPack's own dependencies warn about each other
            yield
    finally:
        if missing:
            del loader.T_co  # type: ignore[attr-defined]


def _load(path: Path) -> nn.Module:
    if not path.is_file():
        raise ModelFileError(f"{path}: no such file; check the path")
    with _importable():
        try:
            from schnetpack.model import NeuralNetworkPotential
        except ImportError as error:
            raise ConfigError(
                f"reading a SchNetPack model needs SchNetPack ({error}); pip install schnetpack==2.0.4"
            ) from error
        try:
            with torch.serialization.safe_globals(_known_globals(path)):
                found = torch.load(path, map_location="cpu", weights_only=True)
        except ModelFileError:
            raise
        except Exception as error:  # whatever unpickling may raise
            reason = " ".join(str(error).split())[:120]
            raise ModelFileError(
                f"{path}: cannot be read ({type(error).__name__}: {reason}); give the best_model file of a run of "
                "SchNetPack 2.0"
            ) from error
    if not isinstance(found, NeuralNetworkPotential):
        raise ModelFileError(
            f"{path}: holds {type(found).__name__}, no NeuralNetworkPotential; give the best_model file of a run of "
            "SchNetPack, not a checkpoint or a state_dict"
        )
    return found


def _known_globals(path: Path) -> list[Any]:
    """The modules and functions that a file asks for; nothing in it is run to find them.

    Raises:
        ModelFileError: it asks for something else.
    """
    found = []
    for name in torch.serialization.get_unsafe_globals_in_checkpoint(path):
        module, _, attribute = name.rpartition(".")
        mine = name in FUNCTIONS or module.startswith(MODULES)
        known = getattr(importlib.import_module(module), attribute, None) if mine else None
        if name not in FUNCTIONS and not (isinstance(known, type) and issubclass(known, nn.Module)):
            raise ModelFileError(
                f"{path}: asks for {name}, which is no part of a SchNetPack potential; it was not loaded, for that "
                "could run code of whoever made the file"
            )
        found.append(known)
    return found


def _refuse(path: Path, what: str) -> ModelFileError:
    return ModelFileError(f"{path}: {what}; lrpot has no counterpart, so it cannot be converted")


def _parts(model: Any, path: Path) -> tuple[Any, Any, list[Any]]:
    """PaiNN, readout and offsets of a model that consists of nothing else."""
    from schnetpack.atomistic import Atomwise, Forces, PairwiseDistances
    from schnetpack.representation import PaiNN
    from schnetpack.transform import AddOffsets, CastTo32, CastTo64

    if type(model.representation) is not PaiNN:
        raise _refuse(path, f"its representation is {type(model.representation).__name__}, not PaiNN")
    after = list(model.postprocessors) if model.do_postprocessing else []
    for parts, known in (
        (model.input_modules, (PairwiseDistances,)),
        (model.output_modules, (Atomwise, Forces)),
        (after, (AddOffsets, CastTo32, CastTo64)),
    ):
        for part in parts:
            if type(part) not in known:
                names = ", ".join(kind.__name__ for kind in known)
                raise _refuse(path, f"it contains {type(part).__name__}, where only {names} are understood")
    readouts = [part for part in model.output_modules if type(part) is Atomwise]
    if len(readouts) != 1:
        raise _refuse(path, f"it has {len(readouts)} Atomwise readouts instead of one")
    offsets = [part for part in after if type(part) is AddOffsets]
    for part in offsets:
        if part._property != readouts[0].output_key:
            raise _refuse(path, f"its AddOffsets is for {part._property!r}, not for {readouts[0].output_key!r}")
    return model.representation, readouts[0], offsets


def _settings(painn: Any, path: Path, length: float) -> dict[str, Any]:
    """The section `model.backbone` that describes the same network."""
    from schnetpack.nn import CosineCutoff, GaussianRBF

    for part, known in ((painn.radial_basis, GaussianRBF), (painn.cutoff_fn, CosineCutoff)):
        if type(part) is not known:
            raise _refuse(path, f"its PaiNN uses {type(part).__name__} instead of {known.__name__}")
    cutoff, basis = float(painn.cutoff_fn.cutoff), painn.radial_basis
    grid = torch.linspace(0.0, cutoff, basis.n_rbf, dtype=torch.float64)
    for values, expected in ((basis.offsets, grid), (basis.widths, grid[1] - grid[0])):
        if float((values.detach().double() - expected).abs().max()) > GRID * cutoff:
            raise _refuse(path, f"its Gaussians are not spread evenly from 0 to the cutoff of {cutoff:g}")
    epsilon = {mixing.epsilon for mixing in painn.mixing}
    if len(epsilon) > 1:
        raise _refuse(path, f"epsilon of its mixing is not the same in all blocks: {sorted(epsilon)}")
    _check_activations([m for block in (*painn.interactions, *painn.mixing) for m in _context(block)], path)
    if painn.embedding.num_embeddings > MAX_ATOMIC_NUMBER + 1:
        raise _refuse(path, f"its embedding has {painn.embedding.num_embeddings} rows")
    return {
        "name": "painn",
        "features": painn.n_atom_basis,
        "interactions": painn.n_interactions,
        "radial_basis": basis.n_rbf,
        "cutoff": cutoff * length,
        "cutoff_function": "cosine",
        "epsilon": epsilon.pop(),
    }


def _context(block: Any) -> list[Any]:
    net = getattr(block, "interatomic_context_net", None)
    return list(block.intraatomic_context_net if net is None else net)


def _check_activations(layers: list[Any], path: Path) -> None:
    """Pairs of layers: silu inside, nothing after the last."""
    for layer, inside in zip(layers, [True, False] * (len(layers) // 2), strict=True):
        activation = layer.activation
        silu = activation is nn.functional.silu or isinstance(activation, nn.SiLU)
        if silu != inside or not (inside or isinstance(activation, nn.Identity)):
            raise _refuse(path, f"an activation is {getattr(activation, '__name__', activation)} instead of silu")


def _copy_network(painn: Any, model: Potential, length: float) -> None:
    state: dict[str, Tensor] = {
        name: value.detach().clone()
        for name, value in painn.state_dict().items()
        if not name.startswith(("radial_basis.", "cutoff_fn."))
    }
    if painn.share_filters:
        state = {
            name: value.repeat(painn.n_interactions, *[1] * (value.ndim - 1)) if "filter_net" in name else value
            for name, value in state.items()
        }
    backbone = model.short.backbone
    rows = state["embedding.weight"]
    state["embedding.weight"] = torch.zeros_like(backbone.embedding.weight)  # type: ignore[arg-type, union-attr]
    state["embedding.weight"][: len(rows)] = rows
    state["centres"] = painn.radial_basis.offsets.detach() * length
    backbone.load_state_dict(state)


def _copy_readout(atomwise: Any, model: Potential, path: Path) -> None:
    layers, readout = list(atomwise.outnet), model.short.readout
    if atomwise.aggregation_mode != "sum" or atomwise.n_out != 1:
        raise _refuse(
            path, f"its readout gives {atomwise.n_out} numbers by {atomwise.aggregation_mode!r}, not one by 'sum'"
        )
    ours = (readout.first, readout.last)
    if [tuple(layer.weight.shape) for layer in layers] != [tuple(layer.weight.shape) for layer in ours]:
        widths = ", ".join(str(layer.out_features) for layer in layers)
        raise _refuse(path, f"its readout has layers of {widths} instead of {readout.first.out_features}, 1")
    _check_activations(layers, path)
    for layer, own in zip(layers, ours, strict=True):
        own.load_state_dict({"weight": layer.weight.detach(), "bias": layer.bias.detach()})


def _offset(part: Any, number: int, path: Path) -> float:
    """Energy that AddOffsets gives an atom of an element, in the unit of the file."""
    if not part.is_extensive:
        raise _refuse(path, "its AddOffsets is for an intensive property")
    offset = float(part.mean) if part.add_mean else 0.0
    if part.add_atomrefs:
        if number >= len(part.atomref):
            raise _refuse(path, f"its single-atom energies end before atomic number {number}")
        offset += float(part.atomref[number])
    return offset
