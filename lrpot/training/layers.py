"""How deep in the network a parameter lies, and what follows: its learning rate, and whether it is trained."""

from __future__ import annotations

from typing import Any

from torch import nn

from lrpot.potential import Potential


def parameter_groups(model: Potential, lr: float, lr_long: float, layer_decay: float) -> list[dict[str, Any]]:
    """The parameters that are trained, as groups of an optimiser: charges and kernel first, the readout last.

    Args:
        lr: learning rate of the readout. lr_long: of charges and kernel.
        layer_decay: factor of the learning rate from each layer of the network to the one before it.
    """
    long = [p for name, p in model.named_parameters() if name.startswith("long.") and p.requires_grad]
    layers: dict[int, list[nn.Parameter]] = {}
    depths = parameter_depths(model.short.backbone)
    for name, parameter in model.short.named_parameters():
        if parameter.requires_grad:
            depth = depths.get(name.removeprefix("backbone."), 0) if layer_decay < 1.0 else 0
            layers.setdefault(depth, []).append(parameter)
    groups: list[dict[str, Any]] = [{"params": long, "lr": lr_long}]
    groups += [{"params": layers[depth], "lr": lr * layer_decay**depth} for depth in sorted(layers, reverse=True)]
    return [group for group in groups if group["params"]]


def freeze_deepest(backbone: nn.Module, layers: int) -> None:
    """Do not train the deepest layers of a backbone, so many of them or all."""
    depths = parameter_depths(backbone)
    frozen = sorted(set(depths.values()), reverse=True)[:layers]
    for name, parameter in backbone.named_parameters():
        if depths[name] in frozen:
            parameter.requires_grad_(False)


def parameter_depths(backbone: nn.Module) -> dict[str, int]:
    """The layers between each parameter of a backbone and the energy, by its name; 1 is next to the readout.

    A backbone says so itself by a method `parameter_depths`, for all or some of its parameters. Otherwise its layers
    are the members of its outermost `ModuleList`s, counted from the end of each list; what is in none, such as the
    embeddings, lies deepest.
    """
    names = [name for name, _ in backbone.named_parameters()]
    if hasattr(backbone, "parameter_depths"):
        given: dict[str, int] = backbone.parameter_depths()  # type: ignore[operator]
        return {name: given.get(name, max(given.values())) for name in names}
    lengths = {name: len(part) for name, part in backbone.named_modules() if isinstance(part, nn.ModuleList)}
    found = {}
    for name in names:
        words = name.split(".")
        for n in range(1, len(words)):
            if (outermost := ".".join(words[:n])) in lengths:
                found[name] = lengths[outermost] - int(words[n])
                break
    deepest = 1 + max(found.values(), default=0)
    return {name: found.get(name, deepest) for name in names}
