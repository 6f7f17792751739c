"""How fast `lrpot data nacl` computes labelled structures, start-up of its processes included.

python benchmarks/nacl_builder.py
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from timing import machine, write

from lrpot.console import Console
from lrpot.data.builders.nacl import build_nacl

CASES = ((1000, 3, "none"), (20, 6, "none"), (20, 6, "vacancy"))


def main() -> None:
    records = []
    for n, supercell, defect in CASES:
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            build_nacl(Path(folder) / "nacl.extxyz", n=n, supercell=supercell, defect=defect, jobs=2)
            seconds = time.perf_counter() - start
        atoms = 2 * supercell**3 - (defect == "vacancy")
        records.append({"atoms": atoms, "rows": n, "jobs": 2, "structures per second": n / seconds})
    rows = [[str(value) if isinstance(value, int) else f"{value:.1f}" for value in r.values()] for r in records]
    Console().table("lrpot data nacl", list(records[0]), rows)
    print("wrote", write("nacl_builder", {"machine": machine(), "records": records}))


if __name__ == "__main__":
    main()
