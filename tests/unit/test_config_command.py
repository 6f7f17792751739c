"""`lrpot config`: what it prints is read back, every setting says what it is, every mistake in a file is found."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from torch import nn

from lrpot.backbones import BACKBONES, register
from lrpot.config import (
    REGISTERED_BACKBONES,
    DimeNetPlusPlusConfig,
    EquivariantConfig,
    FinetuneConfig,
    FitConfig,
    PaiNNConfig,
    changes,
    check_config,
    commented_yaml,
    field_names,
    make_config,
    one_line,
    without_effect,
)
from lrpot.config.listing import settings_of
from lrpot.errors import ConfigError
from tests.helpers_cli import call_cli, run_cli

# A word in the name of a setting that says what it measures, and the units that its sentence may name.
QUANTITIES = {
    r"cutoff|radius|distance|length|width": ("A", "1/A"),
    r"energy|barrier": ("eV",),
    r"force": ("eV/A",),
    r"stress|pressure": ("eV/A^3", "GPa"),
    r"charge|dipole|born": ("e", "e A"),
    r"temperature": ("K",),
    r"time|duration": ("s", "fs", "min", "h"),
}
# What is relative to something, or counts.
PLAIN = ("weight", "fraction", "tolerance", "decay", "function", "scale", "factor")


def fields(section: type[BaseModel] = FitConfig) -> Iterator[tuple[str, FieldInfo]]:
    """Every setting of every section, of all networks."""
    for name, field in section.model_fields.items():
        kinds = [field.annotation, *get_args(field.annotation)]
        inner = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if name == "backbone":
            inner = [PaiNNConfig, DimeNetPlusPlusConfig, EquivariantConfig]
        for kind in inner:
            yield from fields(kind)
        if not inner:
            yield f"{section.__name__}.{name}", field


def faults(name: str, field: FieldInfo) -> str | None:
    """What the sentence of a setting lacks."""
    words = name.rsplit(".", 1)[-1]
    if not field.description or len(field.description) < 10:
        return f"{name} has no description"
    number = any(kind is float for kind in (field.annotation, *get_args(field.annotation)))
    nested = any(float in get_args(kind) for kind in get_args(field.annotation))  # Annotated[float, ...] | None
    if not (number or nested) or any(word in words for word in PLAIN):
        return None
    for pattern, units in QUANTITIES.items():
        named = any(re.search(rf"(?<![\w/^]){re.escape(unit)}(?![\w/^])", field.description) for unit in units)
        if re.search(pattern, words) and not named:
            return f"{name} names none of the units {units}"
    return None


def test_every_setting_has_a_sentence_and_every_quantity_a_unit() -> None:
    found = dict(fields())
    assert len(found) > 60
    assert [fault for name, field in found.items() if (fault := faults(name, field))] == []


@pytest.mark.parametrize(
    ("name", "field", "fault"),
    [
        ("X.new", FieldInfo(annotation=int, default=1), "no description"),
        ("X.inner_cutoff", FieldInfo(annotation=float, description="Where it ends for good."), "none of the units"),
        ("X.wall_time", FieldInfo(annotation=float | None, description="How long it may take."), "none of the units"),
        ("X.inner_cutoff", FieldInfo(annotation=float, description="Where it ends, A."), None),
        ("X.cutoff_function", FieldInfo(annotation=str, description="How it ends, somehow."), None),
    ],
)
def test_the_rule_finds_what_it_is_for(name: str, field: FieldInfo, fault: str | None) -> None:
    found = faults(name, field)
    assert found is None if fault is None else found is not None and fault in found


# What a setting needs beside it.
NEEDS: dict[str, dict[str, Any]] = {
    "data.fold": {"data.folds": 9},
    "training.finetune": {"training.finetune.model": "m.pt"},
}


def others(value: Any, kind: Any) -> Iterator[Any]:
    """Values that a setting of this type may take beside the one it has; not all of them are possible."""
    yield from (choice for choice in literals(kind) if choice != value)
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, (int, float)):
        yield from (value + 1, value * 0.75, 0.5)
    yield {"gap": "eV"}
    yield from ("a: 1, # b", ["a.h5", "b.h5"], 3, 0.5, {2: {"lr": 0.25}})


def literals(kind: Any) -> Iterator[Any]:
    for part in get_args(kind):
        yield from literals(part)
        if get_origin(kind) is Literal:
            yield part


@pytest.mark.parametrize("backbone", ["painn", "dimenet++", "equivariant"])
def test_what_is_shown_is_read_back(backbone: str, tmp_path: Path) -> None:
    """All defaults, and every setting with another value; of other networks than the usual one, their own."""
    chosen = {"model.backbone.name": backbone}
    kinds = {name: field.annotation for name, _, field in settings_of(make_config(None, chosen))}
    values = {name: value for name, value, _ in settings_of(make_config(None, chosen))}
    assert set(values) <= set(field_names())
    tags = chosen.keys() | {"properties.encoder.name"}  # which name a section of its own
    names = {name for name in values.keys() - tags if backbone == "painn" or name.startswith("model.backbone")}
    tried = []
    for name in names:
        base = chosen | next((needed for start, needed in NEEDS.items() if name.startswith(start)), {})
        for other in others(values[name], kinds[name]):
            with contextlib.suppress(ConfigError):
                config = make_config(None, base | {name: other})
                if name in changes(config):  # one of a list of choices may be another way to write the default
                    tried.append((name, config))
                    break
    assert {name for name, _ in tried} == names
    for name, config in [("", make_config(None, chosen)), *tried]:
        assert name == "" or one_line(changes(config)[name][0])
        (tmp_path / "c.yaml").write_text(commented_yaml(config))
        assert make_config(tmp_path / "c.yaml") == config


def test_every_setting_is_shown_with_its_sentence() -> None:
    text = commented_yaml(make_config(None, {"training.lr": 1e-3}))
    words = " ".join(text.replace("#", " ").split())
    for name, field in fields():
        # other networks; and what a stage may change, which is shown once, for the fit
        if name.split(".")[0] not in ("DimeNetPlusPlusConfig", "EquivariantConfig", "StageConfig"):
            assert " ".join(str(field.description).split()) in words, name
    assert "unless per_stage says otherwise. Default: 0.005." in words
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("training.lr", {"training": {"lr": 5e-3}}),
        ("lr", {"training": {"lr": 5e-3}}),
        ("cutoff", {"model": {"backbone": {"cutoff": 5.0}}}),
        ("finetune", {"training": {"finetune": dict(FinetuneConfig())}}),
    ],
)
def test_a_part_can_be_shown(name: str, shown: dict[str, Any]) -> None:
    assert yaml.safe_load(commented_yaml(make_config(), name)) == shown


@pytest.mark.parametrize(("name", "near"), [("kernle", "kernel"), ("training.lrr", "training.lr")])
def test_a_part_that_does_not_exist(name: str, near: str) -> None:
    with pytest.raises(ConfigError, match=rf"setting {name} does not exist; did you mean {near}\?"):
        commented_yaml(make_config(), name)


def test_the_command_prints_what_is_read_back(tmp_path: Path) -> None:
    setting = "data.train=rows:key:[1].xyz"  # nothing in it is markup
    code, output, errors = call_cli("config", "show", "--backbone", "equivariant", "--set", setting, "training.lr=1e-3")
    assert (code, errors) == (0, "")
    (tmp_path / "c.yaml").write_text(output)
    settings = {"model.backbone.name": "equivariant", "data.train": "rows:key:[1].xyz", "training.lr": 1e-3}
    assert make_config(tmp_path / "c.yaml") == make_config(None, settings)


class Mine(nn.Module):
    def __init__(self, features: int, cutoff: float = 4.0) -> None:
        super().__init__()


def test_a_backbone_of_the_users_own(tmp_path: Path) -> None:
    register("mine", Mine)
    try:
        config = make_config(None, {"model.backbone.name": "mine", "model.backbone.features": 3})
        (tmp_path / "c.yaml").write_text(commented_yaml(config))
        assert make_config(tmp_path / "c.yaml") == config
        assert changes(config) == {"model.backbone.name": ("mine", "painn")}
    finally:
        del REGISTERED_BACKBONES["mine"], BACKBONES["mine"]


# --- check

WRONG = """\
training:
  lrr: 1e-3
  max_epochs: 0
  cutoff: 5
modle: {}
data:
  train: a.extxyz
  train: b.extxyz
  folsd: 3
model:
  backbone: {name: painn, cutof: 5}
"""


def test_all_problems_are_named_with_their_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(WRONG)
    assert run_cli("config", "check", path) == 1
    lines = [line.removeprefix(f"{path}:") for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "2: setting training.lrr does not exist; did you mean lr?",
        "3: training.max_epochs = 0: Input should be greater than or equal to 1",
        "4: setting training.cutoff does not exist; did you mean model.backbone.cutoff?",
        "5: setting modle does not exist; did you mean model?",
        "8: data.train is set already in line 7; leave one of them out",
        "9: setting data.folsd does not exist; did you mean fold?",
        "11: setting model.backbone.cutof does not exist; did you mean cutoff?",
    ]


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("data:\n  fold: 2\n", 1, "fold = 2 needs folds; set data.folds"),
        ("model: {kernel: {form: none}}\ntraining:\n  schedule: physics-first\n", None, "kernel.form is none"),
        ("training:\n  finetune: {model: m.pt}\n  schedule: published\n", None, "schedule published fits a network"),
        ("training:\n  finetune:\n    layer_decay: 0.5\n", 2, "layer_decay needs a model to start from; name one with"),
        ("training: 5\n", 1, "training = 5"),
        ("1: 2\n", 1, "1 = 1: Keys should be strings"),
        ("model:\n  backbone:\n    name: schnet\n", 2, "choose one of"),
    ],
)
def test_other_problems(tmp_path: Path, text: str, line: int | None, message: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    config, problems, idle = check_config(tmp_path / "c.yaml")
    assert config is None
    assert idle == []
    ((found, words),) = problems
    assert found == line
    assert message in words


BAD = sorted((Path(__file__).parents[1] / "bad_inputs").glob("*.yaml"))


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_every_file_with_a_defect_is_refused(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Defects of settings have a line of the file; what is no settings file at all is an error of the command."""
    assert run_cli("config", "check", path) == 1
    printed = capsys.readouterr()
    lines = [line for line in (printed.out + printed.err).splitlines() if path.name in line]
    assert len(lines) == 1
    assert printed.err == "" or printed.err.startswith("lrpot: error: ")


def test_aliases_that_nest_without_end_take_no_time(tmp_path: Path) -> None:
    text = ["a0: &a0 {x: 1}"]
    text += [
        f"a{n}: &a{n} {{" + ", ".join(f"k{i}: *a{n - 1}" for i in range(9)) + "}" for n in range(1, 12)
    ]  # 9^11 leaves
    (tmp_path / "c.yaml").write_text("\n".join(text))
    _, problems, _ = check_config(tmp_path / "c.yaml")
    assert [problem.text.split(";")[0] for problem in problems][:1] == ["setting a0 does not exist"]


def test_a_file_that_is_right(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("model: {charges: {channels: 2}, kernel: {form: none}}\ntraining: {lr: 1e-3}\n")
    code, output, errors = call_cli("config", "check", path)
    assert code == 0
    assert output.splitlines() == [
        f"{path}: ok; changed from the defaults:",
        "  model.charges.channels = 2 (default 1)",
        "  model.kernel.form = none (default coulomb)",
        "  training.lr = 0.001 (default 0.005)",
    ]
    assert errors == f"warning: {path}: model.charges.channels: no effect, since model.kernel.form is none\n"


@pytest.mark.parametrize(
    ("settings", "idle"),
    [
        (
            {"model.kernel.form": "none", "training.lr_long": 0.1},
            "training.lr_long: no effect, since model.kernel.form",
        ),
        ({"model.charges.hidden": 8}, "model.charges.hidden: no effect, since model.charges.kind is embedding"),
        ({"training.stages": 1, "training.schedule": "published"}, "training.schedule: no effect, since"),
        ({"training.stages": 1, "training.schedule": "long-range-only"}, "training.stages: no effect, since"),
        ({"data.test": "t.xyz", "data.test_fraction": 0.2}, "data.test_fraction: no effect, since data.test names"),
        ({"model.kernel.form": "none"}, None),
        ({"training.finetune.model": "m.pt", "training.finetune.layer_decay": 0.5}, None),
        ({"model.charges.kind": "environment", "model.charges.hidden": 8}, None),
    ],
)
def test_settings_that_do_nothing_are_told(settings: dict[str, Any], idle: str | None) -> None:
    found = without_effect(make_config(None, settings))
    assert len(found) == (idle is not None)
    assert idle is None or found[0].startswith(idle)


def test_nothing_is_idle_by_default() -> None:
    assert changes(make_config()) == {}
    assert without_effect(make_config()) == []


# --- the defaults of fine-tuning


def test_fine_tuning_has_defaults_of_its_own() -> None:
    config = make_config(None, {"training.finetune.model": "m.pt"})
    assert (config.training.stages, config.training.lr) == (1, 5e-4)
    config = make_config(None, {"training.finetune.model": "m.pt", "training.stages": 3, "training.lr": 1e-3})
    assert (config.training.stages, config.training.lr) == (3, 1e-3)
    assert (make_config().training.stages, make_config().training.lr) == (3, 5e-3)
    assert make_config(None, {"training.finetune.model": "m.pt", "model.kernel.form": "free"}).schedule != "published"


def test_an_assignment_leaves_the_other_settings() -> None:
    config = make_config(None, {"training.finetune.model": "m.pt"})
    config.training.lr = 1e-3
    assert (config.training.stages, config.training.lr) == (1, 1e-3)
    assert config.training.finetune.model == "m.pt"
