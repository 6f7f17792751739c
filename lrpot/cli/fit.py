"""`lrpot fit`: labelled structures -> a run directory with a model."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from lrpot.cli.options import (
    Classes,
    ConfigFile,
    DiffractionUse,
    DType,
    Encoder,
    FitSeed,
    HeadKind,
    Overwrite,
    Resume,
    Settings,
    Targets,
    property_settings,
)


class Kernel(StrEnum):
    coulomb = "coulomb"
    free = "free"
    none = "none"


class Charges(StrEnum):
    embedding = "embedding"
    environment = "environment"
    equilibration = "equilibration"


class Schedule(StrEnum):
    auto = "auto"
    published = "published"
    physical_start = "physical-start"
    physics_first = "physics-first"
    long_range_only = "long-range-only"


def fit(
    data: Annotated[
        Path | None,
        typer.Argument(
            help="Labelled structures in any format that ASE reads (energy eV, forces eV/A, stress eV/A^3): a file, "
            "or a pattern in quotes. Of properties also id_prop.csv beside CIFs, or JSON of MatBench, JARVIS-DFT, "
            "Materials Project."
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Directory of the run.")] = Path("runs/fit"),
    from_model: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="Model file to fine-tune: its weights and settings of the model are taken over.",
            show_default="none",
        ),
    ] = None,
    new_elements: Annotated[
        bool, typer.Option("--new-elements", help="With --from: add elements that the model does not know.")
    ] = False,
    config: ConfigFile = None,
    stages: Annotated[
        int | None,
        typer.Option("--stages", help="1: all at once; 3: one after the other.", show_default="3; 1 with --from"),
    ] = None,
    schedule: Annotated[
        Schedule | None, typer.Option("--schedule", help="What each stage sees.", show_default="auto")
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option("--backbone", help="Short-range network: painn, dimenet++ or equivariant.", show_default="painn"),
    ] = None,
    charges: Annotated[
        Charges | None,
        typer.Option(
            "--charges",
            help="By element; that plus a network of the surroundings; or equilibrated at the total charge.",
            show_default="embedding",
        ),
    ] = None,
    kernel: Annotated[
        Kernel | None,
        typer.Option("--kernel", help="Long-range kernel; none: the network alone.", show_default="coulomb"),
    ] = None,
    encoder: Annotated[
        Encoder | None,
        typer.Option("--encoder", help="Fit properties of crystals, not a potential, by this.", show_default="none"),
    ] = None,
    target: Targets = None,
    classification: Classes = None,
    head: HeadKind = None,
    diffraction: DiffractionUse = None,
    valid: Annotated[Path | None, typer.Option("--valid", help="Validation file.", show_default="10 % of DATA")] = None,
    test: Annotated[Path | None, typer.Option("--test", help="Test file.", show_default="10 % of DATA")] = None,
    set_: Settings = None,
    ensemble: Annotated[
        int | None,
        typer.Option(
            "--ensemble", help="Models to fit; two or more give uncertainties, four are usual.", show_default="1"
        ),
    ] = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    skip_bad_rows: Annotated[
        bool, typer.Option("--skip-bad-rows", help="Leave out rows that cannot be used, and say which.")
    ] = False,
    device: Annotated[
        str | None, typer.Option("--device", help="Where to compute: cpu, cuda, cuda:1, ...", show_default="cpu")
    ] = None,
    devices: Annotated[
        int | None,
        typer.Option(
            "--devices", help="Processes of each machine that share every step; on cuda, GPUs.", show_default="1"
        ),
    ] = None,
    nodes: Annotated[
        int | None,
        typer.Option("--nodes", help="Machines; more than one needs torchrun or srun.", show_default="1"),
    ] = None,
    dtype: Annotated[
        DType | None, typer.Option("--dtype", help="Precision of the network in training.", show_default="float32")
    ] = None,
    seed: FitSeed = None,
) -> None:
    """Fit a potential in three stages: real space, reciprocal space, both. With --from: fine-tune a model. With
    --encoder: fit properties of crystals.

    The defaults shown hold where neither --config nor --set says otherwise; `training.max_epochs` counts per stage.
    The run leaves model.pt, config.yaml, record.json, metrics.csv, fit.log (all that was told), results.json and
    pictures; of properties also test.csv, the predictions beside the labels.
    With --ensemble it has such a run of each model in member-1, member-2, ..., and model.pt holds them all; each may be
    fitted by itself too, on another machine: lrpot fit --resume --out RUN/member-2.
    All settings and what they mean: lrpot config show.
    """
    from lrpot.config import parse_settings
    from lrpot.training.fit import fit as run

    settings: dict[str, Any] = {
        "task": "property" if encoder is not None else None,
        **property_settings(encoder, target, classification, head, diffraction),
        "training.stages": stages,
        "training.finetune.new_elements": new_elements or None,
        "training.schedule": schedule and schedule.value,
        "model.backbone.name": backbone,
        "model.charges.kind": charges and charges.value,
        "model.kernel.form": kernel and kernel.value,
        "data.valid": valid and str(valid),
        "data.test": test and str(test),
        "data.skip_bad_rows": skip_bad_rows or None,
        "training.device": device,
        "training.devices": devices,
        "training.nodes": nodes,
        "training.dtype": dtype and dtype.value,
        "training.seed": seed,
        "training.ensemble": ensemble,
    }
    settings = {name: value for name, value in settings.items() if value is not None}
    settings |= parse_settings(set_ or [])
    run(data, out=out, from_model=from_model, config=config, settings=settings, resume=resume, overwrite=overwrite)
