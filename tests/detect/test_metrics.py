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
    aupro,
    auroc,
    average_precision,
    binomial_interval,
    f1_max,
    object_shift_percent,
    pro_curve,
    roc_curve,
    rotation_error_deg,
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


def test_aupro_takes_photos_of_different_sizes() -> None:
    maps, masks = tiny_maps(3)
    # the same pixels, cut into photos of other sizes where no region is cut
    cut_maps = [maps[0], maps[1][:2], maps[1][2:], maps[2], maps[3][:, :5], maps[3][:, 5:]]
    cut_masks = [masks[0], masks[1][:2], masks[1][2:], masks[2], masks[3][:, :5], masks[3][:, 5:]]
    assert aupro(cut_maps, cut_masks) == pytest.approx(aupro(maps, masks), abs=1e-12)


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
