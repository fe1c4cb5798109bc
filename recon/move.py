"""Splats turned, scaled and shifted into another world, their view-dependent colour with them."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from prepare.similarity import Similarity
from recon.gaussians import Gaussians
from recon.harmonics import harmonics_basis


def moved(gaussians: Gaussians, by: Similarity) -> Gaussians:
    """The splats in the new world: a camera moved along sees the same picture. Quaternions keep their length."""
    rotation, translation = by.rotation, by.translation
    means = by.scale * (gaussians.means.double() @ rotation.T) + translation
    turn = rotation_quaternion(rotation)
    return Gaussians(
        means=means.float(),
        quats=_quaternion_product(turn, gaussians.quats.double()).float(),
        log_scales=gaussians.log_scales + math.log(by.scale),
        logit_opacities=gaussians.logit_opacities,
        sh=_turned_harmonics(gaussians.sh, rotation),
    )


def rotation_quaternion(rotation: Float[Tensor, "3 3"]) -> Float[Tensor, "wxyz=4"]:
    """Unit quaternion of a rotation matrix: the eigenvector of the largest eigenvalue, stable for every angle.

    Source: Bar-Itzhack 2000.
    """
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = rotation.double().tolist()
    matrix = torch.tensor(
        [
            [xx + yy + zz, zy - yz, xz - zx, yx - xy],
            [zy - yz, xx - yy - zz, xy + yx, xz + zx],
            [xz - zx, xy + yx, yy - xx - zz, yz + zy],
            [yx - xy, xz + zx, yz + zy, zz - xx - yy],
        ],
        dtype=torch.float64,
    )
    _, vectors = torch.linalg.eigh(matrix)
    quaternion = vectors[:, -1]
    return quaternion if quaternion[0] >= 0 else -quaternion


def _quaternion_product(
    first: Float[Tensor, "wxyz=4"], second: Float[Tensor, "n wxyz=4"]
) -> Float[Tensor, "n wxyz=4"]:
    """`second`, then `first`."""
    w, x, y, z = first.tolist()
    rows = [[w, -x, -y, -z], [x, w, -z, y], [y, z, w, -x], [z, -y, x, w]]
    return second @ torch.tensor(rows, dtype=second.dtype).T


def _turned_harmonics(
    sh: Float[Tensor, "n k rgb=3"], rotation: Float[Tensor, "3 3"]
) -> Float[Tensor, "n k rgb=3"]:
    """Coefficients whose colour towards R d is the old ones' towards d.

    A turned harmonic is a sum of those of its own degree; the sum is solved for at fixed directions, exactly up to rounding.
    """
    degree = math.isqrt(sh.shape[1]) - 1
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(64, 3, generator=generator, dtype=torch.float64)
    directions = torch.nn.functional.normalize(directions, dim=1)
    old, new = harmonics_basis(directions, degree), harmonics_basis(directions @ rotation.double().T, degree)
    turned = [sh[:, :1]]
    for band in range(1, degree + 1):
        terms = slice(band**2, (band + 1) ** 2)
        matrix = torch.linalg.lstsq(new[:, terms], old[:, terms]).solution
        turned.append(torch.einsum("ij,njc->nic", matrix, sh[:, terms].double()).to(sh.dtype))
    return torch.cat(turned, dim=1)
