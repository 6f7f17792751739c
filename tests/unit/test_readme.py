"""The README does what it says: its commands and its Python run, and its numbers are those of the benchmarks."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = ROOT / "benchmarks/results"


def blocks(language: str) -> list[str]:
    """Code blocks that are marked to be run."""
    return re.findall(rf"<!-- run -->\n```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.slow
def test_commands_and_python_run_in_an_empty_directory(tmp_path: Path) -> None:
    scripts = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}
    (commands,), (code,) = blocks("bash"), blocks("python")
    shell = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands], cwd=tmp_path, env=environment, text=True, capture_output=True
    )
    assert shell.returncode == 0, shell.stderr
    for name in ("nacl.extxyz", "runs/nacl/model.pt", "runs/nacl/kernel.png", "runs/nacl/parity.png", "results.csv"):
        assert (tmp_path / name).stat().st_size > 0
    for word in ("charges start at", "stage 3/3", "improved", "RMSE", "formula", "backbone:"):
        assert word in shell.stdout
    python = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, text=True, capture_output=True)
    assert python.returncode == 0, python.stderr
    assert "['Na', 'Cl'] eV/A" in python.stdout


def test_numbers_of_the_demo_are_those_of_its_benchmark() -> None:
    demo = json.loads((RESULTS / "demo.json").read_text())
    for name, row in demo["test errors"].items():
        line = next(line for line in README.splitlines() if line.startswith(f"| {name} |"))
        expected = [f"{errors[label]['mae']:.1e}" for errors in row.values() for label in ("energy", "forces")]
        assert [cell.strip() for cell in line.split("|")[2:-1]] == expected
    assert f"{demo['md']['drift (eV/atom/ps)']:.1e} eV/atom/ps" in README
    assert f"{demo['seconds'] / 60:.1f} minutes" in README


def test_numbers_of_speed_are_those_of_their_benchmarks() -> None:
    for record in json.loads((RESULTS / "calculator.json").read_text())["records"]:
        line = next(
            line for line in README.splitlines() if line.startswith(f"| {record['network']}, {record['dtype']}")
        )
        expected = [f"{value:.0f}" for value in record["milliseconds"].values()]
        expected += [f"{record[name]:.2f}" for name in ("long range / network alone", "long range / SchNetPack")]
        assert [cell.strip() for cell in line.split("|")[2:-1]] == expected
    for record in json.loads((RESULTS / "nacl_builder.json").read_text())["records"]:
        assert f"| {record['atoms']} | {record['rows']} | {record['structures per second']:.0f} |" in README.replace(
            f"{record['structures per second']:.1f}", f"{record['structures per second']:.0f}"
        )
