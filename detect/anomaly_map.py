"""The result type of every detector: where, how much, and where nothing can be said."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from detect.difference import blur, difference_channels
from detect.expected import Difference, ExpectedResidual, expected_deviation
from prepare.camera import Camera
from recon.rasterize import Render
from recon.reference import Reference

FLOOR = 0.02  # added to the expected deviation of every channel: camera noise and rounding
SMOOTH_PX = 1.5  # of the map, at 400 px
SCORED_SHARE = 3e-4  # of the image's pixels: the hottest so many are averaged to the score
EVIDENCE_PX = 1.0  # pixels of evidence that a place needs before something is said of it


@dataclass(frozen=True)
class AnomalyMap:
    """How unlike the reference each pixel of a photo is."""

    values: Float[Tensor, "height width"]  # >= 0; 1 is what good photos of this reference leave on average
    known: Bool[Tensor, "height width"]  # False where the reference photos did not show the part
    score: float  # mean of the hottest SCORED_SHARE of the known pixels: depends on this photo alone


class Detector(Protocol):
    """Anything that compares a photo with the render at its camera."""

    def anomaly_map(
        self, photo: Float[Tensor, "height width rgb=3"], render: Render, camera: Camera
    ) -> AnomalyMap: ...


@dataclass(frozen=True)
class DifferenceDetector:
    """The difference channels over what good photos leave, combined by their mean.

    The three channels of `detect.difference` need no learned weights; a backbone's comes last where there is one.
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
        relative = (channels / (FLOOR + deviation)).mean(dim=0)
        return finish_map(relative, evidence >= EVIDENCE_PX)


def finish_map(values: Float[Tensor, "height width"], known: Bool[Tensor, "height width"]) -> AnomalyMap:
    """Smoothed values, zero where nothing is known, and their score."""
    sigma = SMOOTH_PX * max(values.shape) / 400
    smooth = blur((values * known)[None, None], max(sigma, 0.5))[0, 0] * known
    return AnomalyMap(smooth, known, image_score(smooth))


def image_score(values: Float[Tensor, "height width"]) -> float:
    """Mean of the hottest SCORED_SHARE of the pixels, four at least."""
    count = min(values.numel(), max(4, round(SCORED_SHARE * values.numel())))
    return float(torch.topk(values.reshape(-1), count).values.double().mean())
