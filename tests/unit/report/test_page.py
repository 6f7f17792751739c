"""The page of a run: whole, self-contained, escaped, of any run, and no larger than it may be."""

from __future__ import annotations

import html
import json
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from plotly.offline import get_plotlyjs

from lrpot.data.readers import read_rows, to_structures
from lrpot.evaluation import evaluate_structures
from lrpot.files import write_text
from lrpot.model_file import load
from lrpot.report import markup
from lrpot.report.comparison import SHOWN_UNITS
from lrpot.report.markup import Cell, number, table
from lrpot.report.page import write_report
from lrpot.report.run import read_run
from lrpot.report.sections import Content, errors_by, predictions, worst_structures
from tests.helpers_cli import one_error_line, run_cli
from tests.unit.report.run_data import HOSTILE, VALID_ROWS
from tests.unit.report.test_comparison import random_comparison

LARGEST_PAGE = 15e6  # bytes


def data_of(text: str) -> dict[str, Any]:
    """What the page hands to its script."""
    return json.loads(re.search(r'<script type="application/json" id="report-data">(.*?)</script>', text)[1])  # type: ignore[index]


def without_plotly(text: str) -> str:
    library = get_plotlyjs()
    assert library in text
    return text.replace(library, "")


def copy_of(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy"))


class Tags(HTMLParser):
    """Every tag of a page, with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes)))


def test_the_page_asks_for_nothing_from_elsewhere(page: Path) -> None:
    own = without_plotly(page.read_text(encoding="utf-8"))
    assert "://" not in own
    tags = Tags(own).found
    assert not {"img", "link", "iframe", "form", "base", "object", "embed"} & {tag for tag, _ in tags}
    asking = {"src", "srcset", "action", "poster", "data", "background"}
    assert not any(asking & attributes.keys() for _, attributes in tags)
    links = [attributes["href"] for _, attributes in tags if "href" in attributes]
    assert len(links) == 7
    assert all(link.startswith("#") for link in links if link is not None)
    assert not re.search(r"fetch\(|XMLHttpRequest|import\(|WebSocket|sendBeacon|@import|url\(", own)
    # and the browser is told to refuse whatever the library might ask for
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', own)[1]  # type: ignore[index]
    assert "default-src 'none'" in policy
    assert "unsafe-inline'; img" in policy  # styles only
    assert policy.count("'sha256-") == 2
    assert "eval" not in policy
    assert "form-action 'none'" in policy


def test_names_of_files_cannot_become_markup(page: Path) -> None:
    own = without_plotly(page.read_text(encoding="utf-8"))
    assert "<img" not in own
    assert html.escape(HOSTILE) in own
    found = data_of(own)["views"]["0"]["structures"][0]
    assert found["file"].endswith(HOSTILE)


@pytest.mark.parametrize("text", ["</script><script>alert(1)</script>", "<!--", "\u2028", "a&b", '"\\'])
def test_data_cannot_leave_their_script(text: str) -> None:
    written = markup.as_script_data({text: [text]})
    assert not set("<>&\u2028") & set(written)
    assert json.loads(written) == {text: [text]}


def test_cells_and_attributes_are_escaped() -> None:
    text = "<b>\"'&"
    made = table([text], [[text], [Cell(text, 1.0)]], name=text, sortable=True, attributes=[{"structure": text}])
    made += markup.figure(text, text, text) + markup.paragraph(text) + markup.bullets([text])
    assert "<b>" not in made
    assert "\"'" not in made


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.02399, "0.0240"), (3.4, "3.40"), (19.0, "19.0"), (120.0, "120"), (1234567.0, "1,234,567"), (None, "-"),
     (1e-9, "1.00e-09"), (999.9, "1.00e+03")],
)  # fmt: skip
def test_numbers_have_three_digits(value: float | None, text: str) -> None:
    assert number(value) == Cell(text, value)


def test_headline_and_stages_are_the_errors_of_the_models(page: Path, run: Path) -> None:
    """Against a plain evaluation of the test file with the model of every stage."""
    text = page.read_text(encoding="utf-8")
    cards = dict(re.findall(r'data-quantity="(\w+)".*?class="mae">([^<]*)<', text.split('data-part="1" hidden')[0]))
    errors = {}
    for stage in range(4):
        model = load(run / "stages" / f"{stage}.pt")
        structures = to_structures(read_rows(run.parent / HOSTILE), model.cutoff)
        errors[stage] = evaluate_structures(model, structures).errors()
    assert list(cards) == ["energy", "forces", "stress", "charges"]
    for quantity, shown in cards.items():
        assert shown == number(SHOWN_UNITS[quantity][0] * errors[3][quantity]["mae"]).text
    rows = re.findall(r"<tr>(.*?)</tr>", text.split('<table id="stages">')[1].split("</table>")[0])
    columns = re.findall(r"<th[^>]*>(.*?)</th>", rows[0])
    column = next(n for n, title in enumerate(columns) if title.startswith("forces, test"))
    shown_forces = [re.findall(r"<td[^>]*>([^<]*)</td>", row)[column] for row in rows[1:]]
    assert shown_forces == [number(1e3 * errors[stage]["forces"]["mae"]).text for stage in range(4)]


def test_the_script_gets_a_figure_for_every_place(page: Path) -> None:
    text = without_plotly(page.read_text(encoding="utf-8"))
    figures = data_of(text)["figures"]
    assert set(re.findall(r'data-figure="([^"]*)"', text)) == set(figures)
    for name in ("parity-0-0", "course-0", "groups-0-0", "kernel-0", "charges-0-0", "scale-0-0", "parity-1-0"):
        assert name in figures
    loss = figures["course-0"]["data"]
    assert [trace["name"][:2] for trace in loss] == ["1:", "2:", "3:"]


def test_learning_curves_are_those_of_the_run(page: Path, run: Path) -> None:
    figures = data_of(page.read_text(encoding="utf-8"))["figures"]
    stages = [json.loads((run / "stages" / f"{n}.json").read_text())["history"] for n in (1, 2, 3)]
    energy = figures["course-1"]["data"]
    for trace, history in zip(energy, stages, strict=True):
        np.testing.assert_allclose(trace["y"], [1e3 * record["energy"] for record in history], rtol=1e-5)
    epochs = [epoch for trace in energy for epoch in trace["x"]]
    assert epochs == list(range(len(epochs)))


def test_settings_files_and_record_are_in_the_page(run: Path, tmp_path: Path) -> None:
    copy = copy_of(run, tmp_path)
    write_text(
        copy / "record.json", json.dumps({"sessions": [{"torch": "9.9.8"}, {"torch": "9.9.9"}], "words": ["a", "b"]})
    )
    text = write_report(copy).read_text(encoding="utf-8")
    settings = html.unescape(re.search(r"<pre>(.*?)</pre>", text, re.S)[1])  # type: ignore[index]
    assert yaml.safe_load(settings) == yaml.safe_load((run / "config.yaml").read_text())
    for file in json.loads((run / "split.json").read_text())["files"]:
        assert file["sha256"] in text
    assert "sessions.2.torch</td><td>9.9.9" in text
    assert "words</td><td>a, b" in text


# --- runs that are not finished, data that are gone


def test_a_run_in_its_last_stage(run: Path, tmp_path: Path) -> None:
    copy = copy_of(run, tmp_path)
    history = json.loads((copy / "stages" / "3.json").read_text())["history"]
    for name in ("model.pt", "stages/3.json", "stages/3.pt", "results.json"):
        (copy / name).unlink()
    (copy / "checkpoints" / "3").mkdir(parents=True)
    torch.save({"stage": {"history": history[:2]}}, copy / "checkpoints" / "3" / "newest.ckpt")
    text = write_report(copy).read_text(encoding="utf-8")
    assert "not finished: 2 of 3 stages are done" in text
    assert "newest model on 5 structures" in text
    loss = data_of(text)["figures"]["course-0"]["data"]
    assert loss[2]["name"].endswith("(not finished)")
    np.testing.assert_allclose(loss[2]["y"], [record["loss"] for record in history[:2]], rtol=1e-5)


def test_a_run_that_has_only_begun(run: Path, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    begun.mkdir()
    shutil.copy(run / "config.yaml", begun)
    text = write_report(begun).read_text(encoding="utf-8")
    assert "The run has no model yet." in text
    assert "No stage is finished yet." in text
    assert data_of(text) == {"figures": {}, "views": {}, "elements": {}}


@pytest.mark.parametrize("change", ["missing", "changed"])
def test_without_its_data_the_page_says_so_and_shows_the_rest(run: Path, tmp_path: Path, change: str) -> None:
    shutil.copytree(run.parent, tmp_path / "all")
    copy, data = tmp_path / "all" / "run", tmp_path / "all" / "valid.extxyz"
    for name in ("config.yaml", "split.json"):
        content = (copy / name).read_text().replace(str(run.parent), str(tmp_path / "all"))
        (copy / name).write_text(content)
    if change == "missing":
        data.unlink()
    else:
        data.write_text(data.read_text().replace("Na ", "Cl ", 1))
    text = write_report(copy).read_text(encoding="utf-8")
    reason = "no such file" if change == "missing" else "was changed since the run began"
    assert re.search(rf"Predictions could not be computed anew\. [^<]*valid\.extxyz: {reason}", text)
    figures = data_of(text)["figures"]
    assert "course-0" in figures
    assert "kernel-0" in figures
    assert not any(name.startswith("parity") for name in figures)
    # what the run itself recorded is still there
    assert '<table id="stages">' in text


def test_a_damaged_checkpoint_is_told(run: Path, tmp_path: Path) -> None:
    copy = copy_of(run, tmp_path)
    (copy / "model.pt").unlink()
    folder = copy / "checkpoints" / "4"
    folder.mkdir(parents=True)
    (folder / "newest.ckpt").write_bytes(b"cut short")
    assert any("cannot be read" in warning for warning in read_run(copy).warnings)


# --- the command


def test_command(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "own.html"
    assert run_cli("report", run, "--data", run.parent / "valid.extxyz", "--out", out) == 0
    assert re.fullmatch(rf"wrote {re.escape(str(out))} \(\d\.\d MB\); open it in a browser\n", capsys.readouterr().out)
    text = out.read_text(encoding="utf-8")
    assert f"final model on {VALID_ROWS} structures (64 atoms) in valid.extxyz:" in text
    assert 'role="tab"' not in without_plotly(text).split("<script")[0]
    assert oct(out.stat().st_mode & 0o777) == oct((run / "model.pt").stat().st_mode & 0o777)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda run: (run / "config.yaml").unlink(), ["holds no run", "--out"]),
        (lambda run: (run / "stages" / "1.json").write_text("{"), ["1.json", "is damaged"]),
        (lambda run: (run / "split.json").write_text("[]"), ["split.json", "is damaged"]),
        (lambda run: (run / "model.pt").write_bytes(b"x"), ["model.pt", "is not a model"]),
    ],
    ids=["no run", "stage", "split", "model"],
)
def test_what_is_wrong_is_told_in_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Any, words: list[str]
) -> None:
    copy = copy_of(run, tmp_path)
    spoil(copy)
    assert run_cli("report", copy) == 1
    one_error_line(capsys.readouterr().err, words)
    assert not (copy / "report.html").exists()


def test_without_plotly_one_line(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    assert run_cli("report", run) == 1
    one_error_line(capsys.readouterr().err, ["plotly", "pip install plotly"])


# --- size


@pytest.mark.parametrize(("n", "n_atoms"), [(30, 2500), (3000, 8)])
def test_a_page_stays_small_for_any_run(n: int, n_atoms: int) -> None:
    """Twice the data of one part, for there may be two, with plotly."""
    content = Content()
    found = random_comparison(n, n_atoms, elements=90, formulas=2000)
    body = "".join(section(found, content, "0") for section in (predictions, errors_by, worst_structures))
    figures = {name: {"data": one.data, "layout": one.layout} for name, one in content.figures.items()}
    data = markup.as_script_data({"figures": figures, "views": content.views})
    assert 2 * (len(body) + len(data)) + len(get_plotlyjs()) < LARGEST_PAGE
