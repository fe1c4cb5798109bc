"""Coarse to fine: the photo at several sizes and the splats at matching levels of detail."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from prepare.camera import Camera, fit_within
from prepare.image import resize
from recon.gaussians import Gaussians

LEVELS_PX = (50, 100, 200, 400)
KEPT_SHARE = {50: 1 / 20, 100: 1 / 6, 200: 1 / 2}  # of the splats; all at larger sizes
LEAST_SPLATS = 1500


@dataclass(frozen=True)
class PhotoLevel:
    """A photo at one size."""

    size_px: int  # longest side at most; says which splats go with it (`SplatLevels.at`)
    target: Float[Tensor, "rgb=3 height width"]
    width: int
    height: int


def photo_pyramid(
    rgb: Float[Tensor, "height width rgb=3"], levels_px: tuple[int, ...] = LEVELS_PX
) -> tuple[PhotoLevel, ...]:
    """`rgb` at the sizes `levels_px`, coarse first; levels beyond the photo's own size are replaced by that size once.

    The photo's own size counts as LEVELS_PX[-1] at least, whatever it is: it is compared with all splats, since a
    camera found against thinned ones would be off (1 degree for photos of 100 px).
    """
    height, width = rgb.shape[:2]
    levels: list[PhotoLevel] = []
    for size in levels_px:
        w, h = fit_within(width, height, size)
        if levels and (levels[-1].width, levels[-1].height) == (w, h):
            break
        whole = (w, h) == (width, height)
        small = rgb if whole else resize(rgb, w, h)
        levels.append(
            PhotoLevel(max(size, LEVELS_PX[-1]) if whole else size, small.permute(2, 0, 1).contiguous(), w, h)
        )
    return tuple(levels)


def camera_at(camera: Camera, level: PhotoLevel) -> Camera:
    """`camera` at the size of a photo level."""
    return camera.resized(level.width, level.height)


class SplatLevels:
    """A reference's splats thinned for small images; made once a reference, shared by all photos.

    A random share f is kept and widened by sqrt(1/f), so that the surface stays covered.
    """

    def __init__(self, gaussians: Gaussians, seed: int = 0) -> None:
        order = torch.randperm(len(gaussians), generator=torch.Generator().manual_seed(seed))
        self._levels: dict[int, Gaussians] = {}
        for size, share in KEPT_SHARE.items():
            count = max(min(LEAST_SPLATS, len(gaussians)), round(share * len(gaussians)))
            kept = gaussians.select(order[:count].sort().values.to(gaussians.device))
            widen = 0.5 * math.log(len(gaussians) / max(1, count))
            self._levels[size] = Gaussians(
                kept.means, kept.quats, kept.log_scales + widen, kept.logit_opacities, kept.sh
            )
        self._all = gaussians
        means = gaussians.means.detach()
        away = (means - means.median(dim=0).values).norm(dim=1)
        self.radius = float(away.quantile(0.9)) if len(gaussians) < 1_000_000 else float(away.mean() * 1.5)
        """Distance from the middle within which most splats lie, world units."""

    def at(self, size_px: int) -> Gaussians:
        """The splats to render at `size_px`."""
        return self._levels.get(size_px, self._all)
