"""The result type of every detector: where, how much, and where nothing can be said."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from detect.comparer import FLOORS, Compared, Comparer, compare
from detect.difference import UNSIGNED, Difference, blur, difference_channels
from detect.expected import Expectation, ExpectedResidual, expectation
from prepare.camera import Camera
from recon.rasterize import Render
from recon.reference import Reference

FEATURE_FLOOR = 0.05  # as `detect.comparer.FLOORS`, for a backbone's channel
BASE = 0.1  # of what good photos leave, granted to every channel: none at zero silences the others (the middle of a stain)
RULE_WEIGHT = 2.0  # of the rule's logarithm beside the networks' log odds
RULE_BASE = 0.05  # added to the rule's map before its logarithm
SMOOTH_PX = 2.0  # standard deviation of the Gaussian over each channel, at 400 px
SCORED_SHARE = 3e-4  # of the image's pixels: the hottest so many are averaged to the score
EVIDENCE_PX = 1.0  # pixels of evidence that a place needs before something is said of it


@dataclass(frozen=True)
class AnomalyMap:
    """How unlike the reference each pixel of a photo is."""

    values: Float[Tensor, "height width"]  # >= 0, higher is less like the good part
    known: Bool[Tensor, "height width"]  # False where the reference photos did not show the part
    score: float  # mean of the hottest SCORED_SHARE of the known pixels: depends on this photo alone


@runtime_checkable
class Detector(Protocol):
    """What judges photos against a reference in the main line."""

    def anomaly_map(
        self,
        photo: Float[Tensor, "height width rgb=3"],
        photo_alpha: Float[Tensor, "height width"],
        render: Render,
        camera: Camera,
    ) -> AnomalyMap:
        """See `DifferenceDetector.anomaly_map`."""
        ...


@dataclass(frozen=True)
class DifferenceDetector:
    """What photo and render differ in, measured against what good photos of this reference leave.

    The rule: the geometric mean of the channels of `detect.difference` over what good photos leave; a backbone's channel
    is the last of them where there is one. With `comparers`, networks trained for this part, their mean log odds are
    added to the logarithm of the rule's map, as independent evidence is: the networks know which differences are gloss,
    the rule does not err where nothing like it was trained.
    """

    reference: Reference
    expected: ExpectedResidual
    difference: Difference = field(default=difference_channels)
    comparers: tuple[Comparer, ...] = ()

    @torch.no_grad()
    def anomaly_map(
        self,
        photo: Float[Tensor, "height width rgb=3"],
        photo_alpha: Float[Tensor, "height width"],
        render: Render,
        camera: Camera,
    ) -> AnomalyMap:
        """The map of `photo` against `render`, both at `camera` and over the same background. `render` must hold depth.

        `photo_alpha` is the part's share of each photo pixel, ones where unknown.
        """
        channels = self.difference(photo, render.rgb)
        expected = expectation(self.reference, self.expected, camera)
        known = expected.evidence >= EVIDENCE_PX
        relative = relative_channels(channels, expected)
        rule = combine(relative, known)
        if not self.comparers:
            return rule
        assert render.depth is not None
        compared = Compared(photo, photo_alpha, render.rgb, render.alpha, render.depth, channels, expected)
        values = F.softplus(compare(self.comparers, compared) + rule_logit(rule.values)) * known
        return AnomalyMap(values, known, image_score(values))


def rule_logit(rule: Float[Tensor, "height width"]) -> Float[Tensor, "height width"]:
    """What the rule's map adds to the log odds: nothing where it is about 1, which good photos leave."""
    return RULE_WEIGHT * (rule + RULE_BASE).log()


def relative_channels(
    channels: Float[Tensor, "channel height width"], expected: Expectation
) -> Float[Tensor, "relative height width"]:
    """The unsigned channels and a backbone's over floor + expected deviation: about 1 is what good photos leave."""
    floors = channels.new_tensor([*FLOORS, FEATURE_FLOOR])
    chosen = [*range(UNSIGNED), *range(UNSIGNED + 1, len(channels))]
    floor = floors[: len(chosen), None, None]
    return channels[chosen] / (floor + expected.deviation[chosen])


def combine(
    relative: Float[Tensor, "channel height width"], known: Bool[Tensor, "height width"]
) -> AnomalyMap:
    """The geometric mean of the smoothed channels, each raised by BASE, less BASE; and its score.

    The geometric mean asks that all channels agree: gloss changes colour but not contrast, a slipped edge contrast but not
    the tolerant colour. Zero where the images are equal or nothing is known.
    """
    sigma = max(SMOOTH_PX * max(known.shape) / 400, 0.5)
    smooth = blur((relative * known)[None], sigma)[0].clamp_min(0)
    values = ((smooth + BASE).prod(dim=0) ** (1.0 / len(relative)) - BASE) * known
    return AnomalyMap(values, known, image_score(values))


def image_score(values: Float[Tensor, "height width"]) -> float:
    """Mean of the hottest SCORED_SHARE of the pixels, four at least."""
    count = min(values.numel(), max(4, round(SCORED_SHARE * values.numel())))
    return float(torch.topk(values.reshape(-1), count).values.double().mean())
