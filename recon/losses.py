"""Photometric loss of the fit, (1 - λ) L1 + λ (1 - SSIM), fused in the kernel on the CPU; PSNR and SSIM.

SSIM: Wang et al. 2004, 11x11 Gaussian window of sigma 1.5, zero padding, C1 = 0.01², C2 = 0.03², as in 3DGS.
"""

from __future__ import annotations

import math
from ctypes import c_double
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from recon.kernel.library import check, library

WINDOW = 11
SIGMA = 1.5
C1, C2 = 1e-4, 9e-4


@dataclass(frozen=True)
class Target:
    """A photo to fit, with its SSIM moments computed once."""

    planes: Float[Tensor, "rgb=3 height width"]
    mean: Float[Tensor, "rgb=3 height width"]  # under the SSIM window
    mean_square: Float[Tensor, "rgb=3 height width"]
    weight: Float[Tensor, "height width"] | None  # of each pixel in the loss; ones where None


def make_target(
    rgb: Float[Tensor, "height width rgb=3"], weight: Float[Tensor, "height width"] | None = None
) -> Target:
    """`rgb` ready for `photometric_loss`."""
    planes = rgb.permute(2, 0, 1).contiguous()
    if planes.device.type == "cpu" and planes.dtype == torch.float32:
        mean, mean_square = torch.empty_like(planes), torch.empty_like(planes)
        height, width = planes.shape[1:]
        check(
            library().splatad_ssim_moments(
                planes.data_ptr(), width, height, mean.data_ptr(), mean_square.data_ptr()
            )
        )
    else:
        mean, mean_square = _blur(planes), _blur(planes * planes)
    return Target(planes, mean, mean_square, None if weight is None else weight.contiguous())


def photometric_loss(
    rgb: Float[Tensor, "height width rgb=3"], target: Target, ssim_share: float
) -> Float[Tensor, ""]:
    """(1 - λ) mean |render - target| + λ (1 - mean SSIM), λ = `ssim_share`, each pixel times its weight.

    Differentiable in `rgb`. Source: Kerbl et al. 2023, eq. 7.
    """
    if rgb.device.type == "cpu" and rgb.dtype == torch.float32:
        return _FusedLoss.apply(rgb, target, ssim_share)
    return photometric_loss_reference(rgb, target, ssim_share)


def photometric_loss_reference(
    rgb: Float[Tensor, "height width rgb=3"], target: Target, ssim_share: float
) -> Float[Tensor, ""]:
    """The same in plain torch: the definition, and what runs on a GPU."""
    planes = rgb.permute(2, 0, 1)
    weight = torch.ones_like(planes[0]) if target.weight is None else target.weight
    l1 = (weight * (planes - target.planes).abs()).mean()
    ssim = (weight * ssim_map(planes, target)).mean()
    return (1.0 - ssim_share) * l1 + ssim_share * (1.0 - ssim)


def ssim_map(
    planes: Float[Tensor, "rgb=3 height width"], target: Target
) -> Float[Tensor, "rgb=3 height width"]:
    """SSIM of each pixel's window, in [-1, 1]."""
    mean = _blur(planes)
    variance = _blur(planes * planes) - mean * mean
    covariance = _blur(planes * target.planes) - mean * target.mean
    target_variance = target.mean_square - target.mean * target.mean
    luminance = (2 * mean * target.mean + C1) / (mean * mean + target.mean * target.mean + C1)
    return luminance * (2 * covariance + C2) / (variance + target_variance + C2)


def psnr(
    rgb: Float[Tensor, "height width rgb=3"],
    target: Float[Tensor, "height width rgb=3"],
    weight: Float[Tensor, "height width"] | None = None,
) -> float:
    """Peak signal-to-noise ratio in dB of values in [0, 1], over the pixels by `weight` (all alike where None)."""
    square = (rgb.clamp(0, 1) - target).square().mean(dim=-1)
    error = square.mean() if weight is None else (square * weight).sum() / weight.sum().clamp_min(1e-8)
    return -10.0 * math.log10(max(float(error), 1e-12))


def _blur(planes: Float[Tensor, "rgb=3 height width"]) -> Float[Tensor, "rgb=3 height width"]:
    offset = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    window = torch.exp(-0.5 * (offset / SIGMA) ** 2)
    window = (window / window.sum()).to(planes)
    rows = F.conv2d(planes[:, None], window.view(1, 1, 1, -1), padding=(0, WINDOW // 2))
    return F.conv2d(rows, window.view(1, 1, -1, 1), padding=(WINDOW // 2, 0))[:, 0]


def _check_target(planes: Tensor, target: Target) -> None:
    """Nothing where the kernel can trust the target: it reads plain memory.

    Raises: ValueError for another size, TypeError for another type or device.
    """
    shape = planes.shape
    parts: list[tuple[str, Tensor, torch.Size]] = [
        ("planes", target.planes, shape),
        ("mean", target.mean, shape),
        ("mean_square", target.mean_square, shape),
    ]
    if target.weight is not None:
        parts.append(("weight", target.weight, shape[1:]))
    for name, tensor, shape in parts:
        if tensor.dtype != torch.float32 or not tensor.is_cpu or not tensor.is_contiguous():
            raise TypeError(
                f"target's {name}: contiguous float32 on the CPU expected like the render, "
                f"got {tensor.dtype} on {tensor.device}"
            )
        if tensor.shape != shape:
            raise ValueError(f"target's {name}: shape {tuple(tensor.shape)}, {tuple(shape)} expected")


class _FusedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rgb: Tensor, target: Target, ssim_share: float) -> Tensor:
        # Permuted in here: as an operation of its own it would cost the backward pass 9 us.
        planes = rgb.permute(2, 0, 1).contiguous()
        _check_target(planes, target)
        height, width = planes.shape[1:]
        gradient = torch.empty_like(planes) if ctx.needs_input_grad[0] else None
        means = (c_double * 2)()  # of the absolute difference, of SSIM
        check(
            library().splatad_l1_ssim(
                planes.data_ptr(),
                target.planes.data_ptr(),
                target.mean.data_ptr(),
                target.mean_square.data_ptr(),
                None if target.weight is None else target.weight.data_ptr(),
                width,
                height,
                ssim_share,
                means,
                None if gradient is None else gradient.data_ptr(),
            )
        )
        if gradient is not None:
            ctx.save_for_backward(gradient.permute(1, 2, 0))
        l1, ssim = means
        return planes.new_tensor((1.0 - ssim_share) * l1 + ssim_share * (1.0 - ssim))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *v_loss: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        scale = float(v_loss[0])
        return gradient if scale == 1.0 else gradient * scale, None, None
