"""Who may import whom: numerics know no model, engines know no training, and nothing heavy loads before it is used.

The order is written down here once; every module of lrpot must stand in it.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lrpot

ROOT = Path(lrpot.__file__).parent

# A module may import its own group and the groups above its line; groups on one line do not know each other.
ORDER = (
    ("_version", "errors", "units", "smooth", "threads", "compiled"),
    ("structure", "config", "files", "console", "interrupts", "shipped", "supercell"),
    ("kspace", "data", "archive", "coverage", "plot_style"),
    ("analysis", "backbones", "charges"),
    ("potential", "properties", "tensors", "testing"),
    ("build", "evaluation", "born", "ensemble"),
    ("model_file", "charge_scale", "calibration"),
    ("prediction", "plots"),
    ("training",),
    ("interfaces", "md", "report", "workflows"),
    ("cli",),
)
LEVEL = {group: level for level, line in enumerate(ORDER) for group in line}

# What the order would allow, and still must not be.
NEVER = {("interfaces", "training"), ("md", "training"), ("workflows", "training"), ("kspace", "config")}

# Packages that take long to load: not for `import lrpot` or `lrpot --help`.
HEAVY = (
    "torch",
    "ase",
    "numpy",
    "scipy",
    "numba",
    "e3nn",
    "pymatgen",
    "matplotlib",
    "lightning",
    "torch_geometric",
    "pydantic",
)


def group_of(module: str) -> str:
    """lrpot.data.readers -> data; lrpot -> "" (which only loads names on demand)."""
    return module.split(".")[1] if "." in module else ""


def imported(source: str, module: str, *, is_package: bool = False) -> Iterator[tuple[int, str]]:
    """Line and full name of every module of lrpot that a source imports, wherever the import stands.

    Imports below `if TYPE_CHECKING:` count too: a name in an annotation is knowledge as well.
    """
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            # `from lrpot import plots` imports a module, `from lrpot import __version__` a name
            names = [f"{origin}.{alias.name}" for alias in node.names] if origin == "lrpot" else [origin]
            names = [name if group_of(name) in LEVEL else "lrpot" for name in names] if origin == "lrpot" else names
        else:
            continue
        for name in names:
            if name.split(".")[0] == "lrpot":
                yield node.lineno, name


def violations(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """One sentence for every import that the order forbids."""
    group = group_of(module)
    if group == "":  # the package itself names everything, and loads it on demand
        return []
    if group not in LEVEL:
        return [f"{module}: {group} does not stand in ORDER"]
    found = []
    for line, name in imported(source, module, is_package=is_package):
        other = group_of(name)
        if other == group:
            continue
        if other == "":
            if group != "cli":
                found.append(f"{module}, line {line}: imports lrpot itself, which loads everything on demand")
        elif other not in LEVEL:
            found.append(f"{module}, line {line}: {other} does not stand in ORDER")
        elif LEVEL[other] >= LEVEL[group] or (group, other) in NEVER:
            found.append(f"{module}, line {line}: {group} must not import {name}")
    return found


def modules() -> list[tuple[str, Path]]:
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        found.append((".".join(parts[:-1] if parts[-1] == "__init__" else parts), path))
    return found


@pytest.mark.parametrize(("module", "path"), modules(), ids=[module for module, _ in modules()])
def test_imports_go_one_way(module: str, path: Path) -> None:
    assert violations(path.read_text(), module, is_package=path.name == "__init__.py") == []


def test_every_line_of_the_order_exists() -> None:
    assert {group_of(module) for module, _ in modules()} - {""} == LEVEL.keys()


@pytest.mark.parametrize(
    ("module", "source", "forbidden"),
    [
        ("lrpot.kspace.energy", "from lrpot.potential import Potential", "kspace must not import lrpot.potential"),
        ("lrpot.kspace.energy", "from lrpot.config import ModelConfig", "kspace must not import lrpot.config"),
        ("lrpot.kspace.energy", "from lrpot.data.neighbours import add_edges", "kspace must not import lrpot.data"),
        ("lrpot.data.readers", "import lrpot.kspace.lattice as k", "data must not import lrpot.kspace.lattice"),
        ("lrpot.interfaces.ase", "from lrpot.training.fit import fit", "interfaces must not import lrpot.training"),
        ("lrpot.interfaces.ase", "from lrpot import training", "interfaces must not import lrpot.training"),
        ("lrpot.interfaces.ase", "from lrpot import fit", "imports lrpot itself"),
        ("lrpot.md", "def f():\n    from lrpot.interfaces import ase", "line 2: md must not import lrpot.interfaces"),
        ("lrpot.errors", "from lrpot.structure import Structure", "errors must not import lrpot.structure"),
        ("lrpot.training.fit", "from lrpot.cli.main import run", "training must not import lrpot.cli.main"),
        ("lrpot.kspace.energy", "from ..potential import Potential", "kspace must not import lrpot.potential"),
        ("lrpot.kspace", "from ..potential import Potential", "kspace must not import lrpot.potential"),
        (
            "lrpot.kspace.kernel",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from lrpot.charges import EmbeddingCharges",
            "line 3: kspace must not import lrpot.charges",
        ),
        ("lrpot.kspace.kernel", "import lrpot.newcomer", "newcomer does not stand in ORDER"),
        ("lrpot.newcomer", "", "newcomer does not stand in ORDER"),
    ],
)
def test_the_check_finds_what_it_is_for(module: str, source: str, forbidden: str) -> None:
    (found,) = violations(source, module, is_package=module == "lrpot.kspace")
    assert forbidden in found


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("lrpot.kspace.energy", "from lrpot.kspace.lattice import k_lattice\nimport torch"),
        ("lrpot.kspace.energy", "from .lattice import k_lattice"),
        ("lrpot.training.fit", "from lrpot import plots"),
        ("lrpot.cli.main", "from lrpot import __version__"),
        ("lrpot.interfaces.ase", "import lrpotential"),
        ("lrpot", "from lrpot.training.fit import fit"),
    ],
)
def test_the_check_allows_the_rest(module: str, source: str) -> None:
    assert violations(source, module) == []


@pytest.mark.parametrize(
    ("statement", "names"),
    [
        ("import lrpot", HEAVY),
        ("from lrpot.cli.main import run; assert run(['--help']) == 0", HEAVY),
        ("import lrpot.backbones", ("e3nn",)),  # numba comes with torch_geometric
    ],
)
def test_nothing_heavy_loads_before_it_is_used(statement: str, names: tuple[str, ...]) -> None:
    code = f"import sys; {statement}; print([name for name in {names} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "[]"


def test_public_names_load_on_use() -> None:
    assert dir(lrpot) == sorted(lrpot.__all__)
    for name in lrpot.__all__:
        assert getattr(lrpot, name) is not None
    with pytest.raises(AttributeError, match="module 'lrpot' has no attribute 'nothing'"):
        _ = lrpot.nothing
