"""The ray caster: geometry at a camera by closed form and brute force, light by what must be darker than what."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from prepare.camera import Camera, look_at
from prepare.generate.objects import make_object
from prepare.generate.parts import Assembly, Ball, Lettering, Lines, Part, Stain
from prepare.generate.raycast import cast, light, photograph, surface
from prepare.generate.shapes import Box, Ellipsoid, Frustum


def camera_at(position, size=40, focal=60.0):
    world_to_cam = look_at(
        torch.tensor(position, dtype=torch.float64),
        torch.zeros(3).double(),
        torch.tensor([0.0, 0.0, 1.0]).double(),
    )
    return Camera(world_to_cam, focal, focal, size / 2, size / 2, size, size)


def part(shape, at=(0.0, 0.0, 0.0), rotation=None, colour=(0.5, 0.5, 0.5), **more):
    turn = np.eye(3) if rotation is None else rotation
    return Part(
        "part",
        more.pop("group", ""),
        shape,
        np.asarray(at, float),
        turn,
        colour,
        more.pop("gloss", 0.0),
        **more,
    )


def test_depth_of_a_sphere_is_its_closed_form_at_every_pixel():
    camera = camera_at((2.0, -1.5, 1.0))
    hits = cast([part(Ellipsoid((0.5, 0.5, 0.5)), at=(0.1, 0.2, -0.1))], camera)
    centre = (camera.world_to_cam @ torch.tensor([0.1, 0.2, -0.1, 1.0]).double())[:3].numpy()
    columns, rows = np.meshgrid(np.arange(40) + 0.5, np.arange(40) + 0.5)
    slopes = np.stack([(columns - 20) / 60, (rows - 20) / 60, np.ones_like(rows)], axis=-1)
    a, b = (slopes**2).sum(-1), slopes @ centre
    under_root = b**2 - a * (centre @ centre - 0.25)
    np.testing.assert_array_equal(hits.part >= 0, under_root > 0)
    expected = (b - np.sqrt(np.maximum(under_root, 0))) / a
    seen = under_root > 1e-3
    assert seen.sum() > 100
    np.testing.assert_allclose(hits.depth[seen], expected[seen], atol=2e-5)


def test_a_small_part_is_seen_at_the_pixel_where_it_projects_by_hand():
    # The camera stands at y = -3 and looks along +y: x_cam = x, y_cam = -z, z_cam = y + 3.
    camera = camera_at((0.0, -3.0, 0.0), size=100, focal=120.0)
    hits = cast([part(Box((0.02, 0.02, 0.02)), at=(0.5, 0.0, 0.25))], camera, supersample=4)
    rows, columns = np.nonzero(hits.part == 0)
    # u = 120 * 0.5 / 3 + 50 = 70, v = -120 * 0.25 / 3 + 50 = 40; a quarter pixel is one sub-pixel
    assert (columns.mean() + 0.5) / 4 == pytest.approx(70, abs=0.25)
    assert (rows.mean() + 0.5) / 4 == pytest.approx(40, abs=0.25)
    assert hits.depth[rows, columns].min() == pytest.approx(2.98, abs=1e-5)


@pytest.mark.parametrize("family", ["truck", "pump"])
def test_screen_rectangles_and_the_depth_buffer_lose_no_hit(family):
    parts = make_object(family, 1).parts
    camera = camera_at((1.8, 2.0, 1.2), size=32, focal=45.0)
    matrix = camera.world_to_cam.numpy()
    eye = -matrix[:3, :3].T @ matrix[:3, 3]
    ticks = (np.arange(32) + 0.5 - 16) / 45
    columns, rows = (v.ravel() for v in np.meshgrid(ticks, ticks))
    directions = np.stack([columns, rows, np.ones_like(rows)], axis=1) @ matrix[:3, :3]
    depths = []
    for one in parts:
        origin, local = one.rotation.T @ (eye - one.centre), directions @ one.rotation
        # float64 throughout; t is the depth, for directions have z = 1 in the camera
        found = one.shape.interval((*np.broadcast_to(origin, local.shape).T, *local.T))
        depths.append(np.where(found.enter <= found.leave, found.enter, np.inf))
    nearest = np.min(depths, axis=0).reshape(32, 32)
    hits = cast(parts, camera)
    both = np.isfinite(nearest) & np.isfinite(hits.depth)
    assert np.mean(np.isfinite(nearest) == np.isfinite(hits.depth)) > 0.995  # but for rays along an outline
    assert np.mean(np.abs(nearest[both] - hits.depth[both]) < 1e-3) > 0.99
    assert both.sum() > 150


def test_a_bite_opens_the_part_down_to_the_far_side_of_the_ball():
    camera = camera_at((0.0, -3.0, 0.0), size=41, focal=60.0)
    bitten = part(Box((0.5, 0.5, 0.5)), bite=Ball((0.0, -0.5, 0.0), 0.3))
    hits = cast([bitten], camera)
    assert hits.depth[20, 20] == pytest.approx(2.8, abs=1e-5)  # y from -3 to -0.5 + 0.3
    assert hits.depth[20, 28] == pytest.approx(2.5, abs=1e-5)  # beside the bite: the face
    normal = surface(Assembly("box", (bitten,)), camera, 1, hits).normals[
        np.flatnonzero(hits.part.ravel() >= 0) == 20 * 41 + 20
    ]
    np.testing.assert_allclose(normal[0], [0, -1, 0], atol=1e-3)
    through = part(Box((0.5, 0.1, 0.5)), bite=Ball((0.0, 0.0, 0.0), 0.3))
    assert cast([through], camera).part[20, 20] == -1


def test_the_background_is_exactly_white_and_a_white_part_in_full_light_nearly():
    ball = Assembly("ball", (part(Ellipsoid((0.5, 0.5, 0.5)), colour=(1.0, 1.0, 1.0)),))
    view = photograph(ball, light(ball), camera_at((2.0, -2.0, 1.0)), 2)
    assert (view.rgb[0, 0] == 1).all()
    inside = (view.hits.part >= 0).reshape(40, 2, 40, 2).all(axis=(1, 3))
    assert 0.8 < view.rgb[inside].max() <= 1
    assert view.rgb[inside].min() > 0.3


def test_a_convex_part_alone_casts_no_shadow_on_itself():
    """Its colour is then a function of the normal: opposite ends of a tall prism's face look the same."""
    wall = Assembly("wall", (part(Box((0.1, 0.6, 0.6)), colour=(0.8, 0.8, 0.8)),))
    rgb = photograph(wall, light(wall), camera_at((3.0, 0.0, 0.0)), 1).rgb[..., 0]
    face = rgb[12:29, 12:29]
    assert face.max() - face.min() < 0.01


def test_a_lid_above_a_plate_shades_the_plate_and_nothing_else_does():
    plate = part(Box((0.6, 0.6, 0.05)), at=(0, 0, -0.4), colour=(0.8, 0.8, 0.8))
    lid = part(Box((0.3, 0.3, 0.03)), at=(0, 0, 0.2), colour=(0.8, 0.8, 0.8))
    camera = camera_at((2.5, 0.5, 0.6))
    alone, covered = Assembly("plate", (plate,)), Assembly("both", (plate, lid))
    bare = photograph(alone, light(alone), camera, 1)
    shaded = photograph(covered, light(covered), camera, 1)
    same = (bare.hits.part == 0) & (shaded.hits.part == 0)
    change = (shaded.rgb - bare.rgb)[same]
    assert change.max() < 1e-3
    assert change.min() < -0.15


def test_two_by_two_samples_come_near_eight_by_eight():
    product = make_object("robot", 2)
    maps, camera = light(product), camera_at((2.2, 1.6, 1.0), size=48, focal=66.0)
    coarse, fine = (photograph(product, maps, camera, n).rgb for n in (2, 8))
    assert np.abs(coarse - fine).mean() < 0.015
    assert np.abs(photograph(product, maps, camera, 1).rgb - fine).mean() > 1.5 * np.abs(coarse - fine).mean()


def test_a_stain_colours_the_surface_inside_its_radius_only():
    plate = part(Box((0.8, 0.8, 0.1)), colour=(0.9, 0.9, 0.9))
    stain = Stain(
        centre=(0.2, 0.0, 0.1), radius=0.2, colour=(0.1, 0.0, 0.0), strength=0.8, phase=(0.0, 1.0, 2.0)
    )
    points = np.random.default_rng(0).uniform(-0.4, 0.6, (8000, 3)).astype(np.float32)
    weight = stain.weight(points)
    distance = np.linalg.norm(points - [0.2, 0, 0.1], axis=1)
    assert weight[distance > 0.2 * 1.8].max() == 0
    assert weight[distance < 0.2 * 0.2].mean() == pytest.approx(0.8)
    camera = camera_at((0.0, -0.5, 3.0))
    hits = cast([plate], camera)
    clean, dirty = (surface(Assembly("plate", (plate,), s), camera, 1, hits) for s in ((), (stain,)))
    changed = (clean.albedo != dirty.albedo).any(axis=1)
    np.testing.assert_array_equal(changed, stain.weight(clean.points) > 0)
    assert 5 < changed.sum() < 0.2 * changed.size


def test_letters_stand_upright_and_unmirrored_on_the_face_they_are_for():
    # An L on the side that faces -y, read along +x: its stem is on the left, its foot at the bottom.
    plate = part(
        Box((0.5, 0.1, 0.5), 1e-6),
        colour=(1.0, 1.0, 1.0),
        patterns=(Lettering("L", (0.0, -1.0, 0.0), (1.0, 0.0, 0.0), (0.0, -0.1, 0.0), 0.8, (0.0, 0.0, 0.0)),),
    )
    camera = camera_at((0.0, -3.0, 0.0), size=50, focal=120.0)
    hits = cast([plate], camera)
    image = np.ones(hits.part.shape)
    image[hits.part >= 0] = surface(Assembly("plate", (plate,)), camera, 1, hits).albedo[:, 0]
    dark = image < 0.5
    rows, columns = np.nonzero(dark)
    assert dark[rows.min() : rows.max() + 1, columns.min()].mean() > 0.9
    assert dark[rows.max(), columns.min() : columns.max() + 1].mean() > 0.9
    assert not dark[rows.min(), columns.max()]


def test_a_line_pattern_follows_its_part():
    turned = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])  # local x is world y
    drum = part(Frustum(0.5, 0.5, 0.5), rotation=turned, patterns=(Lines(0, (0.2,), 0.1, (0.0, 0.0, 0.0)),))
    camera = camera_at((0.0, 0.0, 3.0), size=60, focal=100.0)
    here = surface(Assembly("drum", (drum,)), camera, 1, cast([drum], camera))
    top = here.normals[:, 2] > 0.99
    np.testing.assert_array_equal(here.albedo[top, 0] == 0, np.abs(here.points[top, 1] - 0.2) < 0.05)
