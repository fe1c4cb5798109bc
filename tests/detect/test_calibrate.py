"""Thresholds from good scores: order statistics by hand, the promised rate by simulation, files."""

import json
import math

import pytest
import torch

from detect.calibrate import (
    LEAST_THRESHOLD,
    Difficulty,
    calibrate,
    calibrate_belief,
    conformal_p,
    fit_difficulty,
    load_calibration,
    rate_interval,
    recalibrated,
    save_calibration,
)
from detect.metrics import binomial_interval
from pose.locate import BeliefLimits, Located
from pose.residual import Exposure
from prepare.camera import Camera
from prepare.errors import InputError, UsageError


def calibrated(scores, rate=0.05, source="held-out"):
    names = [f"good {i}" for i in range(len(scores))]
    return calibrate(scores, names, rate, BeliefLimits(), source=source, detector="comparer")


def shuffled(n):
    order = torch.randperm(n, generator=torch.Generator().manual_seed(n)).tolist()
    return [float(i + 1) for i in order]


@pytest.mark.parametrize(
    ("n", "rate", "kth_smallest"),
    [(19, 0.05, 19), (99, 0.05, 95), (99, 0.01, 99), (9, 0.1, 9), (9, 0.5, 5), (20, 0.05, 20)],
)
def test_threshold_is_the_order_statistic_counted_by_hand(n, rate, kth_smallest):
    result = calibrated(shuffled(n), rate)
    assert result.threshold == kth_smallest
    assert result.attainable_rate == pytest.approx(1 / (n + 1))
    assert f"{n} held-out good photos" in result.note


@pytest.mark.parametrize(
    ("n", "rate", "needed"), [(18, 0.05, 19), (1, 0.05, 19), (3, 0.2, 4), (98, 0.01, 99)]
)
def test_a_rate_that_the_photos_cannot_support_is_refused_with_what_it_needs(n, rate, needed):
    with pytest.raises(UsageError, match=rf"{n} good photos support rates from .*% up, .* needs {needed};"):
        calibrated(shuffled(n), rate)
    calibrated(shuffled(needed), rate)


def test_nobody_asking_gets_five_percent_or_the_least_that_the_photos_support():
    assert calibrated(shuffled(50), None).false_alarm_rate == 0.05
    few = calibrated(shuffled(9), None)
    assert few.false_alarm_rate == pytest.approx(0.1)
    assert few.threshold == 9


def test_the_interval_holds_the_rate_of_a_threshold_as_often_as_it_says():
    """Scores uniform in (0, 1): a threshold t has the true rate 1 - t."""
    generator = torch.Generator().manual_seed(3)
    low, high = rate_interval(39, 0.1)
    rates = [
        1.0 - calibrated(row, 0.1).threshold
        for row in torch.rand(2000, 39, generator=generator, dtype=torch.float64).tolist()
    ]
    inside = sum(low <= rate <= high for rate in rates)
    assert (
        binomial_interval(inside, 2000, confidence=0.999)[0]
        <= 0.95
        <= binomial_interval(inside, 2000, confidence=0.999)[1]
    )


def test_another_rate_takes_another_order_statistic_of_the_same_scores():
    first = calibrated(shuffled(99), 0.05)
    again = recalibrated(first, 0.01)
    assert (first.threshold, again.threshold) == (95, 99)
    assert recalibrated(again, 0.05) == first


def test_photos_that_were_not_found_are_told_also_at_another_rate():
    names = [str(i) for i in range(19)]
    first = calibrate(
        shuffled(19), names, 0.1, BeliefLimits(), source="cross-fitted", detector="comparer", lost=3
    )
    for one in (first, recalibrated(first, 0.2)):
        assert "3 more were not found again" in one.note
    assert "not found again" not in calibrated(shuffled(19)).note


def test_conformal_p_is_the_smallest_rate_at_which_the_score_is_too_high():
    calibration = calibrated(shuffled(19))
    assert conformal_p(calibration, 100.0) == pytest.approx(1 / 20)
    assert conformal_p(calibration, 18.5) == pytest.approx(2 / 20)
    assert conformal_p(calibration, 0.0) == 1.0
    for score in (3.5, 10.5, 18.5):
        p = conformal_p(calibration, score)
        assert score > recalibrated(calibration, p).threshold
        if p > 1 / 20:
            assert score <= recalibrated(calibration, p - 1 / 20).threshold


def test_good_photos_pass_the_promised_rate_of_times():
    generator = torch.Generator().manual_seed(7)
    trials, n, rate = 4000, 39, 0.1
    drawn = torch.randn(trials, n + 1, generator=generator, dtype=torch.float64).exp()
    alarms = 0
    for row in drawn.tolist():
        alarms += row[-1] > calibrated(row[:-1], rate).threshold
    low, high = binomial_interval(alarms, trials, confidence=0.999)
    assert low <= rate <= high  # (n + 1) rate is whole, so the rate is met exactly


def test_difficulty_is_the_planted_growth_with_the_angle():
    generator = torch.Generator().manual_seed(2)
    angles = (torch.rand(200, generator=generator, dtype=torch.float64) * 30).tolist()
    noise = (0.7 + 0.6 * torch.rand(200, generator=generator, dtype=torch.float64)).tolist()
    scores = [(1.0 + 0.01 * angle**2) * factor for angle, factor in zip(angles, noise, strict=True)]
    difficulty = fit_difficulty(scores, angles, usual_deg=10.0)
    assert difficulty.at(10.0) == pytest.approx(1.0)
    assert difficulty.at(2.0) == 1.0  # no stricter with photos from near
    assert difficulty.at(30.0) == pytest.approx(10.0 / 2.0, rel=0.35)
    assert difficulty.at(80.0) == difficulty.at(max(angles))  # nothing is known of so far


def test_photos_that_all_lie_as_far_off_or_are_few_have_no_difficulty():
    assert fit_difficulty([1.0, 2.0] * 20, [5.0, 5.5] * 20, 3.0) == Difficulty()
    assert fit_difficulty([1.0, 9.0] * 9, [5.0, 25.0] * 9, 3.0) == Difficulty()
    assert fit_difficulty([0.0] * 40, [5.0, 25.0] * 20, 3.0) == Difficulty()
    assert Difficulty().at(17.0) == 1.0


def test_good_photos_from_near_are_not_drowned_by_those_from_far():
    """Held-out photos a step from their neighbours, new ones half a step: the promised rate, not a tenth of it."""
    generator = torch.Generator().manual_seed(4)

    def drawn(count, low, high):
        angles = (low + (high - low) * torch.rand(count, generator=generator, dtype=torch.float64)).tolist()
        noise = torch.randn(count, generator=generator, dtype=torch.float64).mul(0.4).exp().tolist()
        return [(0.5 + 0.005 * a * a) * n for a, n in zip(angles, noise, strict=True)], angles

    scores, angles = drawn(200, 5.0, 30.0)
    difficulty = fit_difficulty(scores, angles, 10.0)
    divided = [score / difficulty.at(angle) for score, angle in zip(scores, angles, strict=True)]
    new, new_angles = drawn(4000, 8.0, 20.0)
    plain, scaled = calibrated(scores, 0.1).threshold, calibrated(divided, 0.1).threshold
    assert sum(score > plain for score in new) / 4000 < 0.04
    alarms = sum(s / difficulty.at(a) > scaled for s, a in zip(new, new_angles, strict=True)) / 4000
    assert 0.04 < alarms < 0.16


def test_the_threshold_is_never_so_low_that_dust_is_a_defect():
    low = [0.001 * (i + 1) for i in range(19)]
    assert calibrated(low).threshold == LEAST_THRESHOLD
    assert calibrated([*low[:-1], 0.2]).threshold == 0.2


def test_scores_keep_their_order_and_names():
    result = calibrated([3.0, 1.0, 2.0], 0.3)
    assert result.good_scores == (3.0, 1.0, 2.0)
    assert result.good_names == ("good 0", "good 1", "good 2")


def test_scores_of_fitted_photos_give_a_wider_threshold_with_a_warning():
    result = calibrated(shuffled(19), source="fitted")
    assert result.threshold > 19
    assert "also fitted" in result.note


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_a_rate_outside_the_open_interval_is_a_usage_error(rate):
    with pytest.raises(UsageError, match="--false-alarm-rate"):
        calibrated([1.0, 2.0], rate)


def test_no_scores_are_refused():
    with pytest.raises(InputError, match="no good photo could be scored"):
        calibrated([])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_scores_that_are_not_finite_are_refused_with_the_photos_name(bad):
    with pytest.raises(InputError, match="good 1"):
        calibrated([1.0, bad, 2.0])


def located(inliers, overlap, in_frame=1.0):
    camera = Camera(torch.eye(4), 1.0, 1.0, 0.0, 0.0, 1, 1)
    return Located(
        camera, True, 0.99, (), inliers, overlap, in_frame, 0.01, 0.001, 1.0, 5.0, (), "", Exposure(), 12, {}
    )  # fmt: skip


def test_belief_limits_follow_the_worst_good_photo_and_are_never_stricter_than_the_defaults():
    assert calibrate_belief([]) == BeliefLimits()
    strictest, default = calibrate_belief([located(1.0, 1.0), located(1.0, 0.93)]), BeliefLimits()
    assert (strictest.least_inliers, strictest.least_overlap) == (
        default.least_inliers,
        default.least_overlap,
    )
    loose = calibrate_belief([located(0.95, 0.97), located(0.8, 0.85)])
    assert loose.least_inliers == pytest.approx(0.6)
    assert loose.least_overlap == pytest.approx(0.73)
    floor = calibrate_belief([located(0.1, 0.1)])
    assert (floor.least_inliers, floor.least_overlap) == (0.3, 0.5)


def test_the_worst_good_photo_is_believed_to_99_percent_and_one_at_the_limit_to_a_half():
    limits = calibrate_belief([located(0.9, 0.95), located(0.8, 0.99)])

    def belief(value, limit, scale):
        return 1 / (1 + math.exp(-(value - limit) / scale))

    assert belief(0.8, limits.least_inliers, limits.inliers_scale) == pytest.approx(0.99)
    assert belief(0.95, limits.least_overlap, limits.overlap_scale) == pytest.approx(0.99)


def test_of_many_good_photos_the_worst_twentieth_does_not_set_the_limits():
    good = [located(0.7 - 0.001 * i, 0.95) for i in range(38)]
    limits = calibrate_belief([*good, located(0.2, 0.3), located(0.3, 0.4)])
    assert limits.least_inliers == pytest.approx(0.75 * (0.7 - 0.037))  # the third of forty
    assert limits.least_overlap == calibrate_belief(good).least_overlap
    assert calibrate_belief([*good[:9], located(0.2, 0.3)]).least_inliers == 0.3  # of ten, each counts


def test_a_part_often_cut_by_the_frame_lowers_what_must_be_within_it():
    assert calibrate_belief([located(0.9, 0.9)]).least_in_frame == BeliefLimits().least_in_frame
    assert calibrate_belief([located(0.9, 0.9, 0.5)]).least_in_frame == pytest.approx(0.45)


def test_a_stored_calibration_comes_back_exactly(tmp_path):
    result = calibrated([0.1 + 0.2, 1 / 3, 2.0], 0.25, source="cross-fitted")
    save_calibration(tmp_path / "calibration.json", result)
    assert load_calibration(tmp_path / "calibration.json") == result


@pytest.mark.parametrize(
    "change",
    [
        None,
        "",
        "{",
        "[]",
        "[1, 2]",
        "null",
        {"format": "another"},
        {"version": 2},
        {"threshold": "high"},
        {"threshold": math.nan},
        {"good_scores": 3},
        {"belief": {"least": 1}},
        {"surplus": 1},
    ],
)
def test_a_damaged_calibration_is_refused_with_its_name(tmp_path, change):
    path = tmp_path / "calibration.json"
    save_calibration(path, calibrated([1.0, 2.0], 0.4))
    if change is None:
        path.unlink()
    elif isinstance(change, str):
        path.write_text(change)
    else:
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(
        InputError, match=r"(?s)calibration\.json: the calibration cannot be read .*splatad fit"
    ):
        load_calibration(path)
