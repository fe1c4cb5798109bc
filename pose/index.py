"""What a photo's rough camera is looked up in: small renders of the reference from all round, made once and stored.

Every render is kept twice: as it stands (a photo taken like the reference photos), and cut to its silhouette's centre
and size (any distance, shift and roll). One matrix product compares a photo with all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pose.pyramid import SplatLevels
from prepare.atomic_write import write_with
from prepare.camera import Camera, fit_within, look_at
from prepare.errors import InputError
from recon.rasterize import rasterize
from recon.reference import Reference

RENDER_PX = 64  # longest side of an index render
PATCH_PX = 20  # side of a compared patch
DIRECTIONS = 480  # on the sphere: neighbours about 9 degrees apart
PATCH_REACH = 2.2  # half side of a cut-out patch, in units of the silhouette's rms radius
TRUNCATED_SHARE = 0.15  # of the silhouette's outline on the image border: centre and size then mean little


@dataclass(frozen=True)
class Silhouette:
    """Place and size of a part in an image."""

    u: float  # centroid, px
    v: float  # centroid, px
    radius: float  # rms distance from the centroid, px


@dataclass(frozen=True)
class PoseIndex:
    """Small renders of a reference and what they are compared by."""

    world_to_cam: Float[Tensor, "n 4 4"]
    whole: Float[Tensor, "n d"]  # unit vectors: the render less its background, PATCH_PX square
    centred: Float[Tensor, "n d"]  # unit vectors: cut to the silhouette
    silhouettes: Float[Tensor, "n uvr=3"]  # centroid and radius as shares of the image's longer side
    camera: Camera  # lens of the renders, at RENDER_PX; its pose means nothing


def build_index(
    reference: Reference, levels: SplatLevels, *, on_view: Callable[[int, int], None] | None = None
) -> PoseIndex:
    """Index of `reference`: its photos' cameras and DIRECTIONS more, spread evenly over the sphere.

    `on_view` is told (views done, views in all).
    """
    template = reference.camera
    width, height = fit_within(template.width, template.height, RENDER_PX)
    lens = template.resized(width, height)
    centre, distance = reference.volume.centre, reference.distance
    up = common_up(reference)
    poses = [view.camera.world_to_cam for view in reference.views]
    for direction in sphere_directions(DIRECTIONS):
        poses.append(look_at(centre + distance * direction, centre, up))
    gaussians = levels.at(50).to("cpu")
    black = torch.zeros(3)
    whole, centred, places, kept = [], [], [], []
    with torch.no_grad():
        for done, pose in enumerate(poses):
            render = rasterize(gaussians, lens.moved(pose), black, options=reference.options)
            place = silhouette_of(render.alpha)
            if on_view is not None:
                on_view(done + 1, len(poses))
            if place is None:
                continue
            # Signed difference from the reference's background, so that black on white and white on black both count.
            difference = render.rgb - render.alpha[..., None] * reference.background
            whole.append(whole_patch(difference))
            centred.append(centred_patch(difference, place))
            longest = max(width, height)
            places.append(torch.tensor([place.u / longest, place.v / longest, place.radius / longest]))
            kept.append(pose)
    if not kept:
        raise InputError(
            f"reference {reference.name}: no camera sees any splat; fit the part again with more photos"
        )
    # Rounded as the file holds them, so that a photo's camera has the same bits before and after the index is stored.
    patches = [torch.stack(rows).half().float() for rows in (whole, centred)]
    return PoseIndex(torch.stack(kept), patches[0], patches[1], torch.stack(places), lens)


def sphere_directions(count: int) -> Float[Tensor, "n xyz=3"]:
    """`count` unit vectors spread evenly over the sphere (Fibonacci lattice; Swinbank and Purser 2006)."""
    index = torch.arange(count, dtype=torch.float64) + 0.5
    z = 1.0 - 2.0 * index / count
    ring = (1.0 - z * z).sqrt()
    azimuth = index * (math.pi * (3.0 - math.sqrt(5.0)))
    return torch.stack([ring * azimuth.cos(), ring * azimuth.sin(), z], dim=1).float()


def silhouette_of(alpha: Float[Tensor, "height width"]) -> Silhouette | None:
    """Centroid and rms radius of the covered pixels, None where (almost) nothing is covered."""
    total = float(alpha.sum())
    if total < 4.0:
        return None
    height, width = alpha.shape
    columns = torch.arange(width, dtype=alpha.dtype) + 0.5
    rows = torch.arange(height, dtype=alpha.dtype) + 0.5
    u = float((alpha.sum(0) * columns).sum()) / total
    v = float((alpha.sum(1) * rows).sum()) / total
    spread = (alpha.sum(0) * (columns - u) ** 2).sum() + (alpha.sum(1) * (rows - v) ** 2).sum()
    return Silhouette(u, v, math.sqrt(max(float(spread) / total, 1e-6)))


def truncated_share(alpha: Float[Tensor, "height width"]) -> float:
    """Share of the image's border that the part covers, relative to the part's own outline length, in [0, 1]."""
    inside = alpha > 0.5
    border = int(inside[0].sum() + inside[-1].sum() + inside[:, 0].sum() + inside[:, -1].sum())
    edges = int((inside[1:] != inside[:-1]).sum() + (inside[:, 1:] != inside[:, :-1]).sum())
    return border / max(1, border + edges)


def whole_patch(difference: Float[Tensor, "height width rgb=3"]) -> Float[Tensor, " d"]:
    """The whole image as a unit vector."""
    planes = difference.permute(2, 0, 1)[None]
    small = F.interpolate(planes, size=(PATCH_PX, PATCH_PX), mode="area")
    return _unit(small)


def centred_patch(
    difference: Float[Tensor, "height width rgb=3"], place: Silhouette, roll_rad: float = 0.0
) -> Float[Tensor, " d"]:
    """The part, turned by `roll_rad` about its centroid (clockwise on screen) and brought to one size, as a unit vector."""
    height, width = difference.shape[:2]
    reach = PATCH_REACH * place.radius
    cosine, sine = math.cos(roll_rad) * reach, math.sin(roll_rad) * reach
    theta = torch.tensor(
        [
            [2 * cosine / width, 2 * sine / width, 2 * place.u / width - 1],
            [-2 * sine / height, 2 * cosine / height, 2 * place.v / height - 1],
        ],
        dtype=difference.dtype,
    )
    # Sampled at twice the density and averaged: a large photo would alias otherwise.
    grid = F.affine_grid(theta[None], [1, 3, 2 * PATCH_PX, 2 * PATCH_PX], align_corners=False)
    planes = difference.permute(2, 0, 1)[None]
    sampled = F.grid_sample(planes, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return _unit(F.avg_pool2d(sampled, 2))


def save_index(path: Path, index: PoseIndex) -> None:
    """Write `index` to a .safetensors file, atomically."""
    camera = index.camera
    lens = [camera.fl_x, camera.fl_y, camera.cx, camera.cy, camera.width, camera.height]
    tensors = {
        "world_to_cam": index.world_to_cam.contiguous(),
        "whole": index.whole.half().contiguous(),
        "centred": index.centred.half().contiguous(),
        "silhouettes": index.silhouettes.contiguous(),
        "lens": torch.tensor(lens, dtype=torch.float64),
    }
    write_with(
        path, lambda temporary: save_file(tensors, temporary, metadata={"format": "splatad-pose-index-1"})
    )


def load_index(path: Path) -> PoseIndex:
    """The index in `path`.

    Raises: InputError where it is missing or damaged.
    """
    try:
        tensors = load_file(path)
        fl_x, fl_y, cx, cy, width, height = tensors["lens"].tolist()
        camera = Camera(torch.eye(4), fl_x, fl_y, cx, cy, int(width), int(height))
        return PoseIndex(
            tensors["world_to_cam"],
            tensors["whole"].float(),
            tensors["centred"].float(),
            tensors["silhouettes"],
            camera,
        )
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise InputError(
            f"{path}: the pose index cannot be read ({error}); run `splatad fit` again"
        ) from error


def _unit(patch: Float[Tensor, "1 rgb=3 side side"]) -> Float[Tensor, " d"]:
    flat = patch.reshape(-1)
    return flat / flat.norm().clamp_min(1e-9)


def common_up(reference: Reference) -> Float[Tensor, "xyz=3"]:
    """The world direction that is up in most photos; the z axis where they disagree."""
    up = -torch.stack([view.camera.world_to_cam[1, :3] for view in reference.views]).mean(dim=0)
    if float(up.norm()) < 0.1:
        return torch.tensor([0.0, 0.0, 1.0])
    return up / up.norm()
