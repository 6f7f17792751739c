"""Everything that is wrong with a settings file, with the lines where it stands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import yaml
from pydantic import ValidationError

from lrpot.config.fit import FitConfig
from lrpot.config.listing import without_effect
from lrpot.config.reading import explain, locate, read_yaml

# Settings lie no deeper; aliases of YAML may nest without end.
DEEPEST = 5

Place = tuple[str, ...]


class Problem(NamedTuple):
    """What is wrong with a settings file. `line` counts from 1; None where it is the file as a whole."""

    line: int | None
    text: str


def check_config(path: Path) -> tuple[FitConfig | None, list[Problem], list[str]]:
    """Check a settings file.

    Returns:
        the configuration, or None if there are problems; the problems by line; lines on settings that do nothing.
    Raises:
        ConfigError: no such file, no text, no YAML, or no sections.
    """
    values = read_yaml(path)
    lines: dict[Place, int] = {}
    problems = []
    for place, line in _keys(yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader), ()):
        first = lines.setdefault(place, line)
        if first != line:
            problems.append(Problem(line, f"{'.'.join(place)} is set already in line {first}; leave one of them out"))
    config = None
    try:
        config = FitConfig.model_validate(values)
    except ValidationError as error:
        problems += [Problem(_line_of(tuple(locate(e["loc"])[1]), lines), explain(e)) for e in error.errors()]
    problems = sorted(set(problems), key=lambda problem: problem.line or 0)
    if problems or config is None:
        return None, problems, []
    return config, [], without_effect(config)


def _keys(node: yaml.Node | None, place: Place) -> Iterator[tuple[Place, int]]:
    """Every key of nested mappings, with its line."""
    if not isinstance(node, yaml.MappingNode) or len(place) >= DEEPEST:
        return
    for key, value in node.value:
        if isinstance(key, yaml.ScalarNode):
            here = (*place, key.value)
            yield here, key.start_mark.line + 1
            yield from _keys(value, here)


def _line_of(place: Place, lines: dict[Place, int]) -> int | None:
    """Where a setting stands, or the section that it is in."""
    while place and place not in lines:
        place = place[:-1]
    return lines.get(place)
