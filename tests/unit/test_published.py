"""A file that calls itself a published one, and is not, is told."""

from __future__ import annotations

from pathlib import Path

from lrpot.data.published import SHA256, doubt


def test_only_another_content_under_a_published_name_is_doubtful() -> None:
    name, sha256 = next(iter(SHA256.items()))
    assert doubt(Path("downloads") / name, sha256) is None
    assert doubt(Path("mine.json.gz"), "0" * 64) is None
    assert "get it anew" in str(doubt(Path("downloads") / name, "0" * 64))
