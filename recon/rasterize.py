"""Splats to images. One signature, three rasterisers; this module alone chooses between them.

`cuda` is gsplat, `cpu` our C++ kernel, `reference` plain torch: slow, the definition the others are tested against.
All follow docs/conventions.md and are differentiable in every field of the Gaussians, in `colours` and in
`camera.world_to_cam`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from prepare.camera import Camera
from prepare.errors import MissingPartError
from recon.gaussians import Gaussians

Backend = Literal["auto", "cuda", "cpu", "reference"]

NEAR_PLANE = 0.01  # world units; splats nearer than this are not drawn
BLUR_PX2 = (
    0.3  # added to the projected covariance's diagonal: a splat is never thinner than about half a pixel
)


@dataclass(frozen=True)
class Render:
    """What a camera sees of the splats."""

    rgb: Float[Tensor, "height width rgb=3"]  # background included; may exceed 1
    alpha: Float[Tensor, "height width"]  # in [0, 1): share of the pixel that splats cover
    depth: (
        Float[Tensor, "height width"] | None
    )  # sum of weights times z; divide by alpha for the expected depth
    extra: Float[Tensor, "channel height width"] | None = None  # where asked for; carries no gradient


@dataclass(frozen=True)
class ExtraChannels:
    """What is composited beside the colour in the same pass, with the same weights: expected residuals, say."""

    values: Float[Tensor, "n channel"]  # of each splat
    background: Float[Tensor, " channel"]  # where no splat covers the pixel


@dataclass(frozen=True)
class RasterOptions:
    """How splats become pixels."""

    sh_degree: int | None = None  # harmonics used; all that are stored where None
    antialiased: bool = False  # opacity scaled by the area the 0.3 px blur adds (Mip-Splatting's 2D filter)
    depth: bool = False  # also accumulate depth
    near_plane: float = NEAR_PLANE  # world units


def rasterize(
    gaussians: Gaussians,
    camera: Camera,
    background: Float[Tensor, "rgb=3"] | None = None,
    *,
    colours: Float[Tensor, "n rgb=3"] | None = None,
    options: RasterOptions | None = None,
    extra: ExtraChannels | None = None,
    backend: Backend = "auto",
) -> Render:
    """The view of `gaussians` from `camera` over `background` (black where None).

    `colours` replaces the harmonics by values that are composited as they stand (any three channels); `extra` adds any
    number of channels to the pass, without gradients.
    `auto` takes the device of the splats: gsplat on CUDA, the C++ kernel on the CPU.

    Raises: MissingPartError where the wanted rasteriser is not there; it is never replaced silently.
    """
    options = options or RasterOptions()
    if background is None:
        background = torch.zeros(3, dtype=gaussians.means.dtype, device=gaussians.device)
    chosen = choose_backend(gaussians.device) if backend == "auto" else backend
    if chosen == "cuda":
        from recon.rasterize_cuda import rasterize_cuda

        return rasterize_cuda(gaussians, camera, background, colours, options, extra=extra)
    if chosen == "cpu":
        from recon.rasterize_cpu import rasterize_cpu

        return rasterize_cpu(gaussians, camera, background, colours, options, extra=extra)
    if chosen != "reference":
        raise ValueError(f"backend {chosen!r}: there are auto, cuda, cpu and reference")
    from recon.rasterize_reference import rasterize_reference

    return rasterize_reference(gaussians, camera, background, colours, options, extra=extra)


def choose_backend(device: torch.device) -> Literal["cuda", "cpu"]:
    """The rasteriser for tensors on `device`.

    Raises: MissingPartError on a device that none of them serves.
    """
    if device.type == "cuda":
        return "cuda"
    if device.type == "cpu":
        return "cpu"
    raise MissingPartError(f"device {device}: no rasteriser for it; use --device cpu or cuda")
