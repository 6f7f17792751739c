"""UnconvBench: files of all its tasks, folds, and results that its package reads."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from lrpot.data.readers import read_rows
from lrpot.errors import ConfigError, DataError, ShapeError
from lrpot.properties.leaderboards.unconv import TASKS, folds_of, results, task_of


@pytest.mark.parametrize("task", TASKS)
def test_files_of_all_tasks_are_read(task: str, tmp_path: Path) -> None:
    """As its package reads them: the first of two columns is the structure, whatever they are called."""
    crystals = [Structure(Lattice.cubic(a), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]).as_dict() for a in (4.1, 4.2)]
    content = {"columns": ["inputs", "target"], "data": [[crystals[0], -1.25], [crystals[1], 3.5]]}
    path = tmp_path / f"ub_{task}.json"
    path.write_text(json.dumps(content))
    rows = read_rows(path)
    assert [row.atoms.info["target"] for row in rows] == [-1.25, 3.5]
    assert [row.atoms.get_volume() for row in rows] == pytest.approx([4.1**3, 4.2**3])
    assert rows[0].atoms.get_chemical_formula() == "ClCs"


def test_numbers_of_rows_are_those_of_the_paper() -> None:
    sizes = [1058, 4527, 3520, 3520, 13765, 5106, 530, 530, 5000, 5000, 5000]
    assert [task.rows for task in TASKS.values()] == sizes


def test_folds_are_slices_of_a_shuffle() -> None:
    """As KFold(5, shuffle=True, random_state=42) of scikit-learn cuts it: the first folds are one row longer."""
    shuffled = np.arange(13)
    np.random.RandomState(42).shuffle(shuffled)
    assert [set(fold.tolist()) for fold in folds_of(13)] == [
        set(shuffled[start:end].tolist()) for start, end in ((0, 3), (3, 6), (6, 9), (9, 11), (11, 13))
    ]
    assert all((np.diff(fold) > 0).all() for fold in folds_of(13))


def test_results_hold_the_predictions_by_fold_and_their_hash() -> None:
    task = "unconvbench_defected"
    predicted = np.random.default_rng(0).normal(size=530)
    content = json.loads(results(task, predicted))
    own = content["tasks"][task]
    assert (own["dataset_name"], own["benchmark_name"]) == (task, content["benchmark_name"])
    assert own["results"].keys() == TASKS.keys()
    for number, rows in enumerate(folds_of(530)):
        np.testing.assert_array_equal(own["results"][task][f"fold_{number}"], predicted[rows])
        assert own["results"]["unconvbench_qmof"][f"fold_{number}"] == []
    told = content.pop("hash")
    assert hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest() == told


def test_what_is_not_the_task_is_refused() -> None:
    with pytest.raises(ConfigError, match="no task unconvbench_mofs; it has unconvbench_supercon, "):
        task_of("unconvbench_mofs")
    with pytest.raises(ShapeError, match=r"unconvbench_defected: got \(510,\), expected \(530,\)"):
        results("unconvbench_defected", np.zeros(510))
    predicted = np.zeros(530)
    predicted[7] = np.nan
    with pytest.raises(DataError, match="row 7 is nan"):
        results("unconvbench_defected", predicted)
