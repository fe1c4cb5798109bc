"""Gaussian splats as the optimiser holds them: unconstrained parameters, one row a splat."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from recon.harmonics import SH_C0, SH_C1

THIN = 0.15  # thickness of a splat on a surface, as a share of its width
MEAN_COSINE = 2.0 / 3.0  # between a normal and the views that see it, weighted by their size there
FIELD_NAMES = ("means", "quats", "log_scales", "logit_opacities", "sh")


@dataclass(frozen=True)
class Gaussians:
    """n anisotropic 3D Gaussians with view-dependent colour (Kerbl et al. 2023)."""

    means: Float[Tensor, "n xyz=3"]  # centres, world units
    quats: Float[Tensor, "n wxyz=4"]  # orientation, need not be of unit length
    log_scales: Float[Tensor, "n xyz=3"]  # ln of the standard deviations along the own axes, world units
    logit_opacities: Float[Tensor, " n"]  # opacity = sigmoid
    sh: Float[Tensor, "n k rgb=3"]  # spherical harmonics, k = (degree + 1)^2, degree 0 first

    def __len__(self) -> int:
        return self.means.shape[0]

    @property
    def sh_degree(self) -> int:
        return math.isqrt(self.sh.shape[1]) - 1

    @property
    def device(self) -> torch.device:
        return self.means.device

    def tensors(self) -> dict[str, Tensor]:
        """The parameters by name, in the order of the fields."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def to(self, device: torch.device | str) -> Gaussians:
        return Gaussians(**{name: tensor.to(device) for name, tensor in self.tensors().items()})

    def detached(self) -> Gaussians:
        return Gaussians(**{name: tensor.detach() for name, tensor in self.tensors().items()})

    def select(self, index: Int[Tensor, " m"] | Bool[Tensor, " n"]) -> Gaussians:
        """The splats at `index` (numbers or a mask), in that order."""
        return Gaussians(**{name: tensor[index] for name, tensor in self.tensors().items()})

    def with_degree(self, degree: int) -> Gaussians:
        """The same splats with harmonics cut or zero-padded to `degree` (0 to 3)."""
        terms = (degree + 1) ** 2
        sh = self.sh[:, :terms]
        if sh.shape[1] < terms:
            sh = torch.cat([sh, sh.new_zeros(len(self), terms - sh.shape[1], 3)], dim=1)
        return replace(self, sh=sh.contiguous())


def gaussians_from_points(
    positions: Float[Tensor, "n xyz=3"],
    colours: Float[Tensor, "n rgb=3"],
    spacing: Float[Tensor, " n"],
    *,
    opacity: float = 0.5,
    sh_degree: int = 0,
    normals: Float[Tensor, "n xyz=3"] | None = None,
    headlight: Float[Tensor, "n rgb=3"] | None = None,
) -> Gaussians:
    """Splats at `positions`, each `spacing` (its standard deviation, world units) wide, of one opacity and colour.

    Round, or with `normals` (unit) of the surface they lie on, flat: their third axis is the normal and THIN as wide.
    With `headlight` (of `prepare.points.PointCloud`) their colour changes with the view as a matt surface's under a lamp at the
    camera: by the cosine between normal and view, which harmonics of degree 1 hold exactly.
    """
    n = positions.shape[0]
    sh = positions.new_zeros(n, (sh_degree + 1) ** 2, 3)
    sh[:, 0] = (colours - 0.5) / SH_C0
    if headlight is not None and normals is not None and sh_degree > 0:
        sh[:, 0] -= MEAN_COSINE * headlight / SH_C0
        # Towards the splat is -normal where it is faced; the harmonics' order is -y, z, -x.
        slope = -headlight[:, None, :] * normals[:, :, None] / SH_C1
        sh[:, 1], sh[:, 2], sh[:, 3] = -slope[:, 1], slope[:, 2], -slope[:, 0]
    quats = positions.new_zeros(n, 4)
    quats[:, 0] = 1.0
    log_scales = spacing.clamp_min(1e-8).log()[:, None].repeat(1, 3)
    if normals is not None:
        quats = quats_onto(normals)
        log_scales[:, 2] += math.log(THIN)
    return Gaussians(
        means=positions.clone(),
        quats=quats,
        log_scales=log_scales,
        logit_opacities=positions.new_full((n,), math.log(opacity / (1.0 - opacity))),
        sh=sh,
    )


def quats_onto(normals: Float[Tensor, "n xyz=3"]) -> Float[Tensor, "n wxyz=4"]:
    """Unit quaternions of the least turn that takes the z axis to each unit vector or to its opposite, the nearer one."""
    x, y, z = torch.where(normals[:, 2:] < 0, -normals, normals).unbind(-1)
    # The half-way quaternion (1 + z . n, z x n); with n on z's side it never vanishes.
    return torch.nn.functional.normalize(torch.stack([1 + z, -y, x, torch.zeros_like(x)], dim=-1), dim=-1)


def rotation_matrices(quats: Float[Tensor, "*batch wxyz=4"]) -> Float[Tensor, "*batch 3 3"]:
    """Rotation matrices of quaternions of any length > 0."""
    w, x, y, z = torch.nn.functional.normalize(quats, dim=-1).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, dim=-1).reshape(*quats.shape[:-1], 3, 3)
