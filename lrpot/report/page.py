"""`write_report`: a run directory in, one HTML page out that needs nothing beside itself."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from lrpot._version import __version__
from lrpot.console import Console
from lrpot.errors import ConfigError, LrpotError
from lrpot.evaluation import evaluate_structures
from lrpot.files import check_writable, write_text
from lrpot.model_file import check_device, load
from lrpot.potential import Potential
from lrpot.report import markup, sections
from lrpot.report.comparison import Comparison, compare
from lrpot.report.held_out import Part, from_file, held_out
from lrpot.report.markup import as_script_data, paragraph, script_hash
from lrpot.report.record import record
from lrpot.report.run import Run, read_run
from lrpot.report.sections import Content
from lrpot.report.worst import elements_of

# What makes the HTML of a section, from a part, what goes to the script, and the name of the part there.
Section = Callable[[Comparison, Content, str], str]


def write_report(
    run: str | Path,
    out: str | Path | None = None,
    *,
    data: str | Path | None = None,
    device: str = "cpu",
    console: Console | None = None,
) -> Path:
    """Write one self-contained HTML page about a run, finished or not.

    Predictions are computed anew, with the newest model of the run, on the structures that it held back. Where they
    can no longer be read, the page says why and shows what is in the run.

    Args:
        run: directory that `fit` wrote. out: the page; None for report.html in it.
        data: labelled structures to look at instead of those that were held back.
        device: where to compute. console: shows how far it is; None for silence.
    Returns:
        where the page is.
    Raises:
        ConfigError: plotly is missing, or a device. DataError: no run, or it is damaged; or `data` cannot be used.
        OutputError: the page cannot be written.
    """
    console = console or Console(quiet=True)
    plotly = _plotly()
    check_device(device)
    found = read_run(Path(run))
    path = found.path / "report.html" if out is None else Path(out)
    check_writable(path)
    model = None if found.weights is None else load(found.weights, device=device)
    parts, problem = _parts(found, model, data, console)
    comparisons = [_compare(model, part, console) for part in parts if model is not None]
    test = _test_by_stage(found, parts, device, console) if data is None else {}
    write_text(path, _page(found, model, comparisons, test, problem, plotly))
    return path


def _plotly() -> str:
    """The library of the figures, as JavaScript."""
    try:
        return importlib.import_module("plotly.offline").get_plotlyjs()
    except ImportError:
        raise ConfigError("a report needs the package plotly, which is not installed; pip install plotly") from None


def _parts(
    run: Run, model: Potential | None, data: str | Path | None, console: Console
) -> tuple[list[Part], str | None]:
    """The structures to look at, or why there are none."""
    if model is None:
        return [], "The run has no model yet."
    if data is not None:
        return [from_file(Path(data), model, console)], None
    try:
        return held_out(run, console), None
    except (LrpotError, OSError) as error:
        problem = (
            f"Predictions could not be computed anew. {error}. Give the command where the fit was run, or name "
            "labelled structures with --data."
        )
        console.warn(problem)
        return [], problem


def _compare(model: Potential, part: Part, console: Console) -> Comparison:
    with console.progress(f"predicting {part.name}", len(part.structures), "structures") as update:
        return compare(model, part, update)


def _test_by_stage(run: Run, parts: list[Part], device: str, console: Console) -> dict[int, dict[str, Any]]:
    """Errors on the test structures after each stage; nothing without any."""
    structures = next((part.structures for part in parts if part.name == "test"), None)
    if structures is None:
        return {}
    errors = {}
    with console.progress("test errors", len(run.models), "stages") as update:
        for number, file in run.models.items():
            errors[number] = evaluate_structures(load(file, device=device), structures).errors()
            update(number + 1)
    return errors


def _page(
    run: Run,
    model: Potential | None,
    comparisons: list[Comparison],
    test: Mapping[int, Mapping[str, Any]],
    problem: str | None,
    plotly: str,
) -> str:
    content = Content()
    warnings = [*([problem] if problem else []), *run.warnings]
    body = {
        "summary": ("Summary", _summary(run, comparisons, test, warnings)),
        "predictions": ("Predictions", _each(comparisons, content, sections.predictions)),
        "course": ("Learning curves", sections.course(run, content)),
        "groups": ("Errors by element, size and composition", _each(comparisons, content, sections.errors_by)),
        "worst": ("Worst structures", _each(comparisons, content, sections.worst_structures)),
        "long-range": (
            "Long range",
            ("" if model is None else sections.long_range(run, model, content))
            + _each(comparisons, content, sections.charges),
        ),
        "record": ("Record", record(run, model)),
    }
    shown = {name: part for name, part in body.items() if part[1]}
    style, own = _resource("report.css"), _resource("report.js")
    values = {
        "figures": {name: {"data": drawn.data, "layout": drawn.layout} for name, drawn in content.figures.items()},
        "views": content.views,
        "elements": elements_of(list(content.views.values())),
    }
    return Template(_resource("report.html")).substitute(
        policy=f"default-src 'none'; script-src {script_hash(plotly)} {script_hash(own)}; "
        "style-src 'unsafe-inline'; img-src data: blob:; form-action 'none'; base-uri 'none'",
        title=markup.text(f"lrpot report: {run.path}"),
        heading=markup.text(run.path.resolve().name),
        about=markup.text(
            f"{run.path}, {run.state}. Written by lrpot {__version__}, "
            f"{datetime.now(UTC).isoformat(sep=' ', timespec='minutes')[:16]} UTC."
        ),
        contents="".join(f'<li><a href="#{name}">{markup.text(title)}</a></li>' for name, (title, _) in shown.items()),
        parts=_tabs(comparisons),
        body="".join(
            f'<section id="{name}"><h2>{markup.text(title)}</h2>{inner}</section>'
            for name, (title, inner) in shown.items()
        ),
        style=style,
        plotly=plotly,
        data=as_script_data(values),
        script=own,
    )


def _resource(name: str) -> str:
    return resources.files("lrpot.report").joinpath(name).read_text(encoding="utf-8")


def _tabs(comparisons: list[Comparison]) -> str:
    """What chooses the structures that all sections show."""
    if len(comparisons) < 2:
        return ""
    buttons = "".join(
        f'<button type="button" role="tab" aria-selected="{"true" if place == 0 else "false"}" '
        f'data-part="{place}">{markup.text(_called(one))}</button>'
        for place, one in enumerate(comparisons)
    )
    return f'<div class="parts" role="tablist" aria-label="Structures shown">{buttons}</div>'


def _called(comparison: Comparison) -> str:
    return f"{comparison.part.name} ({len(comparison.atoms):,} structures)"


def _each(comparisons: list[Comparison], content: Content, section: Section) -> str:
    """A section for each part; one is shown at a time."""
    found = [section(comparison, content, str(place)) for place, comparison in enumerate(comparisons)]
    return "".join(_panel(place, inner) for place, inner in enumerate(found) if inner)


def _panel(place: int, inner: str) -> str:
    return f'<div class="panel" data-part="{place}"{"" if place == 0 else " hidden"}>{inner}</div>'


def _summary(
    run: Run, comparisons: list[Comparison], test: Mapping[int, Mapping[str, Any]], warnings: list[str]
) -> str:
    cards = "".join(
        _panel(
            place,
            paragraph(
                f"Errors of the {'final' if run.finished else 'newest'} model on {len(one.atoms):,} structures "
                f"({len(one.numbers):,} atoms) {one.part.described}:"
            )
            + sections.headline(one)
            + sections.network_alone(run, one),
        )
        for place, one in enumerate(comparisons)
    )
    told = f'<div class="warnings" role="note"><h3>Please note</h3>{markup.bullets(warnings)}</div>' if warnings else ""
    stages = (
        "<h3>Mean absolute errors after each stage</h3>" + sections.stage_table(run, test)
        if run.stages
        else paragraph("No stage is finished yet.")
    )
    return told + cards + stages
