"""The range of attention: numbers, picture, command, refusals."""

from __future__ import annotations

from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch

from lrpot.cli.main import run
from lrpot.data.readers import to_structure
from lrpot.errors import ConfigError
from lrpot.model_file import save
from lrpot.properties.attention_range import BIN, attention_range
from lrpot.properties.model import PropertyEnsemble
from tests.unit.properties.crystals import triclinic
from tests.unit.properties.property_data import small_model


def test_it_is_the_mean_over_pairs_at_a_distance() -> None:
    model, atoms = small_model(encoder="crystograph", dtype=torch.float64), triclinic()
    found = attention_range(model, atoms)
    weights = model.encoder.attention(to_structure(atoms, model.cutoff, shells=model.shells, labels=False))
    expected: dict[int, list[np.ndarray]] = {}
    for i in range(5):
        for j in range(5):
            kind = -1 if i == j else int(atoms.get_distance(i, j, mic=True) / BIN)
            expected.setdefault(kind, []).append(5 * weights[0, :, i, j].detach().numpy())
    assert found.pairs.tolist() == [len(expected[kind]) for kind in sorted(expected)]
    means = np.array([np.mean(expected[kind], axis=0) for kind in sorted(expected)])
    np.testing.assert_allclose(found.attention[0].T, means, rtol=1e-10)
    assert found.distance[0] == 0.0
    # rows of attention add up to one
    np.testing.assert_allclose((found.attention * found.pairs).sum(axis=2) / 25, 1.0)


def test_of_an_ensemble_it_is_the_mean() -> None:
    members = [small_model(encoder="crystograph", seed=seed, dtype=torch.float64) for seed in (0, 1)]
    own = [attention_range(member, triclinic()).attention for member in members]
    assert not np.allclose(*own)
    together = attention_range(PropertyEnsemble(members), triclinic()).attention
    np.testing.assert_allclose(together, np.mean(own, axis=0), rtol=1e-10)


def test_an_encoder_without_attention_is_refused() -> None:
    with pytest.raises(ConfigError, match="fit one with --encoder crystograph"):
        attention_range(small_model(), triclinic())


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = save(small_model(encoder="crystograph"), tmp_path / "model.pt")
    crystal = tmp_path / "crystal.cif"
    ase.io.write(crystal, triclinic())
    assert run(["plot", "attention", str(model), str(crystal)]) == 0
    assert "attention x number of atoms" in capsys.readouterr().out
    assert (tmp_path / "attention-crystal.png").read_bytes().startswith(b"\x89PNG")
    other = save(small_model(), tmp_path / "other.pt")
    assert run(["plot", "attention", str(other), str(crystal)]) != 0
    said = capsys.readouterr()
    assert "no layers in which all atoms" in said.out + said.err
