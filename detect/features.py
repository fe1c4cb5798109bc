"""The difference of photo and render as an ImageNet backbone sees it: one more channel beside those of `difference`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from detect.backbones import Backbone
from detect.difference import Difference, difference_channels


def feature_distance(
    photo: Sequence[Float[Tensor, "channels rows columns"]],
    render: Sequence[Float[Tensor, "channels rows columns"]],
    height: int,
    width: int,
) -> Float[Tensor, "height width"]:
    """Root mean square over the layers of the distance of unit-length feature vectors, in [0, 2].

    Unit length per pixel keeps a layer with large activations from drowning the others, which is where SplatPose's
    plain sum (arXiv 2404.06832, section 3.3) differs.
    """
    total = torch.zeros(height, width, device=photo[0].device)
    for a, b in zip(photo, render, strict=True):
        squared = (F.normalize(a, dim=0) - F.normalize(b, dim=0)).square().sum(dim=0)
        total += F.interpolate(
            squared[None, None], size=(height, width), mode="bilinear", align_corners=False
        )[0, 0]
    return (total / len(photo)).sqrt()


def difference_with(backbone: Backbone | None) -> Difference:
    """The weights-free channels, and the backbone's as a last one where there is a backbone."""
    if backbone is None:
        return difference_channels

    def difference(
        photo: Float[Tensor, "height width rgb=3"], render: Float[Tensor, "height width rgb=3"]
    ) -> Float[Tensor, "channel height width"]:
        height, width = photo.shape[:2]
        seen = feature_distance(
            backbone.features(photo.clamp(0, 1)), backbone.features(render.clamp(0, 1)), height, width
        )
        return torch.cat([difference_channels(photo, render), seen[None].to(photo)])

    return difference
