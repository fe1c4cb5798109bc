"""From features to a map of what disagrees: distances, fusion, smoothing, and the papers' three normalisations.

A photo's map depends on that photo alone. The absolute scale stands in `detect.cfm.absolute`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol, get_args, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from detect.cfm.mapping import MappingPair

Fusion = Literal["product", "sum", "max", "zmean", "photo", "shape"]
FUSIONS: tuple[Fusion, ...] = get_args(Fusion)
BOXES = (5, 5, 5, 5, 5, 7, 7, 7)  # px, sides of the boxes that a map is averaged over, one after another
REACH_PX = sum(side // 2 for side in BOXES)  # 19: how far a pixel's score spreads
ROWS_AT_ONCE = 16384  # pixels: bounds the memory for a photo's features


@runtime_checkable
class Features(Protocol):
    """A photo's features, as `detect.cfm.stored.SampleFeatures` keeps them."""

    @property
    def valid(self) -> Bool[Tensor, " pixels"]:
        """The pixels that take part, row by row of a square."""
        ...

    def rows(
        self, pixels: Int[Tensor, " rows"]
    ) -> tuple[Float[Tensor, "rows photo_width"], Float[Tensor, "rows shape_width"]]:
        """Features from the photo and from the points at some pixels."""
        ...

    def to(self, device: torch.device) -> Features:
        """The same on another device."""
        ...


@dataclass(frozen=True)
class ScoreConfig:
    """How the two distances become one map."""

    fusion: Fusion = "product"
    """product, sum or max of both distances; zmean: the mean of both in their own standard deviations of good photos;
    photo: D2 alone, shape: D3 alone."""
    masked: bool = True
    """Pixels without features score 0; else all pixels are compared."""
    smooth: bool = True
    """Average over the boxes."""
    levels: tuple[float, float, float, float] | None = None
    """For zmean: mean and spread of D2 and of D3 over good photos' valid pixels."""


@dataclass(frozen=True)
class Distances:
    """D2 and D3 of every pixel, 0 where it was not compared."""

    photo: Float[Tensor, "px px"]  # D2, of the features from the photo, in [0, 2]
    shape: Float[Tensor, "px px"]  # D3, of those from the points, in [0, 2]
    valid: Bool[Tensor, "px px"]  # has features


@torch.no_grad()
def distances(pair: MappingPair, features: Features, masked: bool = True) -> Distances:
    """Both distances at the valid pixels, or at all of them where not `masked`; on the networks' device."""
    device = next(pair.parameters()).device
    features = features.to(device)
    valid = features.valid
    px = math.isqrt(len(valid))
    pixels = valid.nonzero()[:, 0] if masked else torch.arange(len(valid), device=valid.device)
    photo, shape = (torch.zeros(len(valid), device=device) for _ in range(2))
    for some in pixels.split(ROWS_AT_ONCE):
        of_photo, of_shape = features.rows(some)
        photo[some], shape[some] = pair.distances(of_photo.float(), of_shape.float())
    return Distances(photo.reshape(px, px), shape.reshape(px, px), valid.reshape(px, px))


def fused(found: Distances, config: ScoreConfig) -> Float[Tensor, "px px"]:
    """One map of both distances: 0 where nothing was compared.

    Raises: ValueError for zmean without the levels of good photos.
    """
    match config.fusion:
        case "product":
            return found.photo * found.shape
        case "sum":
            return found.photo + found.shape
        case "max":
            return torch.maximum(found.photo, found.shape)
        case "photo":
            return found.photo
        case "shape":
            return found.shape
    if config.levels is None:
        raise ValueError("fusion zmean: needs the levels of good photos; calibrate first")
    photo_mean, photo_spread, shape_mean, shape_spread = config.levels
    both = (found.photo - photo_mean) / photo_spread + (found.shape - shape_mean) / shape_spread
    return both / 2 * found.valid if config.masked else both / 2


def smoothed(anomaly: Float[Tensor, "px px"]) -> Float[Tensor, "px px"]:
    """Five 5 x 5 means and three 7 x 7 means, zeros outside: nearly a Gaussian of sigma sqrt(22) = 4.690 px, 39 px wide.

    Near the picture's edge a map fades, and 19 px beyond the part's outline there is still score, as published.
    """
    one = anomaly[None, None]
    for side in BOXES:
        one = functional.avg_pool2d(one, side, stride=1, padding=side // 2)
    return one[0, 0]


def anomaly_map(found: Distances, config: ScoreConfig) -> Float[Tensor, "px px"]:
    """The fused and smoothed map S, of another photo on the same scale; not negative but for zmean."""
    one = fused(found, config)
    return smoothed(one) if config.smooth else one


def published_image_score(anomaly: Float[Tensor, "px px"]) -> float:
    """max S / sqrt(mean of S where it is not 0), as published: relative to the photo's own level, on no absolute scale."""
    level = _mean_of_nonzero(anomaly)
    return float(anomaly.max()) / math.sqrt(level) if level > 0 else 0.0


def published_region_map(anomaly: Float[Tensor, "px px"]) -> Float[Tensor, "px px"]:
    """S / (mean of S where it is not 0), from which the papers' AUPRO is computed."""
    level = _mean_of_nonzero(anomaly)
    return anomaly / level if level > 0 else anomaly


def published_pixel_map(anomaly: Float[Tensor, "px px"]) -> Float[Tensor, "px px"]:
    """S / sqrt(mean of S over all pixels), from which the papers' pixel AUROC is computed."""
    level = float(anomaly.double().mean())
    return anomaly / math.sqrt(level) if level > 0 else anomaly


def _mean_of_nonzero(anomaly: Float[Tensor, "px px"]) -> float:
    values = anomaly[anomaly != 0].double()
    return float(values.mean()) if len(values) else 0.0
