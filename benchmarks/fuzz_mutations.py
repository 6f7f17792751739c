"""How a valid input is spoiled: bytes, words and lines of text, values of nested data, members of an archive."""

from __future__ import annotations

import copy
import io
import json
import random
import struct
import warnings
import zipfile
from collections.abc import Callable
from typing import Any

import h5py
import numpy as np

# What stands where something else is expected.
WORDS = (
    *(
        "",
        "nan",
        "-inf",
        "1e400",
        "1e308",
        "-1e308",
        "1e-320",
        "-1",
        "0",
        "1e9",
        "9" * 30,
        "99999999999",
        "0x10",
        "1_0",
    ),
    *("T", "None", "[]", "{}", "*", "&a", '"', "'", "\\", ",", "=", ":", "\t", "\x00", "\x1b[2J", "é\u202e中", "½"),
    *("Qq", "X", "../../etc/passwd", "!!python/object:os.mkdir", "a" * 5000, "[" * 300),
)
VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 2**31, 2**63, 10**30, -(2**70), 1e308, float("nan"), float("inf"), 1e-320, 0.5),
    *("", "nan", "é\u202e\x1b[2J", "Qq", "../../etc/passwd", "a" * 5000, [], {}, [[]], [None], {"": 0}, [[[[1.0]]]]),
)

NUMBERS = (float("nan"), float("inf"), -1.0, 0.0, 3.0, 100.0, 1e9, 1e300)

Mutation = Callable[[bytes, random.Random], bytes]


def spoil_bytes(content: bytes, rng: random.Random) -> bytes:
    """Flip a bit, overwrite, insert, drop, repeat, or cut off."""
    at = rng.randrange(len(content) + 1)
    size = min(rng.choice((1, 1, 2, 4, 8, 64, 1000)), len(content) - at)
    noise = rng.randbytes(size)
    kind = rng.randrange(6)
    if kind == 0 and at < len(content):
        return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]
    if kind == 1:
        return content[:at] + noise + content[at + size :]
    if kind == 2:
        return content[:at] + noise + content[at:]
    if kind == 3:
        return content[:at] + content[at + size :]
    if kind == 4:
        return content[: at + size] + content[at:]
    return content[:at]


def spoil_text(content: bytes, rng: random.Random) -> bytes:
    """Drop, repeat or swap lines or words, or put another word in the place of one."""
    lines = content.decode("utf-8", "replace").split("\n")
    one, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    kind = rng.randrange(8)
    if kind == 0:
        del lines[one]
    elif kind == 1:
        lines.insert(other, lines[one])
    elif kind == 2:
        lines[one], lines[other] = lines[other], lines[one]
    else:
        mark = rng.choice((" ", " ", ",", "=", ":"))
        words = lines[one].split(mark)
        place, second = rng.randrange(len(words)), rng.randrange(len(words))
        if kind == 3:
            del words[place]
        elif kind == 4:
            words.insert(second, words[place])
        elif kind == 5:
            words[place], words[second] = words[second], words[place]
        else:
            words[place] = rng.choice(WORDS)
        lines[one] = mark.join(words)
    return "\n".join(lines).encode()


def spoil_tree(value: Any, rng: random.Random) -> Any:
    """Drop, repeat, rename or swap entries of nested data somewhere, or put another value in the place of one."""
    value = copy.deepcopy(value)
    boxes = [box for box in _boxes(value) if box]
    if not boxes:
        return rng.choice(VALUES)
    box = rng.choice(boxes)
    keys = list(box) if isinstance(box, dict) else list(range(len(box)))
    one, other = rng.choice(keys), rng.choice(keys)
    kind = rng.randrange(6)
    if kind == 0:
        del box[one]
    elif kind == 1 and isinstance(box, list):
        box.insert(other, copy.deepcopy(box[one]))
    elif kind == 1:
        box[rng.choice(WORDS)] = box.pop(one)
    elif kind == 2:
        box[one], box[other] = box[other], box[one]
    else:
        box[one] = copy.deepcopy(rng.choice(VALUES))
    return value


def _boxes(value: Any) -> list[Any]:
    """Every dictionary and list, the outermost first."""
    if not isinstance(value, dict | list):
        return []
    inner = value.values() if isinstance(value, dict) else value
    return [value, *(box for entry in inner for box in _boxes(entry))]


def spoil_json(content: bytes, rng: random.Random) -> bytes:
    try:
        value = json.loads(content)
    except ValueError:  # spoiled before
        return spoil_text(content, rng)
    return json.dumps(spoil_tree(value, rng)).encode()


def spoil_safetensors(content: bytes, rng: random.Random) -> bytes:
    """Another header: names, types, shapes, places, or its length; or numbers that are none."""
    (size,) = struct.unpack_from("<Q", content)
    if len(content) < 8 or size > len(content) - 8:
        return spoil_bytes(content, rng)
    header, data = content[8 : 8 + size], content[8 + size :]
    kind = rng.randrange(5)
    if kind == 0:
        return struct.pack("<Q", rng.choice((0, 1, size + 8, 2**31, 2**60, 2**64 - 1))) + content[8:]
    if kind == 1 and len(data) >= 8:
        at = rng.randrange(len(data) // 8) * 8
        number = struct.pack("<d", rng.choice((float("nan"), float("inf"), 1e308, -1.0)))
        return content[: 8 + size] + data[:at] + number + data[at + 8 :]
    header = spoil_json(header, rng)
    return struct.pack("<Q", len(header)) + header + data


def spoil_archive(members: dict[str, Mutation]) -> Mutation:
    """Mutations of a zip archive: of one of its members, by name, or of which there are and how they are kept."""

    def spoil(content: bytes, rng: random.Random) -> bytes:
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                found = [(item.filename, archive.read(item)) for item in archive.infolist()]
        except Exception:  # spoiled before
            found = []
        if not found:
            return spoil_bytes(content, rng)
        place = rng.randrange(len(found))
        name, data = found[place]
        kind, compression = rng.randrange(10), zipfile.ZIP_STORED
        if kind == 0:
            del found[place]
        elif kind == 1:
            found.append(("../../" + name, data))
        elif kind == 2:
            found[place] = (rng.choice(WORDS) or "/", data)
        elif kind == 3:
            compression = zipfile.ZIP_DEFLATED
        elif kind == 4:
            found[place] = (name, found[rng.randrange(len(found))][1])
        else:
            found[place] = (name, members.get(name, spoil_bytes)(data, rng))
        packed = io.BytesIO()
        with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(packed, "w", compression) as archive:
            for name, data in found:
                archive.writestr(zipfile.ZipInfo(name), data, compress_type=compression)
        return packed.getvalue()

    return spoil


def spoil_hdf5(content: bytes, rng: random.Random) -> bytes:
    """A data set that is missing, has another name, shape or type, or one number that is another."""
    buffer = io.BytesIO(content)
    try:
        with h5py.File(buffer, "r+") as file:
            name, other = rng.choice(list(file)), rng.choice(list(file))
            values = file[name][()]
            del file[name]
            kind = rng.randrange(7)
            if kind == 1:
                file[name + "s"] = values
            elif kind == 2:
                file[name] = values[:-1]
            elif kind == 3:
                file[name] = np.array(rng.choice((np.nan, 1e308, 0.0)))
            elif kind == 4:
                file[name] = values.astype(rng.choice(("S4", "f8", "i1")))
            elif kind == 5:
                file[name] = file[other][()] if other in file else values.T
            elif kind == 6:
                changed = values.astype(float)
                changed.flat[rng.randrange(changed.size)] = rng.choice(NUMBERS)
                file[name] = changed
    except Exception:  # spoiled before
        return spoil_bytes(content, rng)
    return buffer.getvalue()
