"""A mesh becomes a scene: photographed from all round, with points on its surface for splats to start from.

The photos are made here and belong to the scene: RGBA PNGs, beside them `depth/` (16-bit PNG, 0 where nothing is, else world
units by `depth_unit`) and `normals/` (8-bit PNG, world axes, -1..1 as 0..255), both at the pixels' middles.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt16
from PIL import Image

from prepare.atomic_write import write_bytes
from prepare.camera import Camera, to_opengl_cam_to_world
from prepare.datasets.scene_folder import RECORD, Progress, SceneWriter, intrinsics, no_progress
from prepare.errors import InputError, UsageError
from prepare.mesh import MM, Axis, Mesh, MeshFile, Unit, load_mesh
from prepare.mesh_render import (
    MeshPainter,
    MeshView,
    RendererName,
    orbit,
    surface_finder,
    surface_points,
)
from prepare.points import PointCloud, write_points
from prepare.scene import read_json_object

KIND = "mesh"
RENDER_VERSION = 2  # raised whenever the same settings give other pictures
FOLDERS = ("images", "depth", "normals")
DEPTH_LEVELS = 65535

Scale = Literal["normalised", "kept"]


@dataclass(frozen=True)
class MeshSettings:
    """How a mesh is photographed."""

    views: int = 96  # over the whole sphere
    size_px: int = 400  # width and height
    supersample: int = 3  # samples along each axis of a pixel at edges
    points: int = 30_000  # on the surface, for splats to start from
    unit: Unit | None = None  # None: as the file says, or guessed
    up: Axis | None = None  # None: usual for the kind of file
    scale: Scale = "normalised"
    renderer: RendererName = "auto"


def prepare_mesh(
    data: Path,
    scene_folder: Callable[[str], Path],
    settings: MeshSettings = MeshSettings(),
    *,
    name: str | None = None,
    progress: Progress = no_progress,
) -> tuple[list[Path], list[str]]:
    """The scene folder written, called `name` (else as the file), and what there is to say about the mesh, line by line.

    The world is the part with z up, its middle at the origin and its longest half-extent 1; or, with scale "kept", the
    file's own coordinates. `mesh_to_world` in prepare.json takes the file's to the world's. Photos that are there from a
    stopped run with the same mesh and settings are kept.
    Raises: UsageError for settings out of range; InputError and MissingPartError as `load_mesh` and `surface_finder`.
    """
    _check(settings)
    source = data.resolve()
    file = load_mesh(data)
    up_axis: Axis = settings.up or file.up
    to_world = world_of(file.mesh, up_axis, settings.scale)
    mesh = file.mesh.transformed(to_world)
    up = np.array([0.0, 0.0, 1.0])
    if settings.scale == "kept" and up_axis == "y":
        up = np.array([0.0, 1.0, 0.0])
    finder = surface_finder(mesh, settings.renderer)
    painter = MeshPainter(mesh, finder, up, settings.supersample)

    scene_name = name or data.stem
    folder = scene_folder(scene_name)
    config: dict[str, Any] = {
        "mesh_sha256": file.mesh.digest(),
        "render_version": RENDER_VERSION,
        "renderer": finder.name,
        "views": settings.views,
        "size_px": settings.size_px,
        "supersample": settings.supersample,
        "points": settings.points,
        "up": up_axis,
        "scale": settings.scale,
    }
    _drop_stale(folder, source, config)
    writer = SceneWriter(
        folder, source, KIND, True,
        {**config, "coloured": file.mesh.coloured, "mesh_to_world": to_world.tolist(), "notes": list(file.notes)},
    )  # fmt: skip

    cameras = orbit(mesh, settings.views, settings.size_px, up)
    most_depth = 2.0 * max(float(camera.centre.norm()) for camera in _about(cameras, mesh))
    depth_unit = most_depth / DEPTH_LEVELS
    waiting = [i for i in range(settings.views) if not _is_there(folder, i)]
    done = settings.views - len(waiting)
    progress(scene_name, done, settings.views)

    def draw(i: int) -> None:
        _write(folder, i, painter.photograph(cameras[i]), depth_unit)

    with ThreadPoolExecutor(2) as pool:
        try:
            for _ in pool.map(draw, waiting):
                done += 1
                progress(scene_name, done, settings.views)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    for i, camera in enumerate(cameras):
        writer.frames.append(
            {
                "file_path": f"images/{_file(i)}",
                "depth_file_path": f"depth/{_file(i)}",
                "normal_file_path": f"normals/{_file(i)}",
                "transform_matrix": to_opengl_cam_to_world(camera.world_to_cam).tolist(),
            }
        )
    depths = [read_depth(folder / "depth" / _file(i), depth_unit) for i in range(settings.views)]
    found = surface_points(mesh, painter, cameras, depths, settings.points)
    cloud = PointCloud(
        *(
            torch.from_numpy(a).float()
            for a in (found.positions, found.colours, found.normals, found.headlight)
        )
    )
    write_points(folder / "points.ply", cloud)
    header: dict[str, Any] = {
        **intrinsics(settings.size_px, settings.size_px, cameras[0].fl_x, cameras[0].fl_y),
        "ply_file_path": "points.ply",
        "depth_unit": depth_unit,
    }
    unit = settings.unit or file.unit
    if unit is not None:
        header["scale_to_mm"] = MM[unit] / float(np.cbrt(np.linalg.det(to_world[:3, :3])))
    if not file.mesh.coloured:  # what the photos show is our grey: real photos are to be compared by outline
        header["appearance"] = "shape"
    writer.finish(header)
    return [folder], _told(file, settings, up_axis, finder.name)


def world_of(mesh: Mesh, up: Axis, scale: Scale) -> Float[np.ndarray, "4 4"]:
    """What takes the file's coordinates to the world's: a turn that brings `up` to z, a scale, a shift; or nothing."""
    matrix = np.eye(4)
    if scale == "kept":
        return matrix
    if up == "y":
        matrix[:3, :3] = [[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]]
    low, high = mesh.bounds
    matrix[:3, :3] *= 2.0 / float((high - low).max())
    matrix[:3, 3] = -matrix[:3, :3] @ (0.5 * (low + high))
    return matrix


def read_depth(path: Path, unit: float) -> Float[np.ndarray, "height width"]:
    """Depth in world units of a file in `depth/`, infinite where nothing is; `unit` is the scene's `depth_unit`.

    Raises: InputError for a file that is damaged.
    """
    try:
        with Image.open(path) as image:
            levels = np.array(image).astype(np.float32)
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(
            f"{path}: is damaged; delete it and run the same `splatad prepare mesh` again"
        ) from error
    return np.where(levels > 0, levels * np.float32(unit), np.float32(np.inf))


def _about(cameras: list[Camera], mesh: Mesh) -> list[Camera]:
    """The cameras as if the mesh's middle were the origin."""
    centre = torch.from_numpy(mesh.bounds.mean(axis=0))
    shift = torch.eye(4, dtype=torch.float64)
    shift[:3, 3] = centre
    return [camera.moved(camera.world_to_cam @ shift) for camera in cameras]


def _file(index: int) -> str:
    return f"{index:04d}.png"


def _is_there(folder: Path, index: int) -> bool:
    return all((folder / kind / _file(index)).is_file() for kind in FOLDERS)


def _write(folder: Path, index: int, view: MeshView, depth_unit: float) -> None:
    """The photo, after its depth and normals: where it stands, all three are there."""
    seen = np.isfinite(view.depth)
    levels = np.where(seen, np.rint(np.where(seen, view.depth, 0.0) / depth_unit), 0.0)
    depth: UInt16[np.ndarray, "height width"] = levels.clip(0, DEPTH_LEVELS).astype(np.uint16)
    _write_png(folder / "depth" / _file(index), depth)
    normals = np.where(seen[..., None], np.rint((view.normals + 1.0) * 127.5), 0.0)
    _write_png(folder / "normals" / _file(index), normals.astype(np.uint8))
    rgba = np.concatenate([view.rgb, view.alpha[..., None]], axis=-1)
    _write_png(folder / "images" / _file(index), np.rint(rgba.clip(0.0, 1.0) * 255.0).astype(np.uint8))


def _write_png(path: Path, pixels: np.ndarray) -> None:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=2)
    write_bytes(path, buffer.getvalue())


def _drop_stale(folder: Path, source: Path, config: dict[str, Any]) -> None:
    """Removes what an earlier run of ours photographed of the same file with other settings, or before it changed."""
    if not (folder / RECORD).is_file():
        return
    before = read_json_object(folder / RECORD)
    if before.get("kind") != KIND or before.get("source") != str(source):
        return  # the writer says whose it is
    if all(before.get(key) == value for key, value in config.items()):
        return
    for file in ("transforms.json", "points.ply"):
        (folder / file).unlink(missing_ok=True)
    for kind in FOLDERS:
        if (folder / kind).is_dir():
            shutil.rmtree(folder / kind)


def _told(file: MeshFile, settings: MeshSettings, up: Axis, renderer: str) -> list[str]:
    mesh = file.mesh
    size = np.ptp(mesh.bounds, axis=0)
    unit = settings.unit or file.unit
    source = "as --unit says" if settings.unit else file.unit_source
    colour = "grey, as the file has no colour: photos are compared by geometry (fit --appearance colour compares the shading)"
    if mesh.coloured:
        colour = f"{len(mesh.textures)} texture(s)" if mesh.textures else "colours of the file"
    lines = [
        f"{len(mesh.faces):,} faces, {' x '.join(f'{v:.4g}' for v in size)} {unit or 'units'} ({source})",
        f"up is {up} ({'as --up says' if settings.up else 'usual for the kind of file; else give --up'}); {colour};"
        f" drawn by {renderer}",
    ]
    return lines + list(file.notes)


def _check(settings: MeshSettings) -> None:
    ranges = {"views": (8, 2000), "size_px": (32, 4096), "supersample": (1, 8), "points": (100, 2_000_000)}
    for field, (low, high) in ranges.items():
        value = getattr(settings, field)
        if not low <= value <= high:
            raise UsageError(
                f"--{field.replace('_', '-')} {value}: from {low} to {high} is wanted; choose a value in that range"
            )
