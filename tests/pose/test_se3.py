"""The exponential map and the pose update: against scipy, their derivatives, what they leave in place."""

import math

import pytest
import torch
from scipy.spatial.transform import Rotation

from pose.se3 import cross_matrix, moved_about, nearest_rigid, rotation_from_vector, stepped
from prepare.camera import look_at

AXIS = torch.nn.functional.normalize(torch.tensor([0.3, -1.2, 0.7], dtype=torch.float64), dim=0)


def pose():
    position = torch.tensor([1.0, -2.5, 0.8], dtype=torch.float64)
    return look_at(
        position, torch.zeros(3, dtype=torch.float64), torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    )


@pytest.mark.parametrize(
    "angle", [0.0, 1e-12, 1e-7, 9.9e-5, 1.01e-4, 1e-2, 1.0, math.pi - 1e-6, math.pi, 5.0]
)
def test_rotation_from_vector_is_scipys_rotation(angle):
    expected = torch.from_numpy(Rotation.from_rotvec((AXIS * angle).numpy()).as_matrix())
    assert torch.allclose(rotation_from_vector(AXIS * angle), expected, atol=1e-14, rtol=0)


@pytest.mark.parametrize("angle", [1e-3, 2e-4, 1.0, 3.1])
def test_rotation_from_a_float32_vector_is_orthonormal_to_rounding(angle):
    rotation = rotation_from_vector((AXIS * angle).float())
    assert torch.allclose(rotation @ rotation.T, torch.eye(3), atol=5e-7)


@pytest.mark.parametrize("angle", [0.0, 5e-5, 0.3, 3.0])
def test_derivatives_of_the_rotation_are_right(angle):
    vector = (AXIS * angle).requires_grad_()
    assert torch.autograd.gradcheck(rotation_from_vector, (vector,), eps=1e-7, atol=1e-6)


@pytest.mark.parametrize("size", [0.0, 0.4])
def test_derivatives_of_the_pose_update_are_right(size):
    step = (size * torch.tensor([0.4, -0.2, 0.3, 0.1, 0.5, -0.6], dtype=torch.float64)).requires_grad_()
    pivot = torch.tensor([0.1, 0.2, -0.3], dtype=torch.float64, requires_grad=True)
    start = pose().requires_grad_()
    assert torch.autograd.gradcheck(moved_about, (start, step, pivot), eps=1e-7, atol=1e-6)


def test_cross_matrix_times_a_vector_is_the_cross_product():
    v, x = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.3, 0.8, -1.1])
    assert torch.allclose(cross_matrix(v) @ x, torch.linalg.cross(v, x))


def in_camera(world_to_cam, point):
    return world_to_cam[:3, :3] @ point + world_to_cam[:3, 3]


def test_a_pure_turn_leaves_the_pivot_where_the_camera_sees_it():
    pivot = torch.tensor([0.1, 0.2, -0.3], dtype=torch.float64)
    step = torch.tensor([0.4, -0.2, 0.3, 0.0, 0.0, 0.0], dtype=torch.float64)
    moved = moved_about(pose(), step, pivot)
    assert torch.allclose(in_camera(moved, pivot), in_camera(pose(), pivot), atol=1e-14)
    other = torch.tensor([0.5, 0.0, 0.2], dtype=torch.float64)
    expected = (
        Rotation.from_rotvec(step[:3].numpy()).as_matrix()
        @ (in_camera(pose(), other) - in_camera(pose(), pivot)).numpy()
    )
    assert torch.allclose(
        in_camera(moved, other) - in_camera(moved, pivot), torch.from_numpy(expected), atol=1e-14
    )


def test_a_shift_moves_every_point_by_exactly_the_shift():
    step = torch.tensor([0.0, 0.0, 0.0, 0.1, -0.2, 0.3], dtype=torch.float64)
    moved = moved_about(pose(), step, torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64))
    for point in torch.eye(3, dtype=torch.float64):
        assert torch.allclose(in_camera(moved, point) - in_camera(pose(), point), step[3:], atol=1e-14)


def test_nearest_rigid_is_orthonormal_and_leaves_a_rigid_transform_alone():
    noise = 1e-2 * torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rough = pose()
    rough[:3, :3] += noise
    fixed = nearest_rigid(rough)
    assert torch.allclose(fixed[:3, :3] @ fixed[:3, :3].T, torch.eye(3, dtype=torch.float64), atol=1e-14)
    assert float(torch.linalg.det(fixed[:3, :3])) == pytest.approx(1.0)
    assert torch.equal(fixed[:3, 3], rough[:3, 3])
    assert torch.equal(fixed[3], rough[3])
    assert torch.allclose(nearest_rigid(fixed), fixed, atol=1e-14)
    # Nearest: no small turn of it lies closer to the rough matrix.
    distance = (fixed[:3, :3] - rough[:3, :3]).norm()
    for k in range(3):
        for sign in (-1.0, 1.0):
            turn = rotation_from_vector(sign * 1e-3 * torch.eye(3, dtype=torch.float64)[k])
            assert (turn @ fixed[:3, :3] - rough[:3, :3]).norm() > distance


def test_nearest_rigid_of_a_mirrored_matrix_is_a_rotation():
    mirrored = pose()
    mirrored[0, :3] *= -1
    assert float(torch.linalg.det(nearest_rigid(mirrored)[:3, :3])) == pytest.approx(1.0)


@pytest.mark.parametrize("size", [0.0, 1e-6, 0.02, 0.4])
def test_a_plain_step_is_the_differentiable_one_made_rigid(size):
    generator = torch.Generator().manual_seed(5)
    pose = look_at(
        torch.tensor([1.0, -2.0, 0.7]), torch.tensor([0.1, 0.2, 0.0]), torch.tensor([0.0, 0.0, 1.0])
    )
    pivot = torch.tensor([0.3, -0.1, 0.2])
    step = size * torch.randn(6, generator=generator, dtype=torch.float64)
    expected = nearest_rigid(moved_about(pose.double(), step, pivot.double()))
    got = stepped(pose, step.numpy(), pivot)
    assert got.dtype == torch.float32
    assert torch.allclose(got.double(), expected, atol=1e-6)
    many = pose
    for _ in range(300):  # rounding does not pile up
        many = stepped(many, step.numpy(), pivot)
    assert torch.allclose(many[:3, :3] @ many[:3, :3].T, torch.eye(3), atol=1e-6)
