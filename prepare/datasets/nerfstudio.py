"""Anyone's nerfstudio folder: checked, then linked into the workspace as a scene, distortion and masks kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from prepare.datasets.scene_folder import Progress, SceneWriter, no_progress
from prepare.errors import InputError
from prepare.points import read_points
from prepare.scene import Scene, find_photo, load_scene, read_json_object, relative_path

_LENS = (
    "camera_model", "is_fisheye", "fl_x", "fl_y", "cx", "cy", "w", "h", "k1", "k2", "k3", "k4", "p1", "p2",
    "camera_angle_x", "camera_angle_y",
)  # fmt: skip
# The last two say how the world was turned after structure from motion; dataparser_transforms.json counts from before that.
_KEPT = ("scale_to_mm", "applied_transform", "applied_scale")


def prepare_nerfstudio(
    data: Path,
    scene_folder: Callable[[str], Path],
    *,
    name: str | None = None,
    points: Path | None = None,
    copy: bool = False,
    progress: Progress = no_progress,
) -> list[Path]:
    """The one scene folder written, called `name` (else as `data`'s folder), from a folder with a transforms.json.

    The numbers are passed on as they stand, frames without a photo are left out and recorded as missing. `points` is a
    coloured point cloud in the cameras' world, used instead of the one that transforms.json names.
    Raises: InputError where `load_scene` or `read_points` would.
    """
    json_path = data / "transforms.json" if data.is_dir() else data
    if not json_path.is_file():
        where = "no such folder" if not data.exists() else "has no transforms.json"
        raise InputError(f"{data}: {where}; give the folder of a nerfstudio transforms.json with --data")
    json_path = json_path.resolve()
    source = load_scene(json_path)
    document = read_json_object(json_path)
    points_path = source.points_path if points is None else points.resolve()
    if points_path is not None:
        read_points(points_path)

    scene_name = name or source.name
    writer = SceneWriter(scene_folder(scene_name), source.folder, "nerfstudio", copy, {})
    writer.missing.extend(source.missing)
    total = len(source.views) + len(source.queries)

    views = {view.name: view for view in source.views}
    for frame in document["frames"]:
        view = views.get(_photo_name(json_path, frame))
        if view is None:
            continue  # its photo is missing
        entry: dict[str, Any] = {key: frame[key] for key in _LENS if frame.get(key) is not None}
        entry["file_path"] = writer.place(view.image_path, PurePosixPath("images") / view.name)
        entry["transform_matrix"] = frame["transform_matrix"]
        if view.mask_path is not None:
            entry["mask_path"] = _place_mask(writer, source.folder, view.mask_path)
        writer.frames.append(entry)
        progress(scene_name, len(writer.frames), total)
    _place_queries(
        writer, source, lambda: progress(scene_name, len(writer.frames) + len(writer.queries), total)
    )

    header = {key: document[key] for key in (*_LENS, *_KEPT) if document.get(key) is not None}
    if points_path is not None:
        header["ply_file_path"] = writer.place(
            points_path, PurePosixPath("points" + points_path.suffix.lower())
        )
    return [writer.finish(header)]


def _place_queries(writer: SceneWriter, source: Scene, one_more: Callable[[], None]) -> None:
    """Links the photos to inspect that stand in a queries.json of our own form."""
    if not source.queries:
        return
    json_path = source.folder / "queries.json"
    entries = {_photo_name(json_path, entry): entry for entry in read_json_object(json_path)["queries"]}
    for query in source.queries:
        writer.queries.append(
            {
                "file_path": writer.place(query.image_path, PurePosixPath("images") / query.name),
                "label": query.label,
                "mask_path": None
                if query.mask_path is None
                else _place_mask(writer, source.folder, query.mask_path),
                "transform_matrix": entries[query.name].get("transform_matrix"),
            }
        )
        one_more()


def _photo_name(json_path: Path, entry: dict[str, Any]) -> str:
    photo = find_photo(json_path.parent, relative_path(json_path, "file_path", entry["file_path"]))
    return "" if photo is None else photo.as_posix()


def _place_mask(writer: SceneWriter, folder: Path, mask: Path) -> str:
    return writer.place(mask, PurePosixPath("masks") / mask.relative_to(folder).as_posix())
