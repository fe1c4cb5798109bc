"""Cameras found from plain photos against reference cameras: how many, how exact, how long.

    .venv/bin/python scripts/bench_sfm.py [--sets plush test_colmap ...] [--work DIR] [--json OUT.json]

Each set's photos alone go through `prepare photos`; then its cameras are laid over the reference's by the similarity that
fits their positions best (robustly: a few wrong cameras do not move it). An error of position is given in percent of the
scene's size, the diagonal of the box round the reference cameras; one of the turn in degrees.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
import tyro
from bench_rasterize import WIDTH, machine, new_table
from rich.console import Console
from torch import Tensor

from detect.metrics import rotation_error_deg
from prepare.atomic_write import write_json
from prepare.datasets.photos import prepare_photos
from prepare.scene import load_scene, read_json_object
from prepare.structure_from_motion import load_colmap

REPO = Path(__file__).resolve().parents[1]
HEADINGS = (
    "set",
    "photos",
    "registered",
    "deg median",
    "95 %",
    "most",
    "position % median",
    "95 %",
    "most",
    "s",
)


@dataclass(frozen=True)
class Options:
    """What to try."""

    sets: tuple[str, ...] = ("plush", "test_colmap")
    """Of plush, test_colmap, fox, nerf_lego, mad_car."""
    work: Path | None = None
    """Workspace for the scenes, kept for the next run (which then takes no time); a temporary one if not given."""
    data: Path = field(
        default_factory=lambda: Path(os.environ.get("SPLATAD_TESTDATA") or REPO.parent / "shared" / "data")
    )
    """Folder of the datasets."""
    json: Path | None = None
    """Also write the figures to this file."""


@dataclass(frozen=True)
class Row:
    """What came of a set."""

    name: str
    photos: int
    registered: int
    turn_deg: list[float]  # of each registered photo
    position_percent: list[float]
    seconds: float
    mapper: str
    summary: list[str]


def cameras_of(scene: Path) -> dict[str, Tensor]:
    """World-to-camera matrices (float64) by the photos' file names."""
    return {view.image_path.name: view.camera.world_to_cam.double() for view in load_scene(scene).views}


def colmap_cameras(model: Path) -> dict[str, Tensor]:
    """The same of a COLMAP model."""
    found = {}
    for image in load_colmap().Reconstruction(str(model)).images.values():
        matrix = torch.eye(4, dtype=torch.float64)
        matrix[:3] = torch.from_numpy(np.array(image.cam_from_world().matrix()))
        found[image.name] = matrix
    return found


def similarity(source: Tensor, target: Tensor) -> tuple[float, Tensor, Tensor]:
    """Scale s, rotation R and shift t with target ~ s R source + t, by reweighted least squares (Umeyama 1991)."""
    weights = torch.ones(len(source), dtype=torch.float64)
    scale, rotation, shift = 1.0, torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for _ in range(20):
        share = (weights / weights.sum())[:, None]
        source_mean, target_mean = (share * source).sum(0), (share * target).sum(0)
        a, b = source - source_mean, target - target_mean
        left, values, right = torch.linalg.svd(b.T @ (share * a))
        signs = torch.ones(3, dtype=torch.float64)
        signs[2] = torch.sign(torch.linalg.det(left) * torch.linalg.det(right))
        rotation = left @ torch.diag(signs) @ right
        scale = float((values * signs).sum() / (share * a.square()).sum())
        shift = target_mean - scale * rotation @ source_mean
        off = (scale * source @ rotation.T + shift - target).norm(dim=1)
        weights = 1.0 / off.clamp_min(0.5 * float(off.median()) + 1e-12)
    return scale, rotation, shift


def camera_errors(found: dict[str, Tensor], truth: dict[str, Tensor]) -> tuple[list[float], list[float]]:
    """Degrees, and percent of the scene's size, of each photo that both know, by name."""
    names = sorted(found.keys() & truth.keys())
    ours, theirs = (torch.stack([cameras[name] for name in names]) for cameras in (found, truth))
    centres, true_centres = (-(m[:, :3, :3].transpose(1, 2) @ m[:, :3, 3:])[..., 0] for m in (ours, theirs))
    scale, rotation, shift = similarity(centres, true_centres)
    size = float((true_centres.amax(0) - true_centres.amin(0)).norm())
    position = (scale * centres @ rotation.T + shift - true_centres).norm(dim=1) / size * 100
    turned = ours.clone()
    turned[:, :3, :3] = ours[:, :3, :3] @ rotation.T
    return rotation_error_deg(turned, theirs).tolist(), position.tolist()


SETS: dict[str, tuple[str, Callable[[Path], dict[str, Tensor]]]] = {
    "plush": ("images", cameras_of),
    "test_colmap": ("dense/0/images", lambda folder: colmap_cameras(folder / "sparse" / "0")),
    "fox": ("images", cameras_of),
    "nerf_lego": ("train", cameras_of),
    "mad_car": ("train/good", cameras_of),
}


def run_set(name: str, options: Options, work: Path, console: Console) -> Row:
    """Prepare the set's photos and compare."""
    folder = options.data / name
    photos, read_truth = SETS[name]
    start = time.perf_counter()
    (scene,) = prepare_photos(
        folder / photos, lambda scene_name: work / "scenes" / scene_name, name=f"{name}_sfm"
    )
    seconds = time.perf_counter() - start
    record = read_json_object(scene / "prepare.json")
    turn, position = camera_errors(cameras_of(scene), read_truth(folder))
    for line in record["summary"]:
        console.print(f"  {name}: {line}", markup=False)
    return Row(
        name,
        record["photos"],
        record["registered"],
        turn,
        position,
        seconds,
        record["mapper"],
        record["summary"],
    )


def main(options: Options) -> None:
    console = Console(width=WIDTH, soft_wrap=True, highlight=False)
    console.print(str(machine()), markup=False)
    work = options.work or Path(tempfile.mkdtemp(prefix="bench-sfm-"))
    rows = []
    try:
        for name in options.sets:
            rows.append(run_set(name, options, work, console))
    finally:
        if options.work is None:
            shutil.rmtree(work, ignore_errors=True)
    table = new_table()
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading == "set" else "right")
    for row in rows:
        figures = [
            f"{np.percentile(values, share):.3f}"
            for values in (row.turn_deg, row.position_percent)
            for share in (50, 95, 100)
        ]
        table.add_row(row.name, str(row.photos), str(row.registered), *figures, f"{row.seconds:.0f}")
    console.print(table)
    if options.json is not None:
        write_json(options.json, {"machine": machine(), "sets": [asdict(row) for row in rows]})


if __name__ == "__main__":
    main(tyro.cli(Options))
