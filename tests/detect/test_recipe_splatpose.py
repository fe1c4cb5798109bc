"""SplatPose's map by hand and step by step, its score, and its map at the photo's size."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detect.backbones import IMAGENET_STD, MobileNetV2, TappedNetwork
from detect.recipe_splatpose import splatpose_map, splatpose_recipe


class _Means:
    """A backbone whose two maps are local means of red and of green: everything about its map is known."""

    name: str = "means"
    strides: tuple[int, ...] = (2, 4)
    channels: tuple[int, ...] = (1, 2)

    def features(self, rgb: Tensor) -> list[Tensor]:
        planes = rgb.permute(2, 0, 1)
        pooled = nn.functional.avg_pool2d
        return [pooled(planes[:1], 2), 3.0 * pooled(planes[:2], 4)]


def test_the_map_of_flat_pictures_is_the_formula() -> None:
    query = torch.tensor([51.0, 102.0, 204.0]).div(255).expand(300, 300, 3).contiguous()
    render = torch.tensor([102.0, 153.0, 51.0]).div(255).expand(300, 300, 3).contiguous()
    step = (query - render)[0, 0].double()
    expected = float(((step / torch.tensor(IMAGENET_STD).double()) ** 2).sum())
    expected += float(step[0] ** 2)  # first layer: red
    expected += float(9 * (step[0] ** 2 + step[1] ** 2))  # second: red and green, three times as large
    found = splatpose_map(query, render, _Means())
    torch.testing.assert_close(found, torch.full((224, 224), expected), rtol=1e-5, atol=0)


def _upsampled(values: np.ndarray, size: int) -> np.ndarray:
    """Bilinear with aligned pixel edges (align_corners=False), one axis after the other."""
    for _ in range(2):
        n = values.shape[0]
        at = np.clip((np.arange(size) + 0.5) * n / size - 0.5, 0, n - 1)
        low = np.floor(at).astype(int)
        high = np.minimum(low + 1, n - 1)
        values = (values[low] + (at - low)[:, None] * (values[high] - values[low])).T
    return values


def _blurred(values: np.ndarray) -> np.ndarray:
    """Gaussian of sigma 4 cut at radius 16, the border mirrored with its pixel repeated."""
    offset = np.arange(-16, 17)
    window = np.exp(-0.5 * (offset / 4.0) ** 2)
    window /= window.sum()
    for _ in range(2):
        padded = np.pad(values, ((16, 16), (0, 0)), mode="symmetric")
        values = sum(w * padded[k : k + len(values)] for k, w in enumerate(window)).T
    return values


def test_the_map_is_the_papers_formula_worked_out_step_by_step() -> None:
    generator = np.random.default_rng(0)
    pictures = [generator.integers(0, 256, (224, 224, 3), dtype=np.uint8) for _ in range(2)]
    query, render = (torch.from_numpy(p).float() / 255 for p in pictures)  # 224 px: nothing is resampled
    one, other = (p.astype(np.float64) / 255 for p in pictures)
    total = (((one - other) / np.array(IMAGENET_STD)) ** 2).sum(axis=-1)
    for block, channels, factor in ((2, 1, 1.0), (4, 2, 3.0)):
        pooled = [
            factor
            * p[..., :channels].reshape(224 // block, block, 224 // block, block, channels).mean(axis=(1, 3))
            for p in (one, other)
        ]
        total += _upsampled(((pooled[0] - pooled[1]) ** 2).sum(axis=-1), 224)
    found = splatpose_map(query, render, _Means())
    np.testing.assert_allclose(found.numpy(), _blurred(total), rtol=1e-4)


def test_equal_pictures_have_a_map_of_zeros_also_through_a_real_network() -> None:
    rgb = torch.rand(150, 90, 3)
    assert splatpose_map(rgb, rgb.clone(), _Means()).abs().max() == 0
    network = TappedNetwork("mobilenet_v2", MobileNetV2(), (1, 3, 6, 13))
    assert splatpose_map(rgb, rgb.clone(), network).abs().max() == 0


def test_a_difference_shows_where_it_is() -> None:
    query = torch.full((448, 448, 3), 0.5)
    render = query.clone()
    render[300:320, 100:120] = 1.0  # about (155, 55) at 224 px
    found = splatpose_map(query, render, _Means())
    row, column = divmod(int(found.argmax()), 224)
    assert abs(row - 154.5) <= 1
    assert abs(column - 54.5) <= 1
    assert found[20:100, 120:200].abs().max() == 0


def test_values_of_the_render_beyond_white_count_as_white() -> None:
    query = torch.rand(64, 64, 3)
    white = torch.ones(64, 64, 3)
    assert torch.equal(splatpose_map(query, 1.7 * white, _Means()), splatpose_map(query, white, _Means()))
    assert torch.equal(
        splatpose_map(query, -0.2 * white, _Means()), splatpose_map(query, 0.0 * white, _Means())
    )


def test_the_score_is_the_maximum_of_the_small_map_and_the_map_comes_to_the_photos_size() -> None:
    query = torch.full((300, 400, 3), 0.5)
    render = query.clone()
    render[60:80, 300:320] = 1.0
    found = splatpose_recipe(query, render, _Means())
    assert torch.equal(found.small, splatpose_map(query, render, _Means()))
    assert found.score == float(found.small.max()) > 0
    assert found.values.shape == (300, 400)
    row, column = divmod(int(found.values.argmax()), 400)
    assert abs(row - 69.5) <= 2
    assert abs(column - 309.5) <= 2
    # Bilinear with aligned pixel edges: at the centre of the small map's pixel grid nothing is invented.
    expected = F.interpolate(found.small[None, None], (300, 400), mode="bilinear", align_corners=False)[0, 0]
    torch.testing.assert_close(found.values, expected)


def test_one_photos_score_does_not_depend_on_the_others() -> None:
    generator = torch.Generator().manual_seed(0)
    pairs = [
        (torch.rand(50, 60, 3, generator=generator), torch.rand(50, 60, 3, generator=generator))
        for _ in range(3)
    ]
    forwards = [splatpose_recipe(*pair, _Means()).score for pair in pairs]
    assert [splatpose_recipe(*pair, _Means()).score for pair in reversed(pairs)] == forwards[::-1]
    assert len(set(forwards)) == 3
