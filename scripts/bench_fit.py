"""Fits real photos, each time in a process of its own, and tells quality, cost, memory and where the time goes.

    .venv/bin/python scripts/bench_fit.py [--scene mad_car nerf_lego] [--presets fast default best] [--json OUT.json]
    .venv/bin/python scripts/bench_fit.py --budgets 30 60 120      # as many steps as fill so many seconds

Every tenth photo is held out. Seconds are wall time from the command to the splats: starting Python, reading the photos,
the first points, the fit, and measuring all photos; preparing a dataset (once, before) and writing are not in them. The
profile comes from wrapping functions from here. Milliseconds belong to the machine and the load printed with them.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from bench_rasterize import WIDTH, Profile, load, machine, new_table
from rich.console import Console

import recon.fit
from prepare.atomic_write import write_json
from prepare.datasets.mad_sim import prepare_mad_sim
from prepare.datasets.nerf_synthetic import prepare_nerf_synthetic
from prepare.scene import load_scene
from recon.densify import Coverage, GradientTally, SplatOptimizer
from recon.fit import PRESETS, FitConfig, fit_scene
from recon.kernel.library import library
from splatad.reference_dir import choose_device
from splatad.threads import leave_cores_to_the_kernel

HELD_OUT_EVERY = 10
PILOT_STEPS = 300  # tell what a step costs, before the first fit on a budget
REPO = Path(__file__).resolve().parents[1]

START, READING, POINTS, FORWARD, LOSS, BACKWARD = (
    "start", "reading", "initial points", "raster forward", "loss", "raster backward",
)  # fmt: skip
OPTIMISER, GROWTH, MEASURING, REST = "optimiser", "growth", "measuring", "Python, rest"
STAGES = (START, READING, POINTS, FORWARD, LOSS, BACKWARD, OPTIMISER, GROWTH, MEASURING, REST)
QUALITIES: tuple[Literal["psnr", "part_psnr", "ssim", "part_ssim", "lpips"], ...] = (
    "psnr", "part_psnr", "ssim", "part_ssim", "lpips",
)  # fmt: skip
OUTSIDE_THE_LOOP = (START, READING, POINTS, MEASURING)  # what does not grow with the steps


@dataclass(frozen=True)
class Options:
    """What to fit."""

    scene: tuple[str, ...] = ("mad_car", "nerf_lego")
    """mad_car or nerf_lego as they lie in --data, or folders of prepared scenes."""
    presets: tuple[Literal["fast", "default", "best"], ...] = ("default",)
    """Fit each scene with each of these."""
    budgets: tuple[float, ...] = ()
    """Wall seconds: fit with as many steps as fill each of these, in place of the preset's number. Adds a short fit before."""
    steps: int | None = None
    """In place of the preset's."""
    splats: int | None = None
    """In place of the preset's."""
    size_px: int | None = None
    """In place of the preset's: longer side of the photos, px."""
    device: str = "cpu"
    """cpu, cuda, or auto: cuda where it can be used. On CUDA the profile knows only what lies outside the loop."""
    data: Path = field(
        default_factory=lambda: Path(os.environ.get("SPLATAD_TESTDATA") or REPO.parent / "shared" / "data")
    )
    """Folder of the datasets."""
    json: Path | None = None
    """Also write all figures to this file."""


@dataclass(frozen=True)
class Job:
    """One fit."""

    scene: Path
    config: FitConfig
    device: str  # "cpu" or "cuda"
    asked: float  # time.time() when it was


@dataclass(frozen=True)
class Figures:
    """What one fit gave and took."""

    wall_s: float  # from asking to the result
    cpu_s: float  # of all threads of the process
    steps: int  # done; fewer than asked where the fit stops by itself
    splats: int
    # Means over the photos by `QUALITIES`; None where there is none, as LPIPS without its weights.
    held_out: dict[str, float | None]
    fitted: dict[str, float | None]
    peak_gb: float  # resident memory
    initial_source: str
    profile_s: dict[str, float]  # wall seconds by stage


def fit_one(job: Job) -> Figures:
    """Fit in this process, which must be fresh: its memory and processor time are taken as the fit's."""
    start = time.perf_counter()
    started_in = time.time() - job.asked
    device = torch.device(job.device)
    leave_cores_to_the_kernel(device)
    with Profile() as profile:
        wrap_stages(profile)
        with profile.stage(READING):
            scene = load_scene(job.scene)
        fit = fit_scene(scene, job.config, device=device)
    seconds = {stage: profile.seconds[stage] for stage in STAGES} | {START: started_in}
    wall = time.perf_counter() - start + started_in
    seconds[REST] = wall - sum(seconds.values())
    return Figures(
        wall_s=wall,
        cpu_s=time.process_time(),
        steps=fit.steps,
        splats=len(fit.gaussians),
        held_out={name: fit.mean_quality(name, held_out=True) for name in QUALITIES},
        fitted={name: fit.mean_quality(name, held_out=False) for name in QUALITIES},
        peak_gb=peak_memory_gb(),
        initial_source=fit.initial_source,
        profile_s=seconds,
    )


def wrap_stages(profile: Profile) -> None:
    """Let the stages of a fit be charged. The rest is Python, autograd and memory between the kernel's calls."""
    for owner, names, stage in (
        (recon.fit, ("load_photo", "make_target"), READING),
        (recon.fit, ("initial_cloud", "hull_points", "random_points", "gaussians_from_points"), POINTS),
        (library(), ("splatad_forward",), FORWARD),
        (library(), ("splatad_l1_ssim",), LOSS),
        (library(), ("splatad_backward",), BACKWARD),
        (library(), ("splatad_adam_step",), OPTIMISER),
        (recon.fit, ("grow", "prunable", "compositing_weights"), GROWTH),
        (SplatOptimizer, ("keep", "append", "assign"), GROWTH),
        (GradientTally, ("add",), GROWTH),
        (Coverage, ("add", "judge", "keep", "append"), GROWTH),
        (recon.fit, ("load_lpips", "psnr", "measure_quality"), MEASURING),
    ):
        for name in names:
            profile.wrap(owner, name, stage)
    # Not public: where they are gone, what they did besides the above is charged to its own stage or to the rest.
    for name, stage in (("_prune", GROWTH), ("_measure", MEASURING), ("_mean_psnr", MEASURING)):
        if hasattr(recon.fit, name):
            profile.wrap(recon.fit, name, stage)


def peak_memory_gb() -> float:
    """Most memory this process had resident, GB.

    Linux starts `ru_maxrss` of a new process at what its parent held, so its own mark is read where there is one.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1]) / 1e9
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 1e9 if sys.platform == "darwin" else 1024 * most / 1e9


def run(scene: Path, config: FitConfig, device: str) -> Figures:
    """`fit_one` in a fresh process."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(fit_one, Job(scene, config, device, time.time())).result()


def config_of(preset: str, options: Options) -> FitConfig:
    """The preset with the overrides, every tenth photo held out, and no checkpoints."""
    config = replace(PRESETS[preset], held_out_every=HELD_OUT_EVERY, checkpoint_seconds=0.0)
    if options.steps is not None:
        config = replace(config, steps=options.steps)
    if options.size_px is not None:
        config = replace(config, size_px=options.size_px)
    if options.splats is not None:
        first = min(config.initial_splats, options.splats)
        config = replace(config, splats=options.splats, initial_splats=first)
    return config


def steps_within(seconds: float, seen: Figures) -> int:
    """How many steps fill `seconds`, if they cost what they cost in a fit already done. One at least."""
    fixed = sum(seen.profile_s[stage] for stage in OUTSIDE_THE_LOOP)
    step = (seen.wall_s - fixed) / max(1, seen.steps)
    return max(1, round((seconds - fixed) / step))


def prepared(name: str, options: Options, workspace: Path) -> Path:
    """The folder of a scene: a dataset is prepared in `workspace`, a folder is taken as it is.

    Raises: InputError for a dataset that is not there.
    """
    if name == "mad_car":
        return prepare_mad_sim(options.data / name, lambda scene: workspace / scene)[0]
    if name == "nerf_lego":
        return prepare_nerf_synthetic(options.data / name, lambda scene: workspace / scene)[0]
    return Path(name)


def main(options: Options) -> None:
    """Fit, print, and write.

    Raises: SystemExit for flags that contradict each other, InputError for scenes that cannot be read.
    """
    if options.budgets and options.steps is not None:
        raise SystemExit("--budgets and --steps: the first finds the number of steps; give one of them")
    device = choose_device(options.device).type
    console = Console(width=WIDTH)
    console.print("  ".join(f"{key}: {value}" for key, value in machine().items()))
    rows: list[dict[str, Any]] = []
    report: dict[str, object] = {"machine": machine(), "load_before": load()}
    with tempfile.TemporaryDirectory(prefix="splatad-bench-") as folder:
        for name in options.scene:
            scene = prepared(name, options, Path(folder))
            for preset in options.presets:
                config = config_of(preset, options)
                if not options.budgets:
                    rows.append(row_of(scene, preset, None, config, device))
                    continue
                seen = run(scene, replace(config, steps=min(config.steps, PILOT_STEPS)), device)
                for budget in sorted(options.budgets):
                    config = replace(config, steps=steps_within(budget, seen))
                    rows.append(row_of(scene, preset, budget, config, device))
                    seen = Figures(**rows[-1]["figures"])
    print_quality(console, rows)
    print_profile(console, rows)
    report |= {"results": rows, "load_after": load()}
    if options.json is not None:
        write_json(options.json, report)
        console.print(f"written: {options.json}")


def row_of(scene: Path, preset: str, budget: float | None, config: FitConfig, device: str) -> dict[str, Any]:
    """Fit, and what to print and write of it."""
    before = load()
    figures = run(scene, config, device)
    return {
        "scene": scene.name,
        "preset": preset,
        "budget_s": budget,
        "device": device,
        "config": asdict(config),
        "load": [before, load()],
        "figures": asdict(figures),
    }


def label(row: dict[str, Any]) -> str:
    """Which fit a row is of."""
    budget = "" if row["budget_s"] is None else f" {row['budget_s']:g} s"
    return f"{row['scene']} {row['preset']}{budget}"


def print_quality(console: Console, rows: list[dict[str, Any]]) -> None:
    """One table: a fit a line."""
    console.print(f"PSNR in dB and SSIM: whole image / part; every {HELD_OUT_EVERY}th photo held out")
    table = new_table()
    table.add_column("fit")
    for heading in (
        "wall s",
        "CPU s",
        "steps",
        "splats",
        "held out\nPSNR",
        "SSIM",
        "LPIPS",
        "fitted\nPSNR",
        "GB",
        "load",
    ):
        table.add_column(heading, justify="right")

    def numbers(quality: dict[str, float | None], names: tuple[str, ...], form: str) -> str:
        return " / ".join("-" if (value := quality[name]) is None else format(value, form) for name in names)

    for row in rows:
        figures = row["figures"]
        table.add_row(
            label(row),
            f"{figures['wall_s']:.1f}",
            f"{figures['cpu_s']:.1f}",
            str(figures["steps"]),
            f"{figures['splats']:,}",
            numbers(figures["held_out"], ("psnr", "part_psnr"), ".2f"),
            numbers(figures["held_out"], ("ssim", "part_ssim"), ".3f"),
            numbers(figures["held_out"], ("lpips",), ".3f"),
            numbers(figures["fitted"], ("psnr",), ".2f"),
            f"{figures['peak_gb']:.2f}",
            f"{row['load'][0]}, {row['load'][1]}",
        )
    console.print(table)


def print_profile(console: Console, rows: list[dict[str, Any]]) -> None:
    """One table: where the wall time of each fit went."""
    console.print("wall s by stage")
    table = new_table()
    table.add_column("fit")
    for stage in STAGES:
        table.add_column(stage.replace(" ", "\n", 1), justify="right")
    for row in rows:
        seconds = row["figures"]["profile_s"]
        table.add_row(label(row), *(f"{seconds[stage]:.2f}" for stage in STAGES))
    console.print(table)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
