"""COLMAP's sparse model: `cameras`, `images` and `points3D`, binary (.bin) or text (.txt), without pycolmap.

COLMAP's axes, world-to-camera direction and pixel centres (+0.5) are ours. Counts are checked against the file's length
before they are believed, so a damaged file costs one line, not memory.
Source: COLMAP `src/colmap/scene/reconstruction_io*.cc`, `src/colmap/sensor/models.h` (format of version 3 and 4).
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from jaxtyping import Float
from torch import Tensor

from prepare.errors import InputError
from prepare.undistort import Distortion

MAX_FILE_BYTES = 8 << 30
_MAX_NAME = 4096
_TOLERANCE = 1e-3  # how far from 1 a quaternion's length may be
_CAMERA = struct.Struct("<iiQQ")  # id, model, width, height; the parameters follow
_IMAGE = struct.Struct(
    "<I7dI"
)  # id, quaternion wxyz, translation, camera's id; the name follows, then its points
_POINT2D_BYTES = 24

# What each parameter is, in the file's order: f is fl_x and fl_y.
_PARAMETERS = {
    "SIMPLE_PINHOLE": ("f", "cx", "cy"),
    "PINHOLE": ("fl_x", "fl_y", "cx", "cy"),
    "SIMPLE_RADIAL": ("f", "cx", "cy", "k1"),
    "RADIAL": ("f", "cx", "cy", "k1", "k2"),
    "OPENCV": ("fl_x", "fl_y", "cx", "cy", "k1", "k2", "p1", "p2"),
    "OPENCV_FISHEYE": ("fl_x", "fl_y", "cx", "cy", "k1", "k2", "k3", "k4"),
}
_MODELS = (
    "SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "OPENCV_FISHEYE", "FULL_OPENCV", "FOV",
    "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE", "THIN_PRISM_FISHEYE", "RAD_TAN_THIN_PRISM_FISHEYE",
)  # fmt: skip


@dataclass(frozen=True)
class ColmapLens:
    """One of the model's cameras: a lens, and the size of the photos it took."""

    fl_x: float  # px, > 0
    fl_y: float  # px, > 0
    cx: float  # px from the left edge
    cy: float  # px from the top edge
    width: int  # px
    height: int  # px
    distortion: Distortion


@dataclass(frozen=True)
class ColmapImage:
    """A registered photo."""

    name: str  # relative to the folder of the photos, as COLMAP was given it
    lens: ColmapLens
    world_to_cam: Float[Tensor, "4 4"]  # OpenCV axes, float64, rigid


@dataclass(frozen=True)
class ColmapModel:
    """Cameras of photos, as structure from motion found them."""

    folder: Path
    images: tuple[ColmapImage, ...]  # at least one, by name
    points_path: Path | None  # points3D.bin, .txt or .ply; `prepare.points` reads it


def is_colmap_model(folder: Path) -> bool:
    """True where `folder` holds `cameras` and `images`, both .bin or both .txt."""
    return any(
        (folder / f"cameras{kind}").is_file() and (folder / f"images{kind}").is_file()
        for kind in (".bin", ".txt")
    )


def read_colmap_model(folder: Path) -> ColmapModel:
    """The model in `folder`; the binary files where both kinds are there. Points are found, not read.

    Raises: InputError where a file is missing, truncated or of another kind, a number is not finite, a quaternion is not of
    length 1, an image has no camera, or a lens has a model that `Distortion` does not hold.
    """
    if not is_colmap_model(folder):
        raise InputError(
            f"{folder}: no COLMAP model; it needs cameras.bin and images.bin, or cameras.txt and images.txt"
        )
    binary = (folder / "cameras.bin").is_file() and (folder / "images.bin").is_file()
    kind = ".bin" if binary else ".txt"
    lenses = (_binary_lenses if binary else _text_lenses)(folder / f"cameras{kind}")
    images = list((_binary_images if binary else _text_images)(folder / f"images{kind}", lenses))
    images_path = folder / f"images{kind}"
    if not images:
        _refuse(
            images_path,
            "registers no image",
            "run COLMAP's mapper again, with more overlap between the photos",
        )
    name, times = Counter(image.name for image in images).most_common(1)[0]
    if times > 1:
        _refuse(images_path, f"lists {name[:80]!r} {times} times", "export the model again")
    points = [folder / f"points3D{suffix}" for suffix in (kind, ".bin", ".txt", ".ply")]
    return ColmapModel(
        folder,
        tuple(sorted(images, key=lambda image: image.name)),
        next((path for path in points if path.is_file()), None),
    )


def _lens(
    path: Path, where: str, model: str, width: int, height: int, values: tuple[float, ...]
) -> ColmapLens:
    names = _PARAMETERS[model]
    if len(values) != len(names):
        _refuse(
            path, f"{where} has {len(values)} parameters, {model} has {len(names)}", "export the model again"
        )
    named = dict(zip(names, values, strict=True))
    fl_x, fl_y = named.pop("fl_x", None), named.pop("fl_y", None)
    focal = named.pop("f", None)
    fl_x, fl_y = (focal if fl_x is None else fl_x), (focal if fl_y is None else fl_y)
    assert fl_x is not None
    assert fl_y is not None
    cx, cy = named.pop("cx"), named.pop("cy")
    if not (1 <= width < 1 << 20 and 1 <= height < 1 << 20):
        _refuse(path, f"{where} is {width} x {height} px", "the file is damaged: export the model again")
    if not all(map(math.isfinite, values)) or min(fl_x, fl_y) <= 0:
        _refuse(path, f"{where} has the focal lengths {fl_x} and {fl_y}, {model}", "export the model again")
    fisheye = model == "OPENCV_FISHEYE"
    distortion = Distortion(**named, model="OPENCV_FISHEYE" if fisheye else "OPENCV")
    return ColmapLens(fl_x, fl_y, cx, cy, width, height, distortion)


def _known_model(path: Path, where: str, model: str) -> str:
    if model not in _PARAMETERS:
        _refuse(
            path,
            f"{where} has the lens model {model[:40]}, which is not supported (there are {', '.join(_PARAMETERS)})",
            "undistort the photos with `colmap image_undistorter` and give its folder",
        )
    return model


def _image(
    path: Path,
    where: str,
    quaternion: tuple[float, ...],
    translation: tuple[float, ...],
    camera_id: int,
    name: str,
    lenses: dict[int, ColmapLens],
) -> ColmapImage:
    again = "export the model again"
    if camera_id not in lenses:
        _refuse(path, f"{where} was taken by camera {camera_id}, which the cameras file does not list", again)
    length = math.sqrt(sum(value * value for value in quaternion))
    if not all(map(math.isfinite, (*quaternion, *translation))) or abs(length - 1) > _TOLERANCE:
        _refuse(path, f"{where} has no rotation: its quaternion is {list(quaternion)}", again)
    w, x, y, z = (value / length for value in quaternion)
    world_to_cam = torch.eye(4, dtype=torch.float64)
    world_to_cam[:3, :3] = torch.tensor(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ],
        dtype=torch.float64,
    )
    world_to_cam[:3, 3] = torch.tensor(translation, dtype=torch.float64)
    return ColmapImage(name, lenses[camera_id], world_to_cam)


# --------------------------------------------------------------------------------------------------------------- binary


class _Bytes:
    """A file's bytes, read in order; what would lie beyond their end is said to be truncated."""

    def __init__(self, path: Path) -> None:
        self.path, self.at = path, 0
        try:
            size = path.stat().st_size
            if size > MAX_FILE_BYTES:
                _refuse(
                    path, f"is {size >> 30} GB, limit {MAX_FILE_BYTES >> 30} GB", "give COLMAP's own file"
                )
            self.data = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror or error}); check the file") from error

    def take(self, form: struct.Struct) -> tuple[Any, ...]:
        if self.at + form.size > len(self.data):
            self.truncated()
        self.at += form.size
        return form.unpack_from(self.data, self.at - form.size)

    def count(self, least_bytes: int) -> int:
        """How many rows of at least `least_bytes` follow."""
        (count,) = self.take(struct.Struct("<Q"))
        if count * least_bytes > len(self.data) - self.at:
            self.truncated()
        return int(count)

    def name(self) -> str:
        end = self.data.find(b"\0", self.at, self.at + _MAX_NAME)
        if end < 0:
            self.truncated()
        text = self.data[self.at : end].decode("utf-8", errors="replace")
        self.at = end + 1
        return text

    def skip(self, size: int) -> None:
        self.at += size

    def end(self) -> None:
        if self.at != len(self.data):
            _refuse(
                self.path,
                "goes on after its last row",
                f"this is not COLMAP's {self.path.name}: export it again",
            )

    def truncated(self) -> NoReturn:
        _refuse(self.path, f"is truncated or not COLMAP's {self.path.name}", "copy it again")


def _binary_lenses(path: Path) -> dict[int, ColmapLens]:
    file = _Bytes(path)
    lenses = {}
    for _ in range(file.count(_CAMERA.size)):
        camera_id, number, width, height = (int(value) for value in file.take(_CAMERA))
        where = f"camera {camera_id}"
        model = _MODELS[number] if 0 <= number < len(_MODELS) else f"number {number}"
        values = file.take(struct.Struct(f"<{len(_PARAMETERS[_known_model(path, where, model)])}d"))
        lenses[camera_id] = _lens(path, where, model, width, height, values)
    file.end()
    return lenses


def _binary_images(path: Path, lenses: dict[int, ColmapLens]) -> Iterator[ColmapImage]:
    file = _Bytes(path)
    for _ in range(file.count(_IMAGE.size + 9)):
        image_id, *numbers, camera_id = file.take(_IMAGE)
        name = file.name()
        file.skip(_POINT2D_BYTES * file.count(_POINT2D_BYTES))
        where = f"image {int(image_id)} {name[:80]!r}"
        yield _image(path, where, tuple(numbers[:4]), tuple(numbers[4:]), int(camera_id), name, lenses)
    file.end()


# ----------------------------------------------------------------------------------------------------------------- text


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Every line that is no comment, without its line end, and where it stands."""
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            for number, line in enumerate(file, start=1):
                if not line.startswith("#"):
                    yield f"line {number}", line.strip()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); check the file") from error


def _text_lenses(path: Path) -> dict[int, ColmapLens]:
    lenses = {}
    for where, line in _lines(path):
        if not line:
            continue
        words = line.split()
        try:
            camera_id, model, width, height = int(words[0]), words[1], int(words[2]), int(words[3])
            values = tuple(float(word) for word in words[4:])
        except (ValueError, IndexError) as error:
            raise InputError(
                f"{path}: {where} is not `CAMERA_ID MODEL WIDTH HEIGHT PARAMETERS`; give COLMAP's cameras.txt"
            ) from error
        lenses[camera_id] = _lens(path, where, _known_model(path, where, model), width, height, values)
    return lenses


def _text_images(path: Path, lenses: dict[int, ColmapLens]) -> Iterator[ColmapImage]:
    """Each image has two lines, the second (its points, not needed) may be empty."""
    lines = _lines(path)
    for where, line in lines:
        if not line:
            continue
        words = line.split(maxsplit=9)
        try:
            numbers, camera_id, name = tuple(float(word) for word in words[1:8]), int(words[8]), words[9]
        except (ValueError, IndexError) as error:
            raise InputError(
                f"{path}: {where} is not `IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME`; give COLMAP's images.txt, two lines "
                "an image, the second its points or empty"
            ) from error
        points_where, points = next(lines, ("the last line", ""))
        if len(points.split()) % 3:
            _refuse(
                path,
                f"{points_where} must hold the points `X Y POINT3D_ID` of {name[:80]!r} or be empty",
                "give two lines an image",
            )
        yield _image(path, where, numbers[:4], numbers[4:], camera_id, name, lenses)


def _refuse(path: Path, what: str, advice: str) -> NoReturn:
    raise InputError(f"{path}: {what}; {advice}")
