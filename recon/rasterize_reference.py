"""The definition: splats to pixels in plain torch, every splat against every pixel, any float type.

Time and memory grow with splats x pixels; meant for tests and small scenes. Source: Kerbl et al. 2023 (3DGS), with
gsplat's constants; antialiasing: Yu et al. 2024 (Mip-Splatting), 2D part.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from prepare.camera import Camera
from recon.gaussians import Gaussians, rotation_matrices
from recon.harmonics import shade
from recon.rasterize import BLUR_PX2, ExtraChannels, RasterOptions, Render

ALPHA_MAX = 0.999
ALPHA_MIN = 1.0 / 255.0
STOP = 1e-4  # transmittance at which a pixel stops, the splat that would pass it left out


def rasterize_reference(
    gaussians: Gaussians,
    camera: Camera,
    background: Float[Tensor, "rgb=3"],
    colours: Float[Tensor, "n rgb=3"] | None,
    options: RasterOptions,
    extra: ExtraChannels | None = None,
) -> Render:
    """The view of `gaussians` from `camera`; see `recon.rasterize.rasterize`."""
    rotation, translation = camera.world_to_cam[:3, :3], camera.world_to_cam[:3, 3]
    in_cam = gaussians.means @ rotation.T + translation
    drawn = in_cam[:, 2] > options.near_plane
    in_cam = in_cam[drawn]
    x, y, z = in_cam.unbind(-1)

    # EWA: covariance of the projected Gaussian under the affine approximation at its (clamped) centre.
    limit_x, limit_y = 0.15 * camera.width / camera.fl_x, 0.15 * camera.height / camera.fl_y
    u = (x / z).clamp(-camera.cx / camera.fl_x - limit_x, (camera.width - camera.cx) / camera.fl_x + limit_x)
    v = (y / z).clamp(-camera.cy / camera.fl_y - limit_y, (camera.height - camera.cy) / camera.fl_y + limit_y)
    zero = torch.zeros_like(z)
    jacobian = torch.stack(
        [
            torch.stack([camera.fl_x / z, zero, -camera.fl_x * u / z], dim=-1),
            torch.stack([zero, camera.fl_y / z, -camera.fl_y * v / z], dim=-1),
        ],
        dim=-2,
    )
    axes = (
        rotation @ rotation_matrices(gaussians.quats[drawn]) * gaussians.log_scales[drawn].exp()[:, None, :]
    )
    half = jacobian @ axes
    covariance = half @ half.transpose(-1, -2)
    blurred = covariance + BLUR_PX2 * torch.eye(2, dtype=z.dtype, device=z.device)
    opacity = torch.sigmoid(gaussians.logit_opacities[drawn])
    if options.antialiased:
        ratio = torch.linalg.det(covariance).clamp_min(0.0) / torch.linalg.det(blurred)
        opacity = opacity * ratio.clamp_min(1e-20).sqrt()

    if colours is None:
        degree = gaussians.sh_degree if options.sh_degree is None else options.sh_degree
        centre = -rotation.T @ translation
        shown = shade(gaussians.sh[drawn], gaussians.means[drawn] - centre, degree)
    else:
        shown = colours[drawn]

    order = torch.argsort(z.detach(), stable=True)
    centre_px = torch.stack([camera.fl_x * x / z + camera.cx, camera.fl_y * y / z + camera.cy], dim=-1)[order]
    conic = torch.linalg.inv(blurred)[order]
    opacity, shown, z = opacity[order], shown[order], z[order]

    columns = torch.arange(camera.width, dtype=z.dtype, device=z.device) + 0.5
    rows = torch.arange(camera.height, dtype=z.dtype, device=z.device) + 0.5
    pixels = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1).reshape(-1, 2)
    offset = pixels[None] - centre_px[:, None]
    sigma = 0.5 * torch.einsum("npi,nij,npj->np", offset, conic, offset)
    alpha = (opacity[:, None] * torch.exp(-sigma)).clamp_max(ALPHA_MAX)
    alpha = torch.where(alpha >= ALPHA_MIN, alpha, torch.zeros_like(alpha))
    after = torch.cumprod(1.0 - alpha, dim=0)
    alpha = torch.where(
        after.detach() > STOP, alpha, torch.zeros_like(alpha)
    )  # stopped: nothing behind counts
    after = torch.cumprod(1.0 - alpha, dim=0)
    before = torch.cat([torch.ones_like(after[:1]), after[:-1]])
    weight = alpha * before
    through = after[-1] if len(z) else pixels.new_ones(pixels.shape[0])

    shape = (camera.height, camera.width)
    rgb = torch.einsum("np,nc->pc", weight, shown) + through[:, None] * background
    depth = torch.einsum("np,n->p", weight, z).reshape(shape) if options.depth else None
    further = None
    if extra is not None:
        values = extra.values[drawn][order]
        further = torch.einsum("np,nc->cp", weight, values) + extra.background[:, None] * through
        further = further.detach().reshape(-1, *shape)
    return Render(rgb.reshape(*shape, 3), (1.0 - through).reshape(shape), depth, further)
