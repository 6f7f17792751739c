"""One run for all tests of the report."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.report.run_data import make_run


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; not to be changed, but copied."""
    return make_run(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="session")
def page(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of it."""
    from lrpot.report.page import write_report

    return write_report(run, tmp_path_factory.mktemp("page") / "report.html")
