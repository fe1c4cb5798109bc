"""`detect --detector cmt` on parts that are no chairs: meshes, photos through a lens that nobody told, half with a shadow.

    .venv/bin/python scripts/bench_cmt_parts.py --meshes ../shared/data/meshes/spot.obj ... --out FOLDER [--photos 10]

Photos (512 px, one colour each, from a little below to high above) are written into FOLDER and inspected as the command does,
by the shipped network with its own limit. A defective part lacks what a sphere of a quarter of its radius takes, where the
outline shows it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import tyro
from bench_rasterize import machine
from rich.console import Console
from scipy import ndimage

from detect.metrics import auroc
from pose.se3 import turn_deg
from prepare.camera import Camera
from prepare.image import write_image
from prepare.mesh import Mesh, load_mesh
from prepare.mesh_render import MeshPainter, orbit_camera, surface_finder
from splatad.cmt_inputs import find_network, open_predictor
from splatad.cmt_inspector import ShapeInspector
from splatad.cmt_reference import reference_of_mesh

PX = 512
CUT, LEAST_SHOWN = 0.28, 0.01  # radius over the part's; share of the outline's area that must change
SHADOW = 0.35  # of the ground's light that a shadow takes


@dataclass(frozen=True)
class Options:
    """What to measure."""

    meshes: tuple[Path, ...]
    """Mesh files."""
    out: Path
    """Folder for the photos and what is kept of the parts."""
    photos: int = 10
    """Good ones of each part, and as many defective ones."""
    network: Path | None = None
    """A .safetensors file; the one shipped if not given."""
    seed: int = 7
    """Of cameras, colours and defects."""


def main(options: Options) -> None:
    console = Console(width=160)
    console.print(machine())
    file, predictor = open_predictor(find_network(options.network), torch.device("cpu"))
    console.print(
        "| part | photos | good OK / NG / CANNOT TELL | defective NG / OK / CANNOT TELL | AUROC | with shadow | cameras within 5 "
        "degrees, good | s a photo |\n|---|---|---|---|---|---|---|---|"
    )
    scores: list[float] = []
    labels: list[int] = []
    for path in options.meshes:
        loaded = load_mesh(path)
        up = np.array([0.0, 1.0, 0.0]) if loaded.up == "y" else np.array([0.0, 0.0, 1.0])
        rng = np.random.default_rng(options.seed)
        reference = reference_of_mesh(path, "auto", predictor, file, options.out / "features")
        inspector = ShapeInspector(predictor, reference)
        said: dict[int, list[str]] = {0: [], 1: []}
        own: list[tuple[int, float, bool, float]] = []  # label, score, shadow, error of the camera
        began, count = time.perf_counter(), 0
        for number in range(options.photos):
            shadow, tint = number % 2 == 1, rng.uniform(0.3, 0.8, 3)
            for label in (0, 1):
                mesh, camera = _scene(loaded.mesh, up, rng, label)
                name = options.out / path.stem / f"{'bad' if label else 'good'}_{number}.png"
                name.parent.mkdir(parents=True, exist_ok=True)
                write_image(name, _photo(mesh, camera, up, tint, shadow))
                found = inspector.inspect(name)
                said[label].append(found.verdict.name)
                count += 1
                if found.prediction is None or found.located is None:
                    continue
                error = float(
                    turn_deg(found.located.camera.world_to_cam.double(), camera.world_to_cam.double())
                )
                own.append((label, found.prediction.score, shadow, error))
        seconds = (time.perf_counter() - began) / max(count, 1)
        rows = np.array(own, dtype=np.float64)
        shaded = rows[rows[:, 2] > 0]
        cells = [
            " / ".join(str(said[0].count(v)) for v in ("OK", "NG", "CANNOT TELL")),
            " / ".join(str(said[1].count(v)) for v in ("NG", "OK", "CANNOT TELL")),
            f"{auroc(rows[:, 1], rows[:, 0].astype(int)):.3f}",
            f"{auroc(shaded[:, 1], shaded[:, 0].astype(int)):.3f}",
            f"{(rows[rows[:, 0] == 0, 3] < 5).mean():.2f}",
            f"{seconds:.1f}",
        ]
        console.print(f"| {path.stem} | {count} | " + " | ".join(cells) + " |")
        scores += rows[:, 1].tolist()
        labels += rows[:, 0].astype(int).tolist()
    console.print(f"all {len(scores)} photos: AUROC {auroc(np.array(scores), np.array(labels)):.3f}")


def _scene(mesh: Mesh, up: np.ndarray, rng: np.random.Generator, label: int) -> tuple[Mesh, Camera]:
    """The part, cut where `label` is 1, and a camera that sees the cut."""
    radius = float(np.linalg.norm(mesh.vertices - mesh.bounds.mean(axis=0), axis=1).max())
    while True:
        camera = orbit_camera(mesh, rng.uniform(-0.2, 0.8), rng.uniform(0.0, 2 * np.pi), PX, up)
        if label == 0:
            return mesh, camera
        middle = mesh.vertices[rng.integers(len(mesh.vertices))]
        keep = np.linalg.norm(mesh.vertices[mesh.faces].mean(axis=1) - middle, axis=1) > CUT * radius
        cut = replace(
            mesh,
            faces=mesh.faces[keep],
            corner_normals=mesh.corner_normals[keep],
            corner_colours=mesh.corner_colours[keep],
            corner_uv=mesh.corner_uv[keep],
            face_texture=mesh.face_texture[keep],
        )
        before, after = (np.isfinite(_painter(m, up).depth(camera)) for m in (mesh, cut))
        if (before ^ after).sum() > LEAST_SHOWN * before.sum():
            return cut, camera


def _painter(mesh: Mesh, up: np.ndarray) -> MeshPainter:
    return MeshPainter(mesh, surface_finder(mesh), up)


def _photo(mesh: Mesh, camera: Camera, up: np.ndarray, tint: np.ndarray, shadow: bool) -> torch.Tensor:
    seen = _painter(mesh, up).photograph(camera)
    dark = SHADOW * ndimage.gaussian_filter(np.roll(seen.alpha, (PX // 12, PX // 9), (0, 1)), PX / 40)
    ground = (1.0 - dark * shadow)[..., None]
    alpha = seen.alpha[..., None]
    rgb = np.clip(seen.rgb / 0.7 * tint, 0, 1) * alpha + ground * (1 - alpha)
    return torch.from_numpy(rgb).float().clamp(0, 1)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
