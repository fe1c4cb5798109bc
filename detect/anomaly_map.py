"""The result type of every detector: where, how much, and where nothing can be said."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from detect.difference import blur, difference_channels
from detect.expected import Difference, ExpectedResidual, expected_deviation
from prepare.camera import Camera
from recon.rasterize import Render
from recon.reference import Reference

FLOORS = (
    0.02,
    0.05,
    0.05,
)  # added to the expected deviation of colour, contrast, features: noise and rounding
BASE = 0.1  # of what good photos leave, granted to every channel: none at zero silences the others (the middle of a stain)
SMOOTH_PX = 2.0  # standard deviation of the Gaussian over each channel, at 400 px
SCORED_SHARE = 3e-4  # of the image's pixels: the hottest so many are averaged to the score
EVIDENCE_PX = 1.0  # pixels of evidence that a place needs before something is said of it


@dataclass(frozen=True)
class AnomalyMap:
    """How unlike the reference each pixel of a photo is."""

    values: Float[Tensor, "height width"]  # >= 0; 1 is what good photos of this reference leave on average
    known: Bool[Tensor, "height width"]  # False where the reference photos did not show the part
    score: float  # mean of the hottest SCORED_SHARE of the known pixels: depends on this photo alone


@dataclass(frozen=True)
class DifferenceDetector:
    """The difference channels over what good photos leave, combined by their geometric mean.

    The channels of `detect.difference` need no learned weights; a backbone's comes last where there is one. The
    geometric mean asks that all channels agree: gloss changes colour but not contrast, a slipped edge contrast but not
    the tolerant colour. Measured against the mean and the single channels in docs/results.md.
    """

    reference: Reference
    expected: ExpectedResidual
    difference: Difference = field(default=difference_channels)

    @torch.no_grad()
    def anomaly_map(
        self, photo: Float[Tensor, "height width rgb=3"], render: Render, camera: Camera
    ) -> AnomalyMap:
        """The map of `photo` against `render`, both at `camera` and over the same background."""
        channels = self.difference(photo, render.rgb)
        deviation, evidence = expected_deviation(self.reference, self.expected, camera)
        floor = deviation.new_tensor(FLOORS[: len(channels)])[:, None, None]
        return combine(channels / (floor + deviation), evidence >= EVIDENCE_PX)


def combine(
    relative: Float[Tensor, "channel height width"], known: Bool[Tensor, "height width"]
) -> AnomalyMap:
    """The geometric mean of the smoothed channels, each raised by BASE, less BASE; and its score.

    Zero where the images are equal or nothing is known.
    """
    sigma = max(SMOOTH_PX * max(known.shape) / 400, 0.5)
    smooth = blur((relative * known)[None], sigma)[0].clamp_min(0)
    values = ((smooth + BASE).prod(dim=0) ** (1.0 / len(relative)) - BASE) * known
    return AnomalyMap(values, known, image_score(values))


def image_score(values: Float[Tensor, "height width"]) -> float:
    """Mean of the hottest SCORED_SHARE of the pixels, four at least."""
    count = min(values.numel(), max(4, round(SCORED_SHARE * values.numel())))
    return float(torch.topk(values.reshape(-1), count).values.double().mean())
