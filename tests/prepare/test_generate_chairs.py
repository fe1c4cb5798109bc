"""Generated chairs: shapes hold together, the ray caster and its light agree with others, anomalies are what they are called."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from prepare.errors import UsageError
from prepare.generate import chairs
from prepare.generate.chair_anomalies import KINDS, REMOVED, SHIFT, TOUCH, TURN_DEG, clouds_of, propose
from prepare.generate.chair_parts import LABELS, Chair, Component, Cutter, Solid, box, rod, rotation_about
from prepare.generate.chair_render import cast, cast_points, grey_view
from prepare.generate.chair_shapes import BASES, make_chair
from prepare.generate.chairs import ChairSettings, camera_at, generate_chairs, shape_splits, view_cameras
from prepare.generate.shapes import Box, Ellipsoid
from prepare.mesh import GREY, Mesh

TINY = ChairSettings(seed=3, shapes=2, photos_per_shape=4, views=4, px=64, points=48, supersample=2)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("raw")
    steps = []
    result = generate_chairs(out, "tiny", TINY, 1, lambda done, total: steps.append((done, total)))
    assert steps == [(0, 2), (1, 2), (2, 2)]
    return result


def arrays(pairs):
    return {name: np.array(getattr(pairs, name)) for name in pairs.sizes.arrays()}


# --- shapes --------------------------------------------------------------------------------------------------------------


def test_chairs_of_every_base_differ_hold_together_and_lie_in_the_unit_sphere():
    seen = set()
    bases = set()
    for number in range(len(BASES)):
        chair = make_chair(5, number)
        bases.add(chair.family.split("/")[0])
        clouds = clouds_of(chair).points
        everything = np.concatenate(clouds)
        assert np.linalg.norm(everything, axis=1).max() < 1.0
        assert np.linalg.norm(everything, axis=1).max() > 0.9
        seen.add(tuple(np.round(everything.std(axis=0), 6)))
        assert {c.label for c in chair.components} <= set(LABELS)
        trees = [cKDTree(cloud) for cloud in clouds]
        touch = [[a.query(cloud)[0].min() <= TOUCH for cloud in clouds] for a in trees]
        assert connected_components(np.array(touch), directed=False)[0] == 1, chair.family
    assert bases == set(BASES)
    assert len(seen) == len(BASES)


def test_the_same_number_gives_the_same_chair_and_another_seed_another():
    one, two, other = make_chair(1, 4), make_chair(1, 4), make_chair(2, 4)
    assert [(s.centre.tolist(), s.shape) for s in one.solids() if isinstance(s.shape, Box)] == [
        (s.centre.tolist(), s.shape) for s in two.solids() if isinstance(s.shape, Box)
    ]
    assert one.family != other.family or len(one.solids()) != len(other.solids())


# --- ray caster ----------------------------------------------------------------------------------------------------------


def test_a_cut_solid_is_met_where_marching_finds_it():
    cutter = Cutter(Ellipsoid((0.4, 0.4, 0.4)), np.array([0.35, 0.3, 0.2]), np.eye(3))
    turn = rotation_about((1, 2, 3), 0.7)
    solid = Solid(Box((0.5, 0.3, 0.4)), np.array([0.05, 0.0, -0.1]), turn, cutter)
    camera = camera_at(24, 40.0, 30.0, 3.0)
    depth = cast([solid], camera).depth
    matrix = camera.world_to_cam.numpy()
    centre = camera.centre.numpy()
    x = (np.arange(24) + 0.5 - camera.cx) / camera.fl_x
    rays = np.stack([*np.meshgrid(x, x), np.ones((24, 24))], axis=-1) @ matrix[:3, :3]
    t = np.linspace(2.0, 4.0, 2001)
    points = centre + rays[..., None, :] * t[:, None]
    inside = (np.abs((points - solid.centre) @ turn) <= solid.shape.half).all(axis=-1)
    inside &= np.linalg.norm(points - cutter.centre, axis=-1) > 0.4
    first = np.where(inside.any(axis=-1), t[inside.argmax(axis=-1)], np.inf)
    assert np.isfinite(first).sum() > 40
    agree = np.isfinite(first) == np.isfinite(depth)
    assert agree.mean() > 0.99  # grazing rays may pass between two steps
    both = np.isfinite(first) & np.isfinite(depth)
    assert np.quantile(np.abs(first[both] - depth[both]), 0.98) < 2e-3
    uncut = cast([Solid(solid.shape, solid.centre, turn)], camera).depth
    assert (depth[both] > uncut[both] + 0.02).any()  # some rays see into the cut


def test_points_on_the_near_side_are_reached_and_those_behind_are_not():
    solids = [box((0, 0, 0), (0.3, 0.3, 0.3)), rod((0.0, -0.5, 0.6), (0.0, 0.5, 0.6), 0.05)]
    points = np.array([[0.2, 0.1, 0.3], [0.2, 0.1, -0.3], [0.0, 0.0, 0.3], [0.0, 0.9, 0.0]])
    reached = cast_points(solids, np.array([0.0, 0.0, 3.0]), points)
    np.testing.assert_allclose(reached[[0, 3]], [1.0, np.inf], rtol=1e-5)
    assert reached[1] < 0.9  # the front face stands before it
    assert reached[2] == pytest.approx((3 - 0.65) / (3 - 0.3), rel=1e-4)  # the rod does


def test_a_grey_view_is_what_mesh_painter_makes_of_the_same_box():
    mesh_render = pytest.importorskip("prepare.mesh_render")
    pytest.importorskip("embreex")
    half, turn = np.array([0.5, 0.35, 0.2]), rotation_about((0.2, 1, 0.1), 0.5)
    solid = Solid(Box(tuple(half), bevel=1e-6), np.array([0.1, 0.05, 0.0]), turn)
    chair = Chair("box", (Component("SeatSurface", "seat", (solid,), "seat"),))
    corners, faces = [], []
    for axis in range(3):
        for sign in (-1.0, 1.0):
            u, v = np.eye(3)[(axis + 1) % 3], np.eye(3)[(axis + 2) % 3]
            quad = [sign * np.eye(3)[axis] + a * u + b * v for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
            order = [0, 1, 2, 3] if sign > 0 else [3, 2, 1, 0]
            base = len(corners)
            corners += [quad[i] * half @ turn.T + solid.centre for i in order]
            faces += [[base, base + 1, base + 2], [base, base + 2, base + 3]]
    vertices, faces = np.array(corners), np.array(faces)
    normals = np.cross(
        vertices[faces[:, 1]] - vertices[faces[:, 0]], vertices[faces[:, 2]] - vertices[faces[:, 0]]
    )
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    mesh = Mesh(
        vertices, faces, np.repeat(normals[:, None], 3, axis=1).astype(np.float32),
        np.full((len(faces), 3, 3), GREY, np.float32), np.zeros((len(faces), 3, 2), np.float32),
        np.full(len(faces), -1), (), False,
    )  # fmt: skip
    painter = mesh_render.MeshPainter(
        mesh, mesh_render.surface_finder(mesh, "embree"), np.array([0.0, 1.0, 0.0]), 2
    )
    camera = camera_at(64, 130.0, 25.0, 3.0)
    theirs = painter.photograph(camera)
    ours = grey_view(chair, camera, 2)
    assert np.abs(ours.alpha - theirs.alpha).mean() < 2e-3
    composed = theirs.rgb[..., 0] * theirs.alpha + (1 - theirs.alpha)
    assert np.abs(ours.grey - composed).max() < 0.02
    assert ours.grey.min() < 0.45


# --- anomalies -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_an_anomaly_changes_one_component_in_its_own_way(kind):
    rng = np.random.default_rng(2)
    checked = 0
    for number in range(6):
        chair = make_chair(3, number)
        clouds = clouds_of(chair)
        for _ in range(8):
            found = propose(kind, chair, clouds, lambda: make_chair(3, 20), rng)
            if found is None:
                continue
            checked += 1
            index = found.component
            others = [i for i in range(len(chair.components)) if i != index]
            assert all(found.chair.components[i] is chair.components[i] for i in others)
            old, new = chair.components[index], found.chair.components[index]
            if kind == "missing":
                assert new.solids == ()
            elif kind == "position":
                steps = [b.centre - a.centre for a, b in zip(old.solids, new.solids, strict=True)]
                np.testing.assert_allclose(steps, np.broadcast_to(steps[0], (len(steps), 3)), atol=1e-12)
                diagonal = np.linalg.norm(np.ptp(clouds.points[index], axis=0))
                assert max(0.02, SHIFT[0] * diagonal) - 1e-9 <= np.linalg.norm(steps[0])
                assert np.linalg.norm(steps[0]) <= max(0.02, SHIFT[1] * diagonal) + 1e-9
            elif kind == "rotation":
                turn = new.solids[0].rotation @ old.solids[0].rotation.T
                angle = np.degrees(np.arccos((np.trace(turn) - 1) / 2))
                assert TURN_DEG[0] <= angle <= TURN_DEG[1]
                # Some point of the old surface, near the rest, has not moved.
                moved = (clouds.points[index] - old.solids[0].centre) @ turn.T + new.solids[0].centre
                still = np.linalg.norm(moved - clouds.points[index], axis=1).argmin()
                assert np.linalg.norm(moved[still] - clouds.points[index][still]) < 1e-9
                assert clouds.rest(index).query(clouds.points[index][still])[0] <= TOUCH
            elif kind == "broken":
                left = len(new.cloud()) / len(clouds.points[index])
                assert REMOVED[0] <= 1 - left <= REMOVED[1]
            else:
                assert new.label == old.label
                np.testing.assert_allclose(new.bounds(), old.bounds(), atol=0.08)
    assert checked >= 3


# --- the set -------------------------------------------------------------------------------------------------------------


def test_photos_come_in_pairs_that_differ_where_the_mask_says(made):
    pairs = made.pairs
    assert pairs.query_label.tolist() == [1, 0] * 4
    for query in np.flatnonzero(pairs.query_label):
        twin = pairs.query_twin[query]
        np.testing.assert_array_equal(pairs.query_camera[query], pairs.query_camera[twin])
        assert pairs.query_twin[twin] == -1
        assert np.isnan(pairs.query_box[twin]).all()
        assert not pairs.change_mask(twin).any()
        mask = pairs.change_mask(query)
        rows, columns = np.nonzero(mask)
        cx, cy, w, h = pairs.query_box[query] * TINY.px
        np.testing.assert_allclose(
            [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2],
            [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1],
            atol=1e-4,
        )
        # Silhouettes differ inside the mask only.
        silhouette = pairs.query_alpha[query] != pairs.query_alpha[twin]
        assert (pairs.query_change[query][silhouette] > 0).all()
        assert (np.abs(pairs.queries[query].astype(int) - pairs.queries[twin]).max(axis=-1) > 15)[
            mask
        ].mean() > 0.3
    assert made.tries["accepted"] == 4


def test_positions_are_at_the_cells_middles_and_points_where_their_pixels_say(made):
    pairs = made.pairs
    for shape in range(2):
        world = np.zeros((TINY.points, 3, 3)), np.zeros((TINY.points, 3))
        for view in range(TINY.views):
            pose, lens = pairs.view_camera[shape, view], pairs.view_K[shape, view]
            xyz = pairs.view_xyz[shape, view].astype(np.float64)
            seen = np.isfinite(xyz[..., 0])
            np.testing.assert_array_equal(seen, pairs.view_alpha[shape, view] > 0)
            flat = (xyz[seen] @ pose[:3, :3].T + pose[:3, 3]) @ lens.T
            rows, columns = np.nonzero(seen)
            off = np.abs(flat[:, :2] / flat[:, 2:] - 8 * (np.stack([columns, rows], axis=1) + 0.5)).max(
                axis=1
            )
            assert off.max() < 4.01
            assert (off < 1e-2).mean() > 0.25  # the others' middles miss the chair: 64 px are few
            ray = np.linalg.inv(lens) @ [*(pairs.point_pxy[shape, view].T[::-1] + 0.5), np.ones(TINY.points)]
            ray = ray.T @ pose[:3, :3]
            ray /= np.linalg.norm(ray, axis=1, keepdims=True)
            across = np.eye(3) - ray[:, :, None] * ray[:, None, :]
            world[0][:] += across
            world[1][:] += across @ (-pose[:3, :3].T @ pose[:3, 3])
            at = pairs.point_pxy[shape, view][pairs.point_visible[shape, view]] // 8
            assert (
                pairs.view_alpha[shape, view][at[:, 0], at[:, 1]] > 0
            ).mean() > 0.97  # coverage is sampled
        points = np.linalg.solve(world[0], world[1][..., None])[..., 0]
        for view in range(TINY.views):
            flat = points @ pairs.view_camera[shape, view, :3, :3].T + pairs.view_camera[shape, view, :3, 3]
            flat = flat @ pairs.view_K[shape, view].T
            off = flat[:, 1::-1] / flat[:, 2:] - (pairs.point_pxy[shape, view] + 0.5)
            assert np.abs(off).max() < 1.0  # one point for all views, each within its pixel or beside it
        assert pairs.point_visible[shape].any(axis=0).mean() > 0.95


def test_another_order_a_restart_and_no_files_give_the_same_arrays(made, tmp_path):
    settings = ChairSettings(**{**TINY.__dict__, "files": False})
    chairs.claim(tmp_path / "again", "again", settings)
    chairs._chair.cache_clear()
    chairs._make_shape(tmp_path / "again", settings, 1)  # a stopped run
    again = generate_chairs(tmp_path, "again", settings, 1)
    assert (again.written, again.kept) == (1, 1)
    for name, rows in arrays(again.pairs).items():
        np.testing.assert_array_equal(rows, getattr(made.pairs, name), err_msg=name)
    assert not (tmp_path / "again" / "images").exists()
    whole = generate_chairs(tmp_path, "again", settings, 1)
    assert (whole.written, whole.kept) == (0, 2)


@pytest.mark.slow
def test_two_workers_make_what_one_makes(made, tmp_path):
    again = generate_chairs(tmp_path, "two", TINY, 2)
    for name, rows in arrays(again.pairs).items():
        np.testing.assert_array_equal(rows, getattr(made.pairs, name), err_msg=name)


def test_the_folders_are_brokenchairs(made):
    folder = made.folder
    split = json.loads((folder / "split.json").read_text())
    assert sorted(shape for shapes in split.values() for shape in shapes) == ["100000", "100001"]
    images = sorted((folder / "images").glob("*/*.png"))
    assert len(images) == 8
    assert Counter("anomaly" in p.name for p in images) == {True: 4, False: 4}
    for image in images:
        name = image.name.removeprefix("render_").removesuffix(".png")
        info = json.loads((folder / "annotations" / image.parent.name / f"info_{name}.json").read_text())
        if "anomaly" in name:
            assert info["config"]["type"] in KINDS
            mask = (
                np.asarray(Image.open(folder / "annotations" / image.parent.name / f"change_{name}.png")) > 0
            )
            x, y, width, height = np.array(info["2d_bbox"]) * TINY.px / 512
            assert mask[round(y) : round(y + height), round(x) : round(x + width)].sum() == mask.sum()
    views = sorted((folder / "shapes" / "shape_100000" / "mv_images").glob("*.png"))
    assert len(views) == 4
    mesh = (folder / "shapes" / "shape_100000" / "model.obj").read_text().splitlines()
    corners = np.array([line.split()[1:] for line in mesh if line.startswith("v ")], dtype=float)
    assert np.linalg.norm(corners, axis=1).max() == pytest.approx(
        0.98, abs=0.03
    )  # as large as the shape of the views
    camera = json.loads(views[0].with_name(views[0].name[:-4] + ".json").read_text())
    np.testing.assert_allclose(np.array(camera["RT"]) @ camera["RT_"], np.eye(4), atol=1e-12)
    # OpenGL: the object is before the camera, at negative z; azimuth and elevation stand in the name.
    assert (np.array(camera["RT"]) @ [0, 0, 0, 1])[2] == pytest.approx(-3.0)
    azimuth, elevation = (np.deg2rad(float(v)) for v in views[0].name[:-4].split("_")[2:])
    position = 3.0 * np.array(
        [np.cos(elevation) * np.cos(azimuth), np.sin(elevation), np.cos(elevation) * np.sin(azimuth)]
    )
    np.testing.assert_allclose(np.array(camera["RT_"])[:3, 3], position, atol=1e-9)


def test_nothing_of_others_is_overwritten_and_bad_settings_are_refused(made, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="did not make"):
        generate_chairs(tmp_path, "mine", TINY, 1)
    with pytest.raises(UsageError, match="seed was 3, now 4"):
        generate_chairs(made.folder.parent, "tiny", ChairSettings(**{**TINY.__dict__, "seed": 4}), 1)
    for key, value, words in (
        ("photos_per_shape", 5, "an even number"), ("px", 100, "multiple of 32"), ("shapes", 0, "--shapes"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=words):
            generate_chairs(tmp_path, "x", ChairSettings(**{**TINY.__dict__, key: value}), 1)
    with pytest.raises(UsageError, match="plain folder name"):
        generate_chairs(tmp_path, "a/b", TINY, 1)


def test_splits_share_no_shape_and_have_brokenchairs_shares_and_views_look_from_below_too():
    settings = ChairSettings(shapes=500)
    splits = shape_splits(settings)
    assert [len(splits[name]) for name in ("train", "val", "test")] == [388, 38, 74]
    assert sorted(shape for shapes in splits.values() for shape in shapes) == list(range(500))
    cameras = view_cameras(settings)
    assert len(cameras) == 20
    assert {elevation for _, elevation, _ in cameras} == {-20.0, 10.0, 35.0, 60.0}
    positions = torch.stack([camera.centre for _, _, camera in cameras])
    assert torch.allclose(positions.norm(dim=1), torch.tensor(3.0, dtype=torch.float64))
    assert torch.pdist(positions).min() > 0.5
