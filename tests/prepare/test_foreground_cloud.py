from __future__ import annotations

import numpy as np
import pytest
from sklearn.cluster import DBSCAN

from prepare.errors import InputError
from prepare.foreground_cloud import CloudSettings, border_points, dbscan, fit_plane, keep_part
from prepare.organised_cloud import measured

SETTINGS = CloudSettings()


def _scene(
    px: int = 200, noise: float = 0.0003, seed: int = 0, fleck: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """A cap of a sphere on a tilted plate, half a metre away, and where the cap is 5 mm and more above the plate.

    With `fleck`: another thing of 40 points stands beside it, and the sensor missed a square in the cap.
    """
    rng = np.random.default_rng(seed)
    v, u = np.mgrid[:px, :px]
    ray = np.stack([(u + 0.5 - px / 2) / (3.2 * px), (v + 0.5 - px / 2) / (3.2 * px), np.ones((px, px))], -1)
    normal = np.array([0.1, -0.25, -1.0]) / np.linalg.norm([0.1, -0.25, -1.0])
    on_plate = np.array([0.0, 0.0, 0.5])
    plate = ray * ((normal @ on_plate) / (ray @ normal))[..., None]
    centre, radius = on_plate - 0.01 * normal, 0.04
    b = ray @ centre
    inside = b**2 - (ray**2).sum(-1) * (centre @ centre - radius**2)
    near = (b - np.sqrt(np.maximum(inside, 0))) / (ray**2).sum(-1)
    cap = (inside > 0) & (near < plate[..., 2])
    xyz = np.where(cap[..., None], ray * near[..., None], plate)
    height = (xyz - on_plate) @ normal
    xyz = xyz + rng.normal(0, noise, (px, px, 1)) * ray
    part = cap & (height >= 0.005)
    unsure = np.abs(height - 0.005) < 0.002
    if fleck:
        xyz[20:30, 20:24] += 0.02 * normal
        xyz[90:96, 90:96] = 0
        part[90:96, 90:96] = False
    return xyz.astype(np.float32), np.where(unsure, -1, part.astype(int))


def test_the_plane_is_removed_and_only_the_plane() -> None:
    xyz, part = _scene()
    before = xyz.copy()
    kept = keep_part(xyz, SETTINGS)
    assert np.array_equal(xyz, before)
    assert part.max() == 1
    assert (part == 1).sum() > 3000
    assert measured(kept)[part == 1].all()
    assert not measured(kept)[part == 0].any()
    assert np.array_equal(kept[measured(kept)], xyz[measured(kept)])


def test_without_noise_the_part_is_exact_at_5_mm() -> None:
    xyz, _ = _scene(noise=0.0, fleck=False)
    kept = measured(keep_part(xyz, SETTINGS))
    normal = np.array([0.1, -0.25, -1.0]) / np.linalg.norm([0.1, -0.25, -1.0])
    height = (xyz.astype(np.float64) - [0, 0, 0.5]) @ normal
    sure = np.abs(height - 0.005) > 1e-6
    assert np.array_equal(kept[sure], (height >= 0.005)[sure])


def test_the_plane_is_found_among_outliers_and_again_with_the_same_seed() -> None:
    rng = np.random.default_rng(1)
    normal = np.array([0.2, 0.3, -0.9])
    normal /= np.linalg.norm(normal)
    points = rng.uniform(-0.1, 0.1, (3000, 3))
    points -= np.outer(points @ normal - 0.4 + rng.normal(0, 0.0005, 3000), normal)
    points[:90] += rng.uniform(0.01, 0.05, (90, 1)) * normal
    plane = fit_plane(points, SETTINGS)
    assert np.abs(np.abs(plane.normal @ normal) - 1) < 1e-6
    assert plane.distance(0.4 * normal[None])[0] < 5e-5
    again = fit_plane(points, SETTINGS)
    assert np.array_equal(plane.normal, again.normal)
    assert plane.offset == again.offset


def test_the_border_is_ten_pixels_of_each_side() -> None:
    xyz = np.ones((60, 50, 3), np.float32)
    xyz[0] = 0
    xyz[1, :, 1] = 0
    assert len(border_points(xyz, 10)) == 60 * 50 - 40 * 30 - 100


@pytest.mark.parametrize("kind", ["blobs", "sheet", "line", "sparse", "grid", "few"])
def test_dbscan_is_scikit_learns(kind: str) -> None:
    rng = np.random.default_rng(["blobs", "sheet", "line", "sparse", "grid", "few"].index(kind))
    if kind == "blobs":
        points = np.concatenate([rng.normal(rng.uniform(-0.05, 0.05, 3), 0.004, (200, 3)) for _ in range(12)])
    elif kind == "sheet":  # dense, with bridges and islands: what a part looks like
        flat = rng.uniform(0, 0.1, (4000, 2))
        flat = flat[(np.sin(250 * flat[:, 0]) + np.sin(200 * flat[:, 1])) > 0.5]
        points = np.column_stack([flat, 0.003 * np.sin(100 * flat[:, 0]) + rng.normal(0, 3e-4, len(flat))])
    elif kind == "line":
        points = np.column_stack([rng.uniform(0, 0.9, 2500), np.zeros((2500, 2))])
    elif kind == "sparse":
        points = rng.uniform(0, 0.03, (900, 3))
    elif kind == "grid":
        points = np.stack(np.meshgrid(*[np.arange(9)] * 3), -1).reshape(-1, 3) * 0.00271
        points = points[rng.random(len(points)) < 0.8]
    else:
        points = rng.uniform(0, 0.001, (20, 3))
    points = rng.permutation(points)
    expected = DBSCAN(eps=0.006, min_samples=30).fit(points).labels_
    assert np.array_equal(dbscan(points, 0.006, 30), expected)
    if kind not in ("few", "grid"):
        assert len(np.unique(expected)) >= 2


def _mostly_noise() -> np.ndarray:
    """A plate with a small dense thing (100 points) and many single ones."""
    xyz, _ = _scene(px=120, noise=0.0, fleck=False)
    v, u = np.mgrid[:120, :120]
    normal = np.array([0.1, -0.25, -1.0]) / np.linalg.norm([0.1, -0.25, -1.0])
    height = (xyz - [0, 0, 0.5]) @ normal
    xyz -= (height[..., None] * normal).astype(np.float32)
    alone = (u % 5 == 0) & (v % 5 == 0) & (u > 15) & (u < 105) & (v > 15) & (v < 105)
    rng = np.random.default_rng(0)
    xyz[alone] += (rng.uniform(0.01, 0.15, (alone.sum(), 1)) * normal).astype(np.float32)
    xyz[50:60, 50:60] += (0.02 * normal).astype(np.float32)
    return xyz


def test_noise_votes_only_when_told_to() -> None:
    xyz = _mostly_noise()
    ours = measured(keep_part(xyz, SETTINGS))
    assert ours[50:60, 50:60].sum() >= 96  # less the single points within
    assert ours.sum() < 130
    published = measured(keep_part(xyz, CloudSettings(noise_votes=True)))
    assert published.sum() > ours.sum()
    assert not published[51:54, 51:54].any()


def test_a_cloud_without_support_or_part_is_told() -> None:
    xyz, _ = _scene(px=60, fleck=False)
    bare = xyz.copy()
    bare[:10], bare[-10:], bare[:, :10], bare[:, -10:] = 0, 0, 0, 0
    with pytest.raises(InputError, match="border shows 0 points, at least 50"):
        keep_part(bare, SETTINGS)
    with pytest.raises(InputError, match="empty once the support plane is removed"):
        keep_part(xyz, CloudSettings(removed_within=1.0))
    with pytest.raises(InputError, match="no 30 points within 1e-05 mm"):
        keep_part(xyz, CloudSettings(cluster_distance=1e-8))
