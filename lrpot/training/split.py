"""Which structures train, which validate, which test: by ratio, by list, by fold, by formula; kept with the run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from lrpot.config import DataConfig
from lrpot.data.graphs import Graphs
from lrpot.data.sources import named
from lrpot.errors import ConfigError, DataError

PARTS = ("train", "valid", "test")

# What a file of row numbers holds; a split that a run has stored names its files too.
_ROWS = TypeAdapter(dict[str, list[Annotated[int, Field(ge=-(2**63), lt=2**63)]]])
_FILES = TypeAdapter(list[dict[str, str | int]])

# (n,) places of structures, ascending, by part.
Split = dict[str, np.ndarray]


# Relative difference in volume per atom up to which crystals of one formula may be the same one.
SAME_VOLUME = 1e-4

# What the groups that stay together are called, by `DataConfig.split`.
_GROUPS = {"random": "rows", "formula": "formulas", "structure": "structures"}


def groups_of(split: str, graphs: Graphs) -> np.ndarray:
    """(n,) a number for each group of rows that stays together."""
    if split == "formula":
        return graphs.formula
    if split == "structure":
        return same_crystals(graphs.names, graphs.formula, graphs.volume)
    return np.arange(len(graphs))


def divide(config: DataConfig, seed: int, rows: np.ndarray, groups: np.ndarray) -> Split:
    """Divide structures as `config.split` and `config.folds` say.

    Args:
        config: parts with a file of their own stay empty here.
        seed: of everything random.
        rows: (n,) number of each row, ascending. groups: (n,) from `groups_of`.
    Raises:
        DataError: too few rows or formulas, or a list of rows that does not fit. ConfigError: a list that cannot be
            read.
    """
    if config.split.endswith(".json"):
        return _listed(config, rows)
    kinds, of_row, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(kinds))
    held = _held_back(config, order, sizes)
    chosen = {part: np.flatnonzero(np.isin(of_row, held[part])) for part in ("valid", "test")}
    rest = np.flatnonzero(~np.isin(of_row, np.concatenate([held["valid"], held["test"]])))
    if len(rest) == 0 or (len(chosen["valid"]) == 0 and not config.valid):
        what = f"{len(kinds)} {_GROUPS[config.split]}"
        raise DataError(
            f"{named(config.train)}: {what} are too few to train on and to hold some back; add rows, or name other "
            "files with --valid and --test"
        )
    return {"train": rest, **chosen}


def same_crystals(names: np.ndarray, formula: np.ndarray, volume: np.ndarray) -> np.ndarray:
    """(n,) a number for each group of rows that may be one crystal: those of one name, and those of one reduced formula
    and volume per atom. A crystal that stands in the tables of several properties must not train and test.

    Args:
        names: (n,) "" for none. formula: (n,) a number for each. volume: (n,) A^3 per atom, 0 for none.
    """
    n = len(names)
    by_name = np.lexsort((np.arange(n), names))
    linked = (names[by_name][1:] == names[by_name][:-1]) & (names[by_name][1:] != "")
    pairs = [np.stack([by_name[:-1], by_name[1:]])[:, linked]]
    by_volume = np.lexsort((volume, formula))
    near = np.diff(volume[by_volume]) <= SAME_VOLUME * volume[by_volume][1:]
    near &= (np.diff(formula[by_volume]) == 0) & (volume[by_volume][:-1] > 0)
    pairs.append(np.stack([by_volume[:-1], by_volume[1:]])[:, near])
    one, other = np.concatenate(pairs, axis=1)
    graph = coo_array((np.ones(len(one)), (one, other)), shape=(n, n))
    return connected_components(graph, directed=False)[1]


def fold_groups(groups: np.ndarray, folds: int, seed: int) -> list[np.ndarray]:
    """Cut groups of rows into folds of about as many rows each: the groups of each fold.

    Args:
        groups: (n,) the group of each row.
    Raises:
        DataError: fewer groups than folds.
    """
    kinds, counts = np.unique(groups, return_counts=True)
    if len(kinds) < folds:
        raise DataError(f"{len(kinds)} crystals that differ are too few for {folds} folds; add rows, or lower --folds")
    order = np.random.default_rng(seed).permutation(len(kinds))
    return [kinds[_fold(order, counts, folds, fold)] for fold in range(folds)]


def fold_split(
    rows: np.ndarray, groups: np.ndarray, tested: np.ndarray, valid_fraction: float, seed: int
) -> dict[str, list[int]]:
    """Rows by part, of a fold that tests some: of groups that are in the test none is in another part.

    Args:
        rows, groups: (n,) number and group of each row. tested: (n,) bool. valid_fraction: of all rows.
    Raises:
        DataError: nothing is left to train on.
    """
    free = np.flatnonzero(~np.isin(groups, groups[tested]))
    kinds, of_row, sizes = np.unique(groups[free], return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(kinds))
    held, _ = _draw(order, sizes, max(1, round(valid_fraction * len(rows))))
    valid = np.isin(of_row, held)
    if len(kinds) < 2 or valid.all() or not valid.any():
        raise DataError("a fold leaves too few rows to train on and to validate; choose more folds, or add rows")
    return {
        "train": rows[free[~valid]].tolist(),
        "valid": rows[free[valid]].tolist(),
        "test": rows[tested].tolist(),
    }


def write_split(rows: Mapping[str, Sequence[int]], files: Sequence[Mapping[str, Any]]) -> str:
    """The text of split.json: rows by part, and the files with their hashes."""
    return json.dumps({**rows, "files": files})


def check_unchanged(path: Path, files: Sequence[Mapping[str, Any]]) -> None:
    """Compare the data with those that a run began with.

    Args:
        path: split.json of the run. files: of the data now, as `write_split` takes them.
    Raises:
        DataError: they are others; names the first file that was changed. Or an earlier version began the run.
    """
    before = _stored(path)["files"]
    cure = f"put back what the run in {path.parent} began with, or start anew in another --out"
    if len(before) != len(files):
        raise DataError(f"{path}: the run began with {len(before)} files of data, now there are {len(files)}; {cure}")
    for then, now in zip(before, files, strict=True):
        if then.get("sha256") != now["sha256"]:
            raise DataError(f"{now['file']}: was changed since the run began; {cure}")


def stored_split(path: Path, rows: np.ndarray) -> Split:
    """The split of a run from its split.json, for structures of these rows (n,).

    Raises:
        DataError: it is damaged.
    """
    stored = _stored(path)
    return {part: _places(rows, stored.get(part, []), path, part) for part in PARTS}


def _stored(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        files = content.pop("files", None)
        rows = _ROWS.validate_python(content)
        if files is not None or "train" not in rows:
            return {**rows, "files": _FILES.validate_python(files)}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise DataError(f"{path}: is damaged; start anew in another --out") from error
    # without their hashes nobody knows that the data are still those of the run
    raise DataError(
        f"{path}: the run was begun by an earlier version of lrpot, which did not record its files of data; finish it "
        "with that version, or start anew in another --out"
    )


def _held_back(config: DataConfig, order: np.ndarray, sizes: np.ndarray) -> dict[str, np.ndarray]:
    """Groups that validate and test, in the order in which they are drawn."""
    n = int(sizes.sum())
    n_valid = 0 if config.valid or config.folds else max(1, round(config.valid_fraction * n))
    n_test = 0 if config.test else round(config.test_fraction * n)
    valid, order = _draw(order, sizes, n_valid)
    test, order = _draw(order, sizes, n_test)
    if config.folds and not config.valid:
        valid = _fold(order, sizes, config.folds, config.fold)
    return {"valid": valid, "test": test}


def _draw(order: np.ndarray, sizes: np.ndarray, wanted: int) -> tuple[np.ndarray, np.ndarray]:
    """Groups from the front that come nearest to a number of rows, and the groups that are left."""
    taken = np.zeros(len(order), dtype=bool)
    count = 0
    for place, size in enumerate(sizes[order].tolist()):
        if count >= wanted:
            break
        if abs(count + size - wanted) < wanted - count:
            taken[place] = True
            count += size
    return order[taken], order[~taken]


def _fold(order: np.ndarray, sizes: np.ndarray, folds: int, fold: int) -> np.ndarray:
    """One of several parts of about as many rows each: the largest group is placed first, each in the smallest part."""
    counts = np.zeros(folds, dtype=np.int64)
    chosen = []
    for group in order[np.argsort(-sizes[order], kind="stable")].tolist():
        smallest = int(counts.argmin())
        counts[smallest] += sizes[group]
        if smallest == fold:
            chosen.append(group)
    return np.array(chosen, dtype=np.int64)


def _listed(config: DataConfig, rows: np.ndarray) -> Split:
    path = Path(config.split)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            content.pop("files", None)
        stored = _ROWS.validate_python(content)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; check the path") from None
    except (OSError, ValueError, ValidationError) as error:
        raise ConfigError(f'{path}: is no list of rows; write it as {{"train": [0, 1], "valid": [2]}}') from error
    unknown = sorted(set(stored) - set(PARTS))
    if unknown or not stored.get("train"):
        raise ConfigError(
            f"{path}: expected the parts train, valid and test, and rows in train; found {', '.join(stored) or 'none'}"
        )
    for part, other in (("valid", config.valid), ("test", config.test)):
        if stored.get(part) and other:
            raise ConfigError(f"{path}: lists rows for {part}, but data.{part} names a file; leave one of them out")
    if not stored.get("valid") and not config.valid:
        raise ConfigError(f"{path}: lists no rows for valid; add them, or name a file with --valid")
    every = [row for part in PARTS for row in stored.get(part, [])]
    if len(set(every)) != len(every):
        twice = next(row for row in every if every.count(row) > 1)
        raise DataError(f"{path}: lists row {twice} twice; a row belongs to one part")
    return {part: _places(rows, stored.get(part, []), path, part) for part in PARTS}


def _places(rows: np.ndarray, wanted: Sequence[int], path: Path, part: str) -> np.ndarray:
    """Places of rows by their numbers, ascending."""
    numbers = np.sort(np.array(wanted, dtype=np.int64))
    places = np.searchsorted(rows, numbers)
    absent = (places == len(rows)) | (rows[np.minimum(places, len(rows) - 1)] != numbers)
    if absent.any():
        raise DataError(
            f"{path}: row {numbers[absent][0]} of {part} is not in the data ({len(rows)} rows can be used); "
            "correct the list"
        )
    return places
