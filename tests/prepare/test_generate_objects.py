"""The product families: repeatable, within bounds, different for each seed."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from prepare.generate.objects import Family, frame_along, make_object

FAMILIES = get_args(Family)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", [0, 1, 7])
def test_a_product_has_many_sound_parts_within_the_unit_ball(family, seed):
    product = make_object(family, seed)
    assert 30 <= len(product.parts) <= 120
    for part in product.parts:
        np.testing.assert_allclose(part.rotation @ part.rotation.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(part.rotation) == pytest.approx(1)
        assert np.linalg.norm(part.centre) < 1
        assert min(part.shape.extent) > 0
        assert all(0 <= channel <= 1 for channel in part.colour)
    assert len(product.groups()) >= 10
    assert len({part.colour for part in product.parts}) >= 6


def test_a_product_fills_the_ball_but_stays_within_what_the_camera_sees():
    """At distance 3 and a field of view of 0.69111 rad a ball of radius 3 sin(0.3456) = 1.016 is just in the frame."""
    for family in FAMILIES:
        parts = make_object(family, 3).parts
        reach = max(np.linalg.norm(part.corners(), axis=1).max() for part in parts)
        assert 0.9 < reach < 1.1  # corners of boxes around round parts may stick out a little


@pytest.mark.parametrize("family", FAMILIES)
def test_the_seed_decides_sizes_and_colours(family):
    def facts(seed):
        parts = make_object(family, seed).parts
        return [(p.name, tuple(p.centre), p.colour, p.shape.extent) for p in parts]

    assert facts(4) == facts(4)
    products = [facts(seed) for seed in range(6)]
    assert len({str(p) for p in products}) == 6
    assert len({str([c for _, _, c, _ in p][:40]) for p in products}) >= 3


@pytest.mark.parametrize("axis", [(0.0, 0.0, 1.0), (0.0, 0.0, -1.0), (1.0, 0.0, 0.0), (0.3, -0.5, 0.2)])
def test_frame_along_is_a_rotation_that_takes_z_to_the_axis(axis):
    frame = frame_along(axis)
    np.testing.assert_allclose(frame @ frame.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(frame) == pytest.approx(1)
    np.testing.assert_allclose(frame[:, 2], np.asarray(axis) / np.linalg.norm(axis), atol=1e-12)
