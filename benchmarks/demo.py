"""`make demo` as a new user runs it: a fresh clone in an empty directory, the installation included.

python benchmarks/demo.py
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from timing import machine, write

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "lrpot"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        environment = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}
        start = time.perf_counter()
        output = subprocess.run(["make", "demo"], cwd=clone, env=environment, text=True, stdout=subprocess.PIPE)
        seconds = time.perf_counter() - start
        print(output.stdout)
        output.check_returncode()
        results = json.loads((clone / "runs/demo/results.json").read_text())
        if len(sys.argv) > 1:  # keep the pictures to look at
            shutil.copytree(clone / "runs/demo", sys.argv[1], dirs_exist_ok=True)
    print(f"make demo: {seconds:.0f} s, the installation included")
    print("wrote", write("demo", {"machine": machine(), "seconds": seconds, **results}))


if __name__ == "__main__":
    main()
