"""From channels to a map and a score."""

import math

import pytest
import torch

from detect.anomaly_map import (
    EVIDENCE_PX,
    RULE_BASE,
    RULE_WEIGHT,
    SCORED_SHARE,
    DifferenceDetector,
    combine,
    image_score,
)
from detect.comparer import EMPTY_LOGIT, FLOORS, new_comparer, part_window
from detect.expected import ENOUGH_PIXELS, ExpectedResidual
from recon.rasterize import RasterOptions, rasterize

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def test_image_score_is_the_mean_of_the_hottest_pixels():
    values = torch.arange(400 * 400, dtype=torch.float32).reshape(400, 400)
    count = round(SCORED_SHARE * 160_000)
    assert image_score(values) == pytest.approx(160_000 - (count + 1) / 2)
    small = torch.tensor([[1.0, 5.0, 2.0], [4.0, 3.0, 0.0]])
    assert image_score(small) == pytest.approx((5 + 4 + 3 + 2) / 4)
    assert image_score(small[:1, :2]) == pytest.approx(3.0)


def test_what_is_not_known_counts_nothing_and_does_not_leak():
    values = torch.zeros(80, 80)
    values[20:30, 20:30] = 5.0
    values[60:70, 60:70] = 50.0
    known = torch.ones(80, 80, dtype=torch.bool)
    known[55:75, 55:75] = False
    result = combine(values[None], known)
    assert not result.values[~known].any()
    assert result.values[55:75, 40:54].max() == 0
    assert result.score == pytest.approx(image_score(result.values))
    assert 3.0 < result.score <= 5.0
    assert torch.equal(result.known, known)


def test_a_constant_map_stays_that_constant():
    result = combine(torch.full((1, 60, 90), 1.7), torch.ones(60, 90, dtype=torch.bool))
    assert torch.allclose(result.values, torch.tensor(1.7))
    assert result.score == pytest.approx(1.7)


def test_a_place_that_one_channel_alone_sees_counts_far_less_than_one_that_all_see():
    both = torch.zeros(2, 80, 80)
    both[:, 20:30, 20:30] = torch.tensor([4.0, 9.0])[:, None, None]
    both[0, 55:65, 55:65] = 50.0
    result = combine(both, torch.ones(80, 80, dtype=torch.bool))
    assert float(result.values[25, 25]) == pytest.approx(math.sqrt(4.1 * 9.1) - 0.1, rel=1e-3)
    assert float(result.values[60, 60]) == pytest.approx(math.sqrt(50.1 * 0.1) - 0.1, rel=1e-3)
    assert result.values[40:50, 40:50].abs().max() < 1e-6


def expected_of(reference, variance, seen=100.0):
    """The same for all splats: variance by channel, and no light."""
    count = len(reference.gaussians)
    held = torch.tensor(variance)
    mean = torch.zeros(count, len(held))
    return ExpectedResidual(held.expand(count, -1), torch.full((count,), seen), held, mean)


def test_the_map_is_the_difference_over_floor_and_expected_deviation(toy):
    reference = toy.reference
    expected = expected_of(reference, [0.04, 0.01, 1.0, 0.09])

    def constant(photo, render):
        return torch.tensor([0.33, 0.24, -7.0, 0.5])[:, None, None].expand(-1, 100, 100)

    camera = toy.cameras(1, seed=2)[0]
    render = rasterize(reference.gaussians, camera, torch.ones(3), options=RasterOptions(depth=True))
    white = torch.ones(100, 100, 3)
    result = DifferenceDetector(reference, expected, constant).anomaly_map(
        white, white[..., 0], render, camera
    )
    # Colour, contrast and a backbone's channel; light, the third, makes no map.
    relative = [0.33 / (FLOORS[0] + 0.2), 0.24 / (FLOORS[1] + 0.1), 0.5 / (0.05 + 0.3)]
    by_hand = math.prod(value + 0.1 for value in relative) ** (1 / 3) - 0.1
    assert torch.allclose(result.values, torch.tensor(by_hand), rtol=1e-3)
    assert result.score == pytest.approx(by_hand, rel=1e-3)
    assert result.known.all()


def test_splats_that_no_photo_showed_are_not_known_whatever_judges(toy):
    reference = toy.reference
    unseen = reference.gaussians.means[:, 0] > 0.1
    expected = expected_of(reference, [0.01, 0.01, 0.01])
    seen = torch.where(unseen, torch.zeros(()), torch.full((), 100.0))
    expected = ExpectedResidual(expected.variance, seen, expected.background, expected.mean)
    camera = toy.cameras(1, seed=2)[0]
    render = rasterize(reference.gaussians, camera, torch.ones(3), options=RasterOptions(depth=True))
    photo = torch.rand(100, 100, 3, generator=torch.Generator().manual_seed(0))
    colours = torch.where(unseen, 1.0, 0.0)[:, None].expand(-1, 3).contiguous()
    share_unseen = rasterize(reference.gaussians, camera, torch.zeros(3), colours=colours).rgb[..., 0]
    # Known where at least half of the pixel is.
    half = 1 - EVIDENCE_PX / ENOUGH_PIXELS
    for comparers in ((), (new_comparer(0), new_comparer(1))):
        detector = DifferenceDetector(reference, expected, comparers=comparers)
        result = detector.anomaly_map(photo, torch.ones(100, 100), render, camera)
        assert not result.known[share_unseen > half + 0.01].any()
        assert result.known[share_unseen < half - 0.01].all()
        assert (~result.known).sum() > 50
        assert not result.values[~result.known].any()
        assert result.values[result.known].max() > 0


def test_networks_add_their_mean_log_odds_to_the_rules(toy):
    """Two networks whose last layers give 1 and 3 everywhere."""
    reference = toy.reference
    networks = []
    for bias in (1.0, 3.0):
        network = new_comparer(0)
        torch.nn.init.zeros_(network.out.weight)
        torch.nn.init.constant_(network.out.bias, bias)
        networks.append(network)
    camera = toy.cameras(1, seed=2)[0]
    photo = toy.photo(camera, noise_seed=1)
    render = rasterize(reference.gaussians, camera, torch.ones(3), options=RasterOptions(depth=True))
    expected = expected_of(reference, [0.01] * 3)
    rule = DifferenceDetector(reference, expected).anomaly_map(photo.rgb, photo.alpha, render, camera)
    both = DifferenceDetector(reference, expected, comparers=tuple(networks)).anomaly_map(
        photo.rgb, photo.alpha, render, camera
    )
    near = torch.zeros(100, 100, dtype=torch.bool)
    near[part_window(photo.alpha, render.alpha)] = True
    logit = torch.where(near, 2.0, EMPTY_LOGIT) + RULE_WEIGHT * (rule.values + RULE_BASE).log()
    assert torch.allclose(both.values, logit.exp().add(1).log(), atol=1e-5)
    assert both.score == pytest.approx(image_score(both.values))


def test_a_painted_blob_is_the_hottest_place(toy):
    camera = toy.cameras(1, seed=6)[0]
    photo = toy.photo(camera, noise_seed=1)
    render = rasterize(toy.reference.gaussians, camera, torch.ones(3), options=RasterOptions(depth=True))
    detector = toy.loaded.detector
    good = detector.anomaly_map(photo.rgb, photo.alpha, render, camera)
    u, v = camera.project(torch.zeros(1, 3))[0, :2].int().tolist()
    painted = photo.rgb.clone()
    painted[v - 4 : v + 5, u - 4 : u + 5] = torch.tensor([0.9, 0.1, 0.9])
    bad = detector.anomaly_map(painted, photo.alpha, render, camera)
    assert bad.score > 3 * good.score
    row, column = divmod(int(bad.values.argmax()), 100)
    assert abs(row - v) < 6
    assert abs(column - u) < 6
    assert torch.equal(bad.values[: v - 14], good.values[: v - 14])
