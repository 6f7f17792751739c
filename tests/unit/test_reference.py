"""The site of docs/: it is built without a warning, and its reference has every public name."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

import lrpot

ROOT = Path(__file__).parents[2]
PAGES = sorted(path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md"))


def packages() -> list[str]:
    """Those that say what of them is public."""
    own = [path.parent.name for path in Path(lrpot.__file__).parent.glob("*/__init__.py")]
    return [
        "lrpot",
        *(name for name in (f"lrpot.{name}" for name in own) if hasattr(importlib.import_module(name), "__all__")),
    ]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocstrings", reason="not installed: pip install 'lrpot[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(folder)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return folder


def names(site: Path) -> set[str]:
    """What the reference shows, by the inventory that mkdocstrings leaves for other sites (Sphinx's format)."""
    *_, packed = (site / "objects.inv").read_bytes().split(b"\n", 4)
    return {line.split()[0] for line in zlib.decompress(packed).decode().splitlines()}


@pytest.mark.slow
def test_every_public_name_is_in_the_reference(site: Path) -> None:
    found = names(site)
    public = {package: importlib.import_module(package).__all__ for package in packages()}
    assert {"lrpot", "lrpot.kspace", "lrpot.md"} <= public.keys()
    # a function that has the name of its module stands under that of both
    missing = [
        f"{package}.{name}"
        for package, members in public.items()
        for name in members
        if not {f"{package}.{name}", f"{package}.{name}.{name}"} & found
    ]
    assert missing == []


def test_every_page_can_be_reached() -> None:
    listed = re.findall(r"^ +- ([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == PAGES
