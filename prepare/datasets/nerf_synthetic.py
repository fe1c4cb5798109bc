"""NeRF-synthetic: transforms_train.json (and _val, _test), RGBA photos listed without their suffix.

The alpha channel is the part's share of each pixel and stays in the photos; val and test photos become good queries
with known cameras.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePosixPath

from jaxtyping import Float
from torch import Tensor

from prepare.camera import to_opengl_cam_to_world
from prepare.datasets.scene_folder import Progress, SceneWriter, intrinsics, no_progress, share_intrinsics
from prepare.errors import InputError
from prepare.scene import load_scene

_INTRINSICS = ("camera_model", "fl_x", "fl_y", "cx", "cy", "w", "h")


def prepare_nerf_synthetic(
    data: Path,
    scene_folder: Callable[[str], Path],
    *,
    name: str | None = None,
    copy: bool = False,
    progress: Progress = no_progress,
) -> list[Path]:
    """The scene folder written, called `name` (else as `data`'s folder); the NeRF-synthetic folder is only read.

    Raises: InputError where `data` is not in that form.
    """
    if not (data / "transforms_train.json").is_file():
        where = "no such folder" if not data.is_dir() else "has no transforms_train.json"
        raise InputError(f"{data}: {where}; give a NeRF-synthetic scene's folder with --data")
    source = load_scene(data.resolve() / "transforms_train.json")
    scene_name = name or source.name
    writer = SceneWriter(scene_folder(scene_name), data.resolve(), "nerf-synthetic", copy, {})
    writer.missing.extend(source.missing)
    total = len(source.views) + len(source.queries)

    for view in source.views:
        camera = view.camera
        writer.frames.append(
            {
                "file_path": writer.place(view.image_path, PurePosixPath("images") / view.name),
                "transform_matrix": _listed(camera.world_to_cam),
                **intrinsics(camera.width, camera.height, camera.fl_x, camera.fl_y),
            }
        )
        progress(scene_name, len(writer.frames), total)
    for query in source.queries:
        writer.queries.append(
            {
                "file_path": writer.place(query.image_path, PurePosixPath("images") / query.name),
                "label": query.label,
                "mask_path": None,
                "transform_matrix": None if query.world_to_cam is None else _listed(query.world_to_cam),
            }
        )
        progress(scene_name, len(writer.frames) + len(writer.queries), total)
    return [writer.finish(share_intrinsics(writer.frames, _INTRINSICS))]


def _listed(world_to_cam: Float[Tensor, "4 4"]) -> list[list[float]]:
    matrix: list[list[float]] = to_opengl_cam_to_world(world_to_cam.double()).tolist()
    return matrix
