"""The part from a few sides with its defects marked: where on it they are, and which of them a side hides.

Pictures are renders of the reference from cameras of its own photos, since from elsewhere splats may look like nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from prepare.camera import Camera, fit_within
from recon.rasterize import RasterOptions, Render, rasterize
from recon.reference import Reference

LEAST_VIEWS, MOST_VIEWS = 4, 6
VIEW_PX = 320  # longest side of a picture
_CANDIDATES = 24  # cameras to choose from; a render takes about 30 ms whatever its size
_SURFACE_SHARE = 0.03  # of the volume's half size: how far in front of a defect the surface may be rendered
_LEAST_GAIN = (
    0.1  # a further side must show the defects together so much better (1: one more of them, head-on)
)
_EMPTY_ALPHA = 0.5  # below it nothing is taken to stand in front


@dataclass(frozen=True)
class PartDefect:
    """A defect to be marked on the part."""

    label: str  # its number: "3", or of several photos "photo.defect"
    kind: str  # what it may be, in words
    centre_xyz: tuple[float, float, float]  # world units
    extent: float | None  # diagonal of its 3D bounding box, world units; None where unknown


@dataclass(frozen=True)
class PartMarker:
    """Where a picture of the part shows a defect."""

    index: int  # of the defect among those given
    x_px: float  # of the picture; pixel centres at +0.5
    y_px: float
    radius_px: float  # half the defect's extent as seen here, 0 where that is unknown
    visible: bool  # False: the part itself stands in front


@dataclass(frozen=True)
class PartView:
    """The part from one side."""

    picture: Float[Tensor, "height width rgb=3"]  # RGB in [0, 1]
    camera: Camera  # at the picture's size
    markers: tuple[PartMarker, ...]  # of the defects in the frame, in the order of the defects


class PartPictures:
    """Pictures of one reference; its sides are rendered once, when first asked for."""

    def __init__(self, reference: Reference, longest_px: int = VIEW_PX) -> None:
        self.reference = reference
        self._longest_px = longest_px
        self._sides: list[tuple[Camera, Render]] | None = None

    def views(
        self,
        defects: Sequence[PartDefect],
        least: int = LEAST_VIEWS,
        most: int = MOST_VIEWS,
    ) -> tuple[PartView, ...]:
        """`least` sides, or `most` where those are not enough, that together show every defect as nearly head-on as
        the photos' cameras can; fewer where the reference has fewer.

        What faces a camera is told by what the reference's own surface hides: a defect faces the mean of the directions
        from which it is seen. The same reference and defects give the same views.
        """
        sides = self._rendered()
        markers = [_markers(self.reference, camera, render, defects) for camera, render in sides]
        centres = torch.stack([camera.centre.cpu() for camera, _ in sides])
        directions = [_outward(self.reference, camera) for camera, _ in sides]
        showing = _showing(centres, markers, defects, most)
        chosen = _spread(directions, least if len(showing) <= least else most, showing)
        return tuple(
            PartView(sides[i][1].rgb.clamp(0, 1).cpu(), sides[i][0], tuple(markers[i])) for i in chosen
        )

    def _rendered(self) -> list[tuple[Camera, Render]]:
        if self._sides is None:
            reference = self.reference
            device = reference.gaussians.device
            options = RasterOptions(antialiased=reference.options.antialiased, depth=True)
            cameras = [view.camera for view in reference.views]
            self._sides = []
            for index in _spread([_outward(reference, camera) for camera in cameras], _CANDIDATES):
                camera = cameras[index]
                camera = camera.resized(*fit_within(camera.width, camera.height, self._longest_px))
                camera = camera.moved(camera.world_to_cam.to(device))
                with torch.no_grad():
                    render = rasterize(
                        reference.gaussians, camera, reference.background.to(device), options=options
                    )
                self._sides.append((camera, render))
        return self._sides


def _markers(
    reference: Reference, camera: Camera, render: Render, defects: Sequence[PartDefect]
) -> list[PartMarker]:
    """The defects that project into the picture, each with whether the rendered surface lets it be seen."""
    assert render.depth is not None
    if not defects:
        return []
    centres = torch.tensor([defect.centre_xyz for defect in defects], device=camera.world_to_cam.device)
    near = RasterOptions().near_plane
    found = []
    for index, (u, v, z) in enumerate(camera.project(centres.to(camera.world_to_cam)).tolist()):
        if not (z > near and 0 <= u < camera.width and 0 <= v < camera.height):
            continue
        half = (defects[index].extent or 0.0) / 2
        # On a slanted surface depth changes within the pixel; a large defect's centre may lie inside a curved one.
        size = reference.volume.half_size
        tolerance = size * _SURFACE_SHARE + z / camera.fl_x + min(half, 0.1 * size)
        alpha = float(render.alpha[int(v), int(u)])
        hidden = alpha >= _EMPTY_ALPHA and float(render.depth[int(v), int(u)]) / alpha < z - tolerance
        radius = half * (camera.fl_x * camera.fl_y) ** 0.5 / z
        found.append(PartMarker(index, u, v, radius, not hidden))
    return found


def _showing(
    centres: Float[Tensor, "side xyz=3"],
    markers: Sequence[Sequence[PartMarker]],
    defects: Sequence[PartDefect],
    most: int,
) -> list[int]:
    """Indices of at most `most` sides, greedily those that show the defects best; none where nothing is seen.

    `centres` are the cameras', `markers` what each shows. Equal gains go to the first.
    """
    towards = torch.zeros(len(centres), len(defects), 3)
    seen = torch.zeros(len(centres), len(defects))
    for row, found in enumerate(markers):
        for marker in (m for m in found if m.visible):
            place = torch.tensor(defects[marker.index].centre_xyz)
            towards[row, marker.index] = torch.nn.functional.normalize(centres[row] - place, dim=0)
            seen[row, marker.index] = 1.0
    facing = torch.nn.functional.normalize(towards.sum(0), dim=1)
    # That a defect is seen at all is worth most; seen head-on it is worth a little more.
    worth = seen * (0.8 + 0.2 * (towards * facing).sum(-1).clamp_min(0))
    best = torch.zeros(len(defects))
    chosen: list[int] = []
    while len(chosen) < min(most, len(centres)):
        gains = (worth - best).clamp_min(0).sum(1)
        winner = int(gains.argmax())
        if float(gains[winner]) < _LEAST_GAIN:
            break
        chosen.append(winner)
        best = torch.maximum(best, worth[winner])
    return chosen


def _spread(directions: Sequence[Tensor], count: int, first: Sequence[int] = ()) -> list[int]:
    """Indices of `count` directions, `first` and then each the farthest from those before it (the lowest of equals)."""
    all_directions = torch.stack(list(directions))
    chosen = list(first) or [0]
    while len(chosen) < min(count, len(all_directions)):
        nearest = (all_directions @ all_directions[chosen].T).amax(dim=1)
        nearest[chosen] = float("inf")
        chosen.append(int(nearest.argmin()))
    return chosen


def _outward(reference: Reference, camera: Camera) -> Float[Tensor, "xyz=3"]:
    return torch.nn.functional.normalize(camera.centre.cpu() - reference.volume.centre.cpu(), dim=0)
