"""The tables of the README from the JSON of the benchmarks, to be pasted there; a test compares the two.

python benchmarks/readme_tables.py
"""

from __future__ import annotations

import json
from typing import Any

from timing import RESULTS


def main() -> None:
    for text in (demo(read("demo")), speed(read("calculator"), read("nacl_builder")), dft(read("dft_nacl"))):
        print(text, end="\n\n")


def read(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())


def demo(result: dict[str, Any]) -> str:
    tests = list(result["test errors"]["network alone"])
    units = [f"{test}, {unit}" for test in tests for unit in ("E (eV/atom)", "F (eV/Å)")]
    rows = [
        (name, *(f"{errors[label]['mae']:.1e}" for errors in row.values() for label in ("energy", "forces")))
        for name, row in result["test errors"].items()
    ]
    ratios = [f"{ratio:,}x" for ratio in result["network alone / stage 3"]]
    return table(("mean absolute error", *units), [*rows, ("network alone / stage 3", *ratios)])


def speed(calculator: dict[str, Any], builder: dict[str, Any]) -> str:
    cases = ("network + long range (ms)", "network alone (ms)", "SchNetPack PaiNN (ms)")
    rows = [
        (
            f"{record['network']}, {record['dtype']}",
            *(f"{value:.0f}" for value in record["milliseconds"].values()),
            f"{record['long range / network alone']:.2f}",
            f"{record['long range / SchNetPack']:.2f}",
        )
        for record in calculator["records"]
    ]
    first = table(("one E + F call, 432 atoms", *cases, "/ network alone", "/ SchNetPack"), rows)
    rows = [
        (str(record["atoms"]), str(record["rows"]), f"{record['structures per second']:.0f}")
        for record in builder["records"]
    ]
    return first + "\n\n" + table(("`lrpot data nacl --jobs 2`, atoms", "rows", "structures/s"), rows)


def dft(result: dict[str, Any]) -> str:
    rows = [
        (
            name,
            *(f"{record['64 atoms'][label]['mae']:.1e}" for label in ("energy", "forces")),
            f"{record['512 atoms']['forces']['mae']:.1e}",
            ", ".join(f"{symbol} {charge:+.2f}" for symbol, charge in record["charges"].items()),
        )
        for name, record in result["records"].items()
    ]
    columns = (
        "mean absolute error",
        "64 atoms, E (eV/atom)",
        "64 atoms, F (eV/Å)",
        "512 atoms, F (eV/Å)",
        "charges (e)",
    )
    return table(columns, rows)


def table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


if __name__ == "__main__":
    main()
