"""Real spherical harmonics to degree 3 in 3DGS's order and signs (Kerbl et al. 2023; Sloan 2013)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

SH_C0 = 0.28209479177387814
SH_C1 = 0.4886025119029199
_C2 = 1.0925484305920792
_C20 = 0.31539156525252005
_C3 = (0.5900435899266435, 2.890611442640554, 0.4570457994644658, 0.3731763325901154, 1.445305721320277)


def harmonics_basis(directions: Float[Tensor, "n xyz=3"], degree: int) -> Float[Tensor, "n k"]:
    """Values of the (degree + 1)^2 basis functions at unit directions."""
    x, y, z = directions.unbind(-1)
    basis = [torch.full_like(x, SH_C0)]
    if degree >= 1:
        basis += [-SH_C1 * y, SH_C1 * z, -SH_C1 * x]
    if degree >= 2:
        xx, yy, zz = x * x, y * y, z * z
        basis += [_C2 * x * y, -_C2 * y * z, _C20 * (2 * zz - xx - yy), -_C2 * x * z, 0.5 * _C2 * (xx - yy)]
    if degree >= 3:
        basis += [
            -_C3[0] * y * (3 * xx - yy),
            _C3[1] * x * y * z,
            -_C3[2] * y * (4 * zz - xx - yy),
            _C3[3] * z * (2 * zz - 3 * xx - 3 * yy),
            -_C3[2] * x * (4 * zz - xx - yy),
            _C3[4] * z * (xx - yy),
            -_C3[0] * x * (xx - 3 * yy),
        ]
    return torch.stack(basis, dim=-1)


def shade(
    sh: Float[Tensor, "n k rgb=3"], directions: Float[Tensor, "n xyz=3"], degree: int
) -> Float[Tensor, "n rgb=3"]:
    """Colours, >= 0, of splats seen along `directions` (camera to splat, any length > 0)."""
    unit = torch.nn.functional.normalize(directions, dim=-1)
    basis = harmonics_basis(unit, degree)
    return (0.5 + torch.einsum("nk,nkc->nc", basis, sh[:, : basis.shape[1]])).clamp_min(0.0)
