"""Where cells lie, as features: points of the surface (3DPE) and places in the picture, as sines of growing frequency."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn


def fourier(
    points: Float[Tensor, "*batch axes"], bands: int, base: float
) -> Float[Tensor, "*batch features"]:
    """`points`, then for each band i sin and cos of base 2^i points: axes (1 + 2 bands) numbers.

    Source: Mildenhall et al. 2020 (NeRF), eq. 4; Looking 3D has base 1 and 10 bands.
    """
    parts = [points]
    for band in range(bands):
        angle = points * (base * 2.0**band)
        parts += [angle.sin(), angle.cos()]
    return torch.cat(parts, dim=-1)


class SurfacePositions(nn.Module):
    """Features of the surface points that cells show.

    A cell without a point (NaN) gets a learned vector. With `missing_as_point`, as released, it is taken for the point
    (-1, -1, -1), which a shape may well have.
    """

    def __init__(self, width: int, bands: int, base: float, missing_as_point: bool) -> None:
        super().__init__()
        self.bands, self.base = bands, base
        self.linear = nn.Linear(3 * (1 + 2 * bands), width)
        self.missing = None if missing_as_point else nn.Parameter(torch.zeros(width))

    def forward(self, xyz: Float[Tensor, "*batch xyz=3"]) -> Float[Tensor, "*batch width"]:
        known = xyz.isfinite().all(dim=-1, keepdim=True)
        features = self.linear(fourier(torch.where(known, xyz, -1.0), self.bands, self.base))
        return features if self.missing is None else torch.where(known, features, self.missing)


class PicturePositions(nn.Module):
    """Features of the cells' places in the picture, from -1 (left, top) to 1."""

    def __init__(self, width: int, bands: int) -> None:
        super().__init__()
        self.bands = bands
        self.linear = nn.Linear(2 * (1 + 2 * bands), width)

    def forward(self, rows: int, columns: int) -> Float[Tensor, "cells width"]:
        weight = self.linear.weight
        return self.linear(fourier(cell_places(rows, columns, weight), self.bands, math.pi))


def cell_places(rows: int, columns: int, like: Tensor) -> Float[Tensor, "cells 2"]:
    """Centres (x, y) of the cells, row by row, from -1 (left, top) to 1 (right, bottom)."""
    y = (torch.arange(rows, dtype=like.dtype, device=like.device) + 0.5) * (2.0 / rows) - 1
    x = (torch.arange(columns, dtype=like.dtype, device=like.device) + 0.5) * (2.0 / columns) - 1
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).reshape(-1, 2)
