"""All settings as YAML with a sentence above each; which of them were changed, and which of those do nothing."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from lrpot.config.backbone import REGISTERED_BACKBONES, RegisteredConfig
from lrpot.config.fit import FitConfig
from lrpot.config.properties import PROPERTY_DEFAULTS, DiffractionConfig
from lrpot.config.reading import nearest_name
from lrpot.config.training import TrainingConfig
from lrpot.errors import ConfigError

WIDTH = 100  # letters, of a comment

# Settings of the fit that only potentials have.
POTENTIAL_TRAINING = (
    "training.stages",
    "training.schedule",
    "training.lr_long",
    "training.energy_weight",
    "training.force_weight",
    "training.stress_weight",
    "training.charge_weight",
    "training.dipole_weight",
    "training.born_weight",
    "training.total_charge_weight",
)

# Of the others those of steps, which trees do without.
STEP_TRAINING = tuple(
    f"training.{name}"
    for name in TrainingConfig.model_fields
    if name not in ("seed", "ensemble", "device", "devices", "nodes", "dtype", "max_edges", "max_atoms")
    and f"training.{name}" not in POTENTIAL_TRAINING
)


def commented_yaml(config: FitConfig, name: str | None = None) -> str:
    """Settings with their values, and what each means, as a settings file.

    Args:
        config: the values.
        name: a section or a setting, whole (training.lr) or a part of it (kernel, lr); None for everything.
    Raises:
        ConfigError: there is none of that name.
    """
    known = [setting for setting, _, _ in settings_of(config)]
    chosen = [setting for setting in known if name is None or f".{name}." in f".{setting}."]
    if not chosen:
        words = {word for setting in known for word in setting.split(".")}
        near = nearest_name(str(name), [*known, *sorted(words)])
        raise ConfigError(
            f"setting {name} does not exist; "
            + (f"did you mean {near}?" if near else "`lrpot config show` prints all of them")
        )
    return "\n".join(_lines(config, "", chosen)) + "\n"


def changes(config: FitConfig) -> dict[str, tuple[Any, Any]]:
    """What was changed: value and default by dotted name."""
    found = {
        name: (value, default)
        for name, value, field in settings_of(config)
        if not field.is_required() and value != (default := field.get_default(call_default_factory=True))
    }
    # the section of every network has its own name as the default
    usual = FitConfig()
    names = {
        "model.backbone.name": (config.model.backbone.name, usual.model.backbone.name),
        "properties.encoder.name": (config.properties.encoder.name, usual.properties.encoder.name),
    }
    return {name: values for name, values in names.items() if values[0] != values[1]} | found


def without_effect(config: FitConfig) -> list[str]:
    """A line for each reason why settings that were changed do nothing."""
    usual = PROPERTY_DEFAULTS if config.task == "property" else {}
    defaults = [(f"{section}.{name}", value) for section, own in usual.items() for name, value in own.items()]
    changed = [name for name, (value, _) in changes(config).items() if (name, value) not in defaults]
    lines = []
    for patterns, applies, reason in _IDLE:
        # the form of the kernel decides on others, and always does something
        names = [name for name in changed if name != "model.kernel.form"]
        idle = [name for name in names if any(fnmatch(name, pattern) for pattern in patterns)]
        if idle and applies(config):
            lines.append(f"{', '.join(idle)}: no effect, since {reason}")
    return lines


def _in_no_stage(config: FitConfig, name: str, value: Any) -> bool:
    return all(getattr(config.training.for_stage(number), name) != value for number in (1, 2, 3))


# Settings that are read only together with others: their names, when they are not read, and why.
_IDLE: tuple[tuple[tuple[str, ...], Callable[[FitConfig], bool], str], ...] = (
    (("model.*", *POTENTIAL_TRAINING), lambda c: c.task == "property", "task is property"),
    (("properties.*", "training.pretrain_epochs"), lambda c: c.task == "potential", "task is potential"),
    (
        ("properties.encoder.descriptor.outputs", "properties.encoder.descriptor.variant"),
        lambda c: getattr(getattr(c.properties.encoder, "descriptor", None), "form", "") == "potential",
        "properties.encoder.descriptor.form is potential",
    ),
    (
        tuple(f"properties.diffraction.{name}" for name in DiffractionConfig.model_fields if name != "use"),
        lambda c: c.task == "property" and not c.properties.diffracts,
        "there is no diffraction beside this encoder (properties.diffraction.use)",
    ),
    (
        tuple(f"properties.diffraction.{name}" for name in ("k_cutoff", "channels", "basis", "shells")),
        lambda c: c.task == "property" and c.properties.diffracts and c.properties.diffraction.variant == "published",
        "properties.diffraction.variant is published",
    ),
    (
        ("properties.diffraction.max_index",),
        lambda c: c.task == "property" and c.properties.diffracts and c.properties.diffraction.variant == "invariant",
        "properties.diffraction.variant is invariant",
    ),
    (
        ("properties.head.experts", "properties.head.top", "properties.head.variant"),
        lambda c: c.properties.head.kind != "experts" and c.task == "property",
        "properties.head.kind is not experts",
    ),
    (
        ("properties.head.trees", "properties.head.max_features", "properties.head.min_leaf"),
        lambda c: c.properties.head.kind != "trees" and c.task == "property",
        "properties.head.kind is not trees",
    ),
    (
        ("properties.encoder.features", "properties.encoder.dropout", *STEP_TRAINING),
        lambda c: c.properties.head.kind == "trees" and c.task == "property",
        "properties.head.kind is trees, which are grown at once and have no network",
    ),
    (
        ("model.charges.*", "model.kernel.*", "training.lr_long", "training.schedule"),
        lambda c: c.model.kernel.form == "none",
        "model.kernel.form is none",
    ),
    (
        ("model.charges.hidden",),
        lambda c: c.model.charges.kind == "embedding" and c.model.kernel.form != "none",
        "model.charges.kind is embedding, which has no network",
    ),
    (
        ("model.charges.pair_cutoff", "model.charges.sum_molecules"),
        lambda c: c.model.charges.init not in ("prefit", "oxidation") and c.model.kernel.form != "none",
        "model.charges.init gives the charges, so none are fitted first",
    ),
    (("model.charges.born",), lambda c: c.model.charges.init != "born", "model.charges.init is not born"),
    (("model.kernel.sigma",), lambda c: c.model.kernel.form == "free", "model.kernel.form is free"),
    (("model.kernel.tolerance",), lambda c: c.model.kernel.k_cutoff != "auto", "model.kernel.k_cutoff is given"),
    (
        ("model.kernel.engine_tolerance",),
        lambda c: c.model.kernel.engine in ("separable", "dense"),
        "model.kernel.engine is one that is exact",
    ),
    (
        ("training.schedule",),
        lambda c: c.training.stages == 1 and c.model.kernel.form != "none" and c.schedule != "long-range-only",
        "training.stages is 1",
    ),
    (("training.stages",), lambda c: c.schedule == "long-range-only", "training.schedule is long-range-only"),
    (
        ("training.lr_patience",),
        lambda c: _in_no_stage(c, "lr_schedule", "plateau"),
        "training.lr_schedule is cosine",
    ),
    (
        ("training.huber_threshold",),
        lambda c: _in_no_stage(c, "loss", "huber"),
        "training.loss is not huber",
    ),
    (("data.valid_fraction",), lambda c: c.data.valid is not None, "data.valid names the validation files"),
    (("data.valid_fraction",), lambda c: c.data.folds is not None, "data.folds divides the structures"),
    (("data.test_fraction",), lambda c: c.data.test is not None, "data.test names the test files"),
    (
        ("data.valid_fraction", "data.test_fraction"),
        lambda c: c.data.split.endswith(".json"),
        "data.split lists the rows of every part",
    ),
)


def _fields(section: BaseModel) -> dict[str, FieldInfo]:
    """The settings of a section; those of a backbone of the user's own are the arguments of its class."""
    if isinstance(section, RegisteredConfig):
        return REGISTERED_BACKBONES[section.name].model_fields
    return type(section).model_fields


def settings_of(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any, FieldInfo]]:
    """Dotted name, value and field of every setting of a section; `prefix` stands before the names."""
    for name, field in _fields(section).items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from settings_of(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value, field


def _lines(section: BaseModel, prefix: str, chosen: list[str]) -> Iterator[str]:
    indent = "  " * prefix.count(".")
    plain = section.model_dump(mode="json")
    for name, field in _fields(section).items():
        path, value = prefix + name, getattr(section, name)
        if not any(setting == path or setting.startswith(f"{path}.") for setting in chosen):
            continue
        sentence = field.description or ""
        if isinstance(value, BaseModel):
            yield f"{indent}# {sentence}"
            yield f"{indent}{name}:"
            yield from _lines(value, f"{path}.", chosen)
            continue
        default = field.get_default(call_default_factory=True)
        if not field.is_required() and value != default:
            sentence = f"{sentence} Default: {one_line(default)}.".strip()
        yield from textwrap.wrap(sentence, WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
        yield f"{indent}{name}: {one_line(plain[name])}"


def one_line(value: Any) -> str:
    """A value as YAML in one line, as `--set` takes it."""
    plain = to_jsonable_python(value)  # sections in a table, such as those of stages
    text = yaml.safe_dump(plain, default_flow_style=True, sort_keys=False, width=float("inf"), allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")
