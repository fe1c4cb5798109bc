"""How good are scores, maps and poses? Exact: every distinct score is a threshold, tied scores move together.

Labels and masks are true (or nonzero) where there is a defect, and a higher score means more anomalous. A rate
that the input does not define (one class missing, nothing given) is a ValueError that says so, never a NaN in a
table. Arrays may be torch or numpy; the work is done in numpy on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Integer
from numpy.typing import NDArray
from scipy import ndimage, stats
from scipy.integrate import trapezoid
from torch import Tensor

Scores = Float[np.ndarray, "scores"] | Float[Tensor, "scores"]
Labels = (
    Bool[np.ndarray, "labels"]
    | Integer[np.ndarray, "labels"]
    | Bool[Tensor, "labels"]
    | Integer[Tensor, "labels"]
)
Map = Float[np.ndarray, "_height _width"] | Float[Tensor, "_height _width"]
Mask = (
    Bool[np.ndarray, "_height _width"]
    | Integer[np.ndarray, "_height _width"]
    | Bool[Tensor, "_height _width"]
    | Integer[Tensor, "_height _width"]
)
# Photos of one run may differ in size: a sequence of maps, or one stacked array.
Maps = Sequence[Map] | Float[np.ndarray, "_images _height _width"] | Float[Tensor, "_images _height _width"]
Masks = (
    Sequence[Mask]
    | Bool[np.ndarray, "_images _height _width"]
    | Integer[np.ndarray, "_images _height _width"]
    | Bool[Tensor, "_images _height _width"]
    | Integer[Tensor, "_images _height _width"]
)

AUPIMO_BOUNDS = (1e-5, 1e-4)  # false positive rates, as its authors propose
PAPER_THRESHOLDS = 99  # of AUPRO in CFM's evaluation
TOUCHING = np.ones((3, 3), dtype=bool)  # 8-connected: pixels that share a corner belong to one region


@dataclass(frozen=True)
class RocCurve:
    """The ROC curve as points from (0, 0) to (1, 1); a slanted piece between two of them is a tie."""

    fpr: Float[np.ndarray, " points"]  # share of good samples called defective, in [0, 1], rising
    tpr: Float[np.ndarray, " points"]  # share of defective samples called defective, in [0, 1], rising

    @property
    def area(self) -> float:
        """AUROC in [0, 1]."""
        return float(trapezoid(self.tpr, self.fpr))


class BestF1(NamedTuple):
    """F1 in [0, 1] and the threshold that reaches it: call defective what scores at or above it."""

    f1: float
    threshold: float


class Ranking(NamedTuple):
    """How well scores tell defective from good, each in [0, 1]."""

    auroc: float
    average_precision: float
    f1: float  # the best over thresholds


class RecallAt(NamedTuple):
    """What is found when at most so many good samples may be called defective."""

    recall: float  # share of the defective samples above the threshold, [0, 1]
    threshold: float  # call defective what scores above it
    false_alarms: float  # share of the good samples above it, [0, the rate asked for]


@dataclass(frozen=True)
class ProCurve:
    """Per-region overlap against false positive rate, from rate 0 to (1, 1), a point per threshold."""

    fpr: Float[np.ndarray, " points"]  # share of defect-free pixels at or above the threshold, [0, 1], rising
    pro: Float[np.ndarray, " points"]  # share of a defect's pixels found, mean over defects, [0, 1], rising

    def area_to(self, limit: float) -> float:
        """AUPRO in [0, 1]: mean per-region overlap over false positive rates from 0 to `limit` in (0, 1]."""
        if not 0 < limit <= 1:
            raise ValueError(f"AUPRO limit: a false positive rate above 0 and up to 1 is needed, got {limit}")
        inside = int(np.searchsorted(self.fpr, limit, side="right"))
        fpr, pro = self.fpr[:inside], self.pro[:inside]
        if inside < len(self.fpr) and fpr[-1] < limit:
            # The curve crosses the limit between two thresholds: cut the straight piece there.
            x0, x1 = self.fpr[inside - 1], self.fpr[inside]
            y0, y1 = self.pro[inside - 1], self.pro[inside]
            fpr = np.append(fpr, limit)
            pro = np.append(pro, y0 + (y1 - y0) * (limit - x0) / (x1 - x0))
        return float(trapezoid(pro, fpr) / limit)


def roc_curve(scores: Scores, labels: Labels) -> RocCurve:
    """The ROC curve of `scores`, rates in [0, 1]. O(n log n).

    Raises: ValueError where a score is NaN or one of the two classes is missing.
    """
    true_positives, false_positives, _ = _counts_by_threshold(scores, labels)
    return _roc_of_counts(true_positives, false_positives)


def auroc(scores: Scores, labels: Labels) -> float:
    """Probability in [0, 1] that a defective sample scores above a good one, ties counted half (Mann-Whitney).

    Raises: ValueError where a score is NaN or one of the two classes is missing.
    """
    return roc_curve(scores, labels).area


def auroc_error(area: float, defective: int, good: int) -> float:
    """Standard error of an area under the ROC curve from so many independent photos of each kind; 1 where one is missing.

    Source: Hanley and McNeil 1982, eq. 1 with their Q1 and Q2 (exponential scores).
    """
    if min(defective, good) < 1:
        return 1.0
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    variance = area * (1 - area) + (defective - 1) * (q1 - area**2) + (good - 1) * (q2 - area**2)
    return math.sqrt(max(0.0, variance) / (defective * good))


def average_precision(scores: Scores, labels: Labels) -> float:
    """Area in [0, 1] under the precision-recall steps: sum of gain in recall x precision over thresholds.

    Raises: ValueError where a score is NaN or no sample is defective.
    """
    true_positives, false_positives, _ = _counts_by_threshold(scores, labels)
    return _average_precision_of_counts(true_positives, false_positives)


def ranking(scores: Scores, labels: Labels) -> Ranking:
    """AUROC, average precision and best F1 for the price of one sort: for maps of many millions of pixels.

    Raises: ValueError where a score is NaN or one of the two classes is missing.
    """
    true_positives, false_positives, _ = _counts_by_threshold(scores, labels)
    area = _roc_of_counts(true_positives, false_positives).area
    return Ranking(
        area,
        _average_precision_of_counts(true_positives, false_positives),
        float(_f1_of_counts(true_positives, false_positives).max()),
    )


def threshold_for_false_alarms(good_scores: Scores, rate: float) -> float:
    """The lowest threshold that at most the share `rate` in [0, 1] of the good samples score above.

    Strictly above: samples tied with the threshold are not called defective, so that a tie among the good ones
    cannot push the share over `rate`. It is one of the scores; -inf where all of them may be false alarms.

    Raises: ValueError without scores, for a NaN, or a rate outside [0, 1].
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"false alarms: a rate from 0 to 1 is needed, got {rate}")
    values = _array(good_scores)
    order, _ = _descending(values)
    allowed = math.floor(rate * values.size + 1e-9)  # 0.29 * 100 is 28.999...
    return -math.inf if allowed >= values.size else float(values[order[allowed]])


def recall_at_false_alarms(scores: Scores, labels: Labels, rate: float) -> RecallAt:
    """Share of the defective samples found when at most the share `rate` of the good ones raises a false alarm.

    With n good samples the share can only be a multiple of 1/n: below 1/n none may, and the recall is that above
    the highest good score.

    Raises: ValueError as `threshold_for_false_alarms`, or where one of the two classes is missing.
    """
    values, defective = _array(scores), _array(labels).astype(bool)
    _need_both_classes("recall at fixed false alarms", values, defective)
    threshold = threshold_for_false_alarms(values[~defective], rate)
    above = values > threshold
    return RecallAt(float(above[defective].mean()), threshold, float(above[~defective].mean()))


def f1_max(scores: Scores, labels: Labels) -> BestF1:
    """The best F1 over all thresholds, in [0, 1], and the highest threshold that reaches it.

    The threshold is chosen with the labels in hand: a bound on what these scores allow, no rule for new photos.

    Raises: ValueError where a score is NaN or no sample is defective.
    """
    true_positives, false_positives, thresholds = _counts_by_threshold(scores, labels)
    f1 = _f1_of_counts(true_positives, false_positives)
    best = int(np.argmax(f1))
    return BestF1(float(f1[best]), float(thresholds[best]))


def pro_curve(maps: Maps, masks: Masks) -> ProCurve:
    """Per-region overlap against false positive rate over all pixels of all images, good ones too. O(n log n).

    A region is an 8-connected component of one image's mask; each weighs the same whatever its size.

    Source: Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021, section 5.1; every distinct
    score is a threshold here, no fixed grid.
    Raises: ValueError where maps and masks do not pair up, a score is NaN, or one kind of pixel is missing.
    """
    scores, region_of_pixel, sizes = _pixels_by_region(maps, masks)
    order, last_of_tie = _descending(scores)
    ordered = region_of_pixel[order]
    false_positives = np.cumsum(ordered == 0)
    overlap = np.cumsum(1.0 / sizes[ordered]) / (len(sizes) - 1)
    fpr = false_positives[last_of_tie] / false_positives[-1]
    pro = np.minimum(overlap[last_of_tie], 1.0)
    pro[-1] = 1.0  # every pixel of every region is found; the sum above is so up to rounding
    return ProCurve(fpr=np.concatenate([[0.0], fpr]), pro=np.concatenate([[0.0], pro]))


def pro_curve_of_99(maps: Maps, masks: Masks) -> ProCurve:
    """The curve as the papers on MVTec 3D-AD draw it, through 99 thresholds and (1, 1), a straight line from each to the next.

    The thresholds are the scores at places floor(i (n - 1) / 98), i = 0 .. 98, of the n defect-free pixels in rising order;
    the false positive rate there is 1 - (place + 1) / n, by rank even where scores tie; found is what scores strictly more.
    Rates are 1/98 apart, so that AUPRO to 0.01 is 0.51 PRO(0) + 0.49 PRO(1/98), below 0.5 for a map whose highest scores
    are good pixels however few: published figures saturate there. To compare with the papers; `pro_curve` for the rest.

    Source: the evaluation of Costanzino et al., "Multimodal Industrial Anomaly Detection by Crossmodal Feature Mapping",
    CVPR 2024, after that of MVTec 3D-AD (Bergmann et al. 2022), as specified; not their code.
    Raises: ValueError as `pro_curve`.
    """
    scores, region_of_pixel, sizes = _pixels_by_region(maps, masks)
    _need_numbers(scores)
    good = np.sort(scores[region_of_pixel == 0])
    places = np.linspace(0, good.size - 1, PAPER_THRESHOLDS, dtype=np.int64)  # truncates
    defective = region_of_pixel > 0
    order = np.argsort(scores[defective], kind="stable")[::-1]
    found = np.concatenate([[0.0], np.cumsum(1.0 / sizes[region_of_pixel[defective][order]])])
    above = order.size - np.searchsorted(scores[defective][order[::-1]], good[places], side="right")
    pro = np.minimum(found[above] / (len(sizes) - 1), 1.0)
    fpr = 1.0 - (places + 1) / good.size
    return ProCurve(fpr=np.append(fpr[::-1], 1.0), pro=np.append(pro[::-1], 1.0))


def aupro(maps: Maps, masks: Masks, limit: float = 0.3) -> float:
    """Area in [0, 1] under the per-region overlap up to the false positive rate `limit`, divided by `limit`.

    For several limits keep the curve: `pro_curve(maps, masks).area_to(limit)`.

    Raises: ValueError as `pro_curve` and `ProCurve.area_to`.
    """
    return pro_curve(maps, masks).area_to(limit)


def aupro_of_99(maps: Maps, masks: Masks, limit: float = 0.3) -> float:
    """Area in [0, 1] to the false positive rate `limit` under the papers' curve (`pro_curve_of_99`), divided by `limit`.

    Raises: ValueError as `pro_curve` and `ProCurve.area_to`.
    """
    return pro_curve_of_99(maps, masks).area_to(limit)


def aupimo(
    good_maps: Maps, maps: Maps, masks: Masks, bounds: tuple[float, float] = AUPIMO_BOUNDS
) -> Float[np.ndarray, " _images"]:
    """AUPIMO in [0, 1] of each defective photo: its share of found defect pixels at very few false positives.

    The mean, over the logarithm of the false positive rate f between `bounds`, of the photo's true positive rate;
    f at a threshold is the share of pixels at or above it, taken in each good photo and averaged over them, so
    defective photos have no part in it:

        AUPIMO = 1 / log(U / L)  integral from L to U of TPR(f) / f  df

    Integrated in closed form over every distinct score of the good photos; where scores of good and defective pixels
    tie, TPR is the straight line in f between the points beside the tie, as in `roc_curve`. The mean over the photos
    is the figure to print.

    Source: Bertoldo et al., "AUPIMO: Redefining Visual Anomaly Detection Benchmarks with High Speed and Low
    Tolerance", BMVC 2024. Its code samples thresholds and joins them by straight lines in log f; none here.
    Raises: ValueError where maps and masks do not pair up, a score is NaN, a photo's mask is empty, there is no good
    photo, or the lower bound cannot be reached: already the highest score of the good pixels costs more false
    positives than it (too few good pixels, or too many that tie), and the curve does not exist there.
    """
    lower, upper = bounds
    if not 0 < lower < upper <= 1:
        raise ValueError(f"AUPIMO bounds: 0 < lower < upper <= 1 is needed, got {lower} and {upper}")
    if len(maps) != len(masks):
        raise ValueError(f"AUPIMO: one mask per map is needed, got {len(maps)} maps and {len(masks)} masks")
    if len(good_maps) == 0:
        raise ValueError("AUPIMO: needs good photos, got none")
    flat = [_array(one_map).ravel() for one_map in good_maps]
    scores = np.concatenate(flat)
    order, last_of_tie = _descending(scores)
    weights = np.concatenate([np.full(one.size, 1.0 / (one.size * len(flat))) for one in flat])
    fpr = np.minimum(np.cumsum(weights[order])[last_of_tie], 1.0)
    fpr[-1] = 1.0  # every pixel; the sum above is so up to rounding
    thresholds = scores[order[last_of_tie]]
    if fpr[0] > lower * (1 + 1e-9):
        raise ValueError(
            f"AUPIMO: the {scores.size} pixels of {len(flat)} good photos reach no false positive rate from 0 to "
            f"{lower:g}, the smallest above 0 is {fpr[0]:.2g}; give more good photos, or a map whose highest scores tie less"
        )
    # The pieces of the curve that reach into the bounds: from just above a threshold to the threshold itself.
    before = np.concatenate([[0.0], fpr[:-1]])
    inside = (fpr > lower) & (before < upper)
    from_fpr, to_fpr, thresholds = before[inside], fpr[inside], thresholds[inside]
    first, last = np.maximum(from_fpr, lower), np.minimum(to_fpr, upper)
    areas = []
    for number, (one_map, one_mask) in enumerate(zip(maps, masks, strict=True)):
        values, defect = _array(one_map), _array(one_mask).astype(bool)
        if values.shape != defect.shape:
            raise ValueError(f"AUPIMO: map {number} is {values.shape}, its mask {defect.shape}; resize one")
        found = np.sort(values[defect])
        if found.size == 0:
            raise ValueError(f"AUPIMO: mask {number} shows no defect; leave the photo out")
        if np.isnan(found[-1]):
            raise ValueError(f"AUPIMO: map {number} holds NaN; leave the photo out")
        above = 1 - np.searchsorted(found, thresholds, side="right") / found.size
        at_or_above = 1 - np.searchsorted(found, thresholds, side="left") / found.size
        slope = (at_or_above - above) / (to_fpr - from_fpr)
        offset = above - slope * from_fpr
        area = np.sum(offset * np.log(last / first) + slope * (last - first))
        areas.append(min(max(float(area) / math.log(upper / lower), 0.0), 1.0))
    return np.array(areas)


def rotation_error_deg(
    estimate: Float[Tensor, "*batch 4 4"], truth: Float[Tensor, "*batch 4 4"]
) -> Float[Tensor, "*batch"]:
    """Angle in degrees, in [0, 180], of the turn that takes camera `truth` to `estimate` (world_to_cam).

    atan2 of the turn's sine and cosine: accurate near 0 and near 180, where arccos loses half the digits.
    """
    turn = estimate[..., :3, :3].double() @ truth[..., :3, :3].double().mT
    axis = torch.stack(
        [
            turn[..., 2, 1] - turn[..., 1, 2],
            turn[..., 0, 2] - turn[..., 2, 0],
            turn[..., 1, 0] - turn[..., 0, 1],
        ],
        dim=-1,
    )
    twice_cosine = turn.diagonal(dim1=-2, dim2=-1).sum(-1) - 1
    return torch.rad2deg(torch.atan2(axis.norm(dim=-1), twice_cosine))


def translation_error(
    estimate: Float[Tensor, "*batch 4 4"], truth: Float[Tensor, "*batch 4 4"]
) -> Float[Tensor, "*batch"]:
    """Distance between the two cameras' centres, in world units (world_to_cam matrices)."""
    return (_centre(estimate) - _centre(truth)).norm(dim=-1)


def object_shift_percent(
    estimate: Float[Tensor, "*batch 4 4"],
    truth: Float[Tensor, "*batch 4 4"],
    origin: Float[Tensor, "xyz=3"] | None = None,
) -> Float[Tensor, "*batch"]:
    """How far the object's origin moves in the camera's frame, in percent of its true distance.

    Near 0 where a wrong rotation and a wrong camera centre cancel in the image; `origin` is in world
    coordinates, by default (0, 0, 0).
    """
    point = torch.zeros(3, dtype=torch.float64) if origin is None else origin.double()
    point = point.to(truth.device)
    seen, true = (
        (matrix[..., :3, :3].double() @ point + matrix[..., :3, 3].double()) for matrix in (estimate, truth)
    )
    return 100 * (seen - true).norm(dim=-1) / true.norm(dim=-1)


def binomial_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Lower and upper bound in [0, 1] of the rate behind `successes` of `trials`, exact (never too narrow).

    Source: Clopper and Pearson, Biometrika 26 (1934), through quantiles of the beta distribution.
    Raises: ValueError where trials < 1, successes lie outside [0, trials] or confidence outside (0, 1).
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(
            f"binomial interval: needs 0 <= successes <= trials, trials >= 1; got {successes} of {trials}"
        )
    if not 0 < confidence < 1:
        raise ValueError(f"binomial interval: confidence must lie between 0 and 1, got {confidence}")
    tail = (1 - confidence) / 2
    lower = 0.0 if successes == 0 else float(stats.beta.ppf(tail, successes, trials - successes + 1))
    upper = 1.0 if successes == trials else float(stats.beta.ppf(1 - tail, successes + 1, trials - successes))
    return lower, upper


def _centre(world_to_cam: Float[Tensor, "*batch 4 4"]) -> Float[Tensor, "*batch 3"]:
    matrix = world_to_cam.double()
    return -(matrix[..., :3, :3].mT @ matrix[..., :3, 3:])[..., 0]


def _array(values: NDArray | Tensor) -> NDArray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _pixels_by_region(
    maps: Maps, masks: Masks
) -> tuple[NDArray[np.floating], NDArray[np.int32], NDArray[np.float64]]:
    """Score and region of every pixel of all images (0: defect-free), and the regions' sizes in px, of 0 infinite."""
    if len(maps) != len(masks):
        raise ValueError(f"AUPRO: one mask per map is needed, got {len(maps)} maps and {len(masks)} masks")
    sizes: list[NDArray[np.floating]] = [np.array([np.inf])]  # a defect-free pixel adds no overlap
    region_of_pixel: list[NDArray[np.int32]] = []  # 1-based over all images
    scores: list[NDArray[np.floating]] = []
    regions_before = 0
    for number, (one_map, one_mask) in enumerate(zip(maps, masks, strict=True)):
        values, defect = _array(one_map), _array(one_mask).astype(bool)
        if values.shape != defect.shape:
            raise ValueError(f"AUPRO: map {number} is {values.shape}, its mask {defect.shape}; resize one")
        regions, count = ndimage.label(defect, structure=TOUCHING)
        flat = regions.ravel().astype(np.int32)
        sizes.append(np.bincount(flat, minlength=count + 1)[1:].astype(np.float64))
        flat[flat > 0] += regions_before
        region_of_pixel.append(flat)
        scores.append(values.ravel())
        regions_before += count
    if regions_before == 0:
        raise ValueError(f"AUPRO: needs a defect in at least one mask, got {len(masks)} masks without any")
    all_regions = np.concatenate(region_of_pixel)
    if not (all_regions == 0).any():
        raise ValueError("AUPRO: needs defect-free pixels, got masks that are defective everywhere")
    return np.concatenate(scores), all_regions, np.concatenate(sizes)


def _descending(scores: NDArray) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The order of falling scores, and in that order the position of the last of each run of equal scores."""
    if scores.size == 0:
        raise ValueError("metrics: no scores were given")
    _need_numbers(scores)
    order = np.argsort(scores)[::-1]
    ordered = scores[order]
    return order, np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), scores.size - 1)


def _counts_by_threshold(scores: Scores, labels: Labels) -> tuple[NDArray, NDArray, NDArray]:
    """True positives, false positives and the threshold, for every distinct score from the highest down."""
    values, defective = _array(scores), _array(labels).astype(bool)
    if values.shape != defective.shape:
        raise ValueError(
            f"metrics: one label per score is needed, got {values.shape} scores, {defective.shape} labels"
        )
    order, last_of_tie = _descending(values)
    true_positives = np.cumsum(defective[order])[last_of_tie]
    return true_positives, last_of_tie + 1 - true_positives, values[order[last_of_tie]]


def _roc_of_counts(true_positives: NDArray, false_positives: NDArray) -> RocCurve:
    if true_positives[-1] == 0 or false_positives[-1] == 0:
        missing = "defective" if true_positives[-1] == 0 else "good"
        raise ValueError(
            f"ROC: needs good and defective samples, got {true_positives[-1] + false_positives[-1]} samples"
            f" of which none is {missing}"
        )
    return RocCurve(
        fpr=np.concatenate([[0.0], false_positives / false_positives[-1]]),
        tpr=np.concatenate([[0.0], true_positives / true_positives[-1]]),
    )


def _average_precision_of_counts(true_positives: NDArray, false_positives: NDArray) -> float:
    _need_defects("average precision", true_positives, false_positives)
    precision = true_positives / (true_positives + false_positives)
    gains = np.diff(true_positives, prepend=0) / true_positives[-1]
    return float(np.sum(gains * precision))


def _f1_of_counts(true_positives: NDArray, false_positives: NDArray) -> NDArray:
    _need_defects("F1", true_positives, false_positives)
    return 2 * true_positives / (true_positives[-1] + true_positives + false_positives)


def _need_numbers(scores: NDArray) -> None:
    if np.isnan(scores).any():
        raise ValueError(
            f"metrics: {int(np.isnan(scores).sum())} of {scores.size} scores are NaN; leave them out first"
        )


def _need_both_classes(what: str, values: NDArray, defective: NDArray) -> None:
    if values.shape != defective.shape:
        raise ValueError(
            f"{what}: one label per score is needed, got {values.shape} scores, {defective.shape} labels"
        )
    if defective.all() or not defective.any():
        missing = "good" if defective.any() else "defective"
        raise ValueError(
            f"{what}: needs good and defective samples, got {values.size} of which none is {missing}"
        )


def _need_defects(what: str, true_positives: NDArray, false_positives: NDArray) -> None:
    if true_positives[-1] == 0:
        raise ValueError(
            f"{what}: needs defective samples, got {false_positives[-1]} samples of which none is"
        )
