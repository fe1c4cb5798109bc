"""COLMAP's sparse model with its photos: cameras as they were found, lens distortion kept, points to start splats from.

One camera for all photos or one for each; the photos are those the model was made from (or COLMAP's undistorted ones).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from prepare.camera import to_opengl_cam_to_world
from prepare.colmap_model import ColmapLens, ColmapModel, is_colmap_model, read_colmap_model
from prepare.datasets.scene_folder import Progress, SceneWriter, no_progress, share_intrinsics
from prepare.errors import InputError
from prepare.image import image_size
from prepare.points import read_points, write_points
from prepare.scene import check_aspect, find_photo, relative_path

_PLACES = (
    "",
    "sparse/*",
    "sparse",
    "dense/sparse",
    "dense/*/sparse",
    "dense/*/sparse/*",
    "colmap/sparse/*",
    "colmap/sparse",
)
_LENS = ("camera_model", "fl_x", "fl_y", "cx", "cy", "w", "h")
_DISTORTION = ("k1", "k2", "k3", "k4", "p1", "p2")


def prepare_colmap(
    data: Path,
    scene_folder: Callable[[str], Path],
    *,
    name: str | None = None,
    images: Path | None = None,
    model: Path | None = None,
    copy: bool = False,
    progress: Progress = no_progress,
) -> list[Path]:
    """The one scene folder written, called `name` (else as `data`'s folder), from a folder with a COLMAP model.

    Where COLMAP left several models, the one with the most photos there is taken; `model` and `images` name others.
    Photos that the model registers and the folder lacks are recorded as missing.
    Raises: InputError where no model or none of its photos is there, or `read_colmap_model` or `read_points` would.
    """
    if not data.is_dir():
        raise InputError(f"{data}: no such folder; give a COLMAP project's folder with --data")
    found = _find(data.resolve(), None if images is None else images.resolve(), model)
    points_path = found.model.points_path
    points = None if points_path is None else read_points(points_path)
    for photo, lens in found.photos.values():
        size = image_size(photo)
        if size != (lens.width, lens.height):
            check_aspect(photo, size, (lens.width, lens.height))

    scene_name = name or data.resolve().name
    told = {"model": str(found.model.folder), "images": str(found.images)}
    writer = SceneWriter(scene_folder(scene_name), data.resolve(), "colmap", copy, told)
    for image in found.model.images:
        if image.name not in found.photos:
            writer.missing.append(image.name)
            continue
        photo, lens = found.photos[image.name]
        at = PurePosixPath("images") / photo.relative_to(found.images).as_posix()
        writer.frames.append(
            {
                "file_path": writer.place(photo, at),
                "transform_matrix": to_opengl_cam_to_world(image.world_to_cam).tolist(),
                **_listed(lens),
            }
        )
        progress(scene_name, len(writer.frames), len(found.photos))
    header = share_intrinsics(writer.frames, _LENS)
    # nerfstudio takes either all of the distortion from the file's head or all of it from the frames.
    if all(_of(_DISTORTION, frame) == _of(_DISTORTION, writer.frames[0]) for frame in writer.frames):
        header |= share_intrinsics(writer.frames, _DISTORTION)
    if points is not None:
        write_points(writer.folder / "points.ply", points)
        header["ply_file_path"] = "points.ply"
    return [writer.finish(header)]


@dataclass(frozen=True)
class _Found:
    """A model and where its photos are."""

    model: ColmapModel
    images: Path
    photos: dict[str, tuple[Path, ColmapLens]]  # those that are there, by the model's names


def _find(data: Path, images: Path | None, wanted: Path | None) -> _Found:
    """The model with the most photos, the first of several such. Raises: InputError where there is none."""
    folders = [wanted.resolve()] if wanted is not None else list(dict.fromkeys(_model_folders(data)))
    if not folders:
        raise InputError(
            f"{data}: has no COLMAP model (cameras and images, .bin or .txt, in it, sparse/0 or dense/0/sparse); give its"
            " folder with --model"
        )
    if images is not None and not images.is_dir():
        raise InputError(f"{images}: no such folder; give the folder of the photos with --images")
    found = list[_Found]()
    for folder in folders:
        model = read_colmap_model(folder)
        for place in [images] if images is not None else _image_folders(folder):
            found.append(_Found(model, place, _photos(model, place)))
    best = max(found, key=lambda one: len(one.photos))  # the first of equals
    if not best.photos:
        looked = ", ".join(dict.fromkeys(str(one.images) for one in found))
        first = best.model.images[0].name
        raise InputError(
            f"{best.model.folder}: none of its {len(best.model.images)} photos is there, the first is {first[:80]!r} (looked"
            f" in {looked}); give their folder with --images"
        )
    return best


def _model_folders(data: Path) -> Iterator[Path]:
    for place in _PLACES:
        matches = [data] if not place else sorted(data.glob(place))
        yield from (folder for folder in matches if is_colmap_model(folder))


def _image_folders(model: Path) -> Iterator[Path]:
    """Where the photos of a model usually lie: beside it, or beside the folder of numbered models."""
    above = [model, model.parent]
    if model.name.isdecimal():
        above.append(model.parent.parent)
    for folder in above:
        yield from (place for place in (folder / "images", folder / "input", folder) if place.is_dir())


def _photos(model: ColmapModel, folder: Path) -> dict[str, tuple[Path, ColmapLens]]:
    there = {}
    for image in model.images:
        photo = find_photo(folder, relative_path(model.folder, "an image", image.name))
        if photo is not None:
            there[image.name] = (folder / photo, image.lens)
    return there


def _listed(lens: ColmapLens) -> dict[str, Any]:
    return {
        "camera_model": lens.distortion.model,
        "fl_x": lens.fl_x,
        "fl_y": lens.fl_y,
        "cx": lens.cx,
        "cy": lens.cy,
        "w": lens.width,
        "h": lens.height,
        **_of(_DISTORTION, asdict(lens.distortion)),
    }


def _of(keys: Sequence[str], values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: values[key] for key in keys}
