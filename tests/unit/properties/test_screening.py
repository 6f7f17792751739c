"""Conditions on tables: which rows they take, in which order, and what is said of those that cannot be read."""

from __future__ import annotations

import numpy as np
import pytest

from lrpot.errors import ConfigError, ShapeError
from lrpot.properties.screening import select

NAN = float("nan")
TABLE = {
    "gap": np.array([0.5, 2.0, 3.5, 2.0, NAN, 1.0]),
    "e_hull": np.array([0.00, 0.04, 0.20, 0.01, 0.02, -0.10]),
    "elastic anisotropy": np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
    "log10(K_VRH)": np.array([2.0, 1.0, 2.0, 1.0, 2.0, 1.0]),
    "n_atoms": np.array([2, 4, 6, 8, 10, 12]),
}
ELEMENTS = [{"Li", "O"}, {"Na", "Cl"}, {"Li", "P", "O"}, {"Li"}, {"Li", "O", "Pb"}, {"Pb"}]


@pytest.mark.parametrize(
    ("condition", "rows"),
    [
        ("gap > 1.5", [2, 1, 3]),
        ("gap>1.5", [2, 1, 3]),
        ("1.5 < gap", [2, 1, 3]),
        ("gap > 1.5 and e_hull <= 0.05", [1, 3]),
        ("e_hull <= 0.05 and gap > 1.5", [3, 1]),
        ("e_hull < 0.05", [5, 0, 3, 4, 1]),
        ("1 < gap < 3", [1, 3]),
        ("3 > gap > 0.7", [5, 1, 3]),
        ("0.1 > e_hull", [5, 0, 3, 4, 1]),
        ("e_hull < -0.05", [5]),
        ("e_hull >= -1e-3 and gap == 2", [1, 3]),
        ('"elastic anisotropy" > 3 or gap < 1', [5, 4, 3, 0]),
        ("'log10(K_VRH)' == 2", [0, 2, 4]),
        ("n_atoms != 4 and (gap <= 1 or n_atoms > 8)", [0, 5, 4]),
        ("gap < n_atoms and e_hull > 0.03", [2, 1]),
        (["gap > 0.7", "e_hull <= 0.05"], [1, 3, 5]),
        ([], [0, 1, 2, 3, 4, 5]),
    ],
    ids=str,
)
def test_rows_and_their_order(condition: str | list[str], rows: list[int]) -> None:
    assert select(TABLE, condition).tolist() == rows


def test_what_is_not_known_fulfils_neither_a_condition_nor_its_opposite() -> None:
    assert select(TABLE, "gap > 1").tolist() == [2, 1, 3]
    assert select(TABLE, "not gap > 1").tolist() == [0, 5]
    assert select(TABLE, "not (gap > 1 and n_atoms > 9)").tolist() == [0, 5, 1, 3, 2]
    assert select(TABLE, "gap != 1").tolist() == [0, 1, 2, 3]
    # the other half decides alone
    assert select(TABLE, "n_atoms > 9 or gap > 3").tolist() == [5, 4, 2]
    assert select(TABLE, "not (gap > 1 and n_atoms < 9)").tolist() == [0, 5, 4]


@pytest.mark.parametrize(
    ("sort", "rows"),
    [("gap", [0, 5, 1, 3, 2, 4]), ("-gap", [2, 1, 3, 5, 0, 4]), ("-elastic anisotropy", [5, 4, 3, 2, 1, 0])],
)
def test_order_by_a_column(sort: str, rows: list[int]) -> None:
    assert select(TABLE, sort=sort).tolist() == rows
    assert select(TABLE, sort=sort, top=2).tolist() == rows[:2]


@pytest.mark.parametrize(
    ("wanted", "rows"),
    [
        ({"contains": ["Li"]}, [0, 2, 3, 4]),
        ({"contains": ["Li", "O"]}, [0, 2, 4]),
        ({"only": ["Li", "O", "P"]}, [0, 2, 3]),
        ({"without": ["Pb", "Cl"]}, [0, 2, 3]),
        ({"contains": ["O"], "only": ["Li", "O", "Pb"], "without": ["Pb"]}, [0]),
    ],
    ids=str,
)
def test_elements(wanted: dict[str, list[str]], rows: list[int]) -> None:
    assert select(TABLE, elements=ELEMENTS, **wanted).tolist() == rows


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("gpa > 1", "no column gpa; did you mean gap"),
        ("volume > 1", "no column volume; known here: gap, e_hull"),
        ("gap = 1", "cannot be read; .*== for equal"),
        ("elastic anisotropy > 1", "cannot be read; .*in quotes"),
        ("2d_gap > 1", "cannot be read"),
        ("", "cannot be read"),
        ("(" * 10_000 + "gap", "cannot be read"),
        ("gap", "'gap' is no comparison"),
        ("gap > 1 and e_hull", "'e_hull' is no comparison"),
        ("gap > 2 * e_hull", r"'2 \* e_hull' is neither a column nor a number"),
        ("gap in (1, 2)", "neither a column nor a number"),
        ("gap is 1", "another comparison"),
        ("1 < 2", "'1 < 2' compares no column"),
        ("gap > True", "'True' is neither"),
        ("__import__('os').system('true') > gap", "neither a column nor a number"),
        ("(lambda: 1)", "is no comparison"),
    ],
    ids=lambda value: value[:40],
)
def test_conditions_that_cannot_be_read(condition: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        select(TABLE, condition)


def test_a_message_is_short_whatever_the_condition() -> None:
    with pytest.raises(ConfigError) as raised:
        select(TABLE, "gap > 1 and " * 1000 + "e_hull")
    assert "'gap > 1 and gap > 1" in str(raised.value)
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sort": "-gpa"}, "sort '-gpa': there is no column gpa; did you mean gap"),
        ({"top": 0}, "top = 0: choose 1 or more"),
        ({"contains": ["Li", "Xx"], "elements": ELEMENTS}, "contains: Xx is no element"),
        ({"without": ["Li"]}, "does not say which elements"),
    ],
)
def test_other_bad_wishes(arguments: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        select(TABLE, **arguments)


def test_columns_must_be_equally_long() -> None:
    with pytest.raises(ShapeError, match=r"'a': \(2,\), 'b': \(3,\)"):
        select({"a": np.zeros(2), "b": np.zeros(3)})


def test_conditions_are_checked_without_rows() -> None:
    empty = dict.fromkeys(TABLE, np.empty(0))
    assert select(empty, "gap > 1", elements=[], contains=["Li"]).tolist() == []
    with pytest.raises(ConfigError, match="did you mean gap"):
        select(empty, "gpa > 1")
