"""Descriptions of the shape round a point of an organised cloud, without weights: normals, surface variation, FPFH.

A cloud is a map of `px` x `px` points in metres with a mask of the valid ones. The neighbours of a point are the nearest in
space among the valid points in a round window about its pixel, half as wide again as the neighbours fill on a surface
seen head-on (so all of them are in it down to a tilt of 60 degrees): on an organised cloud several times cheaper than a tree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

NORMAL_RADIUS_M, NORMAL_NEIGHBOURS = (
    0.1,
    30,
)  # specification 6.2; the numbers rule, the radius is wider than most parts
FPFH_RADIUS_M, FPFH_NEIGHBOURS = 0.25, 100
MULTI_NEIGHBOURS = (30, 100, 300)
BINS = 11  # of each of the three angles
FPFH_WIDTH = 3 * BINS
STRIDE = 2  # px between the pixels that have a descriptor of their own; those between are interpolated
_CHUNK = 2048  # points at a time, so that their neighbours fit the cache
_MOST_PAIRS = (
    128  # neighbours of a point that its pairs are made with; of more, every second row and column is taken
)
_FLAT = 1e-7  # second eigenvalue over the first below which neighbours are a line, without a normal


@dataclass(frozen=True)
class Cloud:
    """An organised cloud."""

    points: Float[Tensor, "rows columns xyz=3"]  # metres, any frame
    valid: Bool[Tensor, "rows columns"]


@dataclass(frozen=True)
class Surface:
    """What the neighbours of each pixel say of the surface there."""

    normals: Float[Tensor, "rows columns xyz=3"]  # unit, to the side the camera is on; 0 where not defined
    variation: Float[Tensor, "rows columns"]  # least eigenvalue over the sum of the three, in [0, 1/3]
    offset: Float[
        Tensor, "rows columns"
    ]  # towards the camera from the neighbours' mean, over their root mean square distance
    defined: Bool[Tensor, "rows columns"]  # valid, with three neighbours that are not on a line


@dataclass(frozen=True)
class Described:
    """Descriptors of some points of a cloud."""

    points: Float[Tensor, "n xyz=3"]  # metres
    values: Float[Tensor, "n width"]


def neighbours(
    cloud: Cloud, pixels: Int[Tensor, "n"], count: int, radius_m: float
) -> tuple[Int[Tensor, "n k"], Float[Tensor, "n k"]]:
    """Pixels of the up to `count` nearest points (the point itself is one) and their squared distances, in no order.

    Where there are fewer, the distance is infinite and the pixel the point's own. `pixels` are numbered row by row.
    """
    reach = math.ceil(1.5 * math.sqrt(count / math.pi))
    offset = torch.arange(-reach, reach + 1)
    down, right = torch.meshgrid(offset, offset, indexing="ij")
    near = down**2 + right**2 <= reach**2
    rows, columns = cloud.valid.shape
    width = columns + 2 * reach
    padded = torch.full((3, rows + 2 * reach, width), math.inf)
    inside = cloud.points.permute(2, 0, 1).where(cloud.valid, math.inf)
    padded[:, reach : reach + rows, reach : reach + columns] = inside
    x, y, z = padded.flatten(1)
    steps = (down * width + right)[near]
    own = (pixels // columns + reach) * width + pixels % columns + reach
    count = min(count, len(steps))
    index = torch.empty(len(pixels), count, dtype=torch.long)
    squared = torch.empty(len(pixels), count)
    for first in range(0, len(pixels), _CHUNK):
        part = slice(first, first + _CHUNK)
        centre = own[part, None]
        candidate = centre + steps
        distance = (x[candidate] - x[centre]).square_()
        distance += (y[candidate] - y[centre]).square_()
        distance += (z[candidate] - z[centre]).square_()
        found, place = distance.topk(count, dim=1, largest=False, sorted=False)
        index[part] = candidate.gather(1, place)
        squared[part] = found
    squared[squared > radius_m**2] = math.inf
    index = (index // width - reach) * columns + index % width - reach
    return torch.where(squared.isinf(), pixels[:, None], index), squared


def surface(cloud: Cloud, radius_m: float = NORMAL_RADIUS_M, count: int = NORMAL_NEIGHBOURS) -> Surface:
    """Normal and surface variation (Pauly et al. 2002) at every valid pixel, from the moments of its neighbours.

    A normal points to the side that the pixels' rows and columns are seen from, so that its sign holds in any frame: against
    the cross product of the slopes to the right and down.
    """
    rows, columns = cloud.valid.shape
    pixels = cloud.valid.flatten().nonzero()[:, 0]
    index, squared = neighbours(cloud, pixels, count, radius_m)
    there = squared.isfinite().float()
    share = (there / there.sum(dim=1, keepdim=True))[..., None]
    flat = cloud.points.flatten(0, 1)
    offset = flat[index] - flat[pixels][:, None]
    mean = (share * offset).sum(dim=1, keepdim=True)
    offset = offset - mean
    weighted = share * offset
    moments = (weighted.transpose(1, 2) @ offset).double()
    eigenvalues, eigenvectors = torch.linalg.eigh(moments)
    normal = eigenvectors[..., 0].float()
    place = (
        torch.stack([index % columns, index // columns], dim=2)
        - torch.stack([pixels % columns, pixels // columns], dim=1)[:, None]
    )
    slopes = (
        weighted.transpose(1, 2) @ place.float()
    )  # to the right, down; up to a positive factor of their product
    away = torch.linalg.cross(slopes[..., 0], slopes[..., 1], dim=1)
    normal = torch.where((normal * away).sum(dim=1, keepdim=True) > 0, -normal, normal)
    defined = (there.sum(dim=1) >= 3) & (eigenvalues[:, 1] > _FLAT * eigenvalues[:, 2])
    length = (share * offset.square()).sum(dim=(1, 2)).sqrt().clamp(min=1e-30)
    height = -(normal * mean[:, 0]).sum(dim=1) / length
    variation = (eigenvalues[:, 0].clamp(min=0) / eigenvalues.sum(dim=1).clamp(min=1e-30)).float()
    shape = (rows, columns)
    return Surface(
        _filled(normal * defined[:, None], pixels, shape),
        _filled(variation * defined, pixels, shape),
        _filled(height * defined, pixels, shape),
        _filled(defined, pixels, shape),
    )


def fpfh(
    cloud: Cloud,
    seen: Surface,
    radius_m: float = FPFH_RADIUS_M,
    count: int = FPFH_NEIGHBOURS,
    stride: int = STRIDE,
) -> Described:
    """Fast point feature histograms: three of 11 bins, each summing to 200, at one pixel of each `stride` x `stride`.

    A point's own histogram, in percent of its pairs with its neighbours, plus the mean of its neighbours' histograms by the
    inverse of their squared distance, in percent too. With stride 1 these are all its neighbours; else those that have a
    histogram of their own, in the same circle. Source: Rusu, Blodow, Beetz, ICRA 2009, equations 1 to 3, with the scaling
    of the common libraries that the published figures were made with.
    """
    usable = Cloud(cloud.points, cloud.valid & seen.defined)
    pixels, thin = thinned(usable, stride)
    if count > _MOST_PAIRS and stride > 1:
        from_pixels, from_normals = thin.valid.flatten().nonzero()[:, 0], _at(seen.normals, pixels, thin)
        own = _simple_histograms(thin, from_normals, from_pixels, round(count / stride**2), radius_m)
    else:
        own = _simple_histograms(usable, seen.normals, pixels, count, radius_m)
    coarse = thin.valid.flatten().nonzero()[:, 0]
    index, squared = neighbours(thin, coarse, max(round(count / stride**2), 4), radius_m)
    weight = torch.where(squared.isfinite() & (squared > 0), 1 / squared, 0.0)
    number = torch.zeros(thin.valid.numel(), dtype=torch.long)
    number[coarse] = torch.arange(len(coarse))
    near = F.embedding_bag(number[index].clamp(min=0), own, per_sample_weights=weight, mode="sum")
    near = near.unflatten(1, (3, BINS))
    near = 100 * near / near.sum(dim=2, keepdim=True).clamp(min=1e-30)
    return Described(usable.points.flatten(0, 1)[pixels], own + near.flatten(1))


def fpfh_multi(cloud: Cloud, seen: Surface, stride: int = STRIDE) -> Described:
    """Normal (3), surface variation (1) and FPFH of 30, 100 and 300 neighbours (99): 103 numbers."""
    scales = [fpfh(cloud, seen, count=count, stride=stride) for count in MULTI_NEIGHBOURS]
    pixels, _ = thinned(Cloud(cloud.points, cloud.valid & seen.defined), stride)
    own = [seen.normals.flatten(0, 1)[pixels], seen.variation.flatten()[pixels, None]]
    return Described(scales[0].points, torch.cat([*own, *(scale.values for scale in scales)], dim=1))


def curvature(cloud: Cloud, seen: Surface, stride: int = STRIDE) -> Described:
    """For 30, 100 and 300 neighbours the normal (3), the square root of the surface variation and the offset: 15 numbers.

    `seen` is the surface by 30 neighbours. All lie in [-1, 1]. Unlike the bins of FPFH they change with every small turn.
    """
    pixels, thin = thinned(Cloud(cloud.points, cloud.valid & seen.defined), stride)
    values = [_seen_at(seen, pixels)]
    coarse = thin.valid.flatten().nonzero()[:, 0]
    for count in MULTI_NEIGHBOURS[1:]:
        values.append(_seen_at(surface(thin, FPFH_RADIUS_M, max(round(count / stride**2), 4)), coarse))
    return Described(thin.points[thin.valid], torch.cat(values, dim=1))


def _seen_at(seen: Surface, pixels: Int[Tensor, "n"]) -> Float[Tensor, "n width=5"]:
    one = torch.stack([seen.variation.sqrt(), seen.offset], dim=2)
    return torch.cat([seen.normals, one], dim=2).flatten(0, 1)[pixels]


def thinned(cloud: Cloud, stride: int) -> tuple[Int[Tensor, "n"], Cloud]:
    """The first valid pixel of each `stride` x `stride` px that has one: their numbers, and the cloud that they make."""
    rows, columns = cloud.valid.shape
    high, wide = -(-rows // stride), -(-columns // stride)
    padded = torch.zeros(high * stride, wide * stride, dtype=torch.bool)
    padded[:rows, :columns] = cloud.valid
    cells = padded.unflatten(0, (high, stride)).unflatten(2, (wide, stride)).transpose(1, 2).flatten(2)
    valid, first = cells.byte().max(dim=2)
    row = torch.arange(high)[:, None] * stride + first // stride
    column = torch.arange(wide) * stride + first % stride
    number = row.clamp(max=rows - 1) * columns + column.clamp(max=columns - 1)
    taken = valid.bool()
    return number[taken], Cloud(cloud.points.flatten(0, 1)[number], taken)


def _at(
    normals: Float[Tensor, "rows columns xyz=3"], pixels: Int[Tensor, "n"], thin: Cloud
) -> Float[Tensor, "high wide xyz=3"]:
    out = torch.zeros_like(thin.points)
    out[thin.valid] = normals.flatten(0, 1)[pixels]
    return out


def _simple_histograms(
    cloud: Cloud,
    normals: Float[Tensor, "rows columns xyz=3"],
    pixels: Int[Tensor, "n"],
    count: int,
    radius_m: float,
) -> Float[Tensor, "n bins"]:
    """In percent, how often the three angles of the pairs of a point with each of its neighbours fall in each of 11 bins."""
    index, squared = neighbours(cloud, pixels, count, radius_m)
    points = cloud.points.flatten(0, 1).T.contiguous()
    directions = normals.flatten(0, 1).T.contiguous()
    out = torch.zeros(len(pixels), FPFH_WIDTH)
    for first in range(0, len(pixels), _CHUNK):
        part = slice(first, first + _CHUNK)
        used, own = index[part], pixels[part, None]
        pair = squared[part].isfinite() & (squared[part] > 0)
        offset = [axis[used] - axis[own] for axis in points]
        bins = pair_bins(
            offset, [axis[own] for axis in directions], [axis[used] for axis in directions], squared[part]
        )
        size = len(used)
        start = torch.arange(size)[:, None] * FPFH_WIDTH
        spare = size * FPFH_WIDTH  # where what is no pair is counted
        histogram = torch.zeros(FPFH_WIDTH * size + 1)
        for number, angle in enumerate(bins):
            place = torch.where(pair, start + number * BINS + angle, spare)
            histogram += torch.bincount(place.flatten(), minlength=len(histogram))
        pairs = pair.sum(dim=1, keepdim=True).clamp(min=1)
        out[part] = 100 * histogram[:-1].unflatten(0, (size, FPFH_WIDTH)) / pairs
    return out


def pair_bins(
    offset: list[Float[Tensor, "n k"]],
    own_normal: list[Float[Tensor, "n 1"]],
    other_normal: list[Float[Tensor, "n k"]],
    squared: Float[Tensor, "n k"],
) -> list[Int[Tensor, "n k"]]:
    """The bins of theta in [-pi, pi], alpha and phi in [-1, 1], of pairs of points `offset` apart (x, y, z apart).

    The frame (u, v, w) stands on the point of the two whose normal makes the smaller angle with the line between them.
    """
    inverse = squared.clamp(min=1e-30).rsqrt()
    line = [axis * inverse for axis in offset]
    own = sum_of(line, own_normal)
    other = sum_of(line, other_normal)
    swap = other.abs() > own.abs()
    u = [torch.where(swap, b, a) for a, b in zip(own_normal, other_normal, strict=True)]
    n = [torch.where(swap, a, b) for a, b in zip(own_normal, other_normal, strict=True)]
    phi = torch.where(swap, -other, own)
    sign = torch.where(swap, -1.0, 1.0)
    line = [axis * sign for axis in line]
    v = [line[1] * u[2] - line[2] * u[1], line[2] * u[0] - line[0] * u[2], line[0] * u[1] - line[1] * u[0]]
    length = sum_of(v, v).clamp(min=1e-20).rsqrt()
    v = [axis * length for axis in v]
    w = [u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]]
    theta = torch.atan2(sum_of(w, n), sum_of(u, n))
    share = [(theta + math.pi) / (2 * math.pi), (sum_of(v, n) + 1) / 2, (phi + 1) / 2]
    return [(BINS * value).long().clamp_(0, BINS - 1) for value in share]


def sum_of(a: list[Float[Tensor, "n _k"]], b: list[Float[Tensor, "n _k"]]) -> Float[Tensor, "n k"]:
    """The dot product of vectors whose coordinates lie apart."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _filled(values: Tensor, pixels: Int[Tensor, "n"], shape: tuple[int, int]) -> Tensor:
    out = values.new_zeros(shape[0] * shape[1], *values.shape[1:])
    out[pixels] = values
    return out.unflatten(0, shape)
