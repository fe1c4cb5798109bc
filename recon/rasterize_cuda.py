"""gsplat (Apache-2.0) behind the common signature. Written for gsplat 1.4 to 1.6; needs a CUDA device and nvcc."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from prepare.camera import Camera
from prepare.errors import MissingPartError
from recon.gaussians import Gaussians
from recon.rasterize import BLUR_PX2, ExtraChannels, RasterOptions, Render


def rasterize_cuda(
    gaussians: Gaussians,
    camera: Camera,
    background: Float[Tensor, "rgb=3"],
    colours: Float[Tensor, "n rgb=3"] | None,
    options: RasterOptions,
    extra: ExtraChannels | None = None,
) -> Render:
    """The view of `gaussians` from `camera` by gsplat; see `recon.rasterize.rasterize`.

    Raises: MissingPartError without a CUDA device or gsplat.
    """
    if not torch.cuda.is_available():
        raise MissingPartError("device cuda: torch sees no CUDA GPU; use --device cpu")
    try:
        from gsplat import rasterization
    except ImportError as error:
        raise MissingPartError(
            f"gsplat cannot be imported ({error}); `pip install 'splatad[cuda]'` and have nvcc on the PATH"
        ) from error
    shown = gaussians.sh if colours is None else colours
    degree = gaussians.sh_degree if options.sh_degree is None else options.sh_degree
    common: dict[str, Any] = {
        "means": gaussians.means,
        "quats": gaussians.quats,
        "scales": gaussians.log_scales.exp(),
        "opacities": torch.sigmoid(gaussians.logit_opacities),
        "viewmats": camera.world_to_cam.to(gaussians.device)[None],
        "Ks": camera.intrinsics.to(gaussians.device)[None],
        "width": camera.width,
        "height": camera.height,
        "near_plane": options.near_plane,
        "eps2d": BLUR_PX2,
        "rasterize_mode": "antialiased" if options.antialiased else "classic",
        "packed": False,
    }
    image, alpha, _ = rasterization(
        colors=shown,
        sh_degree=degree if colours is None else None,
        render_mode="RGB+D" if options.depth else "RGB",
        **common,
    )
    # The background is added here: gsplat's own argument has changed shape and meaning with depth between versions.
    coverage = alpha[0, ..., 0]
    rgb = image[0, ..., :3] + (1.0 - coverage)[..., None] * background.to(gaussians.device)
    further = None
    if extra is not None:  # gsplat takes harmonics or plain channels, not both: its own pass
        with torch.no_grad():
            planes, _, _ = rasterization(
                colors=extra.values.to(gaussians.device), render_mode="RGB", **common
            )
            behind = (1.0 - coverage)[..., None] * extra.background.to(gaussians.device)
            further = (planes[0] + behind).permute(2, 0, 1)
    depth = image[0, ..., 3] if options.depth else None
    return Render(rgb=rgb, alpha=coverage, depth=depth, extra=further)
