"""Times the C++ rasteriser, stage by stage, against an efficient plain-torch one; both must draw the same first.

    .venv/bin/python scripts/bench_rasterize.py [--quick] [--json OUT.json]

Workloads W1 to W3 are a bumpy torus of oriented discs: 10k splats at 200 px, 50k at 400 px, 100k at 800 px. Runs are
interleaved: every repetition times each way once, so that a neighbour's load falls on all alike. Trust the ratios; the
milliseconds belong to the machine and to the load printed with them.
"""

from __future__ import annotations

import math
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
import tyro
from jaxtyping import Float, Int
from rich.console import Console
from rich.table import Table
from torch import Tensor

from prepare.atomic_write import write_json
from prepare.camera import Camera, focal_from_fov, look_at
from prepare.errors import MissingPartError
from recon.gaussians import Gaussians, rotation_matrices
from recon.harmonics import SH_C0, shade
from recon.kernel.library import InstructionSet, choose_instruction_set, kernel_info, set_threads
from recon.losses import Target, make_target, photometric_loss
from recon.rasterize import BLUR_PX2, RasterOptions, rasterize

ALPHA_MAX, ALPHA_MIN, STOP = 0.999, 1.0 / 255.0, 1e-4
SSIM_SHARE = 0.2
TORCH = "torch_pairs"
Result = TypeVar("Result")


@dataclass(frozen=True)
class Options:
    """What to time."""

    quick: bool = False
    """W1 and W2 only, few repetitions: about a minute."""
    json: Path | None = None
    """Also write all figures to this file."""
    workloads: tuple[Literal["W1", "W2", "W3"], ...] = ()
    """Only these; all where empty (W1 and W2 with --quick)."""
    repetitions: int | None = None
    """Of each way of the kernel; 11 where not given (5 with --quick)."""
    torch_repetitions: int | None = None
    """Of the plain-torch rasteriser; 3 where not given (2 with --quick)."""


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
    loss: list[float] = field(default_factory=list)  # L1 + SSIM and its gradient
    iteration: list[float] = field(default_factory=list)  # all of these and a step of Adam


class Bench:
    """A workload with what every repetition needs."""

    def __init__(self, workload: Workload) -> None:
        splats, self.camera = make_scene(workload)
        self.splats = Gaussians(**{name: t.requires_grad_() for name, t in splats.tensors().items()})
        self.leaves = list(self.splats.tensors().values())
        self.background = torch.ones(3)
        generator = torch.Generator().manual_seed(1)
        side = workload.side_px
        self.v_rgb = torch.randn(side, side, 3, generator=generator)
        with torch.no_grad():
            photo = rasterize(self.splats, self.camera, self.background).rgb
        noise = 0.05 * torch.randn(side, side, 3, generator=generator)
        self.target: Target = make_target((photo + noise).clamp(0, 1))
        # A learning rate of zero does the work of a step and leaves the scene as it is.
        self.adam = torch.optim.Adam(self.leaves, lr=0.0, fused=True)

    def draw(self, way: Way) -> Tensor:
        """The view, rendered in the given way."""
        if way.instruction_set == TORCH:
            return torch_pairs(self.splats, self.camera, self.background)[0]
        return rasterize(self.splats, self.camera, self.background, backend="cpu").rgb

    def repeat(self, way: Way, times: Times) -> None:
        """Time every stage once."""
        use(way)
        self.adam.zero_grad(set_to_none=True)
        rgb = timed(times.forward, lambda: self.draw(way))
        timed(times.backward, lambda: rgb.backward(self.v_rgb))
        self.adam.zero_grad(set_to_none=True)
        if way.instruction_set == TORCH:
            return
        leaf = rgb.detach().requires_grad_()
        timed(times.loss, lambda: photometric_loss(leaf, self.target, SSIM_SHARE).backward())
        del rgb

        def iteration() -> None:
            photometric_loss(self.draw(way), self.target, SSIM_SHARE).backward()
            self.adam.step()
            self.adam.zero_grad(set_to_none=True)

        timed(times.iteration, iteration)

    def gradients(self, way: Way) -> list[Tensor]:
        """Gradients of a fixed weighting of the picture by every field."""
        use(way)
        return list(torch.autograd.grad((self.draw(way) * self.v_rgb).sum(), self.leaves))


def use(way: Way) -> None:
    """Let what follows run in this way."""
    torch.set_num_threads(way.threads)
    set_threads(way.threads)
    if way.instruction_set != TORCH:
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


def main(options: Options) -> None:
    """Time, print, and write."""
    console = Console()
    names = options.workloads or (("W1", "W2") if options.quick else ("W1", "W2", "W3"))
    repetitions = options.repetitions or (5 if options.quick else 11)
    torch_repetitions = options.torch_repetitions or (2 if options.quick else 3)
    ways = available_ways()
    choose_instruction_set("auto")
    report: dict[str, object] = {
        "machine": machine(),
        "load_before": load(),
        "options": asdict(options) | {"json": None},
    }
    console.print("  ".join(f"{key}: {value}" for key, value in machine().items()))
    rows = []
    for name in names:
        workload = WORKLOADS[name]
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
        choose_instruction_set("auto")
        rows.append(
            {
                "workload": asdict(workload),
                "covered": covered,
                "contributing_pairs": contributing,
                "pairs_per_covered_px": contributing / (covered * workload.side_px**2),
                "load": load_during,
                "ways": [asdict(way) | summary(record, contributing) for way, record in times.items()],
            }
        )
        print_workload(console, rows[-1])
    report |= {"results": rows, "load_after": load()}
    if options.json is not None:
        write_json(options.json, report)
        console.print(f"written: {options.json}")


def summary(times: Times, contributing: int) -> dict[str, object]:
    """Minimum and median of each stage in ms, and millions of contributing pairs a second."""
    found: dict[str, object] = {}
    for stage, values in vars(times).items():
        if values:
            found[stage] = {
                "min_ms": min(values),
                "median_ms": statistics.median(values),
                "repetitions": len(values),
            }
    both = [f + b for f, b in zip(times.forward, times.backward, strict=True)]
    found["forward_backward"] = {
        "min_ms": min(both),
        "median_ms": statistics.median(both),
        "repetitions": len(both),
    }
    found["pairs_per_s_forward"] = contributing / (1e-3 * min(times.forward))
    found["pairs_per_s_backward"] = contributing / (1e-3 * min(times.backward))
    return found


def print_workload(console: Console, row: dict) -> None:
    """One table: medians with minima in brackets, and the ratio of torch's forward + backward to each way's."""
    workload = row["workload"]
    title = (
        f"{workload['name']}: {workload['splats']} splats, {workload['side_px']} px, "
        f"{100 * row['covered']:.0f} % covered, {row['contributing_pairs'] / 1e6:.2f} M contributing pairs "
        f"({row['pairs_per_covered_px']:.0f} per covered px), "
        f"load {row['load'][0]} to {row['load'][1]}"
    )
    table = Table(title=title, title_justify="left")
    for heading in ("way", "threads", "forward ms", "backward ms", "f + b ms", "loss ms", "iteration ms"):
        table.add_column(heading, justify="left" if heading == "way" else "right")
    table.add_column("Mpairs/s f, b", justify="right")
    table.add_column("faster than torch", justify="right")
    plain = {
        way["threads"]: way["forward_backward"] for way in row["ways"] if way["instruction_set"] == TORCH
    }
    for way in row["ways"]:
        cells = []
        for stage in ("forward", "backward", "forward_backward", "loss", "iteration"):
            value = way.get(stage)
            cells.append(f"{value['median_ms']:.2f} ({value['min_ms']:.2f})" if value else "")
        rates = f"{way['pairs_per_s_forward'] / 1e6:.0f}, {way['pairs_per_s_backward'] / 1e6:.0f}"
        against, own = plain[way["threads"]], way["forward_backward"]
        ratio = f"{against['median_ms'] / own['median_ms']:.0f}x ({against['min_ms'] / own['min_ms']:.0f}x)"
        table.add_row(way["instruction_set"], str(way["threads"]), *cells, rates, ratio)
    console.print(table)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
