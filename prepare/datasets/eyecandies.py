"""Eyecandies: rendered sweets with a depth map, lit from six sides; the depth becomes points and the background one point.

    <data>/<class>/{train,val,test_public}/data/NNN_{image_0..5.png,depth.png,info_depth.yaml,pose.txt,mask.png,...}

The world's y axis points down into the support. u is a pixel's column, v its row, d its depth in the world's units, ten of which
are a metre here, as published. test_private has no truth and is not read. A test sample is bad where its mask has any pixel: ten
public ones that are listed as bad have an empty mask and count as good.
Source: Bonfiglioli et al., Eyecandies (ACCV 2022); the preprocessing of M3DM (CVPR 2023) and CFM (CVPR 2024).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image

from prepare.datasets.mad_sim import chosen_classes
from prepare.datasets.mvtec_3d import prepared_name
from prepare.datasets.registered_folder import (
    Cleaned,
    PreparedClass,
    RawSample,
    Refused,
    Variant,
    find_classes,
    prepare_registered,
)
from prepare.datasets.scene_folder import Progress, no_progress
from prepare.errors import InputError, UsageError
from prepare.image import natural_key, read_image, read_mask
from prepare.registered import GOOD

SOURCE = "eyecandies"
LICENCE = "Eyecandies: as stated at eyecan-ai.github.io/eyecandies"
BAD = "bad"
LIGHT = 4  # the photo under the left spotlight is the published input
FOCAL = 711.11 / 512  # of the photo's width
SPLIT_OF = {"train": "train", "val": "validation", "test_public": "test"}
# In the world's units, after the support was turned level: what is lower, farther or more to the side is background.
LOWEST, FARTHEST, SIDEMOST = -0.02, 1.8, 1.0
METRES = 0.1
_YAML_BYTES = 64 * 1024
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"


def prepare_eyecandies(
    data: Path,
    class_folder: Callable[[str], Path],
    *,
    classes: Sequence[str] | None = None,
    name: str | None = None,
    variant: Variant = "rgb",
    copy: bool = False,
    workers: int = 0,
    progress: Progress = no_progress,
) -> list[PreparedClass]:
    """The classes of the dataset (or the one that `data` is), each in the folder for its name.

    Raises: as `prepare_mvtec_3d`.
    """
    folders = find_classes(data, _is_class, "a folder with train/data/*_depth.png")
    chosen = chosen_classes(data, folders, classes)
    if name is not None and len(chosen) > 1:
        raise UsageError(f"--name {name}: is for one class, got {len(chosen)}; choose it with --class")
    made = []
    for title in chosen:
        samples, refused, notes = _samples(folders[title])
        made.append(
            prepare_registered(
                class_folder(prepared_name(name or title, name, variant)),
                samples,
                _clean,
                name=title,
                source=SOURCE,
                data=folders[title],
                variant=variant,
                settings={
                    "photo": f"image_{LIGHT}", "lowest": LOWEST, "farthest": FARTHEST, "sidemost": SIDEMOST,
                    "metres_per_unit": METRES,
                },
                licence=LICENCE,
                refused=refused,
                notes=notes,
                copy=copy,
                workers=workers,
                progress=progress,
            )
        )  # fmt: skip
    return made


def unproject(
    depth: Float[np.ndarray, "h w"], world_to_cam: Float[np.ndarray, "4 4"]
) -> Float[np.ndarray, "h w xyz=3"]:
    """World points of all pixels: d times the inverse of K times the pose, applied to (u, v, 1, 1 / d)."""
    height, width = depth.shape
    lens = np.diag([FOCAL * width, FOCAL * width, 1.0, 1.0])
    lens[:2, 2] = width / 2, height / 2
    inverse = np.linalg.inv(lens @ world_to_cam)
    v, u = np.mgrid[:height, :width].astype(np.float64)
    seen = np.stack([u * depth, v * depth, depth, np.ones_like(depth)], axis=-1)
    return np.asarray((seen @ inverse.T)[..., :3])


def background(points: Float[np.ndarray, "h w xyz=3"]) -> tuple[Bool[np.ndarray, "h w"], np.ndarray]:
    """Where the support and what is behind it is, and the one world point that stands for it (x is 0).

    The support's tilt about x is that of the line from the middle of the last row to the middle of the first.
    """
    column = points.shape[1] // 2
    top, bottom = points[0, column], points[-1, column]
    start = np.array([0.0, bottom[1], bottom[2]])
    dy, dz = top[1] - bottom[1], top[2] - bottom[2]
    length = math.hypot(dy, dz)
    if length == 0:
        raise InputError("the first and the last row show the same depth everywhere; render the sample again")
    c, s = dz / length, dy / length
    turn = np.array([[1.0, 0.0, 0.0], [0.0, c, -s], [0.0, s, c]])
    level = (points - start) @ turn.T
    behind = (level[..., 1] > LOWEST) | (level[..., 2] > FARTHEST) | (np.abs(level[..., 0]) > SIDEMOST)
    return behind, start - turn.T @ start


def read_depth_range(path: Path) -> tuple[float, float]:
    """Least and greatest depth of an info_depth.yaml: `normalization` with the numbers `min` and `max`; no other YAML is read.

    Raises: InputError where they are not there, or are no range.
    """
    wrong = f"{path}: normalization with min and max, 0 < min < max, is wanted; copy the dataset again"
    try:
        if path.stat().st_size > _YAML_BYTES:
            raise InputError(wrong)
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(wrong) from error
    block = re.search(
        r"^normalization:[ \t]*(\{[^{}]*\}|(?:#.*)?(?:\r?\n(?:[ \t]+.*|[ \t]*))+)", text, re.MULTILINE
    )
    if block is None:
        raise InputError(wrong)
    found = {}
    for key in ("min", "max"):
        values = re.findall(
            rf"(?:^[ \t]+|[{{,][ \t\r\n]*){key}:[ \t]+({_NUMBER})[ \t]*(?=[,}}\r\n#]|$)",
            block[1],
            re.MULTILINE,
        )
        if len(values) != 1:
            raise InputError(wrong)
        found[key] = float(values[0])
    low, high = found["min"], found["max"]
    if not (0 < low < high and math.isfinite(high)):
        raise InputError(wrong)
    return low, high


def read_pose(path: Path) -> Float[np.ndarray, "4 4"]:
    """World to camera, 4 x 4. Raises: InputError where the file is not that."""
    wrong = f"{path}: a pose of 4 x 4 numbers that can be inverted is wanted; copy the dataset again"
    try:
        pose = np.array(
            [[float(v) for v in line.split()] for line in path.read_text().splitlines() if line.strip()]
        )
    except (OSError, ValueError) as error:
        raise InputError(wrong) from error
    if pose.shape != (4, 4) or not np.isfinite(pose).all() or abs(np.linalg.det(pose)) < 1e-9:
        raise InputError(wrong)
    return pose


def read_depth(path: Path, low: float, high: float) -> Float[np.ndarray, "h w"]:
    """Depth in the world's units, float64, of a 16-bit picture of the share between `low` and `high`.

    Raises: InputError for a file that cannot be read, or is not 16 bit.
    """
    share = read_image(path).rgb[..., 0].numpy()
    with Image.open(path) as picture:
        mode = picture.mode
    if not mode.startswith("I"):
        raise InputError(f"{path}: a depth of 16 bit is wanted, got the mode {mode}; copy the dataset again")
    levels = np.round(share.astype(np.float64) * 65535)
    return levels / 65535 * (high - low) + low


def _is_class(folder: Path) -> bool:
    return next((folder / "train" / "data").glob("*_depth.png"), None) is not None


def _samples(folder: Path) -> tuple[list[RawSample], list[Refused], list[str]]:
    """Samples, those whose mask cannot be read, and what else there is to say."""
    found: list[RawSample] = []
    refused: list[Refused] = []
    for theirs, split in SPLIT_OF.items():
        data = folder / theirs / "data"
        stems = {
            path.name.split("_")[0]
            for end in ("depth", f"image_{LIGHT}")
            for path in data.glob(f"*_{end}.png")
        }
        for stem in sorted(stems, key=natural_key):
            mask = data / f"{stem}_mask.png"
            defect = GOOD
            if split == "test":
                try:
                    if not mask.is_file():
                        raise InputError(
                            f"{mask}: no ground truth for this test sample; copy the dataset again"
                        )
                    defect = BAD if bool(read_mask(mask).any()) else GOOD
                except InputError as error:
                    refused.append(Refused(f"{split}/{stem}", " ".join(str(error).split())))
                    continue
            points = tuple(data / f"{stem}_{end}" for end in ("depth.png", "info_depth.yaml", "pose.txt"))
            photo = data / f"{stem}_image_{LIGHT}.png"
            found.append(RawSample(split, defect, stem, photo, points, mask if defect == BAD else None))
    private = (folder / "test_private").is_dir()
    return found, refused, ["test_private has no ground truth and was not read"] if private else []


def _clean(sample: RawSample) -> Cleaned:
    """Raises: InputError as the readers, and where nothing is in front of the background."""
    depth_path, range_path, pose_path = sample.points
    depth = read_depth(depth_path, *read_depth_range(range_path))
    if depth.shape[0] != depth.shape[1]:
        raise InputError(
            f"{depth_path}: a square picture is wanted, got {depth.shape[1]} x {depth.shape[0]}; copy the dataset again"
        )
    points = unproject(depth, read_pose(pose_path))
    try:
        behind, one_point = background(points)
    except InputError as error:
        raise InputError(f"{depth_path}: {error}") from error
    if behind.all():
        raise InputError(
            f"{depth_path}: the cloud is empty, nothing stands on the support; render the sample again"
        )
    points = np.where(behind[..., None], one_point, points)
    return Cleaned((points[..., [0, 2, 1]] * [METRES, -METRES, METRES]).astype(np.float32), behind)
