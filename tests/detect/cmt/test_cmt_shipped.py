"""The network in the package: it is there, says what it is, and tells defective from good on chairs made for this test."""

from __future__ import annotations

from pathlib import Path

import pytest

from detect.cmt.evaluate import EvaluateConfig, evaluate
from detect.cmt.predict import Predictor
from prepare.generate.chairs import ChairSettings, generate_chairs
from prepare.shape_pairs import ShapePairs
from splatad.cmt_inputs import PACKED, SHIPPED

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def shipped() -> Predictor:
    return Predictor.from_file(SHIPPED)


def test_it_is_small_and_says_what_it_was_trained_on(shipped: Predictor) -> None:
    assert SHIPPED.stat().st_size < 16e6
    assert shipped.about["data"]["source"]["made_by"]
    held_out = shipped.about["held_out"]
    assert held_out["aided_auc"] > held_out["plain_auc"]
    assert 0 < shipped.thresholds.aided < 1
    card = Path(__file__).parents[3] / "docs" / "cmt_small.md"
    assert f"{held_out['aided_auc']:.3f}" in card.read_text()


def test_it_tells_good_from_defective_on_chairs_it_never_saw(shipped: Predictor, tmp_path: Path) -> None:
    settings = ChairSettings(
        seed=90210, shapes=4, photos_per_shape=8, px=shipped.network.config.px, points=50, files=False
    )
    generate_chairs(tmp_path, "new", settings, workers=1)
    pairs = ShapePairs.open(tmp_path / "new" / PACKED)
    split = max(pairs.splits, key=lambda name: len(pairs.splits[name]))
    result = evaluate(
        shipped.network, pairs, EvaluateConfig(split=split, aided=True, threshold=shipped.thresholds.aided)
    )
    assert len(result.score) >= 16
    assert result.auc > 0.9
    assert result.accuracy(shipped.thresholds.aided) > 0.75
