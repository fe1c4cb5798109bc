"""The verdict follows from belief, what is known, and score against threshold, in that order."""

from dataclasses import replace

import pytest
import torch

from detect.anomaly_map import AnomalyMap
from detect.calibrate import calibrate
from detect.verdict import MOST_UNKNOWN, decide, no_part_verdict
from pose.locate import BeliefLimits, Located
from pose.residual import Exposure
from prepare.camera import Camera

CALIBRATION = calibrate(
    [1.0, 2.0, 3.0], ["a", "b", "c"], 0.25, BeliefLimits(), source="held-out", detector="comparer"
)
CAMERA = Camera(torch.eye(4), 1.0, 1.0, 0.0, 0.0, 20, 20)
LOCATED = Located(
    CAMERA, True, 0.99, (), 1.0, 1.0, 1.0, 0.01, 0.001, 1.0, 5.0, (), "", Exposure(), 12, {}
)  # fmt: skip


def anomaly(score, unknown=0):
    known = torch.ones(400, dtype=torch.bool)
    known[:unknown] = False
    return AnomalyMap(torch.full((20, 20), score), known.reshape(20, 20), score)


@pytest.mark.parametrize(
    ("score", "name"), [(0.0, "OK"), (2.99, "OK"), (3.0, "OK"), (3.01, "NG"), (100.0, "NG")]
)
def test_only_a_score_above_the_threshold_is_ng(score, name):
    verdict = decide(LOCATED, anomaly(score), 100, CALIBRATION)
    assert verdict.name == name
    assert f"{score:.2f}" in verdict.reasons[0]
    assert "3.00" in verdict.reasons[0]


@pytest.mark.parametrize("score", [0.0, 100.0])
def test_a_camera_not_believed_is_cannot_tell_whatever_the_score(score):
    doubted = replace(LOCATED, believed=False, reasons=("the outline agrees to 30% only",))
    verdict = decide(doubted, anomaly(score), 100, CALIBRATION)
    assert verdict.name == "CANNOT TELL"
    assert verdict.reasons == ("the outline agrees to 30% only",)


def test_a_part_mostly_unseen_by_the_reference_is_cannot_tell():
    limit = int(MOST_UNKNOWN * 100)
    assert decide(LOCATED, anomaly(1.0, unknown=limit), 100, CALIBRATION).name == "OK"
    verdict = decide(LOCATED, anomaly(1.0, unknown=limit + 1), 100, CALIBRATION)
    assert verdict.name == "CANNOT TELL"
    assert "21% of the part" in verdict.reasons[0]


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_is_cannot_tell(score):
    assert decide(LOCATED, anomaly(score), 100, CALIBRATION).name == "CANNOT TELL"


def test_no_part_is_cannot_tell_with_the_share_in_words():
    verdict = no_part_verdict(0.002)
    assert verdict.name == "CANNOT TELL"
    assert "0.2%" in verdict.reasons[0]


@pytest.mark.parametrize("score", [0.0, 100.0])
def test_a_view_that_could_be_another_says_so_beside_the_verdict(score):
    ambiguous = replace(LOCATED, ambiguity="the part looks the same from 2 sides")
    verdict = decide(ambiguous, anomaly(score), 100, CALIBRATION)
    assert verdict.name == decide(LOCATED, anomaly(score), 100, CALIBRATION).name
    assert verdict.reasons == (
        *decide(LOCATED, anomaly(score), 100, CALIBRATION).reasons,
        ambiguous.ambiguity,
    )
