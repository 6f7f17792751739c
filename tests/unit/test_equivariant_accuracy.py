"""The rates of a comparison: each network must be at its best, or nothing is compared."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("equivariant_accuracy")


def tried(*errors: float) -> list[dict[str, Any]]:
    return [{"rate": 10.0**-n, "validation": {"forces": error}} for n, error in enumerate(errors)]


def test_the_best_of_all_lies_between_others(script: ModuleType) -> None:
    assert script.best_of("one", tried(math.nan, 3.0, 2.0, 2.5))["validation"]["forces"] == 2.0


@pytest.mark.parametrize("errors", [(3.0, 2.0, 1.0), (1.0, 2.0, 3.0), (math.nan, math.nan, 1.0)])
def test_a_best_at_an_end_is_refused(script: ModuleType, errors: tuple[float, ...]) -> None:
    with pytest.raises(SystemExit, match=r"one: the best rate, .* is at an end of those tried; add others to RATES"):
        script.best_of("one", tried(*errors))
