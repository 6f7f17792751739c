"""The documents say what is there: error classes, files, order of imports, links, commands, numbers."""

from __future__ import annotations

import importlib
import pkgutil
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import yaml
from ase.build import bulk

import lrpot
from lrpot.build import resolve_k_cutoff
from lrpot.cli.main import app
from lrpot.config import ModelConfig, field_names
from lrpot.errors import LrpotError
from lrpot.kspace import k_lattice
from tests.unit.test_imports import ORDER

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "lrpot"
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
SETTINGS = field_names()
SKIPPED = {".venv", "build", "runs", "node_modules"}  # made by people and tools, not by us
PAGES = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not any(part in SKIPPED or part.startswith(".") for part in path.relative_to(ROOT).parts)
)


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")


# --- errors


def error_classes() -> set[str]:
    for module in pkgutil.walk_packages(lrpot.__path__, "lrpot."):
        importlib.import_module(module.name)
    found, todo = set(), [LrpotError]
    while todo:
        kind = todo.pop()
        if kind.__module__.partition(".")[0] == "lrpot":
            found.add(kind.__name__)
        todo += kind.__subclasses__()
    return found


def test_every_error_class_is_explained() -> None:
    text = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    explained = set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) | {"LrpotError"}
    assert "`LrpotError` itself" in text
    assert explained == error_classes()


# --- reliability


def test_every_proof_of_reliability_is_a_test() -> None:
    text, _ = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8").split("## Spoiled files")
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", text)
    rows = [
        line for line in text.splitlines() if line.startswith("| ") and not line.startswith(("| threat", "| quant"))
    ]
    assert all("::test_" in row.rsplit(" | ", 1)[-1] for row in rows)
    missing = [
        f"{file}::{test}"
        for file, test in named
        if f"\ndef {test}(" not in (ROOT / "tests" / file).read_text(encoding="utf-8")
    ]
    assert missing == []


# --- architecture


def test_files_named_in_the_architecture_exist() -> None:
    named = re.findall(r"`([\w.]+/[\w./-]*|[\w-]+\.(?:md|txt|toml))`", ARCHITECTURE)
    assert len(named) > 40
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_module_is_named_in_the_architecture() -> None:
    names = [path.relative_to(ROOT).as_posix() for path in modules()]
    assert [name for name in names if f"`{name}`" not in ARCHITECTURE] == []


def test_the_import_order_of_the_architecture_is_the_one_that_is_tested() -> None:
    block = re.search(r"<!-- import order -->\n```\n(.*?)```", ARCHITECTURE, re.DOTALL)
    assert block
    assert [set(line.split(", ")) for line in block[1].splitlines()] == [set(line) for line in ORDER]


# --- pages


def anchors(page: Path) -> set[str]:
    """The names that headings get: lower case, no punctuation, hyphens for blanks."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_inside_the_repository_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file) if file else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_citation_and_changelog_have_the_version_of_the_package() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == lrpot.__version__
    assert any("2211.16684" in str(reference) for reference in citation["references"])
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    releases = re.findall(r"^## \[(\d.*?)\] - (.+)$", changelog, flags=re.MULTILINE)
    assert releases[0] == (lrpot.__version__, str(citation["date-released"]))


# --- commands


def commands(page: Path) -> list[list[str]]:
    """The words of every `lrpot ...` in the code blocks of a page; a line may go on after a backslash."""
    blocks = re.findall(r"^```.*?\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("lrpot ")]


def mistakes(words: list[str]) -> list[str]:
    """Commands, options and settings that do not exist."""
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        if words[0] not in command.commands:
            return [f"no command {words[0]}"]
        command, words = command.commands[words[0]], words[1:]
    options = {name for parameter in command.params for name in parameter.opts} | {"--help", "--debug"}
    found = [f"no option {word}" for word in words if word.startswith("--") and word not in options]
    settings = [
        word.partition("=")[0] for word in words if re.match(r"(model|data|training|properties)\.[\w.]+=", word)
    ]
    return found + [f"no setting {name}" for name in settings if name not in SETTINGS]


def test_commands_in_the_pages_exist() -> None:
    pages = {page.relative_to(ROOT).as_posix(): commands(page) for page in PAGES}
    assert len(pages["README.md"]) > 10
    wrong = [(page, words, found) for page, lines in pages.items() for words in lines if (found := mistakes(words))]
    assert wrong == []


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("fit a.xyz --set training.max_epochs=3 --out b", []),
        ("data cache --clean", []),
        ("fitt a.xyz", ["no command fitt"]),
        ("data cache --sweep", ["no option --sweep"]),
        ("fit a.xyz --set training.maxepochs=3", ["no setting training.maxepochs"]),
    ],
)
def test_commands_that_do_not_exist_are_found(line: str, found: list[str]) -> None:
    assert mistakes(line.split()) == found


# --- numbers


def test_numbers_of_wave_vectors_are_those_of_the_default_settings() -> None:
    text = (ROOT / "docs" / "theory.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d) x \1 x \1 \|(.*)\|$", text, re.MULTILINE)
    assert len(rows) == 2
    config = ModelConfig()
    for repeats, numbers in rows:
        atoms = bulk("NaCl", "rocksalt", 5.64) * ((int(repeats),) * 3)
        lattice = k_lattice(torch.tensor(atoms.cell.array), resolve_k_cutoff(config.kernel, config.backbone.cutoff))
        n, k, h, m = len(atoms), len(lattice), len(lattice.rows), len(lattice.columns)
        phases = [f"{value:.1e}".replace("e+0", "e") for value in (n * (h + m), n * k)]
        assert [number.strip() for number in numbers.split("|")] == [*map(str, (n, k, h, m)), *phases]
