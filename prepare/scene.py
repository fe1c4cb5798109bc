"""The scene: reference photos with their cameras, and the photos to be inspected.

On disk a scene is nerfstudio's `transforms.json` (camera-to-world, OpenGL axes) and, beside it, our `queries.json`.
This module is the one place where they are read, checked and converted to the project's convention.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NoReturn

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prepare.camera import Camera, fit_within, focal_from_fov, from_opengl_cam_to_world
from prepare.errors import InputError
from prepare.foreground import border_colour, foreground_alpha
from prepare.image import image_size, read_image, read_mask_share, resize
from prepare.undistort import Distortion, undistort

QUERIES_VERSION = 1
GOOD = "good"

_MAX_JSON_BYTES = 64 * 1024 * 1024
_PHOTO_SUFFIXES = (".png", ".jpg", ".jpeg", ".JPG", ".JPEG", ".PNG", ".tif", ".tiff", ".webp", ".bmp")
_ORTHONORMAL_TOLERANCE = 1e-3
_ASPECT_TOLERANCE = 0.01  # a thumbnail's sides are rounded to whole pixels
_PINHOLE_MODELS = ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "PERSPECTIVE")
_NERF_SYNTHETIC_QUERIES = ("transforms_val.json", "transforms_test.json")


@dataclass(frozen=True)
class View:
    """A reference photo of a good part and the camera that took it."""

    name: (
        str  # the file's path relative to the scene's folder, with "/", as in transforms.json plus the suffix
    )
    camera: Camera  # of the whole, upright photo after undistortion
    image_path: Path
    mask_path: Path | None  # white = part, black = ignored; same shape as the photo
    distortion: Distortion | None  # None: the photo is already a pinhole camera's


@dataclass(frozen=True)
class Query:
    """A photo to be inspected, with what is known about it."""

    name: str  # as View.name
    image_path: Path
    label: str  # "good", the defect's type, or "" where unknown
    mask_path: Path | None  # the true defect, white; None where there is none or it is unknown
    world_to_cam: Float[Tensor, "4 4"] | None  # the true camera, for measuring only; None where unknown


@dataclass(frozen=True)
class Scene:
    """What a part looks like: posed reference photos; and photos to inspect, if the scene brings any."""

    name: str
    folder: Path
    views: tuple[View, ...]  # at least one
    queries: tuple[Query, ...]
    points_path: Path | None  # coloured points in world coordinates
    missing: tuple[str, ...]  # listed but not there, by name: photos, masks, points
    scale_to_mm: float | None  # millimetres per world unit, > 0; None where unknown
    appearance: Literal["colour", "shape"] = (
        "colour"  # shape: the photos' colours are not the part's (a bare CAD file)
    )


@dataclass(frozen=True)
class ViewImage:
    """A photo ready for use: undistorted, composited, resized."""

    rgb: Float[Tensor, "height width rgb=3"]  # in [0, 1]; a photo with alpha lies over white
    alpha: Float[Tensor, "height width"]  # share of the part in each pixel, in [0, 1]; 1 where not known
    background: Float[Tensor, "rgb=3"] | None  # the plain colour behind the part; None: clutter
    valid: Bool[Tensor, "height width"]  # False where the undistorted photo has no data
    camera: Camera | None  # of this size; None only for a query whose lens is not known
    uncut: Float[Tensor, "height width rgb=3"] | None = (
        None  # `rgb` before its surroundings were cut away, if they were
    )


def load_scene(folder_or_json: Path) -> Scene:
    """The scene of a folder (or of its transforms.json), every camera converted and checked; photos are not decoded.

    A folder in NeRF-synthetic's form (transforms_train.json, no transforms.json) is a scene too: its val and test
    photos are good queries with known cameras. Listed files that are not there are named in `missing`.
    Raises: InputError where a file, a number, a matrix or a path cannot be trusted, or no photo is there.
    """
    json_path = _scene_json(folder_or_json)
    folder = json_path.parent
    document = read_json_object(json_path)
    missing: list[str] = []
    views = _read_views(json_path, document, missing)
    if json_path.name == "transforms_train.json":
        queries = tuple(
            query
            for name in _NERF_SYNTHETIC_QUERIES
            if (folder / name).is_file()
            for query in _posed_queries(folder / name, missing)
        )
    else:
        queries = _read_queries(folder / "queries.json", missing)

    appearance = document.get("appearance", "colour")
    if appearance not in ("colour", "shape"):
        _refuse(
            json_path,
            f"appearance must be colour or shape, got {_shown(appearance)}",
            "correct it or leave it out",
        )
    scale = document.get("scale_to_mm")
    if scale is not None and _number(json_path, "scale_to_mm", scale) <= 0:
        _refuse(json_path, f"scale_to_mm must be above 0, got {scale}", "correct it or leave it out")
    return Scene(
        name=folder.resolve().name,
        folder=folder,
        views=views,
        queries=queries,
        points_path=_optional_file(json_path, "ply_file_path", document.get("ply_file_path"), missing),
        missing=tuple(dict.fromkeys(missing)),
        scale_to_mm=None if scale is None else float(scale),
        appearance="shape" if appearance == "shape" else "colour",
    )


def load_view_image(view: View, *, longest_px: int | None = None) -> ViewImage:
    """The view's photo undistorted, over its background, its longer side at most `longest_px` px.

    The part's share comes from the file's alpha, the mask file, or the colour of the border, else it is 1 everywhere.
    Raises: InputError where the photo or its mask cannot be read or does not fit the camera.
    """
    return _load(view.image_path, view.mask_path, view.camera, view.distortion, longest_px)


def load_query_image(
    path: Path,
    *,
    longest_px: int | None = None,
    camera: Camera | None = None,
    distortion: Distortion | None = None,
) -> ViewImage:
    """A photo to inspect, prepared as a view's is; `camera` gives the lens, scaled to the photo's size.

    `distortion` is the same lens's, for photos as they come from the camera; it needs `camera`.
    Raises: InputError where the photo cannot be read, or its shape is not that of `camera`.
    """
    if camera is not None:
        width, height = image_size(path)
        check_aspect(path, (width, height), (camera.width, camera.height))
        camera = camera.resized(width, height)
    return _load(path, None, camera, distortion, longest_px)


def _load(
    path: Path,
    mask_path: Path | None,
    camera: Camera | None,
    distortion: Distortion | None,
    longest_px: int | None,
) -> ViewImage:
    decoded = read_image(path)
    rgb, alpha = decoded.rgb, decoded.alpha
    height, width = rgb.shape[:2]
    if camera is not None and (camera.width, camera.height) != (width, height):
        _refuse(
            path,
            f"is {width} x {height}, its camera {camera.width} x {camera.height}",
            "prepare the scene again",
        )

    if alpha is not None and bool((alpha == 1).all()):
        alpha = None  # an opaque file's alpha says nothing about the part
    mask = None if mask_path is None else _mask_of_size(mask_path, width, height)
    background: Tensor | None
    if alpha is not None:
        if mask is not None:
            alpha = alpha * mask
        background = torch.ones(3)
        rgb = rgb * alpha[..., None] + (1 - alpha[..., None])
    elif mask is not None:
        alpha = mask
        border = border_colour(rgb)
        background = None if border is None else border.colour
    else:
        found = foreground_alpha(rgb)
        alpha, background = found.alpha, found.background

    valid = torch.ones(height, width, dtype=torch.bool)
    if camera is not None and distortion is not None and not distortion.is_trivial:
        straight = undistort(rgb, camera, distortion)
        rgb, valid = straight.image, straight.valid
        alpha = undistort(alpha[..., None], camera, distortion, sampling="bilinear").image[..., 0]
        alpha = torch.where(valid, alpha, torch.zeros(()))
        if background is not None:
            rgb = torch.where(valid[..., None], rgb, background)

    if longest_px is not None:
        width, height = fit_within(width, height, longest_px)
        rgb = resize(rgb, width, height)
        alpha = resize(alpha[..., None], width, height)[..., 0]
        valid = resize(valid[..., None].float(), width, height)[..., 0] > 0.999
        camera = None if camera is None else camera.resized(width, height)
    return ViewImage(rgb.clamp(0, 1), alpha.clamp(0, 1), background, valid, camera)


def _mask_of_size(path: Path, width: int, height: int) -> Tensor:
    mask = read_mask_share(path)
    if mask.shape != (height, width):
        check_aspect(path, (mask.shape[1], mask.shape[0]), (width, height))
        mask = resize(mask[..., None], width, height)[..., 0]
    return mask


def check_aspect(path: Path, size: tuple[int, int], wanted: tuple[int, int]) -> None:
    """Raises: InputError where a photo of `size` px (width, height) is not its camera's of `wanted` px, scaled."""
    ratio = (size[0] / size[1]) / (wanted[0] / wanted[1])
    # Half a pixel of rounding on either side of a small picture is no other aspect.
    tolerance = _ASPECT_TOLERANCE + 0.5 / min(*size, *wanted)
    if abs(math.log(ratio)) > tolerance:
        _refuse(
            path,
            f"is {size[0]} x {size[1]}, which does not fit its camera of {wanted[0]} x {wanted[1]}",
            "use the uncropped photo, turned as it was when the cameras were found",
        )


# Reading transforms.json and queries.json. Every function names the file and the key that is at fault.


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file of at most 64 MB; NaN and infinity are refused.

    Raises: InputError for anything else.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; check the path")
    if path.stat().st_size > _MAX_JSON_BYTES:
        raise InputError(
            f"{path}: is {path.stat().st_size >> 20} MB, limit {_MAX_JSON_BYTES >> 20} MB; give the scene's own file"
        )

    def not_finite(constant: str) -> NoReturn:
        raise InputError(f"{path}: holds {constant}, which is no number; export the cameras again")

    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"), parse_constant=not_finite)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); check the file") from error
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        reason = " ".join(str(error).split())[:100]
        raise InputError(f"{path}: is not JSON ({reason}); export it again") from error
    if not isinstance(document, dict):
        raise InputError(
            f"{path}: must hold one JSON object, got a {type(document).__name__}; give a transforms.json"
        )
    return document


def relative_path(json_path: Path, where: str, value: object) -> PurePosixPath:
    """A path listed in a scene's file, checked to stay below the scene's folder.

    Raises: InputError for an absolute path, one with `..`, or none at all.
    """
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        _refuse(
            json_path, f"{where} must be a path, got {_shown(value)}", "list photos relative to this file"
        )
    path = PurePosixPath(value.replace("\\", "/"))
    drive = len(path.parts) > 0 and path.parts[0].endswith(":")
    if path.is_absolute() or drive or ".." in path.parts or not path.parts:
        _refuse(
            json_path,
            f"{where} {_shown(value)} leads out of the scene's folder",
            "put the photos below this file and list them relative to it",
        )
    return path


def read_pose(json_path: Path, where: str, value: object) -> Float[Tensor, "4 4"]:
    """World-to-camera OpenCV matrix (float64) of a listed camera-to-world OpenGL one, made exactly rigid.

    Raises: InputError where it is not 3x4 or 4x4 numbers, or not a rotation (to 1e-3) and a translation.
    """
    advice = "export the cameras again"
    rows = value if isinstance(value, list) else []
    if len(rows) not in (3, 4) or not all(isinstance(row, list) and len(row) == 4 for row in rows):
        _refuse(json_path, f"{where} must be a 4x4 matrix, got {_shown(value)}", advice)
    numbers = [[_number(json_path, where, entry) for entry in row] for row in rows]
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[: len(rows)] = torch.tensor(numbers, dtype=torch.float64)
    if float((matrix[3] - torch.tensor([0.0, 0.0, 0.0, 1.0])).abs().max()) > _ORTHONORMAL_TOLERANCE:
        _refuse(json_path, f"{where} must end in the row 0 0 0 1, got {matrix[3].tolist()}", advice)
    matrix[3] = torch.tensor([0.0, 0.0, 0.0, 1.0])

    rotation = matrix[:3, :3]
    deviation = float((rotation.T @ rotation - torch.eye(3, dtype=torch.float64)).abs().max())
    if deviation > _ORTHONORMAL_TOLERANCE:
        _refuse(
            json_path,
            f"{where} is not a rotation (its columns are off orthonormal by {deviation:.2g})",
            advice,
        )
    if float(torch.linalg.det(rotation)) < 0:
        _refuse(json_path, f"{where} is a mirror image, not a rotation (determinant -1)", advice)
    left, _, right = torch.linalg.svd(rotation)
    matrix[:3, :3] = left @ right  # the nearest rotation
    return from_opengl_cam_to_world(matrix)


def find_photo(folder: Path, listed: PurePosixPath) -> PurePosixPath | None:
    """The photo's path relative to `folder`, with the suffix that a list may leave out; None where it is not there."""
    if (folder / listed).is_file():
        return listed
    for suffix in _PHOTO_SUFFIXES:
        candidate = listed.with_name(listed.name + suffix)
        if (folder / candidate).is_file():
            return candidate
    return None


def is_photo(path: Path) -> bool:
    """Whether a file's name is a photo's that we read, by its suffix; hidden files are none."""
    return path.suffix.lower() in _PHOTO_SUFFIXES and not path.name.startswith(".") and path.is_file()


def _scene_json(folder_or_json: Path) -> Path:
    if folder_or_json.is_file():
        return folder_or_json
    if not folder_or_json.is_dir():
        raise InputError(f"{folder_or_json}: no such scene; give a folder with a transforms.json")
    for name in ("transforms.json", "transforms_train.json"):
        if (folder_or_json / name).is_file():
            return folder_or_json / name
    raise InputError(
        f"{folder_or_json}: has no transforms.json; prepare the photos first (`splatad prepare --help`)"
    )


def _frames(json_path: Path, document: Mapping[str, Any]) -> list[dict[str, Any]]:
    frames = document.get("frames")
    if not isinstance(frames, list) or not frames:
        _refuse(json_path, "lists no frames", "export the cameras again")
    for index, frame in enumerate(frames):
        if not isinstance(frame, dict):
            _refuse(
                json_path,
                f"frames[{index}] must be an object, got {_shown(frame)}",
                "export the cameras again",
            )
    return frames


def _read_views(json_path: Path, document: Mapping[str, Any], missing: list[str]) -> tuple[View, ...]:
    frames = _frames(json_path, document)
    views: dict[str, View] = {}
    for index, frame in enumerate(frames):
        where = f"frames[{index}]"
        listed = relative_path(json_path, f"{where}.file_path", frame.get("file_path"))
        world_to_cam = read_pose(json_path, f"{where}.transform_matrix", frame.get("transform_matrix"))
        photo = find_photo(json_path.parent, listed)
        if photo is None:
            missing.append(listed.as_posix())
            continue
        if photo.as_posix() in views:
            _refuse(json_path, f"{where} lists {photo} a second time", "keep one frame for each photo")
        image_path = json_path.parent / photo
        lens, distortion = _read_lens(json_path, where, {**document, **frame}, image_path)
        views[photo.as_posix()] = View(
            name=photo.as_posix(),
            camera=lens.moved(world_to_cam.float()),
            image_path=image_path,
            mask_path=_optional_file(json_path, f"{where}.mask_path", frame.get("mask_path"), missing),
            distortion=distortion,
        )
    if not views:
        _refuse(
            json_path,
            f"none of its {len(frames)} photos is there, the first is {missing[0]}",
            "copy the photos beside it",
        )
    return tuple(views.values())


def _read_lens(
    json_path: Path, where: str, keys: Mapping[str, Any], image_path: Path
) -> tuple[Camera, Distortion | None]:
    """The frame's camera for its photo's true size (pose still the identity), and its distortion."""
    model = _read_model(json_path, where, keys)
    true_width, true_height = image_size(image_path)

    def number(key: str, default: float) -> float:
        return _number(json_path, f"{where} {key}", keys[key]) if keys.get(key) is not None else default

    listed_width, listed_height = number("w", float(true_width)), number("h", float(true_height))
    width, height = round(listed_width), round(listed_height)
    if min(width, height) < 1 or max(abs(listed_width - width), abs(listed_height - height)) > 1e-3:
        got = f"{listed_width} and {listed_height}"
        _refuse(json_path, f"{where} w and h must be whole numbers of pixels, got {got}", "correct them")
    if (width, height) != (true_width, true_height):
        check_aspect(image_path, (true_width, true_height), (width, height))

    for key in ("camera_angle_x", "camera_angle_y"):
        if not 0 < number(key, 1.0) < math.pi:
            _refuse(json_path, f"{where} {key} must be between 0 and pi, got {keys[key]}", "correct it")
    if keys.get("fl_x") is not None:
        fl_x = number("fl_x", 0.0)
    elif keys.get("camera_angle_x") is not None:
        fl_x = focal_from_fov(width, number("camera_angle_x", 0.0))
    else:
        _refuse(json_path, f"{where} has neither fl_x nor camera_angle_x", "add the focal length in pixels")
    if keys.get("fl_y") is not None:
        fl_y = number("fl_y", 0.0)
    elif keys.get("fl_x") is None and keys.get("camera_angle_y") is not None:
        fl_y = focal_from_fov(height, number("camera_angle_y", 0.0))
    else:
        fl_y = fl_x  # square pixels
    if min(fl_x, fl_y) <= 0:
        _refuse(json_path, f"{where} focal lengths must be above 0, got {fl_x} and {fl_y}", "correct them")

    lens = Camera(
        world_to_cam=torch.eye(4),
        fl_x=fl_x,
        fl_y=fl_y,
        cx=number("cx", width / 2),
        cy=number("cy", height / 2),
        width=width,
        height=height,
    ).resized(true_width, true_height)
    distortion = Distortion(
        **{key: number(key, 0.0) for key in ("k1", "k2", "k3", "k4", "p1", "p2")}, model=model
    )
    return lens, None if distortion.is_trivial else distortion


def _read_model(json_path: Path, where: str, keys: Mapping[str, Any]) -> Literal["OPENCV", "OPENCV_FISHEYE"]:
    model = keys.get("camera_model", "OPENCV")
    if model == "OPENCV_FISHEYE" or keys.get("is_fisheye") is True:  # the latter is instant-ngp's spelling
        return "OPENCV_FISHEYE"
    if model not in _PINHOLE_MODELS:
        _refuse(
            json_path,
            f"{where} camera_model {_shown(model)} is not supported",
            f"use OPENCV_FISHEYE or one of {', '.join(_PINHOLE_MODELS)}",
        )
    return "OPENCV"


def _optional_file(json_path: Path, where: str, value: object, missing: list[str]) -> Path | None:
    if value is None:
        return None
    listed = relative_path(json_path, where, value)
    if (json_path.parent / listed).is_file():
        return json_path.parent / listed
    missing.append(listed.as_posix())
    return None


def _posed_queries(json_path: Path, missing: list[str]) -> list[Query]:
    queries = []
    for index, frame in enumerate(_frames(json_path, read_json_object(json_path))):
        listed = relative_path(json_path, f"frames[{index}].file_path", frame.get("file_path"))
        pose = read_pose(json_path, f"frames[{index}].transform_matrix", frame.get("transform_matrix"))
        photo = find_photo(json_path.parent, listed)
        if photo is None:
            missing.append(listed.as_posix())
            continue
        queries.append(Query(photo.as_posix(), json_path.parent / photo, GOOD, None, pose.float()))
    return queries


def _read_queries(json_path: Path, missing: list[str]) -> tuple[Query, ...]:
    if not json_path.is_file():
        return ()
    document = read_json_object(json_path)
    if document.get("version") != QUERIES_VERSION:
        _refuse(
            json_path,
            f"version must be {QUERIES_VERSION}, got {_shown(document.get('version'))}",
            "prepare the scene again",
        )
    entries = document.get("queries")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        _refuse(json_path, "queries must be a list of objects", "prepare the scene again")
    queries = []
    for index, entry in enumerate(entries):
        where = f"queries[{index}]"
        listed = relative_path(json_path, f"{where}.file_path", entry.get("file_path"))
        label = entry.get("label") or ""
        if not isinstance(label, str):
            _refuse(
                json_path, f"{where}.label must be a name, got {_shown(label)}", "prepare the scene again"
            )
        matrix = entry.get("transform_matrix")
        pose = None if matrix is None else read_pose(json_path, f"{where}.transform_matrix", matrix).float()
        mask_path = _optional_file(json_path, f"{where}.mask_path", entry.get("mask_path"), missing)
        photo = find_photo(json_path.parent, listed)
        if photo is None:
            missing.append(listed.as_posix())
            continue
        queries.append(Query(photo.as_posix(), json_path.parent / photo, label, mask_path, pose))
    return tuple(queries)


def _number(json_path: Path, where: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        _refuse(json_path, f"{where} must be a number, got {_shown(value)}", "correct it")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or abs(number) > 1e30:  # beyond, float32 overflows
        _refuse(
            json_path, f"{where} must be a finite number, got {_shown(value)}", "export the cameras again"
        )
    return number


def _shown(value: object) -> str:
    """`repr` cut to one short line: what stands in a foreign file may be anything."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _refuse(path: Path, what: str, advice: str) -> NoReturn:
    raise InputError(f"{path}: {what}; {advice}")
