from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from detect.cmt.evaluate import EvaluateConfig, Evaluation, evaluate
from detect.cmt.model import CMT, ModelConfig
from detect.cmt.published import PUBLISHED
from prepare.errors import InputError
from prepare.shape_pairs import ShapePairs

TINY = ModelConfig(
    px=64, widths=(8, 8, 16, 16), depths=(1, 1, 1, 1), width=16, match_hidden=(16,), match_width=16, inner=32, blocks=1,
    heads=2, head_width=16, feed_forward=32, head_hidden=16, k=4, position_width=8,
)  # fmt: skip


def _evaluation(score: list[float], label: list[int], overlap: list[float]) -> Evaluation:
    n = len(score)
    return Evaluation(
        np.arange(n), np.array(score), np.array(label), np.array([1, 0, 5, 0, 1][:n]), np.array([2, -1, 3, -1, 2][:n]),
        np.zeros((n, 4)), np.array(overlap), np.full(n, np.nan), np.full(n, np.nan), None, np.zeros((n, 4)), 0.5,
        ("none", "position", "rotation", "broken", "swapped", "missing"), ("a", "b", "c", "d"),
    )  # fmt: skip


def test_figures_by_hand() -> None:
    nan = math.nan
    found = _evaluation([0.9, 0.6, 0.7, 0.1, 0.3], [1, 0, 1, 0, 1], [0.8, nan, 0.2, nan, 0.6])
    figures = found.figures()
    assert figures["auc"] == pytest.approx(5 / 6)
    assert figures["accuracy"] == pytest.approx(3 / 5)
    assert found.best_threshold == pytest.approx(0.2)  # 4 of 5 right, as with 0.65
    assert found.accuracy(found.best_threshold) == pytest.approx(4 / 5)
    assert figures["mean_iou"] == pytest.approx(1.6 / 3)
    assert figures["iou_rate"] == pytest.approx(2 / 3)
    assert figures["iou_rate_of_called"] == pytest.approx(1 / 2)
    # Ranked 0.9 hit, 0.7 miss, 0.6 (good photo), 0.3 hit: (1/1 + 2/4) / 3 boxes.
    assert figures["box_ap"] == pytest.approx(0.5)
    assert found.by_type()["position"]["photos"] == 2
    assert found.by_type()["position"]["auc"] == pytest.approx(3 / 4)
    assert found.by_part()["d"]["auc"] == 1


def test_every_photo_of_the_split_counts_and_the_answer_repeats(pack_folder: Path) -> None:
    pack = ShapePairs.open(pack_folder)
    torch.manual_seed(0)
    network = CMT(TINY)
    one = evaluate(network, pack, EvaluateConfig(split="train", aided=True))
    other = evaluate(network, pack, EvaluateConfig(split="train", aided=True))
    assert one.photo.tolist() == pack.queries_of("train").tolist()
    assert np.array_equal(one.score, other.score)
    in_threes = evaluate(network, pack, EvaluateConfig(split="train", aided=True, photos_at_once=3))
    np.testing.assert_allclose(one.score, in_threes.score, atol=1e-5)
    assert set(one.figures()) >= {"auc", "accuracy", "box_ap", "patch_auroc", "viewpoint_accuracy"}


def test_viewpoints_are_counted_for_good_photos_alone(pack_folder: Path) -> None:
    pack = ShapePairs.open(pack_folder)
    torch.manual_seed(0)
    found = evaluate(CMT(TINY), pack, EvaluateConfig(split="train"))
    assert np.array_equal(np.isfinite(found.view_right), found.label == 0)
    good = found.label == 0
    # Four views a quarter turn apart: the nearest lies within some 45 degrees, and what is right is near.
    assert (found.view_angle[good][found.view_right[good] == 1] < 60).all()


def test_what_cannot_be_evaluated_is_named(pack_folder: Path) -> None:
    pack = ShapePairs.open(pack_folder)
    network = CMT(TINY)
    with pytest.raises(InputError, match="no split extra"):
        evaluate(network, pack, EvaluateConfig(split="extra"))


def test_published_rows_are_the_papers() -> None:
    best = PUBLISHED[-1]
    assert (best.auc, best.accuracy, best.box_ap) == (85.9, 77.3, 56.5)
    assert sum(not row.reference for row in PUBLISHED) == 3


def test_found_masks_are_used_as_far_as_asked_whatever_the_batch(pack_folder: Path) -> None:
    pack = ShapePairs.open(pack_folder)
    torch.manual_seed(0)
    network = CMT(TINY)

    def scores(**asked: float) -> np.ndarray:
        return evaluate(network, pack, EvaluateConfig(split="train", aided=True, **asked)).score  # type: ignore[arg-type]

    given, half, found = scores(), scores(found_masks=0.5), scores(found_masks=1.0)
    assert not np.allclose(given, found, atol=1e-4)
    np.testing.assert_allclose(half, scores(found_masks=0.5, photos_at_once=3), atol=1e-5)
    like_given, like_found = np.isclose(half, given, atol=1e-5), np.isclose(half, found, atol=1e-5)
    assert (like_given | like_found).all()
    assert like_found.any()
    assert like_given.any()
