"""Millimetres from one known length: two points of the part, shown in one photo or in several.

A user reads pixels off any picture viewer: `PHOTO:u,v:u2,v2`, from the photo's top left corner. Marked in several photos
the points are triangulated; in one, their depth is that of the cloud's points beside them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from prepare.errors import InputError, UsageError
from prepare.structure_from_motion import PosedPhoto, Reconstruction

_NEAREST = 8  # points of the cloud that tell a pixel's depth
_NEAR_SHARE = 0.05  # of the photo's diagonal: farther points say nothing about the pixel
_MOST_OFF = 0.01  # of the photo's diagonal: marks of one point that are farther apart are not of one point


@dataclass(frozen=True)
class Mark:
    """Where one photo shows the two ends of the known length."""

    photo: str
    ends_px: Float[Tensor, "end=2 uv=2"]  # in the whole upright photo, as it is


@dataclass(frozen=True)
class MeasuredLength:
    """The distance between the two ends."""

    length: float  # in the reconstruction's unit, > 0
    ends: Float[Tensor, "end=2 xyz=3"]  # in the reconstruction's world
    off_px: float | None  # greatest distance of a mark from its triangulated point; None for one photo


def parse_mark(text: str) -> Mark:
    """`PHOTO:u,v:u2,v2` as a mark. Raises: UsageError for anything else."""
    wrong = UsageError(
        f"--between {text!r}: must be PHOTO:u,v:u2,v2 with two different points in px, such as IMG_1.jpg:812,440:1033,462"
    )
    try:
        photo, *ends = text.rsplit(":", 2)
        values = [[float(number) for number in end.split(",")] for end in ends]
    except ValueError:
        raise wrong from None
    if not photo or [len(value) for value in values] != [2, 2] or values[0] == values[1]:
        raise wrong
    if not all(math.isfinite(number) for value in values for number in value):
        raise wrong
    return Mark(photo, torch.tensor(values, dtype=torch.float64))


def measure(reconstruction: Reconstruction, marks: Sequence[Mark]) -> MeasuredLength:
    """The length between the marked ends.

    Raises: UsageError for a photo that is not registered and a pixel outside it; InputError where one photo's pixel has
    no point of the cloud near it, or several photos' marks do not meet.
    """
    photos = [_find(reconstruction, mark) for mark in marks]
    rays = [photo_rays(photo, mark.ends_px) for photo, mark in zip(photos, marks, strict=True)]
    if len(marks) == 1:
        depths = torch.tensor(
            [_depth(reconstruction, photos[0], end_px) for end_px in marks[0].ends_px], dtype=torch.float64
        )
        world_to_cam = photos[0].camera.world_to_cam
        ends = (rays[0] * depths[:, None] - world_to_cam[:3, 3]) @ world_to_cam[:3, :3]
        return MeasuredLength(_length(ends), ends, None)

    ends = torch.stack([_nearest_to_rays(photos, [ray[end] for ray in rays]) for end in range(2)])
    off = 0.0
    for photo, mark in zip(photos, marks, strict=True):
        camera = photo.camera
        distance = float((_project(photo, ends) - mark.ends_px).norm(dim=1).max())
        if not distance <= _MOST_OFF * math.hypot(camera.width, camera.height):
            raise InputError(
                f"--between {mark.photo}: its marks lie {distance:.0f} px from where the other photos put these points;"
                " mark the same two points, in the same order, in photos from different sides"
            )
        off = max(off, distance)
    return MeasuredLength(_length(ends), ends, off)


def photo_rays(photo: PosedPhoto, pixels: Float[Tensor, "n uv=2"]) -> Float[Tensor, "n xyz=3"]:
    """Directions (x, y, 1) in the camera's axes of pixels of the distorted photo."""
    camera = photo.camera
    centre = pixels.new_tensor([camera.cx, camera.cy])
    distorted = (pixels - centre) / pixels.new_tensor([camera.fl_x, camera.fl_y])
    ideal = distorted
    for _ in range(50):  # a fixed point: distortion moves points by little
        ideal = ideal - (photo.distortion.distort(ideal) - distorted)
    return torch.cat([ideal, torch.ones_like(ideal[:, :1])], dim=1)


def _project(photo: PosedPhoto, points: Tensor) -> Tensor:
    camera = photo.camera
    in_cam = points @ camera.world_to_cam[:3, :3].T + camera.world_to_cam[:3, 3]
    at = photo.distortion.distort(in_cam[:, :2] / in_cam[:, 2:])
    return at * at.new_tensor([camera.fl_x, camera.fl_y]) + at.new_tensor([camera.cx, camera.cy])


def _find(reconstruction: Reconstruction, mark: Mark) -> PosedPhoto:
    found = [photo for photo in reconstruction.photos if photo.name == mark.photo]
    found = found or [photo for photo in reconstruction.photos if photo.path.name == mark.photo]
    if len(found) != 1:
        names = ", ".join(photo.name for photo in reconstruction.photos[:3])
        what = "is several photos' name" if found else "is none of the registered photos"
        raise UsageError(f"--between {mark.photo}: {what}; name one of {names}, ...")
    width, height = found[0].camera.width, found[0].camera.height
    u, v = mark.ends_px.unbind(dim=1)
    if not bool(((u >= 0) & (u <= width) & (v >= 0) & (v <= height)).all()):
        raise UsageError(f"--between {mark.photo}: a point lies outside the photo of {width} x {height} px")
    return found[0]


def _depth(reconstruction: Reconstruction, photo: PosedPhoto, pixel: Tensor) -> float:
    """Depth z at a pixel, from a plane through the points beside it (its inverse depth is linear in the pixels)."""
    camera = photo.camera
    near_px = _NEAR_SHARE * math.hypot(camera.width, camera.height)
    offset = photo.observed_px - pixel
    distance = offset.norm(dim=1)
    order = distance.argsort(stable=True)[:_NEAREST]
    order = order[distance[order] <= near_px]
    in_cam = (
        reconstruction.points[photo.observed[order]] @ camera.world_to_cam[2, :3] + camera.world_to_cam[2, 3]
    )
    order, in_cam = order[in_cam > 0], in_cam[in_cam > 0]
    if len(order) == 0:
        raise InputError(
            f"--between {photo.name}:{float(pixel[0]):g},{float(pixel[1]):g}: no reconstructed point within"
            f" {near_px:.0f} px tells its depth; mark the same two points in a second photo as well"
        )
    inverse = 1.0 / in_cam
    inverse_at = float(inverse.median())
    if len(order) >= 5:
        # A slope is believed as far as the points lie round the pixel: a small ridge holds it flat otherwise.
        unit = offset[order] / near_px
        design = torch.cat([unit, torch.ones_like(unit[:, :1])], dim=1)
        ridge = torch.diag(unit.new_tensor([1e-3, 1e-3, 0.0]))
        plane = torch.linalg.solve(design.T @ design + ridge, design.T @ inverse)
        inverse_at = min(max(float(plane[2]), float(inverse.min())), float(inverse.max()))
    return 1.0 / inverse_at


def _nearest_to_rays(photos: Sequence[PosedPhoto], rays: Sequence[Tensor]) -> Tensor:
    """The point nearest to the rays, weighted by how far away it is from each camera (least squares in angle)."""
    rotations = [photo.camera.world_to_cam[:3, :3] for photo in photos]
    centres = torch.stack([photo.camera.centre for photo in photos])
    directions = torch.stack(
        [
            torch.nn.functional.normalize(rotation.T @ ray, dim=0)
            for rotation, ray in zip(rotations, rays, strict=True)
        ]
    )
    across = torch.eye(3, dtype=torch.float64) - directions[:, :, None] * directions[:, None, :]
    weights = torch.ones(len(photos), dtype=torch.float64)
    point = centres.mean(dim=0)
    for _ in range(5):
        system = (weights[:, None, None] * across).sum(dim=0)
        if float(torch.linalg.eigvalsh(system)[0]) < 1e-4 * float(weights.sum()):
            raise InputError(
                "--between: the photos look at the points from the same side; mark them in photos from different sides"
            )
        point = torch.linalg.solve(
            system, (weights[:, None] * (across @ centres[:, :, None])[..., 0]).sum(dim=0)
        )
        weights = 1.0 / (point - centres).square().sum(dim=1).clamp_min(1e-12)
    return point


def _length(ends: Tensor) -> float:
    length = float((ends[0] - ends[1]).norm())
    if not length > 0:
        raise InputError("--between: both points are at the same place; mark two points that are far apart")
    return length
