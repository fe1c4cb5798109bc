"""Adam's refinement: it gets there, and the recipe's map is the one published."""

import math

import pytest
import torch

from pose.pyramid import SplatLevels, photo_pyramid
from pose.refine_adam import SPLATPOSE, AdamConfig, _screw, refine_adam
from pose.se3 import moved_about, rotation_from_vector
from prepare.camera import Camera, look_at
from recon.gaussians import Gaussians
from recon.rasterize import RasterOptions, rasterize


def blob_scene():
    generator = torch.Generator().manual_seed(5)
    count = 300
    gaussians = Gaussians(
        torch.randn(count, 3, generator=generator) * torch.tensor([0.5, 0.3, 0.4]),
        torch.randn(count, 4, generator=generator),
        torch.full((count, 3), math.log(0.08)),
        torch.full((count,), 2.0),
        torch.randn(count, 1, 3, generator=generator),
    )
    pose = look_at(torch.tensor([1.0, -2.8, 0.6]), torch.zeros(3), torch.tensor([0.0, 0.0, 1.0]))
    return gaussians, Camera(pose, 90.0, 90.0, 32.0, 32.0, 64, 64)


def angle_deg(a, b):
    relative = a[:3, :3].double() @ b[:3, :3].double().T
    return math.degrees(math.acos(max(-1.0, min(1.0, float(relative.trace() - 1) / 2))))


@pytest.mark.parametrize("config", [AdamConfig(steps=150), SPLATPOSE])
def test_adam_comes_nearer_to_the_true_camera(config):
    gaussians, truth = blob_scene()
    background = torch.ones(3)
    photo = rasterize(gaussians, truth, background).rgb
    start = truth.moved(
        moved_about(truth.world_to_cam, torch.tensor([0.03, -0.04, 0.02, 0.02, 0.0, 0.0]), torch.zeros(3))
    )
    level = photo_pyramid(photo, (64,))[0]
    result = refine_adam(
        SplatLevels(gaussians), level, start, background, torch.zeros(3), RasterOptions(), config
    )
    assert angle_deg(start.world_to_cam, truth.world_to_cam) > 2.5
    assert angle_deg(result.camera.world_to_cam, truth.world_to_cam) < 1.0
    rotation = result.camera.world_to_cam[:3, :3]
    assert torch.allclose(rotation @ rotation.T, torch.eye(3), atol=1e-5)


def test_screw_with_a_unit_axis_is_the_inverse_rotation_and_with_zero_angle_the_identity():
    axis = torch.nn.functional.normalize(torch.tensor([1.0, 2.0, -0.5]), dim=0)
    matrix = _screw(torch.cat([axis, torch.zeros(3), torch.tensor([0.4])]))
    assert torch.allclose(matrix[:3, :3], rotation_from_vector(axis * 0.4).T, atol=1e-6)
    still = _screw(torch.cat([axis, torch.ones(3), torch.zeros(1)]))
    assert torch.allclose(still, torch.eye(4), atol=1e-7)
