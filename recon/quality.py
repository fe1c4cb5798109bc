"""How close a render comes to its photo: PSNR, SSIM and, where its weights are on this machine, LPIPS.

Each is also, or only, taken over the part: most of a photo is background, which any reference gets right.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from recon.losses import Target, make_target, photometric_loss, psnr
from recon.lpips import MIN_SIDE_PX, Lpips


@dataclass(frozen=True)
class ViewQuality:
    """How close one render comes to its photo."""

    psnr: float  # dB, whole image
    part_psnr: float  # dB, pixels of the part
    ssim: float  # mean over the whole image, at most 1
    part_ssim: float  # mean over the pixels of the part, at most 1
    lpips: float | None  # whole image, >= 0, less is closer; None without weights or below MIN_SIDE_PX


@torch.no_grad()
def measure_quality(
    rgb: Float[Tensor, "height width rgb=3"],
    photo_rgb: Float[Tensor, "height width rgb=3"],
    part_weight: Float[Tensor, "height width"],
    valid: Float[Tensor, "height width"] | None,
    perceptual: Lpips | None = None,
) -> ViewQuality:
    """Quality of the render `rgb`, clamped to [0, 1] first, against a photo in [0, 1].

    `part_weight` is the share of the part in each pixel, `valid` the weight of each pixel (None: all alike); the part
    is weighted by their product. A part of no pixels is matched perfectly. LPIPS has no weights: it sees the photo
    itself where pixels are not valid. Some ms at 400 px, LPIPS apart.
    """
    rgb = rgb.clamp(0, 1)
    part = part_weight if valid is None else part_weight * valid
    target = make_target(photo_rgb)
    lpips = None
    if perceptual is not None and min(rgb.shape[:2]) >= MIN_SIDE_PX:
        seen = rgb if valid is None else torch.lerp(photo_rgb, rgb, valid[..., None])
        lpips = perceptual.distance(seen, photo_rgb)
    return ViewQuality(
        psnr=psnr(rgb, photo_rgb, valid),
        part_psnr=psnr(rgb, photo_rgb, part),
        ssim=_mean_ssim(rgb, target, valid),
        part_ssim=_mean_ssim(rgb, target, part),
        lpips=lpips,
    )


def _mean_ssim(
    rgb: Float[Tensor, "height width rgb=3"], target: Target, weight: Float[Tensor, "height width"] | None
) -> float:
    """Mean of `ssim_map` over channels, and over pixels by `weight`; 1 where no pixel has any.

    Taken from the loss with λ = 1, which is 1 - SSIM: the kernel's pass costs a tenth of the map in torch.
    """
    if weight is not None:
        share = weight.mean()
        if float(share) <= 0.0:
            return 1.0
        target = replace(target, weight=(weight / share).contiguous())
    return 1.0 - float(photometric_loss(rgb, target, 1.0))
