"""Edges inside the outline that a part's shape alone makes, and how far a photo shows them.

For references whose colours mean nothing (`recon.appearance`): from some sides, the opposite one above all, the outline is
nearly the same. Where one surface ends before another and where it folds, light or material change, so that a photo shows
an edge whatever the part is painted with. Paint adds edges; they are never held against a camera.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prepare.camera import Camera, fit_within
from prepare.image import resize
from recon.gaussians import Gaussians, rotation_matrices
from recon.rasterize import ExtraChannels, RasterOptions, rasterize

MOST_PX = 400  # longest side at which edges are sought; lengths in pixels below are of a photo of this size
DIRECTIONS = 8  # of edges that are told apart, over a half turn
MARGIN_PX = 5.0  # an inner edge lies so far inside the outline
SMOOTH_PX = 1.0  # standard deviation of the Gaussian before differences are taken, and half their step
REACH_PX = 2  # the photo's edge is sought so far to either side of where it should be
FOLD = 0.35  # change of the unit normal across a step of differences that surely makes an edge
DROP = 0.02  # likewise of the depth, beyond its slope, as a share of the part's half size
SEEN_RANK = 0.62  # mean rank from which on a photo shows the edges: 0.75 to 0.87 at right cameras, 0.48 to 0.58 at others
LEAST_STRENGTH = 0.5  # of an edge that counts, as a share of the two above
SURELY = 2.0  # standard deviations
CORRELATED_PX = 8.0  # along an edge the photo's ranks are as good as one another's


@dataclass(frozen=True)
class ShapeEdges:
    """The pixels of a part's inner edges at one camera, a pixel wide."""

    row: Int[Tensor, " n"]
    column: Int[Tensor, " n"]
    direction: Int[Tensor, " n"]  # across the edge: pi / DIRECTIONS times this from x towards y
    strength: Float[Tensor, " n"]  # in (LEAST_STRENGTH, 1]

    def __len__(self) -> int:
        return len(self.row)


@dataclass(frozen=True)
class PhotoEdges:
    """Where a photo of a part shows edges."""

    rank: Float[
        Tensor, "direction height width"
    ]  # of the strongest edge near by among all of the part's, in [0, 1]
    within: Bool[Tensor, "height width"]  # the part less MARGIN_PX

    def ranks_at(self, edges: ShapeEdges) -> Float[Tensor, " n"]:
        """How strongly the photo shows each of `edges`: evenly spread over [0, 1] where it does not know of them."""
        return self.rank[edges.direction, edges.row, edges.column]


@dataclass(frozen=True)
class Support:
    """How far a photo shows the edges that a camera demands."""

    value: float  # sum over the edges of strength times (rank - 1/2): about 0 by chance
    chance: float  # its standard deviation by chance
    seen: bool  # whether the mean rank is at least SEEN_RANK, or the edges are too few to say

    def exceeds(self, other: Support) -> bool:
        """Whether it is greater by more than chance."""
        return self.value - other.value > SURELY * math.hypot(self.chance, other.chance)


def photo_edges(rgb: Float[Tensor, "height width rgb=3"], alpha: Float[Tensor, "height width"]) -> PhotoEdges:
    """The edges of a photo whose share of the part is `alpha`, at MOST_PX at most.

    By ranks, a photo full of paint makes no camera likelier than a plain one does.
    """
    width, height = fit_within(rgb.shape[1], rgb.shape[0], MOST_PX)
    if (height, width) != alpha.shape:
        rgb = resize(rgb, width, height)
        alpha = resize(alpha[..., None].expand(-1, -1, 3).contiguous(), width, height)[..., 0]
    within = _eroded(alpha > 0.5)
    dx, dy = _differences(_blurred(rgb.permute(2, 0, 1)))
    planes = []
    for x, y in _units():
        across = (x * dx + y * dy).norm(dim=0)
        near = [_shifted(across, round(k * x), round(k * y)) for k in range(-REACH_PX, REACH_PX + 1)]
        planes.append(torch.stack(near).amax(dim=0))
    strength = torch.stack(planes)
    ordered = strength[:, within].reshape(-1).sort().values
    rank = torch.searchsorted(ordered, strength).to(strength.dtype) / max(1, len(ordered))
    return PhotoEdges(rank, within)


@torch.no_grad()
def shape_edges(
    gaussians: Gaussians,
    camera: Camera,
    options: RasterOptions,
    half_size: float,
    within: Bool[Tensor, "height width"],
) -> ShapeEdges:
    """Where, on the pixels `within`, depth drops or the surface folds in what `camera` sees of `gaussians`.

    `camera` is resized to `within`; `half_size` of the part is in world units. Normals are those of the splats: their
    shortest axes, turned to the camera.
    """
    camera = camera.resized(within.shape[1], within.shape[0])
    turn = camera.world_to_cam.to(gaussians.means)
    shortest = gaussians.log_scales.argmin(dim=1)[:, None, None].expand(-1, 3, 1)
    normals = rotation_matrices(gaussians.quats).gather(2, shortest)[..., 0] @ turn[:3, :3].T
    towards = gaussians.means @ turn[:3, :3].T + turn[:3, 3]
    normals = torch.where((towards * normals).sum(dim=1, keepdim=True) > 0, -normals, normals)
    shown = rasterize(
        gaussians, camera, options=RasterOptions(antialiased=options.antialiased, depth=True),
        extra=ExtraChannels(normals, normals.new_zeros(3)),
    )  # fmt: skip
    assert shown.depth is not None
    assert shown.extra is not None
    alpha = shown.alpha.clamp_min(1e-4)
    depth = shown.depth / alpha * (FOLD / (DROP * half_size))  # a drop counts as much as a fold
    planes = _blurred(torch.cat([shown.extra / alpha, depth[None]]).cpu())
    dx, dy = _differences(planes)
    # Depth: what remains of one side's change where the other side's goes on.
    dx[3], dy[3] = _bends(planes[3])
    fold = (dx[:3].square() + dy[:3].square()).sum(dim=0).sqrt()
    strength = torch.maximum(fold, torch.hypot(dx[3], dy[3])) / FOLD
    # Across an edge all planes change most: the first axis of their structure tensor (Di Zenzo 1986).
    xx, yy, xy = (dx * dx).sum(dim=0), (dy * dy).sum(dim=0), (dx * dy).sum(dim=0)
    angle = 0.5 * torch.atan2(2 * xy, xx - yy)
    direction = (angle * (DIRECTIONS / math.pi)).round().long() % DIRECTIONS
    crest = torch.zeros_like(within)
    for k, (x, y) in enumerate(_units()):
        beside = [_shifted(strength, side * round(x), side * round(y)) for side in (-1, 1)]
        crest |= (direction == k) & (strength >= torch.maximum(*beside))
    on_edge = crest & (strength > LEAST_STRENGTH) & within & _eroded(shown.alpha.cpu() > 0.5)
    row, column = on_edge.nonzero(as_tuple=True)
    return ShapeEdges(row, column, direction[row, column], strength[row, column].clamp_max(1.0))


def support(edges: ShapeEdges, photo: PhotoEdges) -> Support:
    """How far `photo` shows `edges`."""
    value = float((edges.strength * (photo.ranks_at(edges) - 0.5)).sum())
    chance = math.sqrt(CORRELATED_PX / 12.0 * float(edges.strength.square().sum()))
    usual = (SEEN_RANK - 0.5) * float(edges.strength.sum())
    return Support(value, chance, value >= usual or usual < SURELY * chance)


def _units() -> list[tuple[float, float]]:
    """x and y of each direction."""
    angles = [math.pi * k / DIRECTIONS for k in range(DIRECTIONS)]
    return [(math.cos(angle), math.sin(angle)) for angle in angles]


def _blurred(planes: Float[Tensor, "plane height width"]) -> Float[Tensor, "plane height width"]:
    radius = round(3 * SMOOTH_PX)
    offset = torch.arange(-radius, radius + 1, dtype=planes.dtype)
    window = torch.exp(-0.5 * (offset / SMOOTH_PX) ** 2)
    window = window / window.sum()
    wide = F.pad(planes[:, None], (radius,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(wide, window.view(1, 1, 1, -1)), window.view(1, 1, -1, 1))[:, 0]


def _differences(
    planes: Float[Tensor, "plane height width"],
) -> tuple[Float[Tensor, "plane height width"], Float[Tensor, "plane height width"]]:
    """Central differences over 2 px, rightwards and downwards."""
    wide = F.pad(planes[None], (1,) * 4, mode="replicate")[0]
    return wide[:, 1:-1, 2:] - wide[:, 1:-1, :-2], wide[:, 2:, 1:-1] - wide[:, :-2, 1:-1]


def _bends(
    plane: Float[Tensor, "height width"],
) -> tuple[Float[Tensor, "height width"], Float[Tensor, "height width"]]:
    """Second differences, rightwards and downwards."""
    wide = F.pad(plane[None, None], (1,) * 4, mode="replicate")[0, 0]
    return (
        wide[1:-1, 2:] + wide[1:-1, :-2] - 2 * plane,
        wide[2:, 1:-1] + wide[:-2, 1:-1] - 2 * plane,
    )


def _shifted(plane: Float[Tensor, "height width"], right: int, down: int) -> Float[Tensor, "height width"]:
    """What stands `right` and `down` px from each pixel; around the border, where no edge is an inner one."""
    return torch.roll(plane, (-down, -right), (0, 1))


def _eroded(mask: Bool[Tensor, "height width"]) -> Bool[Tensor, "height width"]:
    """`mask` less MARGIN_PX at its border and the image's."""
    reach = round(MARGIN_PX)
    off = F.pad((~mask).float()[None, None], (reach,) * 4, value=1.0)
    return F.max_pool2d(off, 2 * reach + 1, stride=1)[0, 0] == 0
