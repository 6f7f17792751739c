"""Settings: YAML in and out, names with dots, and messages that name the right setting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from lrpot.cli.options import Encoder
from lrpot.config import FitConfig, StageConfig, field_names, make_config, parse_settings
from lrpot.errors import ConfigError

CHANGED = {
    "data.train": "a.extxyz",
    "data.skip_bad_rows": True,
    "model.backbone.cutoff": 4.25,
    "model.charges.init": {"Na": 1.0, "Cl": -1.0},
    "model.kernel.k_cutoff": 7.5,
    "training.lr": 3e-4,
    "training.stages": 1,
    "training.seed": 7,
}


def sections(section: type[BaseModel] = FitConfig) -> list[type[BaseModel]]:
    found = [section]
    for field in section.model_fields.values():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found += sections(field.annotation)
    return found


def get(config: FitConfig, name: str) -> Any:
    value: Any = config
    for part in name.split("."):
        # sections by number, of which there may be none yet
        value = value.get(int(part), StageConfig()) if isinstance(value, dict) else getattr(value, part)
    return value


# --- what there is


@pytest.mark.parametrize("section", sections(), ids=lambda section: section.__name__)
def test_every_setting_has_a_sentence_and_a_default(section: type[BaseModel]) -> None:
    assert section.__doc__
    for name, field in section.model_fields.items():
        assert field.description, f"{section.__name__}.{name} has no description"
        assert len(field.description) > 5
        assert field.description.rstrip().endswith((".", "e", "..."))
        assert not field.is_required(), f"{section.__name__}.{name} has no default"


def test_lengths_and_wave_numbers_say_their_unit() -> None:
    for section in sections():
        for name, field in section.model_fields.items():
            if name.endswith("cutoff"):
                assert field.description is not None
                assert ("1/A" in field.description) if name.startswith("k_") else (" A" in field.description)


BACKBONES = ("painn", "dimenet++", "equivariant")


def test_names_are_those_of_the_sections() -> None:
    names = field_names()
    assert len(names) == len(set(names))
    assert {"data.train", "model.backbone.cutoff", "model.kernel.k_cutoff", "training.max_epochs"} <= set(names)
    for backbone in BACKBONES:
        config = make_config(None, {"model.backbone.name": backbone})
        own = {f"model.backbone.{name}" for name in type(config.model.backbone).model_fields}
        assert own <= set(names)
        for name in names:
            if not name.startswith(("model.backbone.", "properties.encoder.")) or name in own:
                get(config, name)
    for encoder in Encoder:
        config = make_config(None, {"properties.encoder.name": encoder.value})
        for name in type(config.properties.encoder).model_fields:
            assert any(known.startswith(f"properties.encoder.{name}") for known in names)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_has_its_own_settings(backbone: str) -> None:
    config = make_config(None, {"model.backbone.name": backbone, "model.backbone.cutoff": 4.5})
    assert (config.model.backbone.name, config.model.backbone.cutoff) == (backbone, 4.5)
    assert make_config(yaml.safe_load(config.to_yaml())) == config
    with pytest.raises(ConfigError, match=r"model\.backbone\.cutof does not exist; did you mean cutoff\?"):
        make_config({"model": {"backbone": {"name": backbone, "cutof": 4.5}}})


def test_settings_of_another_backbone_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.backbone\.lmax does not exist; known here: name, features"):
        make_config(None, {"model.backbone.lmax": 2})
    with pytest.raises(ConfigError, match=r"model\.backbone\.lmax = 9: Input should be less than or equal to 4"):
        make_config(None, {"model.backbone.name": "equivariant", "model.backbone.lmax": 9})


def test_a_backbone_that_is_not_a_section_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.backbone = 'painn': expected a section, such as \{name: painn"):
        make_config({"model": {"backbone": "painn"}})


# --- round trips


def test_yaml_round_trip(tmp_path: Path) -> None:
    for config in (make_config(), make_config(None, CHANGED)):
        (tmp_path / "c.yaml").write_text(config.to_yaml())
        assert make_config(tmp_path / "c.yaml") == config
        assert make_config(str(tmp_path / "c.yaml")) == config
        assert make_config(config) == config
        assert make_config(yaml.safe_load(config.to_yaml())) == config


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("# nothing yet\n")
    assert make_config(tmp_path / "c.yaml") == make_config() == FitConfig()


def test_settings_by_name() -> None:
    config = make_config(None, CHANGED)
    for name, value in CHANGED.items():
        assert get(config, name) == value
    assert make_config(None, {"model.charges.init.Na": 1, "model.charges.init.Cl": -1}).model.charges.init == {
        "Na": 1.0,
        "Cl": -1.0,
    }


def test_settings_win_over_the_source_and_leave_it_alone() -> None:
    source = {"training": {"lr": 1e-3, "seed": 3}}
    config = make_config(source, {"training.lr": 5e-3})
    assert config.training.lr == 5e-3
    assert config.training.seed == 3
    assert source == {"training": {"lr": 1e-3, "seed": 3}}
    assert make_config(config, {"training.seed": 4}).training.seed == 4
    assert config.training.seed == 3


# --- words of the command line


@pytest.mark.parametrize(
    ("word", "name", "value"),
    [
        ("training.lr=1e-3", "training.lr", 1e-3),
        ("training.max_epochs=50", "training.max_epochs", 50),
        ("data.skip_bad_rows=true", "data.skip_bad_rows", True),
        ("model.kernel.k_cutoff=auto", "model.kernel.k_cutoff", "auto"),
        ("data.train=a=b.extxyz", "data.train", "a=b.extxyz"),
        ("model.charges.init={Na: 1.0, Cl: -1.0}", "model.charges.init", {"Na": 1.0, "Cl": -1.0}),
        ("training.device=cuda:1", "training.device", "cuda:1"),
        ("data.valid=", "data.valid", None),
    ],
)
def test_words(word: str, name: str, value: object) -> None:
    settings = parse_settings([word])
    assert settings == {name: value}
    assert get(make_config(None, settings), name) == value


@pytest.mark.parametrize("word", ["training.lr", "=1", ""])
def test_words_without_name_or_value(word: str) -> None:
    with pytest.raises(ConfigError, match="expected name=value, such as training"):
        parse_settings([word])


def test_a_word_that_is_not_yaml() -> None:
    with pytest.raises(ConfigError, match=r"--set training\.lr=\[1: the value cannot be read; quote it"):
        parse_settings(["training.lr=[1"])


# --- refusals


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("training.lrr", "training.lr"),
        ("lr", "training.lr"),
        ("cutoff", "model.backbone.cutoff"),
        ("model.cutoff", "model.backbone.cutoff"),
        ("training.epochs", "training.max_epochs"),
        ("model.kernel.kcutoff", "model.kernel.k_cutoff"),
        ("model.backbone", "model.backbone.name"),
    ],
)
def test_the_nearest_name_is_offered(name: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=rf"setting {name} does not exist; did you mean {hint}\?$"):
        make_config(None, {name: 1})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"training": {"max_epoch": 1}}, r"training\.max_epoch does not exist; did you mean max_epochs\?"),
        ({"trainig": {}}, r"trainig does not exist; did you mean training\?"),
        ({"model": {"kernel": {"zzz": 1}}}, r"model\.kernel\.zzz does not exist; known here: form, k_cutoff"),
    ],
)
def test_names_in_nested_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config(settings)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("training.lr", -1, r"training\.lr = -1: .*greater than 0"),
        ("training.lr", "fast", r"training\.lr = 'fast': .*valid number"),
        ("training.lr", float("nan"), r"training\.lr = nan: .*finite"),
        ("training.lr", float("inf"), r"training\.lr = inf: .*finite"),
        ("training.max_epochs", 0, r"training\.max_epochs = 0: .*greater than or equal to 1"),
        ("training.max_epochs", 1.5, r"training\.max_epochs = 1\.5: .*valid integer"),
        ("training.stages", 2, r"training\.stages = 2: .*1 or 3"),
        ("training.dtype", "float16", r"training\.dtype = 'float16': .*'float32' or 'float64'"),
        ("model.backbone.name", "schnet", r"model\.backbone\.name = 'schnet': .*'painn'"),
        ("model.backbone.cutoff", 0.0, r"model\.backbone\.cutoff = 0\.0: .*greater than 0"),
        ("model.charges.init", "guess", r"model\.charges\.init = 'guess': .*'prefit', 'born', 'oxidation' or 'zero'"),
        ("model.kernel.k_cutoff", "far", r"model\.kernel\.k_cutoff = 'far': .*valid number"),
        ("model.kernel.k_cutoff", 0, r"model\.kernel\.k_cutoff = 0: .*greater than 0"),
        ("model.kernel.k_cutoff", -3.0, r"model\.kernel\.k_cutoff = -3\.0: .*greater than 0"),
        ("data.valid_fraction", 0.95, "leave nothing to train on; lower them"),
        ("data.valid_fraction", 1.5, r"data\.valid_fraction = 1\.5: .*less than 1"),
    ],
)
def test_impossible_values(name: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        make_config(None, {name: value})
    assert "\n" not in str(error.value)
    assert "pydantic" not in str(error.value)


def test_a_value_in_the_place_of_a_section() -> None:
    with pytest.raises(ConfigError, match=r"setting training\.lr: training is not a section"):
        make_config({"training": 5}, {"training.lr": 1e-3})


@pytest.mark.parametrize("schedule", ["physics-first", "long-range-only"])
def test_sections_that_contradict_each_other(schedule: str) -> None:
    with pytest.raises(ConfigError, match=rf"schedule {schedule} needs .*kernel\.form is none; choose coulomb"):
        make_config(None, {"training.schedule": schedule, "model.kernel.form": "none"})


def test_the_long_range_alone_has_one_stage_and_no_start() -> None:
    alone = {"training.schedule": "long-range-only"}
    with pytest.raises(ConfigError, match=r"stage 2, but with schedule long-range-only there is one stage"):
        make_config(None, alone | {"training.per_stage": {2: {"lr": 1e-3}}})
    with pytest.raises(ConfigError, match=r"fits no network, but .* has one; choose auto"):
        make_config(None, alone | {"training.finetune.model": "model.pt"})


@pytest.mark.parametrize(("form", "schedule"), [("coulomb", "physical-start"), ("free", "published")])
def test_the_automatic_schedule(form: str, schedule: str) -> None:
    assert make_config(None, {"model.kernel.form": form}).schedule == schedule
    assert make_config(None, {"training.schedule": "published"}).schedule == "published"


@pytest.mark.parametrize("written", ["off", "false", "'off'"])
def test_no_cache_as_yaml_reads_it(written: str) -> None:
    assert make_config(None, parse_settings([f"data.cache={written}"])).data.cache == "off"
    assert make_config(yaml.safe_load(f"data: {{cache: {written}}}")).data.cache == "off"
    with pytest.raises(ConfigError, match=r"data\.cache"):
        make_config(None, parse_settings(["data.cache=on"]))


def test_nothing_is_executed(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"training: !!python/object/apply:os.mkdir ['{tmp_path / 'made'}']\n")
    with pytest.raises(ConfigError, match=r"c\.yaml: is not valid YAML"):
        make_config(path)
    assert not (tmp_path / "made").exists()
