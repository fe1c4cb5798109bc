"""First-order refinement through the rasteriser's gradient: Adam about the part's centre, and SplatPose's own recipe.

Both are here to compare the second-order refinement with, in one run on the same splats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from pose.pyramid import PhotoLevel, SplatLevels, camera_at
from pose.refine_gauss_newton import Refined
from pose.residual import Exposure, Robustness, normal_equations
from pose.se3 import cross_matrix, moved_about, nearest_rigid
from prepare.camera import Camera
from recon.losses import make_target, photometric_loss
from recon.rasterize import RasterOptions, rasterize


@dataclass(frozen=True)
class AdamConfig:
    """How far Adam is driven."""

    recipe: Literal["centre", "splatpose"] = "centre"
    """centre: turn about the part's centre and shift, rate 0.02; splatpose: Kruse et al. 2024, as released."""
    steps: int = 100
    """Steps at the finest level (SplatPose: 175)."""
    rate: float = 0.02
    """Adam's learning rate (SplatPose: 0.01 times 0.8^((step + 1)/100), the first step 0.001)."""
    ssim_share: float = 0.2
    """Weight of 1 - SSIM in the loss."""


SPLATPOSE = AdamConfig(recipe="splatpose", steps=175, rate=0.01)


def refine_adam(
    splats: SplatLevels,
    level: PhotoLevel,
    camera: Camera,
    background: Float[Tensor, "rgb=3"],
    pivot: Float[Tensor, "xyz=3"],
    options: RasterOptions,
    config: AdamConfig,
) -> Refined:
    """`camera` after `config.steps` of Adam on (1 - λ) L1 + λ (1 - SSIM) at one photo size; the last iterate, as theirs.

    The recipe `splatpose` keeps their seven parameters (w, v, θ) from which R = I + sin θ [w] + (1 - cos θ) [w]² and
    T = (θ I + (1 - cos θ) [w] + (θ - sin θ) [w]²) v move the splats by Rᵀ x + T; w is not normalised, so R is a
    rotation only in the limit. Here the camera is moved by the same map instead of the splats, and its rotation is made
    orthonormal at the end. Source: SplatPose (arXiv 2404.06832), section 3; iNeRF (Yen-Chen et al. 2021).
    """
    camera = camera_at(camera, level)
    gaussians = splats.at(level.size_px).detached()
    target = make_target(level.target.permute(1, 2, 0).to(gaussians.device))
    start = camera.world_to_cam
    generator = torch.Generator().manual_seed(0)
    if config.recipe == "splatpose":
        parameters = (1e-6 * torch.randn(7, generator=generator)).requires_grad_()
    else:
        parameters = torch.zeros(6, requires_grad=True)
    optimizer = torch.optim.Adam([parameters], lr=config.rate)

    def moved() -> Tensor:
        if config.recipe == "splatpose":
            return start @ _screw(parameters)
        return moved_about(start, parameters, pivot)

    for step in range(config.steps):
        rate = config.rate
        if config.recipe == "splatpose":
            rate = 1e-3 if step == 0 else config.rate * 0.8 ** ((step + 1) / 100)
        optimizer.param_groups[0]["lr"] = rate
        render = rasterize(gaussians, camera.moved(moved()), background, options=options)
        loss = photometric_loss(render.rgb, target, config.ssim_share)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        final = camera.moved(nearest_rigid(moved()))
    normal = normal_equations(
        gaussians, final, background, level.target, pivot, Robustness(), Exposure(), options
    )
    return Refined(final, normal.cost / (final.width * final.height), config.steps, normal, Exposure())


def _screw(parameters: Float[Tensor, "seven=7"]) -> Float[Tensor, "4 4"]:
    """The map x -> Rᵀ x + T of SplatPose's (w, v, θ)."""
    cross, v, angle = cross_matrix(parameters[:3]), parameters[3:6], parameters[6]
    squared = cross @ cross
    eye = torch.eye(3)
    rotation = eye + torch.sin(angle) * cross + (1 - torch.cos(angle)) * squared
    shift = (angle * eye + (1 - torch.cos(angle)) * cross + (angle - torch.sin(angle)) * squared) @ v
    top = torch.cat([rotation.T, shift[:, None]], dim=1)
    return torch.cat([top, torch.tensor([[0.0, 0.0, 0.0, 1.0]])], dim=0)
