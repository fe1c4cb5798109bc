"""Photo sizes and the splats that go with them."""

import math

import pytest
import torch

from pose.pyramid import LEAST_SPLATS, LEVELS_PX, SplatLevels, camera_at, photo_pyramid
from prepare.camera import Camera
from recon.gaussians import gaussians_from_points


def cloud(count):
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(count, 3, generator=generator)
    return gaussians_from_points(
        points, torch.rand(count, 3, generator=generator), torch.full((count,), 0.01)
    )


@pytest.mark.parametrize(
    ("width", "height", "sizes"),
    [
        (400, 400, [(50, 50), (100, 100), (200, 200), (400, 400)]),
        (600, 300, [(50, 25), (100, 50), (200, 100), (400, 200)]),
        (75, 150, [(25, 50), (50, 100), (75, 150)]),
        (100, 100, [(50, 50), (100, 100)]),
        (30, 20, [(30, 20)]),
    ],
)
def test_levels_grow_to_the_photo_itself_and_never_beyond(width, height, sizes):
    levels = photo_pyramid(torch.rand(height, width, 3))
    assert [(level.width, level.height) for level in levels] == sizes
    assert [tuple(level.target.shape) for level in levels] == [(3, h, w) for w, h in sizes]


def test_a_pixel_of_a_level_is_the_mean_of_the_photo_under_it():
    photo = torch.rand(100, 200, 3)
    coarse = photo_pyramid(photo)[0]
    assert (coarse.width, coarse.height) == (50, 25)
    blocks = photo.reshape(25, 4, 50, 4, 3).mean(dim=(1, 3)).permute(2, 0, 1)
    assert torch.allclose(coarse.target, blocks, atol=1e-6)


@pytest.mark.parametrize("size", [40, 50, 100, 150, 200, 300, 400])
def test_a_photo_at_its_own_size_is_compared_with_all_splats(size):
    gaussians = cloud(4000)
    last = photo_pyramid(torch.rand(size, size, 3))[-1]
    assert SplatLevels(gaussians).at(last.size_px) is gaussians


def test_coarse_levels_keep_their_share_of_the_splats_and_as_much_covered_area():
    gaussians = cloud(30_000)
    levels = SplatLevels(gaussians)
    for size, share in ((50, 1 / 20), (100, 1 / 6), (200, 1 / 2)):
        kept = levels.at(size)
        assert len(kept) == max(LEAST_SPLATS, round(share * 30_000))
        area = (2 * kept.log_scales[:, 0]).exp().sum() / (2 * gaussians.log_scales[:, 0]).exp().sum()
        assert float(area) == pytest.approx(1.0, rel=1e-4)
    assert levels.at(LEVELS_PX[-1]) is gaussians


def test_a_small_reference_is_not_thinned_and_thinning_repeats():
    small = cloud(LEAST_SPLATS - 1)
    assert torch.equal(SplatLevels(small).at(50).means, small.means)
    assert torch.equal(SplatLevels(small).at(50).log_scales, small.log_scales)
    large = cloud(5000)
    assert torch.equal(SplatLevels(large).at(100).means, SplatLevels(large).at(100).means)
    assert not torch.equal(SplatLevels(large, seed=1).at(100).means, SplatLevels(large).at(100).means)


def test_a_levels_camera_sees_the_same_direction_at_the_same_share_of_the_image():
    camera = Camera(torch.eye(4), 300.0, 310.0, 190.0, 160.0, 400, 320)
    level = photo_pyramid(torch.rand(320, 400, 3))[1]
    small = camera_at(camera, level)
    point = torch.tensor([[0.2, -0.1, 2.0]])
    assert torch.allclose(small.project(point)[:, :2] * 4, camera.project(point)[:, :2], atol=1e-4)
    assert math.isclose(small.fl_x, 75.0)
