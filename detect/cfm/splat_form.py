"""CFM on a splat reference: networks that know what each place of this part looks like in photos, and what they are worth.

In the main line it is a detector as `detect.anomaly_map.DifferenceDetector`: alone, or joined with the difference, whose map
is raised where the networks are surprised too. Good views that a network was not trained on give the level of its map and the
limits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from detect.anomaly_map import EVIDENCE_PX, SMOOTH_PX, AnomalyMap, Detector, image_score
from detect.calibrate import Calibration, Difficulty, attainable_rate, calibrate, fit_difficulty
from detect.cfm.features2d import HANDCRAFTED, PhotoExtractor, load_photo_extractor
from detect.cfm.mapping import MappingPair
from detect.cfm.score import Distances, ScoreConfig, fused
from detect.cfm.splat_cells import Cells, at_pixels, cells_of
from detect.difference import blur
from detect.expected import ExpectedResidual, expectation
from prepare.camera import Camera
from prepare.errors import InputError
from recon.rasterize import Render
from recon.reference import Reference

JOINED_POWER = 0.5  # of the networks' map in the joined one
JOINED_BASE = 0.1  # added to it before, so that what the networks expect is not silenced altogether
LEAST_LEVEL = 1e-3

SplatDetectorName = Literal["cfm", "difference+cfm"]
SplatFusion = Literal["photo", "shape", "product", "sum", "max"]


@dataclass(frozen=True)
class SplatFormConfig:
    """How the networks of a splat reference are trained."""

    photo: str = HANDCRAFTED
    """Features of the photo and of the render, a name of `detect.cfm.features2d.load_photo_extractor`."""
    fusion: SplatFusion = "photo"
    """The map: photo: how unlike its prediction the photo is (D2); shape: the way back (D3); or both. What the map does not ask
    is not trained."""
    steps: int = 600
    """Steps of the optimiser, for each network."""
    rows: int = 2048
    """Cells of a step."""
    rate: float = 1e-3
    """Learning rate of Adam; it falls to zero as a cosine."""
    least_hidden: int = 192
    """Width of the networks' middle, at least."""
    seed: int = 0
    """Of the weights and of all draws."""


@dataclass(frozen=True)
class GoodView:
    """What a good view says of the limits, judged by networks that were not trained on it."""

    name: str
    score: float  # of the networks' map
    ratio: float  # score of the joined map over the difference's
    angle_deg: float  # to the nearest view that the splats were fitted to


@dataclass(frozen=True)
class SplatForm:
    """What a training leaves."""

    config: SplatFormConfig
    pairs: tuple[MappingPair, ...]  # all judge a new photo, their maps averaged
    level: (
        float  # median of the map over good views' cells, of networks that had not seen them; the map's unit
    )
    good: tuple[GoodView, ...]
    held_out: bool  # the good views were kept from the splats too, not from the networks alone
    about: Mapping[str, Any] = field(default_factory=dict)  # plain values


@torch.no_grad()
def departure(pairs: Sequence[MappingPair], cells: Cells, fusion: SplatFusion) -> Float[Tensor, "side side"]:
    """How far each cell is from what its counterpart predicts, mean over the networks; 0 where nothing is compared."""
    return departure_of(pairs, cells.photo[cells.valid], cells.shape[cells.valid], cells.valid, fusion)


@torch.no_grad()
def departure_of(
    pairs: Sequence[MappingPair],
    photo: Float[Tensor, "rows photo_width"],
    shape: Float[Tensor, "rows shape_width"],
    valid: Bool[Tensor, "side side"],
    fusion: SplatFusion,
) -> Float[Tensor, "side side"]:
    """As `departure`, from the features of the valid cells."""
    total = torch.zeros(valid.shape)
    for pair in pairs:
        to_photo, to_shape = torch.zeros(valid.shape), torch.zeros(valid.shape)
        to_photo[valid], to_shape[valid] = pair.distances(photo, shape)
        total += fused(Distances(to_photo, to_shape, valid), ScoreConfig(fusion, smooth=False))
    return total / len(pairs)


@dataclass(frozen=True)
class SplatFormDetector:
    """What the networks did not expect of a photo, in units of what good photos leave."""

    reference: Reference
    expected: ExpectedResidual  # of the reference: says what its photos showed
    form: SplatForm
    extractor: PhotoExtractor

    @classmethod
    def open(cls, reference: Reference, expected: ExpectedResidual, form: SplatForm) -> SplatFormDetector:
        """The detector, with its features' network.

        Raises: MissingPartError where that lacks its weights.
        """
        return cls(reference, expected, form, load_photo_extractor(form.config.photo))

    def relative(
        self,
        photo: Float[Tensor, "height width rgb=3"],
        photo_alpha: Float[Tensor, "height width"],
        render: Render,
        camera: Camera,
    ) -> Float[Tensor, "height width"]:
        """The smoothed map, about 1 on good photos' parts; on the CPU."""
        cells = cells_of(self.reference, self.extractor, photo, photo_alpha, render, camera)
        return self.relative_of(departure(self.form.pairs, cells, self.form.config.fusion), *photo.shape[:2])

    def relative_of(
        self, apart: Float[Tensor, "side side"], height: int, width: int
    ) -> Float[Tensor, "height width"]:
        """As `relative`, from the cells' departure."""
        sigma = max(SMOOTH_PX * max(height, width) / 400, 0.5)
        return blur(at_pixels(apart / self.form.level, height, width)[None, None], sigma)[0, 0]

    @torch.no_grad()
    def anomaly_map(
        self,
        photo: Float[Tensor, "height width rgb=3"],
        photo_alpha: Float[Tensor, "height width"],
        render: Render,
        camera: Camera,
    ) -> AnomalyMap:
        """As `detect.anomaly_map.DifferenceDetector.anomaly_map`."""
        known = expectation(self.reference, self.expected, camera).evidence >= EVIDENCE_PX
        values = self.relative(photo, photo_alpha, render, camera).to(known.device) * known
        return AnomalyMap(values, known, image_score(values))


@dataclass(frozen=True)
class JoinedDetector:
    """The difference's map times a power of the networks': what both find stands out, what the networks expect recedes."""

    difference: Detector
    networks: SplatFormDetector

    @torch.no_grad()
    def anomaly_map(
        self,
        photo: Float[Tensor, "height width rgb=3"],
        photo_alpha: Float[Tensor, "height width"],
        render: Render,
        camera: Camera,
    ) -> AnomalyMap:
        """As `detect.anomaly_map.DifferenceDetector.anomaly_map`."""
        base = self.difference.anomaly_map(photo, photo_alpha, render, camera)
        return joined(base, self.networks.relative(photo, photo_alpha, render, camera))


def joined(base: AnomalyMap, relative: Float[Tensor, "height width"]) -> AnomalyMap:
    """`base` with its values times (relative + JOINED_BASE) ** JOINED_POWER."""
    values = base.values * (relative.to(base.values) + JOINED_BASE).clamp_min(0) ** JOINED_POWER
    return AnomalyMap(values, base.known, image_score(values))


def calibration_of(
    name: SplatDetectorName, form: SplatForm, base: Calibration, reference: Reference
) -> Calibration:
    """The limit of a detector of `form`, at the false-alarm rate of the difference's calibration `base` (or the least that the
    good views support, if that is more).

    Of the joined detector a good photo's score is its score in `base` times what joining changes on the reference's own view.
    Good photos of which there is no view (of `calibrate --good`) take the views' median instead.

    Raises: InputError without good views.
    """
    if not form.good:
        raise InputError(
            f"reference {reference.name}: CFM has no good view with a score; train it again with `splatad train cfm`"
        )
    if name == "difference+cfm":
        return _joined_calibration(form, base)
    scores = [view.score for view in form.good]
    angles = [view.angle_deg for view in form.good]
    difficulty = Difficulty()
    if form.held_out:
        difficulty = fit_difficulty(scores, angles, reference.usual_view_deg)
    made = calibrate(
        [score / difficulty.at(angle) for score, angle in zip(scores, angles, strict=True)],
        [view.name for view in form.good],
        max(base.false_alarm_rate, attainable_rate(len(scores))),
        base.belief,
        source="held-out" if form.held_out else "cross-fitted",
        detector=name,
        difficulty=difficulty,
    )
    if form.held_out:
        return made
    return replace(made, note=f"{made.note}; {SPLATS_KNEW}")


SPLATS_KNEW = (
    "the networks had not seen these photos but the splats had: new photos score a little higher, and more of them than "
    "asked for may be NG"
)


def _joined_calibration(form: SplatForm, base: Calibration) -> Calibration:
    ratios = {view.name: view.ratio for view in form.good}
    usual = float(np.median(list(ratios.values())))
    made = calibrate(
        [
            score * ratios.get(name, usual)
            for name, score in zip(base.good_names, base.good_scores, strict=True)
        ],
        base.good_names,
        base.false_alarm_rate,
        base.belief,
        source=base.source,
        detector=f"{base.detector}+cfm",
        difficulty=base.difficulty,
        lost=base.lost,
    )
    return replace(
        made,
        note=f"{made.note}; these are the difference's scores times what CFM changes on the reference's own views",
    )


def level_of(apart: Float[Tensor, " rows"]) -> float:
    """The unit of the map: the median over cells of good views."""
    return max(float(apart.double().median()), LEAST_LEVEL) if len(apart) else LEAST_LEVEL


def checked(view: GoodView) -> GoodView:
    """`view`. Raises: InputError where its figures are no numbers."""
    if not (math.isfinite(view.score) and math.isfinite(view.ratio)):
        raise InputError(f"{view.name}: a good photo, but its score is {view.score}; look at the photo")
    return view
