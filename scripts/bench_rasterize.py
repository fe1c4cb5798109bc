"""Times the C++ rasteriser, stage by stage, against an efficient plain-torch one; both must draw the same first.

    .venv/bin/python scripts/bench_rasterize.py [--quick] [--json OUT.json]
    .venv/bin/python scripts/bench_rasterize.py --busy      # two threads must not lose to one beside a busy neighbour

Workloads W1 to W3 are a bumpy torus of oriented discs: 10k splats at 200 px, 50k at 400 px, 100k at 800 px. Runs are
interleaved: every repetition times each way once, so that a neighbour's load falls on all alike. Trust the ratios; the
milliseconds belong to the machine and to the load printed with them.
"""

from __future__ import annotations

import ctypes
import math
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
import tyro
from jaxtyping import Float, Int
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from prepare.atomic_write import write_json
from prepare.camera import Camera, focal_from_fov, look_at
from prepare.errors import MissingPartError
from recon.densify import SplatOptimizer
from recon.gaussians import Gaussians, rotation_matrices
from recon.harmonics import SH_C0, shade
from recon.kernel.library import (
    STAGES,
    InstructionSet,
    ViewStatistics,
    choose_instruction_set,
    kernel_info,
    library,
    peak_multiply_adds,
    set_threads,
)
from recon.losses import Target, make_target, photometric_loss
from recon.rasterize import BLUR_PX2, RasterOptions, rasterize

ALPHA_MAX, ALPHA_MIN, STOP = 0.999, 1.0 / 255.0, 1e-4
SSIM_SHARE = 0.2
TORCH = "torch_pairs"
WIDTH = 120  # columns of what is printed
# Multiplications and multiply-adds that one block operation (sixteen pixels, one splat) asks for. Forward, composite.h: 2
# for the exponent, 5 for exp2, 1 for the weight, 3 for the colours. Backward, backward.h: the same 2 + 5 + 1; then 3 from
# the weight to the colours' sums, 3 for the colour as the loss sees it, 1 times the weight, the reciprocal by Newton's
# steps, 2 for dL/d(ln alpha), and 5 for its moments. Sums, comparisons and the scaling by powers of two run elsewhere.
FORWARD_MULTIPLIES = 11
BACKWARD_MULTIPLIES = {
    "base": 22,
    "v3": 26,
    "v4": 24,
}  # one Newton step is 2; "base" divides instead, not counted
BUSY_ALLOWANCE = 0.05  # a ratio of medians moves by this much between equal runs on a shared machine
Result = TypeVar("Result")


@dataclass(frozen=True)
class Options:
    """What to time."""

    quick: bool = False
    """W1 and W2 only, few repetitions: about a minute."""
    json: Path | None = None
    """Also write all figures to this file."""
    workloads: tuple[Literal["W0", "W1", "W2", "W3"], ...] = ()
    """Only these; W1 to W3 where empty (W1 and W2 with --quick)."""
    repetitions: int | None = None
    """Of each way of the kernel; 11 where not given (5 with --quick)."""
    torch_repetitions: int | None = None
    """Of the plain-torch rasteriser; 3 where not given (2 with --quick)."""
    busy: bool = False
    """Instead of all this, let another process hold one core, and fail where two threads are slower than one."""


# --------------------------------------------------------------------------------------------------------- workloads


@dataclass(frozen=True)
class Workload:
    """A scene of a size."""

    name: str
    splats: int
    side_px: int
    disc_radius: float  # standard deviation in the plane, world units; the torus is about 1 across
    distance: float  # of the camera, world units


WORKLOADS = {
    "W0": Workload("W0", 800, 64, 0.06, 3.66),  # to try the benchmark itself
    "W1": Workload("W1", 10_000, 200, 0.0204, 3.66),
    "W2": Workload("W2", 50_000, 400, 0.0093, 3.3),
    "W3": Workload("W3", 100_000, 800, 0.0068, 3.02),
}


def make_scene(workload: Workload) -> tuple[Gaussians, Camera]:
    """Discs on a bumpy torus, facing outwards, and a camera that sees it from above at an angle."""
    generator = torch.Generator().manual_seed(0)
    n = workload.splats

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    around, across = 2 * math.pi * uniform(n), 2 * math.pi * uniform(n)
    ring, tube = 0.62, 0.27 * (1 + 0.12 * torch.sin(9 * around) * torch.sin(5 * across))
    outward = torch.stack([around.cos() * across.cos(), around.sin() * across.cos(), across.sin()], dim=-1)
    centre = torch.stack([around.cos(), around.sin(), torch.zeros(n)], dim=-1) * ring
    # The shortest turn from z to the normal; half-way quaternion (1 + z.n, z x n).
    z = torch.tensor([0.0, 0.0, 1.0]).expand_as(outward)
    quats = torch.cat([1.0 + outward[:, 2:], torch.linalg.cross(z, outward)], dim=-1)
    radius = workload.disc_radius * torch.exp(0.3 * torch.randn(n, 2, generator=generator))
    scales = torch.cat([radius, 0.1 * radius.mean(dim=1, keepdim=True)], dim=1)
    colours = 0.5 + 0.4 * torch.sin(6 * outward + 8 * centre)
    splats = Gaussians(
        means=centre + tube[:, None] * outward,
        quats=F.normalize(quats + 1e-6, dim=-1),
        log_scales=scales.log(),
        logit_opacities=torch.logit(0.05 + 0.35 * uniform(n)),
        sh=((colours - 0.5) / SH_C0)[:, None],
    )
    position = workload.distance * F.normalize(torch.tensor([0.9, -1.0, 1.1]), dim=0)
    pose = look_at(position, torch.zeros(3), torch.tensor([0.0, 0.0, 1.0]))
    side = workload.side_px
    focal = focal_from_fov(side, math.radians(45))
    return splats, Camera(pose, focal, focal, side / 2, side / 2, side, side)


# ------------------------------------------------------------------------------------- the plain-torch rasteriser


@dataclass(frozen=True)
class Pairs:
    """Splats and the pixels where they count, sorted by pixel, front to back within one."""

    splat: Int[Tensor, " pairs"]
    pixel: Int[Tensor, " pairs"]  # row * width + column


@dataclass(frozen=True)
class Projected:
    """Splats on the image plane, front to back."""

    centre: Float[Tensor, "n uv=2"]  # px
    conic: Float[Tensor, "n 3"]  # xx, xy, yy of the inverse covariance, 1/px^2
    extent: Float[Tensor, "n uv=2"]  # half sides of the box round the alpha >= 1/255 ellipse, px
    opacity: Float[Tensor, " n"]
    colour: Float[Tensor, "n rgb=3"]


def project(gaussians: Gaussians, camera: Camera) -> Projected:
    """EWA projection as in `recon.rasterize_reference`; all splats are in front of the camera here."""
    rotation, translation = camera.world_to_cam[:3, :3], camera.world_to_cam[:3, 3]
    in_cam = gaussians.means @ rotation.T + translation
    order = torch.argsort(in_cam[:, 2].detach())
    x, y, z = in_cam[order].unbind(-1)
    zero = torch.zeros_like(z)
    along_x = torch.stack([camera.fl_x / z, zero, -camera.fl_x * x / (z * z)], dim=-1)
    along_y = torch.stack([zero, camera.fl_y / z, -camera.fl_y * y / (z * z)], dim=-1)
    axes = (
        rotation @ rotation_matrices(gaussians.quats[order]) * gaussians.log_scales[order].exp()[:, None, :]
    )
    half_x, half_y = ((along[:, None] @ axes)[:, 0] for along in (along_x, along_y))
    xx = (half_x * half_x).sum(-1) + BLUR_PX2
    yy = (half_y * half_y).sum(-1) + BLUR_PX2
    xy = (half_x * half_y).sum(-1)
    det = xx * yy - xy * xy
    opacity = torch.sigmoid(gaussians.logit_opacities[order])
    spread = 2.0 * torch.log((opacity.detach() / ALPHA_MIN).clamp_min(1.0))
    centre = -rotation.T @ translation
    return Projected(
        centre=torch.stack([camera.fl_x * x / z + camera.cx, camera.fl_y * y / z + camera.cy], dim=-1),
        conic=torch.stack([yy / det, -xy / det, xx / det], dim=-1),
        extent=torch.stack([(spread * xx.detach()).sqrt(), (spread * yy.detach()).sqrt()], dim=-1),
        opacity=opacity,
        colour=shade(gaussians.sh, gaussians.means - centre, gaussians.sh_degree)[order],
    )


def pair_alpha(splats: Projected, pairs: Pairs, width: int) -> Float[Tensor, " pairs"]:
    """Alpha of each pair, clamped at 0.999."""
    dx = (pairs.pixel % width).float() + 0.5 - splats.centre[:, 0][pairs.splat]
    dy = torch.div(pairs.pixel, width, rounding_mode="floor").float() + 0.5 - splats.centre[:, 1][pairs.splat]
    xx, xy, yy = (splats.conic[:, k][pairs.splat] for k in range(3))
    sigma = 0.5 * (xx * dx * dx + yy * dy * dy) + xy * dx * dy
    return (splats.opacity[pairs.splat] * torch.exp(-sigma)).clamp_max(ALPHA_MAX)


def find_pairs(splats: Projected, camera: Camera) -> Pairs:
    """The pairs with alpha >= 1/255: boxes expanded to pixels, tested, and sorted by pixel (stably: by depth)."""
    low = (splats.centre - splats.extent - 0.5).ceil().clamp_min(0).long()
    size = torch.tensor([camera.width, camera.height])
    high = torch.minimum((splats.centre + splats.extent - 0.5).floor().long(), size - 1)
    sides = (high - low + 1).clamp_min(0)
    count = sides[:, 0] * sides[:, 1]
    splat = torch.repeat_interleave(torch.arange(len(count)), count)
    within = torch.arange(len(splat)) - torch.repeat_interleave(count.cumsum(0) - count, count)
    across = sides[:, 0][splat]
    row = torch.div(within, across, rounding_mode="floor")
    pixel = (low[:, 1][splat] + row) * camera.width + low[:, 0][splat] + within - row * across
    pairs = Pairs(splat, pixel)
    kept = pair_alpha(splats, pairs, camera.width) >= ALPHA_MIN
    pixel, order = torch.sort(pixel[kept], stable=True)
    return Pairs(splat[kept][order], pixel)


def torch_pairs(
    gaussians: Gaussians, camera: Camera, background: Float[Tensor, "rgb=3"]
) -> tuple[Float[Tensor, "height width rgb=3"], int]:
    """The view, and how many pairs contribute; differentiable, memory in proportion to pairs and not splats x pixels.

    Transmittance before a pair is the exponential of a segmented cumulative sum of log(1 - alpha), in float64: over
    millions of pairs float32 would lose the segment in the sum before it.
    """
    splats = project(gaussians, camera)
    pixels = camera.width * camera.height
    with torch.no_grad():
        pairs = find_pairs(splats, camera)
    alpha = pair_alpha(splats, pairs, camera.width)
    passed = torch.log1p(-alpha.double())
    total = passed.cumsum(0)
    first = torch.ones_like(pairs.pixel, dtype=torch.bool)
    first[1:] = pairs.pixel[1:] != pairs.pixel[:-1]
    start = torch.cummax(torch.where(first, torch.arange(len(first)), 0), dim=0).values
    before = total - passed - (total - passed)[start]  # log transmittance in front of the pair
    goes_on = (before + passed).detach() > math.log(STOP)
    weight = torch.where(goes_on, alpha.double() * before.exp(), 0.0).float()
    rgb = alpha.new_zeros(pixels, 3).index_add(0, pairs.pixel, weight[:, None] * splats.colour[pairs.splat])
    through = 1.0 - alpha.new_zeros(pixels).index_add(0, pairs.pixel, weight)
    rgb = rgb + through[:, None] * background
    return rgb.reshape(camera.height, camera.width, 3), int(goes_on.sum())


# ------------------------------------------------------------------------------------------------------------ timing


class Profile:
    """Wall seconds by stage of functions that are wrapped from outside, so that the library stays as it is.

    What runs within a wrapped function is charged to it, wrapped or not; other threads are not looked at. Functions are
    themselves again when the block ends.
    """

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.calls: Counter[str] = Counter()
        self._busy = False
        self._restore: list[tuple[Any, str, Any]] = []

    def __enter__(self) -> Profile:
        return self

    def __exit__(self, *_: object) -> None:
        for owner, name, original in reversed(self._restore):
            setattr(owner, name, original)
        self._restore.clear()

    def wrap(self, owner: Any, name: str, stage: str) -> None:
        """Charge every call of `owner.name` to `stage` from now on."""
        original = getattr(owner, name)

        def charged(*arguments: Any, **options: Any) -> Any:
            with self.stage(stage):
                return original(*arguments, **options)

        self._restore.append((owner, name, original))
        setattr(owner, name, charged)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Charge the block to a stage."""
        if self._busy or threading.current_thread() is not threading.main_thread():
            yield
            return
        self._busy = True
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start
            self.calls[name] += 1
            self._busy = False


@dataclass(frozen=True)
class Way:
    """One way of doing the same work."""

    instruction_set: str  # of the kernel, or "torch_pairs"
    threads: int


@dataclass
class Times:
    """Milliseconds of each repetition."""

    forward: list[float] = field(default_factory=list)
    backward: list[float] = field(default_factory=list)
    iteration: list[float] = field(default_factory=list)  # render, L1 + SSIM, all gradients, a step of Adam
    # Of the iteration, by stage: the kernel's own, its loss and its Adam, and all that is not the kernel: Python, autograd,
    # memory.
    stages: dict[str, list[float]] = field(default_factory=dict)
    peak: list[float] = field(
        default_factory=list
    )  # multiply-adds of 16 lanes a second on one core; not a time
    block_operations: int = 0  # of a view

    @property
    def both(self) -> list[float]:
        """Forward and backward."""
        return [f + b for f, b in zip(self.forward, self.backward, strict=True)]


class Bench:
    """A workload with what every repetition needs."""

    def __init__(self, workload: Workload) -> None:
        splats, self.camera = make_scene(workload)
        # A learning rate of zero does the work of a step and leaves the scene as it is.
        self.optimizer = SplatOptimizer(splats, dict.fromkeys([*splats.tensors(), "sh_constant"], 0.0))
        self.splats = self.optimizer.gaussians
        self.leaves = list(self.splats.tensors().values())
        self.background = torch.ones(3)
        generator = torch.Generator().manual_seed(1)
        side = workload.side_px
        # Planar in memory, as the gradient of the loss is: else a copy would be timed.
        self.v_rgb = torch.randn(3, side, side, generator=generator).permute(1, 2, 0)
        with torch.no_grad():
            photo = rasterize(self.splats, self.camera, self.background).rgb
        noise = 0.05 * torch.randn(side, side, 3, generator=generator)
        self.target: Target = make_target((photo + noise).clamp(0, 1))

    def draw(self, way: Way) -> Tensor:
        """The view, rendered in the given way."""
        if way.instruction_set == TORCH:
            return torch_pairs(self.splats, self.camera, self.background)[0]
        return rasterize(self.splats, self.camera, self.background, backend="cpu").rgb

    def forget(self) -> None:
        """Drop the gradients."""
        for leaf in self.leaves:
            leaf.grad = None

    def repeat(self, way: Way, times: Times) -> None:
        """Time everything once."""
        use(way)
        self.render(way, times)
        if way.instruction_set != TORCH:
            self.iterate(way, times)
            times.peak.append(peak_multiply_adds())

    def render(self, way: Way, times: Times) -> None:
        """Time the view and the gradients of a fixed weighting of it."""
        self.forget()
        rgb = timed(times.forward, lambda: self.draw(way))
        timed(times.backward, lambda: rgb.backward(self.v_rgb))
        self.forget()

    def iterate(self, way: Way, times: Times) -> None:
        """Time an iteration of the fit and its stages."""

        def iteration() -> Tensor:
            rgb = self.draw(way)
            photometric_loss(rgb, self.target, SSIM_SHARE).backward()
            self.optimizer.step()
            return rgb

        with Profile() as profile:
            profile.wrap(library(), "splatad_l1_ssim", "loss")
            profile.wrap(library(), "splatad_adam_step", "optimiser")
            rgb = timed(times.iteration, iteration)
        view = view_statistics(rgb)
        stages = dict(zip(STAGES, view.stage_ms, strict=True))
        stages |= {name: 1e3 * seconds for name, seconds in profile.seconds.items()}
        stages["python"] = times.iteration[-1] - sum(stages.values())
        for name, value in stages.items():
            times.stages.setdefault(name, []).append(value)
        times.block_operations = view.block_operations

    def gradients(self, way: Way) -> list[Tensor]:
        """Gradients of a fixed weighting of the picture by every field."""
        use(way)
        return list(torch.autograd.grad((self.draw(way) * self.v_rgb).sum(), self.leaves))


def view_statistics(rgb: Tensor) -> ViewStatistics:
    """What the kernel did for the view `rgb`, whose graph must still be there."""
    node = rgb.grad_fn
    while node is not None and not hasattr(node, "context"):
        node = node.next_functions[0][0]
    assert node is not None, "not a render of the kernel that carries gradients"
    statistics_of_view = ViewStatistics()
    library().splatad_statistics(node.context.handle, ctypes.byref(statistics_of_view))
    return statistics_of_view


def use(way: Way) -> None:
    """Let what follows run in this way."""
    if way.instruction_set == TORCH:
        torch.set_num_threads(way.threads)
        return
    torch.set_num_threads(1)  # torch's idle threads spin, and take the cores from the kernel's own
    set_threads(way.threads)
    name: InstructionSet = way.instruction_set  # type: ignore[assignment]
    choose_instruction_set(name)


def timed(into: list[float], work: Callable[[], Result]) -> Result:
    """What `work` returns; its milliseconds go `into` the list."""
    start = time.perf_counter()
    result = work()
    into.append(1e3 * (time.perf_counter() - start))
    return result


def check(bench: Bench, ways: list[Way]) -> None:
    """Nothing where every way draws the same picture with the same gradients.

    Raises: SystemExit otherwise: figures of different pictures say nothing. Single pixels may differ where alpha is
    on the edge of 1/255 or transmittance on that of 1e-4.
    """
    plain = Way(TORCH, 2)
    use(plain)
    with torch.no_grad():
        picture = bench.draw(plain)
    slopes = bench.gradients(plain)
    for way in ways:
        use(way)
        with torch.no_grad():
            apart = (bench.draw(way) - picture).abs().amax(dim=-1)
        if float(apart.max()) > 0.02 or float((apart > 1e-4).float().mean()) > 1e-3:
            raise SystemExit(f"{way}: the picture differs by up to {float(apart.max()):.1e} from {TORCH}")
        for name, a, b in zip(bench.splats.tensors(), bench.gradients(way), slopes, strict=True):
            error = float((a - b).norm() / b.norm())
            if error > 5e-3:
                raise SystemExit(f"{way}: the gradient by {name} differs by {error:.1e} from {TORCH}")


def available_ways() -> list[Way]:
    """Every instruction set of this processor and build, with one and two threads."""
    ways = []
    for name in ("base", "v3", "v4"):
        try:
            choose_instruction_set(name)  # type: ignore[arg-type]
        except MissingPartError:
            continue
        ways += [Way(name, threads) for threads in (1, 2)]
    return ways


def machine() -> dict[str, str | int]:
    """What the figures belong to."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [
            line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line
        ]
        model = names[0] if names else model
    return {
        "processor": model,
        "cores": os.cpu_count() or 1,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "kernel": kernel_info().instruction_set,
    }


def load() -> float:
    """Average number of running processes over the last minute."""
    return round(os.getloadavg()[0], 2)


@contextmanager
def busy_neighbour() -> Iterator[None]:
    """Another process holds one core while the block runs; it also ends when this process does."""
    spin = (
        "import os, sys\n"
        "parent, core = int(sys.argv[1]), int(sys.argv[2])\n"
        "if core >= 0: os.sched_setaffinity(0, {core})\n"
        "print('spinning', flush=True)\n"
        "while os.getppid() == parent:\n"
        "    for _ in range(1_000_000): pass\n"
    )
    core = max(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else -1
    command = [sys.executable, "-I", "-S", "-c", spin, str(os.getpid()), str(core)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline().strip() != "spinning":
                raise SystemExit("the process that should hold a core did not start")
            yield
        finally:
            process.kill()


def main(options: Options) -> None:
    """Time, print, and write. Threads and instruction set are then as they were at first.

    Raises: SystemExit where the ways differ in what they draw, or two threads lose to one with --busy.
    """
    threads = torch.get_num_threads(), kernel_info().threads
    console = Console(width=WIDTH)
    names = options.workloads or (("W1", "W2") if options.quick else ("W1", "W2", "W3"))
    choose_instruction_set("auto")
    report: dict[str, object] = {
        "machine": machine(),
        "load_before": load(),
        "options": asdict(options) | {"json": None},
    }
    console.print("  ".join(f"{key}: {value}" for key, value in machine().items()))
    slower: list[str] = []
    try:
        if options.busy:
            rows = time_busy(names, options)
            print_busy(console, rows)
            slower = [row["workload"] for row in rows if row["ratio"] < 1 - BUSY_ALLOWANCE]
        else:
            rows = []
            for name in names:
                rows.append(time_workload(WORKLOADS[name], options))
                print_workload(console, rows[-1])
    finally:
        choose_instruction_set("auto")
        torch.set_num_threads(threads[0])
        set_threads(threads[1])
    report |= {"busy" if options.busy else "results": rows, "load_after": load()}
    if options.json is not None:
        write_json(options.json, report)
        console.print(f"written: {options.json}")
    if slower:
        raise SystemExit(f"{', '.join(slower)}: two threads are slower than one beside a busy neighbour")


def time_workload(workload: Workload, options: Options) -> dict[str, Any]:
    """The figures of one workload, every way."""
    repetitions = options.repetitions or (5 if options.quick else 11)
    torch_repetitions = options.torch_repetitions or (2 if options.quick else 3)
    ways = available_ways()
    bench = Bench(workload)
    check(bench, [way for way in ways if way.threads == 2])
    with torch.no_grad():
        _, contributing = torch_pairs(bench.splats, bench.camera, bench.background)
        alpha = rasterize(bench.splats, bench.camera, options=RasterOptions()).alpha
    covered = float((alpha > 0).float().mean())
    times = {way: Times() for way in [*ways, Way(TORCH, 1), Way(TORCH, 2)]}
    for way in ways:
        bench.repeat(way, Times())  # buffers grow, workers start
    load_during = [load()]
    for repetition in range(repetitions):
        for way, record in times.items():
            if way.instruction_set != TORCH or repetition < torch_repetitions:
                bench.repeat(way, record)
    load_during.append(load())
    block_operations = times[ways[0]].block_operations
    return {
        "workload": asdict(workload),
        "covered": covered,
        "contributing_pairs": contributing,
        "pairs_per_covered_px": contributing / (covered * workload.side_px**2),
        "block_operations": block_operations,
        "lanes_used": contributing / (16 * block_operations),
        "load": load_during,
        "ways": [summary(way, times, contributing) for way in times],
    }


def summary(way: Way, times: dict[Way, Times], contributing: int) -> dict[str, Any]:
    """The figures of one way: milliseconds, ratios of medians, rates a core, share of the roofline."""
    own = times[way]
    # Torch with as many threads or fewer: under load its second one can cost tenfold, and would flatter us.
    plain = min(statistics.median(times[Way(TORCH, count)].both) for count in range(1, way.threads + 1))
    found: dict[str, Any] = asdict(way)
    for name in ("forward", "backward", "both", "iteration"):
        values = getattr(own, name)
        if values:
            found["forward_backward" if name == "both" else name] = {
                "min_ms": min(values),
                "median_ms": statistics.median(values),
                "repetitions": len(values),
            }
    median = statistics.median(own.both)
    found["faster_than_torch"] = plain / median
    found["faster_than_one_thread"] = statistics.median(times[Way(way.instruction_set, 1)].both) / median
    stages = {name: statistics.median(values) for name, values in own.stages.items()}
    seconds = {"forward": statistics.median(own.forward), "backward": statistics.median(own.backward)}
    seconds |= {name: stages[name] for name in ("composite", "backward_composite") if name in stages}
    found["pairs_per_s"] = {name: 1e3 * contributing / value for name, value in seconds.items()}
    found["pairs_per_s_per_core"] = {
        name: value / way.threads for name, value in found["pairs_per_s"].items()
    }
    if stages:
        found["stages_median_ms"] = stages
        peak = statistics.median(own.peak)
        found["peak_multiply_adds_per_s_per_core"] = peak
        multiplies = {
            "composite": FORWARD_MULTIPLIES,
            "backward_composite": BACKWARD_MULTIPLIES[way.instruction_set],
        }
        found["share_of_roofline"] = {
            name: own.block_operations * count / (peak * 1e-3 * stages[name] * way.threads)
            for name, count in multiplies.items()
        }
    return found


def print_workload(console: Console, row: dict[str, Any]) -> None:
    """Two tables: times with their ratios, and an iteration by stage with rates and shares of the roofline."""
    workload = row["workload"]
    title = (
        f"{workload['name']}: {workload['splats']} splats, {workload['side_px']} px, "
        f"{100 * row['covered']:.0f} % covered, {row['contributing_pairs'] / 1e6:.2f} M contributing pairs "
        f"({row['pairs_per_covered_px']:.0f} per covered px, {100 * row['lanes_used']:.0f} % of the lanes), "
        f"load {row['load'][0]} to {row['load'][1]}"
    )
    console.print(f"{title}\nms: median (least); ratios are of medians of forward + backward", soft_wrap=True)
    table = new_table()
    for heading in ("way", "threads", "forward", "backward", "f + b", "iteration"):
        table.add_column(heading, justify="left" if heading == "way" else "right")
    for heading in ("over\ntorch", "over 1\nthread", "Mpairs/s a\ncore, f, b"):
        table.add_column(heading, justify="right")
    for way in row["ways"]:
        cells = []
        for stage in ("forward", "backward", "forward_backward", "iteration"):
            value = way.get(stage)
            cells.append(f"{short(value['median_ms'])} ({short(value['min_ms'])})" if value else "")
        rates = [f"{way['pairs_per_s_per_core'][stage] / 1e6:.0f}" for stage in ("forward", "backward")]
        table.add_row(
            way["instruction_set"],
            str(way["threads"]),
            *cells,
            "" if way["instruction_set"] == TORCH else f"{way['faster_than_torch']:.0f}x",
            f"{way['faster_than_one_thread']:.2f}x" if way["threads"] > 1 else "",
            ", ".join(rates),
        )
    console.print(table)

    peaks = ", ".join(
        f"{way['instruction_set']} {way['peak_multiply_adds_per_s_per_core'] / 1e9:.2f}"
        for way in row["ways"]
        if "peak_multiply_adds_per_s_per_core" in way and way["threads"] == 1
    )
    console.print(
        f"{workload['name']}: an iteration by stage, median ms; rates and share of the roofline of the composite stages\n"
        f"(peak: {peaks} G multiply-adds of 16 lanes a second and core)",
        soft_wrap=True,
    )
    table = new_table()
    table.add_column("way")
    headings = [
        "thr.",
        "project",
        "sort",
        "bin",
        "comp.",
        "back-\ncomp.",
        "back-\nproject",
        "loss",
        "Adam",
        "Python",
    ]
    for heading in [*headings, "Mpairs/s a\ncore, c, bc", "roofline\n%, c, bc"]:
        table.add_column(heading, justify="right")
    composite = ("composite", "backward_composite")
    for way in row["ways"]:
        if "stages_median_ms" not in way:
            continue
        table.add_row(
            way["instruction_set"],
            str(way["threads"]),
            *(short(way["stages_median_ms"][stage]) for stage in (*STAGES, "loss", "optimiser", "python")),
            ", ".join(f"{way['pairs_per_s_per_core'][stage] / 1e6:.0f}" for stage in composite),
            ", ".join(f"{100 * way['share_of_roofline'][stage]:.0f}" for stage in composite),
        )
    console.print(table)


def time_busy(names: tuple[str, ...], options: Options) -> list[dict[str, Any]]:
    """Forward + backward with one and with two threads while another process holds one core."""
    repetitions = options.repetitions or (15 if options.quick else 45)
    kernel = kernel_info().instruction_set
    ways = [Way(kernel, 1), Way(kernel, 2)]
    rows = []
    for name in names:
        bench = Bench(WORKLOADS[name])
        times = {way: Times() for way in ways}
        with busy_neighbour():
            for repetition in range(-1, repetitions):
                # In turns, so that none always follows the other; the first round only warms up.
                for way in ways if repetition % 2 else reversed(ways):
                    use(way)
                    bench.render(way, times[way] if repetition >= 0 else Times())
        one, two = (statistics.median(times[way].both) for way in ways)
        rows.append(
            {
                "workload": name,
                "instruction_set": kernel,
                "one_thread_median_ms": one,
                "two_threads_median_ms": two,
                "ratio": one / two,
                "repetitions": repetitions,
                "load": load(),
            }
        )
    return rows


def print_busy(console: Console, rows: list[dict[str, Any]]) -> None:
    """One table."""
    console.print("forward + backward while another process holds one core, median ms")
    table = new_table()
    table.add_column("workload")
    for heading in ("repetitions", "1 thread", "2 threads", "over 1 thread"):
        table.add_column(heading, justify="right")
    for row in rows:
        one, two = row["one_thread_median_ms"], row["two_threads_median_ms"]
        table.add_row(
            row["workload"], str(row["repetitions"]), f"{one:.2f}", f"{two:.2f}", f"{row['ratio']:.2f}x"
        )
    console.print(table)


def short(value: float) -> str:
    """Three digits or so."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def new_table() -> Table:
    """An empty table without frills: many columns must fit."""
    return Table(box=box.SIMPLE_HEAD, pad_edge=False)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
