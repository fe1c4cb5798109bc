"""OK, NG or CANNOT TELL, with the reasons."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from detect.anomaly_map import AnomalyMap
from detect.calibrate import Calibration
from pose.locate import Located

VerdictName = Literal["OK", "NG", "CANNOT TELL"]
MOST_UNKNOWN = 0.2  # share of the part in the photo that the reference never showed
SAID_UNKNOWN = 0.01  # from here on the share is told beside the verdict


@dataclass(frozen=True)
class Verdict:
    """What to do with the part."""

    name: VerdictName
    reasons: tuple[str, ...]  # plain sentences, at least one


def no_part_verdict(least_share: float) -> Verdict:
    """The verdict on a photo in which nothing stands out from the background."""
    return Verdict(
        "CANNOT TELL",
        (f"no part found: less than {least_share:.1%} of the photo differs from its background",),
    )


def decide(located: Located, anomaly: AnomalyMap, part_px: int, calibration: Calibration) -> Verdict:
    """The verdict on a photo with its camera, its map and the number of pixels that show the part.

    A pose that is not believed, or a part mostly unseen by the reference, is CANNOT TELL whatever the score.
    """
    if not located.believed:
        return Verdict("CANNOT TELL", located.reasons)
    unknown = float((~anomaly.known).sum()) / max(1, part_px)
    if unknown > MOST_UNKNOWN:
        return Verdict(
            "CANNOT TELL", (f"{unknown:.0%} of the part in the photo was not shown by any reference photo",)
        )
    if not math.isfinite(anomaly.score):
        return Verdict(
            "CANNOT TELL",
            (f"the anomaly score is {anomaly.score}: the photo holds values that are no colours",),
        )
    notes: tuple[str, ...] = (located.ambiguity,) if located.ambiguity else ()
    if unknown > SAID_UNKNOWN:
        notes += (
            f"{unknown:.0%} of the part in the photo was not shown by any reference photo: nothing is said of it",
        )
    ratio = anomaly.score / max(calibration.threshold, 1e-12)
    if anomaly.score > calibration.threshold:
        return Verdict(
            "NG",
            (
                f"anomaly score {anomaly.score:.2f}, {ratio:.1f} times the threshold {calibration.threshold:.2f}",
                *notes,
            ),
        )
    reason = f"anomaly score {anomaly.score:.2f}, below the threshold {calibration.threshold:.2f}"
    return Verdict("OK", (reason, *notes))
