"""`splatad generate registered`: photos with registered points of made-up parts, in the folders of MVTec 3D-AD or Eyecandies."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

PartName = Literal["bagel", "cookie", "cable_gland", "dowel", "potato"]
Fault = Literal["dent", "hole", "contamination", "colour", "combined"]


@dataclass(frozen=True)
class GenerateRegistered:
    """Make classes of parts on a support, each photo with a measured point at every pixel, good ones and four kinds of defects.

    Dents and holes change the shape, contamination shape and colour, colour the colour alone. Prepare them with
    `splatad prepare mvtec-3d` or `eyecandies`, as the real datasets.
    """

    name: str = "registered"
    """Name of the dataset, the folder under --out."""
    out: Path = Path("splatad-work/raw")
    """Folder for generated datasets. A stopped run is taken up where it stood; other files are never overwritten."""
    layout: Literal["mvtec-3d", "eyecandies"] = "mvtec-3d"
    """Which dataset's folders, sensor and lights."""
    classes: tuple[PartName, ...] = ("bagel", "cookie", "cable_gland", "dowel", "potato")
    """Kinds of part."""
    train: int = 40
    """Good samples to train with, of each class."""
    validation: int = 8
    """Good samples to calibrate with, of each class."""
    good: int = 10
    """Good test samples of each class."""
    defects: int = 6
    """Test samples of each kind of defect, of each class."""
    kinds: tuple[Fault, ...] = ("dent", "hole", "contamination", "colour")
    """Kinds of defect; combined is two of the others."""
    px: int = 400
    """Width and height, px; for mvtec-3d a multiple of 100."""
    noise_mm: float = 0.08
    """Standard deviation of a measured point along its ray, mm (mvtec-3d)."""
    seed: int = 0
    """Another seed gives other samples."""
    workers: int = 0
    """Processes that render; 0 for one per processor. Changes the time only."""


Command = GenerateRegistered


def run(config: GenerateRegistered) -> int:
    """Exit status 0 once the dataset is complete on disk.

    Raises: UsageError, InputError as `prepare.generate.registered_objects.generate_registered`.
    """
    from dataclasses import fields

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from prepare.generate.registered_objects import RegisteredSettings, generate_registered

    settings = RegisteredSettings(**{f.name: getattr(config, f.name) for f in fields(RegisteredSettings)})
    console = Console()
    started = time.perf_counter()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(config.name, total=None)
        made = generate_registered(
            config.out,
            config.name,
            settings,
            config.workers,
            lambda done, total: progress.update(bar, completed=done, total=total),
        )
    seconds = time.perf_counter() - started
    test = f"{config.good} good and {config.defects} each of {', '.join(config.kinds)}"
    command = f"splatad prepare {config.layout} {made.folder}"
    for line in (
        f"{made.folder}: {', '.join(config.classes)}; {config.layout}, {config.px} px, seed {config.seed}",
        f"  of each: {config.train} train, {config.validation} validation, test {test}",
        f"  {made.made} samples made in {seconds:.1f} s"
        + (f", {made.kept} were there already" if made.kept else ""),
        f"next: {command}",
    ):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return 0
