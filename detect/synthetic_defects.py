"""Made-up defects on photos of good parts, by editing the part's splats in 3D: to train the comparison on.

A photo of a good part plus what the edit changes in the render is a photo of a defective part, with the right occlusion,
silhouette and shading, and with all that the render gets wrong about the good part still in it.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from detect.difference import lab_of
from prepare.camera import Camera
from recon.fit import Photo
from recon.gaussians import FIELD_NAMES, Gaussians
from recon.harmonics import SH_C0
from recon.rasterize import RasterOptions, Render, rasterize

SyntheticKind = Literal["added", "missing", "stained"]
KINDS: tuple[SyntheticKind, ...] = ("missing", "stained", "added", "added")  # the hardest to see comes twice
RADII_PX = (2.0, 22.0)  # of a defect as the camera sees it, drawn evenly in its logarithm
MOST_ADDED_PX = 9.0
EDGE_SHARE = 0.4  # of the defects sit at the part's silhouette
CHANGED_LAB = 0.04  # a pixel that changes by less (Lab / 100) is not labelled: nobody would see it
SOLID_LOGIT = 2.0  # least opacity logit of added matter


def with_defects(
    photo: Photo,
    gaussians: Gaussians,
    render: Render,
    options: RasterOptions,
    generator: torch.Generator,
    most: int = 3,
) -> tuple[Photo, Bool[Tensor, "height width"]]:
    """`photo` with one to `most` defects, and where they show. `render` is of `gaussians` at its camera, with depth."""
    edited = gaussians
    for _ in range(int(torch.randint(1, most + 1, (1,), generator=generator))):
        kind = KINDS[int(torch.randint(len(KINDS), (1,), generator=generator))]
        edited = edit(edited, photo.camera, render, kind, generator)
    with torch.no_grad():
        after = rasterize(edited, photo.camera, photo.background, options=options)
    rgb = (photo.rgb + after.rgb - render.rgb).clamp(0, 1)
    alpha = (photo.alpha + after.alpha - render.alpha).clamp(0, 1)
    changed = (lab_of(rgb) - lab_of(photo.rgb)).norm(dim=0) > CHANGED_LAB
    return dataclasses.replace(photo, rgb=rgb, alpha=alpha), changed


def edit(
    gaussians: Gaussians, camera: Camera, render: Render, kind: SyntheticKind, generator: torch.Generator
) -> Gaussians:
    """The splats with matter taken away, recoloured or added at a random place that `camera` sees."""

    def uniform() -> float:
        return float(torch.rand(1, generator=generator))

    place, depth = _surface_point(camera, render, generator)
    low, high = math.log(RADII_PX[0]), math.log(RADII_PX[1])
    radius_px = math.exp(low + (high - low) * uniform())
    if kind == "added":
        radius_px = min(radius_px, MOST_ADDED_PX)
    radius = radius_px * depth / camera.fl_x
    near = _ellipsoid(gaussians.means - place, radius, generator)
    if kind == "missing":
        return gaussians.select(~near)
    if kind == "stained":
        sh = gaussians.sh.clone()
        colour = (torch.rand(3, generator=generator) - 0.5) / SH_C0
        if uniform() < 0.5:  # near the part's own colour: what is hard to see
            colour = (
                sh[near, 0].mean(dim=0)
                + (torch.rand(3, generator=generator) - 0.5) * 1.2
                + 1.2 * (uniform() - 0.5)
            )
        weight = 0.3 + 0.7 * uniform()
        sh[near, 0] = (1 - weight) * sh[near, 0] + weight * colour
        return dataclasses.replace(gaussians, sh=sh)
    # A copy of the matter there, pushed out of the surface: in the part's own colour most of the time.
    random = F.normalize(torch.randn(3, generator=generator), dim=0)
    outwards = F.normalize(place - gaussians.means.mean(dim=0), dim=0)
    towards = F.normalize(camera.centre - place, dim=0)
    direction = F.normalize(0.8 * random + 0.6 * towards + 0.8 * outwards, dim=0)
    added = gaussians.select(near)
    sh = added.sh.clone()
    if uniform() < 0.3:
        sh[:, 0] = gaussians.sh[int(torch.randint(len(gaussians), (1,), generator=generator)), 0]
    sh[:, 0] += 0.5 * (uniform() - 0.5)
    added = dataclasses.replace(
        added,
        means=added.means + direction * radius * (1.0 + uniform()),
        sh=sh,
        logit_opacities=added.logit_opacities.clamp_min(SOLID_LOGIT),
    )
    return Gaussians(*(torch.cat([getattr(gaussians, name), getattr(added, name)]) for name in FIELD_NAMES))


def _surface_point(
    camera: Camera, render: Render, generator: torch.Generator
) -> tuple[Float[Tensor, "xyz=3"], float]:
    """A point that shows, in world coordinates, and its depth."""
    assert render.depth is not None
    solid = render.alpha > 0.9
    places = solid.nonzero()
    if float(torch.rand(1, generator=generator)) < EDGE_SHARE:
        inner = -F.max_pool2d(-solid[None, None].float(), 9, stride=1, padding=4)[0, 0] > 0.5
        rim = (solid & ~inner).nonzero()
        places = rim if len(rim) else places
    if len(places) == 0:
        raise ValueError("synthetic defects: the render shows no part")
    row, column = places[int(torch.randint(len(places), (1,), generator=generator))].tolist()
    depth = float(render.depth[row, column] / render.alpha[row, column])
    x, y = (column + 0.5 - camera.cx) / camera.fl_x, (row + 0.5 - camera.cy) / camera.fl_y
    in_cam = torch.tensor([x * depth, y * depth, depth])
    return (in_cam - camera.world_to_cam[:3, 3]) @ camera.world_to_cam[:3, :3], depth


def _ellipsoid(
    offsets: Float[Tensor, "n xyz=3"], radius: float, generator: torch.Generator
) -> Bool[Tensor, " n"]:
    """Which points lie in a randomly turned and stretched ball about the origin; the three nearest at least."""
    axes, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator))
    stretch = torch.exp(0.5 * torch.randn(3, generator=generator))
    distance = ((offsets @ axes) / stretch).norm(dim=1)
    third = torch.topk(distance, min(3, len(distance)), largest=False).values.max()
    return distance <= third.clamp_min(radius)
