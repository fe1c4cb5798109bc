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
from typing import Any

from pose.locate import CERTAIN, BeliefLimits, Located
from prepare.atomic_write import write_json
from prepare.errors import InputError, UsageError

EXTRAPOLATED_SIGMAS = (
    0.5  # how far beyond the highest good score the threshold goes where n is too small, in log sigmas
)


@dataclass(frozen=True)
class Calibration:
    """What turns a score into a verdict."""

    false_alarm_rate: float  # asked for, in (0, 1)
    attainable_rate: float  # smallest rate that the number of good photos supports: 1 / (n + 1)
    threshold: float  # a photo scoring more is NG
    good_scores: tuple[float, ...]  # of the good photos, in the order of the views
    good_names: tuple[str, ...]
    extrapolated: bool  # True where the rate asked for is below the attainable one
    held_out: bool  # False where the scores come from fitted photos, for want of others
    note: str  # the above in words
    belief: BeliefLimits
    detector: str  # which detector the scores are of


def calibrate(
    scores: Sequence[float],
    names: Sequence[str],
    false_alarm_rate: float,
    belief: BeliefLimits,
    *,
    held_out: bool,
    detector: str = "difference",
) -> Calibration:
    """The threshold that good photos pass with probability at most `false_alarm_rate`.

    Where there are too few good photos for that, the threshold lies above the highest score by a margin taken from
    their spread, and the result says so.

    Raises: UsageError for a rate outside (0, 1); InputError without scores, or for one that is not finite.
    """
    if not 0.0 < false_alarm_rate < 1.0:
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
    ordered = sorted(scores)
    n = len(ordered)
    attainable = 1.0 / (n + 1)
    rank = math.ceil((n + 1) * (1.0 - false_alarm_rate) - 1e-9)
    extrapolated = rank > n
    if extrapolated:
        logs = [math.log(max(score, 1e-9)) for score in ordered]
        mean = sum(logs) / n
        sigma = math.sqrt(sum((value - mean) ** 2 for value in logs) / max(1, n - 1)) if n > 1 else 0.3
        threshold = ordered[-1] * math.exp(EXTRAPOLATED_SIGMAS * max(sigma, 0.05))
        note = (
            f"{n} good photos support false-alarm rates down to {attainable:.1%}; for {false_alarm_rate:.1%} the "
            "threshold is extrapolated above the highest of them and carries no guarantee"
        )
    else:
        threshold = ordered[rank - 1]
        note = (
            f"a good photo scores above the threshold with probability at most {false_alarm_rate:.1%} "
            f"(split conformal, {n} good photos)"
        )
    if not held_out:
        note += "; the good photos were also fitted, so expect more false alarms: fit with more photos"
        threshold *= 1.5
    return Calibration(
        false_alarm_rate, attainable, threshold, tuple(scores), tuple(names), extrapolated, held_out, note, belief,
        detector,
    )  # fmt: skip


def calibrate_belief(located: Sequence[Located]) -> BeliefLimits:
    """Limits that good photos keep with room: defects also change pixels, so only gross disagreement may fail a pose.

    The inlier share may fall to 0.75 of the worst good photo's, the overlap to 0.12 below; never stricter than the
    defaults. The curve from limit to belief gives the worst good photo CERTAIN by each measure.
    """
    default = BeliefLimits()
    if not located:
        return default
    worst_inliers = min(result.inliers for result in located)
    worst_overlap = min(result.overlap for result in located)
    inliers = max(0.3, min(default.least_inliers, 0.75 * worst_inliers))
    overlap = max(0.5, min(default.least_overlap, worst_overlap - 0.12))
    steepness = math.log(CERTAIN / (1.0 - CERTAIN))
    return BeliefLimits(
        least_inliers=inliers,
        least_overlap=overlap,
        least_in_frame=min(default.least_in_frame, 0.9 * min(result.in_frame for result in located)),
        inliers_scale=max(0.005, (worst_inliers - inliers) / steepness),
        overlap_scale=max(0.005, (worst_overlap - overlap) / steepness),
    )


def save_calibration(path: Path, calibration: Calibration) -> None:
    """Write to JSON, atomically."""
    write_json(path, {"format": "splatad-calibration", "version": 1, **asdict(calibration)})


def load_calibration(path: Path) -> Calibration:
    """What `save_calibration` wrote.

    Raises: InputError where it is missing or damaged.
    """
    try:
        document: dict[str, Any] = json.loads(path.read_text("utf-8"))
        if document.pop("format") != "splatad-calibration" or document.pop("version") != 1:
            raise ValueError("of another version")
        document["belief"] = BeliefLimits(**document["belief"])
        document["good_scores"] = tuple(float(score) for score in document["good_scores"])
        document["good_names"] = tuple(document["good_names"])
        document["threshold"] = float(document["threshold"])
        if not math.isfinite(document["threshold"]):
            raise ValueError(f"its threshold is {document['threshold']}")
        return Calibration(**document)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: the calibration cannot be read ({error}); run `splatad fit` again"
        ) from error
