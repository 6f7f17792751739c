"""The sample of the set, and its entry in record.yaml: the first rows of a build, finished or not.

lrpot data gan --out gan.extxyz --n 1660
python datasets/gan/make_sample.py gan.extxyz 300
"""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
SAMPLE = HERE / "sample.extxyz.gz"
RECORD = HERE / "record.yaml"

ENTRY = """samples:  # the first rows; those that failed are left out
  - file: {file}
    command: lrpot data gan --out sample.extxyz --n {asked} --seed 0
    rows: {rows}
    failed: {failed}
    atoms: [{smallest}, {largest}]
    sha256: {sha256}
"""


def frames(path: Path) -> Iterator[bytes]:
    """Each structure of an extended XYZ file as it stands there."""
    with open(path, "rb") as file:
        while count := file.readline():
            yield count + b"".join(itertools.islice(file, int(count) + 1))


def failures(build: Path) -> list[int]:
    """Numbers of the rows that failed, of a build that is finished or goes on."""
    begun = build.with_name(f"{build.name}.partial.json")
    ended = build.with_name(f"{build.name}.failed.json")
    if begun.exists():
        found = json.loads(begun.read_text()).get("failed", [])
    else:
        found = json.loads(ended.read_text()) if ended.exists() else []
    return [why["row"] for why in found]


def main(build: Path, asked: int) -> None:
    failed = [row for row in failures(build) if row < asked]
    source = build if build.exists() else build.with_name(f"{build.name}.partial")
    rows = [row for row in frames(source) if int(row.split(b"row=", 1)[1].split()[0]) < asked]
    if len(rows) + len(failed) < asked:
        sys.exit(f"{source}: has fewer than {asked} rows yet; go on with the build, or ask for fewer")
    # no time and no name in its header: the same rows give the same file
    SAMPLE.write_bytes(gzip.compress(b"".join(rows), mtime=0))
    sizes = [int(row.split(b"\n", 1)[0]) for row in rows]
    entry = ENTRY.format(
        file=SAMPLE.name,
        asked=asked,
        rows=len(rows),
        failed=failed,
        smallest=min(sizes),
        largest=max(sizes),
        sha256=hashlib.sha256(SAMPLE.read_bytes()).hexdigest(),
    )
    RECORD.write_text(RECORD.read_text().split("samples:")[0] + entry)
    print(f"{SAMPLE}: {len(rows)} rows, {SAMPLE.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
