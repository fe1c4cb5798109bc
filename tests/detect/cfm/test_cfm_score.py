"""Maps: fusion and smoothing against closed forms, the papers' normalisations by hand, the mask."""

from __future__ import annotations

import math

import pytest
import torch

from detect.cfm.mapping import MappingConfig, MappingPair
from detect.cfm.score import (
    FUSIONS,
    Distances,
    ScoreConfig,
    anomaly_map,
    distances,
    fused,
    published_image_score,
    published_pixel_map,
    published_region_map,
    smoothed,
)

from .conftest import PHOTO_WIDTH, PX, SHAPE_WIDTH, made_features


def test_smoothing_has_support_39_sigma_4_690_and_leaves_a_plain_field_alone():
    point = torch.zeros(61, 61)
    point[30, 30] = 1.0
    kernel = smoothed(point).double()
    rows, columns = kernel.nonzero().unbind(dim=1)
    assert (int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1) == (39, 39)
    assert float(kernel.sum()) == pytest.approx(1.0, abs=1e-5)
    offsets = torch.arange(61, dtype=torch.float64) - 30
    sigma = float((kernel.sum(dim=0) * offsets**2).sum().sqrt())
    assert sigma == pytest.approx(math.sqrt(22), abs=1e-4)
    assert sigma == pytest.approx(4.690, abs=1e-3)
    plain = smoothed(torch.ones(61, 61))
    torch.testing.assert_close(plain[19:42, 19:42], torch.ones(23, 23))
    assert float(plain[0, 0]) < 0.3  # zeros outside: scores fade at the edge


def test_fusions_are_what_they_are_called():
    found = Distances(
        torch.tensor([[0.5, 2.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.5], [0.0, 1.0]]),
        torch.tensor([[True, True], [False, True]]),
    )  # fmt: skip
    expected = {
        "product": [[0.5, 1.0], [0.0, 1.0]], "sum": [[1.5, 2.5], [0.0, 2.0]], "max": [[1.0, 2.0], [0.0, 1.0]],
        "photo": [[0.5, 2.0], [0.0, 1.0]], "shape": [[1.0, 0.5], [0.0, 1.0]],
        # ((D2 - 1) / 0.5 + (D3 - 0.5) / 0.25) / 2
        "zmean": [[0.5, 1.0], [0.0, 1.0]],
    }  # fmt: skip
    assert set(expected) == set(FUSIONS)
    for fusion, values in expected.items():
        config = ScoreConfig(fusion, levels=(1.0, 0.5, 0.5, 0.25))
        torch.testing.assert_close(fused(found, config), torch.tensor(values))
    with pytest.raises(ValueError, match="calibrate first"):
        fused(found, ScoreConfig("zmean"))


def test_published_normalisations_by_hand():
    anomaly = torch.tensor([[0.0, 1.0], [3.0, 0.0]])
    assert published_image_score(anomaly) == pytest.approx(3 / math.sqrt(2))
    torch.testing.assert_close(published_region_map(anomaly), anomaly / 2)
    torch.testing.assert_close(published_pixel_map(anomaly), anomaly)  # the mean of all four is 1
    torch.testing.assert_close(published_pixel_map(4 * anomaly), 2 * anomaly)
    nothing = torch.zeros(2, 2)
    assert published_image_score(nothing) == 0.0
    assert torch.equal(published_region_map(nothing), nothing)


def test_masked_out_pixels_have_no_distance_and_without_the_mask_they_have():
    torch.manual_seed(0)
    pair = MappingPair(MappingConfig(PHOTO_WIDTH, SHAPE_WIDTH))
    features = made_features(1)
    masked, everywhere = distances(pair, features), distances(pair, features, masked=False)
    outside = ~features.valid.reshape(PX, PX)
    assert torch.equal(masked.valid, ~outside)
    assert float(masked.photo[outside].abs().max()) == 0.0
    assert float(everywhere.photo[outside].min()) > 0.0
    torch.testing.assert_close(masked.photo[~outside], everywhere.photo[~outside])
    torch.testing.assert_close(masked.shape[~outside], everywhere.shape[~outside])
    # Unsmoothed, the map is the product itself; smoothed, it leaks over the outline, as published.
    plain = anomaly_map(masked, ScoreConfig(smooth=False))
    torch.testing.assert_close(plain, masked.photo * masked.shape)
    assert float(anomaly_map(masked, ScoreConfig())[outside].max()) > 0.0


def test_distances_are_the_networks_at_each_pixel_whatever_the_chunks(monkeypatch):
    torch.manual_seed(0)
    pair = MappingPair(MappingConfig(PHOTO_WIDTH, SHAPE_WIDTH))
    features = made_features(2)
    whole = distances(pair, features)
    monkeypatch.setattr("detect.cfm.score.ROWS_AT_ONCE", 7)
    pieces = distances(pair, features)
    torch.testing.assert_close(pieces.photo, whole.photo, atol=1e-6, rtol=1e-5)
    pixel = int(features.valid.nonzero()[100, 0])
    at = torch.tensor([pixel])
    photo, shape = pair.distances(*features.rows(at))
    assert float(whole.photo.flatten()[pixel]) == pytest.approx(photo.item(), abs=1e-6)
    assert float(whole.shape.flatten()[pixel]) == pytest.approx(shape.item(), abs=1e-6)
