"""How a photo differs from the render at its camera: colour, local contrast and light, without learned weights.

Channels, zero for equal images, at full resolution:

* `colour`: Lab distance / 100 of each pixel to the best match within one pixel in the other image, both ways, so that
  edges off by part of a pixel do not count, a missing part and an added part do;
* `contrast`: what is left of the difference once its local mean is taken out, as a share of the two images' local
  contrast. Light and gloss change the mean; a burr, a crack or a stain's rim changes the contrast. It is one minus
  SSIM's contrast-structure term (Wang et al. 2004) over Lab;
* `light`: the difference in lightness / 100 with its sign, photo less render: the one that is not >= 0. No map is made
  of it; what good photos leave of it tells the learned comparison (`detect.comparer`) where gloss is to be expected.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from kornia.color import rgb_to_lab
from torch import Tensor

Difference = Callable[
    [Float[Tensor, "height width rgb=3"], Float[Tensor, "height width rgb=3"]],
    Float[Tensor, "channel height width"],
]
CHANNELS = ("colour", "contrast", "light")
UNSIGNED = 2  # the first so many are >= 0
CONTRAST_PX = 3.0  # standard deviation of the window of `contrast`, at 400 px
CONTRAST_NOISE = 0.03  # local Lab contrast / 100 that camera noise alone may show


def difference_channels(
    photo: Float[Tensor, "height width rgb=3"], render: Float[Tensor, "height width rgb=3"]
) -> Float[Tensor, "channel height width"]:
    """The difference of the two images by channel, in the order of CHANNELS."""
    seen, shown = lab_of(photo), lab_of(render)
    sigma = CONTRAST_PX * max(photo.shape[:2]) / 400
    return torch.stack(
        [tolerant_distance(seen, shown), contrast_change(seen, shown, sigma), seen[0] - shown[0]]
    )


def lab_of(rgb: Float[Tensor, "height width rgb=3"]) -> Float[Tensor, "lab=3 height width"]:
    """CIE Lab / 100 of sRGB in [0, 1]; values beyond are cut off."""
    return rgb_to_lab(rgb.clamp(0, 1).permute(2, 0, 1)[None])[0] / 100.0


def contrast_change(
    a: Float[Tensor, "feature height width"], b: Float[Tensor, "feature height width"], sigma: float
) -> Float[Tensor, "height width"]:
    """Variance of the difference over the sum of the variances in a Gaussian window, in [0, 2]."""
    stacked = torch.stack([a, b, a * a, b * b, a * b])
    mean_a, mean_b, square_a, square_b, product = blur(stacked, max(sigma, 0.7))
    variance_a = (square_a - mean_a * mean_a).sum(dim=0).clamp_min(0)
    variance_b = (square_b - mean_b * mean_b).sum(dim=0).clamp_min(0)
    covariance = (product - mean_a * mean_b).sum(dim=0)
    left = (variance_a + variance_b - 2 * covariance).clamp_min(0)
    return left / (variance_a + variance_b + CONTRAST_NOISE**2)


def tolerant_distance(
    a: Float[Tensor, "feature height width"], b: Float[Tensor, "feature height width"], reach: int = 1
) -> Float[Tensor, "height width"]:
    """Distance of each pixel to its best match within `reach` px in the other image, the larger of the two ways."""
    return torch.maximum(_best_match(a, b, reach), _best_match(b, a, reach))


def _best_match(
    a: Float[Tensor, "feature height width"], b: Float[Tensor, "feature height width"], reach: int
) -> Float[Tensor, "height width"]:
    height, width = a.shape[1:]
    padded = F.pad(b[None], (reach, reach, reach, reach), mode="replicate")[0]
    best = torch.full((height, width), float("inf"), dtype=a.dtype, device=a.device)
    for dy in range(2 * reach + 1):
        for dx in range(2 * reach + 1):
            shifted = padded[:, dy : dy + height, dx : dx + width]
            best = torch.minimum(best, (a - shifted).square().sum(dim=0))
    return best.sqrt()


def blur(
    images: Float[Tensor, "batch channel height width"], sigma: float
) -> Float[Tensor, "batch channel height width"]:
    """Gaussian blur of standard deviation `sigma` px, edges replicated, cut at 3 sigma."""
    radius = max(1, round(3 * sigma))
    offset = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
    window = torch.exp(-0.5 * (offset / sigma) ** 2)
    window = window / window.sum()
    height, width = images.shape[-2:]
    # Sums of shifted images: several times faster on a CPU than a convolution of one channel.
    padded = F.pad(images, (radius, radius, 0, 0), mode="replicate")
    rows = torch.zeros_like(images)
    for k, weight in enumerate(window.tolist()):
        rows.add_(padded[..., k : k + width], alpha=weight)
    padded = F.pad(rows, (0, 0, radius, radius), mode="replicate")
    blurred = torch.zeros_like(images)
    for k, weight in enumerate(window.tolist()):
        blurred.add_(padded[..., k : k + height, :], alpha=weight)
    return blurred
