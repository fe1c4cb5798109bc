"""Photos with a registered point at every pixel (RGB + xyz), a class of parts in a folder of ours with `class.json`.

What the preparers of MVTec 3D-AD and Eyecandies write and `detect.cfm` reads. Units are metres, (0, 0, 0) is no measurement.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped, UInt8
from PIL import Image
from torch import Tensor

from prepare.atomic_write import write_json
from prepare.errors import InputError, UsageError
from prepare.image import image_size, read_image, read_mask_share
from prepare.organised_cloud import measured, read_xyz, xyz_size

CLASS_FILE = "class.json"
FORMAT = 1
KIND = "registered"
GOOD = "good"
SPLITS = ("train", "validation", "test")
VARIANTS = ("rgb", "rgb-blacked")
PX = 224
LEAST_POINTS = 1024  # at PX: as many as the shape features have tokens


@dataclass(frozen=True)
class Sample:
    """One photo with its points; paths are absolute."""

    name: str  # "test/hole/003": unique in its class
    split: str  # train, validation or test
    defect: str  # "good", or the defect's name
    rgb: Path
    xyz: Path
    gt: Path | None

    @property
    def label(self) -> int:
        """0 good, 1 anomalous."""
        return int(self.defect != GOOD)


@dataclass(frozen=True)
class Registered:
    """A photo and its points at one square size, pixel for pixel."""

    rgb: Float[Tensor, "px px rgb=3"]  # in [0, 1]
    xyz: Float[Tensor, "px px xyz=3"]  # metres; (0, 0, 0) where nothing was measured
    valid: Bool[Tensor, "px px"]  # all three coordinates differ from 0
    mask: Bool[Tensor, "px px"] | None  # True on the defect; None where the truth is not known


@dataclass(frozen=True)
class RegisteredClass:
    """A prepared class, open for reading."""

    folder: Path
    name: str
    source: str  # "mvtec-3d", "eyecandies"
    variant: str  # "rgb": photos as they are; "rgb-blacked": background black, padded
    defects: tuple[str, ...]  # names, sorted, without "good"
    all_samples: tuple[Sample, ...]  # sorted by split, defect and name
    refused: tuple[tuple[str, str], ...]  # (name, why)
    settings: Mapping[str, Any]  # of the preparation
    licence: str

    @classmethod
    def open(cls, folder: Path) -> RegisteredClass:
        """The class in `folder`.

        Raises: InputError where there is none, or its class.json is not of this format.
        """
        path = folder / CLASS_FILE
        if not path.is_file():
            raise InputError(
                f"{path}: is not there; prepare the class first (splatad prepare mvtec-3d or eyecandies)"
            )
        again = f"{path}: cannot be read as a class of registered samples; prepare it again"
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(again) from error
        if not isinstance(found, dict) or found.get("kind") != KIND or found.get("format") != FORMAT:
            raise InputError(f"{path}: kind {KIND!r} in format {FORMAT} is wanted; prepare the class again")
        try:
            if found["units"] != "m":
                raise InputError(
                    f"{path}: metres are wanted, got {found['units']!r}; prepare the class again"
                )
            return cls(
                folder=folder,
                name=str(found["name"]),
                source=str(found["source"]),
                variant=str(found["variant"]),
                defects=tuple(str(name) for name in found["defects"]),
                all_samples=tuple(_sample(folder, row) for row in found["samples"]),
                refused=tuple((str(row["name"]), str(row["why"])) for row in found["refused"]),
                settings=dict(found["settings"]),
                licence=str(found["licence"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(again) from error

    def samples(self, split: str | None = None) -> list[Sample]:
        """The samples of a split, or all, in sorted order.

        Raises: UsageError for another name than train, validation and test.
        """
        if split is not None and split not in SPLITS:
            raise UsageError(f"split {split!r}: one of {', '.join(SPLITS)} is wanted")
        return [sample for sample in self.all_samples if split in (None, sample.split)]

    def load(self, sample: Sample, px: int = PX) -> Registered:
        """The sample at `px` x `px`; the mask of a good one is all False, and its truth's file is not looked at.

        Raises: InputError as `load_pair`, and for a truth of another size than the photo.
        """
        pair = load_pair(sample.rgb, sample.xyz, px)
        if not sample.label:
            return Registered(pair.rgb, pair.xyz, pair.valid, torch.zeros_like(pair.valid))
        if sample.gt is None:
            return pair
        truth = read_truth(sample.gt)
        size, cloud = image_size(sample.rgb)[::-1], xyz_size(sample.xyz)
        if truth.shape != size:
            raise InputError(
                f"{sample.gt}: {size[1]} x {size[0]} px as the photo are wanted, got {truth.shape[1]} x {truth.shape[0]};"
                " export it again"
            )
        levels = pad_edge(truth.astype(np.uint8) * 255, _side(size, cloud, str(sample.xyz)))
        shrunk = Image.fromarray(levels).resize((px, px), Image.Resampling.NEAREST)
        return Registered(pair.rgb, pair.xyz, pair.valid, torch.from_numpy(np.asarray(shrunk) > 127))


def load_pair(rgb_path: Path, xyz_path: Path, px: int = PX) -> Registered:
    """A photo and its points, padded to a square and resized to `px` x `px`; the mask is None.

    The photo is padded by repeating its edge and resized bicubically (Pillow's, with antialiasing, 8 bit), the points are padded
    with (0, 0, 0) and take the pixel nearest to each new centre. (torch's "nearest" takes the corner, half a pixel off.)
    Points that were prepared are square already: the photo is padded to the same side.

    Raises: InputError for a file that cannot be read, sizes that differ, or fewer than 1,024 points (fewer in proportion where
    `px` is below 224).
    """
    return registered_pair(read_levels(rgb_path), read_xyz(xyz_path), px, str(xyz_path))


def registered_pair(
    levels: UInt8[np.ndarray, "h w rgb=3"],
    xyz: Float[np.ndarray, "rows columns xyz=3"],
    px: int,
    where: str,
) -> Registered:
    """As `load_pair`, of a photo and points in memory; `where` names the points in messages."""
    side = _side((levels.shape[0], levels.shape[1]), (xyz.shape[0], xyz.shape[1]), where)
    photo = Image.fromarray(pad_edge(levels, side)).resize((px, px), Image.Resampling.BICUBIC)
    points = nearest(pad_zero(xyz, side), px)
    valid = measured(points)
    points = np.where(valid[..., None], points, np.float32(0))
    check_count(int(valid.sum()), px, where)
    return Registered(
        torch.from_numpy(np.asarray(photo).astype(np.float32) / np.float32(255)),
        torch.from_numpy(points),
        torch.from_numpy(valid),
        None,
    )


def read_levels(path: Path) -> UInt8[np.ndarray, "h w rgb=3"]:
    """A photo as 8-bit RGB. Raises: InputError as `prepare.image.read_image`."""
    return np.round(read_image(path).rgb.numpy() * 255).astype(np.uint8)


def read_truth(path: Path) -> Bool[np.ndarray, "h w"]:
    """A ground-truth mask, True from half of white on. Raises: InputError as `prepare.image.read_image`."""
    return np.asarray(read_mask_share(path).numpy() > 0.5)


def check_count(points: int, px: int, where: str) -> None:
    """Raises: InputError where there are fewer points at `px` x `px` than the features need."""
    wanted = LEAST_POINTS if px >= PX else round(LEAST_POINTS * (px / PX) ** 2)
    if points < wanted:
        raise InputError(
            f"{where}: at least {wanted} points are wanted at {px} x {px} px, got {points}; move the camera nearer"
        )


def pad_edge(image: UInt8[np.ndarray, "h w *rgb"], side: int) -> UInt8[np.ndarray, "side side *rgb"]:
    """The image in the middle of a square of `side` px, its edges repeated; (side - size) // 2 before it."""
    return np.pad(image, _margins(image.shape, side), mode="edge")


def pad_zero(image: Shaped[np.ndarray, "h w *xyz"], side: int) -> Shaped[np.ndarray, "side side *xyz"]:
    """The same with zeros."""
    return np.pad(image, _margins(image.shape, side))


def nearest(image: Float[np.ndarray, "side side xyz=3"], px: int) -> Float[np.ndarray, "px px xyz=3"]:
    """Each new pixel is the old one that holds its centre."""
    index = np.floor((np.arange(px) + 0.5) * (len(image) / px)).astype(int)
    return image[index[:, None], index[None, :]]


def hundreds(size: tuple[int, int]) -> int:
    """The side in px of the square that a prepared cloud of `size` (h, w) is padded to: the next multiple of 100."""
    return -(-max(size) // 100) * 100


def write_class(folder: Path, header: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> None:
    """Write class.json atomically: `header` has name, source, variant, defects, refused, settings and licence."""
    write_json(
        folder / CLASS_FILE,
        {"format": FORMAT, "kind": KIND, "units": "m", **header, "samples": list(samples)},
    )


def _side(photo: tuple[int, int], cloud: tuple[int, int], where: str) -> int:
    """The side of the square both are padded to. Raises: InputError where they do not lie on each other."""
    if photo == cloud:
        return max(photo)
    if cloud == (hundreds(photo), hundreds(photo)):
        return hundreds(photo)
    raise InputError(
        f"{where}: {cloud[1]} x {cloud[0]} points do not lie on a photo of {photo[1]} x {photo[0]} px;"
        " a point for each pixel is wanted"
    )


def _margins(shape: tuple[int, ...], side: int) -> list[tuple[int, int]]:
    before = [(side - size) // 2 for size in shape[:2]]
    return [(b, side - size - b) for b, size in zip(before, shape[:2], strict=True)] + [(0, 0)] * (
        len(shape) - 2
    )


def _sample(folder: Path, row: Mapping[str, Any]) -> Sample:
    """Raises: KeyError, TypeError, ValueError for a row that is none."""
    if row["split"] not in SPLITS:
        raise ValueError(row["split"])
    gt = row["gt"]
    return Sample(
        name=str(row["name"]),
        split=row["split"],
        defect=str(row["defect"]),
        rgb=_inside(folder, row["rgb"]),
        xyz=_inside(folder, row["xyz"]),
        gt=None if gt is None else _inside(folder, gt),
    )


def _inside(folder: Path, name: str) -> Path:
    """Raises: ValueError where the name leads out of the folder (the file there may be a link)."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{name} leads out of the folder")
    return folder / path
