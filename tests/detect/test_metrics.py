"""Metrics against values worked out by hand, brute force over every threshold, and scikit-learn."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import ndimage, stats
from scipy.spatial.transform import Rotation
from sklearn import metrics as sklearn_metrics

from detect.metrics import (
    ProCurve,
    aupimo,
    aupro,
    aupro_of_99,
    auroc,
    auroc_error,
    average_precision,
    binomial_interval,
    f1_max,
    object_shift_percent,
    pro_curve,
    pro_curve_of_99,
    ranking,
    recall_at_false_alarms,
    roc_curve,
    rotation_error_deg,
    threshold_for_false_alarms,
    translation_error,
)
from prepare.camera import look_at


def tied_samples(seed: int, count: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Scores on a coarse grid (many ties) that lean towards the label."""
    rng = np.random.default_rng(seed)
    labels = rng.random(count) < 0.3
    return np.round(rng.normal(labels * 0.8, 1.0), 1), labels


def tiny_maps(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Four 9 x 8 maps with ties; the last is a good photo; diagonal neighbours belong to one region."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((4, 9, 8), dtype=bool)
    masks[0, 1:3, 1:3] = True
    masks[0, 3, 3] = True  # touches the block above at a corner only
    masks[0, 7, 0:2] = True
    masks[1, 4, 4] = True
    masks[2, 0:8, 5:8] = True
    return np.round(rng.normal(masks * 0.7, 0.6), 1), masks


def aupro_by_brute_force(maps: np.ndarray, masks: np.ndarray, limit: float) -> float:
    """The definition, threshold by threshold and region by region."""
    regions = []
    for number, mask in enumerate(masks):
        labelled, count = ndimage.label(mask, structure=np.ones((3, 3)))
        regions += [(number, labelled == index) for index in range(1, count + 1)]
    points = [(0.0, 0.0)]
    for threshold in np.unique(maps)[::-1]:
        found = maps >= threshold
        overlaps = [found[number][region].mean() for number, region in regions]
        points.append((found[~masks].mean(), float(np.mean(overlaps))))
    area = 0.0
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x0 >= limit or x1 == x0:
            continue
        end = min(x1, limit)
        y_end = y0 + (y1 - y0) * (end - x0) / (x1 - x0)
        area += (end - x0) * (y0 + y_end) / 2
    return area / limit


def test_auroc_of_a_hand_counted_example_with_a_tie() -> None:
    # pairs (defect, good): 3>1, 3>2, 2>1 won, 2=2 half: 3.5 of 4
    assert auroc(np.array([1.0, 2.0, 2.0, 3.0]), np.array([0, 0, 1, 1])) == 3.5 / 4


@pytest.mark.parametrize("seed", range(5))
def test_auroc_is_the_mann_whitney_statistic_and_scikit_learns(seed: int) -> None:
    scores, labels = tied_samples(seed)
    pairs = scores[labels][:, None] - scores[~labels][None, :]
    by_pairs = ((pairs > 0) + 0.5 * (pairs == 0)).mean()
    assert auroc(scores, labels) == pytest.approx(by_pairs, abs=1e-12)
    assert auroc(scores, labels) == pytest.approx(sklearn_metrics.roc_auc_score(labels, scores), abs=1e-12)


def test_roc_curve_of_all_equal_scores_is_the_diagonal() -> None:
    curve = roc_curve(np.ones(5), np.array([1, 0, 1, 0, 0]))
    np.testing.assert_array_equal(curve.fpr, [0, 1])
    np.testing.assert_array_equal(curve.tpr, [0, 1])
    assert curve.area == 0.5


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_is_scikit_learns(seed: int) -> None:
    scores, labels = tied_samples(seed)
    expected = sklearn_metrics.average_precision_score(labels, scores)
    assert average_precision(scores, labels) == pytest.approx(expected, abs=1e-12)


def test_average_precision_by_hand() -> None:
    # from the top: defect (P 1, R 1/2), good, defect (P 2/3, R 1): 1/2 * 1 + 1/2 * 2/3
    labels = np.array([True, False, True])
    assert average_precision(np.array([3.0, 2.0, 1.0]), labels) == pytest.approx(1 / 2 + 1 / 3)


@pytest.mark.parametrize("seed", range(5))
def test_f1_max_is_the_best_over_every_threshold(seed: int) -> None:
    scores, labels = tied_samples(seed)
    by_threshold = {float(t): sklearn_metrics.f1_score(labels, scores >= t) for t in np.unique(scores)}
    f1, threshold = f1_max(scores, labels)
    assert f1 == pytest.approx(max(by_threshold.values()), abs=1e-12)
    assert by_threshold[threshold] == pytest.approx(f1, abs=1e-12)


def test_torch_and_numpy_give_the_same_figures() -> None:
    scores, labels = tied_samples(7)
    as_torch = torch.from_numpy(scores), torch.from_numpy(labels)
    for metric in (auroc, average_precision, f1_max):
        assert metric(*as_torch) == metric(scores, labels)
    maps, masks = tiny_maps(7)
    assert aupro(torch.from_numpy(maps), torch.from_numpy(masks)) == aupro(maps, masks)


@pytest.mark.parametrize("limit", [0.01, 0.05, 0.3, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_aupro_is_the_brute_force_one(seed: int, limit: float) -> None:
    maps, masks = tiny_maps(seed)
    assert aupro(maps, masks, limit) == pytest.approx(aupro_by_brute_force(maps, masks, limit), abs=1e-12)


def test_aupro_by_hand_weighs_regions_alike_and_cuts_at_the_limit() -> None:
    # Regions of 1 and 2 pixels, 4 defect-free ones. From the top: the single pixel (PRO 1/2, FPR 0), a good
    # one (1/2, 1/4), one of the pair (3/4, 1/4), a good one (3/4, 1/2), the other of the pair, two good ones.
    one_map = np.array([[9.0, 8.0, 7.0, 5.0, 6.0, 4.0, 3.0]])
    mask = np.array([[True, False, True, True, False, False, False]])
    curve = pro_curve(one_map[None], mask[None])
    np.testing.assert_allclose(curve.fpr, [0, 0, 1 / 4, 1 / 4, 1 / 2, 1 / 2, 3 / 4, 1])
    np.testing.assert_allclose(curve.pro, [0, 1 / 2, 1 / 2, 3 / 4, 3 / 4, 1, 1, 1])
    assert curve.area_to(0.25) == pytest.approx(1 / 2)
    assert curve.area_to(0.3) == pytest.approx((0.25 * 0.5 + 0.05 * 0.75) / 0.3)


def test_area_is_interpolated_where_a_tie_crosses_the_limit() -> None:
    curve = ProCurve(fpr=np.array([0.0, 1.0]), pro=np.array([0.0, 1.0]))
    assert curve.area_to(0.3) == pytest.approx(0.15)


def test_a_perfect_map_has_aupro_one() -> None:
    _, masks = tiny_maps(0)
    assert aupro(masks.astype(float), masks, 0.05) == pytest.approx(1.0, abs=1e-12)


def aupro_of_99_by_brute_force(maps: np.ndarray, masks: np.ndarray, limit: float) -> float:
    """The papers' definition in words: the score of each 98th of the good pixels, and every region looked at anew."""
    regions = []
    for number, mask in enumerate(masks):
        labelled, count = ndimage.label(mask, structure=np.ones((3, 3)))
        regions += [maps[number][labelled == index] for index in range(1, count + 1)]
    good = sorted(maps[~masks].tolist())
    points = [(1.0, 1.0)]
    for i in range(99):
        place = int(i * (len(good) - 1) / 98)
        overlaps = [np.mean([score > good[place] for score in region]) for region in regions]
        points.append((1 - (place + 1) / len(good), float(np.mean(overlaps))))
    points.reverse()
    area = 0.0
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x0 >= limit or x1 == x0:
            continue
        end = min(x1, limit)
        area += (end - x0) * (y0 + y0 + (y1 - y0) * (end - x0) / (x1 - x0)) / 2
    return area / limit


@pytest.mark.parametrize("limit", [0.01, 0.05, 0.3, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_aupro_of_99_is_the_brute_force_one_with_ties(seed: int, limit: float) -> None:
    maps, masks = tiny_maps(seed)
    expected = aupro_of_99_by_brute_force(maps, masks, limit)
    assert aupro_of_99(maps, masks, limit) == pytest.approx(expected, abs=1e-12)
    assert aupro_of_99(torch.from_numpy(maps), torch.from_numpy(masks), limit) == pytest.approx(expected)


def test_aupro_of_99_by_hand_ranks_ties_and_finds_only_what_scores_more() -> None:
    # Good 1, 2, 2, 3; regions of 2 px (3, 5) and of 1 px (2). Places 0, 0, ... 1, ... 2, ... 3 (the last alone).
    one_map = np.array([[3.0, 5.0, 1.0, 2.0, 0.0, 2.0, 2.0, 3.0]])
    mask = np.array([[True, True, False, True, False, False, False, False]])
    one_map[0, 4] = 1.5  # between the regions: good 1, 1.5, 2, 2, 3
    curve = pro_curve_of_99(one_map[None], mask[None])
    by_rate = {round(f, 3): p for f, p in zip(curve.fpr, curve.pro, strict=True)}
    # > 3: half of the pair. > 2: the pair. > 1.5 and > 1: all.
    assert by_rate == pytest.approx({0.0: 0.25, 0.2: 0.5, 0.4: 0.5, 0.6: 1.0, 0.8: 1.0, 1.0: 1.0})
    assert curve.area_to(0.2) == pytest.approx(0.375)
    assert curve.area_to(0.3) == pytest.approx((0.2 * 0.375 + 0.1 * 0.5) / 0.3)


def test_aupro_of_99_is_the_closed_form_of_a_known_curve() -> None:
    # Good scores are the ranks; a defect's pixels lie so that PRO(f) = f^(1/2): the trapezoid through f = i / 98 is exact.
    n = 98 * 250 + 1
    good = np.arange(1, n + 1, dtype=float)
    places = (1 - (np.arange(20_000) + 0.5) ** 2 / 20_000**2) * n
    maps = [np.concatenate([good, places])[None]]
    masks = [(np.arange(n + 20_000) >= n)[None]]
    knots = np.arange(99) / 98
    for limit in (0.01, 0.05, 0.3):
        grid = np.append(knots[knots < limit], limit)
        expected = np.trapezoid(np.interp(grid, knots, np.sqrt(knots)), grid) / limit
        assert aupro_of_99(maps, masks, limit) == pytest.approx(expected, abs=2e-3)
        assert aupro(maps, masks, limit) == pytest.approx(2 / 3 * limit**0.5, abs=2e-3)
    # Nothing found at rate 0: the area to 0.01 is 0.49 of what is found at 1/98.
    assert aupro_of_99(maps, masks, 0.01) == pytest.approx(0.49 * 98**-0.5, abs=2e-3)


def test_both_forms_of_aupro_call_a_perfect_map_one_and_refuse_the_same() -> None:
    _, masks = tiny_maps(0)
    assert aupro_of_99(masks.astype(float), masks, 0.01) == pytest.approx(1.0, abs=1e-12)
    with pytest.raises(ValueError, match="without any"):
        aupro_of_99(np.zeros((2, 3, 3)), np.zeros((2, 3, 3), dtype=bool))
    with pytest.raises(ValueError, match="1 of 9 scores are NaN"):
        aupro_of_99(
            np.full((1, 3, 3), 1.0) + np.where(np.eye(3) * [1, 0, 0], np.nan, 0), np.eye(3, dtype=bool)[None]
        )


def test_aupro_takes_photos_of_different_sizes() -> None:
    maps, masks = tiny_maps(3)
    # the same pixels, cut into photos of other sizes where no region is cut
    cut_maps = [maps[0], maps[1][:2], maps[1][2:], maps[2], maps[3][:, :5], maps[3][:, 5:]]
    cut_masks = [masks[0], masks[1][:2], masks[1][2:], masks[2], masks[3][:, :5], masks[3][:, 5:]]
    assert aupro(cut_maps, cut_masks) == pytest.approx(aupro(maps, masks), abs=1e-12)


# ---------------------------------------------------------------------------------------------------------- AUPIMO


def good_and_defective(
    seed: int, decimals: int
) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Three good maps of two sizes, two defective maps and their masks; the fewer decimals, the more ties."""
    rng = np.random.default_rng(seed)
    good = [np.round(rng.normal(0, 1, shape), decimals) for shape in ((20, 30), (20, 30), (10, 12))]
    masks = [np.zeros((20, 30), dtype=bool) for _ in range(2)]
    masks[0][3:9, 4:8] = True
    masks[1][11:13, 20:29] = True
    return good, [np.round(rng.normal(1.5 * mask, 1.0), decimals) for mask in masks], masks


def aupimo_by_brute_force(
    good: list[np.ndarray], one_map: np.ndarray, mask: np.ndarray, lower: float, upper: float
) -> float:
    """The definition on a fine grid of log10 f: at each f, TPR on the straight line between the thresholds beside it."""
    thresholds = np.unique(np.concatenate([m.ravel() for m in [*good, one_map]]))[::-1]
    fpr = np.array([0.0] + [np.mean([(m >= t).mean() for m in good]) for t in thresholds])
    tpr = np.array([0.0] + [(one_map[mask] >= t).mean() for t in thresholds])
    edges = np.linspace(math.log10(lower), math.log10(upper), 20_001)
    middles = 10 ** ((edges[1:] + edges[:-1]) / 2)
    heights = []
    for f in middles:
        after = int(np.argmax(fpr >= f))  # the first point at or beyond f
        x0, x1 = fpr[after - 1], fpr[after]
        heights.append(tpr[after - 1] + (tpr[after] - tpr[after - 1]) * (f - x0) / (x1 - x0))
    return float(np.mean(heights))


def test_aupimo_by_hand() -> None:
    # 100 good pixels scoring 1 to 100: false positive rate 0.01 at 100, 0.02 at 99, 0.03 at 98, ...
    good = [np.arange(1.0, 101.0).reshape(10, 10)]
    # Defect pixels at 200 (found at once), at 99.5 (found once f is above 0.01), 98.5 (above 0.02) and 0.
    one_map = np.array([[200.0, 99.5, 98.5, 0.0, 500.0]])
    mask = np.array(
        [[True, True, True, True, False]]
    )  # the good pixel of the defective photo has no part in it
    # From f = 0.01 to 0.02 half of it is found, from 0.02 to 0.04 three quarters: means over log f.
    expected = (0.5 * math.log(2) + 0.75 * math.log(2)) / math.log(4)
    assert aupimo(good, [one_map], [mask], (0.01, 0.04)) == pytest.approx([expected], abs=1e-12)
    # A bound between two rates cuts the piece there.
    expected = (0.5 * math.log(0.02 / 0.015) + 0.75 * math.log(0.03 / 0.02)) / math.log(2)
    assert aupimo(good, [one_map], [mask], (0.015, 0.03)) == pytest.approx([expected], abs=1e-12)


def test_a_tie_of_good_and_defective_pixels_is_a_straight_line_in_the_false_positive_rate() -> None:
    # 1 of 10 good pixels scores 3; then 4 good ones and the whole defect tie at 2: TPR = (f - 0.1) / 0.4 to f = 0.5.
    good = [np.array([[3.0, 2.0, 2.0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0]])]
    one_map, mask = np.array([[2.0, 2.0]]), np.ones((1, 2), dtype=bool)
    # integral of (f - 0.1) / 0.4 / f from 0.1 to 0.5
    expected = ((0.5 - 0.1) / 0.4 - 0.1 / 0.4 * math.log(5)) / math.log(5)
    assert aupimo(good, [one_map], [mask], (0.1, 0.5)) == pytest.approx([expected], abs=1e-12)


@pytest.mark.parametrize("decimals", [1, 6])
@pytest.mark.parametrize("bounds", [(0.01, 0.1), (0.02, 0.9)])
@pytest.mark.parametrize("seed", range(3))
def test_aupimo_is_the_brute_force_one(seed: int, bounds: tuple[float, float], decimals: int) -> None:
    good, maps, masks = good_and_defective(seed, decimals)
    expected = [aupimo_by_brute_force(good, *pair, *bounds) for pair in zip(maps, masks, strict=True)]
    found = aupimo(good, maps, masks, bounds)
    assert found == pytest.approx(expected, abs=2e-4)  # the grid's own error
    assert 0 < found.min() < found.max() <= 1


def test_good_photos_of_other_sizes_weigh_alike_in_aupimo() -> None:
    # One false positive of 4 pixels and none of 16: (1/4 + 0) / 2, not 1 of 20.
    good = [np.array([[9.0, 0.0, 0.0, 0.0]]), np.zeros((4, 4))]
    mask = np.ones((1, 1), dtype=bool)
    with pytest.raises(ValueError, match=r"smallest above 0 is 0\.12"):
        aupimo(good, [np.ones((1, 1))], [mask], (0.1, 1.0))
    assert aupimo(good, [np.ones((1, 1))], [mask], (0.125, 1.0)) == pytest.approx([1.0])
    assert aupimo(good, [np.full((1, 1), -1.0)], [mask], (0.125, 1.0)) == pytest.approx([0.0])


def test_aupimo_needs_enough_good_pixels_for_its_lower_bound_and_says_so() -> None:
    rng = np.random.default_rng(0)
    mask = np.ones((3, 3), dtype=bool)
    few, enough = rng.random((1, 300, 300)), rng.random((1, 320, 320))
    with pytest.raises(
        ValueError, match=r"90000 pixels of 1 good photos reach no .* 1e-05, .* 1\.1e-05; give more"
    ):
        aupimo(few, [np.ones((3, 3))], [mask])
    assert aupimo(enough, [np.full((3, 3), 2.0)], [mask]) == pytest.approx([1.0])  # 102400 do
    with pytest.raises(ValueError, match="tie"):  # a flat map has no curve at small rates, however large
        aupimo(np.zeros((1, 400, 400)), [np.ones((3, 3))], [mask])


def test_aupimo_is_anomalibs() -> None:
    functional = pytest.importorskip("anomalib.metrics.pimo.functional", reason="anomalib is not installed")
    rng = np.random.default_rng(0)
    masks = torch.zeros(6, 200, 200, dtype=torch.bool)
    masks[4, 20:60, 30:50] = True
    masks[5, 100:110, 100:180] = True
    maps = torch.from_numpy(rng.normal(3.0 * masks.numpy(), 1.0))
    bounds = (1e-3, 1e-1)  # many points of its sampled curve lie between them
    theirs = functional.aupimo_scores(maps, masks, fpr_bounds=bounds)[4][4:].numpy()
    assert aupimo(maps[:4], maps[4:], masks[4:], bounds) == pytest.approx(theirs, abs=2e-3)


# ------------------------------------------------------------------------------------ recall at fixed false alarms


def test_recall_at_fixed_false_alarms_by_hand() -> None:
    scores = np.array([1.0, 2.0, 3.0, 4.0, 3.5, 4.0, 5.0])
    labels = np.array([0, 0, 0, 0, 1, 1, 1])
    # None of the four good ones may be above: threshold 4, and the defective one tied with it is not found.
    assert recall_at_false_alarms(scores, labels, 0.24) == (1 / 3, 4.0, 0.0)
    # One may: threshold 3.
    assert recall_at_false_alarms(scores, labels, 0.25) == (1.0, 3.0, 0.25)
    assert recall_at_false_alarms(scores, labels, 1.0) == (1.0, -math.inf, 1.0)


def test_tied_good_scores_are_never_more_false_alarms_than_allowed() -> None:
    good = np.array([1.0, 5.0, 5.0, 5.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    assert threshold_for_false_alarms(good, 0.2) == 5.0  # two of three ties cannot be told from the third
    assert threshold_for_false_alarms(good, 0.3) == 1.0
    assert (
        threshold_for_false_alarms(np.arange(100.0), 0.29) == 70.0
    )  # though 0.29 * 100 is 28.999... in doubles


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.05, 0.5])
@pytest.mark.parametrize("seed", range(3))
def test_the_threshold_is_the_lowest_that_keeps_the_rate(seed: int, rate: float) -> None:
    scores, labels = tied_samples(seed)
    good = scores[~labels]
    allowed = [t for t in np.unique(good) if (good > t).mean() <= rate]
    recall, threshold, false_alarms = recall_at_false_alarms(scores, labels, rate)
    assert threshold == min(allowed)
    assert recall == (scores[labels] > min(allowed)).mean()
    assert false_alarms == (good > min(allowed)).mean() <= rate


def test_one_sort_gives_the_same_figures_as_three() -> None:
    scores, labels = tied_samples(3)
    expected = (auroc(scores, labels), average_precision(scores, labels), f1_max(scores, labels).f1)
    assert ranking(scores, labels) == expected


@pytest.mark.parametrize("seed", range(3))
def test_pixel_figures_of_maps_are_scikit_learns(seed: int) -> None:
    maps, masks = tiny_maps(seed)
    found = ranking(maps.ravel(), masks.ravel())
    assert found.auroc == pytest.approx(sklearn_metrics.roc_auc_score(masks.ravel(), maps.ravel()), abs=1e-12)
    expected = sklearn_metrics.average_precision_score(masks.ravel(), maps.ravel())
    assert found.average_precision == pytest.approx(expected, abs=1e-12)
    by_threshold = [sklearn_metrics.f1_score(masks.ravel(), maps.ravel() >= t) for t in np.unique(maps)]
    assert found.f1 == pytest.approx(max(by_threshold), abs=1e-12)


ONE_MAP, ONE_MASK = np.zeros((1, 3, 3)), np.ones((1, 3, 3), dtype=bool)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: auroc(np.array([1.0, 2.0]), np.array([1, 1])), "none is good"),
        (lambda: auroc(np.array([1.0, 2.0]), np.array([0, 0])), "none is defective"),
        (lambda: auroc(np.array([1.0, math.nan]), np.array([0, 1])), "NaN"),
        (lambda: auroc(np.array([]), np.array([], dtype=bool)), "no scores"),
        (lambda: auroc(np.array([1.0]), np.array([0, 1])), "one label per score"),
        (lambda: average_precision(np.array([1.0]), np.array([0])), "average precision"),
        (lambda: f1_max(np.array([1.0]), np.array([0])), "F1"),
        (lambda: aupro(np.zeros((2, 3, 3)), np.zeros((2, 3, 3), dtype=bool)), "without any"),
        (lambda: aupro(np.zeros((2, 3, 3)), np.ones((2, 3, 3), dtype=bool)), "defective everywhere"),
        (lambda: aupro(np.zeros((2, 3, 3)), np.ones((1, 3, 3), dtype=bool)), "one mask per map"),
        (lambda: aupro(np.zeros((1, 3, 3)), np.ones((1, 3, 4), dtype=bool)), "resize"),
        (lambda: pro_curve(*tiny_maps(0)).area_to(0.0), "limit"),
        (lambda: aupimo([], ONE_MAP, ONE_MASK), "needs good photos"),
        (lambda: aupimo(ONE_MAP, ONE_MAP, ONE_MASK[:0], (0.5, 1.0)), "one mask per map"),
        (lambda: aupimo(ONE_MAP + np.nan, ONE_MAP, ONE_MASK, (0.5, 1.0)), "NaN"),
        (lambda: aupimo(np.arange(9.0).reshape(1, 3, 3), ONE_MAP + np.nan, ONE_MASK, (0.5, 1.0)), "NaN"),
        (lambda: aupimo(np.arange(9.0).reshape(1, 3, 3), ONE_MAP, ~ONE_MASK, (0.5, 1.0)), "shows no defect"),
        (lambda: aupimo(np.arange(9.0).reshape(1, 3, 3), ONE_MAP, ONE_MASK[:, :2], (0.5, 1.0)), "resize"),
        (lambda: aupimo(ONE_MAP, ONE_MAP, ONE_MASK, (0.1, 0.1)), "bounds"),
        (lambda: recall_at_false_alarms(np.array([1.0]), np.array([1]), 0.05), "none is good"),
        (lambda: recall_at_false_alarms(np.array([1.0]), np.array([0]), 0.05), "none is defective"),
        (lambda: threshold_for_false_alarms(np.array([1.0]), 1.5), "rate"),
        (lambda: threshold_for_false_alarms(np.array([]), 0.5), "no scores"),
        (lambda: binomial_interval(3, 2), "successes"),
        (lambda: binomial_interval(0, 0), "successes"),
        (lambda: binomial_interval(1, 2, 1.0), "confidence"),
    ],
)
def test_what_is_not_defined_is_refused_in_words(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("degrees", [0.0, 1e-9, 1e-5, 0.3, 90.0, 179.999999, 180.0])
def test_rotation_error_is_the_angle_of_a_known_turn(degrees: float) -> None:
    truth = torch.eye(4, dtype=torch.float64)
    truth[:3, :3] = torch.from_numpy(Rotation.from_rotvec([0.3, -1.1, 0.7]).as_matrix())
    axis = np.array([2.0, -1.0, 0.5]) / np.linalg.norm([2.0, -1.0, 0.5])
    estimate = truth.clone()
    turn = Rotation.from_rotvec(axis * math.radians(degrees)).as_matrix()
    estimate[:3, :3] = torch.from_numpy(turn) @ truth[:3, :3]
    error = float(rotation_error_deg(estimate, truth))
    assert error == pytest.approx(degrees, rel=1e-5, abs=1e-13)


def test_rotation_error_of_single_precision_matrices_is_below_a_millidegree_at_zero() -> None:
    matrix = torch.eye(4)
    matrix[:3, :3] = torch.from_numpy(Rotation.from_rotvec([0.3, -1.1, 0.7]).as_matrix())
    assert float(rotation_error_deg(matrix, matrix)) < 1e-5


def test_translation_error_is_the_distance_of_the_camera_centres_and_works_in_batches() -> None:
    up, target = torch.tensor([0.0, 0.0, 1.0]), torch.zeros(3)
    first = look_at(torch.tensor([4.0, 0.0, 0.0]), target, up)
    second = look_at(torch.tensor([0.0, 3.0, 0.0]), target, up)
    errors = translation_error(torch.stack([first, second]), torch.stack([second, second]))
    torch.testing.assert_close(errors, torch.tensor([5.0, 0.0], dtype=torch.float64), atol=1e-5, rtol=0)


def test_object_shift_ignores_a_turn_about_the_object_and_counts_a_slide() -> None:
    up, target = torch.tensor([0.0, 0.0, 1.0]), torch.zeros(3)
    truth = look_at(torch.tensor([4.0, 0.0, 0.0]), target, up)
    around = look_at(torch.tensor([0.0, 4.0, 0.0]), target, up)
    assert float(object_shift_percent(around, truth)) == pytest.approx(0.0, abs=1e-4)
    slid = truth.clone()
    slid[0, 3] += 0.2  # 0.2 of a distance of 4
    assert float(object_shift_percent(slid, truth)) == pytest.approx(5.0, abs=1e-4)
    # about the point (2, 0, 0), half as far away, the same slide is twice as much
    assert float(object_shift_percent(slid, truth, torch.tensor([2.0, 0.0, 0.0]))) == pytest.approx(
        10.0, abs=1e-4
    )


def test_binomial_interval_inverts_the_binomial_tails() -> None:
    low, high = binomial_interval(3, 20)
    assert stats.binom.sf(2, 20, low) == pytest.approx(0.025)  # P(at least 3) at the lower bound
    assert stats.binom.cdf(3, 20, high) == pytest.approx(0.025)  # P(at most 3) at the upper bound


def test_binomial_interval_of_no_failures_is_the_closed_form() -> None:
    assert binomial_interval(0, 46) == (0.0, pytest.approx(1 - 0.025 ** (1 / 46)))
    assert binomial_interval(46, 46) == (pytest.approx(0.025 ** (1 / 46)), 1.0)


def test_the_error_of_an_area_of_one_half_is_mann_whitneys() -> None:
    # Variance of U / (m n) under equal distributions: (m + n + 1) / (12 m n).
    assert auroc_error(0.5, 8, 12) == pytest.approx(math.sqrt(21 / (12 * 8 * 12)))
    assert auroc_error(0.9, 40, 40) < auroc_error(0.9, 10, 10)
    assert auroc_error(0.9, 0, 5) == 1.0
