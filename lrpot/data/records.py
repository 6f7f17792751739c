"""Records of named tensors in one file: appended one by one, read by number, never held in memory together.

    magic | records, each at a multiple of 8 bytes | columns of the index | JSON | trailer

The index and the JSON come last, so that a file is written in one pass and one that was cut short has no trailer. The
index is mapped into memory; records are read with `pread`, for a file that is cut short while it is mapped would end
the process with SIGBUS, and its pages would count as memory of the process. Nothing in the file is ever executed.

Numbers are stored in as few bytes as hold them exactly, and come back in the type that they had.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import weakref
import zlib
from array import array
from collections.abc import Mapping
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lrpot.errors import DataError

MAGIC = b"LRPOTRC1"

# Where the columns begin, where the JSON begins; the checksum of both places and of all that is there.
_TRAILER = struct.Struct("<QQQ8s")
_PLACES = struct.Struct("<QQ")

# Numbers of atoms and of edges, in front of every record.
_SIZES = struct.Struct("<II")

# Multiples of whole lattice vectors are whole numbers in float64.
_WHOLE = ("edge_shift",)


class DamagedRecords(DataError):
    """A file of records that was cut short, changed, or is something else."""


class Field(NamedTuple):
    """How one tensor of a record is stored; in `shape`, "N" stands for the number of atoms, "E" for that of edges."""

    name: str
    dtype: str
    stored: str
    shape: tuple[int | str, ...]


Layout = tuple[Field, ...]


def encode(fields: Mapping[str, Tensor], n_atoms: int, n_edges: int = 0) -> tuple[Layout, bytes]:
    """Tensors -> how they are stored, and the bytes of the record."""
    layout, parts = [], [_SIZES.pack(n_atoms, n_edges)]
    for name, tensor in fields.items():
        values = tensor.numpy()
        stored = _narrowed(values, whole=name in _WHOLE)
        shape: tuple[int | str, ...] = tuple(
            "N" if size == n_atoms else "E" if size == n_edges else size for size in values.shape
        )
        layout.append(Field(name, values.dtype.str, stored.dtype.str, shape))
        content = stored.tobytes()
        parts += [content, b"\0" * (-len(content) % 8)]
    return tuple(layout), b"".join(parts)


def decode(layout: Layout, record: bytes) -> dict[str, Tensor]:
    """What `encode` was given."""
    arrays = stored_arrays(layout, record)
    # a conversion always copies: a read-only buffer makes no tensor
    return {field.name: torch.from_numpy(arrays[field.name].astype(field.dtype)) for field in layout}


def stored_arrays(layout: Layout, record: bytes) -> dict[str, np.ndarray]:
    """The same numbers in the types that they are stored in, read-only."""
    n_atoms, n_edges = _SIZES.unpack_from(record)
    sizes = {"N": n_atoms, "E": n_edges}
    place, fields = _SIZES.size, {}
    for name, _, stored, template in layout:
        shape = [sizes[size] if isinstance(size, str) else size for size in template]
        fields[name] = values = np.ndarray(shape, stored, record, place)
        place += values.nbytes + -values.nbytes % 8
    return fields


class RecordWriter:
    """Appends records to an empty file; `finish` makes it readable."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._layouts: dict[Layout, int] = {}
        # of machine numbers: lists of a million Python numbers would be what this file is there to avoid
        self._offsets, self._layout, self._checksums = array("Q"), array("I"), array("I")
        self._place = file.write(MAGIC)

    def __len__(self) -> int:
        return len(self._offsets)

    def add(self, layout: Layout, record: bytes) -> None:
        """Append what `encode` returned."""
        self._offsets.append(self._place)
        self._layout.append(self._layouts.setdefault(layout, len(self._layouts)))
        self._checksums.append(zlib.crc32(record))
        self._place += self._file.write(record)

    def finish(self, columns: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> None:
        """Write the index.

        Args:
            columns: (number of records,) each; what is to be known of all records without reading them.
            about: what is to be known of the file, in types of JSON.
        """
        own: dict[str, np.ndarray] = {
            # where the last record ends, too
            "offset": np.append(np.asarray(self._offsets, dtype=np.uint64), np.uint64(self._place)),
            "layout": np.asarray(self._layout, dtype=np.uint32),
            "checksum": np.asarray(self._checksums, dtype=np.uint32),
        }
        begin = place = self._place
        checksum, described = 0, {}
        for name, values in {**own, **columns}.items():
            content = values.tobytes()
            content += b"\0" * (-len(content) % 8)
            described[name] = (values.dtype.str, len(values), place)
            checksum = zlib.crc32(content, checksum)
            place += self._file.write(content)
        text = json.dumps({"layouts": list(self._layouts), "columns": described, "about": dict(about)}).encode()
        self._file.write(text)
        checksum = zlib.crc32(_PLACES.pack(begin, place), zlib.crc32(text, checksum))
        self._file.write(_TRAILER.pack(begin, place, checksum, MAGIC))
        self._file.flush()


class Records:
    """Reads what a `RecordWriter` has finished.

    Attributes:
        name: of the file, for messages.
        columns: the index by name, mapped into memory.
        about: what the writer said of the file.
        layouts: the different layouts of its records.
    """

    def __init__(self, file: IO[bytes], name: str) -> None:
        """
        Args:
            file: may be closed, and its name removed, while the records are in use.
        Raises:
            DamagedRecords: the file is not whole, or no file of records; the message says which.
        """
        self.name = name
        self._descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._descriptor)
        size = os.fstat(self._descriptor).st_size
        if os.pread(self._descriptor, len(MAGIC), 0) != MAGIC:
            raise DamagedRecords("is no file of records of this version of lrpot")
        trailer = os.pread(self._descriptor, _TRAILER.size, max(size - _TRAILER.size, 0))
        if len(trailer) != _TRAILER.size or not trailer.endswith(MAGIC):
            raise DamagedRecords("was cut short")
        begin, text_begin, checksum, _ = _TRAILER.unpack(trailer)
        whole = mmap.mmap(self._descriptor, 0, prot=mmap.PROT_READ)
        index = memoryview(whole)[begin : size - _TRAILER.size]
        if zlib.crc32(_PLACES.pack(begin, text_begin), zlib.crc32(index)) != checksum:
            raise DamagedRecords("has a damaged index")
        found = json.loads(bytes(index[text_begin - begin :]))
        self.about: dict[str, Any] = found["about"]
        self.layouts: list[Layout] = [
            tuple(Field(name, dtype, stored, tuple(shape)) for name, dtype, stored, shape in layout)
            for layout in found["layouts"]
        ]
        self.columns = {
            name: np.frombuffer(whole, dtype, count, place) for name, (dtype, count, place) in found["columns"].items()
        }

    def __len__(self) -> int:
        return len(self.columns["layout"])

    @property
    def dtypes(self) -> dict[str, str]:
        """Of the fields that any record has."""
        return {field.name: field.dtype for layout in self.layouts for field in layout}

    def read(self, number: int) -> dict[str, Tensor]:
        """The tensors of one record.

        Raises:
            DamagedRecords: its bytes are not those that were written.
        """
        return decode(self._layout(number), self._bytes(number))

    def read_arrays(self, number: int) -> dict[str, np.ndarray]:
        """The same as arrays, in the types that they are stored in."""
        return stored_arrays(self._layout(number), self._bytes(number))

    def _layout(self, number: int) -> Layout:
        return self.layouts[self.columns["layout"][number]]

    def _bytes(self, number: int) -> bytes:
        begin, end = self.columns["offset"][number : number + 2].tolist()
        record = os.pread(self._descriptor, end - begin, begin)
        if zlib.crc32(record) != self.columns["checksum"][number]:
            raise DamagedRecords(
                f"{self.name}: record {number} is damaged; remove it with lrpot data cache --clean, then go on with "
                "lrpot fit --resume"
            )
        return record


def _narrowed(values: np.ndarray, *, whole: bool) -> np.ndarray:
    """The same numbers in a smaller type, where one holds them exactly."""
    if not values.size or not (whole or values.dtype == np.int64):
        return values
    if whole and not (np.isfinite(values).all() and (values == np.rint(values)).all()):
        return values
    low, high = values.min(), values.max()
    for kind in (np.int8, np.int16, np.int32) if whole else (np.uint8, np.uint16, np.uint32):
        limits = np.iinfo(kind)
        if limits.min <= low and high <= limits.max:
            return values.astype(kind)
    return values
