"""`lrpot config`: what can be set, and whether a settings file is right."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Show all settings, check a settings file.", no_args_is_help=True)


@app.command("show")
def show(
    name: Annotated[
        str | None,
        typer.Argument(help="A section or a setting, such as training, kernel or training.lr.", show_default="all"),
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="YAML file with settings.", show_default="none")
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option("--backbone", help="Short-range network: painn, dimenet++ or equivariant.", show_default="painn"),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE ...", help="Any setting.", show_default="none")
    ] = None,
) -> None:
    """Print settings: value, unit and meaning of each.

    What it prints is a settings file: `lrpot config show > my.yaml`, change it, then `lrpot fit --config my.yaml`.
    """
    from lrpot.config import commented_yaml, make_config, parse_settings

    settings = {} if backbone is None else {"model.backbone.name": backbone}
    resolved = make_config(config, settings | parse_settings(set_ or []))
    print(commented_yaml(resolved, name), end="")  # to the letter, for it is read back


@app.command("check")
def check(file: Annotated[Path, typer.Argument(help="YAML file with settings.")]) -> None:
    """Check a settings file: "ok" and what it changes, or a line for every problem and exit code 1."""
    from lrpot.config import changes, check_config, one_line
    from lrpot.console import Console

    console = Console()
    config, problems, idle = check_config(file)
    for problem in problems:
        console.line(f"{file}:{problem.line}: {problem.text}" if problem.line else f"{file}: {problem.text}")
    if config is None:
        raise typer.Exit(1)
    for line in idle:
        console.warn(f"{file}: {line}")
    changed = changes(config)
    console.line(f"{file}: ok; changed from the defaults:{'' if changed else ' nothing'}")
    for name, (value, default) in changed.items():
        console.line(f"  {name} = {one_line(value)} (default {one_line(default)})")
