"""Connected defects of an anomaly map: box, area, what kind, where on the part in 3D, and which splats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy import ndimage
from torch import Tensor

from detect.anomaly_map import AnomalyMap
from detect.defect_kind import DefectKind, KindEvidence, guess_kind, kind_evidence, lit
from detect.expected import carried_to_splats
from pose.residual import Exposure
from prepare.camera import Camera
from recon.gaussians import Gaussians
from recon.rasterize import RasterOptions, Render, rasterize
from recon.reference import Reference

STEEPEST = 4.0  # tangent of a surface's angle to the image, 76 degrees: steeper is a jump, its depths a mixture of two
GROW_SHARE = 0.5  # a defect seeded above the threshold spreads to where the map falls below this share of it
LEAST_AREA_PX = 6  # at 400 px; scaled with the image's area
MOST_EXAMINED = (
    8  # strongest defects of which splats are sought and the render behind is made: 1 pass for 3 of them
)
AFFECTED_SHARE = 0.5  # of a splat's compositing weight that lies in the defect
LEAST_WEIGHT_PX = 0.01  # compositing weight below which a splat does not show in the photo
# How far behind the surface a defect's splats may lie: what is missing is half as thick as it is long, and a piece of
# the part is at least a tenth of its half size thick. A fitted surface is many splats deep: with less, those below it
# stand in for what is behind; with more, what is behind goes too.
THICKNESS, LEAST_THICKNESS = 0.5, 0.1
EVEN_VIEW = Exposure()


@dataclass(frozen=True)
class Defect:
    """One connected deviation."""

    kind: DefectKind  # a guess: part gone, part too many, another colour, or just different
    box: tuple[int, int, int, int]  # x0, y0, x1, y1 px, the last two exclusive
    area_px: int
    peak: float  # highest map value
    mean: float  # mean map value
    centre: tuple[float, float, float] | None  # on the part, world units; None where no depth is known
    extent: float | None  # greatest length over its surface points, world units
    area: float | None  # world units squared, as if the surface faced the camera: the true one is not smaller
    normal: tuple[float, float, float] | None  # unit, of the part's surface there, towards the camera
    mask: Bool[Tensor, "height width"]
    splats: Int[
        Tensor, " m"
    ]  # indices, ascending, of those whose weight in the photo lies mostly in the mask
    evidence: KindEvidence  # what the kind was guessed from


def find_defects(
    anomaly: AnomalyMap,
    threshold: float,
    photo: Float[Tensor, "height width rgb=3"],
    photo_alpha: Float[Tensor, "height width"],
    render: Render,
    reference: Reference,
    camera: Camera,
    exposure: Exposure = EVEN_VIEW,
) -> tuple[Defect, ...]:
    """Regions of `anomaly` seeded above `threshold`, strongest first. `render` must hold depth.

    `photo` and `render` lie over the reference's background. `photo_alpha` is the part's share of each photo pixel,
    ones where unknown: then no silhouette speaks for missing or added. `exposure` brings the render into the photo's
    light. Beside the labelling this costs a render and, for each 3 defects, a pass forward and back.
    """
    regions = _regions(anomaly.values.cpu().numpy(), threshold)
    if not regions:
        return ()
    background = reference.background
    examined = [region for region, _, _ in regions[:MOST_EXAMINED]]
    splats, behind = _splats_and_behind(reference, camera, render, examined, exposure)
    shown = lit(render.rgb.cpu(), render.alpha.cpu(), background.cpu(), exposure.gain, exposure.bias)
    alpha, rendered = photo_alpha.cpu().numpy(), render.alpha.cpu().numpy()
    jumps = _jumps(render, camera)
    found = []
    for number, (region, peak, mean) in enumerate(regions):
        evidence = kind_evidence(
            region, photo.cpu(), shown, behind if number < len(splats) else None, alpha, rendered
        )
        columns, rows = (np.flatnonzero(region.any(axis=axis)) for axis in (0, 1))
        place = _place(region, jumps, render, camera)
        found.append(
            Defect(
                kind=guess_kind(evidence),
                box=(int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1),
                area_px=int(region.sum()),
                peak=peak,
                mean=mean,
                centre=None if place is None else place.centre,
                extent=None if place is None else place.extent,
                area=None if place is None else place.area,
                normal=None if place is None else place.normal,
                mask=torch.from_numpy(region),
                splats=splats[number] if number < len(splats) else torch.zeros(0, dtype=torch.int64),
                evidence=evidence,
            )
        )
    return tuple(found)


def _regions(
    values: Float[np.ndarray, "height width"], threshold: float
) -> list[tuple[Bool[np.ndarray, "height width"], float, float]]:
    """(mask, peak, mean) of the connected regions, strongest first, then from the top left.

    A region's holes belong to it: inside a plain stain on a plain surface only the rim differs in structure.
    """
    labels, count = ndimage.label(values > GROW_SHARE * threshold, structure=np.ones((3, 3)))
    if count == 0:
        return []
    peaks = np.zeros(count + 1, values.dtype)
    hot = labels > 0
    np.maximum.at(peaks, labels[hot], values[hot])
    least = LEAST_AREA_PX * values.size / 160_000
    boxes = ndimage.find_objects(labels)
    found = []
    for label in np.flatnonzero(peaks > threshold).tolist():
        box = boxes[label - 1]
        own = labels[box] == label
        if own.sum() < least:
            continue
        region = np.zeros(values.shape, bool)
        region[box] = ndimage.binary_fill_holes(own) & (own | (labels[box] == 0))
        found.append((region, float(peaks[label]), float(values[region].mean())))
    found.sort(key=lambda entry: -entry[1])
    return found


def weights_within(
    gaussians: Gaussians,
    camera: Camera,
    options: RasterOptions,
    masks: Sequence[Bool[np.ndarray, "height width"]],
) -> Float[Tensor, "mask n"]:
    """Each splat's compositing weight summed over the pixels of each mask, px, on the CPU."""
    device = gaussians.device
    view = camera.moved(camera.world_to_cam.to(device))
    planes = torch.from_numpy(np.stack(masks)).to(device, torch.float32)
    return carried_to_splats(gaussians, view, options, planes).T.cpu()


def _splats_and_behind(
    reference: Reference,
    camera: Camera,
    render: Render,
    masks: Sequence[Bool[np.ndarray, "height width"]],
    exposure: Exposure,
) -> tuple[list[Int[Tensor, " m"]], Float[Tensor, "height width rgb=3"]]:
    """The splats that each region is made of, and what the camera would see without any of them."""
    gaussians, background = reference.gaussians, reference.background
    options = RasterOptions(antialiased=reference.options.antialiased)
    everywhere, *within = weights_within(gaussians, camera, options, [np.ones_like(masks[0]), *masks])
    visible = everywhere > LEAST_WEIGHT_PX
    behind_surface = _depth_below(gaussians, camera, render)
    affected = []
    for mask, weight in zip(masks, within, strict=True):
        thickness = max(
            LEAST_THICKNESS * reference.volume.half_size, THICKNESS * _length(mask, render, camera)
        )
        affected.append(visible & (weight >= AFFECTED_SHARE * everywhere) & (behind_surface <= thickness))
    kept = ~torch.stack(affected).any(dim=0).to(gaussians.device)
    view = camera.moved(camera.world_to_cam.to(gaussians.device))
    with torch.no_grad():
        behind = rasterize(gaussians.select(kept), view, background.to(gaussians.device), options=options)
    shown = lit(behind.rgb.cpu(), behind.alpha.cpu(), background.cpu(), exposure.gain, exposure.bias)
    return [mask.nonzero()[:, 0] for mask in affected], shown


def _depth_below(gaussians: Gaussians, camera: Camera, render: Render) -> Float[Tensor, " n"]:
    """How far each splat's centre lies behind the rendered surface at its pixel, world units; 0 where there is none."""
    assert render.depth is not None
    alpha, depth = render.alpha.cpu(), render.depth.cpu()
    moved = camera.moved(camera.world_to_cam.cpu())
    u, v, z = moved.project(gaussians.means.detach().cpu()).unbind(dim=1)
    inside = (z > 0) & (u >= 0) & (u < camera.width) & (v >= 0) & (v < camera.height)
    columns, rows = torch.where(inside, u, 0.0).long(), torch.where(inside, v, 0.0).long()
    covered = inside & (alpha[rows, columns] > 0.5)
    surface = depth[rows, columns] / alpha[rows, columns].clamp_min(0.5)
    return torch.where(covered, z - surface, torch.zeros_like(z))


def _length(region: Bool[np.ndarray, "height width"], render: Render, camera: Camera) -> float:
    """Diagonal of the region's box at the rendered surface's middle depth, world units; 0 off the part."""
    assert render.depth is not None
    mask = torch.from_numpy(region)
    alpha = render.alpha.cpu()[mask]
    depths = (render.depth.cpu()[mask] / alpha.clamp_min(1e-6))[alpha > 0.5]
    if len(depths) == 0:
        return 0.0
    rows, columns = (np.flatnonzero(region.any(axis=axis)) for axis in (1, 0))
    across = float(columns[-1] - columns[0] + 1) / camera.fl_x
    down = float(rows[-1] - rows[0] + 1) / camera.fl_y
    return float(depths.median()) * float(np.hypot(across, down))


@dataclass(frozen=True)
class _Place:
    centre: tuple[float, float, float]
    extent: float
    area: float
    normal: tuple[float, float, float] | None


def _place(
    region: Bool[np.ndarray, "height width"],
    jumps: Bool[np.ndarray, "height width"],
    render: Render,
    camera: Camera,
) -> _Place | None:
    """Where the region lies on the part; None where the part is not near it."""
    found = _surface_points(region, jumps, render, camera)
    if found is None:
        return None
    points, depths = found
    middle = float(depths.median())
    x, y, z = points.median(dim=0).values.tolist()
    # Each pixel covers depth^2 / (fl_x fl_y) of a surface that faces the camera; off the part the middle depth counts.
    footprint = 1.0 / (camera.fl_x * camera.fl_y)
    beside = max(0, int(region.sum()) - len(depths))
    area = footprint * (float(depths.double().square().sum()) + beside * middle**2)
    # Pixels have a size: one alone is as long as it is wide.
    extent = _greatest_length(points) + middle * footprint**0.5
    return _Place((x, y, z), extent, area, _normal(points, camera.centre.cpu().float()))


def _greatest_length(points: Float[Tensor, "n xyz=3"]) -> float:
    """Greatest distance between the outermost points along 13 directions: exact for a stroke and for a disc.

    All points count, not the middle 90 %: those of a disc are 20 % shorter than what a caliper shows.
    """
    axes = [axis for axis in product((-1.0, 0.0, 1.0), repeat=3) if axis > (0.0, 0.0, 0.0)]
    along = points @ points.new_tensor(axes).T
    ends = points[torch.cat([along.argmin(dim=0), along.argmax(dim=0)])]
    return float((ends[:, None] - ends[None]).norm(dim=2).max())


def _normal(
    points: Float[Tensor, "n xyz=3"], eye: Float[Tensor, "xyz=3"]
) -> tuple[float, float, float] | None:
    """Unit normal, towards `eye`, of the plane nearest to the points; None where they do not span one."""
    centred = (points - points.mean(dim=0)).double()
    if len(points) < 3:
        return None
    spread, axes = torch.linalg.eigh(centred.T @ centred)
    if float(spread[1]) <= 1e-6 * float(spread[2]):
        return None
    normal = axes[:, 0].float()
    if float((eye - points.mean(dim=0)) @ normal) < 0:
        normal = -normal
    x, y, z = normal.tolist()
    return x, y, z


def _jumps(render: Render, camera: Camera) -> Bool[np.ndarray, "height width"]:
    """True where the rendered depth changes by more than STEEPEST pixel widths a pixel, the part's outline left aside."""
    assert render.depth is not None
    alpha = render.alpha.cpu().numpy()
    covered = alpha > 0.5
    depth = render.depth.cpu().numpy() / np.maximum(alpha, 0.5)
    nearest = ndimage.minimum_filter(np.where(covered, depth, np.inf), 3)
    farthest = ndimage.maximum_filter(np.where(covered, depth, -np.inf), 3)
    width = depth / np.sqrt(camera.fl_x * camera.fl_y)
    return covered & (farthest - nearest > 2 * STEEPEST * width)


def _surface_points(
    region: Bool[np.ndarray, "height width"],
    jumps: Bool[np.ndarray, "height width"],
    render: Render,
    camera: Camera,
) -> tuple[Float[Tensor, "n xyz=3"], Float[Tensor, " n"]] | None:
    """World points of the rendered surface at the region (or beside it where it lies off the part) and their depths.

    None where the part is not near. Pixels at jumps of the depth are left out, unless most are. A defect counts as no
    deeper than it is long in the photo (a surface seen at up to 45 degrees is kept whole, of one seen more obliquely
    the middle): what shows past its edge of things farther back, or of their mixture with it, is left out.
    """
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
    smooth = usable & ~jumps
    if 2 * smooth.sum() >= usable.sum():  # else it is all edges, thin wires say
        usable = smooth
    rows, columns = (torch.from_numpy(i) for i in np.nonzero(usable))
    depth = (render.depth.cpu()[rows, columns] / render.alpha.cpu()[rows, columns]).float()
    x = (columns + 0.5 - camera.cx) / camera.fl_x * depth
    y = (rows + 0.5 - camera.cy) / camera.fl_y * depth
    middle = depth.median()
    length = torch.hypot(
        (columns.max() - columns.min() + 1) / camera.fl_x, (rows.max() - rows.min() + 1) / camera.fl_y
    )
    near = (depth - middle).abs() <= 0.5 * length * middle
    in_cam = torch.stack([x, y, depth], dim=1)[near]
    world_to_cam = camera.world_to_cam.cpu().float()
    return (in_cam - world_to_cam[:3, 3]) @ world_to_cam[:3, :3], depth[near]
