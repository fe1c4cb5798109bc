"""Both sides of CFM without a depth sensor, cell by cell: a photo's features, and those of the reference at its camera.

The shape's side is the reference's render through the same features as the photo, and the geometry that the splats have there:
where on the part, which way the surface faces, how far it is. It never holds the defect (specification 6.4, idea 1): what the
photo should look like at this place is predicted from it. Normals come from the rendered depth: splats have none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from detect.cfm.features2d import PhotoExtractor
from prepare.camera import Camera
from recon.rasterize import Render
from recon.reference import Reference

BANDS = 5  # of sines and cosines of the position, the slowest with a period of twice the volume's half side
SOLID = 0.5  # share of a pixel that splats cover, from which its depth counts
LEAST_COVER = 0.3  # of a cell, by the part in the photo or in the render, from which it is compared
GEOMETRY_WIDTH = 3 + 6 * BANDS + 3 + 3 + 1 + 1 + 1


@dataclass(frozen=True)
class Cells:
    """Features of one photo and of the reference at its camera, on the grid of the extractor, over the squared photo."""

    photo: Float[Tensor, "side side photo_width"]
    shape: Float[Tensor, "side side shape_width"]
    valid: Bool[Tensor, "side side"]  # shows the part, in the photo or in the render


@torch.no_grad()
def cells_of(
    reference: Reference,
    extractor: PhotoExtractor,
    photo: Float[Tensor, "height width rgb=3"],
    photo_alpha: Float[Tensor, "height width"],
    render: Render,
    camera: Camera,
) -> Cells:
    """Features of `photo` and of `render`, both at `camera` and over the reference's background; on the CPU.

    `render` must hold depth. Photos that are not square are squared with the background, evenly on both sides.
    """
    background = reference.background.cpu()
    seen = extractor.grid(squared(photo.cpu().float(), background))
    shown = extractor.grid(squared(render.rgb.cpu().clamp(0, 1), background))
    side = len(seen)
    shape = torch.cat([shown, geometry(reference, render, camera, side)], dim=2)
    covers = [share.cpu() > SOLID for share in (photo_alpha, render.alpha)]
    cover = torch.stack([squared(cover.float(), torch.zeros(())) for cover in covers], dim=2)
    return Cells(seen, shape, (pooled(cover, side) > LEAST_COVER).any(dim=2))


def geometry(
    reference: Reference, render: Render, camera: Camera, side: int
) -> Float[Tensor, "side side width=42"]:
    """What the splats are at each cell, means over its solid pixels; zeros where there is none.

    Position in the volume (3, about -1 to 1) and its sines and cosines (30), unit normal towards the camera (3) and direction
    of view (3) in the world, minus their dot product (1: the surface seen head-on), depth beyond the volume's centre in half
    sides (1); and the share of the cell that is covered (1).
    """
    assert render.depth is not None
    alpha = render.alpha.cpu()
    depth = render.depth.cpu() / alpha.clamp_min(1e-6)
    solid = alpha > SOLID
    world_to_cam = camera.world_to_cam.cpu().float()
    rotation, shift = world_to_cam[:3, :3], world_to_cam[:3, 3]
    height, width = depth.shape
    rows, columns = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    across, down = (columns - camera.cx) / camera.fl_x, (rows - camera.cy) / camera.fl_y
    world = (torch.stack([across * depth, down * depth, depth], dim=2) - shift) @ rotation
    normal = normals(world, solid)
    view = F.normalize(torch.stack([across, down, torch.ones_like(across)], dim=2) @ rotation, dim=2)
    centre, half_size = reference.volume.centre.cpu().float(), reference.volume.half_size
    beyond = (depth - (rotation @ centre + shift)[2])[..., None] / half_size
    facing = -(view * normal).sum(dim=2, keepdim=True)
    values = torch.cat([(world - centre) / half_size, normal, view, facing, beyond], dim=2)
    weighted = torch.cat([values * solid[..., None], solid[..., None].float()], dim=2)
    cells = pooled(squared(weighted, torch.zeros(())), side)
    there = cells[..., -1:]
    values = cells[..., :-1] / there.clamp_min(1e-6)
    waves = [values[..., :3] * (math.pi * 2**band) for band in range(BANDS)]
    fourier = torch.cat([part for wave in waves for part in (wave.sin(), wave.cos())], dim=2)
    cover = pooled(squared(alpha[..., None], torch.zeros(())), side)
    return torch.cat([values[..., :3], fourier * (there > 0), values[..., 3:], cover], dim=2)


def normals(
    world: Float[Tensor, "height width xyz=3"], solid: Bool[Tensor, "height width"]
) -> Float[Tensor, "height width xyz=3"]:
    """Unit normals towards the camera, of the slopes between a pixel's neighbours; 0 where one of these is not solid."""
    right = world[1:-1, 2:] - world[1:-1, :-2]
    below = world[2:, 1:-1] - world[:-2, 1:-1]
    known = solid[1:-1, 2:] & solid[1:-1, :-2] & solid[2:, 1:-1] & solid[:-2, 1:-1]
    out = torch.zeros_like(world)
    out[1:-1, 1:-1] = F.normalize(torch.cross(below, right, dim=2), dim=2) * known[..., None]
    return out


def squared(image: Tensor, fill: Tensor) -> Tensor:
    """`image` (height, width, ...) in the middle of a square of its longer side, the rest `fill`."""
    height, width = image.shape[:2]
    side = max(height, width)
    if height == width:
        return image
    out = fill.to(image).expand(side, side, *image.shape[2:]).clone()
    top, left = (side - height) // 2, (side - width) // 2
    out[top : top + height, left : left + width] = image
    return out


def pooled(image: Float[Tensor, "px px channel"], side: int) -> Float[Tensor, "side side channel"]:
    """Means over the cells of a grid."""
    return F.adaptive_avg_pool2d(image.permute(2, 0, 1)[None], side)[0].permute(1, 2, 0)


def at_pixels(cells: Float[Tensor, "side side"], height: int, width: int) -> Float[Tensor, "height width"]:
    """A map of cells at the pixels of the photo that was squared for them, bilinearly."""
    px = max(height, width)
    whole = F.interpolate(cells[None, None], (px, px), mode="bilinear", align_corners=False)[0, 0]
    top, left = (px - height) // 2, (px - width) // 2
    return whole[top : top + height, left : left + width]
