"""References whose colours mean nothing (a bare CAD file, an unpainted print): only their outline is compared.

Photo and splats are both painted in one flat colour over the background, so that every photometric step (index, pose,
residual statistics, map) works on the silhouette alone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from recon.fit import Photo
from recon.gaussians import Gaussians
from recon.harmonics import SH_C0

Appearance = Literal["colour", "shape"]
DARK, LIGHT = 0.2, 0.8  # the flat colour, whichever stands out from the background


def flat_colour(background: Float[Tensor, "rgb=3"]) -> float:
    """The grey that a silhouette is painted in."""
    return DARK if float(background.mean()) > 0.5 else LIGHT


def flattened(
    alpha: Float[Tensor, "height width"], background: Float[Tensor, "rgb=3"]
) -> Float[Tensor, "height width rgb=3"]:
    """The silhouette `alpha` in one flat colour over `background`."""
    share = alpha[..., None]
    return share * flat_colour(background) + (1 - share) * background


def flattened_photo(photo: Photo) -> Photo:
    """`photo` as its silhouette."""
    return replace(photo, rgb=flattened(photo.alpha, photo.background).contiguous())


def one_colour(gaussians: Gaussians, background: Float[Tensor, "rgb=3"]) -> Gaussians:
    """The same splats, all of the flat colour, from every side."""
    sh = torch.zeros_like(gaussians.sh)
    sh[:, 0] = (flat_colour(background) - 0.5) / SH_C0
    return replace(gaussians, sh=sh)
