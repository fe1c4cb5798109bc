"""Metrics of a detector over photos whose truth is known: of photos, of pixels, by the size of the defects, of verdicts.

Rates are percent. A figure that the photos do not allow is None, never a guess.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import ndimage
from torch import Tensor

from detect.metrics import (
    TOUCHING,
    aupimo,
    auroc,
    binomial_interval,
    pro_curve,
    ranking,
    recall_at_false_alarms,
    threshold_for_false_alarms,
)

GOOD = "good"
SIZES = (0.0, 25.0, 100.0, 400.0)  # px at 400 x 400: lower bounds of the bins of defect areas
SIZE_RATE = 0.05  # false alarms at which the defects of each size are counted as found
GROWN_PX = 2.0  # px at 400 x 400 by which a region is grown before its hottest pixel is looked for
PROTOCOL_PX = 224  # both sides of the maps and masks that SplatPose and its kin are measured on


@dataclass(frozen=True)
class Scored:
    """One photo's result beside its truth."""

    label: str  # "good" or the defect's type
    score: float
    values: Float[Tensor, "height width"]  # the map
    mask: Bool[Tensor, "height width"]  # the true defect at the map's size, all False for good photos
    true_mask: Bool[Tensor, "rows columns"] | None = None  # as the dataset has it; None where `mask` is that
    small: Float[Tensor, "224 224"] | None = None  # the map at 224 px of a detector that makes it there


@dataclass(frozen=True)
class Metrics:
    """Rates in percent; None where the photos do not allow the figure (only one kind of truth)."""

    photos: int
    image_auroc: float | None
    image_ap: float | None
    image_f1: float | None  # best over thresholds
    recall_01: float | None  # defective photos that score above all but at most 1 % of the good ones
    recall_05: float | None  # all but at most 5 %
    pixel_auroc: float | None
    pixel_ap: float | None
    pixel_f1: float | None
    aupro_30: float | None  # per-region overlap, false-positive rates to 0.3
    aupro_05: float | None  # to 0.05
    aupro_01: float | None  # to 0.01
    aupimo: (
        float | None
    )  # found share of each photo's defect, false-positive rates 1e-5 to 1e-4, mean over photos
    aupimo_missing: str  # why there is no aupimo; empty where there is


@dataclass(frozen=True)
class SizeMetrics:
    """What is found of defects of one size, areas in px scaled to photos of 400 x 400."""

    least_px: float
    below_px: float | None  # None: no upper end
    photos: int  # defective photos whose whole defect area lies in the range
    photos_found: int  # of these, scoring above the threshold that at most 5 % of the good photos pass
    regions: int  # 8-connected defects whose area lies in the range
    regions_found: (
        int  # of these, with the map inside (or 2 px beside) above what 5 % of good photos reach anywhere
    )

    @property
    def name(self) -> str:
        if self.below_px is None:
            return f">= {self.least_px:g} px"
        return f"< {self.below_px:g} px" if self.least_px == 0 else f"{self.least_px:g}-{self.below_px:g} px"


@dataclass(frozen=True)
class SmallMetrics:
    """Percent, by the protocol of SplatPose and its kin: maps and masks at 224 x 224 px."""

    image_auroc: float | None
    pixel_auroc: float | None
    aupro_30: float | None
    defects: int  # 8-connected regions of the masks as the dataset has them
    lost_defects: int  # of these, without a pixel at 224 px: nothing is measured of them
    lost_photos: int  # defective photos left with an empty mask


@dataclass(frozen=True)
class Share:
    """`count` of `of`, with the exact 95 % interval of the rate behind it; None where `of` is zero."""

    count: int
    of: int
    percent: float | None
    low: float | None  # percent
    high: float | None  # percent


@dataclass(frozen=True)
class VerdictMetrics:
    """What the verdicts are worth: a photo that is CANNOT TELL is neither right nor wrong."""

    cannot_tell: Share  # of all photos
    accurate: Share  # OK on good and NG on defective photos, of those with OK or NG
    found: Share  # NG of the defective photos
    false_alarms: Share  # NG of the good photos
    rate: float  # percent: false alarms that the threshold was set for

    @property
    def false_alarms_as_set(self) -> bool | None:
        """Whether the rate that was set lies in the interval of the rate that was seen; None without good photos."""
        seen = self.false_alarms
        if seen.low is None or seen.high is None:
            return None
        return seen.low <= self.rate <= seen.high


def evaluate(scored: Sequence[Scored], label: str | None = None) -> Metrics:
    """Metrics over all photos, or over the good ones and those with defect `label`. Exact: every score is a threshold."""
    used = _of(scored, label)
    defective = np.array([s.label != GOOD for s in used], dtype=bool)
    image_auroc = image_ap = image_f1 = recall_01 = recall_05 = None
    if defective.any() and not defective.all():
        scores = np.array([s.score for s in used])
        image_auroc, image_ap, image_f1 = (100 * figure for figure in ranking(scores, defective))
        recall_01 = 100 * recall_at_false_alarms(scores, defective, 0.01).recall
        recall_05 = 100 * recall_at_false_alarms(scores, defective, 0.05).recall
    pixel_auroc = pixel_ap = pixel_f1 = aupro_30 = aupro_05 = aupro_01 = None
    masked = [s for s in used if bool(s.mask.any())]
    if masked and not all(bool(s.mask.all()) for s in used):
        values = np.concatenate([s.values.numpy().reshape(-1) for s in used])
        truth = np.concatenate([s.mask.numpy().reshape(-1) for s in used])
        pixel_auroc, pixel_ap, pixel_f1 = (100 * figure for figure in ranking(values, truth))
        curve = pro_curve([s.values.numpy() for s in used], [s.mask.numpy() for s in used])
        aupro_30, aupro_05, aupro_01 = (100 * curve.area_to(limit) for limit in (0.3, 0.05, 0.01))
    per_photo, missing = None, "no photo with a defect mask"
    if masked:
        try:
            per_photo = aupimo(
                [s.values for s in used if s.label == GOOD],
                [s.values for s in masked],
                [s.mask for s in masked],
            )
            missing = ""
        except ValueError as error:
            missing = str(error)
    return Metrics(
        photos=len(used),
        image_auroc=image_auroc,
        image_ap=image_ap,
        image_f1=image_f1,
        recall_01=recall_01,
        recall_05=recall_05,
        pixel_auroc=pixel_auroc,
        pixel_ap=pixel_ap,
        pixel_f1=pixel_f1,
        aupro_30=aupro_30,
        aupro_05=aupro_05,
        aupro_01=aupro_01,
        aupimo=None if per_photo is None else 100 * float(per_photo.mean()),
        aupimo_missing=missing,
    )


def evaluate_by_size(scored: Sequence[Scored], label: str | None = None) -> list[SizeMetrics]:
    """What is found of the defects of each size of SIZES, over all of them or those of photos with defect `label`.

    Both thresholds come from the good photos alone: the one of scores, and for regions the one of the maps' maxima, so
    that a found region is one that a good photo would hardly ever show anywhere. Defective photos without a mask
    are left out. Empty without good photos.
    """
    good = [s for s in scored if s.label == GOOD]
    if not good:
        return []
    of_scores = threshold_for_false_alarms(np.array([s.score for s in good]), SIZE_RATE)
    of_maps = threshold_for_false_alarms(np.array([float(s.values.max()) for s in good]), SIZE_RATE)
    photos, regions = [], []  # (area, found)
    for one in scored:
        if one.label == GOOD or (label is not None and one.label != label) or not bool(one.mask.any()):
            continue
        found_regions = _regions(one, of_maps)
        photos.append((sum(area for area, _ in found_regions), one.score > of_scores))
        regions += found_regions
    rows = []
    for number, least in enumerate(SIZES):
        below = SIZES[number + 1] if number + 1 < len(SIZES) else None
        of_photos = [found for area, found in photos if least <= area and (below is None or area < below)]
        of_regions = [found for area, found in regions if least <= area and (below is None or area < below)]
        rows.append(
            SizeMetrics(least, below, len(of_photos), sum(of_photos), len(of_regions), sum(of_regions))
        )
    return rows


def evaluate_at_224(scored: Sequence[Scored], label: str | None = None) -> SmallMetrics:
    """The figures by the protocol of SplatPose and its kin, over all photos or the good ones and those with `label`.

    Maps are brought to 224 x 224 px bilinearly, averaging where they shrink; masks by the nearest pixel, which loses
    defects of a few pixels: these are counted. Scores stay as they are. The pixels of all photos are pooled, and
    AUPRO is over false-positive rates to 0.3.
    """
    used = _of(scored, label)
    maps, masks = [], []
    defects = lost_defects = lost_photos = 0
    for one in used:
        maps.append(_at_224(one))
        truth = one.mask if one.true_mask is None else one.true_mask
        numbered, count = ndimage.label(truth.numpy(), structure=TOUCHING)
        small = _nearest(numbered, PROTOCOL_PX)
        masks.append(small > 0)
        seen = len(np.unique(small[small > 0]))
        defects, lost_defects = defects + count, lost_defects + count - seen
        lost_photos += count > 0 and seen == 0
    defective = np.array([s.label != GOOD for s in used], dtype=bool)
    image_auroc = pixel_auroc = aupro_30 = None
    if defective.any() and not defective.all():
        image_auroc = 100 * auroc(np.array([s.score for s in used]), defective)
    if any(mask.any() for mask in masks) and not all(mask.all() for mask in masks):
        pixel_auroc = 100 * auroc(
            np.concatenate([m.ravel() for m in maps]), np.concatenate([m.ravel() for m in masks])
        )
        aupro_30 = 100 * pro_curve(maps, masks).area_to(0.3)
    return SmallMetrics(image_auroc, pixel_auroc, aupro_30, defects, lost_defects, lost_photos)


def evaluate_verdicts(
    verdicts: Sequence[tuple[str, str]], false_alarm_rate: float, label: str | None = None
) -> VerdictMetrics:
    """What verdicts are worth, of pairs (truth, verdict): "good" or the defect's type, and OK, NG or CANNOT TELL.

    `false_alarm_rate` in (0, 1) is what the threshold was set for; with `label` over the good photos and those with
    that defect.
    """
    used = [(truth, verdict) for truth, verdict in verdicts if label is None or truth in (GOOD, label)]
    good = [verdict for truth, verdict in used if truth == GOOD]
    bad = [verdict for truth, verdict in used if truth != GOOD]
    told = [(truth, verdict) for truth, verdict in used if verdict != "CANNOT TELL"]
    right = sum((truth == GOOD) == (verdict == "OK") for truth, verdict in told)
    return VerdictMetrics(
        cannot_tell=share(len(used) - len(told), len(used)),
        accurate=share(right, len(told)),
        found=share(bad.count("NG"), len(bad)),
        false_alarms=share(good.count("NG"), len(good)),
        rate=100 * false_alarm_rate,
    )


def share(count: int, of: int) -> Share:
    """`count` of `of` with its 95 % interval (Clopper and Pearson)."""
    if of == 0:
        return Share(count, of, None, None, None)
    low, high = binomial_interval(count, of)
    return Share(count, of, 100 * count / of, 100 * low, 100 * high)


def mask_at_map_size(
    mask: Bool[Tensor, "rows columns"], height: int, width: int
) -> Bool[Tensor, "height width"]:
    """A true mask at the map's size: a map pixel is defective where any mask pixel inside it is."""
    if tuple(mask.shape) == (height, width):
        return mask
    pooled = torch.nn.functional.adaptive_max_pool2d(mask[None, None].float(), (height, width))
    return pooled[0, 0] > 0


def _of(scored: Sequence[Scored], label: str | None) -> list[Scored]:
    return [s for s in scored if label is None or s.label in (GOOD, label)]


def _regions(one: Scored, threshold: float) -> list[tuple[float, bool]]:
    """Area in px at 400 x 400 of each true region of a photo, and whether the map in it exceeds `threshold`."""
    truth = one.mask if one.true_mask is None else one.true_mask
    rows, columns = truth.shape
    height, width = one.values.shape
    grow = max(1, round(GROWN_PX * (height * width) ** 0.5 / 400))
    numbered, count = ndimage.label(truth.numpy(), structure=TOUCHING)
    found = []
    for number in range(1, count + 1):
        region = torch.from_numpy(numbered == number)
        area = float(region.sum()) * 160_000 / (rows * columns)
        on_map = mask_at_map_size(region, height, width)[None, None].float()
        grown = torch.nn.functional.max_pool2d(on_map, 2 * grow + 1, stride=1, padding=grow)[0, 0] > 0
        found.append((area, float(one.values[grown].max()) > threshold))
    return found


def _at_224(one: Scored) -> np.ndarray:
    if one.small is not None:
        return one.small.numpy()
    size = (PROTOCOL_PX, PROTOCOL_PX)
    return torch.nn.functional.interpolate(
        one.values[None, None].float(), size, mode="bilinear", align_corners=False, antialias=True
    )[0, 0].numpy()


def _nearest(values: np.ndarray, side: int) -> np.ndarray:
    """`values` at `side` x `side` px, each the pixel under its centre, as Pillow's NEAREST."""
    rows, columns = (
        np.minimum(((np.arange(side) + 0.5) * size / side).astype(int), size - 1) for size in values.shape
    )
    return values[np.ix_(rows, columns)]
