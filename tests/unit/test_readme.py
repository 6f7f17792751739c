"""The README does what it says: its commands and its Python run, and its numbers are those of the benchmarks."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# Where `lrpot` and `python` are; `make test-wheel` names an environment that has the wheel alone.
PROGRAMS = Path(os.environ.get("LRPOT_README_PROGRAMS", Path(sys.executable).parent))


def blocks(language: str) -> list[str]:
    """Code blocks that are marked to be run."""
    return re.findall(rf"<!-- run -->\n```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.slow
def test_commands_and_python_run_in_an_empty_directory(tmp_path: Path) -> None:
    environment = os.environ | {"PATH": f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}"}
    (commands,), code = blocks("bash"), "\n".join(blocks("python"))
    shell = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands], cwd=tmp_path, env=environment, text=True, capture_output=True
    )
    assert shell.returncode == 0, shell.stderr
    for name in ("nacl.extxyz", "runs/nacl/model.pt", "runs/nacl/kernel.png", "runs/nacl/parity.png", "results.csv"):
        assert (tmp_path / name).stat().st_size > 0
    for word in ("charges start at", "stage 3/3", "improved", "RMSE", "formula", "backbone:"):
        assert word in shell.stdout
    python = subprocess.run([PROGRAMS / "python", "-c", code], cwd=tmp_path, text=True, capture_output=True)
    assert python.returncode == 0, python.stderr
    assert "['Na', 'Cl'] eV/A" in python.stdout


def test_numbers_are_those_of_the_benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    tables = importlib.import_module("readme_tables")
    for page, found in tables.pages().items():
        text = (ROOT / page).read_text(encoding="utf-8")
        for table in found:
            assert table in text
    demo = tables.read("demo")
    assert f"{demo['md']['drift (eV/atom/ps)']:.0e} eV/atom/ps" in README
    assert f"{demo['seconds'] / 60:.0f} minutes" in README
