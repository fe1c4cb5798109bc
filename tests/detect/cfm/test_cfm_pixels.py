"""Tokens to pixels: against the same maps made in full."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.sparse import eye_array

from detect.cfm.pixels import average_of_valid, grid_weights, nearest_tokens, spread

if TYPE_CHECKING:
    from prepare.registered import Registered


@pytest.mark.parametrize(
    ("row", "column", "covered"), [(50, 60, 16), (111, 111, 25), (112, 112, 25), (0, 0, 4), (223, 223, 4)]
)
def test_one_valid_pixel_reaches_as_many_pixels_as_published(row: int, column: int, covered: int) -> None:
    valid = torch.zeros(224, 224, dtype=torch.bool)
    valid[row, column] = True
    weights = spread(valid, eye_array(1, format="csr"))
    assert int(weights.covered().sum()) == covered


def test_spread_is_scatter_average_and_pooling_of_the_interpolated_tokens(bowl: Registered) -> None:
    px = 64
    points = bowl.xyz[bowl.valid]
    centres, tokens = points[::37], torch.randn(len(points[::37]), 5)
    squared = (points.double()[:, None] - centres.double()[None]).square().sum(dim=2)
    nearest, index = squared.topk(3, dim=1, largest=False)
    share = 1 / (nearest + 1e-8)
    share /= share.sum(dim=1, keepdim=True)
    full = torch.zeros(px, px, 5, dtype=torch.double)
    full[bowl.valid] = (share[..., None] * tokens.double()[index]).sum(dim=1)
    pooled = F.adaptive_avg_pool2d(F.avg_pool2d(full.permute(2, 0, 1)[None], 3, stride=1), px)[0]
    expected = pooled.permute(1, 2, 0).flatten(0, 1)

    weights = spread(bowl.valid, nearest_tokens(points, centres))
    found = weights.rows(tokens, torch.arange(px * px))
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-3)  # half precision
    assert torch.equal(weights.covered(), expected.abs().sum(dim=1) != 0)


def test_average_of_valid_is_the_mean_over_valid_neighbours_and_ends_at_the_mask() -> None:
    generator = torch.Generator().manual_seed(0)
    valid = torch.rand(12, 12, generator=generator) < 0.4
    values = torch.randn(int(valid.sum()), 2, generator=generator)
    full = torch.zeros(12, 12, 2)
    full[valid] = values
    weights = average_of_valid(valid, eye_array(len(values), format="csr"))
    found = weights.rows(values, torch.arange(144)).unflatten(0, (12, 12))
    for row in range(12):
        for column in range(12):
            if not valid[row, column]:
                assert not found[row, column].any()
                continue
            box = np.s_[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
            torch.testing.assert_close(
                found[row, column], full[box][valid[box]].mean(dim=0), rtol=0, atol=2e-3
            )
    assert torch.equal(weights.covered(), valid.flatten())


@pytest.mark.parametrize(("rows", "columns"), [(28, 28), (5, 9), (1, 1), (56, 56)])
def test_grid_weights_are_torchs_bilinear_interpolation(rows: int, columns: int) -> None:
    grid = torch.randn(rows, columns, 3, generator=torch.Generator().manual_seed(1))
    expected = F.interpolate(
        grid.permute(2, 0, 1)[None], size=(56, 56), mode="bilinear", align_corners=False
    )[0]
    found = grid_weights(rows, columns, 56).rows(grid.flatten(0, 1), torch.arange(56 * 56))
    torch.testing.assert_close(found, expected.permute(1, 2, 0).flatten(0, 1), rtol=0, atol=3e-3)


def test_rows_are_those_asked_for_in_the_order_asked_for() -> None:
    weights = grid_weights(4, 4, 16)
    values = torch.randn(16, 3)
    everything = weights.rows(values, torch.arange(256))
    some = torch.tensor([255, 3, 3, 0, 130])
    assert torch.equal(weights.rows(values, some), everything[some])
    assert weights.rows(values, torch.zeros(0, dtype=torch.long)).shape == (0, 3)
