"""A fit that starts from a model: its settings are taken over, and elements that it does not know are added."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ase.data import chemical_symbols
from torch import Tensor, nn

from lrpot.build import build_potential
from lrpot.config import FitConfig, ModelConfig, make_config, one_line, settings_of
from lrpot.data.sources import named
from lrpot.errors import ConfigError, UnknownElementError
from lrpot.model_file import ModelInfo, load, symbols
from lrpot.potential import PARTS, Potential
from lrpot.training.baseline import refit_offsets, store_known
from lrpot.training.dataset import FitData
from lrpot.training.parallel import ALONE, Processes

# In the directory of the run: the model that it started from, which the user may move or replace meanwhile.
START = "start.pt"


def read_start(
    config: str | Path | Mapping[str, Any] | FitConfig | None, settings: Mapping[str, Any], path: str | Path
) -> tuple[FitConfig, Potential]:
    """The model that a fit starts from, and the configuration with its settings.

    Args:
        config: as of `fit`.
        settings: as of `fit`.
        path: of the model file.
    Raises:
        ModelFileError: see `lrpot.model_file.load`.
        ConfigError: an ensemble, or a setting `model.*` that is not that of the model.
    """
    start = load(path)
    if len(start.members) > 1:
        raise ConfigError(
            f"{path}: is an ensemble of {len(start.members)} models, and a fit starts from one; give the model.pt of a "
            "member, such as RUN/member-1/model.pt"
        )
    own = _settings(start)
    resolved = make_config(config, settings, model=own)
    theirs = {name: value for name, value, _ in settings_of(own, "model.")}
    for name, value, _ in settings_of(resolved.model, "model."):
        if name not in theirs or theirs[name] != value:
            has = one_line(theirs[name]) if name in theirs else "no such setting"
            raise ConfigError(
                f"{name} = {one_line(value)} contradicts {path}, which has {has}; a fit that starts from a model keeps "
                "its settings: leave this one out, or fit without --from"
            )
    return resolved, start


def check_new_elements(config: FitConfig, elements: Sequence[int], start: Potential) -> None:
    """Refuse elements that the model does not know, unless they are to be added.

    Args:
        elements: atomic numbers in the training data.
    Raises:
        UnknownElementError: names them.
    """
    new = symbols(sorted(set(elements) - set(start.elements)))
    if new and not config.training.finetune.new_elements:
        raise UnknownElementError(
            f"{named(config.data.train)}: has {', '.join(new)}, but {config.training.finetune.model} knows only "
            f"{', '.join(symbols(start.elements))}; add --new-elements (training.finetune.new_elements) to give them "
            "the start of a related element, or leave their rows out"
        )


def take_over(
    start: Potential, config: FitConfig, data: FitData, say: Callable[[str], None], processes: Processes = ALONE
) -> Potential:
    """The potential that a fit begins with: with the elements of the data, its offsets at the level of their energies.

    Args:
        start: with `info`. say: told what was added and moved. processes: those of the fit.
    """
    model, new = with_elements(start, data.elements)
    for z, like in new.items():
        names = ", ".join(symbols(like))
        say(f"new element {chemical_symbols[z]} starts as {names if len(like) == 1 else f'the mean of {names}'}")
    model.set_precision(getattr(torch, config.training.dtype))
    store_known(model, data.train, PARTS, processes)
    moved = refit_offsets(model, data.train)
    shifts = ", ".join(f"{chemical_symbols[z]} {shift:+.4g}" for z, shift in moved.items())
    say(f"starts from {config.training.finetune.model}; energies per atom moved by {shifts} eV")
    absent = sorted(set(model.elements) - set(data.train.elements))
    if absent:
        say(f"not in the training data: {', '.join(symbols(absent))}; their energies stay at the level of the model")
    return model


def with_elements(model: Potential, elements: Sequence[int]) -> tuple[Potential, dict[int, list[int]]]:
    """The same potential for more elements; structures of those that it knew have the same energies to the last bit.

    What a new element has in the tables of the network, of the offsets and of the charges is that of its relative, or
    the mean over all known elements.

    Args:
        model: with `info`. elements: atomic numbers, those of the model among them.
    Returns:
        the potential, in the precision of the model, and for each new element those that its start is the mean of.
    """
    new = {z: relatives(z, model.elements) for z in sorted(set(elements) - set(model.elements))}
    if not new:
        return model, {}
    grown = build_potential(_settings(model), elements).set_precision(model.short.readout.last.weight.dtype)
    tables = {
        f"short.{name}.weight"
        for name, part in model.short.named_modules()
        if isinstance(part, nn.Embedding) and part.num_embeddings > max(elements)
    } | {"short.offset"}
    shapes = {name: value.shape for name, value in grown.state_dict().items()}
    state = {}
    for name, value in model.state_dict().items():
        if name in tables:
            value = value.clone()
            for z, like in new.items():
                value[z] = value[like].mean(dim=0)
        elif value.shape != shapes[name]:  # what charges hold by element has a row for each that the model knows
            value = _more_rows(value, model.elements, grown.elements, new)
        state[name] = value
    grown.load_state_dict(state)
    return grown.eval(), new


def relatives(element: int, known: Sequence[int]) -> list[int]:
    """The nearest known element of the same group of the periodic table, or all if there is none."""
    from pymatgen.core import Element  # takes a second

    place = {z: Element.from_Z(z) for z in [element, *known]}
    same = [z for z in known if place[z].group == place[element].group]
    return [min(same, key=lambda z: abs(place[z].row - place[element].row))] if same else list(known)


def _settings(model: Potential) -> ModelConfig:
    assert isinstance(model.info, ModelInfo)
    return ModelConfig.model_validate(model.info.config["model"])


def _more_rows(values: Tensor, old: Sequence[int], elements: Sequence[int], new: Mapping[int, list[int]]) -> Tensor:
    """(M', ...) from (M, ...): the rows of the old elements, and means of them for the new ones."""
    row = {z: n for n, z in enumerate(old)}
    return torch.stack([values[[row[like] for like in new.get(z, [z])]].mean(dim=0) for z in elements])
