"""The C++ kernel behind the common signature: SIMD, threads, gradients to every parameter and the camera."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from prepare.camera import Camera
from recon.gaussians import Gaussians
from recon.kernel.library import CameraInput, SplatGradients, SplatInput, ViewContext, check, library
from recon.rasterize import BLUR_PX2, ExtraChannels, RasterOptions, Render


def rasterize_cpu(
    gaussians: Gaussians,
    camera: Camera,
    background: Float[Tensor, "rgb=3"],
    colours: Float[Tensor, "n rgb=3"] | None,
    options: RasterOptions,
    means2d_gradient: Float[Tensor, "n uv=2"] | None = None,
    weights: Float[Tensor, " n"] | None = None,
    *,
    extra: ExtraChannels | None = None,
) -> Render:
    """The view of `gaussians` from `camera`; float32 on the CPU only, the same bits for any number of threads.

    `means2d_gradient` is filled, when backward runs, with dL/d(projected centre) in 1/px: what densification looks at;
    `weights` with each splat's compositing weight summed over the pixels, in px: what it has to do with the picture.
    Source: Kerbl et al. 2023, with exact 4x4-pixel block culling; see docs/decisions/0003-cpu-kernel.md.
    """
    degree = gaussians.sh_degree if options.sh_degree is None else options.sh_degree
    view = View(camera, options, min(degree, gaussians.sh_degree), extra)
    rgb, alpha, depth, further = _Rasterize.apply(
        gaussians.means,
        gaussians.quats,
        gaussians.log_scales,
        gaussians.logit_opacities,
        gaussians.sh,
        colours,
        camera.world_to_cam,
        background,
        view,
        means2d_gradient,
        weights,
    )
    return Render(rgb=rgb.permute(1, 2, 0), alpha=alpha, depth=depth, extra=further)


class View:
    """Everything about a call that is not a tensor."""

    def __init__(
        self, camera: Camera, options: RasterOptions, sh_degree: int, extra: ExtraChannels | None
    ) -> None:
        self.camera = camera
        self.options = options
        self.sh_degree = sh_degree
        self.extra = extra


def splat_input(parameters: Sequence[Tensor], colours: Tensor | None, sh_degree: int) -> SplatInput:
    """Pointers to contiguous float32 CPU tensors (in the order of the Gaussians' fields); the caller keeps them alive."""
    means, quats, log_scales, logit_opacities, sh = parameters
    return SplatInput(
        means.data_ptr(),
        quats.data_ptr(),
        log_scales.data_ptr(),
        logit_opacities.data_ptr(),
        sh.data_ptr(),
        None if colours is None else colours.data_ptr(),
        means.shape[0],
        sh.shape[1],
        sh_degree,
    )


def camera_input(camera: Camera, world_to_cam: Tensor, options: RasterOptions) -> CameraInput:
    """The camera as the kernel wants it."""
    return CameraInput(
        (ctypes.c_float * 12)(*world_to_cam[:3].reshape(-1).tolist()),
        camera.fl_x,
        camera.fl_y,
        camera.cx,
        camera.cy,
        camera.width,
        camera.height,
        options.near_plane,
        BLUR_PX2,
        int(options.antialiased),
    )


def contiguous_float32(tensor: Tensor) -> Tensor:
    """`tensor` itself where it already is contiguous float32.

    Raises: TypeError for another type or device: converting silently would hide a slow path.
    """
    if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
        raise TypeError(
            f"the CPU rasteriser takes float32 CPU tensors, got {tensor.dtype} on {tensor.device}"
        )
    return tensor.contiguous()


def check_shapes(
    means: Tensor,
    quats: Tensor,
    log_scales: Tensor,
    logit_opacities: Tensor,
    sh: Tensor,
    colours: Tensor | None,
    background: Tensor,
) -> None:
    """Nothing where the tensors fit each other: the kernel trusts their lengths and reads plain memory.

    Raises: ValueError.
    """
    n = means.shape[0]
    wanted = {"means": (n, 3), "quats": (n, 4), "log_scales": (n, 3), "logit_opacities": (n,)}
    given = {"means": means, "quats": quats, "log_scales": log_scales, "logit_opacities": logit_opacities}
    if colours is not None:
        wanted["colours"], given["colours"] = (n, 3), colours
    wanted["sh"], given["sh"] = (n, sh.shape[1] if sh.dim() == 3 else 1, 3), sh
    wanted["background"], given["background"] = (3,), background
    for name, tensor in given.items():
        if tuple(tensor.shape) != wanted[name]:
            raise ValueError(f"{name}: shape {tuple(tensor.shape)}, {wanted[name]} expected for {n} splats")


def _composite_extra(
    extra: ExtraChannels, context: ViewContext, frame: CameraInput, count: int, camera: Camera
) -> Float[Tensor, "channel height width"]:
    """The extra channels of the view whose lists `context` holds.

    Raises: ValueError where they do not fit the splats, TypeError for another type or device.
    """
    values, behind = contiguous_float32(extra.values), contiguous_float32(extra.background)
    channels = len(behind)
    if tuple(values.shape) != (count, channels):
        raise ValueError(
            f"extra: {tuple(values.shape)} values for {count} splats and a background of {channels} channels"
        )
    out = values.new_empty(channels, camera.height, camera.width)
    check(
        library().splatad_composite_extra(
            context.handle,
            ctypes.byref(frame),
            values.data_ptr(),
            channels,
            behind.data_ptr(),
            out.data_ptr(),
        )
    )
    return out


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


class _Rasterize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        means: Tensor,
        quats: Tensor,
        log_scales: Tensor,
        logit_opacities: Tensor,
        sh: Tensor,
        colours: Tensor | None,
        world_to_cam: Tensor,
        background: Tensor,
        view: View,
        means2d_gradient: Tensor | None,
        weights: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        camera, options = view.camera, view.options
        check_shapes(means, quats, log_scales, logit_opacities, sh, colours, background)
        means, quats, log_scales = map(contiguous_float32, (means, quats, log_scales))
        logit_opacities, sh = map(contiguous_float32, (logit_opacities, sh))
        if colours is not None:
            colours = contiguous_float32(colours)
        background = contiguous_float32(background)
        splats = splat_input((means, quats, log_scales, logit_opacities, sh), colours, view.sh_degree)
        frame = camera_input(camera, world_to_cam, options)
        rgb = means.new_empty(3, camera.height, camera.width)
        alpha = means.new_empty(camera.height, camera.width)
        depth = means.new_empty(camera.height, camera.width) if options.depth else None
        context = ViewContext()
        check(
            library().splatad_forward(
                context.handle,
                ctypes.byref(splats),
                ctypes.byref(frame),
                background.data_ptr(),
                rgb.data_ptr(),
                alpha.data_ptr(),
                _address(depth),
            )
        )
        further = None
        if view.extra is not None:
            further = _composite_extra(view.extra, context, frame, len(means), camera)
            ctx.mark_non_differentiable(further)
        ctx.save_for_backward(
            means, quats, log_scales, logit_opacities, sh, colours, background, rgb, alpha, depth
        )
        ctx.splats, ctx.frame, ctx.context = splats, frame, context
        ctx.means2d_gradient, ctx.weights = means2d_gradient, weights
        ctx.set_materialize_grads(False)
        return rgb, alpha, depth, further

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *v_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        means, quats, log_scales, logit_opacities, sh, colours, background, rgb, alpha, depth = (
            ctx.saved_tensors
        )
        v_rgb, v_alpha, v_depth = (None if v is None else v.contiguous() for v in v_outputs[:3])
        if v_rgb is None:
            v_rgb = torch.zeros_like(rgb)
        needs = ctx.needs_input_grad
        inputs = (means, quats, log_scales, logit_opacities, None if colours is not None else sh, colours)
        gradients = [
            torch.empty_like(tensor) if need and tensor is not None else None
            for tensor, need in zip(inputs, needs[:6], strict=True)
        ]
        camera_rows = means.new_empty(3, 4) if needs[6] else None
        written = (*gradients, camera_rows, ctx.means2d_gradient, ctx.weights)
        out = SplatGradients(*map(_address, written))
        check(
            library().splatad_backward(
                ctx.context.handle,
                ctypes.byref(ctx.splats),
                ctypes.byref(ctx.frame),
                background.data_ptr(),
                rgb.data_ptr(),
                alpha.data_ptr(),
                _address(depth),
                v_rgb.data_ptr(),
                _address(v_alpha),
                _address(v_depth),
                ctypes.byref(out),
            )
        )
        if needs[4] and gradients[4] is None:
            gradients[4] = torch.zeros_like(sh)
        v_camera = None
        if camera_rows is not None:
            v_camera = means.new_zeros(4, 4)
            v_camera[:3] = camera_rows
        v_background = None
        if needs[7]:
            v_background = (v_rgb * (1.0 - alpha)).sum(dim=(1, 2))
        return (*gradients, v_camera, v_background, None, None, None)
