"""`splatad generate chairs`: procedural chairs, views of each, photos with and without an anomaly."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class GenerateChairs:
    """Make chairs of many families with semantic parts, and photos where a part is moved, turned, broken, swapped or missing.

    Every photo with an anomaly has a twin: the right shape under the same camera, material and light. Written as packed arrays
    (NAME/packed) and in the folders of BrokenChairs-180K.
    """

    name: str = "chairs"
    """Name of the set, the folder under --out."""
    out: Path = Path("splatad-work/raw")
    """Folder for generated sets. A stopped run is taken up where it stood; other files are never overwritten."""
    shapes: int = 500
    """Number of different chairs."""
    photos_per_shape: int = 20
    """Photos of each, half of them with an anomaly; an even number."""
    views: int = 20
    """Grey reference views of each, on rings from 20 degrees below to 60 above."""
    seed: int = 0
    """Another seed gives other chairs, materials, cameras and anomalies."""
    px: int = 256
    """Width and height of every picture, px."""
    points: int = 2000
    """Surface points of each chair whose places in all views are kept."""
    supersample: int = 2
    """Rays per pixel along each axis (1 to 4): smooth edges for time."""
    aided: bool = True
    """Also render the right shape from near each photo's camera, for training the pose-aided mode."""
    files: bool = True
    """Also write BrokenChairs' folders of PNG and JSON files, besides the packed arrays."""
    workers: int = 0
    """Processes that render; 0 for one per processor. Changes the time only."""


Command = GenerateChairs


def run(config: GenerateChairs) -> int:
    """Exit status 0 once the set is complete on disk.

    Raises: UsageError, InputError as `prepare.generate.chairs.generate_chairs`.
    """
    from dataclasses import fields

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from prepare.generate.chairs import ChairSettings, generate_chairs
    from prepare.shape_pairs import SPLITS, TYPES

    settings = ChairSettings(**{field.name: getattr(config, field.name) for field in fields(ChairSettings)})
    console = Console()
    started = time.perf_counter()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task(f"chairs of {config.name}", total=None)
        made = generate_chairs(
            config.out,
            config.name,
            settings,
            config.workers,
            lambda done, total: progress.update(bar, completed=done, total=total),
        )
    seconds = time.perf_counter() - started
    pairs = made.pairs
    count = [int((pairs.query_type == index).sum()) for index in range(len(TYPES))]
    split = ", ".join(f"{len(pairs.splits[name])} {name}" for name in SPLITS)
    kinds = ", ".join(f"{n} {name}" for n, name in zip(count[1:], TYPES[1:], strict=True))
    tried = sum(made.tries.values())
    lines = (
        f"{made.folder}: {settings.shapes} chairs ({split}), seed {settings.seed}",
        f"  {settings.views} views each; {pairs.sizes.queries} photos of {settings.px} px: {count[0]} normal, {kinds}",
        f"  {tried - made.tries['accepted']} of {tried} proposed anomalies were turned down"
        f" ({made.tries['empty']} not sensible, {made.tries['unseen']} not seen, {made.tries['faint']} too faint)",
        f"  {made.written} shapes made in {seconds:.1f} s"
        + (f", {made.kept} were there already" if made.kept else ""),
        f"  packed in {pairs.folder}",
    )
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return 0
