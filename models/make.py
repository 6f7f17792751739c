"""Make a model that comes with lrpot: data, fit, errors; then model and card go into lrpot/models.

    python models/make.py nacl [--work runs/models/nacl]     (goes on where it was stopped)

models/NAME/card.yaml holds the card as far as it is written by hand, with the commands, which run in the folder of
--work, and the test files; models/NAME/fit.yaml the settings of the fit.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from lrpot.files import atomic_path, write_text
from lrpot.shipped import FOLDER, Card

RECIPES = Path(__file__).resolve().parent
LARGEST = 5_000_000  # bytes; more does not belong into a package


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=sorted(path.parent.name for path in RECIPES.glob("*/card.yaml")))
    parser.add_argument("--work", type=Path, help="folder for data and fit (default: runs/models/NAME)")
    arguments = parser.parse_args()
    recipe = RECIPES / arguments.name
    work = arguments.work or Path("runs/models") / arguments.name
    work.mkdir(parents=True, exist_ok=True)
    shutil.copy(recipe / "fit.yaml", work)
    card = yaml.safe_load((recipe / "card.yaml").read_text(encoding="utf-8"))
    tests = card.pop("tests")
    for command in card["commands"]:
        run(command, work)
    model = work / "fit" / "model.pt"
    card["errors"] = {title: errors(work, file) for title, file in tests.items()}
    card["sha256"] = hashlib.sha256(model.read_bytes()).hexdigest()
    Card.model_validate(card)
    if model.stat().st_size > LARGEST:
        sys.exit(f"{model}: has {model.stat().st_size} bytes, more than {LARGEST}; fit a smaller network")
    with atomic_path(FOLDER / f"{arguments.name}.pt") as temporary:
        shutil.copyfile(model, temporary)
    text = yaml.safe_dump(card, sort_keys=False, width=120, allow_unicode=True)
    write_text(FOLDER / f"{arguments.name}.yaml", f"# Written by models/make.py.\n{text}")
    print(f"wrote {FOLDER / arguments.name}.pt and .yaml")


def run(command: str, work: Path) -> None:
    """Run a command of lrpot, unless what it makes is there; a fit that was begun goes on."""
    program, *words = shlex.split(command)
    assert program == "lrpot", command
    out = work / words[words.index("--out") + 1]
    if out.is_file() or (out / "model.pt").is_file():
        return
    if (out / "config.yaml").is_file():
        words = ["fit", "--resume", "--out", out.name]
    lrpot(words, work)


def lrpot(words: list[str], work: Path) -> None:
    print("lrpot", shlex.join(words), flush=True)
    subprocess.run([sys.executable, "-m", "lrpot.cli.main", *words], cwd=work, check=True)


def errors(work: Path, file: str) -> dict[str, Any]:
    """Errors of the model on a file, as a card has them."""
    lrpot(["evaluate", "fit/model.pt", file], work)
    report = json.loads((work / "fit" / f"evaluation-{Path(file).stem}.json").read_text(encoding="utf-8"))
    kept = {label: report[label] for label in ("energy", "forces", "stress") if label in report}
    return {
        "n_structures": report["n_structures"],
        "n_atoms": report["n_atoms"],
        **{label: {kind: found[kind] for kind in ("mae", "rmse")} for label, found in kept.items()},
    }


if __name__ == "__main__":
    main()
