"""Tensors go to disk and come back to the bit; a file that is not whole is refused."""

from __future__ import annotations

from pathlib import Path

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lrpot.data.records import DamagedRecords, Records, RecordWriter, decode, encode

KINDS = (np.dtype("int64"), np.dtype("float64"), np.dtype("float32"), np.dtype("bool"))
SHAPES = arrays.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=5)
ARRAYS = st.sampled_from(KINDS).flatmap(lambda kind: arrays.arrays(kind, SHAPES))
FIELDS = st.dictionaries(st.sampled_from(["numbers", "edge_shift", "forces", "x"]), ARRAYS)


def tensors(n: int) -> dict[str, Tensor]:
    torch.manual_seed(n)
    return {"positions": torch.randn(n, 3, dtype=torch.float64), "numbers": torch.arange(n) % 7}


def write(path: Path, count: int = 5) -> Path:
    with open(path, "wb") as file:
        writer = RecordWriter(file)
        for n in range(count):
            writer.add(*encode(tensors(n + 1), n + 1))
        writer.finish({"size": np.arange(1, count + 1, dtype=np.uint32)}, {"kind": "test"})
    return path


def opened(path: Path) -> Records:
    with open(path, "rb") as file:
        return Records(file, str(path))


@given(FIELDS, st.integers(0, 5), st.integers(0, 5))
def test_what_goes_in_comes_out(fields: dict[str, np.ndarray], n_atoms: int, n_edges: int) -> None:
    """Any numbers and shapes, whether or not a length happens to be that of atoms or edges."""
    layout, record = encode({name: torch.from_numpy(values) for name, values in fields.items()}, n_atoms, n_edges)
    back = decode(layout, record)
    assert list(back) == list(fields)
    for name, values in fields.items():
        found = back[name].numpy()
        assert (found.dtype, found.shape) == (values.dtype, values.shape)
        assert found.tobytes() == values.tobytes() or np.array_equal(found, values, equal_nan=values.dtype.kind == "f")
    assert len(record) % 8 == 0


@pytest.mark.parametrize("largest", [255, 256, 65535, 65536, 2**32 - 1, 2**32, 2**63 - 1])
@pytest.mark.parametrize("smallest", [0, -1])
def test_small_numbers_take_few_bytes_and_large_ones_stay_whole(largest: int, smallest: int) -> None:
    values = torch.tensor([smallest, largest])
    (field,), record = encode({"numbers": values}, 2)
    assert torch.equal(decode((field,), record)["numbers"], values)
    width = 8 if smallest < 0 or largest >= 2**32 else 4 if largest >= 2**16 else 2 if largest >= 2**8 else 1
    assert np.dtype(field.stored).itemsize == width


@pytest.mark.parametrize(("values", "width"), [([-128.0, 127.0], 1), ([128.0], 2), ([1e9], 4), ([1e10], 8), ([0.5], 8)])
def test_shifts_are_whole_numbers_unless_they_are_not(values: list[float], width: int) -> None:
    shifts = torch.tensor(values, dtype=torch.float64)
    (field,), record = encode({"edge_shift": shifts}, 9)
    assert np.dtype(field.stored).itemsize == width
    assert torch.equal(decode((field,), record)["edge_shift"], shifts)


def read_all(path: Path) -> list[dict[str, Tensor]]:
    records = opened(path)
    return [records.read(n) for n in range(len(records))]


def test_records_are_read_in_any_order_also_after_the_file_is_gone(tmp_path: Path) -> None:
    records = opened(write(tmp_path / "a"))
    (tmp_path / "a").unlink()
    assert len(records) == 5
    assert records.about == {"kind": "test"}
    assert records.columns["size"].tolist() == [1, 2, 3, 4, 5]
    for n in (4, 0, 2, 2):
        found = records.read(n)
        for name, value in tensors(n + 1).items():
            assert torch.equal(found[name], value)


def test_a_file_of_no_records_is_a_file_of_records(tmp_path: Path) -> None:
    assert len(opened(write(tmp_path / "a", 0))) == 0


def test_a_file_that_was_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = write(tmp_path / "a", 2).read_bytes()
    for length in range(len(whole)):
        (tmp_path / "b").write_bytes(whole[:length])
        with pytest.raises(DamagedRecords, match=r"cut short|no file of records|damaged index"):
            opened(tmp_path / "b")


def test_a_bit_that_flipped_anywhere_is_noticed(tmp_path: Path) -> None:
    """In the index when the file is opened, in a record when that is read."""
    whole = write(tmp_path / "a", 2).read_bytes()
    in_records = 0
    for place in range(len(whole)):
        (tmp_path / "b").write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(DamagedRecords) as caught:
            read_all(tmp_path / "b")
        in_records += "record" in str(caught.value) and "lrpot data cache --clean" in str(caught.value)
    sizes = [len(encode(tensors(n), n)[1]) for n in (1, 2)]
    assert in_records == sum(sizes)
