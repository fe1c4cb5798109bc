"""LLFF: `poses_bounds.npy` beside a folder of photos, one row a photo in the order of their names.

A row is a 3x5 matrix, then the nearest and farthest depth (not needed). Its columns are the camera's down, right and
backward axes and its position in the world, and (height, width, focal length) in px.
Source: Mildenhall et al. 2019, the LLFF code's README ("Using your own poses").
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy as np

from prepare.camera import to_opengl_cam_to_world
from prepare.datasets.scene_folder import Progress, SceneWriter, intrinsics, no_progress, share_intrinsics
from prepare.errors import InputError
from prepare.image import image_size
from prepare.scene import check_aspect, is_photo, read_pose

FILE_NAME = "poses_bounds.npy"
_LENS = ("camera_model", "fl_x", "fl_y", "cx", "cy", "w", "h")
_MOST_PHOTOS = 100_000


def prepare_llff(
    data: Path,
    scene_folder: Callable[[str], Path],
    *,
    name: str | None = None,
    images: Path | None = None,
    copy: bool = False,
    progress: Progress = no_progress,
) -> list[Path]:
    """The one scene folder written, called `name` (else as `data`'s folder), from a folder with a poses_bounds.npy.

    Photos are those of `images`, else of the folder `images`, else of the largest of `images_2`, `images_4`, ...; the lens is
    scaled to their size.
    Raises: InputError where the array is damaged or of another shape, or there are more or fewer photos than rows: which
    photo belongs to which row then cannot be known.
    """
    source = data.resolve()
    path = source / FILE_NAME
    if not path.is_file():
        where = "no such folder" if not data.is_dir() else f"has no {FILE_NAME}"
        raise InputError(f"{data}: {where}; give an LLFF scene's folder with --data")
    rows = _read_rows(path)
    folder = _image_folder(source) if images is None else images.resolve()
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the folder of the photos with --images")
    photos = sorted(file for file in folder.iterdir() if is_photo(file))
    if len(photos) != len(rows):
        raise InputError(
            f"{folder}: has {len(photos)} photos where {path.name} has {len(rows)} cameras, in the photos' order; give the"
            " folder of just these photos with --images"
        )

    frames = []
    for index, (row, photo) in enumerate(zip(rows, photos, strict=True)):
        matrix = row[:15].reshape(3, 5)
        down, right, backward, position, size = matrix.T
        cam_to_world = np.stack([right, -down, backward, position], axis=1)  # OpenGL: right, up, backward
        world_to_cam = read_pose(path, f"camera {index}", cam_to_world.tolist())
        height, width, focal = size.tolist()
        if width != round(width) or height != round(height) or min(width, height) < 1 or not 0 < focal < 1e9:
            raise InputError(
                f"{path}: camera {index} is {width:g} x {height:g} px with a focal length of {focal:g}; export the cameras again"
            )
        check_aspect(photo, image_size(photo), (round(width), round(height)))
        frames.append(
            {
                "transform_matrix": to_opengl_cam_to_world(world_to_cam).tolist(),
                **intrinsics(round(width), round(height), focal, focal),
            }
        )
    scene_name = name or source.name
    writer = SceneWriter(scene_folder(scene_name), source, "llff", copy, {"images": str(folder)})
    for frame, photo in zip(frames, photos, strict=True):
        writer.frames.append(
            {"file_path": writer.place(photo, PurePosixPath("images") / photo.name), **frame}
        )
        progress(scene_name, len(writer.frames), len(frames))
    return [writer.finish(share_intrinsics(writer.frames, _LENS))]


def _read_rows(path: Path) -> np.ndarray:
    """The array, n rows of 17 finite numbers, float64."""
    advice = "give LLFF's own file"
    try:
        # Mapped, so that a header that announces more than the file holds is refused before anything is allocated.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError, SyntaxError, OverflowError) as error:
        reason = " ".join(str(error).split())[:100]
        raise InputError(f"{path}: is not a whole .npy file ({reason}); copy it again") from error
    if not isinstance(array, np.ndarray):
        raise InputError(f"{path}: is an archive of arrays, not one; {advice}")
    if (
        array.ndim != 2
        or array.shape[1] != 17
        or not 1 <= len(array) <= _MOST_PHOTOS
        or array.dtype.kind not in "fiu"
    ):
        shape = " x ".join(map(str, array.shape))
        raise InputError(f"{path}: must be n x 17 numbers, got {shape} of {array.dtype}; {advice}")
    rows = np.asarray(array, dtype=np.float64)
    if not np.isfinite(rows[:, :15]).all():
        raise InputError(f"{path}: has NaN or infinite numbers; export the cameras again")
    return rows


def _image_folder(source: Path) -> Path:
    if (source / "images").is_dir():
        return source / "images"
    smaller = {
        int(match[1]): folder
        for folder in source.glob("images_*")
        if folder.is_dir() and (match := re.fullmatch(r"images_(\d{1,4})", folder.name))
    }
    if not smaller:
        raise InputError(
            f"{source}: has no folder images or images_4; give the folder of the photos with --images"
        )
    return smaller[min(smaller)]
