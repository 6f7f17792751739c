"""Every setting of a fit, with its unit, default and meaning; YAML in, YAML out."""

from __future__ import annotations

import contextlib
import difflib
import reprlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from lrpot.errors import ConfigError


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_assignment=True, allow_inf_nan=False)


class PaiNNConfig(_Section):
    """PaiNN, the polarizable interaction network."""

    name: Literal["painn"] = Field("painn", description="Which network.")
    features: int = Field(64, ge=1, description="Width: features per atom.")
    interactions: int = Field(3, ge=1, description="Message-passing steps.")
    radial_basis: int = Field(20, ge=2, description="Gaussians in the distance.")
    cutoff: float = Field(5.0, gt=0, description="Reach of an edge, A.")
    cutoff_function: Literal["smooth", "cosine"] = Field(
        "smooth", description="smooth: two continuous derivatives; cosine: one (SchNetPack's)."
    )


class DimeNetPlusPlusConfig(_Section):
    """DimeNet++, directional message passing over triplets."""

    name: Literal["dimenet++"] = Field("dimenet++", description="Which network.")
    features: int = Field(128, ge=1, description="Width: features per atom and per edge.")
    interactions: int = Field(4, ge=1, description="Message-passing steps.")
    triplet_features: int = Field(64, ge=1, description="Width in which messages meet, at an angle.")
    basis_features: int = Field(8, ge=1, description="Width in which the bases are embedded.")
    output_features: int = Field(256, ge=1, description="Width of the output blocks.")
    radial_basis: int = Field(6, ge=1, le=64, description="Bessel functions in the distance, for each order l.")
    spherical_basis: int = Field(7, ge=2, le=16, description="Orders l of Legendre polynomials in the angle.")
    envelope_exponent: int = Field(
        5, ge=2, le=32, description="How long the envelope stays near one; any value gives two continuous derivatives."
    )
    cutoff: float = Field(5.0, gt=0, description="Reach of an edge, A.")


class EquivariantConfig(_Section):
    """An E(3)-equivariant network of tensor products (NequIP's kind)."""

    name: Literal["equivariant"] = Field("equivariant", description="Which network.")
    features: int = Field(32, ge=1, description="Width: features of every order l and parity.")
    lmax: int = Field(1, ge=0, le=4, description="Highest order l of features and spherical harmonics.")
    interactions: int = Field(3, ge=1, description="Message-passing steps.")
    radial_basis: int = Field(8, ge=1, description="Bessel functions in the distance.")
    radial_hidden: int = Field(64, ge=1, description="Width of the network that makes the radial weights.")
    tensors: bool = Field(False, description="Keep vectors and tensors of the last step; energies need scalars only.")
    cutoff: float = Field(5.0, gt=0, description="Reach of an edge, A.")


_REGISTERED = "(registered)"

# Sections of the backbones that `lrpot.backbones.register` made known in this process, by name.
REGISTERED_BACKBONES: dict[str, type[BaseModel]] = {}


class RegisteredConfig(_Section):
    """A backbone of the user's own; its settings are the arguments of its class."""

    model_config = ConfigDict(extra="allow")

    name: str = Field(_REGISTERED, description="Which network.")
    cutoff: float = Field(gt=0, description="Reach of an edge, A.")

    @model_validator(mode="before")
    @classmethod
    def _as_registered(cls, values: Any) -> Any:
        """Checked against the arguments of the class, and with its defaults, so that a file records them."""
        name = values.get("name")
        if name not in REGISTERED_BACKBONES:
            raise ValueError(f"no backbone {name!r} is registered; call lrpot.backbones.register first")
        section = REGISTERED_BACKBONES[name]
        try:
            return section.model_validate(values).model_dump()
        except ValidationError as error:
            problem = error.errors()[0]
            setting = ".".join(map(str, problem["loc"]))
            known = ", ".join(section.model_fields)
            raise ValueError(f"{setting}: {problem['msg']}; settings of {name} are {known}") from None


def _backbone_name(section: Any) -> Any:
    """Which of the networks a section describes; without a name it is PaiNN's."""
    name = section.get("name", "painn") if isinstance(section, Mapping) else getattr(section, "name", None)
    return _REGISTERED if isinstance(name, str) and name in REGISTERED_BACKBONES else name


BackboneConfig = Annotated[
    Annotated[PaiNNConfig, Tag("painn")]
    | Annotated[DimeNetPlusPlusConfig, Tag("dimenet++")]
    | Annotated[EquivariantConfig, Tag("equivariant")]
    | Annotated[RegisteredConfig, Tag(_REGISTERED)],
    Discriminator(_backbone_name),
]


# A; shorter pair splines miss the nearest neighbours, longer ones imitate the Coulomb field.
PAIR_CUTOFF_RANGE = (2.0, 10.0)

# A file of charges is told from a misspelt word by its ending.
ChargeFile = Annotated[str, Field(pattern=r"\.ya?ml$")]


# A file of row numbers is told from a misspelt word by its ending.
RowFile = Annotated[str, Field(pattern=r"\.json$")]

# One file or pattern, or several.
Files = Annotated[str, Field(min_length=1)] | Annotated[list[str], Field(min_length=1)]


class ChargesConfig(_Section):
    """The charges of the long-range part."""

    kind: Literal["embedding", "environment", "equilibration"] = Field(
        "embedding",
        description="embedding: one learned charge per element; environment: that plus a network of the backbone's "
        "features; equilibration: electronegativities from the same, charges from the lowest energy at the total "
        "charge.",
    )
    channels: int = Field(
        1, ge=1, description="Charges per atom; the first is the charge, others are what training makes of them."
    )
    hidden: int = Field(32, ge=1, description="Width of the network that reads the backbone's features.")
    init: Literal["prefit", "born", "oxidation", "zero"] | ChargeFile | dict[str, float] = Field(
        "prefit",
        description="Where charges start: prefit (linear fit of forces before any network; needs kernel coulomb), "
        "a file ending in .yaml that lrpot charges wrote, born (Born charges over the square root of the dielectric "
        "constant), oxidation (oxidation states times one screening factor), zero, or a table {Na: 1.0, Cl: -1.0}, e.",
    )
    born: str | None = Field(
        None, description="File of Born charges and dielectric constant for init born; without one, labels in the data."
    )
    pair_cutoff: Annotated[float, Field(ge=PAIR_CUTOFF_RANGE[0], le=PAIR_CUTOFF_RANGE[1])] | Literal["auto"] = Field(
        "auto", description="Reach of the prefit's pair splines, A; auto: where the charges are determined best."
    )
    sum_molecules: bool = Field(
        True, description="The prefit sums forces over bonded molecules, whose inner forces would drown the rest."
    )
    neutrality: Literal["background", "shift"] = Field(
        "background", description="background: charges kept, uniform background; shift: mean taken off (published)."
    )


class KernelConfig(_Section):
    """The learned kernel Phi(|k|) of E_long = 1/V sum_k Phi |S|^2."""

    form: Literal["coulomb", "free", "none"] = Field(
        "coulomb",
        description="coulomb: Gaussian Coulomb times (1 + FCN); free: FCN alone (published); none: no long range.",
    )
    k_cutoff: float | Literal["auto"] = Field(
        "auto", description="Largest |k|, 1/A; auto: what `tolerance` needs at the backbone's cutoff."
    )
    tolerance: float = Field(
        1e-6,
        gt=0,
        le=1e-4,
        description="What the two halves of the Coulomb sum may leave out, relative; for k_cutoff auto.",
    )
    engine: Literal["auto", "separable", "nufft", "dense"] = Field(
        "auto",
        description="How the sum is computed: auto (exact for training and small cells, nufft for large ones), "
        "separable (exact), nufft, dense (the plain sum, slow).",
    )
    engine_tolerance: float = Field(
        1e-5, gt=0, lt=1, description="Relative error of long-range forces that engine nufft may make."
    )
    envelope: float = Field(
        0.9, ge=0, le=1, description="Fraction of a cutoff at which its taper begins; 1: no envelope in k (published)."
    )
    complement: Literal["coulomb", "none"] = Field(
        "coulomb", description="coulomb: the real-space half of the Coulomb sum is added; none: it is not (published)."
    )
    basis: int = Field(16, ge=1, description="Cosines in |k| that the FCN reads.")
    hidden: int = Field(32, ge=1, description="Width of the FCN.")
    layers: int = Field(2, ge=0, description="Residual layers of the FCN.")


class ModelConfig(_Section):
    """What the potential consists of."""

    backbone: BackboneConfig = Field(PaiNNConfig(), description="The short-range network.")
    charges: ChargesConfig = Field(ChargesConfig(), description="The charges of the long-range part.")
    kernel: KernelConfig = Field(KernelConfig(), description="The learned kernel.")

    @model_validator(mode="after")
    def _charges_are_used(self) -> ModelConfig:
        if self.kernel.form == "none" and self.charges.kind != "embedding":
            raise ValueError(
                f"charges.kind {self.charges.kind} needs a long-range part, but kernel.form is none; choose coulomb"
            )
        return self


class DataConfig(_Section):
    """Where the structures come from and how they are divided."""

    train: Files | None = Field(
        None,
        description="Labelled structures: a file in any format that ASE reads, HDF5 shards, a pattern such as "
        "shards/*.h5, or a list of these.",
    )
    valid: Files | None = Field(None, description="Validation files; without one, a part of `train` is held back.")
    test: Files | None = Field(None, description="Test files, used only for the final table.")
    valid_fraction: float = Field(0.1, gt=0, lt=1, description="Part of `train` held back for validation.")
    test_fraction: float = Field(0.1, ge=0, lt=1, description="Part of `train` held back for testing.")
    split: Literal["random", "formula"] | RowFile = Field(
        "random",
        description="random: rows are drawn; formula: rows of one reduced formula stay together; or a .json file of "
        "rows by part, {train: [...], valid: [...], test: [...]}, such as split.json of another run. Rows count from 0 "
        "and through all files.",
    )
    folds: int | None = Field(
        None, ge=2, description="Cross-validation: what is not held back for testing is cut into so many parts."
    )
    fold: int = Field(0, ge=0, description="The part that validates, counted from 0; the others train.")
    skip_bad_rows: bool = Field(False, description="Leave out rows that cannot be used, and count them.")
    cache: str = Field(
        "auto",
        min_length=1,
        description="Where graphs are kept for other runs: a folder; off: nowhere; auto: those of files above 64 MB in "
        "the folder LRPOT_CACHE of the environment, or ~/.cache/lrpot.",
    )
    jobs: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto", description="Processes that build the graphs of a file; auto: one for each core if it is above 64 MB."
    )

    @model_validator(mode="after")
    def _some_left(self) -> DataConfig:
        if self.valid_fraction + self.test_fraction >= 1.0:
            raise ValueError("valid_fraction + test_fraction leave nothing to train on; lower them")
        if self.folds is None and self.fold:
            raise ValueError(f"fold = {self.fold} needs folds; set data.folds, such as 5")
        if self.folds is not None and self.fold >= self.folds:
            raise ValueError(f"fold = {self.fold} is none of {self.folds} folds; they count from 0")
        if self.folds is not None and self.valid is not None:
            raise ValueError("folds make their own validation part, but valid names a file; leave one of them out")
        if self.folds is not None and self.split.endswith(".json"):
            raise ValueError("split lists the rows of every part, so there are no folds; leave one of them out")
        return self


class TrainingConfig(_Section):
    """How the model is fitted."""

    stages: Literal[1, 3] = Field(
        3, description="3: real space, then reciprocal space with the real part frozen, then both; 1: all at once."
    )
    schedule: Literal["auto", "published", "physical-start", "physics-first"] = Field(
        "auto",
        description="What the stages see: published (stage 1 has no long range), physical-start (stage 1 has it, "
        "frozen), physics-first (charges and kernel before the network); auto: physical-start for coulomb, else "
        "published.",
    )
    max_epochs: int = Field(100, ge=1, description="Epochs of each stage, at most.")
    batch_size: int = Field(4, ge=1, description="Structures per step, at most.")
    max_edges: int | None = Field(
        None, ge=1, description="Edges per step, at most; structures of similar size then share a step."
    )
    max_atoms: int | None = Field(None, ge=1, description="Atoms per step, at most; likewise.")
    lr: float = Field(5e-3, gt=0, description="Learning rate of Adam for the network.")
    lr_long: float | Literal["auto"] = Field(
        "auto", description="Learning rate for charges and kernel; auto: lr times (residual / long-range forces)."
    )
    lr_schedule: Literal["cosine", "plateau"] = Field(
        "cosine",
        description="cosine: the learning rate falls to a hundredth over max_epochs; plateau: it is halved whenever "
        "the validation loss has not improved for lr_patience epochs.",
    )
    lr_patience: int = Field(8, ge=1, description="Epochs without improvement before the learning rate is halved.")
    warmup_epochs: float = Field(1.0, ge=0, description="Epochs over which the learning rate rises from zero.")
    patience: int = Field(30, ge=1, description="Epochs without improvement that end a stage.")
    min_improvement: float = Field(1e-3, ge=0, lt=1, description="What counts as improvement, relative.")
    energy_weight: float = Field(1.0, ge=0, description="Weight of the energy per atom in the loss.")
    force_weight: float = Field(1.0, ge=0, description="Weight of the forces in the loss.")
    stress_weight: float = Field(0.1, ge=0, description="Weight of the stress in the loss, where it is labelled.")
    charge_weight: float = Field(0.0, ge=0, description="Weight of the charges in the loss, where they are labelled.")
    dipole_weight: float = Field(
        0.0, ge=0, description="Weight of the dipole in the loss, of neutral molecules and slabs that are labelled."
    )
    born_weight: float = Field(
        0.0,
        ge=0,
        description="Weight of the Born charges in the loss, where they are labelled. With environment charges a step "
        "on crystals takes as many backward passes as the largest of them has atoms.",
    )
    total_charge_weight: float = Field(
        0.0,
        ge=0,
        description="Weight in the loss of what the charges add up to beside the total charge; for molecules and ions "
        "in vacuum, whose charges no medium screens.",
    )
    gradient_clip: float = Field(10.0, gt=0, description="Largest norm of the gradient of the loss.")
    dtype: Literal["float32", "float64"] = Field("float32", description="Precision of the network in training.")
    device: str = Field("cpu", description="cpu, cuda, cuda:1, ...")
    seed: int = Field(0, ge=0, description="Seed of weights, split and order.")


# The weight of each label of the charges, by the name of the label.
CHARGE_WEIGHTS = {"charges": "charge_weight", "dipole": "dipole_weight", "born_charges": "born_weight"}


class FitConfig(_Section):
    """All settings of `lrpot fit`."""

    data: DataConfig = Field(DataConfig(), description="The structures.")
    model: ModelConfig = Field(ModelConfig(), description="The potential.")
    training: TrainingConfig = Field(TrainingConfig(), description="The fit.")

    @model_validator(mode="after")
    def _schedule(self) -> FitConfig:
        form, schedule = self.model.kernel.form, self.training.schedule
        if schedule == "physics-first" and form == "none":
            raise ValueError("schedule physics-first needs a long-range part, but kernel.form is none; choose coulomb")
        return self

    @model_validator(mode="after")
    def _labels_have_charges(self) -> FitConfig:
        weights = [
            name for name in (*CHARGE_WEIGHTS.values(), "total_charge_weight") if getattr(self.training, name) > 0
        ]
        if weights and self.model.kernel.form == "none":
            raise ValueError(f"training.{weights[0]} needs charges, but kernel.form is none; choose coulomb")
        return self

    @property
    def schedule(self) -> str:
        """The schedule, with "auto" decided."""
        if self.training.schedule != "auto":
            return self.training.schedule
        return "physical-start" if self.model.kernel.form == "coulomb" else "published"

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def make_config(
    source: str | Path | Mapping[str, Any] | FitConfig | None = None, settings: Mapping[str, Any] | None = None
) -> FitConfig:
    """A checked configuration.

    Args:
        source: a YAML file, nested settings, or a configuration; None for the defaults.
        settings: settings by dotted name, e.g. {"training.lr": 1e-3}; they win over `source`.
    Raises:
        ConfigError: a file that is not YAML, a name that does not exist (the nearest right one is named), or a value
            that is not possible.
    """
    where = "config"
    if isinstance(source, (str, Path)):
        where = str(source)
        values = _read_yaml(Path(source))
    elif isinstance(source, FitConfig):
        values = source.model_dump(mode="json")
    else:
        values = _nested_copy(source or {})
    for name, value in (settings or {}).items():
        _set(values, name, value)
    try:
        return FitConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_explain(error)}") from error


def parse_settings(words: Iterable[str]) -> dict[str, Any]:
    """`["training.lr=1e-3", "data.skip_bad_rows=true"]` -> settings by dotted name; values are read as YAML.

    Raises:
        ConfigError: a word without "=".
    """
    settings: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name:
            raise ConfigError(f"--set {word}: expected name=value, such as training.lr=1e-3")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {word}: the value cannot be read; quote it") from error
        # YAML 1.1 reads 1e-3 as a string
        if isinstance(value, str):
            with contextlib.suppress(ValueError):
                value = float(value)
        settings[name] = value
    return settings


def field_names(section: type[BaseModel] = FitConfig, prefix: str = "") -> list[str]:
    """The dotted names of all settings."""
    names: dict[str, None] = {}  # a set that keeps the order
    for name, field in section.model_fields.items():
        sections = _sections(field.annotation)
        for kind in sections:
            names |= dict.fromkeys(field_names(kind, f"{prefix}{name}."))
            for own in REGISTERED_BACKBONES.values() if kind is RegisteredConfig else ():
                names |= dict.fromkeys(field_names(own, f"{prefix}{name}."))
        if not sections:
            names[prefix + name] = None
    return list(names)


def _sections(kind: Any) -> list[type[BaseModel]]:
    """The sections that a field of this type may hold: itself, or those of a union."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return [kind]
    return [section for part in get_args(kind) for section in _sections(part)]


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as text; give a YAML file") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not valid YAML: {' '.join(str(error).split())[:200]}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected sections data, model, training; found {type(values).__name__}")
    return values


def _set(values: dict[str, Any], dotted: str, value: Any) -> None:
    known = field_names()
    if dotted not in known and not any(dotted.startswith(f"{name}.") for name in ("model.charges.init",)):
        near = difflib.get_close_matches(dotted, known, n=1, cutoff=0.5)
        last = dotted.rsplit(".", 1)[-1]
        same = [name for name in known if name.rsplit(".", 1)[-1] == last]
        hint = (same or near or ["one of those in the config.yaml of a run"])[0]
        raise ConfigError(f"setting {dotted} does not exist; did you mean {hint}?")
    *path, last = dotted.split(".")
    section = values
    for name in path:
        section = section.setdefault(name, {})
        if not isinstance(section, dict):
            raise ConfigError(f"setting {dotted}: {name} is not a section")
    section[last] = value


def _nested_copy(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _nested_copy(v) if isinstance(v, Mapping) else v for name, v in values.items()}


def _explain(error: ValidationError) -> str:
    problem = error.errors()[0]
    section, place = locate(problem["loc"])
    name = ".".join(place)
    if problem["type"] == "union_tag_invalid":
        own = "a backbone of your own after lrpot.backbones.register"
        known = problem["ctx"]["expected_tags"].replace(f"'{_REGISTERED}'", own)
        return f"{name}.name = {problem['ctx']['tag']!r}: choose one of {known}"
    if problem["type"] == "union_tag_not_found":
        return f"{name} = {reprlib.repr(problem['input'])}: expected a section, such as {{name: painn, cutoff: 5.0}}"
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(place[-1], section.model_fields, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(section.model_fields)}"
        return f"setting {name} does not exist; {hint}"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{name} = {reprlib.repr(problem['input'])}: {message}" if name else message


def locate(path: tuple[int | str, ...], section: type[BaseModel] = FitConfig) -> tuple[type[BaseModel], list[str]]:
    """Where pydantic found an error: the section, and the name without the tag or type chosen of a union.

    Args:
        path: the `loc` of an error. section: what was validated.
    """
    choices: list[type[BaseModel]] = []
    place: list[str] = []
    for part in map(str, path):
        chosen = [kind for kind in choices if len(choices) > 1 and kind.model_fields["name"].default == part]
        if chosen:
            section, choices = chosen[0], []
            continue
        if part in ("str", "int") or part.startswith(("literal[", "float", "dict[", "list[", "constrained-")):
            continue
        place.append(part)
        field = section.model_fields.get(part)
        choices = _sections(field.annotation) if field else []
        if len(choices) == 1:
            section = choices[0]
    return section, place
