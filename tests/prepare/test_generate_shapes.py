"""Ray intervals and normals of the solids, against sphere tracing of distance bounds written apart from them."""

from __future__ import annotations

import numpy as np
import pytest

from prepare.generate.shapes import (
    Box,
    Capsule,
    Ellipsoid,
    Frustum,
    Torus,
    prism,
    regular_prism,
    tapered_box,
)


def box_distance(p, half):
    q = np.abs(p) - half
    return np.linalg.norm(np.maximum(q, 0), axis=1) + np.minimum(q.max(axis=1), 0)


def cone_distance(p, bottom, top, half):
    """A lower bound: the farther of the slanted side (as an infinite cone) and the two caps."""
    growth = (top - bottom) / (2 * half)
    side = (np.hypot(p[:, 0], p[:, 1]) - 0.5 * (bottom + top) - growth * p[:, 2]) / np.hypot(1, growth)
    return np.maximum(side, np.abs(p[:, 2]) - half)


def capsule_distance(p, radius, half):
    end = np.clip(p[:, 2], -half, half)
    return np.sqrt(p[:, 0] ** 2 + p[:, 1] ** 2 + (p[:, 2] - end) ** 2) - radius


def torus_distance(p, major, minor):
    return np.hypot(np.hypot(p[:, 0], p[:, 1]) - major, p[:, 2]) - minor


def hull_distance(p, corners):
    """Lower bound for the convex hull of `corners`: farthest outside of the planes through its facets."""
    from scipy.spatial import ConvexHull

    planes = ConvexHull(corners).equations
    return (p @ planes[:, :3].T + planes[:, 3]).max(axis=1)


WEDGE = [(-0.5, -0.3), (0.6, -0.3), (0.2, 0.4), (-0.5, 0.2)]
TAPER = [(x * a, y * b, -0.3) for x in (-1, 1) for y in (-1, 1) for a, b in [(0.5, 0.4)]] + [
    (x * 0.3 + 0.1, y * 0.2, 0.3) for x in (-1, 1) for y in (-1, 1)
]
HEXAGON = [(0.5 * np.cos(a), 0.5 * np.sin(a), z) for a in np.pi / 3 * np.arange(6) for z in (-0.2, 0.2)]
SOLIDS = {
    "box": (Box((0.5, 0.3, 0.2), 1e-6), lambda p: box_distance(p, np.array([0.5, 0.3, 0.2]))),
    "cylinder": (Frustum(0.4, 0.4, 0.3, 1e-6), lambda p: cone_distance(p, 0.4, 0.4, 0.3)),
    "frustum": (Frustum(0.5, 0.1, 0.4, 1e-6), lambda p: cone_distance(p, 0.5, 0.1, 0.4)),
    "cone": (Frustum(0.0, 0.6, 0.2, 1e-6), lambda p: cone_distance(p, 0.0, 0.6, 0.2)),
    "ellipsoid": (
        Ellipsoid((0.5, 0.3, 0.4)),
        lambda p: (np.linalg.norm(p / [0.5, 0.3, 0.4], axis=1) - 1) * 0.3,
    ),
    "capsule": (Capsule(0.2, 0.3), lambda p: capsule_distance(p, 0.2, 0.3)),
    "torus": (Torus(0.4, 0.12), lambda p: torus_distance(p, 0.4, 0.12)),
    "wedge": (
        prism(WEDGE, 0.25, 1e-6),
        lambda p: hull_distance(p, [(x, y, z) for x, z in WEDGE for y in (-0.25, 0.25)]),
    ),
    "tapered box": (tapered_box((0.5, 0.4), (0.3, 0.2), 0.3, 0.1, 1e-6), lambda p: hull_distance(p, TAPER)),
    "hexagon": (regular_prism(6, 0.5, 0.2, 1e-6), lambda p: hull_distance(p, HEXAGON)),
}


def rays(seed, count=400):
    rng = np.random.default_rng(seed)
    origins = rng.standard_normal((count, 3))
    origins *= 2 / np.linalg.norm(origins, axis=1, keepdims=True)
    directions = rng.uniform(-0.6, 0.6, (count, 3)) - origins
    return origins, directions / np.linalg.norm(directions, axis=1, keepdims=True)


def trace(distance, origins, directions):
    """Ray parameter of the first point of the solid (infinite: none), and the least distance on the way."""
    t, closest = np.zeros(len(origins)), np.full(len(origins), np.inf)
    for _ in range(1500):
        gap = distance(origins + t[:, None] * directions)
        closest = np.minimum(closest, gap)
        t = np.where(gap > 1e-7, np.minimum(t + gap, 5), t)
    return np.where(closest < 1e-5, t, np.inf), closest


@pytest.mark.parametrize("name", SOLIDS)
def test_a_ray_enters_and_leaves_where_sphere_tracing_from_both_ends_does(name):
    solid, distance = SOLIDS[name]
    origins, directions = rays(seed=len(name))
    first, closest = trace(distance, origins, directions)
    last, _ = trace(distance, origins + 4 * directions, -directions)
    clear = (closest < 1e-5) | (closest > 1e-3)  # a ray that grazes may go either way in float32
    hit = np.isfinite(first) & clear
    assert 0.15 < hit.mean() < 0.95

    found = solid.interval(tuple(np.concatenate([origins, directions], axis=1).T.astype(np.float32)))
    inside = found.enter <= found.leave
    grazing = hit & (4 - last - first < 5e-2)
    np.testing.assert_array_equal(inside[clear & ~grazing], hit[clear & ~grazing])
    sure = hit & ~grazing
    np.testing.assert_allclose(found.enter[sure], first[sure], atol=2e-4)
    np.testing.assert_allclose(found.leave[sure], 4 - last[sure], atol=2e-4)


@pytest.mark.parametrize("name", SOLIDS)
def test_normals_are_the_gradient_of_the_distance(name):
    solid, distance = SOLIDS[name]
    origins, directions = rays(seed=3)
    first, _ = trace(distance, origins, directions)
    points = (origins + first[:, None] * directions)[np.isfinite(first)]
    steps = 1e-4 * np.eye(3)
    gradient = np.stack([distance(points + s) - distance(points - s) for s in steps], axis=1)
    gradient /= np.linalg.norm(gradient, axis=1, keepdims=True)
    agreement = (solid.normal(points.astype(np.float32)) * gradient).sum(axis=1)
    assert np.mean(agreement > 0.999) > 0.97  # the rest are on an edge, where the gradient jumps


def test_the_normal_on_a_box_edge_is_halfway_between_its_faces():
    normal = Box((0.5, 0.5, 0.5), 0.05).normal(np.array([[0.5, 0.5, 0.0], [0.5, 0.4, 0.0]], np.float32))
    np.testing.assert_allclose(normal[0], [np.sqrt(0.5), np.sqrt(0.5), 0], atol=1e-6)
    np.testing.assert_allclose(normal[1], [1, 0, 0], atol=1e-6)


@pytest.mark.parametrize("name", SOLIDS)
def test_a_scaled_solid_is_hit_at_scaled_distances(name):
    solid, _ = SOLIDS[name]
    origins, directions = rays(seed=5)
    small = solid.interval(tuple(np.concatenate([origins, directions], axis=1).T.astype(np.float32)))
    large = solid.scaled(2.0).interval(
        tuple(np.concatenate([2 * origins, directions], axis=1).T.astype(np.float32))
    )
    sure = (small.leave - small.enter) > 5e-2
    np.testing.assert_allclose(large.enter[sure], 2 * small.enter[sure], atol=5e-4)
