"""The tables of the README and of pages in docs/ from the JSON of the benchmarks; a test compares them.

python benchmarks/readme_tables.py            prints them
python benchmarks/readme_tables.py --write    puts each in the place of the one with the same columns
"""

from __future__ import annotations

import itertools
import json
import re
import statistics
import sys
from pathlib import Path
from typing import Any

from timing import RESULTS


def main() -> None:
    root = Path(__file__).resolve().parents[1]
    for page, found in pages().items():
        lines = (root / page).read_text(encoding="utf-8").splitlines()
        for text in found:
            print(text, end="\n\n")
            new = text.splitlines()
            if "--write" in sys.argv:
                start = lines.index(new[0])
                old = itertools.takewhile(lambda line: line.startswith("|"), lines[start:])
                lines[start : start + len(list(old))] = new
        (root / page).write_text("\n".join(lines) + "\n", encoding="utf-8")


def pages() -> dict[str, list[str]]:
    """Every page that has tables, and these in its order."""
    return {
        "README.md": tables(),
        "docs/scaling.md": scaling_tables(),
        "docs/models.md": [used(read("shipped_models")), simulated(read("shipped_models"))],
        "docs/md.md": [truth(read("md_truth"))],
        "docs/reliability.md": [fuzz_by_kind(read("fuzz"))],
    }


def tables() -> list[str]:
    """In the order of the README."""
    return [
        demo(read("demo")),
        kills(read("kills")),
        fuzz(read("fuzz")),
        *nacl(read("nacl")),
        transfer(read("size_transfer")),
        phonons(read("phonons")),
        defects(read("defects-gan"), "GaN, DFT"),
        defects(read("defects-inp"), "InP with defects, DFT"),
        defects_by_cell(read("defects-inp")),
        defects_left_out(read("defects-inp")),
        defects(read("defects-gan-xtb"), "GaN with defects, xTB"),
        electrolyte(read("electrolyte")),
        dimers(read("charged_dimers")),
        md_steps(read("calculator")),
        md_ratios(read("calculator_shared_epyc")),
        painn(read("painn")),
        training(read("training")),
        others(read("dimenetpp"), read("equivariant")),
        accuracy(read("equivariant_accuracy")),
        charge_models(read("charges")),
        reciprocal(read("kspace")),
        builder(read("nacl_builder")),
        property_models(read("properties-jdft2d")),
        perovskites(read("properties-hoip")),
        sheets(read("properties-jdft2d")),
        several(read("properties-multitask")),
        filters(read("regnet")),
        vacancies(read("properties-defected")),
        encoders(read("property_speed")),
        plain_attention(read("property_speed")),
    ]


def scaling_tables() -> list[str]:
    """In the order of docs/scaling.md."""
    ranks = read("lammps_ranks")
    return [shared_steps(read("scaling")), estimates(read("scaling")), lammps_steps(ranks), lammps_estimates(ranks)]


def read(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())


def demo(result: dict[str, Any]) -> str:
    tests = list(result["test errors"]["network alone"])
    units = [f"{test}, {unit}" for test in tests for unit in ("E (eV/atom)", "F (eV/Å)")]
    rows = [
        (name, *(f"{errors[label]['mae']:.1e}" for errors in row.values() for label in ("energy", "forces")))
        for name, row in result["test errors"].items()
    ]
    ratios = [f"{ratio:,}x" for ratio in result["network alone / stage 3"]]
    return table(("mean absolute error", *units), [*rows, ("network alone / stage 3", *ratios)])


def md_steps(result: dict[str, Any]) -> str:
    rows = []
    for record in result["records"]:
        per_atom = {name: 1e3 * found / record["atoms"] for name, found in record["milliseconds"].items()}
        rows.append(
            (
                f"{record['atoms']:,}, F={record['features']}",
                str(record["threads"]),
                f"{record['milliseconds']['network + long range']:.1f}",
                f"{per_atom['network + long range']:.0f}",
                f"{record['ns/day at 1 fs']:.2f}",
                f"{100.0 * record['long range / step']:.0f} %",
                f"{per_atom['SchNetPack']:.0f}",
                f"{record['SchNetPack / network + long range']:.1f}x",
            )
        )
    columns = ("ms", "µs/atom", "ns/day at 1 fs", "share of long range", "SchNetPack (µs/atom)", "ratio")
    return table(("one MD step, atoms", "threads", *columns), rows)


def md_ratios(result: dict[str, Any]) -> str:
    """SchNetPack's time over ours, by threads."""
    found: dict[int, dict[str, str]] = {}
    for record in result["records"]:
        if record["features"] == 64:
            ratio = record["SchNetPack / network + long range"]
            found.setdefault(record["threads"], {})[f"{record['atoms']:,} atoms"] = f"{ratio:.1f}x"
    rows = [(str(threads), *ratios.values()) for threads, ratios in found.items()]
    return table((f"{result['machine']['processor']}, shared, F=64, threads", *next(iter(found.values()))), rows)


def truth(result: dict[str, Any]) -> str:
    """Numbers with their standard errors; what an ensemble does not have is a dash."""

    def with_error(part: dict[str, float], name: str, error: str, digits: int) -> str:
        return f"{part[name]:.{digits}f} ± {part[error]:.{digits}f}" if error in part else "-"

    rows = []
    for name, part in result["parts"].items():
        if name == "overhead":
            continue
        variance = with_error(part, "variance of E_kin / canonical", "error of that", 2)
        temperature = "-" if variance == "-" else with_error(part, "T (K)", "error of T (K)", 1)
        drift = f"{part['drift (eV/atom/ps)']:.1e}" if "drift (eV/atom/ps)" in part else "-"
        pressure = with_error(part, "p (GPa)", "error of p (GPa)", 3)
        rows.append((name, f"{part['ps']:g}", drift, temperature, variance, pressure))
    columns = ("ps", "drift (eV/atom/ps)", "T (K), bath 300", "variance of E_kin / canonical", "p (GPa), bath 0")
    return table(("ensemble", *columns), rows)


def painn(result: dict[str, Any]) -> str:
    cells: dict[str, list[str]] = {}
    for record in result["records"]:
        if "SchNetPack / lrpot" not in record:
            continue
        mine, theirs = record["us/atom"]["lrpot"], record["us/atom"]["SchNetPack"]
        text = f"{mine:.0f} / {theirs:.0f}: {record['SchNetPack / lrpot']:.1f}x"
        cells.setdefault(record["case"], []).append(text)
    columns = ("PaiNN, µs/atom, lrpot / SchNetPack", *_painn_columns(result))
    return table(columns, [(case, *row) for case, row in cells.items()])


def _painn_columns(result: dict[str, Any]) -> list[str]:
    case = result["records"][0]["case"]
    same = [record for record in result["records"] if record["case"] == case]
    return [f"F={r['features']}, {r['threads']} thread{'s' * (r['threads'] > 1)}" for r in same]


def others(dimenet: dict[str, Any], equivariant: dict[str, Any]) -> str:
    rows = [
        (
            f"DimeNet++, {record['case']}",
            f"{record['milliseconds']['lrpot']:.0f}",
            f"torch_geometric {record['milliseconds']['torch_geometric']:.0f}",
            f"{record['torch_geometric / lrpot']:.1f}x",
        )
        for record in dimenet["records"]
    ]
    for record in equivariant["records"]:
        for peer in ("MACE", "MACE light"):
            mine, theirs = record["milliseconds"]["lmax 1"], record["milliseconds"][peer]
            rows.append(
                (
                    f"equivariant, l <= 1, 8 cells of GaN, training step, {record['dtype'].removeprefix('torch.')}",
                    f"{mine:.0f}",
                    f"{peer} {theirs:.0f}",
                    f"{record['to MACE'][peer] / record['to MACE']['lmax 1']:.1f}x",
                )
            )
    return table(("network", "lrpot (ms)", "peer (ms)", "ratio"), rows)


def accuracy(result: dict[str, Any]) -> str:
    rows = [
        (
            name if name in ("MACE", "MACE light") else f"equivariant, {name}",
            f"{record['weights']:,}",
            f"{1e3 * record['test']['energy']:.1f}",
            f"{1e3 * record['test']['forces']:.1f}",
        )
        for name, record in result["records"].items()
    ]
    columns = (f"GaN, {result['split']['train']} cells, 10 epochs", "weights", "MAE, E (meV/atom)", "MAE, F (meV/Å)")
    return table(columns, rows)


def reciprocal(result: dict[str, Any]) -> str:
    peers = ("dense autograd", "torch-pme P3M", "torch-pme PME", "nvalchemi PME", "FINUFFT")
    rows = []
    for name, case in result["cases"].items():
        found = {record["name"].removesuffix(", batched"): record for record in case["results"]}
        own = found["lrpot auto"]
        row = ["32 x 54" if name == "batch" else f"{case['atoms']:,}"]
        row += [f"{own['milliseconds']:.2g}" if own["milliseconds"] < 10 else f"{own['milliseconds']:.0f}"]
        row += [f"{1e3 * own['milliseconds'] / case['atoms']:.1f}"]
        for peer in peers:
            row.append(_ratio(found.get(peer), own["milliseconds"], result["limit"]))
        rows.append(tuple(row))
    columns = ("E + F of the reciprocal sum, atoms", "lrpot (ms)", "(µs/atom)", *peers)
    return table(columns, rows)


def _ratio(record: dict[str, Any] | None, own: float, limit: float) -> str:
    """How many times slower; a star if it is not as accurate, in brackets a faster setting that nearly is."""
    if record is None:
        return "-"
    ratios = [record["ratio"], *(float(text) / own for text in re.findall(r"([\d.e+]+) ms", record["near"]))]
    texts = [f"{ratio:.{0 if ratio > 10 else 1}f}x" for ratio in ratios]
    return texts[0] + "*" * (record["force error"] > limit) + "".join(f" ({text})" for text in texts[1:])


def builder(result: dict[str, Any]) -> str:
    rows = [
        (str(record["atoms"]), str(record["rows"]), f"{record['structures per second']:.0f}")
        for record in result["records"]
    ]
    return table(("`lrpot data nacl --jobs 2`, atoms", "rows", "structures/s"), rows)


# Mean absolute errors of the energy, eV/atom: Table 2 of Yu et al. 2022, DimeNet++ and 8,000 rows.
YU_TOTAL = {
    "network alone": ("1.05e-3", "4.19e-3", "1.83e-2"),
    "one step": ("9.81e-4", "5.32e-3", "1.87e-2"),
    "three steps": ("5.86e-4", "4.63e-3", "1.33e-2"),
}
YU_RECIPROCAL = {"network alone": "3.18e-4", "reciprocal potential": "1.02e-4"}
BACKBONES = {"painn": "PaiNN", "dimenet++": "DimeNet++", "none": "reciprocal potential"}


def nacl(result: dict[str, Any]) -> list[str]:
    """Errors of total energies and forces; errors of the reciprocal part of the energy."""
    rows: dict[str, list[tuple[str, ...]]] = {
        "total": [
            (f"Yu et al., {name}", "8,000 rows", *itertools.chain(*((error, "-") for error in errors)))
            for name, errors in YU_TOTAL.items()
        ],
        "reciprocal": [(f"Yu et al., {name}", "8,000 rows", error) for name, error in YU_RECIPROCAL.items()],
    }
    of_one_model = itertools.groupby(
        result["records"], lambda r: {name: value for name, value in r["job"].items() if name != "seed"}
    )
    for job, records in ((job, list(found)) for job, found in of_one_model):
        errors = [
            _over_seeds([record["test"][test][label]["mae"] for record in records])
            for test in records[0]["test"]
            for label in ("energy", "forces")
            if label in records[0]["test"][test]
        ]
        width = f"F={job['features']}, " if job["backbone"] != "none" else ""
        work = (
            f"{job['train']:,} rows, {width}3 x {job['epochs']} epochs, {len(records)} seed{'s' * (len(records) > 1)}"
        )
        rows[job["labels"]].append((f"{BACKBONES[job['backbone']]}, {job['model']}", work, *errors))
    tests = ("3x3x3", "6x6x6", "6x6x6, vacancy")
    units = [f"{test}, {unit}" for test in tests for unit in ("E (eV/atom)", "F (eV/Å)")]
    return [
        table(("NaCl, mean absolute error", "fitted to", *units), rows["total"]),
        table(("reciprocal part of the energy, 3x3x3", "fitted to", "E (eV/atom)"), rows["reciprocal"]),
    ]


def _over_seeds(values: list[float]) -> str:
    """Mean and, of several, standard deviation."""
    mean = f"{statistics.mean(values):.1e}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.0e}"


def transfer(result: dict[str, Any]) -> str:
    columns = ["mean absolute error, F (eV/Å)"]
    names = list(dict.fromkeys(name for records in result["records"].values() for name in records))
    rows: dict[str, list[str]] = {name: [] for name in names}
    for crystal, records in result["records"].items():
        columns += [f"{crystal}, 64 atoms", "512 atoms", "charges (e)"]
        for name, row in rows.items():
            record = records[name]
            row += [f"{record[size]['forces']['mae']:.1e}" for size in ("64 atoms", "512 atoms")]
            row.append(", ".join(f"{symbol} {charge:+.2f}" for symbol, charge in record["charges"].items()) or "-")
    return table(tuple(columns), [(name, *row) for name, row in rows.items()])


def phonons(result: dict[str, Any]) -> str:
    columns = (
        "phonons of NaCl (THz)",
        "supercell",
        "Born charges",
        "acoustic, Γ",
        "TO, Γ",
        "LO, Γ",
        "LO - TO",
        "off DFT",
    )
    rows = []
    for found in result["records"]:
        numbers = [f"{found[name]:.2f}" for name in ("TO", "LO", "splitting")]
        off = "-" if found["model"] == "DFT" else f"{found['path_rms']:.3f}"
        rows.append(
            (found["model"], f"{found['atoms']} atoms", found["charges"], f"{found['acoustic']:.4f}", *numbers, off)
        )
    return table(columns, rows)


def electrolyte(result: dict[str, Any]) -> str:
    rows = []
    for name, record in result["records"].items():
        errors = [1e3 * record[label][kind] for label in ("energy", "forces") for kind in ("mae", "rmse")]
        charges = ", ".join(
            f"{symbol} {found['mean']:+.2f}" + (f" ± {found['spread']:.2f}" if found["spread"] >= 0.005 else "")
            for symbol, found in record["charges"].items()
        )
        rows.append((name, *(f"{error:.3g}" for error in errors), charges or "-"))
    columns = ("NaCl in water", "E MAE (meV/atom)", "E RMSE", "F MAE (meV/Å)", "F RMSE", "charges ± spread (e)")
    return table(columns, rows)


def defects(result: dict[str, Any], title: str) -> str:
    rows = []
    for record in result["records"]:
        own = record["test"]
        numbers = [f"{1e3 * own[label][kind]:.3g}" for label in ("energy", "forces") for kind in ("mae", "rmse")]
        trained = (str(record[key]) for key in ("split", "training rows", "epochs"))
        rows.append((record["model"], *trained, *numbers))
    columns = (title, "split", "training rows", "epochs", "E MAE (meV/atom)", "E RMSE", "F MAE (meV/Å)", "F RMSE")
    return table(columns, rows)


def defects_by_cell(result: dict[str, Any]) -> str:
    """MAE of the energies of perfect cells and of those with defects, by size; of rows that were split at random."""
    records = [record for record in result["records"] if record["split"] == "random"]
    kinds = [
        (bool(kind), size) for kind, size in zip(*(records[0]["rows"][k] for k in ("class", "atoms")), strict=True)
    ]
    # sizes of cells with and without a few atoms are one group
    groups = sorted({(defect, round(size, -2)) for defect, size in kinds})
    rows = []
    for defect, about in groups:
        chosen = [n for n, (d, size) in enumerate(kinds) if (d, round(size, -2)) == (defect, about)]
        sizes = [kinds[n][1] for n in chosen]
        name = f"{'with defects' if defect else 'perfect'}, {min(sizes)} to {max(sizes)} atoms"
        errors = [statistics.mean(abs(record["rows"]["energy"][n]) for n in chosen) for record in records]
        rows.append((name, str(len(chosen)), *(f"{1e3 * error:.2f}" for error in errors)))
    return table(("cells of InP, E MAE (meV/atom)", "rows", *(record["model"] for record in records)), rows)


def defects_left_out(result: dict[str, Any]) -> str:
    """Errors of cells with a class of defects, of the network that saw none of it and of the one that saw others."""
    networks = [record for record in result["records"] if record["model"] == "PaiNN"]
    (seen,) = (record for record in networks if record["split"] == "random")
    rows = []
    for record in networks:
        kind = record["split"].removeprefix("without ")
        if record is seen:
            continue
        numbers = [str(record["n"])]
        for own in (record["rows"], seen["rows"]):
            cells = [n for n, name in enumerate(own["class"]) if name == kind]
            energies = [own["energy"][n] * own["atoms"][n] for n in cells]
            forces = sum(own["forces"][n] * own["atoms"][n] for n in cells) / sum(own["atoms"][n] for n in cells)
            numbers += [f"{statistics.median(energies):+.3f}", f"{1e3 * forces:.1f}"]
        rows.append((kind, *numbers))
    columns = ("cells", "E of a cell, median error (eV)", "F MAE (meV/Å)", "E, class trained on", "F, class trained on")
    return table(("InP, a class that no training row has", *columns), rows)


def kills(result: dict[str, Any]) -> str:
    rows = []
    for stage in sorted({record["stage"] for record in result["kills"]}):
        hits = [record for record in result["kills"] if record["stage"] == stage]
        name = f"stage {stage}" if stage else "before stage 1"
        rows.append((name, str(len(hits)), str(sum(record["unfinished file"] for record in hits))))
    same = "equal to the last bit" if result["same weights"] else "different"
    return table(
        ("killed in", "times", "of these, while a checkpoint was written"), [*rows, ("weights at the end", same, "")]
    )


def fuzz(result: dict[str, Any]) -> str:
    """Of all kinds of files together."""
    return table(SPOILED, [_spoiled("of any kind", result["records"])])


def fuzz_by_kind(result: dict[str, Any]) -> str:
    return table(SPOILED, [_spoiled(record["kind"], [record]) for record in result["records"]])


SPOILED = ("spoiled files", "inputs", "refused in one line", "read, and right", "failures")


def _spoiled(name: str, records: list[dict[str, Any]]) -> tuple[str, ...]:
    sums = [sum(record[column] for record in records) for column in ("inputs", "refused", "read")]
    return name, *(f"{n:,}" for n in (*sums, sum(sum(record["failures"].values()) for record in records)))


def training(result: dict[str, Any]) -> str:
    rows = [
        (
            str(record["batch"]),
            *(f"{value:.0f}" for value in record["structures/s"].values()),
            f"{record['lrpot / SchNetPack']:.1f}x",
            f"{100.0 * record['loading / epoch']:.1f} %",
        )
        for record in result["records"]
    ]
    columns = ("training, structures per step", "lrpot (structures/s)", "SchNetPack", "ratio", "loading of data")
    return table(columns, rows)


def dimers(result: dict[str, Any]) -> str:
    labels = list(result["flat line"])
    rows = [("a flat line", *(f"{result['flat line'][label]:.1f}" for label in labels), "-")]
    for name, record in result["records"].items():
        product = f"{record['product']:+.2f}" if record["product"] else "-"
        rows.append((name, *(f"{record['test'][label]:.1f}" for label in labels), product))
    return table(("error of the tail (meV)", *labels, "Q_A Q_B of CC (e²)"), rows)


def charge_models(result: dict[str, Any]) -> str:
    rows = [
        (
            f"{record['atoms']:,}",
            record["dtype"],
            *(f"{value:.0f}" for value in record["milliseconds"].values()),
            *(f"{value:.2f}x" for value in record["ratios"].values()),
        )
        for record in result["records"]
    ]
    first = result["records"][0]
    names = [*(f"{kind} (ms)" for kind in first["milliseconds"]), *(f"{kind} / embedding" for kind in first["ratios"])]
    return table(("E + F by charge model, atoms", "precision", *names), rows)


# `--encoder`: what it is, where it comes from, and its row in the table of errors
PROPERTY_MODELS = {
    "regnet": (
        "messages between neighbours, and after each a filter in reciprocal space",
        "ReGNet, Nie et al. 2025",
        "ReGNet",
    ),
    "crystograph": (
        "attention between neighbours, with angles, and then between all atoms of a crystal",
        "CrysToGraph, Wang et al.",
        "CrysToGraph",
    ),
    "moce": (
        "attention over periodic images with angles, with distances, and over elements alone, mixed by a gate for each "
        "crystal",
        "MoCE, under review in 2025",
        "MoCE",
    ),
    "prdnet": (
        "attention between neighbours, and the diffraction of pseudo-particles by the whole crystal",
        "PRDNet, ICLR 2026",
        "PRDNet",
    ),
    "yu": (
        "PaiNN, DimeNet++ or an equivariant network beside an invariant descriptor of all \\|S(k)\\|²; either alone",
        "[Yu et al. 2022](https://arxiv.org/abs/2211.16684)",
        "PaiNN, 2 steps, 4 A + descriptor",
    ),
    "cgcnn": ("gated convolutions: the plain baseline", "Xie and Grossman 2018", "CGCNN"),
    "statistics": (
        "no graph is learned: elements, density and coordination, and a network or trees (`--head trees`); hard to "
        "beat on a few hundred crystals",
        "-",
        "statistics",
    ),
}


def property_models(jdft2d: dict[str, Any]) -> str:
    errors = {record["model"]: record["mae"] for record in jdft2d["records"]}
    rows = [
        (f"`{encoder}`", what, source, f"{errors[name]:.3g}")
        for encoder, (what, source, name) in PROPERTY_MODELS.items()
    ]
    return table(("`--encoder`", "what it is", "from", "exfoliation (meV/atom)"), rows)


def perovskites(result: dict[str, Any]) -> str:
    rows = [(r["model"], _with_spread(r), f"{r['rmse']:.3f}") for r in result["records"]]
    return table(("1,346 hybrid perovskites, HSE06 gap", "MAE (eV)", "RMSE (eV)"), rows)


def sheets(result: dict[str, Any]) -> str:
    rows = [(r["model"], _with_spread(r), f"{r['rmse']:.0f}") for r in result["records"]]
    return table(("matbench_jdft2d, exfoliation energy", "MAE (meV/atom)", "RMSE (meV/atom)"), rows)


def vacancies(result: dict[str, Any]) -> str:
    rows = [(r["model"], _with_spread(r), f"{r['rmse']:.2f}") for r in result["records"]]
    return table(("510 cells with a vacancy, formation energy", "MAE (eV)", "RMSE (eV)"), rows)


def several(result: dict[str, Any]) -> str:
    found: dict[str, dict[str, str]] = {}
    for record in result["records"]:
        found.setdefault(record["target"], {})[record["model"]] = _with_spread(record)
    heads = next(iter(found.values()))
    rows = [(target, *(own[head] for head in heads)) for target, own in found.items()]
    return table(("two-dimensional crystals", *heads), rows)


def _with_spread(record: dict[str, Any]) -> str:
    return f"{record['mae']:.3g} ± {record['spread']:.2g}"


def filters(result: dict[str, Any]) -> str:
    rows = [
        (
            record["case"],
            f"{record['plain messages / messages']:.2f}x",
            f"{record['plain messages / ReGNet']:.2f}x",
            f"+{record['filters']:.0%}",
        )
        for record in result["records"]
    ]
    columns = ("training step", "messages over plain scatter code", "with filters", "filters add")
    return table(columns, rows)


def encoders(result: dict[str, Any]) -> str:
    alone, trained = result["prediction"], result["memory"]
    steps = {record["model"]: record for record in trained["records"]}
    rows = [
        (
            record["model"],
            f"{record['parameters']:,}",
            f"{record['milliseconds']:.1f}",
            f"{record['over ReGNet']:.2f}x",
            f"{steps[record['model']]['s']:.1f}",
            f"{steps[record['model']]['peak (GB)']:.1f}",
        )
        for record in alone["records"]
    ]
    step = f"step, {trained['cells']} cells of {trained['atoms']} atoms (s)"
    columns = ("encoder", "weights", f"crystal of {alone['atoms']} atoms (ms)", "over ReGNet", step, "memory (GB)")
    return table(columns, rows)


def plain_attention(result: dict[str, Any]) -> str:
    rows = [
        (
            record["case"],
            *(f"{rate:.1f}" for rate in record["crystals/s"].values()),
            f"{record['lrpot / torch_geometric']:.1f}x",
        )
        for record in result["crystograph"]["records"]
    ]
    return table(("training of CrysToGraph", "lrpot (crystals/s)", "torch_geometric", "ratio"), rows)


def shared_steps(result: dict[str, Any]) -> str:
    ms = result["milliseconds"]
    rows = [(name, f"{value:.0f} ms") for name, value in ms.items() if "process" in name]
    rows += [
        ("two processes of one thread are quicker than one by", f"{result['speed-up']:.2f}x"),
        (f"gradients of {result['parameters']:,} parameters", f"{result['bytes of gradients'] / 1e6:.2f} MB"),
        ("their sum over two processes", f"{ms['sum of gradients']:.2f} ms"),
        ("sum of 8 numbers over two processes, five in a step", f"{ms['sum of 8 numbers']:.2f} ms"),
        ("reading a graph from the cache", f"{result['reading (ms)']:.3f} ms"),
        ("putting it into a batch", f"{result['collating (ms)']:.3f} ms"),
        ("load of the machine before", f"{result['load']:.1f}"),
    ]
    return table(("one step of 8 structures", "value"), rows)


def estimates(result: dict[str, Any]) -> str:
    numbers = (
        "hours per epoch",
        "reading (MB/s)",
        "disk (GB)",
        "building (h)",
        "known per process (GB)",
        "memory per process (GB)",
    )
    rows = [
        (
            power_of_ten(record["structures"]),
            str(record["processes"]),
            f"{100.0 * record['sums / step']:.0f} %",
            *(two_digits(record[name]) for name in numbers),
        )
        for record in result["estimates"]
    ]
    columns = ("structures", "processes", "sums", "one epoch (h)", "reading, all (MB/s)", "graphs (GB)")
    return table((*columns, "building them (h)", "known, each (GB)", "index, each (GB)"), rows)


def lammps_steps(result: dict[str, Any]) -> str:
    def milliseconds(step: dict[str, Any], name: str) -> str:
        return f"{step[f'{name} (ms)']:.0f}" if f"{name} (ms)" in step else "-"

    rows = [
        (
            f"{step['atoms']:,}",
            str(step["processes"]),
            *(f"{step[name]:,}" for name in ("own", "seen", "ghosts")),
            *(milliseconds(step, name) for name in ("step", "graph", "long range", "sums", "forces of ghosts")),
            f"{step['summed (MB)']:.2g}",
        )
        for step in result["steps"]
    ]
    parts = ("a step (ms)", "graph (ms)", "long range (ms)", "of it sums (ms)", "forces of ghosts (ms)", "summed (MB)")
    return table(("atoms", "processes", "own", "seen", "LAMMPS's ghosts", *parts), rows)


def lammps_estimates(result: dict[str, Any]) -> str:
    numbers = ("network (s)", "whole mesh (GB)", "whole mesh (s)", "divided mesh (MB)", "divided mesh (s)")
    rows = [
        (
            power_of_ten(record["atoms"]),
            f"{record['processes']:,}",
            record["network"],
            f"{record['own']:,.0f}",
            f"{record['seen / own']:.1f}",
            *(two_digits(record[name]) for name in numbers),
        )
        for record in result["estimates"]
    ]
    return table(("atoms", "processes", "network", "atoms of each", "seen / own", *numbers), rows)


def used(result: dict[str, Any]) -> str:
    rows = []
    for name, found in result["models"].items():
        labels, model = found["labels"], found["model"]
        bands = [list(itertools.chain(*one["phonons"])) for one in (labels, model)]
        errors = [abs(a - b) for a, b in zip(*bands, strict=True)]
        numbers = [
            *((f"{axis} (Å)", labels["lattice"][axis], model["lattice"][axis], 3) for axis in labels["lattice"]),
            ("bulk modulus (GPa)", labels["bulk modulus"], model["bulk modulus"], 1),
            ("highest phonon (THz)", max(bands[0]), max(bands[1]), 2),
            ("lowest phonon (THz)", min(bands[0]), min(bands[1]), 2),
            ("two vacancies, far apart (eV)", labels["vacancies"]["apart"], model["vacancies"]["apart"], 2),
            ("two vacancies, side by side (eV)", labels["vacancies"]["pair"], model["vacancies"]["pair"], 2),
        ]
        rows += [(name, quantity, f"{a:.{digits}f}", f"{b:.{digits}f}") for quantity, a, b, digits in numbers]
        mean, largest = sum(errors) / len(errors), max(errors)
        rows.append((name, "all phonons, mean and largest error (THz)", "-", f"{mean:.3f}, {largest:.2f}"))
    return table(("model", "quantity", "labelling method", "model's"), rows)


def simulated(result: dict[str, Any]) -> str:
    rows = [
        (
            f"{name}, {phase}",
            str(run["atoms"]),
            f"{run['picoseconds']:g}",
            f"{run['bath (K)']:g}",
            f"{run['temperature (K)']:.0f}",
            f"{run['nearest atoms (A)']:.2f}",
            f"{run['first peak of g(r) (A)']:.2f}",
            f"{1e3 * run['forces (eV/A)']['mae']:.1f}" if "forces (eV/A)" in run else "-",
        )
        for name, found in result["models"].items()
        for phase, run in found["dynamics"].items()
    ]
    columns = ("NVT", "atoms", "ps", "bath (K)", "mean (K)", "nearest atoms (Å)", "peak of g(r) (Å)", "F MAE (meV/Å)")
    return table(columns, rows)


def power_of_ten(number: int) -> str:
    return f"10^{len(str(number)) - 1}"


def two_digits(value: float) -> str:
    """Rounded to them, without an exponent."""
    return f"{float(f'{value:.2g}'):,g}"


def table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


if __name__ == "__main__":
    main()
