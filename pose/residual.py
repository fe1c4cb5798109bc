"""The photometric residual of a pose and its normal equations: what second-order refinement is made of.

Residual of a pixel: gain * render + bias - photo, three channels. Unknowns: a turn about the part's centre (camera
axes, radians) and a shift (camera axes, world units); see `pose.se3.moved_about`.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pose.se3 import moved_about
from prepare.camera import Camera
from recon.gaussians import Gaussians
from recon.kernel.library import PoseStep, ViewContext, check, library
from recon.rasterize import RasterOptions, choose_backend, rasterize
from recon.rasterize_cpu import camera_input, contiguous_float32, splat_input

DIFFERENCE_STEP = 1e-3  # radians and, times the distance, world units; for the rasterisers without a Jacobian


@dataclass(frozen=True)
class Robustness:
    """Weight of a pixel by the norm of its residual over the channels."""

    huber: float = 0.1  # beyond this the weight falls as 1/norm; 0: plain least squares
    geman: float = (
        0.0  # scale of a Geman-McClure weight, used instead where > 0: outliers lose their pull entirely
    )


@dataclass(frozen=True)
class Exposure:
    """How the photo differs from the render in brightness and colour: photo = gain * render + bias."""

    gain: tuple[float, float, float] = (1.0, 1.0, 1.0)
    bias: tuple[float, float, float] = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class NormalEquations:
    """One Gauss-Newton pass at a pose."""

    hessian: Float[Tensor, "six=6 six=6"]  # sum of w J^T J, float64
    gradient: Float[Tensor, "six=6"]  # sum of w J^T r, float64
    cost: float  # sum of robust losses
    squared: float  # sum of squared residuals
    weight: float  # sum of the weights
    exposure: Exposure  # gain and bias that fit best at this pose, by the robust weights
    rgb: Float[Tensor, "height width rgb=3"]  # the render at this pose
    alpha: Float[Tensor, "height width"]


def normal_equations(
    gaussians: Gaussians,
    camera: Camera,
    background: Float[Tensor, "rgb=3"],
    target: Float[Tensor, "rgb=3 height width"],
    pivot: Float[Tensor, "xyz=3"],
    robustness: Robustness,
    exposure: Exposure,
    options: RasterOptions,
    pixel_weight: Float[Tensor, "height width"] | None = None,
    jacobian: Float[Tensor, "rgb=3 six=6 height width"] | None = None,
) -> NormalEquations:
    """Normal equations of the residual at `camera`; `target` is the photo at the camera's size.

    On the CPU the Jacobian is analytic and summed inside the kernel (and written to `jacobian` where that is given);
    elsewhere it is taken by central differences of twelve renders.
    """
    if choose_backend(gaussians.device) != "cpu":
        return _by_differences(
            gaussians, camera, background, target, pivot, robustness, exposure, options, pixel_weight
        )
    world_to_cam = camera.world_to_cam
    parameters = [contiguous_float32(t.detach()) for t in gaussians.tensors().values()]
    degree = gaussians.sh_degree if options.sh_degree is None else min(options.sh_degree, gaussians.sh_degree)
    splats = splat_input(parameters, None, degree)
    frame = camera_input(camera, world_to_cam, options)
    background = contiguous_float32(background)
    target = contiguous_float32(target)
    if pixel_weight is not None:
        pixel_weight = contiguous_float32(pixel_weight)
    rgb = target.new_empty(3, camera.height, camera.width)
    alpha = target.new_empty(camera.height, camera.width)
    context = ViewContext()
    kernel = library()
    check(
        kernel.splatad_forward(
            context.handle,
            ctypes.byref(splats),
            ctypes.byref(frame),
            background.data_ptr(),
            rgb.data_ptr(),
            alpha.data_ptr(),
            None,
        )
    )
    pivot_cam = (world_to_cam[:3, :3] @ pivot + world_to_cam[:3, 3]).tolist()
    step = PoseStep(
        pivot=(ctypes.c_float * 3)(*pivot_cam),
        gain=(ctypes.c_float * 3)(*exposure.gain),
        bias=(ctypes.c_float * 3)(*exposure.bias),
        huber=robustness.huber,
        geman=robustness.geman,
    )
    check(
        kernel.splatad_pose_step(
            context.handle,
            ctypes.byref(splats),
            ctypes.byref(frame),
            background.data_ptr(),
            rgb.data_ptr(),
            alpha.data_ptr(),
            target.data_ptr(),
            None if pixel_weight is None else pixel_weight.data_ptr(),
            ctypes.byref(step),
            None if jacobian is None else jacobian.data_ptr(),
        )
    )
    return NormalEquations(
        hessian=torch.tensor(list(step.hessian), dtype=torch.float64).reshape(6, 6),
        gradient=torch.tensor(list(step.gradient), dtype=torch.float64),
        cost=step.cost,
        squared=step.squared,
        weight=step.weight,
        exposure=_fit_exposure(torch.tensor(list(step.moments), dtype=torch.float64).reshape(3, 6)),
        rgb=rgb.permute(1, 2, 0),
        alpha=alpha,
    )


def robust_loss(
    squared_norm: Float[Tensor, "*shape"], robustness: Robustness
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """Loss and weight of squared residual norms. Huber: Huber 1964; Geman-McClure: Barron 2019, table 1."""
    if robustness.geman > 0:
        fall = robustness.geman**2 / (robustness.geman**2 + squared_norm)
        return 0.5 * squared_norm * fall, fall * fall
    if robustness.huber > 0:
        norm = squared_norm.clamp_min(1e-20).sqrt()
        outside = norm > robustness.huber
        loss = torch.where(outside, robustness.huber * (norm - 0.5 * robustness.huber), 0.5 * squared_norm)
        return loss, torch.where(outside, robustness.huber / norm, torch.ones_like(norm))
    return 0.5 * squared_norm, torch.ones_like(squared_norm)


def _by_differences(
    gaussians: Gaussians,
    camera: Camera,
    background: Float[Tensor, "rgb=3"],
    target: Float[Tensor, "rgb=3 height width"],
    pivot: Float[Tensor, "xyz=3"],
    robustness: Robustness,
    exposure: Exposure,
    options: RasterOptions,
    pixel_weight: Float[Tensor, "height width"] | None,
) -> NormalEquations:
    with torch.no_grad():
        render = rasterize(gaussians, camera, background, options=options)
        distance = float((camera.centre - pivot.to(camera.world_to_cam)).norm())
        columns = []
        for k in range(6):
            size = DIFFERENCE_STEP if k < 3 else DIFFERENCE_STEP * distance
            sides = []
            for sign in (1.0, -1.0):
                step = torch.zeros(6).to(camera.world_to_cam)
                step[k] = sign * size
                moved = camera.moved(moved_about(camera.world_to_cam, step, pivot.to(camera.world_to_cam)))
                sides.append(rasterize(gaussians, moved, background, options=options).rgb)
            columns.append((sides[0] - sides[1]) / (2 * size))
        jacobian = torch.stack(columns, dim=-1)
        gain, bias = render.rgb.new_tensor(exposure.gain), render.rgb.new_tensor(exposure.bias)
        photo = target.permute(1, 2, 0).to(render.rgb)
        residual = gain * render.rgb + bias - photo
        squared = residual.square().sum(dim=-1)
        loss, weight = robust_loss(squared, robustness)
        base = torch.ones_like(squared) if pixel_weight is None else pixel_weight.to(squared)
        weight = (weight * base).double()
        scaled = (jacobian * gain[:, None]).double()
        c, t, w = render.rgb.double(), photo.double(), weight[..., None]
        sums = [w.expand_as(c), w * c, w * c * c, w * t, w * c * t, w * t * t]
        moments = torch.stack([s.sum(dim=(0, 1)) for s in sums], dim=1).cpu()
        return NormalEquations(
            hessian=torch.einsum("hwci,hw,hwcj->ij", scaled, weight, scaled).cpu(),
            gradient=torch.einsum("hwci,hw,hwc->i", scaled, weight, residual.double()).cpu(),
            cost=float((loss * base).sum()),
            squared=float((squared * base).sum()),
            weight=float(weight.sum()),
            exposure=_fit_exposure(moments),
            rgb=render.rgb,
            alpha=render.alpha,
        )


def _fit_exposure(moments: Float[Tensor, "rgb=3 six=6"]) -> Exposure:
    """Weighted least-squares gain and bias per channel, kept within a factor of 2 and 0.2.

    A little weight (0.1 % of the pixels) pulls to gain 1, bias 0, for a render that is flat in some channel.
    """
    gains, biases = [], []
    for w, c, cc, t, ct, _ in moments.tolist():
        prior = 1e-3 * max(w, 1e-9)
        # minimise sum w (g c + b - t)^2 + prior ((g - 1)^2 + b^2)
        a00, a01, a11 = cc + prior, c, w + prior
        r0, r1 = ct + prior, t
        det = a00 * a11 - a01 * a01
        gain = (r0 * a11 - r1 * a01) / det if det > 0 else 1.0
        bias = (a00 * r1 - a01 * r0) / det if det > 0 else 0.0
        gains.append(min(2.0, max(0.5, gain)))
        biases.append(min(0.2, max(-0.2, bias)))
    return Exposure((gains[0], gains[1], gains[2]), (biases[0], biases[1], biases[2]))
