"""One scale for all photos: a map in standard deviations of good photos that were not trained on, and a limit on it.

z = (S - m) / s, m and s the mean and the spread of S over the valid pixels of those photos. A photo scores its largest z. It
is NG above a limit that a new good photo passes with probability at most the rate asked for (split conformal prediction, as
`detect.calibrate`): m and s only shift and stretch all scores alike, so the limit's rate does not depend on them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import ndimage
from torch import Tensor

from detect.calibrate import USUAL_RATE, attainable_rate, check_attainable, rate_interval
from detect.cfm.score import Distances, ScoreConfig, anomaly_map
from detect.metrics import TOUCHING
from detect.verdict import Verdict
from prepare.errors import InputError, UsageError

LEAST_LIMIT = 1.0  # standard deviations: what nowhere rises so far above good photos' pixels is no defect
MOST_DIFFERENT = 0.8  # share of the part above the limit from which the photo shows something else altogether
LEAST_VALID, MOST_VALID = 0.5, 2.0  # times the fewest and the most valid pixels of a good photo
GROW_SHARE = 0.5  # a region found above the limit spreads to this share of it
LEAST_REGION_PX = 4  # at 224 x 224

GoodSource = Literal["validation", "cross-fitted"]


@dataclass(frozen=True)
class GoodPhoto:
    """What a good photo that was not trained on says of the scale, by plain numbers."""

    name: str
    peak: float  # the largest S
    pixels: int  # valid ones
    total: float  # sum of S over the valid pixels
    squares: float  # sum of its squares
    share: float  # of the pixels that are valid


@dataclass(frozen=True)
class Absolute:
    """The scale and the limit. Scores are in standard deviations (z)."""

    score: ScoreConfig  # the kind of map that this holds for
    mean: float  # of S
    spread: float  # of S
    false_alarm_rate: float  # asked for, in (0, 1)
    attainable_rate: float  # the smallest that so many photos support
    rate_interval: tuple[float, float]  # holds this very limit's rate 95 times in 100 calibrations
    limit: float  # z; a photo that scores more is NG
    source: GoodSource
    good: tuple[GoodPhoto, ...]

    @property
    def good_scores(self) -> tuple[float, ...]:
        """z of the good photos."""
        return tuple((photo.peak - self.mean) / self.spread for photo in self.good)

    @property
    def note(self) -> str:
        """Where the limit comes from, in words."""
        low, high = self.rate_interval
        where = "of the validation split" if self.source == "validation" else "each left out of a training"
        return (
            f"a good photo scores above the limit with probability at most {self.false_alarm_rate:.1%} (split conformal, "
            f"{len(self.good)} good photos, {where}; they support rates from {self.attainable_rate:.1%} up); 95 % interval of "
            f"the rate of this very limit: {low:.1%} to {high:.1%}"
        )

    def z_map(self, anomaly: Float[Tensor, "px px"]) -> Float[Tensor, "px px"]:
        """S in standard deviations of good photos' pixels."""
        return (anomaly - self.mean) / self.spread


@dataclass(frozen=True)
class Region:
    """A connected part of a photo that disagrees."""

    box: tuple[int, int, int, int]  # x0, y0, x1, y1 px, the last two exclusive
    area_px: int
    peak: float  # largest z
    mean: float  # mean z
    mask: Bool[Tensor, "px px"]


def good_photo(name: str, found: Distances, config: ScoreConfig) -> GoodPhoto:
    """What the map of a good photo says of the scale."""
    anomaly = anomaly_map(found, config)
    values = anomaly[found.valid].double()
    return GoodPhoto(
        name, float(anomaly.max()), len(values), float(values.sum()), float(values.square().sum()),
        float(found.valid.double().mean()),
    )  # fmt: skip


def absolute(
    found: Sequence[tuple[str, Distances]],
    config: ScoreConfig,
    false_alarm_rate: float | None = None,
    source: GoodSource = "validation",
) -> Absolute:
    """The scale and the limit from the names and distances of good photos, none of them trained on.

    Raises: as `absolute_of`.
    """
    if config.fusion == "zmean":
        config = replace(config, levels=levels_of([one for _, one in found]))
    return absolute_of(
        [good_photo(name, one, config) for name, one in found], config, false_alarm_rate, source
    )


def levels_of(found: Sequence[Distances]) -> tuple[float, float, float, float]:
    """Mean and spread of D2 and of D3 over the valid pixels of all photos; (0, 1) of each without any."""
    levels: list[float] = []
    for values in ([one.photo[one.valid] for one in found], [one.shape[one.valid] for one in found]):
        count = max(1, sum(len(some) for some in values))
        mean = sum(float(some.double().sum()) for some in values) / count
        square = sum(float(some.double().square().sum()) for some in values) / count
        levels += [mean, math.sqrt(max(0.0, square - mean**2)) or 1.0]
    return levels[0], levels[1], levels[2], levels[3]


def absolute_of(
    good: Sequence[GoodPhoto],
    config: ScoreConfig,
    false_alarm_rate: float | None = None,
    source: GoodSource = "validation",
) -> Absolute:
    """The scale and the limit that good photos, none of them trained on, give.

    `false_alarm_rate` None: 5 %, or the smallest that is attainable. Maps of several trainings (cross-fitted) come from
    networks that saw fewer photos than the final one: that errs towards fewer false alarms.

    Raises: InputError without photos or where a score is no number; UsageError for a rate that they cannot support.
    """
    if not good:
        raise InputError("calibration: no good photo that was not trained on; give a validation split")
    for photo in good:
        if not (math.isfinite(photo.peak) and math.isfinite(photo.total)):
            raise InputError(f"{photo.name}: a good photo, but its map holds no numbers; train again")
    if false_alarm_rate is not None and not 0 < false_alarm_rate < 1:
        raise UsageError(f"--false-alarm-rate {false_alarm_rate}: must lie between 0 and 1, for example 0.05")
    count = len(good)
    if false_alarm_rate is None:
        false_alarm_rate = max(USUAL_RATE, attainable_rate(count))
    check_attainable(count, false_alarm_rate)
    pixels = max(1, sum(photo.pixels for photo in good))
    mean = sum(photo.total for photo in good) / pixels
    variance = sum(photo.squares for photo in good) / pixels - mean**2
    spread = math.sqrt(variance) if variance > 1e-18 else 1e-9
    rank = math.ceil((count + 1) * (1 - false_alarm_rate) - 1e-9)
    peaks = sorted((photo.peak - mean) / spread for photo in good)
    return Absolute(
        config, mean, spread, false_alarm_rate, attainable_rate(count), rate_interval(count, false_alarm_rate),
        max(peaks[rank - 1], LEAST_LIMIT), source, tuple(good),
    )  # fmt: skip


def at_rate(scale: Absolute, false_alarm_rate: float | None) -> Absolute:
    """The same good photos at another rate. Raises: as `absolute_of`."""
    return absolute_of(scale.good, scale.score, false_alarm_rate, scale.source)


def regions(z_map: Float[Tensor, "px px"], limit: float) -> tuple[Region, ...]:
    """The connected places above `limit`, grown to half of it, strongest first."""
    values = z_map.cpu().numpy()
    labels, _ = ndimage.label(values > GROW_SHARE * limit, structure=TOUCHING)
    least = LEAST_REGION_PX * values.size / 224**2
    found = []
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        own = labels[box] == number
        inside = values[box][own]
        if inside.max() <= limit or own.sum() < least:
            continue
        mask = np.zeros(values.shape, bool)
        mask[box] = own
        rows, columns = box
        found.append(
            Region(
                (columns.start, rows.start, columns.stop, rows.stop), int(own.sum()), float(inside.max()),
                float(inside.mean()), torch.from_numpy(mask),
            )
        )  # fmt: skip
    return tuple(sorted(found, key=lambda region: (-region.peak, region.box)))


def decide(found: Distances, z_map: Float[Tensor, "px px"], scale: Absolute | None) -> Verdict:
    """OK, NG or CANNOT TELL of a photo, with the reasons.

    CANNOT TELL without a scale, where far fewer or far more pixels have points than in good photos (nothing shown, the ground
    not taken away), where most of the part disagrees (another part, another light), or for values that are no numbers.
    """
    if scale is None:
        return Verdict(
            "CANNOT TELL",
            (
                "no good photo was kept from the training, so there is no limit; train again with more good photos",
            ),
        )
    share = float(found.valid.double().mean())
    shares = [photo.share for photo in scale.good]
    if share < LEAST_VALID * min(shares):
        return Verdict(
            "CANNOT TELL",
            (
                f"only {share:.1%} of the photo has points, {min(shares):.1%} at least in good ones: is the part there?",
            ),
        )
    if share > MOST_VALID * max(shares):
        return Verdict(
            "CANNOT TELL",
            (
                f"{share:.1%} of the photo has points, {max(shares):.1%} at most in good ones: take the ground away as in "
                "the training's photos",
            ),
        )
    score = float(z_map.max())
    if not math.isfinite(score):
        return Verdict("CANNOT TELL", (f"the score is {score}: the photo or its points hold no numbers",))
    different = float((z_map[found.valid] > scale.limit).double().mean())
    if different > MOST_DIFFERENT:
        return Verdict(
            "CANNOT TELL",
            (
                f"{different:.0%} of the part disagrees with all good photos: another part, another light, or points of "
                "another sensor",
            ),
        )
    said = f"score {score:.2f} standard deviations"
    if score > scale.limit:
        return Verdict("NG", (f"{said}, {score / scale.limit:.1f} times the limit {scale.limit:.2f}",))
    return Verdict("OK", (f"{said}, not above the limit {scale.limit:.2f}",))


def as_json(scale: Absolute) -> dict[str, Any]:
    """Plain values; `from_json` reads them."""
    return asdict(scale)


def from_json(values: dict[str, Any]) -> Absolute:
    """What `as_json` gave. Raises: KeyError, TypeError or ValueError where it is something else."""
    score = dict(values["score"])
    levels = score["levels"]
    return Absolute(
        **{
            **values,
            "score": ScoreConfig(**{**score, "levels": None if levels is None else tuple(levels)}),
            "rate_interval": tuple(values["rate_interval"]),
            "good": tuple(GoodPhoto(**photo) for photo in values["good"]),
        }
    )
