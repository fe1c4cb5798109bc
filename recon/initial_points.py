"""Where splats start: the scene's point cloud, the visual hull of the silhouettes, or the cameras' common volume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from scipy.spatial import cKDTree
from torch import Tensor

from prepare.camera import Camera

SILHOUETTE_PX = 256  # silhouettes are carved at this size


@dataclass(frozen=True)
class InitialPoints:
    """Coloured points to grow splats from."""

    positions: Float[Tensor, "n xyz=3"]  # world units
    colours: Float[Tensor, "n rgb=3"]  # in [0, 1]
    spacing: Float[Tensor, " n"]  # mean distance to the three nearest others, world units
    source: str  # "surface", "point cloud", "visual hull" or "random", for the log
    normals: Float[Tensor, "n xyz=3"] | None = None  # unit, where the points lie on a known surface
    headlight: Float[Tensor, "n rgb=3"] | None = None  # of `prepare.points.PointCloud`


@dataclass(frozen=True)
class Volume:
    """The cube that the cameras look at."""

    centre: Float[Tensor, "xyz=3"]  # world
    half_size: float  # world units


def common_volume(cameras: Sequence[Camera]) -> Volume:
    """Cube round the point nearest to all optical axes, as large as a median camera sees there, and a fifth more."""
    centres = torch.stack([camera.centre for camera in cameras]).double()
    axes = torch.stack([camera.forward for camera in cameras]).double()
    # Least squares: sum over cameras of the projector across the axis; a little damping for parallel axes.
    across = torch.eye(3, dtype=torch.float64) - axes[:, :, None] * axes[:, None, :]
    system = across.sum(0) + 1e-6 * len(cameras) * torch.eye(3, dtype=torch.float64)
    ahead = centres.mean(0) + axes.mean(0)
    right = (across @ centres[:, :, None]).sum(0)[:, 0] + 1e-6 * len(cameras) * ahead
    centre = torch.linalg.solve(system, right)
    half = [
        float((centre - position).norm()) * max(camera.width / camera.fl_x, camera.height / camera.fl_y) / 2
        for camera, position in zip(cameras, centres, strict=True)
    ]
    return Volume(centre.float(), 1.2 * float(torch.tensor(half).median()))


def hull_points(
    cameras: Sequence[Camera],
    images: Sequence[Float[Tensor, "height width rgb=3"]],
    alphas: Sequence[Float[Tensor, "height width"]],
    count: int,
    generator: torch.Generator,
    *,
    resolution: int = 128,
    interior_share: float = 0.0,
) -> InitialPoints | None:
    """`count` points on the surface of the visual hull, `interior_share` of them anywhere in it, coloured by the views that see
    them; None without silhouettes. Points inside matter where openings show them: a silhouette has no openings.

    A voxel is carved when it projects into the image of some view and off the silhouette there; it must be in the
    frame of a quarter of the views. Source: Laurentini 1994; carved coarse to fine so that cost follows the surface.
    """
    used = _spread(len(cameras), 60)
    small_cameras, small_images, silhouettes = [], [], []
    for i in used:
        scale = min(1.0, SILHOUETTE_PX / max(cameras[i].width, cameras[i].height))
        width, height = max(1, round(cameras[i].width * scale)), max(1, round(cameras[i].height * scale))
        small_cameras.append(cameras[i].resized(width, height))
        planes = torch.cat([images[i], alphas[i][..., None]], dim=-1).permute(2, 0, 1)[None]
        small = F.interpolate(planes, size=(height, width), mode="area")[0]
        small_images.append(small[:3].permute(1, 2, 0))
        silhouettes.append(small[3] > 0.3)
    covered = torch.tensor([float(s.float().mean()) for s in silhouettes])
    if float((covered < 0.97).float().mean()) < 0.5 or float(covered.max()) == 0.0:
        return None
    volume = common_volume(cameras)
    occupied = _carve(volume, small_cameras, silhouettes, resolution)
    if not bool(occupied.any()):
        return None
    surface = _surface(occupied)
    cells = surface.nonzero()
    if len(cells) == 0:
        return None
    cell = 2 * volume.half_size / resolution
    pick = torch.randint(len(cells), (count,), generator=generator)
    jitter = torch.rand(count, 3, generator=generator)
    chosen = cells[pick]
    inside = round(interior_share * count)
    if inside > 0:
        filled = occupied.nonzero()
        chosen[:inside] = filled[torch.randint(len(filled), (inside,), generator=generator)]
    positions = volume.centre + (chosen + jitter) * cell - volume.half_size
    colours = _colours(positions, small_cameras, small_images, silhouettes, cell)
    return InitialPoints(positions, colours, neighbour_spacing(positions), "visual hull")


def random_points(cameras: Sequence[Camera], count: int, generator: torch.Generator) -> InitialPoints:
    """`count` grey points, uniform in the volume that the cameras look at."""
    volume = common_volume(cameras)
    positions = volume.centre + (2 * torch.rand(count, 3, generator=generator) - 1) * volume.half_size
    colours = 0.5 + 0.1 * (torch.rand(count, 3, generator=generator) - 0.5)
    return InitialPoints(positions, colours, neighbour_spacing(positions), "random")


def neighbour_spacing(positions: Float[Tensor, "n xyz=3"]) -> Float[Tensor, " n"]:
    """Mean distance to the three nearest others, world units; duplicates count as a thousandth of the median."""
    points = positions.double().numpy()
    if len(points) < 2:
        return torch.full((len(points),), 0.01)
    distance, _ = cKDTree(points).query(points, k=min(4, len(points)))
    spacing = torch.from_numpy(np.asarray(distance)[:, 1:]).mean(dim=1).float()
    return spacing.clamp_min(1e-3 * float(spacing.median()) + 1e-9)


def _spread(count: int, most: int) -> list[int]:
    """At most `most` of `count` indices, evenly spread."""
    if count <= most:
        return list(range(count))
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]


def _carve(
    volume: Volume,
    cameras: Sequence[Camera],
    silhouettes: Sequence[Bool[Tensor, "height width"]],
    resolution: int,
) -> Bool[Tensor, "x y z"]:
    """Which cells of the cube may hold the part."""
    level = max(16, resolution // 8)
    cells = torch.stack(torch.meshgrid(*[torch.arange(level)] * 3, indexing="ij"), dim=-1).reshape(-1, 3)
    while True:
        size = 2 * volume.half_size / level
        centres = volume.centre + (cells + 0.5) * size - volume.half_size
        inside = torch.zeros(len(cells), dtype=torch.int32)
        carved = torch.zeros(len(cells), dtype=torch.bool)
        for camera, silhouette in zip(cameras, silhouettes, strict=True):
            # Coarse cells must not lose a child: half a diagonal. The finest level only bridges the pixel grid.
            distance = float((camera.centre - volume.centre).norm())
            radius_px = (
                0.87 * size * camera.fl_x / max(distance - 0.7 * volume.half_size, 0.3 * distance, 1e-6)
            )
            grown = silhouette if level >= resolution else _dilate(silhouette, max(1, round(radius_px)))
            u, v, depth = camera.project(centres).unbind(-1)
            seen = (depth > 0) & (u >= 0) & (u < camera.width) & (v >= 0) & (v < camera.height)
            column = u.clamp(0, camera.width - 1).long()
            row = v.clamp(0, camera.height - 1).long()
            inside += seen
            carved |= seen & ~grown[row, column]
        keep = ~carved & (inside * 4 >= len(cameras))
        cells = cells[keep]
        if level >= resolution or len(cells) == 0:
            break
        child = torch.stack(torch.meshgrid(*[torch.arange(2)] * 3, indexing="ij"), dim=-1).reshape(-1, 3)
        cells = (2 * cells[:, None] + child).reshape(-1, 3)
        level *= 2
    occupied = torch.zeros(level, level, level, dtype=torch.bool)
    occupied[cells[:, 0], cells[:, 1], cells[:, 2]] = True
    return occupied


def _dilate(mask: Bool[Tensor, "height width"], radius: int) -> Bool[Tensor, "height width"]:
    grown = mask[None, None].float()
    grown = F.max_pool2d(grown, (1, 2 * radius + 1), stride=1, padding=(0, radius))
    return F.max_pool2d(grown, (2 * radius + 1, 1), stride=1, padding=(radius, 0))[0, 0] > 0


def _surface(occupied: Bool[Tensor, "x y z"]) -> Bool[Tensor, "x y z"]:
    """Occupied cells with an empty face neighbour."""
    padded = F.pad(occupied, (1, 1, 1, 1, 1, 1))
    buried = occupied.clone()
    for axis in range(3):
        for shift in (0, 2):
            sides = [slice(1, -1)] * 3
            sides[axis] = slice(shift, shift + occupied.shape[axis])
            buried &= padded[tuple(sides)]
    return occupied & ~buried


def _colours(
    positions: Float[Tensor, "n xyz=3"],
    cameras: Sequence[Camera],
    images: Sequence[Float[Tensor, "height width rgb=3"]],
    silhouettes: Sequence[Bool[Tensor, "height width"]],
    cell: float,
) -> Float[Tensor, "n rgb=3"]:
    """Mean colour over the views in which a point is the front-most one of its pixel; grey where there is none."""
    total = torch.zeros(len(positions), 3)
    weight = torch.zeros(len(positions))
    for camera, image, silhouette in zip(cameras, images, silhouettes, strict=True):
        coarse = 2  # px: points are sparser than pixels
        u, v, depth = camera.project(positions).unbind(-1)
        seen = (depth > 0) & (u >= 0) & (u < camera.width) & (v >= 0) & (v < camera.height)
        column = u.clamp(0, camera.width - 1).long()
        row = v.clamp(0, camera.height - 1).long()
        columns = camera.width // coarse + 1
        place = (row // coarse) * columns + column // coarse
        front = torch.full(((camera.height // coarse + 1) * columns,), float("inf"))
        front.scatter_reduce_(0, place[seen], depth[seen], reduce="amin")
        visible = seen & (depth < front[place] + 1.5 * cell) & silhouette[row, column]
        total[visible] += image[row[visible], column[visible]]
        weight[visible] += 1
    grey = torch.full((3,), 0.5)
    return torch.where(weight[:, None] > 0, total / weight.clamp_min(1)[:, None], grey)
