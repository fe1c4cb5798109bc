from __future__ import annotations

import math

import pytest
import torch
from scipy.spatial.transform import Rotation

from prepare.camera import Camera, look_at
from prepare.similarity import Similarity
from recon.gaussians import Gaussians, rotation_matrices
from recon.move import moved, rotation_quaternion
from recon.rasterize import RasterOptions, rasterize


def _splats(n: int, degree: int) -> Gaussians:
    generator = torch.Generator().manual_seed(3)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return Gaussians(
        means=0.5 * drawn(n, 3),
        quats=3.0 * drawn(n, 4),
        log_scales=0.5 * drawn(n, 3) - 2.5,
        logit_opacities=drawn(n) + 1,
        sh=0.3 * drawn(n, (degree + 1) ** 2, 3),
    )


def _similarity(seed: int) -> Similarity:
    rotation = torch.from_numpy(Rotation.random(random_state=seed).as_matrix())
    return Similarity(rotation, torch.tensor([2.0, -1.0, 0.7], dtype=torch.float64), 0.31)


def _moved_camera(camera: Camera, by: Similarity) -> Camera:
    """The camera that stands to the moved world as `camera` to the old one."""
    centre = by.scale * by.rotation @ camera.centre.double() + by.translation
    world_to_cam = torch.eye(4, dtype=torch.float64)
    world_to_cam[:3, :3] = camera.world_to_cam[:3, :3].double() @ by.rotation.T
    world_to_cam[:3, 3] = -world_to_cam[:3, :3] @ centre
    return camera.moved(world_to_cam.float())


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_a_camera_moved_along_sees_the_same_picture(degree: int) -> None:
    splats, by = _splats(40, degree), _similarity(degree)
    position = torch.tensor([1.5, -2.0, 1.0])
    lens = Camera(torch.eye(4), 60.0, 60.0, 24.0, 24.0, 48, 48)
    camera = lens.moved(look_at(position, torch.zeros(3), torch.tensor([0.0, 0.0, 1.0])))
    before = rasterize(splats, camera, torch.ones(3), options=RasterOptions())
    after = rasterize(moved(splats, by), _moved_camera(camera, by), torch.ones(3), options=RasterOptions())
    assert float(before.rgb.std()) > 0.1
    torch.testing.assert_close(after.rgb, before.rgb, atol=2e-4, rtol=0)


def test_a_quarter_turn_about_z_carries_the_first_band_by_hand() -> None:
    # Band 1 stands for -y, z, -x: what grew towards +x grows towards +y after the turn.
    sh = torch.zeros(1, 4, 3)
    sh[0, 3] = -1.0  # colour grows with +x
    splats = Gaussians(
        torch.tensor([[1.0, 0.0, 0.0]]),
        torch.tensor([[2.0, 0.0, 0.0, 0.0]]),
        torch.zeros(1, 3),
        torch.zeros(1),
        sh,
    )
    turn = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    there = moved(splats, Similarity(turn, torch.zeros(3, dtype=torch.float64), 2.0))
    torch.testing.assert_close(there.means, torch.tensor([[0.0, 2.0, 0.0]]))
    torch.testing.assert_close(there.log_scales, torch.full((1, 3), math.log(2.0)))
    torch.testing.assert_close(there.sh[0, :, 0], torch.tensor([0.0, -1.0, 0.0, 0.0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(there.quats, torch.tensor([[math.sqrt(2), 0.0, 0.0, math.sqrt(2)]]))


def test_moving_there_and_back_changes_nothing() -> None:
    splats, by = _splats(20, 3), _similarity(7)
    back = moved(moved(splats, by), by.inverse())
    for name, tensor in splats.tensors().items():
        other = back.tensors()[name]
        if name == "quats":  # of either sign
            tensor, other = rotation_matrices(tensor), rotation_matrices(other)
        torch.testing.assert_close(other, tensor, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("angle", [0.0, 1e-6, 1.0, math.pi - 1e-7, math.pi])
@pytest.mark.parametrize("axis", [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.6, 0.0, -0.8)])
def test_the_quaternion_of_every_turn_is_found(angle: float, axis: tuple[float, float, float]) -> None:
    matrix = torch.from_numpy(
        Rotation.from_rotvec(angle * torch.tensor(axis, dtype=torch.float64).numpy()).as_matrix()
    )
    quaternion = rotation_quaternion(matrix)
    torch.testing.assert_close(rotation_matrices(quaternion), matrix, atol=1e-12, rtol=0)
