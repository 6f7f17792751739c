"""Whatever is wrong with an input is told in one line that says what, where and what to do; nothing is left behind."""

from __future__ import annotations

import json
import os
import pickle
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import ase.io
import pytest

from lrpot.config import make_config
from lrpot.model_file import save
from lrpot.training.checkpoint import usable_checkpoint
from tests.bad_inputs.make_corpus import CRATER, HERE, corpus
from tests.helpers_cli import (
    FIT_SETTINGS,
    PATIENCE,
    call_cli,
    listing,
    one_error_line,
    run_cli,
    save_model,
    small_model,
    write_crystals,
)
from tests.unit.training_data import ionic_rows

# More than this is not taken to refuse a model file, whatever it says of itself.
SPARE_MEMORY = 200e6  # bytes


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what is good: model.pt (long range), short.pt (none), crystals.extxyz, rows.extxyz (labelled)."""
    folder = tmp_path_factory.mktemp("sound")
    save_model(folder / "model.pt")
    save_model(folder / "short.pt", "none")
    write_crystals(folder / "crystals.extxyz")
    ase.io.write(folder / "rows.extxyz", ionic_rows(12, stress=True), format="extxyz")
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in: `out` is where results may go."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# What is typed, with {bad} for this folder and {sound} for good files -> words of the one line.
REFUSALS = {
    # --- files of crystals
    "fit nowhere.extxyz --out out/run": ("nowhere.extxyz: no such file", "check the path"),
    "predict {sound}/model.pt nowhere.cif": ("nowhere.cif: no such file", "check the path"),
    "predict {sound}/model.pt {bad}": ("bad_inputs: is a directory", "name the file in it"),
    "fit {bad}/empty.extxyz --out out/run": ("empty.extxyz: is empty", "nothing to read"),
    "evaluate {sound}/model.pt {bad}/blank.extxyz --out out": ("blank.extxyz: holds no crystals",),
    "predict {sound}/model.pt {bad}/no_crystal.txt": ("no_crystal.txt: is in no format", "give a file that"),
    "predict {sound}/model.pt {bad}/pickle_bomb.pt": ("pickle_bomb.pt: is in no format", "give a file that"),
    "fit {bad}/no_energy.extxyz --out out/run": ("no_energy.extxyz, row 1: has no energy", "add it", "remove the row"),
    "fit {bad}/nan_energy.extxyz --out out/run": ("nan_energy.extxyz, row 1: energy is not a finite", "correct it"),
    "fit {bad}/text_energy.extxyz --out out/run": ("text_energy.extxyz, row 1: energy = 'unknown'", "correct it"),
    "fit {bad}/nan_force.extxyz --out out/run": ("nan_force.extxyz, row 1: the force on atom 1", "correct it"),
    "evaluate {sound}/model.pt {bad}/nan_stress.extxyz --out out": ("nan_stress.extxyz, row 1: stress", "correct it"),
    "fit {bad}/stress_without_period.extxyz --out out/run": ("row 1: has a stress, but pbc = [True, ", "remove it"),
    "fit {bad}/short_dipole.extxyz --out out/run": ("row 1: dipole has shape (2,), expected (3,)", "correct the label"),
    "fit {bad}/nan_charges.extxyz --out out/run": ("row 1: charges of atom 1 holds something", "correct it or remove"),
    "fit {bad}/nan_position.extxyz --out out/run": ("row 1: the position of atom 1 is not a finite", "correct it"),
    "predict {sound}/model.pt {bad}/nan_position.extxyz --out out/p.csv": ("row 1: the position of atom 1", "correct"),
    "fit {bad}/nan_cell.extxyz --out out/run": ("nan_cell.extxyz, row 1: the cell", "not finite", "correct it"),
    "fit {bad}/nan_charge.extxyz --out out/run": ("nan_charge.extxyz, row 1: charge = nan", "total charge in e"),
    "predict {sound}/model.pt {bad}/text_charge.extxyz": ("text_charge.extxyz, row 1: charge = 'plus'", "correct it"),
    "fit {bad}/overlapping.extxyz --out out/run": ("overlapping.extxyz, row 1: atoms 0 and 1 are 0.05 A", "remove one"),
    "md {sound}/model.pt {bad}/overlapping.extxyz --out out/md.traj": ("row 1: atoms 0 and 1 are 0.05 A", "remove one"),
    "fit {bad}/same_place.extxyz --out out/run": ("same_place.extxyz, row 1: atoms 0 and 1 are 0 A", "remove one"),
    "fit {bad}/zero_volume.extxyz --out out/run": ("zero_volume.extxyz, row 1: the cell has no volume", "pbc to False"),
    "fit {bad}/no_cell.extxyz --out out/run": ("no_cell.extxyz, row 1: the cell has no volume", "pbc to False"),
    "predict {sound}/model.pt {bad}/wrong_units.extxyz": ("wrong_units.extxyz, row 1: ", "cell"),
    "fit {bad}/no_atoms.extxyz --out out/run": ("no_atoms.extxyz, row 1: the structure has no atoms", "remove the row"),
    "fit {bad}/truncated.extxyz --out out/run": ("truncated.extxyz: row 1 cannot be read", "correct that row"),
    "fit {bad}/wrong_count.extxyz --out out/run": ("wrong_count.extxyz: row 1 cannot be read", "correct that row"),
    "fit {bad}/no_element.extxyz --out out/run": ("no_element.extxyz: row 1 cannot", "'Qq'", "correct that row"),
    "predict {sound}/short.pt {bad}/shared_site.cif": ("shared_site.cif, row 0", "atom 0", "Na 0.75, K 0.25", "order"),
    "predict {sound}/model.pt {bad}/unknown_element.extxyz --out out/p.extxyz": ("row 1: element K (atom 1)", "Na, Cl"),
    "evaluate {sound}/model.pt {bad}/unknown_element.extxyz --out out": ("row 1: element K (atom 1)", "covers K"),
    "md {sound}/model.pt {bad}/unknown_element.extxyz --out out/md.traj": ("row 1: element K (atom 1)", "covers K"),
    "predict {sound}/model.pt {bad}/chain.extxyz": ("chain.extxyz, row 1: pbc = [True, False, False]", "Make one more"),
    "evaluate {sound}/model.pt {bad}/chain.extxyz --out out": ("row 1: pbc = [True, False, False]", "Make one more"),
    "md {sound}/model.pt {bad}/chain.extxyz --out out/md.traj": ("row 1: pbc = [True, False, False]", "Make one more"),
    "evaluate {sound}/model.pt {sound}/crystals.extxyz --out out": ("crystals.extxyz: no row has an energy", "predict"),
    "fit {sound}/rows.extxyz --valid nowhere.extxyz --out out/run": ("nowhere.extxyz: no such file", "check the path"),
    "fit {bad}/all_bad.extxyz --out out/run": ("all_bad.extxyz, row 0: energy", "1 more bad rows: 1"),
    # --- models
    "info nowhere.pt": ("nowhere.pt: no such file", "check the path"),
    "evaluate nowhere/model.pt {sound}/rows.extxyz": ("nowhere/model.pt: no such file", "check the path"),
    "info {sound}": (": is a directory", "model.pt"),
    "info {bad}/text.pt": ("text.pt: is not a model of lrpot", "lrpot fit"),
    "info {bad}/pickle_bomb.pt": ("pickle_bomb.pt: is not a model of lrpot", "lrpot fit"),
    "info {bad}/torch_bomb.pt": ("torch_bomb.pt: is not a model of lrpot", "data.pkl", "lrpot fit"),
    "info {bad}/bomb_as_weights.pt": ("bomb_as_weights.pt: is damaged", "get it anew"),
    "info {bad}/bomb_beside.pt": ("bomb_beside.pt: is not a model of lrpot", "data.pkl", "lrpot fit"),
    "info {bad}/truncated.pt": ("truncated.pt: ", "was cut short", "lrpot fit"),
    "info {bad}/damaged.pt": ("damaged.pt: is damaged", "get it anew"),
    "info {bad}/compressed.pt": ("compressed.pt: model.json in it is compressed", "get it from"),
    "info {bad}/traversal.pt": ("traversal.pt: is not a model of lrpot", "../../model.json", "lrpot fit"),
    "info {bad}/no_weights.pt": ("no_weights.pt: is not a model of lrpot", "lrpot fit"),
    "info {bad}/huge_header.pt": ("huge_header.pt: is damaged", "get it anew"),
    "info {bad}/deep_json.pt": ("deep_json.pt: is damaged", "get it anew"),
    "info {bad}/list_header.pt": ("list_header.pt: is damaged", "not an object", "get it anew"),
    "info {bad}/newer_format.pt": ("newer_format.pt: has model format 99", "use lrpot 99.1"),
    "info {bad}/no_format.pt": ("no_format.pt: is damaged", "does not say its format", "get it anew"),
    "info {bad}/wrong_types.pt": ("wrong_types.pt: is damaged", "elements", "get it anew"),
    "info {bad}/no_such_element.pt": ("no_such_element.pt: is damaged", "Qq", "get it anew"),
    "info {bad}/unknown_backbone_setting.pt": ("setting.pt: is damaged", "backbone.depth", "get it anew"),
    "info {bad}/huge_features.pt": ("huge_features.pt: ", "do not fit", "embedding", "get it anew"),
    "info {bad}/huge_number.pt": ("huge_number.pt: ", "do not fit", "get it anew"),
    "info {bad}/many_layers.pt": ("many_layers.pt: ", "more layers than it has weights", "get it anew"),
    "info {bad}/nan_weights.pt": ("nan_weights.pt: weight short.readout.last.weight is not finite", "fit it anew"),
    "predict {bad}/nan_weights.pt {sound}/crystals.extxyz --out out/p.csv": ("nan_weights.pt: weight", "fit it anew"),
    "info {bad}/no_models.pt": ("no_models.pt: is damaged", "models in model.json is no list", "get it anew"),
    "info {bad}/one_model_short.pt": ("one_model_short.pt: ", "more layers than it has weights", "get it anew"),
    "info {bad}/one_model_over.pt": ("weight '2.short.", "is of no model in it", "get it anew"),
    "predict {bad}/same_models.pt {sound}/crystals.extxyz --out out/p.csv": ("models 0 and 1 of the ensemble", "same"),
    "info {bad}/zero_factor.pt": ("zero_factor.pt: is damaged", "calibration", "finite and positive", "get it anew"),
    "info {bad}/many_models.pt": ("many_models.pt: is damaged", "model.json, ", "get it anew"),
    "info {bad}/property_huge_features.pt": ("do not fit each other", "get it anew"),
    "info {bad}/property_many_blocks.pt": ("more layers than it has weights", "get it anew"),
    "info {bad}/property_other_head.pt": ("do not fit each other", "get it anew"),
    "info {bad}/property_log_class.pt": ("is damaged", "gap cannot be in both", "get it anew"),
    "screen {bad}/property_nan_scale.pt {sound}/crystals.extxyz": ("weight scale is not finite", "fit it anew"),
    "info {bad}/property_zero_factor.pt": ("property_zero_factor.pt: ", "the factor of gap"),
    "md {bad}/property_sound.pt {sound}/crystals.extxyz --out out/md.traj": ("predicts gap", "lrpot screen"),
    "evaluate {bad}/text.pt {sound}/rows.extxyz --out out": ("text.pt: is not a model", "lrpot fit"),
    "md {bad}/torch_bomb.pt {sound}/crystals.extxyz --out out/md.traj": ("torch_bomb.pt: is not a model", "lrpot fit"),
    # --- settings
    "fit": ("no training data", "lrpot fit DATA --out DIR"),
    "fit {sound}/rows.extxyz --config nowhere.yaml": ("nowhere.yaml: no such file", "check the path"),
    "fit {sound}/rows.extxyz --config {bad}": ("bad_inputs: cannot be read", "give a YAML file"),
    "fit {sound}/rows.extxyz --config {bad}/no_text.yaml": ("no_text.yaml: cannot be read as text", "YAML"),
    "fit {sound}/rows.extxyz --config {bad}/no_yaml.yaml": ("no_yaml.yaml: is not valid YAML", "line 1"),
    "fit {sound}/rows.extxyz --config {bad}/tagged.yaml": ("tagged.yaml: is not valid YAML", "line 1"),
    "fit {sound}/rows.extxyz --config {bad}/no_sections.yaml": ("no_sections.yaml: expected sections data, model",),
    "fit {sound}/rows.extxyz --config {bad}/unknown_setting.yaml": ("training.max_epoch does not", "mean max_epochs?"),
    "fit {sound}/rows.extxyz --config {bad}/unknown_section.yaml": ("trainig does not exist", "mean training?"),
    "fit {sound}/rows.extxyz --config {bad}/wrong_type.yaml": ("model.backbone.features = 'many'", "valid integer"),
    "fit {sound}/rows.extxyz --config {bad}/wrong_section.yaml": ("training = 5", "dictionary"),
    "fit {sound}/rows.extxyz --config {bad}/out_of_range.yaml": ("training.lr = -0.001", "greater than 0"),
    "fit {sound}/rows.extxyz --set training.lr": ("--set training.lr: expected name=value",),
    "fit --set --out run": ("--set --out: expected name=value",),
    "fit {sound}/rows.extxyz --set =3": ("--set =3: expected name=value",),
    "fit {sound}/rows.extxyz --set training.lrr=1": ("training.lrr does not exist", "training.lr?"),
    "fit {sound}/rows.extxyz --set cutoff=5": ("cutoff does not exist", "model.backbone.cutoff?"),
    "fit {sound}/rows.extxyz --set training.max_epochs=0": ("training.max_epochs = 0", "greater than or equal to 1"),
    "fit {sound}/rows.extxyz --set training.lr=nan": ("training.lr = nan", "finite"),
    "fit {sound}/rows.extxyz --set model.kernel.k_cutoff=far": ("model.kernel.k_cutoff = 'far'", "valid number"),
    "fit {sound}/rows.extxyz --backbone schnet": ("model.backbone.name = 'schnet'", "'painn'"),
    "fit {sound}/rows.extxyz --seed -1": ("training.seed = -1", "greater than or equal to 0"),
    "fit {sound}/rows.extxyz --stages 2": ("training.stages = 2", "1 or 3"),
    "fit {sound}/rows.extxyz --kernel none --schedule physics-first": ("needs a long-range part", "choose coulomb"),
    "fit {sound}/rows.extxyz --out out/run --set model.kernel.k_cutoff=1": ("k_cutoff = 1 1/A", "raise k_cutoff to"),
    "fit {sound}/rows.extxyz --device tpu": ("device 'tpu' is not known", "use cpu, cuda"),
    "predict {sound}/model.pt {sound}/crystals.extxyz --device tpu": ("device 'tpu' is not known", "use cpu, cuda"),
    "md {sound}/model.pt {sound}/crystals.extxyz --device cuda:x": ("device 'cuda:x' is not known", "use cpu, cuda"),
    "predict {sound}/model.pt {sound}/crystals.extxyz --device cuda:99": ("device 'cuda:99' is not there", "use cpu"),
    "evaluate {sound}/model.pt {sound}/rows.extxyz --device cuda:99 --out out": ("'cuda:99' is not there", "use cpu"),
    "md {sound}/model.pt {sound}/crystals.extxyz --steps -5": ("steps = -5", "must be finite and positive"),
    "md {sound}/model.pt {sound}/crystals.extxyz --interval 0": ("interval = 0", "must be finite and positive"),
    "md {sound}/model.pt {sound}/crystals.extxyz --timestep nan": ("timestep = nan", "must be finite and positive"),
    "md {sound}/model.pt {sound}/crystals.extxyz --temperature -1": ("temperature = -1 K", "not negative"),
    "md {sound}/model.pt {sound}/crystals.extxyz --supercell 1 0 1": ("--supercell (1, 0, 1)", "1 or more"),
    "data nacl --out out/d.extxyz --n 0": ("n = 0", "at least 1 structure"),
    "data nacl --out out/d.extxyz --rattle 9": ("rattle = 9.0 A", "give 0 to 0.25 A"),
    "data nacl --out out/d.extxyz --seed -1": ("seed = -1", "give 0 or more"),
    "data gan --out out/d.extxyz --scale 3": ("scale = 3.0: is no lattice of GaN", "give 0.8 to 1.25"),
    "data gan --out out/d.extxyz --calculator emt": ("calculator = emt: gives no calculator", "give module:factory"),
    # --- places for results
    "predict {sound}/model.pt {sound}/crystals.extxyz --out out/p.json": ("out/p.json: unknown ending", "use .csv"),
    "predict {sound}/model.pt {sound}/crystals.extxyz --out {sound}/crystals.extxyz": ("also read", "choose another"),
    "predict {sound}/model.pt {sound}/crystals.extxyz --out {sound}/model.pt/p.csv": ("cannot be written", "choose"),
    "evaluate {sound}/model.pt {sound}/rows.extxyz --out {sound}/model.pt": ("cannot be written", "choose another"),
    "md {sound}/model.pt {sound}/crystals.extxyz --out out/md.dcd": ("out/md.dcd: unknown ending", "use .traj"),
    "md {sound}/model.pt {sound}/crystals.extxyz --out {sound}/crystals.extxyz": ("exists already", "--overwrite"),
    "fit {sound}/rows.extxyz --out {sound}/rows.extxyz": ("rows.extxyz: cannot be used", "choose another --out"),
    "fit {sound}/rows.extxyz --out {sound}": ("holds files that no run made", "choose another --out"),
    "fit {sound}/rows.extxyz --out {sound} --overwrite": ("holds files that no run made", "choose another --out"),
    "fit --resume --out out/run": ("out/run: holds no run to resume", "start it without --resume"),
    "data nacl --out {sound}/rows.extxyz": ("rows.extxyz: exists already", "--overwrite"),
    "data nacl --out {sound}/rows.extxyz/d.extxyz": ("cannot be written", "choose another place"),
    "data nacl --out out/d.cif": ("out/d.cif: the file is extended XYZ", ".extxyz"),
}


@pytest.mark.parametrize("command", REFUSALS)
def test_refused_in_one_line(command: str, sound: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = listing(sound), {path: path.read_bytes() for path in sound.iterdir() if path.is_file()}
    code = run_cli(*shlex.split(command.format(bad=HERE, sound=sound)))
    printed = capsys.readouterr()
    assert code == 1, printed.out
    one_error_line(printed.err, REFUSALS[command])
    # an empty folder for the results may be there, but no file, whole or half
    assert not [path for path in here.rglob("*") if not path.is_dir()]
    assert (listing(sound), {path: path.read_bytes() for path in before[1]}) == before
    assert not (here / CRATER).exists()


def test_every_file_of_the_corpus_is_used_and_described() -> None:
    tried = {word.removeprefix("{bad}/") for command in REFUSALS for word in command.split()}
    described = (HERE / "README.md").read_text()
    for name in corpus().keys() - {"sound.pt"}:
        assert name in tried, f"no command tries {name}"
        assert f"`{name}`" in described, f"README.md does not describe {name}"


@pytest.mark.parametrize("name", ["sound.pt", "property_sound.pt"])
def test_the_sound_model_is_sound(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The control: the defects of the others are the only reason for their refusal."""
    assert run_cli("info", HERE / name) == 0
    assert "Na, Cl" in capsys.readouterr().out


def test_corpus_is_what_its_script_makes() -> None:
    made = corpus()
    kept = {path.name: path for path in HERE.iterdir() if path.suffix in {".pt", ".extxyz", ".yaml", ".cif", ".txt"}}
    assert kept.keys() == made.keys()
    for name, content in made.items():
        if name != "compressed.pt":  # another zlib may compress otherwise
            assert kept[name].read_bytes() == content, f"{name}: run python -m tests.bad_inputs.make_corpus"


def test_bombs_are_live(here: Path) -> None:
    """The control: whoever unpickles them makes the directory. Otherwise the tests above would prove nothing."""
    with zipfile.ZipFile(HERE / "torch_bomb.pt") as archive:
        content = archive.read("archive/data.pkl")
    for bomb in (content, (HERE / "pickle_bomb.pt").read_bytes()):
        pickle.loads(bomb)
        (here / CRATER).rmdir()


def test_a_bomb_among_checkpoints_is_not_set_off(here: Path) -> None:
    for name, bomb in (("newest.ckpt", "torch_bomb.pt"), ("previous.ckpt", "pickle_bomb.pt")):
        (here / name).write_bytes((HERE / bomb).read_bytes())
    told: list[str] = []
    assert usable_checkpoint(here, told.append) is None
    assert len(told) == 2
    assert not (here / CRATER).exists()


@pytest.mark.slow
def test_a_hostile_size_takes_no_memory(here: Path) -> None:
    code = (
        "import resource, sys; from lrpot.model_file import load; from lrpot.errors import ModelFileError\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "before, refused = peak(), 0\n"
        "for path in sys.argv[1:]:\n"
        "    try: load(path)\n"
        "    except ModelFileError: refused += 1\n"
        "print(refused, peak() - before)"
    )
    names = ("huge_features.pt", "huge_number.pt", "many_layers.pt", "huge_header.pt", "deep_json.pt")
    words = [sys.executable, "-c", code, *(str(HERE / name) for name in names)]
    run = subprocess.run(words, capture_output=True, text=True, check=True, timeout=PATIENCE)
    refused, taken = map(int, run.stdout.split())
    assert refused == len(names)
    assert taken < SPARE_MEMORY


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        pytest.param("info {bad}/torch_bomb.pt", ("torch_bomb.pt: is not a model of lrpot",), marks=pytest.mark.slow),
        ("data nacl --out out/d.extxyz --n -1", ("n = -1: gives an empty data set",)),
    ],
)
def test_refused_in_a_process_of_its_own(command: str, expected: tuple[str, ...], here: Path) -> None:
    code, output, errors = call_cli(*shlex.split(command.format(bad=HERE)), cwd=here)
    assert code == 1
    assert output == ""
    one_error_line(errors, expected)
    assert listing(here) == []


def test_debug_shows_where_it_happened(here: Path) -> None:
    code, _, errors = call_cli("data", "nacl", "--out", "d.extxyz", "--n", "0", "--debug", cwd=here)
    assert code == 1
    assert "Traceback" in errors
    assert errors.splitlines()[-1].startswith("lrpot: error: n = 0: ")


def test_control_codes_in_a_file_do_not_reach_the_terminal(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with zipfile.ZipFile(here / "evil.pt", "w") as archive:
        archive.writestr("\x1b[2J\x1b]0;owned\x07", "")
    assert run_cli("info", here / "evil.pt") == 1
    assert "\x1b" not in capsys.readouterr().err


# --- places


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_directory(sound: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "locked").mkdir(mode=0o500)
    for words in (
        ("fit", sound / "rows.extxyz", "--out", "locked/run"),
        ("predict", sound / "model.pt", sound / "crystals.extxyz", "--out", "locked/p.csv"),
        ("md", sound / "model.pt", sound / "crystals.extxyz", "--out", "locked/md.traj"),
        ("data", "nacl", "--out", "locked/d.extxyz"),
    ):
        assert run_cli(*words) == 1
        one_error_line(capsys.readouterr().err, ("Permission denied", "choose another"))
    assert listing(here) == ["locked"]


@pytest.mark.parametrize(
    "command",
    [
        "predict {sound}/model.pt {sound}/crystals.extxyz --out folder.csv",
        "md {sound}/model.pt {sound}/crystals.extxyz --out folder.traj --overwrite",
        "data nacl --out folder.extxyz --overwrite",
    ],
)
def test_output_is_a_directory(command: str, sound: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(command.format(sound=sound))
    name = next(word for word in words if word.startswith("folder"))
    (here / name).mkdir()
    assert run_cli(*words) == 1
    one_error_line(capsys.readouterr().err, (f"{name}: is a directory", "give a file name"))
    assert listing(here) == [name]


def test_directory_of_an_earlier_run(sound: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = here / "run"
    run.mkdir()
    (run / "run.lock").touch()
    (run / "model.pt").write_text("precious")
    assert run_cli("fit", sound / "rows.extxyz", "--out", "run") == 1
    one_error_line(capsys.readouterr().err, ("run: already holds files (model.pt", "--resume", "--overwrite"))
    assert (run / "model.pt").read_text() == "precious"
    assert listing(run) == ["model.pt", "run.lock"]


@pytest.mark.parametrize("flag", [(), ("--overwrite",), ("--resume",)])
def test_directory_of_a_run_that_is_still_going(
    flag: tuple[str, ...], sound: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(None, {"data.train": str(sound / "rows.extxyz")}).to_yaml()
    holder = (
        "import sys; from lrpot.files import run_directory\n"
        "with run_directory('run', resume=True, overwrite=False): print('held', flush=True); sys.stdin.read()"
    )
    (here / "run").mkdir()
    (here / "run" / "config.yaml").write_text(config)
    with subprocess.Popen(
        [sys.executable, "-c", holder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=here
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert run_cli("fit", sound / "rows.extxyz", "--out", "run", *flag) == 1
        expected = ("run: is in use by another run", f"process {other.pid}", "wait for it or choose another --out")
        one_error_line(capsys.readouterr().err, expected)
        assert other.stdin is not None
        other.stdin.close()
    assert (here / "run" / "config.yaml").read_text() == config


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("model.charges.init.Foo=1", ("Foo is not an element", "use symbols such as Na")),
        ("model.charges.init.Na=1", ("no charge for Cl", "add it to the table")),
    ],
)
def test_a_wrong_table_of_charges_leaves_nothing(
    setting: str, expected: tuple[str, ...], sound: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli("fit", sound / "rows.extxyz", "--out", "run", "--set", setting) == 1
    one_error_line(capsys.readouterr().err, expected)
    assert listing(here) == []


# --- rows that are left out, and rows that differ


def fit_words(data: Path, *more: object) -> list[object]:
    return ["fit", data, "--out", "run", "--set", *FIT_SETTINGS, "training.stages=1", "training.max_epochs=1", *more]


def test_skip_bad_rows_goes_on_and_counts(sound: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = (sound / "rows.extxyz").read_text()
    bad = [(HERE / name).read_text().split("\n", 4)[4] for name in ("nan_force.extxyz", "overlapping.extxyz")]
    (here / "data.extxyz").write_text(bad[0] + rows + bad[1])
    assert run_cli(*fit_words(Path("data.extxyz"), "--skip-bad-rows")) == 0
    printed = capsys.readouterr()
    # a slow machine also shows how far the fit is
    assert [line for line in printed.err.splitlines() if not line.startswith("all at once:")] == [
        "warning: data.extxyz, row 0: the force on atom 1 is not a finite number; correct it or remove the row",
        "warning: data.extxyz, row 13: atoms 0 and 1 are 0.05 A apart (less than 0.1 A); remove one of them or correct "
        "the positions",
        "warning: data.extxyz: left out 2 of 14 rows",
    ]
    assert printed.out.startswith("charges start at")
    assert "10 training, 1 validation, 1 test structures" in printed.out
    assert (here / "run" / "model.pt").exists()


def test_skip_bad_rows_with_no_good_row(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("fit", HERE / "all_bad.extxyz", "--out", "run", "--skip-bad-rows") == 1
    *warnings, error = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[0] for line in warnings] == ["warning", "warning"]
    assert "row 0" in warnings[0]
    assert "row 1" in warnings[1]
    one_error_line(error, ("all_bad.extxyz: every row is bad", "row 0: energy is not a finite number", "correct it"))
    assert listing(here) == []


def test_too_few_structures(sound: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for n in (1, 2):
        ase.io.write(here / "few.extxyz", ionic_rows(n), format="extxyz")
        code = run_cli(*fit_words(Path("few.extxyz"), "data.test_fraction=0.5", "data.valid_fraction=0.4"))
        assert code == 1
        one_error_line(capsys.readouterr().err, (f"few.extxyz: {n} rows are too few", "add rows"))
        assert listing(here) == ["few.extxyz"]


LACKING = [("forces", 2), ("stress", 2), ("forces", 1), ("stress", 1)]


def write_lacking(path: Path, label: str, every: int) -> None:
    """Labelled rows of which every n-th lacks a label."""
    rows = ionic_rows(12, stress=True)
    for atoms in rows[::every]:
        del atoms.calc.results[label]
    ase.io.write(path, rows, format="extxyz")


@pytest.mark.parametrize(("label", "every"), LACKING)
def test_fit_to_rows_that_differ_in_their_labels(
    label: str, every: int, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_lacking(here / "data.extxyz", label, every)
    assert run_cli(*fit_words(Path("data.extxyz"))) == 0
    assert capsys.readouterr().err == ""
    assert (here / "run" / "model.pt").exists()


@pytest.mark.parametrize(("label", "every"), LACKING)
def test_evaluate_on_rows_that_differ_in_their_labels(label: str, every: int, sound: Path, here: Path) -> None:
    write_lacking(here / "data.extxyz", label, every)
    assert run_cli("evaluate", sound / "model.pt", "data.extxyz", "--out", ".") == 0
    found = json.loads((here / "evaluation-data.json").read_text())
    assert found["n_structures"] == 12
    assert (label in found) == (every > 1)
    assert {"energy", "forces", "stress"} - {label} <= found.keys()


def test_a_model_that_explodes_in_md_is_told_with_step_and_atom(
    sound: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("md", sound / "model.pt", sound / "crystals.extxyz", "--timestep", 40, "--temperature", 2000)
    assert run_cli(*words, "--steps", 200, "--interval", 1, "--out", "md.traj") == 1
    error = capsys.readouterr().err
    one_error_line(error, ("step ", "atom", "time step of 40 fs is too long", "are kept"))
    kept = ase.io.read(here / "md.traj", ":")
    assert f"the frames before step {len(kept)} are kept" in error


def test_info_of_a_model_without_history_needs_none(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = small_model("none")
    save(model, here / "m.pt")
    assert run_cli("info", "m.pt") == 0
    assert "Na, Cl" in capsys.readouterr().out
