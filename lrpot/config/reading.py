"""Settings from YAML, tables and the command line; what is wrong with them, in a line."""

from __future__ import annotations

import contextlib
import difflib
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from lrpot.config.backbone import REGISTERED, REGISTERED_BACKBONES, RegisteredConfig
from lrpot.config.fit import FitConfig
from lrpot.config.model import ModelConfig
from lrpot.errors import ConfigError

LONGEST_SHOWN = 100  # letters, of what a user typed


def make_config(
    source: str | Path | Mapping[str, Any] | FitConfig | None = None,
    settings: Mapping[str, Any] | None = None,
    *,
    model: ModelConfig | None = None,
) -> FitConfig:
    """A checked configuration.

    Args:
        source: a YAML file, nested settings, or a configuration; None for the defaults.
        settings: settings by dotted name, e.g. {"training.lr": 1e-3}; they win over `source`.
        model: what holds in the section `model` where nothing else is given, in place of the defaults. A section that
            gives nothing but all defaults, as every `FitConfig` does in which it was not changed, gives nothing else.
    Raises:
        ConfigError: a file that is not YAML, a name that does not exist (the nearest right one is named), or a value
            that is not possible.
    """
    where = "config"
    if isinstance(source, (str, Path)):
        where = str(source)
        values = _nested_copy(read_yaml(Path(source)))
    elif isinstance(source, FitConfig):
        values = source.model_dump(mode="json")
    else:
        values = _nested_copy(source or {})
    if model is not None and values.get("model") == ModelConfig().model_dump(mode="json"):
        del values["model"]
    for name, value in (settings or {}).items():
        _set(values, name, value)
    if model is not None:
        values["model"] = _over(model.model_dump(mode="json"), values.get("model", {}))
    try:
        return FitConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{where}: {explain(error.errors()[0])}") from error


def parse_settings(words: Iterable[str]) -> dict[str, Any]:
    """`["training.lr=1e-3", "data.skip_bad_rows=true"]` -> settings by dotted name; values are read as YAML.

    Raises:
        ConfigError: a word without "=".
    """
    settings: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name:
            raise ConfigError(f"--set {shown(word)}: expected name=value, such as training.lr=1e-3")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {shown(word)}: the value cannot be read; quote it") from error
        # YAML 1.1 reads 1e-3 as a string
        if isinstance(value, str):
            with contextlib.suppress(ValueError):
                value = float(value)
        settings[name] = value
    return settings


def field_names(section: type[BaseModel] = FitConfig, prefix: str = "") -> list[str]:
    """The dotted names of all settings."""
    names: dict[str, None] = {}  # a set that keeps the order
    for name, field in section.model_fields.items():
        sections = _sections(field.annotation)
        if sections and get_origin(field.annotation) is dict:
            names[prefix + name] = None
            for key in get_args(get_args(field.annotation)[0]):  # the numbers that sections have
                names |= dict.fromkeys(field_names(sections[0], f"{prefix}{name}.{key}."))
            continue
        for kind in sections:
            names |= dict.fromkeys(field_names(kind, f"{prefix}{name}."))
            for own in REGISTERED_BACKBONES.values() if kind is RegisteredConfig else ():
                names |= dict.fromkeys(field_names(own, f"{prefix}{name}."))
        if not sections or type(None) in get_args(field.annotation):  # a section that may be left out
            names[prefix + name] = None
    return list(names)


def _sections(kind: Any) -> list[type[BaseModel]]:
    """The sections that a field of this type may hold: itself, or those of a union."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return [kind]
    return [section for part in get_args(kind) for section in _sections(part)]


def read_yaml(path: Path) -> dict[str, Any]:
    """The content of a settings file, not yet checked.

    Raises:
        ConfigError: no such file, no text, no YAML, or no sections.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as text; give a YAML file") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not valid YAML: {' '.join(str(error).split())[:200]}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected sections data, model, training; found {type(values).__name__}")
    return values


def _set(values: dict[str, Any], dotted: str, value: Any) -> None:
    known = field_names()
    if dotted not in known and not any(dotted.startswith(f"{name}.") for name in ("model.charges.init",)):
        hint = nearest_name(dotted, known) or "one of those that `lrpot config show` prints"
        raise ConfigError(f"setting {shown(dotted)} does not exist; did you mean {hint}?")
    *path, last = dotted.split(".")
    section = values
    for name in path:
        section = section.setdefault(name, {})
        if not isinstance(section, dict):
            raise ConfigError(f"setting {shown(dotted)}: {shown(name)} is not a section")
    section[last] = _nested_copy(value) if isinstance(value, Mapping) else value


def nearest_name(dotted: str, known: Sequence[str]) -> str | None:
    """The setting that a wrong name stands for: one with the same last word, or one that is spelt alike."""
    inside = [name for name in known if name.startswith(f"{dotted}.")]
    if inside:
        return inside[0]
    last = dotted.rsplit(".", 1)[-1]
    same = [name for name in known if name.rsplit(".", 1)[-1] == last]
    same = difflib.get_close_matches(dotted, same, n=1, cutoff=0.0)
    near = difflib.get_close_matches(dotted, known, n=1, cutoff=0.5)
    return next(iter(same or near), None)


def _over(below: dict[str, Any], above: Any) -> Any:
    """Nested settings, those above in the place of those below; a table of charges is one value, and settings of
    another network replace all."""
    if not isinstance(above, dict) or above.get("name", below.get("name")) != below.get("name"):
        return above
    merged = dict(below)
    for name, value in above.items():
        inner = merged.get(name)
        merged[name] = _over(inner, value) if isinstance(inner, dict) and name != "init" else value
    return merged


def _nested_copy(values: Mapping[Any, Any]) -> dict[str, Any]:
    # numbers of sections as text, so that a name with dots finds them
    return {
        str(name) if type(name) is int else name: _nested_copy(v) if isinstance(v, Mapping) else v
        for name, v in values.items()
    }


def shown(text: str) -> str:
    """A text of the user's for a message of one line: its beginning, without the ends of lines."""
    text = " ".join(text.split())
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def explain(problem: ErrorDetails) -> str:
    """One of the errors that pydantic found, in a line that says what to do."""
    section, place = locate(problem["loc"])
    name = shown(".".join(place))
    if problem["type"] == "union_tag_invalid":
        own = "a backbone of your own after lrpot.backbones.register"
        known = problem["ctx"]["expected_tags"].replace(f"'{REGISTERED}'", own)
        return f"{name}.name = {reprlib.repr(problem['ctx']['tag'])}: choose one of {known}"
    if problem["type"] == "union_tag_not_found":
        return f"{name} = {reprlib.repr(problem['input'])}: expected a section, such as {{name: painn, cutoff: 5.0}}"
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(place[-1], section.model_fields, n=1, cutoff=0.4)
        # networks elsewhere have settings of the same names, which say nothing of this one
        apart = {"properties"} - {place[0]}
        names = [other for other in field_names() if other.split(".")[0] not in apart]
        near = near or [other for other in names if other.rsplit(".", 1)[-1] == place[-1] and other != name]
        hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(section.model_fields)}"
        return f"setting {name} does not exist; {hint}"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{name} = {reprlib.repr(problem['input'])}: {message}" if name else message


def locate(path: tuple[int | str, ...], section: type[BaseModel] = FitConfig) -> tuple[type[BaseModel], list[str]]:
    """Where pydantic found an error: the section, and the name without the tag or type chosen of a union.

    Args:
        path: the `loc` of an error.
        section: what was validated.
    """
    choices: list[type[BaseModel]] = []
    place: list[str] = []
    for part in map(str, path):
        chosen = [kind for kind in choices if len(choices) > 1 and kind.model_fields["name"].default == part]
        if chosen:
            section, choices = chosen[0], []
            continue
        if part in ("str", "int") or part.startswith(("literal[", "float", "dict[", "list[", "constrained-")):
            continue
        place.append(part)
        field = section.model_fields.get(part)
        choices = _sections(field.annotation) if field else []
        if len(choices) == 1:
            section = choices[0]
    return section, place
