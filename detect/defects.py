"""Connected defects of an anomaly map: box, area, what kind, and where on the part in 3D."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import ndimage
from torch import Tensor

from detect.anomaly_map import AnomalyMap
from prepare.camera import Camera
from recon.rasterize import Render

GROW_SHARE = 0.5  # a defect seeded above the threshold spreads to where the map falls below this share of it
LEAST_AREA_PX = 6  # at 400 px; scaled with the image's area
SILHOUETTE_SHARE = (
    0.35  # of a defect's pixels that must lie off one of the silhouettes for "missing" or "added"
)

DefectKind = Literal["missing", "added", "changed"]


@dataclass(frozen=True)
class Defect:
    """One connected deviation."""

    kind: DefectKind  # a guess: part gone, part too many, or looks different
    box: tuple[int, int, int, int]  # x0, y0, x1, y1 px, the last two exclusive
    area_px: int
    peak: float  # highest map value
    mean: float  # mean map value
    centre: tuple[float, float, float] | None  # on the part, world units; None where no depth is known
    extent: float | None  # diagonal of the 3D bounding box of its surface points, world units
    mask: Bool[Tensor, "height width"]


def find_defects(
    anomaly: AnomalyMap,
    threshold: float,
    photo_alpha: Float[Tensor, "height width"],
    render: Render,
    camera: Camera,
) -> tuple[Defect, ...]:
    """Regions of `anomaly` seeded above `threshold`, strongest first. `render` must hold depth.

    `photo_alpha` is the part's share of each photo pixel, ones where unknown: then nothing is called missing or added.
    """
    values = anomaly.values.cpu().numpy()
    labels, count = ndimage.label(values > GROW_SHARE * threshold, structure=np.ones((3, 3)))
    if count == 0:
        return ()
    peaks = ndimage.maximum(values, labels, index=np.arange(1, count + 1))
    least = LEAST_AREA_PX * values.size / 160_000
    alpha, rendered = photo_alpha.cpu().numpy(), render.alpha.cpu().numpy()
    known_silhouette = bool((photo_alpha < 0.98).any())
    found = []
    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is None or peaks[label - 1] <= threshold:
            continue
        region = labels == label
        area = int(region[box].sum())
        if area < least:
            continue
        kind: DefectKind = "changed"
        if known_silhouette:
            gone = float(((rendered > 0.5) & (alpha < 0.5))[region].mean())
            extra = float(((rendered < 0.5) & (alpha > 0.5))[region].mean())
            if max(gone, extra) > SILHOUETTE_SHARE:
                kind = "missing" if gone > extra else "added"
        points = _surface_points(region, render, camera)
        centre = extent = None
        if points is not None:
            x, y, z = points.median(dim=0).values.tolist()
            centre = (x, y, z)
            extent = float((points.amax(dim=0) - points.amin(dim=0)).norm())
        rows, columns = box
        found.append(
            Defect(
                kind=kind,
                box=(int(columns.start), int(rows.start), int(columns.stop), int(rows.stop)),
                area_px=area,
                peak=float(peaks[label - 1]),
                mean=float(values[region].mean()),
                centre=centre,
                extent=extent,
                mask=torch.from_numpy(region),
            )
        )
    found.sort(key=lambda defect: -defect.peak)
    return tuple(found)


def _surface_points(region: np.ndarray, render: Render, camera: Camera) -> Float[Tensor, "n xyz=3"] | None:
    """World points of the rendered surface at the region, or beside it where it lies off the part; None without any."""
    assert render.depth is not None
    covered = render.alpha.cpu().numpy() > 0.5
    reach = max(3, max(region.shape) // 100)
    while True:
        usable = region & covered
        if usable.any():
            break
        if reach > max(region.shape) // 4:
            return None
        region = ndimage.binary_dilation(region, iterations=reach)
        reach *= 2
    rows, columns = (torch.from_numpy(i) for i in np.nonzero(usable))
    depth = (render.depth.cpu()[rows, columns] / render.alpha.cpu()[rows, columns]).float()
    x = (columns + 0.5 - camera.cx) / camera.fl_x * depth
    y = (rows + 0.5 - camera.cy) / camera.fl_y * depth
    in_cam = torch.stack([x, y, depth], dim=1)
    world_to_cam = camera.world_to_cam.cpu().float()
    return (in_cam - world_to_cam[:3, 3]) @ world_to_cam[:3, :3]
