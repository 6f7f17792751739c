"""`lrpot`: gathers the commands and turns every end of a command into an exit code.

0 done; 1 something the user can mend, told in one line; 2 wrong usage; 130 Ctrl-C.
"""

from __future__ import annotations

import sys
import traceback
import warnings
from collections.abc import Sequence

import typer

from lrpot import __version__
from lrpot.cli import (
    benchmark,
    charges,
    config,
    convert,
    cv,
    data,
    elastic,
    ensemble,
    eos,
    evaluate,
    export,
    fit,
    info,
    md,
    models,
    phonons,
    plot,
    predict,
    relax,
    report,
    screen,
)
from lrpot.errors import Interrupted, LrpotError

app = typer.Typer(
    name="lrpot",
    help="Long-range machine-learned interatomic potentials, and properties of crystals, learned in reciprocal space.",
    epilog="Add --debug to any command to see the traceback behind an error.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(data.app, name="data")
app.add_typer(config.app, name="config")
app.command("charges")(charges.charges)
app.command("fit")(fit.fit)
app.command("ensemble")(ensemble.ensemble)
app.command("cv")(cv.cv)
app.command("benchmark")(benchmark.benchmark)
app.command("evaluate")(evaluate.evaluate)
app.command("predict")(predict.predict)
app.command("screen")(screen.screen)
app.command("report")(report.report)
app.command("md")(md.md)
app.command("relax")(relax.relax)
app.command("eos")(eos.eos)
app.command("elastic")(elastic.elastic)
app.command("phonons")(phonons.phonons)
app.command("info")(info.info)
app.command("models")(models.models)
app.add_typer(export.app, name="export")
app.add_typer(convert.app, name="convert")
app.add_typer(plot.app, name="plot")


@app.callback(invoke_without_command=True)
def root(
    version: bool = typer.Option(False, "--version", help="Print the version and stop.", is_eager=True),
) -> None:
    if version:
        print(f"lrpot {__version__}")
        raise typer.Exit


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and leave the process with its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if not debug:
        warnings.simplefilter("ignore")  # other packages' warnings are for developers
    sys.exit(run(words, debug=debug))


def run(words: Sequence[str], *, debug: bool = False) -> int:
    """Run one command; returns its exit code."""
    try:
        app(args=repeat_set(words), prog_name="lrpot")
    except SystemExit as leave:  # typer's own ends: done (0), wrong usage (2), Ctrl-C (130)
        return leave.code if isinstance(leave.code, int) else int(leave.code is not None)
    except Interrupted as error:
        print(f"lrpot: {error}", file=sys.stderr)
        return 130
    except (LrpotError, OSError, MemoryError) as error:
        if debug:
            traceback.print_exc()
        print(f"lrpot: error: {_one_line(error)}", file=sys.stderr)
        return 1
    return 0


def repeat_set(words: Sequence[str]) -> list[str]:
    """`--set a=1 b=2` -> `--set a=1 --set b=2`, since an option of click takes a fixed number of words."""
    out: list[str] = []
    inside = False
    for word in words:
        first = bool(out) and out[-1] == "--set"  # its value, whatever it looks like
        further = inside and not first and "=" in word and not word.startswith("-")
        out += ["--set", word] if further else [word]
        inside = word == "--set" or first or further
    return out


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'a file'}: {error.strerror}; mend that, then run the command again"
    if isinstance(error, MemoryError) and not str(error):
        return "out of memory; give fewer or smaller crystals, or a shorter cutoff"
    text = " ".join(str(error).split()) or type(error).__name__
    # a message may quote a file, and a file may hold the control codes of a terminal
    return "".join(letter if letter.isprintable() else "?" for letter in text)


if __name__ == "__main__":
    main()
