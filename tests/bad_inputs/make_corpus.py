"""Writes the files of this directory anew: `python -m tests.bad_inputs.make_corpus`.

Each file is a sound one with a single defect, so that nothing else can be the reason for its refusal; README.md says
what is wrong with each. Nothing here is random and no date goes in: the files come out the same to the byte.
"""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from lrpot.build import build_potential
from lrpot.config import ModelConfig, PropertiesConfig
from lrpot.properties.build import build_property_model

HERE = Path(__file__).parent

# The smallest network for crystals with properties.
CGCNN = {"name": "cgcnn", "features": 2, "blocks": 1, "neighbours": 4, "reach": 8.0, "basis": 2}

# What the bombs do to whoever unpickles them: make a directory of this name where the process runs.
CRATER = "the_bomb_went_off"

CUBE = "0.0 2.82 2.82 2.82 0.0 2.82 2.82 2.82 0.0"
ROW = """2
Lattice="{cell}" Properties=species:S:1:pos:R:3:forces:R:3 {labels} pbc="{pbc}"
Na 0.0 0.0 0.0 0.1 0.0 0.0
{atom}
"""
CIF = """data_shared_site
_cell_length_a 5.64
_cell_length_b 5.64
_cell_length_c 5.64
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_symmetry_space_group_name_H-M 'P 1'
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
Na1 Na 0 0 0 0.75
K1 K 0 0 0 0.25
Cl1 Cl 0.5 0.5 0.5 1.0
"""


def row(
    atom: str = "Cl 2.82 0.0 0.0 -0.1 0.0 0.0", labels: str = "energy=-7.9", cell: str = CUBE, pbc: str = "T T T"
) -> str:
    """A primitive cell of rock salt in extended XYZ: A, eV, eV/A."""
    return ROW.format(atom=atom, labels=labels, cell=cell, pbc=pbc)


def crystals() -> dict[str, bytes]:
    """Files of crystals. Row 0 is always good, so that a message has to name row 1."""
    second = {
        "no_energy": row(labels="colour=white"),
        "nan_energy": row(labels="energy=nan"),
        "text_energy": row(labels="energy=unknown"),
        "nan_position": row(atom="Cl nan 0.0 0.0 -0.1 0.0 0.0"),
        "nan_force": row(atom="Cl 2.82 0.0 0.0 -0.1 nan 0.0"),
        "nan_stress": row(labels='energy=-7.9 stress="nan 0 0 0 0 0 0 0 0"'),
        "nan_cell": row(cell=CUBE.replace("0.0", "nan", 1)),
        "nan_charge": row(labels="energy=-7.9 charge=nan"),
        "text_charge": row(labels="energy=-7.9 charge=plus"),
        "short_dipole": row(labels='energy=-7.9 dipole="0.0 1.0"'),
        "nan_charges": row(atom="Cl 2.82 0.0 0.0 -0.1 0.0 0.0 nan")
        .replace("0.1 0.0 0.0\n", "0.1 0.0 0.0 0.5\n")
        .replace("forces:R:3", "forces:R:3:charges:R:1"),
        "stress_without_period": row(labels='energy=-7.9 stress="0 0 0 0 0 0 0 0 0"', pbc="T T F"),
        "overlapping": row(atom="Cl 0.05 0.0 0.0 -0.1 0.0 0.0"),
        "same_place": row(atom="Cl 0.0 2.82 2.82 -0.1 0.0 0.0"),  # an image of atom 0
        "zero_volume": row(cell="0.0 2.82 2.82 2.82 0.0 2.82 2.82 2.82 5.64"),  # the third is the sum of the others
        "no_cell": row(cell="0 0 0 0 0 0 0 0 0"),
        "wrong_units": row(cell=CUBE.replace("2.82", "2.82e-10"), atom="Cl 2.82e-10 0.0 0.0 -0.1 0.0 0.0"),
        "unknown_element": row(atom="K 2.82 0.0 0.0 -0.1 0.0 0.0"),
        "no_element": row(atom="Qq 2.82 0.0 0.0 -0.1 0.0 0.0"),
        "chain": row(pbc="T F F"),
        "truncated": row()[:-20],
        "wrong_count": row().replace("2\n", "3\n", 1),
    }
    files = {f"{name}.extxyz": row() + text for name, text in second.items()}
    files |= {
        "empty.extxyz": "",
        "blank.extxyz": "\n",
        "no_atoms.extxyz": row() + '0\nLattice="5 0 0 0 5 0 0 0 5" energy=0.0 pbc="T T T"\n',
        "all_bad.extxyz": row(labels="energy=nan") + row(labels="colour=white"),
        "shared_site.cif": CIF,
        "no_crystal.txt": "These are not the crystals you are looking for.\n",
    }
    return {name: text.encode() for name, text in files.items()}


def configs() -> dict[str, bytes]:
    """Files of settings."""
    files = {
        "no_yaml.yaml": "training: [1, 2\n",
        "no_sections.yaml": "just a sentence\n",
        "unknown_setting.yaml": "training:\n  max_epoch: 5\n",
        "unknown_section.yaml": "trainig:\n  lr: 1.0e-3\n",
        "wrong_type.yaml": "model:\n  backbone:\n    features: many\n",
        "wrong_section.yaml": "training: 5\n",
        "out_of_range.yaml": "training:\n  lr: -1.0e-3\n",
        "tagged.yaml": f"training: !!python/object/apply:os.mkdir [{CRATER}]\n",
    }
    return {name: text.encode() for name, text in files.items()} | {"no_text.yaml": b"\xff\xfe\x00\x01"}


def models() -> dict[str, bytes]:
    """Files that are called models."""
    good = header()
    sound = weights()
    bomb = f"cos\nmkdir\n(S'{CRATER}'\ntR.".encode()  # protocol 0: os.mkdir(CRATER)
    no_number = {name: value.clone() for name, value in sound.items()}
    no_number["short.readout.last.weight"][0, 0] = float("nan")
    return {
        "sound.pt": model_archive(good, sound),
        "text.pt": b"This is a text file named model.pt.\n",
        "pickle_bomb.pt": bomb,
        "torch_bomb.pt": archive({"archive/data.pkl": bomb, "archive/byteorder": b"little", "archive/version": b"3\n"}),
        "bomb_as_weights.pt": model_archive(good, bomb),
        "bomb_beside.pt": archive({**members(good, sound), "data.pkl": bomb}),
        "truncated.pt": model_archive(good, sound)[:-400],
        "damaged.pt": model_archive(good, sound).replace(b'"features"', b'"feature\xff"'),
        "compressed.pt": archive(members(good, sound), zipfile.ZIP_DEFLATED),
        "traversal.pt": archive({f"../../{name}": content for name, content in members(good, sound).items()}),
        "no_weights.pt": archive({"model.json": json.dumps(good).encode()}),
        "huge_header.pt": model_archive(good, struct.pack("<Q", 2**60) + b"{}"),
        "deep_json.pt": archive({"model.json": b"[" * 20_000, "weights.safetensors": b""}),
        "list_header.pt": model_archive([good], sound),
        "newer_format.pt": model_archive({**good, "format": 99, "version": "99.1"}, sound),
        "no_format.pt": model_archive({k: v for k, v in good.items() if k != "format"}, sound),
        "wrong_types.pt": model_archive({**good, "elements": 11, "stages": "three"}, sound),
        "no_such_element.pt": model_archive({**good, "elements": ["Na", "Qq"]}, sound),
        "unknown_backbone_setting.pt": model_archive(header({"depth": 3}), sound),
        "huge_features.pt": model_archive(header({"features": 20_000}), sound),  # 5 GB, were it built
        "huge_number.pt": model_archive(header({"features": 10**30}), sound),
        "many_layers.pt": model_archive(header({"interactions": 10**9}), sound),
        "nan_weights.pt": model_archive(good, no_number),
        "no_models.pt": model_archive({"format": 2, "models": 2}, sound),
        "one_model_short.pt": ensemble(2, numbers=(0,)),
        "one_model_over.pt": ensemble(2, numbers=(0, 1, 2)),
        "same_models.pt": ensemble(2),
        "zero_factor.pt": ensemble(2, {"factors": {"energy": 0.0}, "n_structures": 5}),
        "many_models.pt": ensemble(20_000, entry={}),
        **property_models(),
    }


def property_models() -> dict[str, bytes]:
    """Files that are called models of properties."""
    sound = property_weights()
    no_number = {name: value.clone() for name, value in sound.items()}
    no_number["scale"][0] = float("nan")
    log_class = {"classification": ["gap"], "log": ["gap"]}
    return {
        "property_sound.pt": property_model(sound),
        "property_huge_features.pt": property_model(sound, encoder={"features": 10**6}),
        "property_many_blocks.pt": property_model(sound, encoder={"blocks": 10**9}),
        "property_other_head.pt": property_model(sound, properties={"head": {"kind": "experts"}}),
        "property_log_class.pt": property_model(sound, properties=log_class),
        "property_nan_scale.pt": property_model(no_number),
        "property_zero_factor.pt": property_model(sound, copies=2, factors={"gap": 0.0}, apart=1),
    }


def property_model(
    weights: Mapping[str, torch.Tensor],
    *,
    encoder: Mapping[str, Any] | None = None,
    properties: Mapping[str, Any] | None = None,
    copies: int = 1,
    factors: object | None = None,
    apart: int = 0,
) -> bytes:
    """The smallest model of a property, with some settings changed, in one or more copies this far apart."""
    config = {"targets": ["gap"], "encoder": {**CGCNN, **(encoder or {})}, **(properties or {})}
    own = {k: v for k, v in header().items() if k not in ("format", "config")} | {"config": {"properties": config}}
    about = {"format": 3, "version": "0.1.0", "models": [own] * copies, "factors": {} if factors is None else factors}
    packed = {f"{number}.{name}": value + apart * number for number in range(copies) for name, value in weights.items()}
    return model_archive(about, packed)


def property_weights() -> dict[str, torch.Tensor]:
    """Sound weights for it, none of them random."""
    config = PropertiesConfig.model_validate({"targets": ["gap"], "encoder": CGCNN})
    model = build_property_model(config, [11, 17])
    return {name: torch.full_like(value, 1.0) for name, value in model.state_dict().items()}


def ensemble(
    n: int,
    calibration: Mapping[str, Any] | None = None,
    *,
    numbers: Sequence[int] | None = None,
    entry: Mapping[str, Any] | None = None,
) -> bytes:
    """An ensemble of the sound model n times, with the weights of models of these numbers; without them, of all, at
    most two."""
    own = {k: v for k, v in header().items() if k != "format"} if entry is None else entry
    about = {"format": 2, "version": "0.1.0", "models": [own] * n, "calibration": calibration}
    present = range(min(n, 2)) if numbers is None else numbers
    packed = {f"{number}.{name}": value for number in present for name, value in weights().items()}
    return archive({"model.json": json.dumps(about).encode(), "weights.safetensors": safetensors.torch.save(packed)})


def header(changed: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """model.json of the smallest sound model there is, with some settings of the backbone changed.

    Written out, so that a new setting of lrpot does not change the files.
    """
    backbone = {"name": "painn", "features": 2, "interactions": 1, "radial_basis": 2, "cutoff": 4.0, **(changed or {})}
    return {
        "format": 1,
        "config": {"model": {"backbone": backbone, "kernel": {"form": "none"}}},
        "elements": ["Na", "Cl"],
        "stages": [],
        "data": {},
        "units": {"length": "A", "energy": "eV"},
        "version": "0.1.0",
        "created": "2026-01-01T00:00:00+00:00",
    }


def weights() -> dict[str, torch.Tensor]:
    """Sound weights for it, none of them random."""
    model = build_potential(ModelConfig.model_validate(header()["config"]["model"]), [11, 17])
    return {name: torch.full_like(value, 0.125) for name, value in model.state_dict().items()}


def members(model_json: object, content: Mapping[str, torch.Tensor] | bytes) -> dict[str, bytes]:
    packed = content if isinstance(content, bytes) else safetensors.torch.save(dict(content))
    return {"model.json": json.dumps(model_json, indent=1).encode(), "weights.safetensors": packed}


def model_archive(model_json: object, content: Mapping[str, torch.Tensor] | bytes) -> bytes:
    """A model file as `lrpot.model_file.save` lays it out."""
    return archive(members(model_json, content))


def archive(content: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        for name, data in content.items():
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            file.writestr(entry, data, compress_type=compression)
    return packed.getvalue()


def corpus() -> dict[str, bytes]:
    """Every file, by name."""
    return crystals() | configs() | models()


if __name__ == "__main__":
    for name, content in corpus().items():
        (HERE / name).write_bytes(content)
