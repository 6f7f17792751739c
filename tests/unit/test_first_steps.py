"""The walk of docs/first_steps.md: its commands, as they stand there, in an empty directory with small data."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import ase.io
import pytest

from tests.helpers_cli import run_cli
from tests.walk_data import write_calculations, write_crystals

PAGE = Path(__file__).parents[2] / "docs" / "first_steps.md"
PICTURES = ("runs/first/parity.png", "kernel.png", "md.energy.png", "runs/gap/parity.png")


def commands() -> list[list[str]]:
    blocks = re.findall(r"<!-- run -->\n```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


@pytest.mark.slow
def test_from_calculations_to_md_and_from_a_table_to_a_screen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_calculations(tmp_path, 12)
    write_crystals(tmp_path, 40)
    monkeypatch.chdir(tmp_path)
    walk = commands()
    assert {words[1] for words in walk} == {"fit", "info", "evaluate", "plot", "md", "screen"}
    for program, *words in walk:
        assert program == "lrpot"
        assert run_cli(*words) == 0, words
    assert [name for name in PICTURES if not (tmp_path / name).read_bytes().startswith(b"\x89PNG")] == []
    frames = ase.io.read("md.traj", index=":")
    assert len(frames[-1]) == 4 * len(ase.io.read("dft/0000/vasprun.xml"))
    assert frames[-1].get_temperature() > 0
    found = Path("found.csv").read_text(encoding="utf-8").splitlines()
    assert found[0].split(",")[-1] == "gap"
    least = float(walk[-1][walk[-1].index("--where") + 1].removeprefix("gap > "))
    assert [float(line.split(",")[-1]) > least for line in found[1:]] == [True] * 3
