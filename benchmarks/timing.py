"""Timing shared by the benchmarks: cases take turns, so that a machine that drifts slows all of them alike."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
BUSY = 0.5  # of the machine, before the start: above this load, other work shares its cores


def alternate(cases: Mapping[str, Callable[[], object]], rounds: int = 30, warmup: int = 3) -> dict[str, list[float]]:
    """Seconds of each case in each round; every round runs all cases in turn."""
    for _ in range(warmup):
        for run in cases.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, run in cases.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def median_ratio(a: list[float], b: list[float]) -> float:
    """Median over rounds of a / b."""
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    return {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _processor() -> str:
    """Its name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def report(name: str, result: dict[str, Any]) -> None:
    """Print results and write them, and say if the machine did something else; `load` is that before they began."""
    result |= machine()
    for key, value in result.items():
        print(f"{key}: {value}")
    print(f"wrote {write(name, result)}")
    if result["load"] > BUSY:
        print(
            f"the load was {result['load']:.1f}: no numbers to keep; run it again on a machine that does nothing else"
        )


def write(name: str, content: dict[str, Any]) -> Path:
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path
