"""A bowl seen by a camera, as photo and points, small enough for every test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from prepare.registered import Registered


@pytest.fixture
def bowl() -> Registered:
    return made_bowl(px=64, radius=0.45)


@pytest.fixture
def rough_bowl() -> Registered:
    """With bumps of 0.3 of a pixel, so that histograms of angles have something to count."""
    return made_bowl(px=64, radius=0.45, roughness_m=1.5e-4)


def made_bowl(px: int, radius: float, roughness_m: float = 2e-5) -> Registered:
    """A paraboloid of 1 px = 0.5 mm, `radius` of the frame wide, 0.4 m off; its vertex is nearest to the camera."""
    from prepare.registered import Registered

    generator = torch.Generator().manual_seed(3)
    axis = (torch.arange(px) + 0.5) / px - 0.5
    down, right = torch.meshgrid(axis, axis, indexing="ij")
    valid = down**2 + right**2 < radius**2
    size = px * 5e-4
    depth = 0.4 + 0.6 * size * (down**2 + right**2) + roughness_m * torch.randn(px, px, generator=generator)
    xyz = torch.stack([size * right + 0.01, size * down + 0.02, depth], dim=2) * valid[..., None]
    rgb = torch.rand(px, px, 3, generator=generator)
    return Registered(rgb, xyz, valid, None)
