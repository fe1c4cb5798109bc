"""What the cameras of an unknown world say about it: what they look at, which way is up, and which sides they show.

Elevations and azimuths are those of a camera seen from the focus, in degrees: 90 is straight above; azimuth 0 is the
first photo's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

UNIT = 3.0  # the median camera's distance from the focus in a placed world: as in MAD-Sim
NEAR_DEG = 20.0  # a side is shown where a photo was taken from within this angle: queries between are found
_BELOW_DEG, _ABOVE_DEG = -15.0, 50.0  # a part is shown from below or above by photos beyond these
_GAP_DEG = 45.0
_STEEP_DEG = 70.0  # nearer to the pole an azimuth means little


@dataclass(frozen=True)
class Placement:
    """A similarity from the cameras' own world to one with z up, the focus at the origin and UNIT."""

    rotation: Float[Tensor, "3 3"]  # float64
    focus: Float[Tensor, "xyz=3"]  # in the old world
    scale: float  # new units per old unit
    focus_from: Literal["optical axes", "points"]
    up_from: Literal["level photos", "mean of the photos"]

    def place_points(self, points: Float[Tensor, "n xyz=3"]) -> Float[Tensor, "n xyz=3"]:
        """The points in the new world."""
        return self.scale * (points - self.focus) @ self.rotation.T

    def place_camera(self, world_to_cam: Float[Tensor, "4 4"]) -> Float[Tensor, "4 4"]:
        """The camera in the new world, rigid again."""
        placed = torch.eye(4, dtype=world_to_cam.dtype)
        placed[:3, :3] = world_to_cam[:3, :3] @ self.rotation.T
        placed[:3, 3] = self.scale * (world_to_cam[:3, :3] @ self.focus + world_to_cam[:3, 3])
        return placed


@dataclass(frozen=True)
class Coverage:
    """From which sides a part was photographed."""

    sphere_share: float  # of all directions, those within NEAR_DEG of a photo; in [0, 1]
    lowest_deg: float  # elevation
    highest_deg: float  # elevation
    widest_gap_deg: float  # between neighbours in azimuth, in [0, 360]
    gap_between: tuple[str, str]  # the photos on either side of it
    remarks: tuple[str, ...]  # what is missing, in words; empty where nothing is


def place(world_to_cam: Float[Tensor, "photos 4 4"], points: Float[Tensor, "points xyz=3"]) -> Placement:
    """The world turned, moved and scaled as `Placement` says; the first photo's azimuth becomes 0 (towards +x)."""
    world_to_cam = world_to_cam.double()
    rotations = world_to_cam[:, :3, :3]
    centres = -(rotations.transpose(1, 2) @ world_to_cam[:, :3, 3:])[..., 0]
    focus, focus_from = common_focus(centres, rotations[:, 2]), "optical axes"
    if focus is None:
        focus = (
            points.double().median(dim=0).values
            if len(points)
            else centres.mean(dim=0) + rotations[:, 2].mean(dim=0)
        )
        focus_from = "points"
    up, up_from = up_axis(rotations)
    away = centres - focus
    distance = float(away.norm(dim=1).median())
    first = away[0] - (away[0] @ up) * up
    if float(first.norm()) < 1e-3 * distance:  # straight above: any azimuth will do
        helper = torch.zeros(3, dtype=torch.float64)
        helper[int(up.abs().argmin())] = 1.0
        first = helper - (helper @ up) * up
    x_axis = first / first.norm()
    rotation = torch.stack([x_axis, torch.linalg.cross(up, x_axis), up])
    scale = UNIT / distance if distance > 0 else 1.0
    return Placement(rotation, focus, scale, focus_from, up_from)  # type: ignore[arg-type]


def common_focus(
    centres: Float[Tensor, "photos xyz=3"], forwards: Float[Tensor, "photos xyz=3"]
) -> Float[Tensor, "xyz=3"] | None:
    """The point nearest to all optical axes (sum of distances, reweighted least squares).

    None where there is none: axes parallel to within 3 degrees, or less than three quarters of the cameras look at it.
    """
    across = torch.eye(3, dtype=centres.dtype) - forwards[:, :, None] * forwards[:, None, :]
    weights = torch.ones(len(centres), dtype=centres.dtype)
    focus = centres.mean(dim=0)
    for _ in range(20):
        system = (weights[:, None, None] * across).sum(dim=0) / weights.sum()
        if float(torch.linalg.eigvalsh(system)[0]) < math.sin(math.radians(3)) ** 2:
            return None
        right = (weights[:, None] * (across @ centres[:, :, None])[..., 0]).sum(dim=0) / weights.sum()
        focus = torch.linalg.solve(system, right)
        offset = (across @ (focus - centres)[:, :, None])[:, :, 0].norm(dim=1)
        weights = 1.0 / offset.clamp_min(0.1 * float(offset.median()) + 1e-9)
    ahead = ((focus - centres) * forwards).sum(dim=1) > 0
    return focus if float(ahead.double().mean()) >= 0.75 else None


def up_axis(
    rotations: Float[Tensor, "photos 3 3"],
) -> tuple[Float[Tensor, "xyz=3"], Literal["level photos", "mean of the photos"]]:
    """Unit vector upwards in the world of `rotations` (world to camera, OpenCV axes), and what it was guessed from.

    Photographers hold a camera level: its right-hand axis is horizontal, whatever it looks at, so up is the direction
    across all of them (reweighted: some photos may be on edge). Where these axes do not spread or do not lie in a plane,
    the mean of the photos' own up directions counts.
    """
    rights, ups = rotations[:, 0], -rotations[:, 1]
    mean = ups.mean(dim=0)
    weights = torch.ones(len(rights), dtype=rights.dtype)
    values, vectors = torch.linalg.eigh(rights.T @ rights / len(rights))
    for _ in range(10):
        spread = (weights[:, None] * rights).T @ rights / weights.sum()
        values, vectors = torch.linalg.eigh(spread)
        weights = 1.0 / (rights @ vectors[:, 0]).abs().clamp_min(0.05)
    axis = vectors[:, 0]
    if (
        float(values[1]) > 0.03
        and float(values[0]) < 0.2 * float(values[1])
        and abs(float(axis @ mean)) > 0.1
    ):
        return axis * (1.0 if float(axis @ mean) > 0 else -1.0), "level photos"
    if float(mean.norm()) < 1e-6:
        mean = ups[0]
    return mean / mean.norm(), "mean of the photos"


def cover(names: Sequence[str], centres: Float[Tensor, "photos xyz=3"]) -> Coverage:
    """Which sides the cameras at `centres` (of a placed world) show, and what is missing in words."""
    directions = torch.nn.functional.normalize(centres.double(), dim=1)
    elevation = torch.rad2deg(torch.asin(directions[:, 2].clamp(-1, 1)))
    lowest, highest = float(elevation.min()), float(elevation.max())
    nearest = (_sphere(2000) @ directions.T).amax(dim=1)
    share = float((nearest > math.cos(math.radians(NEAR_DEG))).double().mean())

    around = [index for index in range(len(names)) if abs(float(elevation[index])) < _STEEP_DEG]
    azimuth = torch.rad2deg(torch.atan2(directions[:, 1], directions[:, 0]))
    around.sort(key=lambda index: (float(azimuth[index]), index))
    gap, between = 360.0, (names[0], names[0])
    if around:
        at = azimuth[around]
        steps = torch.cat([at[1:], at[:1] + 360.0]) - at
        widest = int(steps.argmax())
        gap = float(steps[widest])
        between = (names[around[widest]], names[around[(widest + 1) % len(around)]])

    remarks = []
    if lowest > _BELOW_DEG:
        remarks.append("no photo from below")
    if highest < _ABOVE_DEG:
        remarks.append("no photo from above")
    if not around:
        remarks.append("no photo from the side")
    elif gap > _GAP_DEG:
        remarks.append(
            f"no photo in {round(gap)} of the 360 degrees around, between {between[0]} and {between[1]}"
        )
    heights = elevation.sort().values
    step = heights.diff()
    if len(step) and float(step.max()) > _GAP_DEG:
        lower = int(step.argmax())
        remarks.append(
            f"no photo between {round(float(heights[lower]))} and {round(float(heights[lower + 1]))} degrees of height"
        )
    return Coverage(share, lowest, highest, gap, between, tuple(remarks))


def _sphere(count: int) -> Float[Tensor, "count xyz=3"]:
    """Directions spread evenly (golden spiral)."""
    index = torch.arange(count, dtype=torch.float64) + 0.5
    z = 1 - 2 * index / count
    turn = math.pi * (1 + math.sqrt(5)) * index
    radius = (1 - z * z).sqrt()
    return torch.stack([radius * turn.cos(), radius * turn.sin(), z], dim=1)
