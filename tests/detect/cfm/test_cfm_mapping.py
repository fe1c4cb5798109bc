"""The networks' sizes, and distances and losses against what directions say."""

from __future__ import annotations

import pytest
import torch

from detect.cfm.mapping import (
    MappingConfig,
    MappingPair,
    Standard,
    cosine_loss,
    direction_distance,
    parameter_count,
    standard_of,
)


def test_parameter_counts_are_the_published_ones():
    pair = MappingPair(MappingConfig(768, 1152))
    assert pair.config.hidden == 960
    assert parameter_count(pair.to_shape) == 2_767_872
    assert parameter_count(pair.to_photo) == 2_767_488
    assert parameter_count(MappingPair(MappingConfig(768, 1152, deep=True))) == 12_915_840
    # The smallest pruning takes the last block alone: 384 dimensions.
    assert MappingConfig(768, 384).hidden == 576


def test_the_deep_variant_has_seven_layers_and_six_gelus():
    kinds = [type(layer).__name__ for layer in MappingPair(MappingConfig(8, 6, deep=True)).to_shape]
    assert kinds == ["Linear", *["GELU", "Linear"] * 6]
    assert [type(layer).__name__ for layer in MappingPair(MappingConfig(8, 6)).to_photo] == [
        "Linear", "GELU", "Linear", "GELU", "Linear",
    ]  # fmt: skip


def test_narrow_features_may_have_a_wider_middle():
    assert MappingConfig(30, 50, least_hidden=256).hidden == 256
    assert MappingConfig(768, 1152, least_hidden=256).hidden == 960


def test_distance_is_0_for_a_positive_multiple_2_for_the_opposite_and_follows_the_cosine():
    true = torch.randn(50, 12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(direction_distance(3.7 * true, true), torch.zeros(50), atol=1e-6, rtol=0)
    torch.testing.assert_close(direction_distance(-0.2 * true, true), torch.full((50,), 2.0))
    other = torch.randn(50, 12, generator=torch.Generator().manual_seed(1))
    cosine = torch.nn.functional.cosine_similarity(other, true)
    torch.testing.assert_close(direction_distance(other, true), (2 - 2 * cosine).sqrt())
    assert direction_distance(torch.zeros(1, 12), true[:1]).item() == pytest.approx(1.0)


def test_the_loss_is_one_minus_the_mean_cosine():
    predicted, true = torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0, 2.0], [3.0, 0.0]])
    assert float(cosine_loss(predicted, true)) == pytest.approx(1 - (0 + 0.5**0.5) / 2)
    pair = MappingPair(MappingConfig(2, 2))
    to_shape, to_photo = pair(predicted, true)
    torch.testing.assert_close(to_shape, cosine_loss(pair.to_shape(predicted), true))
    torch.testing.assert_close(to_photo, cosine_loss(pair.to_photo(true), predicted))


def test_a_pixel_s_distance_does_not_depend_on_its_neighbours():
    pair = MappingPair(MappingConfig(5, 4))
    photo, shape = torch.randn(9, 5), torch.randn(9, 4)
    together = pair.distances(photo, shape)
    for row in range(9):
        alone = pair.distances(photo[row : row + 1], shape[row : row + 1])
        torch.testing.assert_close(alone[0][0], together[0][row], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(alone[1][0], together[1][row], atol=1e-6, rtol=1e-5)


def test_standardising_takes_mean_and_spread_away_and_leaves_what_does_not_vary_at_zero():
    values = torch.randn(400, 3, dtype=torch.float64) * torch.tensor([2.0, 0.1, 0.0]) + 5
    found = standard_of(values.sum(0), values.square().sum(0), 400)
    pair = MappingPair(MappingConfig(3, 3), found, Standard.none(3))
    photo, shape = pair.standardised(values.float(), values.float())
    torch.testing.assert_close(photo.mean(0), torch.zeros(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(photo.std(0, correction=0), torch.tensor([1.0, 1.0, 0.0]), atol=1e-3, rtol=0)
    torch.testing.assert_close(shape, values.float())
