"""The weights-free difference channels: zero for equals, blind to a pixel's shift, against brute force."""

import math

import pytest
import torch

from detect.difference import (
    CHANNELS,
    CONTRAST_NOISE,
    UNSIGNED,
    blur,
    contrast_change,
    difference_channels,
    tolerant_distance,
)


def edge(at, width=40, height=30):
    """Dark left of column `at`, bright right of it, antialiased."""
    columns = torch.arange(width)
    share = (columns + 1 - at).clamp(0, 1)
    return (0.2 + 0.6 * share)[None, :, None].expand(height, width, 3).contiguous()


def test_equal_images_differ_nowhere():
    image = torch.rand(20, 25, 3)
    channels = difference_channels(image, image)
    assert channels.shape == (len(CHANNELS), 20, 25)
    assert channels.abs().max() < 1e-5


def channel(name, photo, render):
    return difference_channels(photo, render)[CHANNELS.index(name)]


def test_the_channels_do_not_depend_on_which_image_is_the_photo():
    a, b = torch.rand(20, 25, 3), torch.rand(20, 25, 3)
    one, other = difference_channels(a, b), difference_channels(b, a)
    assert torch.allclose(one[:UNSIGNED], other[:UNSIGNED], atol=1e-5)
    assert one[:UNSIGNED].min() >= 0
    assert torch.allclose(one[UNSIGNED:], -other[UNSIGNED:], atol=1e-5)


def test_light_is_the_lightness_that_the_photo_has_more():
    grey = torch.full((8, 8, 3), 0.5)
    # CIE lightness of sRGB 0.5 is 53.39, of 0.2 it is 21.25.
    light = channel("light", grey, torch.full((8, 8, 3), 0.2))
    assert torch.allclose(light, torch.tensor(0.5339 - 0.2125), atol=1e-3)
    assert torch.allclose(channel("light", torch.full((8, 8, 3), 0.2), grey), -light)


@pytest.mark.parametrize("shift", [1, -1])
def test_an_edge_off_by_a_pixel_leaves_no_colour_one_off_by_three_does(shift):
    assert channel("colour", edge(20), edge(20 + shift))[1:-1].max() < 1e-6
    colour = channel("colour", edge(20), edge(20 + 3 * shift))
    assert colour.max() > 0.3
    # and only beside the edge
    assert not colour[:, :12].any()
    assert not colour[:, 28:].any()


def test_half_a_pixel_of_misalignment_leaves_far_less_than_a_defect():
    colour = channel("colour", edge(20), edge(20.5))
    defect = edge(20)
    defect[10:14, 5:9] = 0.8
    assert colour.max() < 0.5 * channel("colour", defect, edge(20)).max()


def test_a_missing_and_an_added_spot_count_alike():
    plain = torch.full((20, 20, 3), 0.5)
    spot = plain.clone()
    spot[8:12, 8:12] = torch.tensor([0.9, 0.1, 0.1])
    colour = channel("colour", spot, plain)
    assert (colour[8:12, 8:12] > 0.3).all()
    assert not colour[:6].any()
    # A spot no wider than the tolerance is not overlooked either.
    dot = plain.clone()
    dot[10, 10] = 0.0
    assert channel("colour", dot, plain)[10, 10] > 0.3
    assert channel("colour", plain, dot)[10, 10] > 0.3


def test_grey_levels_differ_by_their_lightness():
    def lightness(grey):  # CIE 1976 from sRGB
        linear = ((grey + 0.055) / 1.055) ** 2.4
        return 1.16 * linear ** (1 / 3) - 0.16

    a, b = torch.full((9, 9, 3), 0.3), torch.full((9, 9, 3), 0.6)
    expected = lightness(0.6) - lightness(0.3)
    assert float(channel("colour", a, b)[4, 4]) == pytest.approx(expected, abs=1e-4)


def test_contrast_does_not_see_light_but_sees_what_is_drawn():
    texture = 0.4 + 0.2 * torch.rand(30, 30, 3)
    brighter = torch.full((30, 30, 3), 0.5)
    assert channel("contrast", brighter, brighter + 0.2).max() < 1e-3
    assert channel("contrast", texture, torch.full((30, 30, 3), 0.5))[5:-5, 5:-5].min() > 0.5
    scratched = brighter.clone()
    scratched[:, 15] = 0.1
    contrast = channel("contrast", scratched, brighter)
    assert contrast[:, 15].min() > 0.8
    assert contrast[:, :8].max() < 1e-3


def test_contrast_change_is_the_windowed_variances_by_brute_force():
    a, b = torch.rand(2, 21, 21, dtype=torch.float64), torch.rand(2, 21, 21, dtype=torch.float64)
    sigma, radius = 1.5, 4
    offset = torch.arange(-radius, radius + 1, dtype=torch.float64)
    window = torch.exp(-0.5 * (offset / sigma) ** 2)
    window = (window[:, None] * window) / window.sum() ** 2
    i, j = 9, 11

    def variance(x):
        patch = x[:, i - radius : i + radius + 1, j - radius : j + radius + 1]
        mean = (patch * window).sum(dim=(1, 2), keepdim=True)
        return float(((patch - mean) ** 2 * window).sum())

    expected = variance(a - b) / (variance(a) + variance(b) + CONTRAST_NOISE**2)
    assert float(contrast_change(a, b, sigma)[i, j]) == pytest.approx(expected, rel=1e-9)
    # opposite patterns reach the upper end
    assert float(contrast_change(a, -a, sigma)[i, j]) == pytest.approx(2.0, rel=0.01)


def test_renders_beyond_the_range_are_clamped():
    bright = torch.full((8, 8, 3), 1.4)
    assert difference_channels(torch.ones(8, 8, 3), bright).max() < 1e-5


def brute_force(a, b, reach):
    height, width = a.shape[1:]

    def one_way(x, y):
        out = torch.empty(height, width)
        for i in range(height):
            for j in range(width):
                out[i, j] = min(
                    math.dist(x[:, i, j].tolist(), y[:, k, m].tolist())
                    for k in range(max(0, i - reach), min(height, i + reach + 1))
                    for m in range(max(0, j - reach), min(width, j + reach + 1))
                )
        return out

    return torch.maximum(one_way(a, b), one_way(b, a))


@pytest.mark.parametrize(("features", "reach"), [(1, 1), (3, 1), (2, 2), (3, 0)])
def test_tolerant_distance_is_the_brute_force_one(features, reach):
    a, b = torch.rand(features, 6, 7), torch.rand(features, 6, 7)
    assert torch.allclose(tolerant_distance(a, b, reach), brute_force(a, b, reach), atol=1e-6)


def test_blur_of_a_point_is_the_gaussian_and_keeps_a_constant():
    point = torch.zeros(1, 1, 31, 31)
    point[0, 0, 15, 15] = 1.0
    blurred = blur(point, 2.0)[0, 0]
    assert float(blurred.sum()) == pytest.approx(1.0, abs=1e-5)
    assert float(blurred[15, 17] / blurred[15, 15]) == pytest.approx(math.exp(-0.5), abs=1e-5)
    assert float(blurred[18, 14] / blurred[15, 15]) == pytest.approx(math.exp(-10 / 8), abs=1e-5)
    assert torch.allclose(blur(torch.full((2, 3, 9, 5), 0.7), 1.5), torch.tensor(0.7))
