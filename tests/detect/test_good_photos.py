"""Good photos inspected as if new: which splats and networks judge them, and which photos do not count."""

from dataclasses import replace

import pytest
import torch

from detect import good_photos
from detect.comparer import new_comparer
from detect.detectors import RULE, detector_of
from detect.expected import FITTED_WEIGHT, NOTHING_EXPECTED, residual_sums
from detect.good_photos import halves_of, look_at_good_photos, score_good_photos, train_on_good_photos
from detect.train_comparer import TrainConfig
from pose.se3 import turn_deg

pytestmark = pytest.mark.usefixtures("one_torch_thread")
COUNT = 4


@pytest.fixture(scope="module")
def fitted(toy):
    """The first views of the toy, all fitted; two fits that have each not seen half of them."""
    views = tuple(replace(view, held_out=False) for view in toy.reference.views[:COUNT])
    reference = replace(toy.reference, views=views)
    one = reference.gaussians
    other = replace(one, sh=0.9 * one.sh)
    return reference, toy.photos[:COUNT], [one, other, one, other]


def scored(toy, fitted, **changes):
    reference, photos, unseen = fitted
    detector = replace(detector_of(RULE, reference, NOTHING_EXPECTED), **changes)
    good = look_at_good_photos(detector, photos, unseen)
    return score_good_photos(detector, toy.loaded.index, photos, unseen, good)


def test_photos_that_one_fit_has_not_seen_belong_to_one_half(fitted):
    a, b, c = (replace(fitted[0].gaussians) for _ in range(3))
    assert halves_of([a, b, a, b]) == (0, 1, 0, 1)
    assert halves_of([a, b, c, a]) == (0, 1, 0, 0)


def test_what_the_others_leave_is_the_sum_without_ones_own(fitted):
    reference, photos, unseen = fitted
    good = look_at_good_photos(detector_of(RULE, reference, NOTHING_EXPECTED), photos, unseen)
    assert good.new == (True,) * COUNT
    parts = [residual_sums(reference, photo, unseen=g) for photo, g in zip(photos, unseen, strict=True)]
    without = parts[0].plus(parts[2]).plus(parts[3]).expected()
    assert torch.allclose(good.expected_without(1).variance, without.variance, rtol=1e-2, atol=1e-6)
    fitted_only = look_at_good_photos(detector_of(RULE, reference, NOTHING_EXPECTED), photos[:1], [None])
    assert fitted_only.new == (False,)
    alone = residual_sums(reference, photos[0])
    assert torch.allclose(fitted_only.total.seen, FITTED_WEIGHT * alone.seen, rtol=1e-4, atol=1e-5)


def test_each_photo_is_scored_once_at_the_angle_to_the_photos_its_fit_has_seen(toy, fitted):
    result = scored(toy, fitted)
    assert result.names == tuple(photo.name for photo in fitted[1])
    assert result.unfit == ()
    centres = torch.stack([photo.camera.centre for photo in fitted[1]])
    directions = torch.nn.functional.normalize(centres, dim=1)
    to_others = torch.rad2deg(torch.acos((directions @ directions.T).clamp(-1, 1)))
    by_hand = [float(to_others[i, [j for j in range(COUNT) if j % 2 != i % 2]].min()) for i in range(COUNT)]
    assert result.angles_deg == pytest.approx(by_hand, abs=0.01)


def test_a_network_never_judges_a_photo_that_it_has_learned_from(toy, fitted):
    """Network 0 calls everything a defect: it learned from the photos of half 0 and may judge only those of half 1."""
    wild, quiet = new_comparer(0), new_comparer(0)
    for network, bias in ((wild, 8.0), (quiet, -8.0)):
        torch.nn.init.zeros_(network.out.weight)
        torch.nn.init.constant_(network.out.bias, bias)
    first, second, third, fourth = scored(toy, fitted, comparers=(wild, quiet)).scores
    assert min(second, fourth) > 100 * max(first, third)


def test_a_photo_whose_camera_goes_astray_does_not_count(toy, fitted, monkeypatch):
    real = good_photos.locate

    def astray(reference, index, levels, rgb, alpha, lens, **options):
        found = real(reference, index, levels, rgb, alpha, lens, **options)
        if not torch.equal(rgb, fitted[1][1].rgb):
            return found
        wrong = lens.moved(toy.photos[20].camera.world_to_cam)
        assert turn_deg(wrong.world_to_cam, lens.world_to_cam) > 5
        return replace(found, camera=wrong)

    monkeypatch.setattr(good_photos, "locate", astray)
    result = scored(toy, fitted)
    assert result.unfit == (fitted[1][1].name,)
    assert len(result.scores) == len(result.located) == len(result.angles_deg) == COUNT - 1


def test_networks_learn_from_all_photos_and_progress_is_told(fitted):
    reference, photos, unseen = fitted
    detector = detector_of(RULE, reference, NOTHING_EXPECTED)
    good = look_at_good_photos(detector, photos, unseen)
    made, steps = [], []
    config = TrainConfig(steps=1, batch=1, synthetic=1)
    networks = train_on_good_photos(
        detector, photos, unseen, good, config, lambda *n: made.append(n), lambda *n: steps.append(n)
    )
    assert len(networks) == 2
    assert sorted(made)[-1] == (COUNT, COUNT)
    assert sorted(steps)[-1] == (2, 2)
    assert any(
        not torch.equal(a, b) for a, b in zip(networks[0].parameters(), networks[1].parameters(), strict=True)
    )
