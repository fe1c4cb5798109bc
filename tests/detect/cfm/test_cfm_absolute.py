"""The scale of good photos and the limit on it: the rate it keeps, regions, and what cannot be told."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from detect.cfm.absolute import (
    GoodPhoto,
    absolute,
    absolute_of,
    as_json,
    at_rate,
    decide,
    from_json,
    good_photo,
    levels_of,
    regions,
)
from detect.cfm.score import Distances, ScoreConfig
from prepare.errors import InputError, UsageError


def made_good(peaks: np.ndarray, share: float = 0.3) -> list[GoodPhoto]:
    return [GoodPhoto(f"good/{n}", float(p), 100, 50.0, 30.0, share) for n, p in enumerate(peaks)]


def test_a_new_good_photo_passes_the_limit_at_the_rate_asked_for():
    rng = np.random.default_rng(0)
    rate, passed = 0.1, []
    for _ in range(150):
        peaks = rng.gamma(4.0, 1.0, 30)
        scale = absolute_of(made_good(peaks[:-1]), ScoreConfig(), rate)
        passed.append((peaks[-1] - scale.mean) / scale.spread > scale.limit)
    # Exactly (n + 1 - k) / (n + 1) = 3 / 30 in the long run; four standard errors of 150 draws.
    assert abs(np.mean(passed) - 0.1) < 4 * (0.1 * 0.9 / 150) ** 0.5


def test_mean_and_spread_are_those_of_all_valid_pixels():
    torch.manual_seed(0)
    found = []
    for n in range(3):
        valid = torch.rand(12, 12) > 0.4
        found.append((f"good/{n}", Distances(torch.rand(12, 12) * valid, torch.rand(12, 12) * valid, valid)))
    config = ScoreConfig("sum", smooth=False)
    scale = absolute(found, config)
    pixels = torch.cat([(one.photo + one.shape)[one.valid] for _, one in found]).double()
    assert scale.mean == pytest.approx(float(pixels.mean()))
    assert scale.spread == pytest.approx(float(pixels.std(correction=0)))
    z_map = scale.z_map(found[0][1].photo + found[0][1].shape)
    assert float(z_map.max()) == pytest.approx(scale.good_scores[0], abs=1e-4)
    photo_mean, photo_spread, shape_mean, _ = levels_of([one for _, one in found])
    photo = torch.cat([one.photo[one.valid] for _, one in found]).double()
    assert (photo_mean, photo_spread) == pytest.approx((float(photo.mean()), float(photo.std(correction=0))))
    assert absolute(found, ScoreConfig("zmean")).score.levels[2] == shape_mean


def test_rates_are_refused_that_the_good_photos_cannot_support():
    good = made_good(np.arange(9.0) + 3)
    assert absolute_of(good, ScoreConfig()).false_alarm_rate == pytest.approx(0.1)  # 1 / (9 + 1)
    assert at_rate(absolute_of(good, ScoreConfig()), 0.3).limit < absolute_of(good, ScoreConfig()).limit
    with pytest.raises(UsageError, match=r"9 good photos support rates from 10\.00%"):
        absolute_of(good, ScoreConfig(), 0.05)
    with pytest.raises(UsageError, match="between 0 and 1"):
        absolute_of(good, ScoreConfig(), 1.0)
    with pytest.raises(InputError, match="no good photo"):
        absolute_of([], ScoreConfig())
    with pytest.raises(InputError, match="good/1: a good photo, but"):
        absolute_of([good[0], replace(good[1], peak=float("nan"))], ScoreConfig())


def test_the_scale_comes_back_from_plain_values():
    scale = absolute_of(
        made_good(np.arange(9.0)), ScoreConfig("zmean", levels=(1.0, 2.0, 3.0, 4.0)), source="cross-fitted"
    )
    assert from_json(as_json(scale)) == scale
    assert "each left out of a training" in scale.note


def test_regions_are_seeded_above_the_limit_and_grow_to_half_of_it():
    z_map = torch.zeros(40, 40)
    z_map[4:12, 6:10] = 3.0
    z_map[6, 7] = 6.0
    z_map[20:30, 20:30] = 4.5  # never above the limit
    z_map[35, 35] = 9.0  # one pixel in the corner of the next
    z_map[36:38, 36:38] = 2.6
    found = regions(z_map, 5.0)
    assert [(r.box, r.area_px, r.peak) for r in found] == [
        ((35, 35, 38, 38), 5, 9.0),
        ((6, 4, 10, 12), 32, 6.0),
    ]
    assert found[1].mean == pytest.approx((31 * 3 + 6) / 32)
    assert int(found[0].mask.sum()) == 5


def test_verdicts_and_what_cannot_be_told():
    scale = absolute_of(made_good(np.arange(19.0) / 10 + 2), ScoreConfig(), 0.05)
    valid = torch.zeros(20, 20, dtype=torch.bool)
    valid[:6] = True  # 30 %, as the good photos
    found = Distances(torch.rand(20, 20) * valid, torch.rand(20, 20) * valid, valid)
    calm = torch.zeros(20, 20)
    assert decide(found, calm, scale).name == "OK"
    hot = calm.clone()
    hot[2, 2] = scale.limit * 1.5
    verdict = decide(found, hot, scale)
    assert verdict.name == "NG"
    assert "1.5 times the limit" in verdict.reasons[0]
    everywhere = torch.where(valid, scale.limit * 2, 0.0)
    cases = {
        "another part": (found, everywhere, scale),
        "no limit": (found, calm, None),
        "is the part there": (replace(found, valid=valid & (torch.arange(20) < 5)), calm, scale),
        "take the ground away": (replace(found, valid=torch.ones_like(valid)), calm, scale),
        "hold no numbers": (found, calm * float("nan"), scale),
    }
    for reason, arguments in cases.items():
        verdict = decide(*arguments)
        assert verdict.name == "CANNOT TELL", reason
        assert reason in verdict.reasons[0]


def test_a_good_photo_s_numbers_are_of_its_own_map():
    valid = torch.eye(3, dtype=torch.bool)
    found = Distances(torch.full((3, 3), 2.0) * valid, torch.full((3, 3), 0.5) * valid, valid)
    one = good_photo("a", found, ScoreConfig(smooth=False))
    assert (one.name, one.peak, one.pixels, one.total, one.squares) == ("a", 1.0, 3, 3.0, 3.0)
    assert one.share == pytest.approx(1 / 3)
