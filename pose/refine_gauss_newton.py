"""Exact pose by Levenberg-Marquardt on the photometric residual, coarse to fine."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from pose.pyramid import LEVELS_PX, PhotoLevel, SplatLevels, camera_at
from pose.residual import (
    Exposure,
    JacobianMemory,
    NormalEquations,
    Robustness,
    normal_equations,
    zoomed,
)
from pose.se3 import stepped
from prepare.camera import Camera
from recon.rasterize import RasterOptions

Vector = NDArray[np.float64]

# Growth of aligned steps, its limit, and the cosine that counts as aligned.
STRETCH, MOST_STRETCH, ALIGNED = 1.6, 6.0, 0.8
MOST_TURN_RAD = 0.35  # of one step: a linearisation is not good for more than some 20 degrees
STALE_PX = 0.7  # motion of the part's image up to which a Jacobian is used again
NO_BETTER = 3.0  # times the motion that ends a level: a step that small which does not help ends it too
LEAST_GAIN, MOST_GAIN, MOST_BIAS = 0.5, 2.0, 0.1  # of the exposure solved along
# Pull to 1 and 0, as shares of the part's pixels: without it a wrong view is "explained" by a flat grey.
GAIN_PRIOR, BIAS_PRIOR = 2e-3, 2e-2


@dataclass(frozen=True)
class LevenbergConfig:
    """How far each level is driven."""

    huber: float = 0.1
    """Residual norm (colour units) beyond which a pixel's weight falls."""
    geman: float = 0.06
    """Scale of the redescending weight used in a last round at the finest level; 0 leaves the round out."""
    stop_px: tuple[float, ...] = (0.05, 0.03, 0.02, 0.015)
    """A level ends when a step moves the part's image by less than this, px of the level; one for each level from the
    coarsest, the last for more."""
    iterations: tuple[int, ...] = (12, 30, 30, 12)
    """Most steps, by level likewise. 100 and 200 px go furthest: they decide the basin, cheaply."""
    last_iterations: int = 10
    """Most steps of the redescending round."""
    exposure: bool = True
    """Solve for a gain and a bias per colour channel along with the camera."""
    focal: bool = False
    """Solve for the focal length too: for photos through a lens that is not known."""
    focal_guess: float = 0.0
    """With `focal`: focal length over width that `focal_pull` pulls to; 0: it is free."""
    focal_pull: float = 0.0005
    """Weight of the squared logarithm of focal length over guess, as a share of the part's pixels."""


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
    """`camera` (and exposure) moved to where the render matches the photo best.

    Runs over `levels` from the first to the last. Source: Levenberg 1944, Marquardt 1963; analytic Jacobian of the
    splat compositing (pose/residual.py). A step that moves the image by little takes the Jacobian of the step before
    (a chord, or simplified Newton, step: Ortega and Rheinboldt 1970, section 7.1), which costs a third.
    """
    exposure = exposure or Exposure()
    iterations = 0
    state: NormalEquations | None = None
    for level in levels:
        rank = LEVELS_PX.index(level.size_px) if level.size_px in LEVELS_PX else -1
        rounds = [(Robustness(config.huber), config.iterations[rank])]
        if last_round and level is levels[-1] and config.geman > 0:
            rounds.append((Robustness(config.huber, config.geman), config.last_iterations))
        problem = _Problem(splats, level, background, pivot, options, config)
        camera = camera_at(camera, level)
        for robustness, most in rounds:
            camera, exposure, state, used = _drive(
                problem, camera, exposure, robustness, config.stop_px[rank], most
            )
            iterations += used
    assert state is not None
    return Refined(camera, state.cost / (camera.width * camera.height), iterations, state, exposure)


class _Problem:
    """One photo level: the residual as a function of camera and exposure."""

    def __init__(
        self,
        splats: SplatLevels,
        level: PhotoLevel,
        background: Float[Tensor, "rgb=3"],
        pivot: Float[Tensor, "xyz=3"],
        options: RasterOptions,
        config: LevenbergConfig,
    ) -> None:
        self.gaussians = splats.at(level.size_px)
        self.radius = splats.radius
        self.target = level.target
        self.background, self.pivot, self.options = background, pivot, options
        self.focal = config.focal
        self.focal_guess = config.focal_guess if config.focal else 0.0
        self.focal_pull = config.focal_pull
        self.pose_unknowns = 7 if config.focal else 6
        self.unknowns = self.pose_unknowns + (6 if config.exposure else 0)
        self.memory = JacobianMemory()
        self.from_linearised = math.inf  # px between here and where the Jacobian in memory was taken

    def at(
        self, camera: Camera, exposure: Exposure, robustness: Robustness, *, reuse: bool = False
    ) -> NormalEquations:
        return normal_equations(
            self.gaussians, camera, self.background, self.target, self.pivot, robustness, exposure, self.options,
            focal=self.focal, memory=self.memory, reuse=reuse,
        )  # fmt: skip

    def moved(self, camera: Camera, exposure: Exposure, step: Vector) -> tuple[Camera, Exposure]:
        """Camera and exposure after `step`."""
        after = camera.moved(stepped(camera.world_to_cam, step[:6], self.pivot))
        if self.focal:
            after = zoomed(after, float(step[6]))
        if self.unknowns > self.pose_unknowns:
            change = step[self.pose_unknowns :].tolist()
            gain = [min(MOST_GAIN, max(LEAST_GAIN, exposure.gain[i] + change[i])) for i in range(3)]
            bias = [min(MOST_BIAS, max(-MOST_BIAS, exposure.bias[i] + change[3 + i])) for i in range(3)]
            exposure = Exposure((gain[0], gain[1], gain[2]), (bias[0], bias[1], bias[2]))
        return after, exposure

    def zoom(self, camera: Camera) -> float:
        """Logarithm of the camera's focal length over the guess; 0 without one."""
        return math.log(camera.fl_x / camera.width / self.focal_guess) if self.focal_guess else 0.0

    def motion_px(self, camera: Camera, step: Vector) -> float:
        """About how far `step` moves the image of the part's outer points, px."""
        distance = max(float(np.linalg.norm((camera.centre - self.pivot).numpy())), 1e-9)
        turn, across, along = np.linalg.norm(step[:3]), np.linalg.norm(step[3:5]), abs(step[5])
        zoom = abs(step[6]) if self.focal else 0.0
        per_unit = max(camera.fl_x, camera.fl_y) / distance
        return float(per_unit * (self.radius * (turn + along / distance + zoom) + across))


def _drive(
    problem: _Problem,
    camera: Camera,
    exposure: Exposure,
    robustness: Robustness,
    stop_px: float,
    most: int,
) -> tuple[Camera, Exposure, NormalEquations, int]:
    """One level under one robust weight, to convergence or `most` steps."""
    state = problem.at(camera, exposure, robustness, reuse=problem.from_linearised < STALE_PX)
    if not problem.from_linearised < STALE_PX:
        problem.from_linearised = 0.0
    n, pose = problem.unknowns, problem.pose_unknowns
    pull = exposure_prior(state)  # as it was at first: one cost throughout

    focal_pull = problem.focal_pull * max(state.part_weight, 1e-9) if problem.focal_guess else 0.0

    def cost_of(state: NormalEquations, camera: Camera, exposure: Exposure) -> float:
        cost = state.cost + 0.5 * focal_pull * problem.zoom(camera) ** 2
        return cost if n == pose else cost + 0.5 * float(pull @ _away(exposure) ** 2)

    cost = cost_of(state, camera, exposure)
    damping, stretch = 1e-3, 1.0
    before: Vector | None = None  # the last accepted step in the metric of the normal matrix
    used = 0
    while used < most:
        used += 1
        hessian, gradient = state.hessian[:n, :n].numpy().copy(), state.gradient[:n].numpy().copy()
        if n > pose:
            hessian[range(pose, n), range(pose, n)] += pull
            gradient[pose:] += pull * _away(exposure)
        if focal_pull:
            hessian[6, 6] += focal_pull
            gradient[6] += focal_pull * problem.zoom(camera)
        diagonal = hessian.diagonal()
        scale = np.maximum(diagonal, 1e-9 * diagonal[:pose].max() + 1e-12)
        scale[pose:] *= 1e-2  # the residual is linear in the exposure: it needs no damping to speak of
        step = -np.linalg.solve(hessian + damping * np.diag(scale), gradient)
        # Reweighted least squares creeps where outliers pull: steps that keep their direction are made longer.
        along = step[:pose] * np.sqrt(np.maximum(diagonal[:pose], 0.0))
        along = along / max(float(np.linalg.norm(along)), 1e-30)
        if before is not None:
            stretch = min(stretch * STRETCH, MOST_STRETCH) if float(along @ before) > ALIGNED else 1.0
        step[:pose] *= stretch
        turn = float(np.linalg.norm(step[:3]))
        if turn > MOST_TURN_RAD:
            step[:pose] *= MOST_TURN_RAD / turn
        motion = problem.motion_px(camera, step)
        reuse = problem.from_linearised + motion < STALE_PX
        trial_camera, trial_exposure = problem.moved(camera, exposure, step)
        trial = problem.at(trial_camera, trial_exposure, robustness, reuse=reuse)
        trial_cost = cost_of(trial, trial_camera, trial_exposure)
        if trial_cost < cost:
            camera, exposure, state, cost, before = trial_camera, trial_exposure, trial, trial_cost, along
            problem.from_linearised = problem.from_linearised + motion if reuse else 0.0
            damping = max(damping * 0.3, 1e-7)
            if motion < stop_px:
                break
            continue
        if not reuse:
            problem.from_linearised = motion
        if motion < NO_BETTER * stop_px:
            break
        if reuse and problem.from_linearised > 0.0:  # the Jacobian may be to blame
            state = problem.at(camera, exposure, robustness)
            problem.from_linearised, before, stretch = 0.0, None, 1.0
        elif stretch > 1.0:
            stretch, before = 1.0, None
        else:
            damping *= 8.0
            if damping > 1e4:
                break
    return camera, exposure, state, used


def exposure_prior(state: NormalEquations) -> Vector:
    """Weights of the pull on the three gains and the three biases."""
    return max(state.part_weight, 1e-9) * np.array([GAIN_PRIOR] * 3 + [BIAS_PRIOR] * 3)


def _away(exposure: Exposure) -> Vector:
    """Gains less one, then biases."""
    return np.array([gain - 1.0 for gain in exposure.gain] + list(exposure.bias))
