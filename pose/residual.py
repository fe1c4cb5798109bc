"""The photometric residual of a pose and its normal equations: what second-order refinement is made of.

Residual of a pixel: the render with the photo's exposure, less the photo, three channels. The exposure (gain and bias of
each channel) acts on the part alone, for the background is exchanged for the reference's; colours are cut to 0..1, as a
sensor cuts them. Unknowns: a turn about the part's centre (camera axes, radians), a shift (camera axes, world units; see
`pose.se3.moved_about`), if wanted the logarithm of the focal length, then the three gains and the three biases.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass, replace

import numpy as np
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
    """How the part in the photo differs from the render in brightness and colour: photo = gain * render + bias."""

    gain: tuple[float, float, float] = (1.0, 1.0, 1.0)
    bias: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def behind(self, background: Float[Tensor, "rgb=3"]) -> Float[Tensor, "rgb=3"]:
        """What to render over so that the exposed render lies over `background` itself."""
        return (background - background.new_tensor(self.bias)) / background.new_tensor(self.gain)

    def applied(self, rgb: Float[Tensor, "*shape rgb=3"]) -> Float[Tensor, "*shape rgb=3"]:
        """A render (over `behind(background)`) as the photo's exposure shows it."""
        return (rgb * rgb.new_tensor(self.gain) + rgb.new_tensor(self.bias)).clamp(0, 1)


@dataclass(frozen=True)
class NormalEquations:
    """One Gauss-Newton pass at a pose; n = 6, or 7 with the focal length, and 6 more for gains and biases."""

    hessian: Float[Tensor, "n n"]  # sum of w J^T J, float64
    gradient: Float[Tensor, " n"]  # sum of w J^T r, float64
    cost: float  # sum of robust losses
    squared: float  # sum of squared residuals
    weight: float  # sum of the weights
    part_weight: float  # sum of the weights times alpha squared, mean of the channels
    rgb: Float[
        Tensor, "height width rgb=3"
    ]  # the render at this pose, over `Exposure.behind` of the background
    alpha: Float[Tensor, "height width"]


class JacobianMemory:
    """Keeps the last Jacobian computed, for passes at nearby cameras that cost a third without their own."""

    def __init__(self) -> None:
        self.context = ViewContext()  # of the kernel
        self.differences: Float[Tensor, "height width rgb=3 n"] | None = None  # elsewhere


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
    jacobian: Float[Tensor, "rgb=3 n height width"] | None = None,
    *,
    focal: bool = False,
    memory: JacobianMemory | None = None,
    reuse: bool = False,
) -> NormalEquations:
    """Normal equations of the residual at `camera`; `target` is the photo at the camera's size.

    On the CPU the Jacobian is analytic and summed inside the kernel (and written to `jacobian`, of the render alone, where
    that is given); elsewhere it is taken by central differences of renders. `focal` adds the focal length to the unknowns.
    With `memory` the Jacobian is kept there; `reuse` takes the one kept by the pass before (same size and unknowns).
    """
    if choose_backend(gaussians.device) != "cpu":
        return _by_differences(
            gaussians, camera, background, target, pivot, robustness, exposure, options, pixel_weight,
            focal=focal, memory=memory, reuse=reuse,
        )  # fmt: skip
    world_to_cam = camera.world_to_cam
    parameters = [contiguous_float32(t.detach()) for t in gaussians.tensors().values()]
    degree = gaussians.sh_degree if options.sh_degree is None else min(options.sh_degree, gaussians.sh_degree)
    splats = splat_input(parameters, None, degree)
    frame = camera_input(camera, world_to_cam, options)
    behind = contiguous_float32(exposure.behind(background))
    target = contiguous_float32(target)
    if pixel_weight is not None:
        pixel_weight = contiguous_float32(pixel_weight)
    rgb = target.new_empty(3, camera.height, camera.width)
    alpha = target.new_empty(camera.height, camera.width)
    context = ViewContext() if memory is None else memory.context
    kernel = library()
    check(
        kernel.splatad_forward(
            context.handle,
            ctypes.byref(splats),
            ctypes.byref(frame),
            behind.data_ptr(),
            rgb.data_ptr(),
            alpha.data_ptr(),
            None,
        )
    )
    pivot_cam = (world_to_cam[:3, :3] @ pivot + world_to_cam[:3, 3]).tolist()
    unknowns = 7 if focal else 6
    step = PoseStep(
        pivot=(ctypes.c_float * 3)(*pivot_cam),
        gain=(ctypes.c_float * 3)(*exposure.gain),
        bias=(ctypes.c_float * 3)(*exposure.bias),
        huber=robustness.huber,
        geman=robustness.geman,
        unknowns=unknowns,
        keep=memory is not None and not reuse,
        reuse=reuse,
    )
    check(
        kernel.splatad_pose_step(
            context.handle,
            ctypes.byref(splats),
            ctypes.byref(frame),
            behind.data_ptr(),
            rgb.data_ptr(),
            alpha.data_ptr(),
            target.data_ptr(),
            None if pixel_weight is None else pixel_weight.data_ptr(),
            ctypes.byref(step),
            None if jacobian is None else jacobian.data_ptr(),
        )
    )
    cross = np.array(step.cross).reshape(3, 7, 2)[:, :unknowns]
    return _assembled(
        np.array(step.hessian)[: unknowns * unknowns].reshape(unknowns, unknowns),
        np.array(step.gradient)[:unknowns],
        np.array(step.moments).reshape(3, 6),
        cross,
        exposure,
        (step.cost, step.squared, step.weight),
        rgb.permute(1, 2, 0),
        alpha,
    )


def _assembled(
    hessian: Float[np.ndarray, "n n"],
    gradient: Float[np.ndarray, " n"],
    moments: Float[np.ndarray, "rgb=3 six=6"],
    cross: Float[np.ndarray, "rgb=3 n gain_bias=2"],
    exposure: Exposure,
    sums: tuple[float, float, float],
    rgb: Float[Tensor, "height width rgb=3"],
    alpha: Float[Tensor, "height width"],
) -> NormalEquations:
    """The sums over the pixels as one system: pose first, then the three gains, then the three biases."""
    n = len(gradient)
    whole, right = np.zeros((n + 6, n + 6)), np.zeros(n + 6)
    whole[:n, :n], right[:n] = hessian, gradient
    for channel in range(3):
        aa, ac, cc, at, ct, _ = moments[channel]
        g, b = n + channel, n + 3 + channel
        whole[:n, g], whole[:n, b] = cross[channel, :, 0], cross[channel, :, 1]
        whole[g, :n], whole[b, :n] = whole[:n, g], whole[:n, b]
        whole[g, g], whole[b, b] = cc, aa
        whole[g, b] = whole[b, g] = ac
        gain, bias = exposure.gain[channel], exposure.bias[channel]
        right[g] = gain * cc + bias * ac - ct
        right[b] = gain * ac + bias * aa - at
    cost, squared, weight = sums
    part_weight = float(moments[:, 0].mean())
    return NormalEquations(
        torch.from_numpy(whole), torch.from_numpy(right), cost, squared, weight, part_weight, rgb, alpha
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
    *,
    focal: bool = False,
    memory: JacobianMemory | None = None,
    reuse: bool = False,
) -> NormalEquations:
    behind = exposure.behind(background)
    with torch.no_grad():
        render = rasterize(gaussians, camera, behind, options=options)
        kept = memory.differences if memory is not None and reuse else None
        jacobian = _differences(gaussians, camera, behind, pivot, options, focal) if kept is None else kept
        if memory is not None:
            memory.differences = jacobian
        gain, bias = render.rgb.new_tensor(exposure.gain), render.rgb.new_tensor(exposure.bias)
        photo = target.permute(1, 2, 0).to(render.rgb)
        shown = gain * render.rgb + bias
        within = shown.clamp(0, 1)
        residual = within - photo
        squared = residual.square().sum(dim=-1)
        loss, weight = robust_loss(squared, robustness)
        base = torch.ones_like(squared) if pixel_weight is None else pixel_weight.to(squared)
        weight = (weight * base).double()
        w = weight[..., None] * (within == shown)
        scaled = (jacobian * gain[:, None]).double()
        left = (1.0 - render.alpha.double())[..., None]
        c = render.rgb.double() - left * behind.double()
        t = photo.double() - left * (gain * behind + bias).double()
        a = render.alpha.double()[..., None].expand_as(c)
        sums = [w * a * a, w * a * c, w * c * c, w * a * t, w * c * t, w * t * t]
        moments = torch.stack([s.sum(dim=(0, 1)) for s in sums], dim=1)
        cross = torch.stack([torch.einsum("hwci,hwc->ci", scaled, w * v) for v in (c, a)], dim=-1)
        return _assembled(
            torch.einsum("hwci,hwc,hwcj->ij", scaled, w, scaled).cpu().numpy(),
            torch.einsum("hwci,hwc,hwc->i", scaled, w, residual.double()).cpu().numpy(),
            moments.cpu().numpy(),
            cross.cpu().numpy(),
            exposure,
            (float((loss * base).sum()), float((squared * base).sum()), float(weight.sum())),
            render.rgb,
            render.alpha,
        )


def _differences(
    gaussians: Gaussians,
    camera: Camera,
    background: Float[Tensor, "rgb=3"],
    pivot: Float[Tensor, "xyz=3"],
    options: RasterOptions,
    focal: bool,
) -> Float[Tensor, "height width rgb=3 n"]:
    """The render's Jacobian by central differences."""
    distance = float((camera.centre - pivot.to(camera.world_to_cam)).norm())
    columns = []
    for k in range(7 if focal else 6):
        size = DIFFERENCE_STEP * distance if 3 <= k < 6 else DIFFERENCE_STEP
        sides = []
        for sign in (1.0, -1.0):
            if k == 6:
                moved = zoomed(camera, sign * size)
            else:
                step = torch.zeros(6).to(camera.world_to_cam)
                step[k] = sign * size
                moved = camera.moved(moved_about(camera.world_to_cam, step, pivot.to(camera.world_to_cam)))
            sides.append(rasterize(gaussians, moved, background, options=options).rgb)
        columns.append((sides[0] - sides[1]) / (2 * size))
    return torch.stack(columns, dim=-1)


def zoomed(camera: Camera, log_factor: float) -> Camera:
    """`camera` with both focal lengths times exp(log_factor)."""
    factor = math.exp(log_factor)
    return replace(camera, fl_x=camera.fl_x * factor, fl_y=camera.fl_y * factor)
