"""Pose metrics against hand values, an independent integration and the protocol's own bounds."""

import math

import numpy as np
import pytest
import torch

from detect.pose_metrics import (
    INERF_DISTANCE,
    NO_CAMERA,
    PUBLISHED,
    PoseError,
    PoseResult,
    perturbed_start,
    pose_error,
    recall_area,
    summarize,
)
from prepare.camera import look_at

CENTRE = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64)


def camera(x=2.0, y=1.0, z=1.5):
    up = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    return look_at(torch.tensor([x, y, z], dtype=torch.float64), CENTRE, up)


def result(deg, believed=True, seconds=1.0):
    return PoseResult(PoseError(deg, deg / 100, deg / 50, deg / 10), believed, seconds)


def area_by_trapezoids(errors, threshold):
    """The curve through (0, 0) and (e_i, i/n) cut at the threshold, integrated point by point."""
    ordered = sorted(errors)
    xs, ys = [0.0], [0.0]
    for rank, error in enumerate(ordered, start=1):
        if error < threshold:
            xs.append(error)
            ys.append(rank / len(ordered))
    xs.append(threshold)
    ys.append(ys[-1])
    return 100 * np.trapezoid(ys, xs) / threshold


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("threshold", [0.5, 5.0, 20.0])
def test_recall_area_is_the_integral_of_the_recall_curve(seed, threshold):
    rng = np.random.default_rng(seed)
    errors = [*rng.exponential(4.0, 30).round(1), math.inf, 0.0, 3.0, 3.0]  # with ties
    assert recall_area(errors, threshold) == pytest.approx(area_by_trapezoids(errors, threshold), abs=1e-10)


def test_recall_area_by_hand():
    assert recall_area([0.0], 5.0) == 100
    assert recall_area([2.0], 5.0) == pytest.approx(80)  # a ramp to (2, 1), then level: (1 + 3) / 5
    assert recall_area([1.0, 2.0], 5.0) == pytest.approx(100 * (0.25 + 0.75 + 3) / 5)
    assert recall_area([1.0, math.inf], 5.0) == pytest.approx(100 * (0.25 + 2) / 5)
    assert recall_area([7.0, math.inf], 5.0) == 0


def test_recall_area_tends_to_the_mean_margin_with_many_photos():
    errors = np.linspace(0, 10, 20001)[1:]
    assert recall_area(errors.tolist(), 5.0) == pytest.approx(
        25, abs=0.01
    )  # half of them below 5, on average 2.5 off


@pytest.mark.parametrize(
    ("errors", "threshold"), [([], 5.0), ([1.0, math.nan], 5.0), ([-1.0], 5.0), ([1.0], 0.0)]
)
def test_recall_area_refuses_what_has_no_area(errors, threshold):
    with pytest.raises(ValueError, match="AUC"):
        recall_area(errors, threshold)


def test_pose_error_of_a_known_turn_and_move():
    truth = camera()
    position = torch.tensor([2.0, 1.0, 1.5], dtype=torch.float64)
    angle = math.radians(3.0)
    c, s = math.cos(angle), math.sin(angle)
    turn = torch.eye(4, dtype=torch.float64)
    turn[:2, :2] = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
    error = pose_error(turn @ truth, truth, CENTRE, 2.015)  # a roll in place
    assert error.rotation_deg == pytest.approx(3.0, abs=1e-9)
    assert error.centre_distance == pytest.approx(0.0, abs=1e-12)
    assert error.shift_percent == pytest.approx(0.0, abs=1e-9)  # the part is on the axis of the roll

    moved = truth.clone()
    moved[:3, 3] = -truth[:3, :3] @ (position + torch.tensor([0.0, 0.0, 0.01], dtype=torch.float64))
    error = pose_error(moved, truth, CENTRE, 2.015)
    assert error.rotation_deg == pytest.approx(0.0, abs=1e-9)
    assert error.centre_distance == pytest.approx(0.01)
    assert error.scaled_distance == pytest.approx(0.02)  # 4.03 / 2.015
    assert error.shift_percent == pytest.approx(100 * 0.01 / float((position - CENTRE).norm()))


def test_scaled_distance_does_not_know_the_scenes_unit():
    truth, estimate = camera(), camera(2.02, 1.0, 1.49)

    def in_millimetres(matrix):
        scaled = matrix.clone()
        scaled[:3, 3] *= 1000
        return scaled

    metres = pose_error(estimate, truth, CENTRE, 2.2)
    millimetres = pose_error(in_millimetres(estimate), in_millimetres(truth), 1000 * CENTRE, 2200.0)
    assert millimetres.scaled_distance == pytest.approx(metres.scaled_distance)
    assert millimetres.shift_percent == pytest.approx(metres.shift_percent)
    assert millimetres.centre_distance == pytest.approx(1000 * metres.centre_distance)


def test_summary_counts_what_is_believed_and_wrong():
    results = [result(0.1), result(1.0, False), result(3.0), result(180.0, False), result(2.0)]
    summary = summarize([*results, PoseResult(NO_CAMERA, False, 0.2)])
    assert (summary.attempts, summary.found) == (6, 5)
    assert summary.unflagged_errors == 1  # the 3 degrees; 2 degrees exactly is none
    assert summary.flagged_right == 1
    assert summary.believed == pytest.approx(50)
    assert summary.under_5_deg == pytest.approx(100 * 4 / 6)
    assert summary.under_005_distance == pytest.approx(100 * 3 / 6)  # scaled: deg / 50 < 0.05
    assert summary.rotation_deg["median"] == pytest.approx(2.5)
    assert (
        summary.rotation_deg["max"] == summary.rotation_deg["mean"] == summary.rotation_deg["p95"] == math.inf
    )
    assert summary.seconds_median == 1.0
    turns = [0.1, 1.0, 3.0, 180.0, 2.0, math.inf]
    assert summary.auc_deg == {key: recall_area(turns, float(key)) for key in ("5", "10", "20")}
    scaled, world = [turn / 50 for turn in turns], [turn / 100 for turn in turns]
    for key in ("0.05", "0.1", "0.2"):
        assert summary.auc_distance[key] == pytest.approx(recall_area(scaled, float(key)))
        assert summary.auc_world_distance[key] == pytest.approx(recall_area(world, float(key)))


def test_the_95_percent_error_is_a_measured_one_that_95_percent_do_not_pass():
    assert summarize([result(float(i)) for i in range(1, 21)]).rotation_deg["p95"] == 19
    assert summarize([result(float(i)) for i in range(1, 22)]).rotation_deg["p95"] == 20
    assert summarize([result(4.0)]).rotation_deg["p95"] == 4


def test_without_belief_nothing_is_said_about_flags():
    summary = summarize([result(0.1, None), result(9.0, None)])
    assert (summary.believed, summary.unflagged_errors, summary.flagged_right) == (None, None, None)


def test_no_results_are_an_error():
    with pytest.raises(ValueError, match="no photos"):
        summarize([])


@pytest.mark.parametrize("distance", [INERF_DISTANCE, 0.5])
def test_perturbed_starts_fill_the_protocols_range_at_any_scale(distance):
    truth = camera()
    away = float((truth[:3, :3] @ CENTRE + truth[:3, 3]).norm())
    turns, shifts = [], []
    for seed in range(150):
        start = perturbed_start(truth, CENTRE, distance, torch.Generator().manual_seed(seed))
        assert torch.allclose(start[:3, :3] @ start[:3, :3].T, torch.eye(3, dtype=torch.float64), atol=1e-12)
        error = pose_error(start, truth, CENTRE, distance)
        turns.append(error.rotation_deg)
        shifts.append(error.shift_percent / 100 * away * INERF_DISTANCE / distance)  # of the moves alone
    assert 38 < max(turns) <= 40 + 1e-6
    assert np.mean(turns) == pytest.approx(20, abs=2.5)  # uniform in [-40, 40]
    assert 0.25 < max(shifts) <= 0.2 * math.sqrt(3) + 1e-9


def test_a_perturbed_start_without_moves_still_looks_at_the_part():
    truth = camera()
    start = perturbed_start(truth, CENTRE, 3.0, torch.Generator().manual_seed(1), most_shift=0.0)
    error = pose_error(start, truth, CENTRE, 3.0)
    assert error.rotation_deg > 1
    assert error.shift_percent == pytest.approx(0.0, abs=1e-9)


def test_a_perturbed_start_without_turn_moves_each_world_axis_within_its_range():
    truth = camera()
    position = torch.tensor([2.0, 1.0, 1.5], dtype=torch.float64)
    moves = []
    for seed in range(120):
        start = perturbed_start(
            truth, CENTRE, INERF_DISTANCE, torch.Generator().manual_seed(seed), most_deg=0.0
        )
        moves.append(-start[:3, :3].T @ start[:3, 3] - position)
    moves = torch.stack(moves)
    assert float(moves.abs().max()) <= 0.2 + 1e-9
    assert (moves.amax(dim=0) > 0.17).all()
    assert (moves.amin(dim=0) < -0.17).all()


def test_a_perturbed_start_depends_on_its_generator_alone():
    first, again, other = (
        perturbed_start(camera(), CENTRE, 3.0, torch.Generator().manual_seed(seed)) for seed in (4, 4, 5)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_published_areas_rise_with_their_thresholds():
    assert len({(row.method, row.setting) for row in PUBLISHED}) == len(PUBLISHED) == 6
    for row in PUBLISHED:
        assert row.auc_deg == tuple(sorted(row.auc_deg))
        assert row.auc_distance == tuple(sorted(row.auc_distance))
