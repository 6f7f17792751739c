"""Docstrings of what docs/reference/ shows: they are there, give shapes and units of arrays, and say what is raised."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from lrpot.errors import ConfigError, LrpotError

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
ARRAY = re.compile(r"\b(Tensor|ndarray)\b")
SHAPE = re.compile(r"\(\w+( ([*+] )?\w+)?,[^()]*\)|\(\)|\bthe same shape\b")
UNIT = re.compile(
    r"(?<!\w)(1/)?(A|eV|e|fs|ps|GPa|THz|K|u)(\^\d)?(?!\w)"
    r"|\b(dimensionless|units?|features|atomic numbers|row numbers|index|indices|int|bool)\b"
)


def documented() -> Iterator[tuple[str, Any]]:
    """Every public object of the reference, by the name under which it stands there."""
    for page in sorted(REFERENCE.glob("*.md")):
        for name in re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE):
            try:
                module = importlib.import_module(name)
            except ModuleNotFoundError:
                home, _, own = name.rpartition(".")
                yield name, getattr(importlib.import_module(home), own)
            else:
                yield from ((f"{name}.{own}", getattr(module, own)) for own in public_names(module))


def public_names(module: ModuleType) -> list[str]:
    """Those of `__all__`, or what the module defines itself."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]


def docstring(value: Any) -> str:
    """Its own: `inspect.getdoc` would take that of a class of torch."""
    return inspect.cleandoc(value.__doc__ or "")


def functions(name: str, value: Any) -> Iterator[tuple[str, Callable[..., Any], str]]:
    """Name, function and docstring of a function, or of the constructor, public methods and properties of a class."""
    if inspect.isfunction(value):
        yield name, value, docstring(value)
    for own, member in vars(value).items() if inspect.isclass(value) else ():
        function = getattr(member, "fget", None) or getattr(member, "__func__", None) or member
        if not inspect.isfunction(function) or function.__code__.co_filename.startswith("<"):
            continue  # dataclasses write methods, too
        if own == "__init__":
            yield f"{name}.{own}", function, f"{docstring(value)}\n{docstring(function)}"
        elif not own.startswith("_"):
            yield f"{name}.{own}", function, docstring_of(value, own)


def docstring_of(kind: type, method: str) -> str:
    """What a method promises: by its own docstring, those of the bases, and of another method that it refers to."""
    found = [
        docstring(vars(base)[method])
        for base in kind.__mro__
        if method in vars(base) and base.__module__.partition(".")[0] == "lrpot"
    ]
    referred = re.search(r"\bas of `(\w+)`", found[0])
    return "\n".join(found + ([docstring_of(kind, referred[1])] if referred else []))


def entries(text: str) -> dict[str, str]:
    """The text of each argument that a docstring explains."""
    found: dict[str, str] = {}
    name = None
    for line in text.splitlines():
        start = re.match(r"\s+(\w+): (.*)", line)
        if start:
            name = start[1]
            found.setdefault(name, start[2])
        elif not line.strip() or line.strip().endswith(":"):
            name = None
        elif name is not None:
            found[name] += f" {line.strip()}"
    return found


def raised(function: Callable[..., Any]) -> set[str]:
    """Names of the errors of lrpot that the body of a function raises."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    names = {
        node.exc.func.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name)
    }
    kinds = {name: function.__globals__.get(name) for name in names}
    return {name for name, kind in kinds.items() if inspect.isclass(kind) and issubclass(kind, LrpotError)}


def hidden(names: Iterable[str], text: str) -> list[str]:
    """Names that a docstring explains in the line of another, where the reference does not find them."""
    return [name for name in names if name not in entries(text) and re.search(rf"[.;,] {name}: ", text)]


def problems(name: str, function: Callable[..., Any], text: str) -> list[str]:
    """One sentence for everything that the docstring of a function keeps to itself."""
    if not text.strip():
        return [f"{name}: has no docstring"]
    found = [f"{name}: does not say that it raises {kind}" for kind in sorted(raised(function)) if kind not in text]
    of_others = hidden(inspect.signature(function).parameters, text)
    found += [f"{name}: {argument} is explained in the line of another argument" for argument in of_others]
    arrays = [argument for argument, kind in function.__annotations__.items() if ARRAY.search(str(kind))]
    if "Args:" not in text:  # a line such as "(K,), eV, from (K,) wave numbers in 1/A"
        rest, shapes = SHAPE.subn("", text)
        enough = shapes >= len(arrays) and (not arrays or UNIT.search(rest))
        return found if enough else [*found, f"{name}: does not give shapes and units of {', '.join(arrays)}"]
    for argument in arrays:
        entry = text if argument == "return" else entries(text).get(argument, "")
        if not SHAPE.search(entry) or not UNIT.search(SHAPE.sub("", entry)):
            found.append(f"{name}: does not give shape and unit of {argument}")
    return found


DOCUMENTED = dict(documented())


def test_the_reference_has_the_public_names() -> None:
    assert {"lrpot.fit", "lrpot.kspace.ReciprocalSum", "lrpot.workflows.relax.relax"} <= DOCUMENTED.keys()


@pytest.mark.parametrize("name", DOCUMENTED)
def test_what_the_reference_shows_explains_itself(name: str) -> None:
    value = DOCUMENTED[name]
    if inspect.isclass(value):
        assert docstring(value), "no docstring"
        assert hidden(getattr(value, "__annotations__", {}), docstring(value)) == []
    assert [problem for member in functions(name, value) for problem in problems(*member)] == []


def good(k: torch.Tensor, charges: torch.Tensor) -> torch.Tensor:
    """The energy.

    Args:
        k: (K, 3), 1/A.
        charges: (N,), in which two lines
            are needed, e.
    Returns:
        (), eV.
    Raises:
        ConfigError: no wave vector.
    """
    if not len(k):
        raise ConfigError("no wave vector")
    return charges.sum()


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("ConfigError: no wave vector.", "nothing.", "does not say that it raises ConfigError"),
        ("(K, 3), 1/A", "1/A", "shape and unit of k"),
        ("(K, 3), 1/A", "(K, 3)", "shape and unit of k"),
        ("are needed, e.", "are needed.", "shape and unit of charges"),
        ("(N,), in which", "in which", "shape and unit of charges"),
        ("1/A.\n    charges: (N,)", "1/A. charges: (N,)", "charges is explained in the line of another argument"),
        ("charges: (N,)", "q: (N,)", "shape and unit of charges"),
    ],
)
def test_the_check_finds_what_is_missing(old: str, new: str, told: str) -> None:
    text = docstring(good)
    assert problems("good", good, text) == []
    assert old in text
    assert any(told in problem for problem in problems("good", good, text.replace(old, new)))


@pytest.mark.parametrize(
    ("text", "fine"),
    [
        ("", False),
        ("(), eV, from (K, 3) wave vectors and (N,) charges.\n\nConfigError without wave vectors.", True),
        ("(), eV, from (K, 3) wave vectors and charges.\n\nConfigError without wave vectors.", False),
    ],
)
def test_one_line_is_enough_where_it_says_all(text: str, fine: bool) -> None:
    assert (problems("good", good, text) == []) is fine
