"""From scores of good photos to a threshold with a chosen false-alarm rate, and to what a believable pose looks like.

Split conformal prediction (Vovk et al. 2005; Papadopoulos et al. 2002): with n scores of good photos that were not
fitted, the k-th smallest, k = ceil((n + 1)(1 - rate)), is passed by a new good photo with probability at most `rate`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy import optimize, stats

from pose.locate import CERTAIN, BeliefLimits, Located
from prepare.atomic_write import write_json
from prepare.errors import InputError, UsageError

LEAST_FOR_DIFFICULTY = 20  # good photos
WORST_SHARE = 0.05  # of the good photos may lie beyond what sets the limits of belief
USUAL_RATE = 0.05  # asked for where nobody says otherwise, as far as the good photos support it
FITTED_MARGIN = (
    1.5  # times the threshold where scores come from fitted photos: they look better than a new one will
)

# No threshold lies below this: a map of `detect.comparer` says there "a defect, one in twenty". Good photos that score next
# to nothing would else have every speck of dust called a defect.
LEAST_THRESHOLD = 0.05

# Where the scores come from: photos kept from the one fit; each from a fit without it; given photos, never fitted; fitted.
ScoreSource = Literal["held-out", "cross-fitted", "given", "fitted"]


@dataclass(frozen=True)
class Difficulty:
    """How much higher good photos score the farther they were taken from the nearest fitted photo.

    Gloss and see-through gaps that no photo showed grow with that angle. A photo kept from a grid of photos lies a whole
    step from its neighbours, a new photo half a step: without this the former would set a threshold that little exceeds.
    """

    base: float = 1.0
    per_square_degree: float = 0.0
    most_deg: float = 0.0  # beyond the angles that were seen it stays as it is there

    def at(self, angle_deg: float) -> float:
        """What a score is divided by: 1 up to the angle that is usual for a new photo, more beyond.

        Never less than 1: a see-through gap may open between one photo and the next, however near they are.
        """
        return max(1.0, self.base + self.per_square_degree * min(angle_deg, self.most_deg) ** 2)


@dataclass(frozen=True)
class Calibration:
    """What turns a score into a verdict."""

    false_alarm_rate: float  # asked for, in (0, 1)
    attainable_rate: float  # smallest rate that the number of good photos supports: 1 / (n + 1)
    rate_interval: tuple[float, float]  # holds the threshold's true rate 95 times in 100 calibrations
    threshold: float  # a photo scoring more is NG
    difficulty: Difficulty  # what the maps' scores are divided by
    good_scores: tuple[float, ...]  # of the good photos, so divided, in the order of the views
    good_names: tuple[str, ...]
    source: ScoreSource
    note: str  # the above in words
    belief: BeliefLimits
    detector: str  # which detector the scores are of
    lost: int = 0  # good photos without a score: their camera was not found


def calibrate(
    scores: Sequence[float],
    names: Sequence[str],
    false_alarm_rate: float | None,
    belief: BeliefLimits,
    *,
    source: ScoreSource,
    detector: str,
    difficulty: Difficulty | None = None,
    lost: int = 0,
) -> Calibration:
    """The threshold that a new good photo exceeds with probability at most `false_alarm_rate` (None: USUAL_RATE or the
    smallest that is attainable). `scores` are already divided by `difficulty`.

    The rate of one threshold, over all photos to come, varies from calibration to calibration as a Beta(n + 1 - k, k)
    variable (Vovk 2012, "Conditional validity of inductive conformal predictors"): `rate_interval` is its middle 95 %.
    All this holds for photos that come about as the good ones did. Reference photos on rings say nothing of the gaps that open
    between the rings (docs/results.md); good photos from the line itself do. Cross-fitted scores come from splats that saw
    fewer photos than the reference: that errs towards fewer false alarms.

    Raises: UsageError for a rate outside (0, 1), or below what the number of scores can support; InputError without
    scores, or for one that is not finite.
    """
    if false_alarm_rate is not None and not 0.0 < false_alarm_rate < 1.0:
        raise UsageError(f"--false-alarm-rate {false_alarm_rate}: must lie between 0 and 1, for example 0.05")
    if not scores:
        raise InputError(
            "no good photo could be scored; the reference cannot be calibrated, fit it from more photos"
        )
    for name, score in zip(names, scores, strict=True):
        if not math.isfinite(score):
            raise InputError(
                f"{name}: a good photo, but its score is {score}; look at the photo, then fit again"
            )
    n = len(scores)
    if false_alarm_rate is None:
        false_alarm_rate = max(USUAL_RATE, attainable_rate(n))
    check_attainable(n, false_alarm_rate)
    rank = _rank(n, false_alarm_rate)
    threshold = max(sorted(scores)[rank - 1], LEAST_THRESHOLD)
    interval = rate_interval(n, false_alarm_rate)
    note = (
        f"a good photo scores above the threshold with probability at most {false_alarm_rate:.1%} (split conformal, "
        f"{n} {source} good photos; {n} support rates from {attainable_rate(n):.1%} up); 95 % interval of the rate of "
        f"this very threshold: {interval[0]:.1%} to {interval[1]:.1%}"
    )
    if lost:
        note += f"; {lost} more were not found again by their camera and do not count"
    if source != "given":
        note += (
            "; this holds for photos from viewpoints like the reference's: for others, calibrate with --good"
        )
    if source == "fitted":
        note += "; the good photos were also fitted, so expect more false alarms: use --folds, or fit with more photos"
        threshold *= FITTED_MARGIN
    return Calibration(
        false_alarm_rate, attainable_rate(n), interval, threshold, difficulty or Difficulty(),
        tuple(scores), tuple(names), source, note, belief, detector, lost,
    )  # fmt: skip


def fit_difficulty(scores: Sequence[float], angles_deg: Sequence[float], usual_deg: float) -> Difficulty:
    """How the maps' scores of good photos grow with the angle to the nearest fitted photo.

    Non-negative least squares of base + slope * angle^2, the highest tenth of the scores cut off lest one photo rule.
    Normalised so that it is 1 at `usual_deg`. Dividing by it makes the score of normalised conformal prediction
    (Papadopoulos et al. 2011); its two numbers come from the scores that are then calibrated with, for which there are
    LEAST_FOR_DIFFICULTY at least: with fewer it is 1 for all.
    """
    if len(scores) < LEAST_FOR_DIFFICULTY or max(angles_deg) - min(angles_deg) < 1.0:
        return Difficulty()
    values, angles = np.asarray(scores, dtype=float), np.asarray(angles_deg, dtype=float)
    capped = np.minimum(values, np.quantile(values, 0.9))
    (base, slope), _ = optimize.nnls(np.stack([np.ones_like(angles), angles**2], axis=1), capped)
    most = float(angles.max())
    usual = base + slope * min(usual_deg, most) ** 2
    if usual <= 1e-9:
        return Difficulty()
    return Difficulty(float(base / usual), float(slope / usual), most)


def recalibrated(calibration: Calibration, false_alarm_rate: float | None) -> Calibration:
    """The same scores at another rate. Raises: as `calibrate`."""
    return calibrate(
        calibration.good_scores, calibration.good_names, false_alarm_rate, calibration.belief,
        source=calibration.source, detector=calibration.detector, difficulty=calibration.difficulty,
        lost=calibration.lost,
    )  # fmt: skip


def attainable_rate(photos: int) -> float:
    """The smallest false-alarm rate that the scores of so many good photos support."""
    return 1.0 / (photos + 1)


def check_attainable(photos: int, false_alarm_rate: float) -> None:
    """Raises: UsageError where `photos` good photos cannot support `false_alarm_rate`."""
    if false_alarm_rate < attainable_rate(photos) - 1e-9:
        needed = math.ceil(1.0 / false_alarm_rate - 1e-9) - 1
        raise UsageError(
            f"--false-alarm-rate {false_alarm_rate:g}: {photos} good photos support rates from "
            f"{attainable_rate(photos):.2%} up, {false_alarm_rate:.2%} needs {needed}; add photos, let every photo be "
            "scored with --folds, or ask for a higher rate"
        )


def rate_interval(photos: int, false_alarm_rate: float) -> tuple[float, float]:
    """Middle 95 % of the true false-alarm rate of a threshold calibrated on so many photos."""
    rank = _rank(photos, false_alarm_rate)
    spread = stats.beta(photos + 1 - rank, rank)
    return float(spread.ppf(0.025)), float(spread.ppf(0.975))


def conformal_p(calibration: Calibration, score: float) -> float:
    """The smallest false-alarm rate at which a photo of this score is NG, in (0, 1]; at least `attainable_rate`."""
    good = calibration.good_scores
    margin = FITTED_MARGIN if calibration.source == "fitted" else 1.0
    return (1 + sum(margin * other >= score for other in good)) / (len(good) + 1)


def _rank(photos: int, false_alarm_rate: float) -> int:
    return math.ceil((photos + 1) * (1.0 - false_alarm_rate) - 1e-9)


def calibrate_belief(located: Sequence[Located]) -> BeliefLimits:
    """Limits that good photos keep with room: defects also change pixels, so only gross disagreement may fail a pose.

    The inlier share may fall to 0.75 of the worst good photo's, the overlap to 0.12 below; never stricter than the
    defaults. The curve from limit to belief gives the worst good photo CERTAIN by each measure. Of twenty photos or more
    the worst WORST_SHARE do not count: the view that a fold left out of a corner says little of a new photo, and one of a
    hundred such would let wrong cameras pass.
    """
    default = BeliefLimits()
    if not located:
        return default

    def worst(values: Sequence[float]) -> float:
        return sorted(values)[int(WORST_SHARE * len(values))]

    worst_inliers = worst([result.inliers for result in located])
    worst_overlap = worst([result.overlap for result in located])
    inliers = max(0.3, min(default.least_inliers, 0.75 * worst_inliers))
    overlap = max(0.5, min(default.least_overlap, worst_overlap - 0.12))
    steepness = math.log(CERTAIN / (1.0 - CERTAIN))
    return BeliefLimits(
        least_inliers=inliers,
        least_overlap=overlap,
        least_in_frame=min(default.least_in_frame, 0.9 * worst([result.in_frame for result in located])),
        inliers_scale=max(0.005, (worst_inliers - inliers) / steepness),
        overlap_scale=max(0.005, (worst_overlap - overlap) / steepness),
    )


def save_calibration(path: Path, calibration: Calibration) -> None:
    """Write to JSON, atomically."""
    write_json(path, {"format": "splatad-calibration", "version": 3, **asdict(calibration)})


def load_calibration(path: Path) -> Calibration:
    """What `save_calibration` wrote.

    Raises: InputError where it is missing or damaged.
    """
    try:
        document: dict[str, Any] = json.loads(path.read_text("utf-8"))
        if document.pop("format") != "splatad-calibration" or document.pop("version") != 3:
            raise ValueError("of another version")
        document["difficulty"] = Difficulty(**document["difficulty"])
        document["belief"] = BeliefLimits(**document["belief"])
        document["good_scores"] = tuple(float(score) for score in document["good_scores"])
        document["good_names"] = tuple(document["good_names"])
        document["rate_interval"] = tuple(document["rate_interval"])
        document["threshold"] = float(document["threshold"])
        if not math.isfinite(document["threshold"]):
            raise ValueError(f"its threshold is {document['threshold']}")
        return Calibration(**document)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: the calibration cannot be read ({error}); run `splatad fit` again"
        ) from error
