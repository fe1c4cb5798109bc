"""SplatPose's anomaly map and image score, for a fair row beside ours: same photos, same found cameras, same renders.

Source: Kruse et al., "SplatPose & Detect" (2024), whose map is that of PAD (Zhou et al. 2023): squared differences of
colour and of a frozen ImageNet network's features at 224 px, summed, blurred; the score is the map's maximum.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor

from detect.backbones import Backbone, normalised

MAP_SIZE = 224  # px, both sides of the map
MAP_SIGMA = 4.0  # px of that map


@dataclass(frozen=True)
class RecipeMap:
    """What the recipe says of one photo."""

    small: Float[Tensor, "224 224"]  # the map as it is made and as their figures are measured on, >= 0
    values: Float[Tensor, "height width"]  # the same brought to the photo's size, bilinear
    score: float  # maximum of `small`


def splatpose_recipe(
    query: Float[Tensor, "height width rgb=3"],
    render: Float[Tensor, "height width rgb=3"],
    backbone: Backbone,
) -> RecipeMap:
    """The recipe's map and score of photo and render, RGB in [0, 1] over the same background.

    They min-max scale all maps and scores of a class together; no figure that goes by rank changes by that, so it is
    left out, and one photo has one score.
    """
    small = splatpose_map(query, render, backbone)
    values = F.interpolate(
        small[None, None], size=tuple(query.shape[:2]), mode="bilinear", align_corners=False, antialias=True
    )[0, 0]
    return RecipeMap(small, values, float(small.max()))


def splatpose_map(
    query: Float[Tensor, "height width rgb=3"],
    render: Float[Tensor, "height width rgb=3"],
    backbone: Backbone,
) -> Float[Tensor, "224 224"]:
    """The anomaly map, >= 0, before any scaling: squared differences of colour and of features, blurred.

    Where this is kinder than the original: values of the render outside [0, 1] are clamped (they wrapped round in
    8 bits) and rounded to 8 bits (they were cut).
    """
    one, other = _shrunk(query), _shrunk(render)
    total = (normalised(one) - normalised(other)).square().sum(dim=1)[0]
    for of_query, of_render in zip(backbone.features(one), backbone.features(other), strict=True):
        difference = (of_query - of_render).square().sum(dim=0)
        total = total + F.interpolate(
            difference[None, None], size=(MAP_SIZE, MAP_SIZE), mode="bilinear", align_corners=False
        )[0, 0].to(total)
    blurred = gaussian_filter(total.cpu().numpy(), sigma=MAP_SIGMA, truncate=4.0)
    return torch.from_numpy(blurred).to(query)


def _shrunk(rgb: Float[Tensor, "height width rgb=3"]) -> Float[Tensor, "224 224 rgb=3"]:
    """The picture at 224 x 224 px, in 8 bits, by Pillow's bilinear filter (which averages when it shrinks)."""
    eight_bit = (rgb.detach().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    small = Image.fromarray(eight_bit).resize((MAP_SIZE, MAP_SIZE), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.asarray(small).copy()).to(rgb) / 255
