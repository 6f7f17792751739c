"""The reciprocal sum beside other codes: energy and forces of rattled NaCl, at the same error of the forces.

    python benchmarks/kspace.py [--cases 54,216,batch,1728,4096,13824,110592]

All compute E = 1/V sum_{0<|k|<4/A} Phi(|k|) |S(k)|^2 of Gaussian charges +-1, 1 A wide, in float32, but for a constant
(the self-energy). What depends on the cell alone is prepared outside of the timing where a code lets its caller do so.
Every code gets the fastest of its settings whose forces are wrong by no more than LIMIT (relative, root mean square,
against float64); if there is none, its most accurate, and the table shows how wrong that is. On CPUs nvalchemi's sums
are of Warp, which has one thread there, so that others have one too unless --threads says otherwise.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from ase.build import bulk
from timing import alternate, machine, median_ratio, write
from torch import Tensor

from lrpot.console import Console
from lrpot.errors import LrpotError
from lrpot.kspace import GaussianCoulomb, ReciprocalSum
from lrpot.units import COULOMB_CONSTANT

SIGMA = 1.0  # A
K_CUTOFF = 4.0  # 1/A
LIMIT = 2e-3
NEAR = 1.5  # times LIMIT: a faster setting with at most this error is named below the table
TOLERANCES = (1e-2, 5e-3, 2e-3, 1e-3, 5e-4)

MAX_PLAIN = 4096  # atoms in one cell for which a sum of N x K phases is affordable
MAX_EWALD = 216  # beyond it nvalchemi's Ewald sum takes seconds to minutes a call
MIN_FINUFFT = 1728
MAX_MESH = 1 << 25  # points; beyond it torch-pme's arrays do not fit into 24 GB

# Calls in one sample: codes have thread pools of their own, and one that was just left still spins for a moment.
SAMPLE = 0.02  # s

# energy and forces of positions (N, 3), float32
Run = Callable[[Tensor], tuple[Tensor, Tensor]]
Setting = dict[str, Any]


@dataclass(frozen=True)
class System:
    """Cells of one shape and size with different positions.

    Attributes:
        positions: (G n, 3), A, float64. charges: (n,), e, of one cell. cell: (3, 3), A.
    """

    positions: Tensor
    charges: Tensor
    cell: Tensor

    @property
    def copies(self) -> int:
        return len(self.positions) // len(self.charges)

    @property
    def lengths(self) -> list[float]:
        return torch.linalg.vector_norm(self.cell, dim=1).tolist()

    def parts(self, positions: Tensor) -> tuple[Tensor, ...]:
        return positions.split(len(self.charges))

    def first(self) -> System:
        return System(self.parts(self.positions)[0], self.charges, self.cell)


@dataclass(frozen=True)
class Case:
    repeat: int
    cubic: bool = True
    copies: int = 1

    def system(self) -> System:
        atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=self.cubic).repeat(self.repeat)
        positions = []
        for seed in range(self.copies):
            rattled = atoms.copy()
            rattled.rattle(0.1, seed=seed)
            positions.append(torch.from_numpy(rattled.positions))
        charges = torch.tensor([1.0 if symbol == "Na" else -1.0 for symbol in atoms.symbols], dtype=torch.float64)
        return System(torch.cat(positions), charges, torch.from_numpy(atoms.cell.array))


CASES = {
    "54": Case(3, cubic=False),
    "216": Case(3),
    "batch": Case(3, cubic=False, copies=32),
    "1728": Case(6),
    "4096": Case(8),
    "13824": Case(12),
    "110592": Case(24),
}


@dataclass(frozen=True)
class Peer:
    """A code: which settings to try, and how to make it ready for a system with one of them.

    Attributes:
        build: from a system and a setting; of a batch it gets all cells if `batched`, otherwise a loop is put around.
    """

    name: str
    package: str
    settings: Callable[[System], Iterable[Setting]]
    build: Callable[..., Run]
    largest: float = math.inf
    smallest: int = 0
    batched: bool = False

    def serves(self, system: System) -> bool:
        fits = self.smallest <= len(system.charges) <= self.largest
        return fits and (system.copies > 1 or not self.batched)

    def ready(self, system: System, setting: Setting) -> Run:
        if self.batched or system.copies == 1:
            return self.build(system, **setting)
        return _loop(self.build(system.first(), **setting), system)


@dataclass
class Entry:
    """A code with the setting it was given for one case."""

    name: str
    setting: Setting
    error: float
    seconds: float
    run: Run
    looped: bool = False
    near: str = ""
    scan: list[str] = field(default_factory=list)


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    if arguments.memory:
        print(json.dumps(_own_memory(arguments.memory, json.loads(arguments.setting))))
        return
    console = Console()
    peers = [peer for peer in PEERS if _installed(peer, console)]
    records: dict[str, Any] = {}
    for name in arguments.cases:
        records[name] = measure(name, peers, arguments.engines, arguments.seconds, console)
        _table(console, name, records[name])
    targets = compare(records)
    if targets:
        console.table("Targets", ["what", "at least", "measured", ""], [_target_row(target) for target in targets])
    versions = {peer.package: importlib.metadata.version(peer.package) for peer in peers if peer.package != "torch"}
    # a run of some of the cases does not replace the results of all
    file = "kspace" if list(arguments.cases) == list(CASES) else "kspace_partial"
    content = {"machine": machine(), "packages": versions, "limit": LIMIT, "cases": records, "targets": targets}
    print("wrote", write(file, content))


def measure(name: str, peers: Sequence[Peer], engines: Sequence[str], seconds: float, console: Console) -> Any:
    """All codes on one case, in turns."""
    case = CASES[name]
    system = case.system()
    target = exact_forces(system)
    entries = [_choose_own(engine, system, target) for engine in engines]
    serving = [peer for peer in peers if peer.serves(system)]
    with console.progress(f"{name}: choice of settings", len(serving), "codes") as update:
        for done, peer in enumerate(serving):
            update(done, peer.name)
            entry = _choose(peer, system, target)
            if entry is None:
                console.line(f"{name}: {peer.name} fails with every setting")
            else:
                entries.append(entry)
    generator = torch.Generator().manual_seed(0)
    # as in MD, no call gets the positions of the call before
    moves = [
        (system.positions + 1e-3 * torch.randn(system.positions.shape, generator=generator)).float() for _ in range(4)
    ]
    calls = {entry.name: max(1, round(SAMPLE / entry.seconds)) for entry in entries}
    round_seconds = sum(calls[entry.name] * entry.seconds for entry in entries)
    rounds = min(max(int(seconds / round_seconds), 5), 30)
    samples = alternate(
        {entry.name: _repeated(entry.run, moves, calls[entry.name]) for entry in entries}, rounds=rounds, warmup=1
    )
    first = entries[0].name
    results = [
        {
            "name": entry.name,
            "setting": entry.setting,
            "milliseconds": 1e3 * statistics.median(samples[entry.name]) / calls[entry.name],
            "force error": entry.error,
            "ratio": median_ratio(samples[entry.name], samples[first]) * calls[first] / calls[entry.name],
            "loop": entry.looped,
            "near": entry.near,
            "scan": entry.scan,
        }
        for entry in entries
    ]
    memory = _memory_in_fresh_process(name, entries[0].setting)
    return {"atoms": len(system.positions), "rounds": rounds, "memory": memory, "results": results}


def half_sphere(cell: Tensor) -> Tensor:
    """(K, 3) float64, 1/A: wave vectors inside the cutoff, one of each pair."""
    n1, n2, n3 = (int(K_CUTOFF * float(length) / (2.0 * math.pi)) for length in torch.linalg.vector_norm(cell, dim=1))
    ranges = (torch.arange(n1 + 1), torch.arange(-n2, n2 + 1), torch.arange(-n3, n3 + 1))
    index = torch.cartesian_prod(*ranges)
    h, k, l = index.unbind(dim=1)  # noqa: E741
    index = index[(h > 0) | ((h == 0) & (k > 0)) | ((h == 0) & (k == 0) & (l > 0))]
    vectors = index.to(cell.dtype) @ (2.0 * math.pi * torch.linalg.inv(cell).mT)
    return vectors[torch.linalg.vector_norm(vectors, dim=1) < K_CUTOFF]


def weights(kvectors: Tensor, cell: Tensor) -> Tensor:
    """(K,), eV/e^2: what |S(k)|^2 of one of each pair counts."""
    k_squared = (kvectors**2).sum(dim=-1)
    phi = 2.0 * math.pi * COULOMB_CONSTANT * torch.exp(-0.5 * SIGMA**2 * k_squared) / k_squared
    return 2.0 / torch.linalg.det(cell).abs() * phi


def exact_forces(system: System) -> Tensor:
    """(G n, 3) float64: by the plain sum; for cells too large for it by engine separable, the same to 1e-12."""
    if len(system.charges) > MAX_PLAIN:
        exact = ReciprocalSum(GaussianCoulomb(SIGMA), K_CUTOFF, engine="separable", envelope=1.0)
        return exact.energy_forces(system.positions, system.charges[:, None], system.cell)[1]
    kvectors = half_sphere(system.cell)
    blocks = list(zip(kvectors.split(1024), weights(kvectors, system.cell).split(1024), strict=True))
    forces = []
    for positions in system.parts(system.positions):
        total = torch.zeros_like(positions)
        for k, weight in blocks:
            phase = k @ positions.T
            cosine, sine = torch.cos(phase), torch.sin(phase)
            slope = (weight * (cosine @ system.charges))[:, None] * sine
            slope -= (weight * (sine @ system.charges))[:, None] * cosine
            total += 2.0 * system.charges[:, None] * (slope.T @ k)
        forces.append(total)
    return torch.cat(forces)


# --- lrpot


def own(system: System, *, engine: str, tolerance: float) -> Run:
    reciprocal = ReciprocalSum(
        GaussianCoulomb(sigma=SIGMA), k_cutoff=K_CUTOFF, engine=engine, tolerance=tolerance, envelope=1.0
    )
    charges = system.charges.float().repeat(system.copies)[:, None]
    cell, batch = system.cell, None
    if system.copies > 1:
        cell = system.cell.expand(system.copies, 3, 3)
        batch = torch.arange(system.copies).repeat_interleave(len(system.charges))
    return lambda positions: reciprocal.energy_forces(positions, charges, cell, batch=batch)


# --- peers


def dense(system: System) -> Run:
    """The sum as one would write it down: phases of all atoms and wave vectors, forces by autograd."""
    kvectors = half_sphere(system.cell)
    weight = weights(kvectors, system.cell).float()
    kvectors, charges = kvectors.float(), system.charges.float()

    def run(positions: Tensor) -> tuple[Tensor, Tensor]:
        positions = positions.detach().requires_grad_()
        phase = kvectors @ positions.T
        energy = weight @ ((torch.cos(phase) @ charges) ** 2 + (torch.sin(phase) @ charges) ** 2)
        return energy.detach(), -torch.autograd.grad(energy, positions)[0]

    return run


def torchpme(system: System, *, method: str, mesh: int, nodes: int) -> Run:
    """The reciprocal half of a torch-pme calculator; its smearing is our sigma, its V_i already has the factor 1/2.

    The forces are autograd's: it has no others.
    """
    import torchpme

    class Coulomb(torchpme.CoulombPotential):
        # without it the sum goes to the corners of the mesh, and the forces differ by 1.6e-3
        def lr_from_k_sq(self, k_sq: Tensor) -> Tensor:
            return torch.where(k_sq < K_CUTOFF**2, super().lr_from_k_sq(k_sq), 0.0)

    # a spacing h gives the power of two from 2 L / h + 1 on
    spacing = 2.0 * max(system.lengths) / (mesh - 1.5)
    potential = Coulomb(smearing=SIGMA, prefactor=COULOMB_CONSTANT)
    kind = {"P3M": torchpme.P3MCalculator, "PME": torchpme.PMECalculator}[method]
    calculator = kind(potential, mesh_spacing=spacing, interpolation_nodes=nodes).to(torch.float32)
    charges, cell = system.charges.float()[:, None], system.cell.float()

    def run(positions: Tensor) -> tuple[Tensor, Tensor]:
        positions = positions.detach().requires_grad_()
        energy = (charges * calculator._compute_kspace(charges, cell, positions)).sum()
        return energy.detach(), -torch.autograd.grad(energy, positions)[0]

    return run


def torchpme_settings(method: str, nodes: Sequence[int]) -> Callable[[System], list[Setting]]:
    def settings(system: System) -> list[Setting]:
        longest = max(system.lengths)
        # the mesh is fine enough for wave vectors up to pi mesh / longest
        meshes = [n for n in (8, 16, 32, 64, 128, 256, 512) if 0.5 < math.pi * n / longest / K_CUTOFF < 5.0]
        return [{"method": method, "mesh": mesh, "nodes": n} for mesh in meshes if mesh**3 <= MAX_MESH for n in nodes]

    return settings


def nvalchemi_ewald(system: System) -> Run:
    """The structure-factor sum of nvalchemi-toolkit-ops: kernels of Warp, forces of their own.

    On a CPU they run in one thread and compute phases in float64, whatever the precision of the positions.
    """
    from nvalchemiops.torch.interactions.electrostatics import ewald_reciprocal_space

    cells, charges, alpha, batch = _nvalchemi_inputs(system)
    kvectors = half_sphere(system.cell).float()
    if batch is None:
        options: dict[str, Any] = {}
    else:
        kvectors = kvectors.expand(system.copies, *kvectors.shape).contiguous()
        options = {"batch_idx": batch, "max_atoms_per_system": len(system.charges)}

    def run(positions: Tensor) -> tuple[Tensor, Tensor]:
        return ewald_reciprocal_space(
            positions, charges, cells, kvectors, alpha, compute_forces=True, energy_reduction="system", **options
        )

    return run


def nvalchemi_pme(system: System, *, mesh: tuple[int, int, int], order: int) -> Run:
    """Particle-mesh Ewald of nvalchemi-toolkit-ops: Warp in one thread for the splines, torch for the transform."""
    from nvalchemiops.torch.interactions import electrostatics

    cells, charges, alpha, batch = _nvalchemi_inputs(system)
    k_squared = electrostatics.generate_k_vectors_pme(cells, mesh)[1]
    axes = [
        torch.fft.fftfreq(mesh[0], 1.0 / mesh[0]),
        torch.fft.fftfreq(mesh[1], 1.0 / mesh[1]),
        torch.fft.rfftfreq(mesh[2], 1.0 / mesh[2]),
    ]
    moduli = [
        electrostatics.compute_bspline_moduli_1d(index, size, order) for index, size in zip(axes, mesh, strict=True)
    ]
    options = {
        # the kernel of so large a k is zero in float32: the sum ends at the cutoff, like all others
        "k_squared": torch.where(k_squared < K_CUTOFF**2, k_squared, 1e4),
        "cell_inv_t": torch.linalg.inv(cells).mT.contiguous(),
        "volume": torch.linalg.det(cells).abs(),
        "moduli_x": moduli[0],
        "moduli_y": moduli[1],
        "moduli_z": moduli[2],
        "batch_idx": batch,
    }

    def run(positions: Tensor) -> tuple[Tensor, Tensor]:
        return electrostatics.pme_reciprocal_space(
            positions,
            charges,
            cells,
            alpha,
            mesh_dimensions=mesh,
            spline_order=order,
            compute_forces=True,
            energy_reduction="system",
            **options,
        )

    return run


def nvalchemi_pme_settings(system: System) -> list[Setting]:
    from nvalchemiops.torch.interactions.electrostatics import mesh_spacing_to_dimensions

    settings = []
    for order, spacing in itertools.product((4, 5, 6), (0.9, 0.8, 0.7, 0.6, 0.55, 0.5, 0.45, 0.4, 0.35, 0.3)):
        setting = {"mesh": mesh_spacing_to_dimensions(system.cell, spacing, spline_order=order), "order": order}
        if setting not in settings and math.prod(setting["mesh"]) <= MAX_MESH:
            settings.append(setting)
    return settings


def finufft(system: System, *, eps: float, upsampfac: float) -> Run:
    """FINUFFT: S(k) on the box of indices around the sphere, and the field, two of whose components share a transform.

    The field is real, so that two components are the real and imaginary part of one complex field.
    """
    import finufft

    counts = [int(K_CUTOFF * length / (2.0 * math.pi)) for length in system.lengths]
    index = torch.cartesian_prod(*(torch.arange(-n, n + 1) for n in counts))
    kvectors = index.to(torch.float64) @ (2.0 * math.pi * torch.linalg.inv(system.cell).mT)
    inside = index.any(dim=1) & (torch.linalg.vector_norm(kvectors, dim=1) < K_CUTOFF)
    half = torch.where(inside, 0.5 * weights(kvectors, system.cell), 0.0)
    shape = tuple(2 * n + 1 for n in counts)
    weight = half.float().reshape(shape)
    x, y, z = (-2.0 * half[:, None] * kvectors).unbind(dim=1)
    multiplier = torch.stack([torch.complex(-y, x), torch.complex(torch.zeros_like(z), z)])
    multiplier = multiplier.to(torch.complex64).reshape(2, *shape)
    options: dict[str, Any] = {
        "eps": eps,
        "upsampfac": upsampfac,
        "dtype": "complex64",
        "nthreads": torch.get_num_threads(),
    }
    to_amplitude = finufft.Plan(1, shape, 1, isign=-1, **options)
    to_field = finufft.Plan(2, shape, 2, isign=1, **options)
    to_angles = (2.0 * math.pi * torch.linalg.inv(system.cell)).float()
    charges = system.charges.float()
    strengths = charges.to(torch.complex64).numpy()

    def run(positions: Tensor) -> tuple[Tensor, Tensor]:
        angles = (positions @ to_angles).T.contiguous().numpy()
        to_amplitude.setpts(*angles)
        to_field.setpts(*angles)
        amplitude = torch.from_numpy(to_amplitude.execute(strengths))
        energy = torch.sum(weight * (amplitude.real**2 + amplitude.imag**2))
        field = torch.from_numpy(to_field.execute((multiplier * amplitude).numpy()))
        forces = charges[:, None] * torch.stack([field[0].real, field[0].imag, field[1].real], dim=1)
        return energy, forces

    return run


def finufft_settings(system: System) -> list[Setting]:
    return [{"eps": eps, "upsampfac": factor} for factor in (1.25, 2.0) for eps in (1e-2, 3e-3, 1e-3, 3e-4, 1e-4)]


def no_settings(system: System) -> list[Setting]:
    return [{}]


PEERS = (
    Peer("dense autograd", "torch", no_settings, dense, largest=MAX_PLAIN),
    Peer("torch-pme P3M", "torch-pme", torchpme_settings("P3M", (2, 3, 4, 5)), torchpme),
    Peer("torch-pme PME", "torch-pme", torchpme_settings("PME", (3, 4, 5, 6, 7)), torchpme),
    Peer("nvalchemi Ewald", "nvalchemi-toolkit-ops", no_settings, nvalchemi_ewald, largest=MAX_EWALD),
    Peer("nvalchemi PME", "nvalchemi-toolkit-ops", nvalchemi_pme_settings, nvalchemi_pme),
    Peer("nvalchemi Ewald, batched", "nvalchemi-toolkit-ops", no_settings, nvalchemi_ewald, batched=True),
    Peer("nvalchemi PME, batched", "nvalchemi-toolkit-ops", nvalchemi_pme_settings, nvalchemi_pme, batched=True),
    Peer("FINUFFT", "finufft", finufft_settings, finufft, smallest=MIN_FINUFFT),
)


# --- targets

# case, peer (None: the fastest of those whose forces are good enough), how many times slower it must be at least
TARGETS: tuple[tuple[str, str | None, float], ...] = (
    ("54", None, 1.0),
    ("216", None, 1.0),
    ("batch", None, 3.0),
    ("1728", "dense autograd", 8.0),
    ("1728", "torch-pme P3M", 4.0),
    ("4096", "dense autograd", 60.0),
    ("4096", "torch-pme P3M", 3.0),
    ("13824", "torch-pme P3M", 10.0),
)


def compare(records: dict[str, Any]) -> list[dict[str, Any]]:
    """The targets of the cases that ran; a measured value of at least the target meets it."""
    targets = []
    for case, name, least in TARGETS:
        if case not in records:
            continue
        peers = [
            result
            for result in records[case]["results"]
            if not result["name"].startswith("lrpot")
            and (result["loop"] or case != "batch")
            and (result["name"] == name or (name is None and result["force error"] <= LIMIT))
        ]
        if peers:
            fastest = min(peers, key=lambda result: result["ratio"])
            what = f"{case}: {fastest['name']} / lrpot" + (", the fastest peer" if name is None else "")
            targets.append({"what": what, "at least": least, "measured": fastest["ratio"]})
    if "110592" in records:
        peak = records["110592"]["memory"]["peak GB"]
        targets.append({"what": "110592: 24 GB / peak memory", "at least": 1.0, "measured": 24.0 / peak})
    if "110592" in records and "13824" in records:
        large, small = (records[case]["results"][0]["milliseconds"] / int(case) for case in ("110592", "13824"))
        what = "110592: time per atom of 13824 / of 110592"
        targets.append({"what": what, "at least": 1.0 / 1.5, "measured": small / large})
    return targets


# --- choice of settings


def _choose(peer: Peer, system: System, target: Tensor) -> Entry | None:
    """The fastest setting within the limit, or the most accurate."""
    best: Entry | None = None
    missed: Entry | None = None
    scan: list[str] = []
    for setting in peer.settings(system):
        try:
            run = peer.ready(system, setting)
            error = _force_error(run, system, target)
        except (ValueError, RuntimeError) as failure:
            # torch-pme's P3M divides by zero on fine meshes in oblique cells; FINUFFT refuses what float32 cannot hold
            scan.append(f"{_describe(setting)}: {str(failure)[:60]}")
            continue
        entry = Entry(peer.name, setting, error, math.inf, run, looped=system.copies > 1 and not peer.batched)
        if error <= NEAR * LIMIT:
            entry.seconds = _call_seconds(run, system)
        scan.append(f"{_describe(setting)}: {error:.1e}, {1e3 * entry.seconds:.3g} ms")
        if error <= LIMIT:
            best = entry if best is None else min(best, entry, key=lambda e: e.seconds)
        elif error <= NEAR * LIMIT and missed is not None and missed.error <= NEAR * LIMIT:
            missed = min(missed, entry, key=lambda e: e.seconds)
        else:
            missed = entry if missed is None else min(missed, entry, key=lambda e: e.error)
    if best is None:
        best = missed
    elif missed is not None and missed.seconds < best.seconds:
        # meshes come in coarse steps: what just misses the limit says how much hangs on it
        best.near = f"{_describe(missed.setting)}: {missed.error:.1e}, {1e3 * missed.seconds:.3g} ms"
    if best is not None:
        best.scan = scan
        best.seconds = min(best.seconds, _call_seconds(best.run, system))
    return best


def _choose_own(engine: str, system: System, target: Tensor) -> Entry:
    """The loosest tolerance within the limit, or the tightest."""
    entry: Entry | None = None
    scan: list[str] = []
    for tolerance in TOLERANCES:
        setting: Setting = {"engine": engine, "tolerance": tolerance}
        try:
            run = own(system, **setting)
            error = _force_error(run, system, target)
        except LrpotError as failure:
            scan.append(f"{_describe(setting)}: {str(failure)[:60]}")
            continue
        scan.append(f"{_describe(setting)}: {error:.1e}")
        entry = Entry(f"lrpot {engine}", setting, error, _call_seconds(run, system), run, scan=scan)
        if error <= LIMIT:
            break
    if entry is None:
        raise RuntimeError(f"lrpot fails with every setting: {scan}")
    return entry


def _force_error(run: Run, system: System, target: Tensor) -> float:
    forces = run(system.positions.float())[1].to(torch.float64)
    return float(torch.linalg.vector_norm(forces - target) / torch.linalg.vector_norm(target))


def _call_seconds(run: Run, system: System) -> float:
    """Of the best of a few calls, at most about a second of them."""
    positions = system.positions.float()
    seconds: list[float] = []
    while len(seconds) < 10 and sum(seconds) < 1.0:
        start = time.perf_counter()
        run(positions)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


# --- memory


def _memory_in_fresh_process(case: str, setting: Setting) -> dict[str, float]:
    command = [sys.executable, __file__, "--memory", case, "--setting", json.dumps(setting)]
    command += ["--threads", str(torch.get_num_threads())]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def _own_memory(case: str, setting: Setting) -> dict[str, float]:
    """What two calls of lrpot add to the memory of this process; libraries are loaded before by a small cell."""
    small = Case(1).system()
    own(small, **setting)(small.positions.float())
    system = CASES[case].system()
    positions, run = system.positions.float(), own(system, **setting)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _status("VmRSS")
    for _ in range(2):
        run(positions)
    # getrusage's ru_maxrss would be no less than the peak of the process that started this one
    peak = _status("VmHWM")
    return {"KiB per atom": (peak - before) / len(positions), "peak GB": peak * 1024 / 1e9}


def _status(name: str) -> int:
    """KiB; Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


# --- small things


def _loop(run: Run, system: System) -> Run:
    """Over the cells of a batch, one after the other; they differ in positions only."""

    def loop(positions: Tensor) -> tuple[Tensor, Tensor]:
        energies, forces = zip(*(run(part) for part in system.parts(positions)), strict=True)
        return torch.stack([energy.reshape(()) for energy in energies]), torch.cat(forces)

    return loop


def _repeated(run: Run, moves: Sequence[Tensor], calls: int) -> Callable[[], object]:
    turns = itertools.cycle(moves)

    def repeated() -> None:
        for _ in range(calls):
            run(next(turns))

    return repeated


def _nvalchemi_inputs(system: System) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Cells, charges, alpha and batch index; energies come in e^2/A, so the constant is put into the charges."""
    cells = system.cell.float().expand(system.copies, 3, 3).contiguous()
    charges = (math.sqrt(COULOMB_CONSTANT) * system.charges).float().repeat(system.copies)
    alpha = torch.full((system.copies,), 1.0 / (math.sqrt(2.0) * SIGMA))
    batch = torch.arange(system.copies, dtype=torch.int32).repeat_interleave(len(system.charges))
    return cells, charges, alpha, batch if system.copies > 1 else None


def _installed(peer: Peer, console: Console) -> bool:
    try:
        importlib.metadata.version(peer.package)
    except importlib.metadata.PackageNotFoundError:
        console.line(f"{peer.name} is left out: {peer.package} is not installed")
        return False
    return True


def _table(console: Console, name: str, record: dict[str, Any]) -> None:
    atoms, memory = record["atoms"], record["memory"]
    rows = []
    for result in record["results"]:
        first = result is record["results"][0]
        rows.append(
            [
                result["name"] + (", loop over cells" if result["loop"] else ""),
                _describe(result["setting"]),
                f"{result['milliseconds']:.3g}",
                f"{1e3 * result['milliseconds'] / atoms:.3g}",
                f"{result['force error']:.1e}" + (" (!)" if result["force error"] > LIMIT else ""),
                f"{result['ratio']:.2f}",
                f"{memory['KiB per atom']:.3g}" if first else "",
                f"{memory['peak GB']:.2f}" if first else "",
            ]
        )
    case = CASES[name]
    title = f"{case.copies} x {atoms // case.copies} atoms" if case.copies > 1 else f"{atoms} atoms"
    columns = ["code", "setting", "ms", "us/atom", "force error", "/ lrpot", "KiB/atom", "peak (GB)"]
    console.table(f"{title}, E + F", columns, rows)
    for result in record["results"]:
        if result["near"]:
            console.line(f"{result['name']} just misses the limit with {result['near']}")


def _describe(setting: Setting) -> str:
    return ", ".join(f"{key} {_short(value)}" for key, value in setting.items() if key != "method")


def _short(value: object) -> str:
    if isinstance(value, tuple):
        return "x".join(map(str, value)) if len(set(value)) > 1 else str(value[0])
    return f"{value:g}" if isinstance(value, float) else str(value)


def _target_row(target: dict[str, Any]) -> list[str]:
    met = target["measured"] >= target["at least"]
    return [target["what"], f"{target['at least']:.2f}", f"{target['measured']:.2f}", "met" if met else "missed"]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=_names(CASES), default=tuple(CASES), help="names, separated by commas")
    parser.add_argument(
        "--engines",
        type=lambda text: tuple(text.split(",")),
        default=("auto",),
        help="of lrpot; ratios are to the first",
    )
    parser.add_argument("--threads", type=int, default=1, help="of every code but nvalchemi's, which has one")
    parser.add_argument("--seconds", type=float, default=60.0, help="of timing for each case, about")
    parser.add_argument("--memory", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--setting", help=argparse.SUPPRESS)
    return parser.parse_args()


def _names(known: Iterable[str]) -> Callable[[str], tuple[str, ...]]:
    def names(text: str) -> tuple[str, ...]:
        chosen = text.split(",")
        unknown = [name for name in chosen if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: choose from {', '.join(known)}")
        return tuple(name for name in known if name in chosen)

    return names


if __name__ == "__main__":
    main()
