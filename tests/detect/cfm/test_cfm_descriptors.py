"""Normals, surface variation and FPFH: closed forms, and the definition written out point by point."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from detect.cfm.descriptors import Cloud, Surface, curvature, fpfh, fpfh_multi, neighbours, surface, thinned

if TYPE_CHECKING:
    from prepare.registered import Registered


def _cloud(registered: Registered) -> Cloud:
    return Cloud(registered.xyz, registered.valid)


def _turned(cloud: Cloud) -> tuple[Cloud, torch.Tensor]:
    axis = torch.tensor([0.3, -0.5, 0.2], dtype=torch.double)
    skew = torch.linalg.cross(axis.expand(3, 3), torch.eye(3, dtype=torch.double), dim=1).T
    turn = torch.linalg.matrix_exp(skew)
    points = cloud.points.double() @ turn.T + torch.tensor([0.02, -0.01, -0.35], dtype=torch.double)
    return Cloud(points.float() * cloud.valid[..., None], cloud.valid), turn.float()


def test_neighbours_are_those_of_a_search_in_space(bowl: Registered) -> None:
    cloud = _cloud(bowl)
    pixels = cloud.valid.flatten().nonzero()[:, 0]
    index, squared = neighbours(cloud, pixels, 30, 1.0)
    points = cloud.points[cloud.valid].double().numpy()
    expected, place = cKDTree(points).query(points, k=30)
    # Single precision tells distances apart to 1e-7 m; at the mask's edge the window may end before the 30th.
    inside = np.linalg.norm(points[:, :2] - points[:, :2].mean(axis=0), axis=1) < 0.011
    found = squared.sqrt().sort(dim=1).values.numpy()
    np.testing.assert_allclose(found[inside], expected[inside], atol=2e-6)
    same = [len(set(pixels[p].tolist()) & set(i.tolist())) for p, i in zip(place, index, strict=True)]
    assert np.mean(np.array(same)[inside]) > 29.8


def test_neighbours_end_at_the_radius(bowl: Registered) -> None:
    cloud = _cloud(bowl)
    middle = torch.tensor([32 * 64 + 32])
    _, squared = neighbours(cloud, middle, 30, 1.2e-3)
    there = squared[squared.isfinite()]
    distance = (cloud.points[cloud.valid] - cloud.points[32, 32]).norm(dim=1)
    assert len(there) == int((distance <= 1.2e-3).sum()) < 30


def test_normals_of_a_plane_are_its_own_and_face_the_camera() -> None:
    axis = torch.arange(32) * 5e-4
    down, right = torch.meshgrid(axis, axis, indexing="ij")
    plane = Cloud(
        torch.stack([right, down, 0.4 + 0.5 * right - 0.2 * down], dim=2), torch.ones(32, 32).bool()
    )
    seen = surface(plane)
    expected = torch.tensor([0.5, -0.2, -1.0]) / math.sqrt(1.29)
    torch.testing.assert_close(seen.normals, expected.expand(32, 32, 3), rtol=0, atol=2e-3)
    assert seen.defined.all()
    assert seen.variation.max() < 1e-6


def test_normals_of_a_paraboloid_are_its_gradient(bowl: Registered) -> None:
    cloud = _cloud(bowl)
    seen = surface(cloud)
    size = 64 * 5e-4
    x, y = (cloud.points[..., 0] - 0.01) / size, (cloud.points[..., 1] - 0.02) / size
    expected = torch.nn.functional.normalize(torch.stack([1.2 * x, 1.2 * y, -torch.ones_like(x)], 2), dim=2)
    inside = cloud.valid & (x**2 + y**2 < 0.35**2)
    cosine = (seen.normals * expected).sum(dim=2)[inside]
    assert torch.rad2deg(cosine.clamp(max=1).acos()).mean() < 1.0
    assert not seen.normals[~cloud.valid].any()


def test_a_line_of_points_has_no_normal() -> None:
    valid = torch.zeros(16, 16, dtype=torch.bool)
    valid[8] = True
    points = torch.zeros(16, 16, 3)
    points[8, :, 0] = torch.arange(16) * 1e-3
    points[8, :, 2] = 0.4
    seen = surface(Cloud(points, valid))
    assert not seen.defined.any()
    assert not seen.normals.any()


def _literal_fpfh(points: np.ndarray, normals: np.ndarray, count: int) -> np.ndarray:
    """Rusu et al. 2009 pair by pair; `points` in metres, `count` with the point itself."""
    distance = np.linalg.norm(points[:, None] - points[None], axis=2)
    nearest = np.argsort(distance, axis=1)[:, :count]
    simple = np.zeros((len(points), 33))
    for p in range(len(points)):
        others = [q for q in nearest[p] if q != p]
        for q in others:
            source, target = p, q
            line = (points[q] - points[p]) / distance[p, q]
            if np.arccos(min(1, abs(normals[p] @ line))) > np.arccos(min(1, abs(normals[q] @ line))):
                source, target, line = q, p, -line
            u = normals[source]
            v = np.cross(line, u)
            v /= np.linalg.norm(v)
            w = np.cross(u, v)
            theta = np.arctan2(w @ normals[target], u @ normals[target])
            shares = ((theta + np.pi) / (2 * np.pi), (v @ normals[target] + 1) / 2, (u @ line + 1) / 2)
            for part, share in enumerate(shares):
                simple[p, 11 * part + min(int(11 * share), 10)] += 100 / len(others)
    out = simple.copy()
    for p in range(len(points)):
        near = sum(simple[q] / distance[p, q] ** 2 for q in nearest[p] if q != p)
        for part in range(3):
            own = near[11 * part : 11 * part + 11]
            out[p, 11 * part : 11 * part + 11] += 100 * own / own.sum()
    return out


def test_fpfh_is_the_definition_written_out() -> None:
    generator = torch.Generator().manual_seed(5)
    axis = torch.arange(14) * 5e-4
    down, right = torch.meshgrid(axis, axis, indexing="ij")
    rough = 2e-4 * torch.randn(14, 14, generator=generator)
    cloud = Cloud(
        torch.stack([right, down, 0.002 * torch.sin(700 * right) + rough], 2), torch.ones(14, 14).bool()
    )
    normals = torch.nn.functional.normalize(
        torch.randn(14, 14, 3, generator=generator) * 0.4 - torch.tensor([0.0, 0.0, 1.0]), dim=2
    )
    seen = Surface(normals, torch.zeros(14, 14), torch.zeros(14, 14), torch.ones(14, 14).bool())
    found = fpfh(cloud, seen, count=20, stride=1).values
    expected = _literal_fpfh(
        cloud.points.flatten(0, 1).double().numpy(), normals.flatten(0, 1).double().numpy(), 20
    )
    # The window holds all 20 in the middle of the patch; a pair on the edge of two bins may fall to either in single precision.
    middle = torch.zeros(14, 14, dtype=torch.bool)
    middle[5:9, 5:9] = True
    difference = (found.numpy() - expected)[middle.flatten().numpy()]
    assert np.median(np.abs(difference)) < 1e-3
    assert np.abs(difference).max() < 8
    assert np.abs(expected[middle.flatten().numpy()]).max() > 50


@pytest.mark.parametrize("stride", [1, 2])
def test_fpfh_does_not_change_with_the_frame(rough_bowl: Registered, stride: int) -> None:
    cloud = _cloud(rough_bowl)
    turned, turn = _turned(cloud)
    seen, seen_turned = surface(cloud), surface(turned)
    angle = (seen.normals @ turn.T * seen_turned.normals).sum(dim=2)[cloud.valid]
    assert torch.quantile(angle, 0.01) > 0.999
    before, after = (fpfh(c, s, stride=stride).values for c, s in ((cloud, seen), (turned, seen_turned)))
    assert (before - after).abs().mean() < 0.25  # of 200; pairs on the edge of a bin
    assert before.std(dim=0).mean() > 1
    torch.testing.assert_close(before.unflatten(1, (3, 11)).sum(dim=2), torch.full((len(before), 3), 200.0))


def test_fpfh_of_a_subset_is_near_that_of_all_points(rough_bowl: Registered) -> None:
    cloud = _cloud(rough_bowl)
    seen = surface(cloud)
    full, half = fpfh(cloud, seen, stride=1).values, fpfh(cloud, seen, stride=2).values
    pixels, _ = thinned(cloud, 2)
    number = torch.full((64 * 64,), -1)
    number[cloud.valid.flatten()] = torch.arange(int(cloud.valid.sum()))
    same = full[number[pixels]]
    spread = same - same.mean(dim=0)
    error = same - half
    assert error.square().mean() < 0.2 * spread.square().mean()


def test_multi_is_normal_variation_and_three_scales(rough_bowl: Registered) -> None:
    cloud = _cloud(rough_bowl)
    seen = surface(cloud)
    found = fpfh_multi(cloud, seen)
    pixels, _ = thinned(cloud, 2)
    assert found.values.shape == (len(pixels), 103)
    assert torch.equal(found.values[:, :3], seen.normals.flatten(0, 1)[pixels])
    assert torch.equal(found.values[:, 37:70], fpfh(cloud, seen, count=100).values)
    assert torch.equal(found.points, cloud.points.flatten(0, 1)[pixels])


def test_curvature_of_a_plane_is_nothing_and_of_a_bump_its_height() -> None:
    axis = torch.arange(48) * 5e-4
    down, right = torch.meshgrid(axis, axis, indexing="ij")
    flat = torch.stack([right, down, 0.4 + 0.3 * right], dim=2)
    everywhere = torch.ones(48, 48).bool()
    plane = curvature(Cloud(flat, everywhere), surface(Cloud(flat, everywhere))).values
    assert plane.shape == (24 * 24, 15)
    middle = (torch.arange(24 * 24).view(24, 24)[6:18, 6:18]).flatten()
    expected = torch.tensor([0.3, 0.0, -1.0]) / math.sqrt(1.09)
    for scale in range(3):
        torch.testing.assert_close(
            plane[middle, 5 * scale : 5 * scale + 3], expected.expand(144, 3), rtol=0, atol=3e-3
        )
        assert plane[middle, 5 * scale + 3 : 5 * scale + 5].abs().max() < 5e-3
    bumped = flat.clone()
    bumped[24, 24, 2] -= 2e-4  # one point nearer to the camera by 0.4 px
    values = curvature(Cloud(bumped, everywhere), surface(Cloud(bumped, everywhere))).values.view(24, 24, 15)
    distances = (flat - flat[24, 24]).flatten(0, 1).norm(dim=1).sort().values[:30]
    height = 2e-4 * (1 - 1 / 30) / math.sqrt(1.09)
    assert values[12, 12, 4] == pytest.approx(height / float(distances.square().mean().sqrt()), rel=0.1)
    assert values[..., 4].argmax() == 12 * 24 + 12


def test_thinned_takes_the_first_valid_pixel_of_each_cell() -> None:
    valid = torch.zeros(5, 5, dtype=torch.bool)
    valid[1, 1] = valid[4, 4] = valid[2, 3] = valid[3, 2] = True
    points = torch.arange(75.0).view(5, 5, 3)
    pixels, thin = thinned(Cloud(points, valid), 2)
    assert pixels.tolist() == [6, 13, 24]
    assert thin.valid.tolist() == [[True, False, False], [False, True, False], [False, False, True]]
    assert torch.equal(thin.points[thin.valid], points.flatten(0, 1)[pixels])
