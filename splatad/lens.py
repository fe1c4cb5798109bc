"""The lens of a photo to inspect: the reference photos' own, what EXIF says, or one to be found with the camera."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from prepare.camera import Camera
from prepare.errors import InputError
from prepare.exif import focal_from_exif
from prepare.image import image_size
from prepare.undistort import Distortion
from recon.reference import Reference

LensMode = Literal["auto", "reference", "exif", "free"]
# Share of the focal length: a calibrated lens and its EXIF differ by some percent, another lens by far more.
EXIF_DIFFERS = 0.10
SHAPE_TOLERANCE = 0.02  # of the aspect ratio


@dataclass(frozen=True)
class QueryLens:
    """A photo's lens as far as it is known before its camera is found."""

    camera: Camera  # intrinsics at the photo's upright size; its pose means nothing
    fit_focal: bool  # the focal length is a guess, to be refined along with the pose
    distortion: Distortion | None  # of the lens; None: a pinhole's, or not known
    source: str  # where the focal length comes from, in words


def query_lens(reference: Reference, path: Path, mode: LensMode = "auto") -> QueryLens:
    """The lens of the photo in `path`, which is to be compared with `reference`.

    - reference: the reference photos' own lens.
    - exif: what the file says, refined (it gives whole millimetres).
    - free: what the file says, else the reference's lens or field of view, refined.
    - auto: the reference's own where the photo has its shape (or that turned by a quarter) and EXIF does not say
      otherwise by more than EXIF_DIFFERS; else EXIF's; else a lens with the reference's field of view along the longer
      side, both refined.

    A lens that is not the reference's has its principal point in the middle and no distortion.
    Raises: InputError where the file is no photo; for `reference`, where its shape is another; for `exif`, where the
    file has no focal length.
    """
    width, height = image_size(path)
    own = reference_lens(reference.camera, width, height)
    if mode == "reference":
        if own is None:
            camera = reference.camera
            raise InputError(
                f"{path}: {width} x {height} px, but the reference's photos are {camera.width} x {camera.height}; "
                "take the photo with the same camera, uncropped, or let the lens be found (--lens auto)"
            )
        return QueryLens(own, False, reference.distortion, "the reference's lens")
    told = focal_from_exif(path)
    if mode == "exif" and told is None:
        raise InputError(
            f"{path}: no focal length in its EXIF data; use the file as the camera wrote it, or --lens free"
        )
    if mode == "auto" and own is not None:
        focal = (own.fl_x * own.fl_y) ** 0.5
        if told is None or abs(told / focal - 1.0) <= EXIF_DIFFERS:
            return QueryLens(own, False, reference.distortion, "the reference's lens")
    if told is not None:
        return QueryLens(centred_lens(told, width, height), True, None, "EXIF")
    if own is not None:
        return QueryLens(own, True, None, "the reference's lens as a guess")
    template = reference.camera
    longer = (
        template.fl_x / template.width
        if template.width >= template.height
        else template.fl_y / template.height
    )
    guess = centred_lens(longer * max(width, height), width, height)
    return QueryLens(guess, True, None, "the reference's field of view as a guess")


def reference_lens(camera: Camera, width: int, height: int) -> Camera | None:
    """The lens of `camera` for a photo of this size: scaled, or turned by a quarter where portrait meets landscape.

    None where neither shape fits.
    """

    def fits(a: float, b: float) -> bool:
        return abs(a / b - 1.0) < SHAPE_TOLERANCE

    ratio = width / height
    if fits(ratio, camera.width / camera.height):
        return camera.resized(width, height)
    if fits(ratio, camera.height / camera.width):
        turned = Camera(
            camera.world_to_cam, camera.fl_y, camera.fl_x, camera.cy, camera.cx, camera.height, camera.width
        )
        return turned.resized(width, height)
    return None


def centred_lens(focal_px: float, width: int, height: int) -> Camera:
    """A pinhole lens of that focal length with its principal point in the middle of a photo of this size."""
    return Camera(torch.eye(4), focal_px, focal_px, width / 2, height / 2, width, height)
