"""Parts do not overlap, are as large as asked for, keep formulas together, and come back from the disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lrpot.config import DataConfig
from lrpot.errors import ConfigError, DataError
from lrpot.training.split import PARTS, Split, check_unchanged, divide, stored_split, write_split


def data(**settings: Any) -> DataConfig:
    return DataConfig(train="rows.extxyz", **settings)


def split_of(n: int, formula: list[int] | None = None, seed: int = 0, **settings: Any) -> Split:
    return divide(
        data(**settings), seed, np.arange(n), np.array(formula if settings.get("split") == "formula" else range(n))
    )


def assert_partition(split: Split, n: int) -> None:
    assert sorted(np.concatenate([split[part] for part in PARTS]).tolist()) == list(range(n))
    for part in PARTS:
        assert sorted(split[part].tolist()) == split[part].tolist()


@given(st.integers(4, 300), st.floats(0.01, 0.4), st.floats(0.0, 0.4), st.integers(0, 99))
def test_parts_by_ratio(n: int, valid: float, test: float, seed: int) -> None:
    sizes = max(1, round(valid * n)), round(test * n)
    assume(n - sum(sizes) >= 1)
    split = split_of(n, seed=seed, valid_fraction=valid, test_fraction=test)
    assert_partition(split, n)
    assert (len(split["valid"]), len(split["test"])) == sizes
    again = split_of(n, seed=seed, valid_fraction=valid, test_fraction=test)
    assert all(np.array_equal(split[part], again[part]) for part in PARTS)


def test_the_split_of_a_seed_is_the_one_that_it_always_was() -> None:
    """The first rows of the permutation validate, the next test: runs of earlier versions can be repeated."""
    order = np.random.default_rng(3).permutation(40)
    split = split_of(40, seed=3)
    assert split["valid"].tolist() == sorted(order[:4])
    assert split["test"].tolist() == sorted(order[4:8])


@given(st.lists(st.integers(0, 12), min_size=40, max_size=200), st.integers(0, 99))
def test_no_formula_is_in_two_parts(formula: list[int], seed: int) -> None:
    counts = np.bincount(formula)
    assume(counts.max() < 0.2 * len(formula))
    split = split_of(len(formula), formula, seed, split="formula", valid_fraction=0.2, test_fraction=0.2)
    assert_partition(split, len(formula))
    kinds = [set(np.array(formula)[split[part]].tolist()) for part in PARTS]
    assert sum(map(len, kinds)) == len(set(formula))
    for part in ("valid", "test"):
        # what is left over is less than half of a formula
        assert abs(len(split[part]) - 0.2 * len(formula)) <= counts.max()


def test_formulas_that_are_too_few() -> None:
    with pytest.raises(DataError, match=r"rows.extxyz: 1 formulas are too few to train on and to hold some back"):
        split_of(20, [0] * 20, split="formula")
    with pytest.raises(DataError, match=r"rows.extxyz: 1 rows are too few"):
        split_of(1)


@pytest.mark.parametrize("split", ["random", "formula"])
def test_every_row_validates_once_in_all_folds(split: str) -> None:
    formula = [n % 11 for n in range(103)]
    folds = [split_of(103, formula, split=split, folds=4, fold=fold) for fold in range(4)]
    for found in folds:
        assert_partition(found, 103)
        assert np.array_equal(found["test"], folds[0]["test"])
    valid = np.concatenate([found["valid"] for found in folds])
    assert len(valid) == len(set(valid.tolist())) == 103 - len(folds[0]["test"])
    sizes = [len(found["valid"]) for found in folds]
    assert max(sizes) - min(sizes) <= (1 if split == "random" else 10)
    if split == "formula":
        for found in folds:
            kinds = [{formula[n] for n in found[part]} for part in PARTS]
            assert sum(map(len, kinds)) == 11


def test_parts_with_files_of_their_own_are_not_held_back() -> None:
    split = split_of(30, valid="v.extxyz", test="t.extxyz")
    assert [len(split[part]) for part in PARTS] == [30, 0, 0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fold": 1}, "fold = 1 needs folds"),
        ({"folds": 3, "fold": 3}, "fold = 3 is none of 3 folds"),
        ({"folds": 3, "valid": "v.extxyz"}, "folds make their own validation part"),
        ({"folds": 3, "split": "rows.json"}, "so there are no folds"),
    ],
)
def test_settings_that_contradict_each_other(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data(**settings)


# --- lists


def listed(path: Path, content: Any, **settings: Any) -> Split:
    path.write_text(json.dumps(content))
    return divide(data(split=str(path), **settings), 0, np.array([0, 1, 2, 4, 5, 9]), np.zeros(6))


def test_rows_by_list(tmp_path: Path) -> None:
    """Rows are those of the file: some are bad and left out, and others nobody lists."""
    split = listed(tmp_path / "rows.json", {"train": [5, 0, 4], "valid": [9], "test": [2]})
    assert {part: places.tolist() for part, places in split.items()} == {"train": [0, 3, 4], "valid": [5], "test": [2]}
    split = listed(tmp_path / "rows.json", {"train": [1], "files": [{"sha256": "of another run"}]}, valid="v.extxyz")
    assert [len(split[part]) for part in PARTS] == [1, 0, 0]


@pytest.mark.parametrize(
    ("content", "settings", "message"),
    [
        ({"train": [0], "valid": [3]}, {}, "row 3 of valid is not in the data"),
        ({"train": [99], "valid": [1]}, {}, "row 99 of train is not in the data"),
        ({"train": [-1], "valid": [1]}, {}, "row -1 of train is not in the data"),
        ({"train": [0, 1], "valid": [1]}, {}, "lists row 1 twice"),
        ({"train": [0, 1]}, {}, "lists no rows for valid"),
        ({"valid": [1]}, {}, "rows in train; found valid"),
        ({"train": [0], "valid": [1], "dev": [2]}, {}, "expected the parts train, valid and test"),
        ({"train": [0], "valid": [1]}, {"valid": "v.extxyz"}, "data.valid names a file"),
        ({"train": ["a"]}, {}, "is no list of rows"),
        ([0, 1], {}, "is no list of rows"),
        ("text", {}, "is no list of rows"),
    ],
)
def test_lists_that_do_not_fit(tmp_path: Path, content: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, DataError), match=message) as caught:
        listed(tmp_path / "rows.json", content, **settings)
    assert "rows.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_list_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no.json: no such file"):
        divide(data(split=str(tmp_path / "no.json")), 0, np.arange(3), np.zeros(3))


# --- stored

FILES = [{"part": "train", "file": "rows.extxyz", "sha256": "0123", "rows": 6}]


def test_a_split_comes_back_from_the_run(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    path.write_text(write_split({"train": [0, 4, 9], "valid": [2]}, FILES))
    check_unchanged(path, FILES)
    split = stored_split(path, np.array([0, 1, 2, 4, 5, 9]))
    assert {part: places.tolist() for part, places in split.items()} == {"train": [0, 3, 5], "valid": [2], "test": []}


def test_a_changed_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    path.write_text(write_split({"train": [0]}, FILES))
    with pytest.raises(DataError, match=r"rows.extxyz: was changed since the run began; put back"):
        check_unchanged(path, [{**FILES[0], "sha256": "4567"}])
    with pytest.raises(DataError, match="began with 1 files of data, now there are 2"):
        check_unchanged(path, FILES * 2)
    check_unchanged(path, [{**FILES[0], "file": "moved.extxyz"}])


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"valid": [0]}', '{"files": 3}', '{"files": [], "train": "x"}'])
def test_a_damaged_split_is_told(tmp_path: Path, text: str) -> None:
    path = tmp_path / "split.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"split.json: is damaged; start anew"):
        check_unchanged(path, FILES)


def test_a_run_of_an_earlier_version_is_told_apart_from_a_damaged_one(tmp_path: Path) -> None:
    """Those runs kept the rows of each part and nothing on the files."""
    path = tmp_path / "split.json"
    path.write_text('{"train": [0, 2], "valid": [1]}')
    with pytest.raises(
        DataError, match=r"split.json: the run was begun by an earlier version .* another --out"
    ) as error:
        check_unchanged(path, FILES)
    assert "\n" not in str(error.value)
