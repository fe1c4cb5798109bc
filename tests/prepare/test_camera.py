from __future__ import annotations

import math

import pytest
import torch
from scipy.spatial.transform import Rotation

from prepare.camera import (
    Camera,
    fit_within,
    focal_from_fov,
    from_opengl_cam_to_world,
    look_at,
    rigid_inverse,
    to_opengl_cam_to_world,
)


def _pose(seed: int) -> torch.Tensor:
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = torch.from_numpy(Rotation.random(random_state=seed).as_matrix())
    matrix[:3, 3] = torch.tensor([0.3, -0.7, 2.0], dtype=torch.float64) * (seed + 1)
    return matrix


def test_a_point_projects_where_a_hand_calculation_puts_it() -> None:
    camera = Camera(torch.eye(4), fl_x=100.0, fl_y=50.0, cx=20.0, cy=10.0, width=40, height=20)
    projected = camera.project(torch.tensor([[0.2, -0.1, 2.0]]))
    # 100 * 0.2 / 2 + 20 and 50 * -0.1 / 2 + 10
    torch.testing.assert_close(projected, torch.tensor([[30.0, 7.5, 2.0]]))


def test_an_opengl_camera_at_the_origin_looks_down_minus_z_with_y_up() -> None:
    world_to_cam = from_opengl_cam_to_world(torch.eye(4, dtype=torch.float64))
    camera = Camera(world_to_cam, fl_x=100.0, fl_y=100.0, cx=50.0, cy=50.0, width=100, height=100)
    # In front is -z; to the right is +x (greater u), up is +y (smaller v).
    u, v, depth = camera.project(torch.tensor([[0.5, 1.0, -4.0]], dtype=torch.float64))[0].tolist()
    assert (u, v, depth) == (62.5, 25.0, 4.0)


def test_opengl_conversion_places_the_camera_where_the_matrix_says() -> None:
    cam_to_world = _pose(3)
    world_to_cam = from_opengl_cam_to_world(cam_to_world)
    camera = Camera(world_to_cam, 1.0, 1.0, 0.0, 0.0, 1, 1)
    torch.testing.assert_close(camera.centre, cam_to_world[:3, 3])
    torch.testing.assert_close(camera.forward, -cam_to_world[:3, 2])
    torch.testing.assert_close(to_opengl_cam_to_world(world_to_cam), cam_to_world)


@pytest.mark.parametrize("seed", range(3))
def test_rigid_inverse_is_the_inverse(seed: int) -> None:
    matrix = _pose(seed)
    torch.testing.assert_close(rigid_inverse(matrix), torch.linalg.inv(matrix))


def test_resizing_scales_the_projection_with_the_image() -> None:
    camera = Camera(_pose(0).float(), fl_x=80.0, fl_y=90.0, cx=33.0, cy=21.0, width=60, height=40)
    points = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    before, after = camera.project(points), camera.resized(30, 60).project(points)
    torch.testing.assert_close(after[:, 0], before[:, 0] * 0.5)
    torch.testing.assert_close(after[:, 1], before[:, 1] * 1.5)
    torch.testing.assert_close(after[:, 2], before[:, 2])


def test_look_at_centres_its_target_with_up_towards_the_top_of_the_image() -> None:
    position, target = torch.tensor([3.0, 1.0, 2.0]), torch.tensor([0.5, -0.5, 0.0])
    world_to_cam = look_at(position, target, torch.tensor([0.0, 0.0, 1.0]))
    camera = Camera(world_to_cam, fl_x=50.0, fl_y=50.0, cx=32.0, cy=24.0, width=64, height=48)
    torch.testing.assert_close(camera.project(target[None])[0, :2], torch.tensor([32.0, 24.0]))
    torch.testing.assert_close(camera.centre, position)
    above = camera.project((target + torch.tensor([0.0, 0.0, 0.2]))[None])[0]
    assert above[1] < 23
    assert abs(float(above[0]) - 32) < 1e-4
    assert abs(float(torch.linalg.det(world_to_cam[:3, :3])) - 1) < 1e-6


def test_look_at_along_its_up_direction_is_still_a_rotation() -> None:
    world_to_cam = look_at(torch.tensor([0.0, 0.0, 4.0]), torch.zeros(3), torch.tensor([0.0, 0.0, 1.0]))
    rotation = world_to_cam[:3, :3]
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(3))
    assert abs(float(torch.linalg.det(rotation)) - 1) < 1e-6
    torch.testing.assert_close(rotation[2], torch.tensor([0.0, 0.0, -1.0]))


def test_focal_length_puts_the_field_of_view_on_the_image_edge() -> None:
    fl_x = focal_from_fov(400, 0.69111)
    assert abs(fl_x * math.tan(0.69111 / 2) - 200) < 1e-9


def test_fit_within_keeps_the_aspect_and_never_enlarges() -> None:
    assert fit_within(1080, 1920, 960) == (540, 960)
    assert fit_within(300, 200, 960) == (300, 200)
    assert fit_within(10_000, 1, 100) == (100, 1)
