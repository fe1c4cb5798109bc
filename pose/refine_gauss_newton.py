"""Exact pose by Levenberg-Marquardt on the photometric residual, coarse to fine."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pose.pyramid import LEVELS_PX, PhotoLevel, SplatLevels, camera_at
from pose.residual import Exposure, NormalEquations, Robustness, normal_equations
from pose.se3 import moved_about, nearest_rigid
from prepare.camera import Camera
from recon.rasterize import RasterOptions

STRETCH, MOST_STRETCH, ALIGNED = (
    1.6,
    6.0,
    0.8,
)  # growth of aligned steps, its limit, and the cosine that counts as aligned
MOST_TURN_RAD = 0.35  # of one step: a linearisation is not good for more than some 20 degrees


@dataclass(frozen=True)
class LevenbergConfig:
    """How far each level is driven."""

    huber: float = 0.1
    """Residual norm (colour units) beyond which a pixel's weight falls."""
    geman: float = 0.06
    """Scale of the redescending weight used in a last round at the finest level; 0 leaves the round out."""
    stop: tuple[float, ...] = (1e-3, 2e-5, 2e-5, 1e-4)
    """A level ends when the cost falls by less than this share; one for each level from the coarsest, the last for more."""
    iterations: tuple[int, ...] = (12, 40, 40, 8)
    """Most steps, by level likewise. 100 and 200 px go furthest: they decide the basin, cheaply."""
    last_iterations: int = 6
    """Most steps of the redescending round."""
    exposure: bool = False
    """Also fit a gain and a bias per colour channel."""


@dataclass(frozen=True)
class Refined:
    """Where refinement ended."""

    camera: Camera  # at the size of the finest level used
    cost: float  # mean robust loss per pixel at that level, under the Huber weight
    iterations: int  # over all levels
    normal: NormalEquations  # at the end
    exposure: Exposure


def refine_levenberg(
    splats: SplatLevels,
    levels: tuple[PhotoLevel, ...],
    camera: Camera,
    background: Float[Tensor, "rgb=3"],
    pivot: Float[Tensor, "xyz=3"],
    options: RasterOptions,
    config: LevenbergConfig,
    *,
    last_round: bool = True,
    exposure: Exposure | None = None,
) -> Refined:
    """`camera` moved to where the render matches the photo best.

    Runs over `levels` from the first to the last. Source: Levenberg 1944, Marquardt 1963; analytic Jacobian of the
    splat compositing (pose/residual.py).
    """
    exposure = exposure or Exposure()
    iterations = 0
    state: NormalEquations | None = None
    for level in levels:
        rank = LEVELS_PX.index(level.size_px) if level.size_px in LEVELS_PX else -1
        rounds = [(Robustness(config.huber), config.iterations[rank])]
        if last_round and level is levels[-1] and config.geman > 0:
            rounds.append((Robustness(config.huber, config.geman), config.last_iterations))
        for robustness, most in rounds:
            camera, state, exposure, used = _drive(
                splats,
                level,
                camera_at(camera, level),
                background,
                pivot,
                options,
                config.exposure,
                robustness,
                exposure,
                config.stop[rank],
                most,
            )
            iterations += used
    assert state is not None
    return Refined(camera, state.cost / (camera.width * camera.height), iterations, state, exposure)


def _drive(
    splats: SplatLevels,
    level: PhotoLevel,
    camera: Camera,
    background: Float[Tensor, "rgb=3"],
    pivot: Float[Tensor, "xyz=3"],
    options: RasterOptions,
    fit_exposure: bool,
    robustness: Robustness,
    exposure: Exposure,
    stop: float,
    most: int,
) -> tuple[Camera, NormalEquations, Exposure, int]:
    """One level under one robust weight, to convergence or `most` steps."""
    gaussians = splats.at(level.size_px)

    def evaluate(at: Camera) -> NormalEquations:
        return normal_equations(gaussians, at, background, level.target, pivot, robustness, exposure, options)

    state = evaluate(camera)
    damping, stretch = 1e-3, 1.0
    before: Tensor | None = None  # the last accepted step in the metric of the normal matrix
    used = 0
    while used < most:
        used += 1
        if fit_exposure:
            exposure = state.exposure
        diagonal = state.hessian.diagonal()
        scale = diagonal.clamp_min(1e-9 * float(diagonal.max()) + 1e-12)
        step = -torch.linalg.solve(state.hessian + damping * torch.diag(scale), state.gradient)
        # Reweighted least squares creeps where outliers pull: steps that keep their direction are made longer.
        along = step * scale.sqrt()
        along = along / along.norm().clamp_min(1e-30)
        if before is not None:
            stretch = min(stretch * STRETCH, MOST_STRETCH) if float(along @ before) > ALIGNED else 1.0
        step = (stretch * step).to(torch.float32)
        turn = float(step[:3].norm())
        if turn > MOST_TURN_RAD:
            step = step * (MOST_TURN_RAD / turn)
        trial_camera = camera.moved(nearest_rigid(moved_about(camera.world_to_cam, step, pivot)))
        trial = evaluate(trial_camera)
        if trial.cost < state.cost:
            gained = (state.cost - trial.cost) / max(state.cost, 1e-12)
            camera, state, before = trial_camera, trial, along
            damping = max(damping * 0.3, 1e-7)
            if gained < stop:
                break
        elif stretch > 1.0:
            stretch, before = 1.0, None
        else:
            damping *= 8.0
            if damping > 1e4:
                break
    return camera, state, exposure, used
