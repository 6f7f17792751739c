"""A fit of properties, or a cross-validation, that was stopped or killed ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from lrpot import fit
from lrpot.config import make_config
from lrpot.errors import ConfigError, DataError, Interrupted
from lrpot.model_file import load_model
from lrpot.training import cross_validation, property_run
from lrpot.training.cross_validation import cross_validate
from tests.helpers_cli import PATIENCE, start_cli
from tests.reliability.interruption import fit_until, kill_when
from tests.unit.properties import property_data
from tests.unit.properties.property_data import ENCODERS, SMALL, salts, write_table
from tests.unit.training_data import metrics

without_pictures = pytest.fixture(autouse=True)(property_data.no_pictures)

# Everything that has a state or is drawn: running means of norms, averages, the noise of experts, dropout.
EXPERTS = {
    "task": "property",
    **SMALL,
    "properties.targets": ["gap", "bulk"],
    "properties.head.kind": "experts",
    "properties.head.experts": 4,
    "properties.head.top": 2,
    "training.max_epochs": 4,
    "training.lr": 1e-2,
    "training.warmup_epochs": 1,
}
DROPOUT = {name: value for name, value in EXPERTS.items() if not name.startswith("properties.encoder.")} | {
    f"properties.encoder.{name}": value for name, value in ENCODERS["statistics"].items()
}
SETTINGS: dict[str, dict[str, Any]] = {"experts": EXPERTS, "dropout": DROPOUT}


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_model(run / "model.pt").state_dict()


def assert_same(a: Path, b: Path) -> None:
    """Weights equal to the last bit, the same history, the same predictions."""
    left, right = weights(a), weights(b)
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name
    assert metrics(a) == metrics(b)
    assert (a / "test.csv").read_text() == (b / "test.csv").read_text()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_table(tmp_path_factory.mktemp("data"), salts(), ("gap", "bulk"))


@pytest.mark.parametrize("kind", SETTINGS)
@pytest.mark.parametrize("saves", [1, 3])
def test_resume_is_bitwise_equal(
    kind: str, saves: int, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(data, out=tmp_path / "whole", settings=SETTINGS[kind], verbose=False)
    fit_until(monkeypatch, saves, data, out=tmp_path / "run", settings=SETTINGS[kind])
    fit(out=tmp_path / "run", resume=True, verbose=False)
    assert_same(tmp_path / "whole", tmp_path / "run")
    start, end = (load_model(tmp_path / "run" / "stages" / f"{n}.pt").state_dict() for n in (0, 1))
    assert any(not torch.equal(start[name], end[name]) for name in start if name.startswith("encoder."))


@pytest.mark.slow
def test_kill_9_and_resume(data: Path, tmp_path: Path) -> None:
    settings = EXPERTS | {"training.max_epochs": 40}
    fit(data, out=tmp_path / "whole", settings=settings, verbose=False)
    out = tmp_path / "run"
    words = [f"{name}={json.dumps(value) if isinstance(value, list) else value}" for name, value in settings.items()]
    start = [sys.executable, "-m", "lrpot.cli.main", "fit", str(data), "--out", str(out), "--set", *words]
    # the uninterrupted run computed in this process; threads must agree for equal bits
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    kill_when(out / "checkpoints" / "1" / "newest.ckpt", start, environment)
    assert not (out / "model.pt").exists()
    fit(out=out, resume=True, verbose=False)
    assert_same(tmp_path / "whole", out)


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on(data: Path, tmp_path: Path) -> None:
    words = [f"{name}={value}" for name, value in SMALL.items()]
    command = ("cv", data, "--encoder", "cgcnn", "--target", "gap", "--folds", 2, "--out", "cv")
    more = ("--set", *words, "training.max_epochs=100000", "training.patience=100000")
    with start_cli(*command, *more, cwd=tmp_path) as process:
        deadline = time.monotonic() + PATIENCE
        sign = tmp_path / "cv" / "fold-1" / "checkpoints" / "1" / "newest.ckpt"
        while not sign.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)
        errors = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 130
    assert "stopped in fold-1 by Ctrl-C; go on with the same command and --resume" in errors
    assert "Traceback" not in errors


# --- cross-validation


CV = {**SMALL, "properties.targets": "gap"}


def test_a_cross_validation_goes_on_in_the_fold_where_it_stopped(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = cross_validate(data, out=tmp_path / "whole", folds=3, settings=CV, verbose=False)
    with monkeypatch.context() as patch:

        def stop_in_second(*args: Any, out: Path, **kwargs: Any) -> Any:
            if out.name == "fold-2":
                raise Interrupted("stopped by the test")
            return fit(*args, out=out, **kwargs)

        patch.setattr(cross_validation, "fit", stop_in_second)
        with pytest.raises(Interrupted, match=r"stopped in fold-2 .* same command and --resume"):
            cross_validate(data, out=tmp_path / "cv", folds=3, settings=CV, verbose=False)
    finished = (tmp_path / "cv" / "fold-1" / "model.pt").stat().st_mtime_ns
    found = cross_validate(data, out=tmp_path / "cv", folds=3, settings=CV, resume=True, verbose=False)
    assert (tmp_path / "cv" / "fold-1" / "model.pt").stat().st_mtime_ns == finished
    assert found.whole.predicted.tolist() == whole.whole.predicted.tolist()
    assert (tmp_path / "cv" / "predictions.csv").read_text() == (tmp_path / "whole" / "predictions.csv").read_text()


def test_a_fold_without_its_predictions_is_not_finished(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: Any, **kwargs: Any) -> Any:
        raise Interrupted("stopped by the test")

    whole = cross_validate(data, out=tmp_path / "whole", folds=3, settings=CV, verbose=False)
    with monkeypatch.context() as patch:
        patch.setattr(property_run, "save_predictions", stop)
        with pytest.raises(Interrupted, match="stopped in fold-1"):
            cross_validate(data, out=tmp_path / "cv", folds=3, settings=CV, verbose=False)
    found = cross_validate(data, out=tmp_path / "cv", folds=3, settings=CV, resume=True, verbose=False)
    assert found.whole.predicted.tolist() == whole.whole.predicted.tolist()


def test_the_call_that_began_a_fit_resumes_it(data: Path, tmp_path: Path) -> None:
    """Its targets were found in the data."""
    config = make_config(None, {"task": "property", **SMALL, "training.max_epochs": 2})
    begun, resumed = (fit(data, out=tmp_path / "run", config=config, resume=r, verbose=False) for r in (False, True))
    assert [target.name for target in begun.model.targets] == ["gap", "bulk"]
    assert resumed.test == begun.test


def test_a_cross_validation_goes_on_only_with_its_folds_settings_and_data(tmp_path: Path) -> None:
    """Predictions of other folds would be of crystals that the models have seen."""
    data = write_table(tmp_path / "data", salts(), ("gap",))
    out = tmp_path / "cv"
    cross_validate(data, out=out, folds=3, settings=CV, verbose=False)
    shutil.rmtree(out / "fold-3")
    before = (out / "predictions.csv").read_text()
    for folds in (2, 4):
        with pytest.raises(ConfigError, match="cv: was begun with other folds"):
            cross_validate(data, out=out, folds=folds, settings=CV, resume=True, verbose=False)
    with pytest.raises(ConfigError, match="cv: was begun with other settings"):
        cross_validate(data, out=out, folds=3, settings=CV | {"training.lr": 0.1}, resume=True, verbose=False)
    data.write_text(data.read_text().replace("salt-3,", "salt-3,1"))
    with pytest.raises(DataError, match=r"id_prop.csv: was changed since the run began"):
        cross_validate(data, out=out, folds=3, settings=CV, resume=True, verbose=False)
    assert (out / "predictions.csv").read_text() == before
    assert not (out / "fold-3").exists()
