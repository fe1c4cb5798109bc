"""Pictures of meshes against what geometry says: a sphere, a plane, a textured square."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from prepare.camera import Camera, look_at
from prepare.errors import MissingPartError
from prepare.mesh import GREY, Mesh, mesh_of
from prepare.mesh_render import (
    AMBIENT,
    HEAD,
    SKY,
    EmbreeFinder,
    MeshPainter,
    MeshView,
    Pytorch3dFinder,
    orbit,
    shade,
    surface_finder,
    surface_points,
)

trimesh = pytest.importorskip("trimesh")
pytest.importorskip("embreex")

UP = np.array([0.0, 0.0, 1.0])


def camera(position: tuple[float, float, float], size_px: int = 96, focal: float = 130.0) -> Camera:
    pose = look_at(
        torch.tensor(position, dtype=torch.float64),
        torch.zeros(3, dtype=torch.float64),
        torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64),
    )
    return Camera(pose, focal, focal, size_px / 2, size_px / 2, size_px, size_px)


def rays(view: Camera) -> np.ndarray:
    """World directions through the pixels' middles, z 1 in the camera."""
    x = (np.arange(view.width) + 0.5 - view.cx) / view.fl_x
    y = (np.arange(view.height) + 0.5 - view.cy) / view.fl_y
    x, y = np.meshgrid(x, y)
    return np.stack([x, y, np.ones_like(x)], axis=-1) @ view.world_to_cam[:3, :3].numpy()


def ball() -> Mesh:
    sphere = trimesh.creation.icosphere(subdivisions=5)
    return mesh_of(np.asarray(sphere.vertices)[np.asarray(sphere.faces)])


def square(texture: np.ndarray | None = None, half: float = 1.0) -> Mesh:
    """In the plane z = 0, texture coordinates from (0, 0) at (-half, -half) to (1, 1)."""
    corners = half * np.array(
        [[[-1, -1, 0], [1, -1, 0], [1, 1, 0]], [[-1, -1, 0], [1, 1, 0], [-1, 1, 0]]], float
    )
    uv = corners[..., :2] / (2 * half) + 0.5
    if texture is None:
        return mesh_of(corners)
    return mesh_of(corners, uv=uv, face_texture=np.zeros(2, int), textures=(texture,))


def paint(mesh: Mesh, view: Camera, supersample: int = 3) -> MeshView:
    return MeshPainter(mesh, surface_finder(mesh), UP, supersample).photograph(view)


def test_depth_and_normals_of_a_ball_are_the_spheres() -> None:
    view = camera((2.5, -1.5, 1.0))
    found = paint(ball(), view)
    directions, centre = rays(view), view.centre.numpy()
    a, b = (directions**2).sum(-1), directions @ centre
    root = b * b - a * (centre @ centre - 1.0)
    inside = root > 0.05  # away from the silhouette
    depth = (-b - np.sqrt(np.maximum(root, 0.0))) / a
    assert inside.sum() > 1000
    # The triangles lie within the sphere by at most 1 - cos(half an edge) = 5e-4, and slantwise a little more.
    assert np.abs(found.depth - depth)[inside].max() < 3e-3
    exact = centre + depth[..., None] * directions
    assert ((found.normals * exact).sum(-1))[inside].min() > math.cos(math.radians(0.7))
    assert np.isinf(found.depth[root < -0.05]).all()
    assert (found.normals[root < -0.05] == 0).all()


def test_the_mask_of_a_ball_has_the_discs_area_with_soft_edges() -> None:
    distance, focal = 4.0, 130.0
    found = paint(ball(), camera((distance, 0.0, 0.0)))
    radius_px = focal * math.tan(math.asin(1.0 / distance))
    assert float(found.alpha.sum()) == pytest.approx(math.pi * radius_px**2, rel=3e-3)
    assert ((found.alpha > 0) & (found.alpha < 1)).sum() > 50
    assert found.alpha.max() == 1.0


def test_light_is_ambient_and_sky_and_lamp_in_their_shares() -> None:
    for height, looks_up in ((3.0, 1.0), (-3.0, -1.0)):
        found = paint(square(), camera((0.0, 0.0, height)))
        share = AMBIENT + SKY * (0.5 + 0.5 * looks_up) + HEAD
        np.testing.assert_allclose(found.rgb[48, 48], 0.7 * share, atol=2e-4)
        np.testing.assert_allclose(found.normals[48, 48], [0, 0, looks_up], atol=1e-6)


def test_a_textured_square_shows_each_corner_of_its_texture_where_it_belongs() -> None:
    texture = np.zeros((64, 64, 3), np.uint8)
    texture[:32, :32], texture[:32, 32:] = (255, 0, 0), (0, 255, 0)  # upper left, upper right
    texture[32:, :32], texture[32:, 32:] = (0, 0, 255), (255, 255, 0)
    view = camera((0.0, -0.001, 3.0))  # from above, y up in the picture
    found = paint(square(texture), view)
    lit = AMBIENT + SKY + HEAD
    for (x, y), colour in {
        (-0.5, 0.5): (1, 0, 0), (0.5, 0.5): (0, 1, 0), (-0.5, -0.5): (0, 0, 1), (0.5, -0.5): (1, 1, 0)
    }.items():  # fmt: skip
        u, v, _ = view.project(torch.tensor([[x, y, 0.0]], dtype=torch.float64))[0].tolist()
        np.testing.assert_allclose(found.rgb[int(v), int(u)], np.array(colour) * lit, atol=0.04)


def test_a_fine_texture_seen_from_afar_is_its_mean_not_a_moire() -> None:
    texture = np.zeros((256, 256, 3), np.uint8)
    texture[::2] = 255  # rows of 1/128 of a unit: a fifth of a pixel
    found = paint(square(texture), camera((0.0, -0.001, 4.0), size_px=64, focal=60.0), supersample=1)
    inner = found.rgb[found.alpha > 0]
    lit = AMBIENT + SKY + HEAD * 0.98
    assert float(inner.std()) < 0.03
    assert float(inner.mean()) == pytest.approx(0.5 * lit, abs=0.03)


def test_faces_are_seen_from_behind_too() -> None:
    corners = square().vertices[square().faces][:, ::-1]
    found = paint(mesh_of(corners), camera((0.0, 0.0, 3.0)))
    np.testing.assert_allclose(found.normals[48, 48], [0, 0, 1], atol=1e-6)
    np.testing.assert_allclose(found.rgb, paint(square(), camera((0.0, 0.0, 3.0))).rgb, atol=1e-6)


def test_only_edges_are_sampled_finely_and_the_rest_is_as_if_all_were() -> None:
    mesh, view = ball(), camera((2.5, -1.5, 1.0), size_px=48, focal=65.0)
    found = paint(mesh, view, supersample=4)
    finder = EmbreeFinder(mesh)
    everywhere = finder.find(view, 4, np.ones((48, 48), bool))
    share = (everywhere.face >= 0).mean(axis=1).reshape(48, 48)
    np.testing.assert_allclose(found.alpha, share, atol=1e-6)


def test_an_orbit_sees_the_part_whole_from_all_sides_and_as_large_as_it_may() -> None:
    box = trimesh.creation.box((2.0, 0.4, 0.8))
    mesh = mesh_of(np.asarray(box.vertices)[np.asarray(box.faces)])
    cameras = orbit(mesh, 40, 100, UP)
    pixels = torch.stack([one.project(torch.from_numpy(mesh.vertices))[:, :2] for one in cameras])
    assert pixels.min() > 0
    assert pixels.max() < 100
    assert (pixels - 50).abs().max() > 45  # the frame is filled from some side
    directions = torch.stack([one.centre / one.centre.norm() for one in cameras])
    nearest = torch.rad2deg(torch.acos((directions @ directions.T).fill_diagonal_(-1).amax(1).clamp(-1, 1)))
    assert float(nearest.min()) > 0.6 * math.degrees(math.sqrt(4 * math.pi / 40))
    assert float(directions.mean(0).norm()) < 0.05


def test_points_lie_evenly_on_what_is_seen_and_not_inside() -> None:
    outer = trimesh.creation.icosphere(subdivisions=4)
    inner = trimesh.creation.box((0.5, 0.5, 0.5))
    corners = np.concatenate([np.asarray(m.vertices)[np.asarray(m.faces)] for m in (outer, inner)])
    mesh = mesh_of(corners)
    painter = MeshPainter(mesh, surface_finder(mesh), UP, 1)
    cameras = orbit(mesh, 24, 80, UP)
    depths = [painter.photograph(one).depth for one in cameras]
    found = surface_points(mesh, painter, cameras, depths, 1500)
    assert 1500 <= len(found.positions) < 2200
    radius = np.linalg.norm(found.positions, axis=1)
    assert radius.min() > 0.99
    assert ((found.normals * found.positions).sum(1) > 0.99).all()
    from scipy.spatial import cKDTree

    nearest = cKDTree(found.positions).query(found.positions, k=2)[0][:, 1]
    assert nearest.min() > 0.5 * math.sqrt(4 * math.pi / len(radius))  # no two on one spot


def test_points_know_what_every_camera_sees_of_them_though_faces_are_wound_inwards() -> None:
    mesh = ball()
    inverted = mesh_of(mesh.vertices[mesh.faces[:, ::-1]])
    painter = MeshPainter(inverted, surface_finder(inverted), UP, 1)
    cameras = orbit(inverted, 24, 80, UP)
    found = surface_points(inverted, painter, cameras, [painter.photograph(c).depth for c in cameras], 800)
    for view in cameras[::6]:
        to_camera = view.centre.numpy() - found.positions
        to_camera /= np.linalg.norm(to_camera, axis=1, keepdims=True)
        cosine = (found.normals * to_camera).sum(1)
        seen = cosine > 0.2
        expected = GREY * shade(found.positions, to_camera, UP)  # the unit ball's points are its normals
        shown = (found.colours + found.headlight * (cosine - 2 / 3)[:, None])[:, 0]
        np.testing.assert_allclose(shown[seen], expected[seen], atol=3e-3)


def test_the_same_picture_comes_twice() -> None:
    view = camera((2.5, -1.5, 1.0), size_px=48, focal=65.0)
    a, b = paint(ball(), view), paint(ball(), view)
    assert np.array_equal(a.rgb, b.rgb)
    assert np.array_equal(a.depth, b.depth)


def test_a_backend_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    modules = __import__("sys").modules
    for name in ("embreex.rtcore_scene", "pytorch3d.structures"):
        monkeypatch.setitem(modules, name, None)
    with pytest.raises(MissingPartError, match=r"pip install 'splatad\[mesh\]'"):
        surface_finder(square())
    with pytest.raises(MissingPartError, match="pytorch3d is not installed"):
        surface_finder(square(), "pytorch3d")


def test_pytorch3d_and_embree_see_the_same() -> None:
    pytest.importorskip("pytorch3d")
    mesh, view = ball(), camera((2.5, -1.5, 1.0))
    everywhere = np.ones((96, 96), bool)
    ours, theirs = (
        EmbreeFinder(mesh).find(view, 2, everywhere),
        Pytorch3dFinder(mesh).find(view, 2, everywhere),
    )
    both = (ours.face >= 0) & (theirs.face >= 0)
    assert ((ours.face >= 0) == (theirs.face >= 0)).mean() > 0.995
    assert np.abs(ours.depth[both] - theirs.depth[both]).max() < 1e-3
