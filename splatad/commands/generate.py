"""`splatad generate`: photos of a made-up product, good and with defects, in MAD-Sim's layout."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from prepare.generate.objects import Family


@dataclass(frozen=True)
class Generate:
    """Make photos of a procedural product: reference views, and test photos with Burrs, Missing and Stains."""

    family: Family = "truck"
    """Kind of product."""
    name: str | None = None
    """Class name, the folder under --out; the family's name unless given."""
    out: Path = Path("splatad-work/raw")
    """Folder for generated classes. A stopped run is taken up where it stood; other files are never overwritten."""
    views: int = 72
    """Number of reference (train) photos."""
    good: int = 12
    """Number of test photos without a defect."""
    defects: int = 8
    """Number of test photos of each of the three defect types."""
    size_px: int = 400
    """Width and height of the photos, px."""
    seed: int = 0
    """Another seed gives another product of the family, other cameras and other defects."""
    supersample: int = 2
    """Rays per pixel along each axis (1 to 4): smooth edges for time."""
    noise: float = 0.004
    """Standard deviation of sensor noise in test photos, 1 being white; 0 for none."""
    defect_px: tuple[float, float] = (25.0, 4800.0)
    """Least and most area of a defect, px of a photo of 400 x 400; 25 100 makes small ones only."""
    workers: int = 0
    """Processes that render; 0 for one per processor. Changes the time only."""


Command = Generate


def run(config: Generate) -> int:
    """Exit status 0 once the dataset is complete on disk.

    Raises: UsageError, InputError as `prepare.generate.dataset.generate`.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from prepare.generate.dataset import Settings, generate

    name = config.name if config.name is not None else config.family
    settings = Settings(
        family=config.family,
        seed=config.seed,
        views=config.views,
        good=config.good,
        defects=config.defects,
        size_px=config.size_px,
        supersample=config.supersample,
        noise=config.noise,
        defect_px=config.defect_px,
    )
    console = Console()
    started = time.perf_counter()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task(f"photos of {name}", total=None)
        made = generate(
            config.out,
            name,
            settings,
            config.workers,
            lambda done, total: progress.update(bar, completed=done, total=total),
        )
    seconds = time.perf_counter() - started
    tests = config.good + 3 * config.defects
    lines = (
        f"{made.folder}: a {config.family} of {made.parts} parts, seed {config.seed}",
        f"  {config.views} reference photos, {tests} test photos ({config.good} good, {config.defects} each with "
        f"Burrs, Missing and Stains), {config.size_px} x {config.size_px} px",
        f"  {made.written} made in {seconds:.1f} s"
        + (f", {made.kept} were there already" if made.kept else ""),
        f"next: splatad prepare mad-sim --data {config.out}",
    )
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return 0
