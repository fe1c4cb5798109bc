"""The spherical harmonics against orthonormality, scipy's complex ones and gsplat's torch code."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from recon.harmonics import SH_C0, harmonics_basis, shade


def _directions(n: int = 50) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(n, 3, dtype=torch.float64), dim=-1)


def test_the_basis_is_orthonormal_on_the_sphere() -> None:
    # Gauss-Legendre in z times equal steps in azimuth integrates polynomials of degree 6 exactly.
    nodes, weights = np.polynomial.legendre.leggauss(8)
    azimuth = torch.arange(16, dtype=torch.float64) * (2 * math.pi / 16)
    z = torch.from_numpy(nodes)[:, None].expand(8, 16)
    radius = (1 - z * z).sqrt()
    directions = torch.stack([radius * azimuth.cos(), radius * azimuth.sin(), z], dim=-1).reshape(-1, 3)
    area = (torch.from_numpy(weights)[:, None] * (2 * math.pi / 16)).expand(8, 16).reshape(-1)
    basis = harmonics_basis(directions, 3)
    gram = torch.einsum("nk,n,nl->kl", basis, area, basis)
    torch.testing.assert_close(gram, torch.eye(16, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_each_function_is_the_real_part_of_scipys_harmonic_of_its_order(degree: int) -> None:
    # Index l^2 + l + m; m < 0 are the sine functions. The Condon-Shortley phase is kept, as 3DGS does.
    special = pytest.importorskip("scipy.special")
    if not hasattr(special, "sph_harm_y"):
        pytest.skip("scipy is older than 1.15")
    directions = _directions()
    polar = torch.acos(directions[:, 2]).numpy()
    azimuth = torch.atan2(directions[:, 1], directions[:, 0]).numpy()
    basis = harmonics_basis(directions, degree).numpy()
    for order in range(-degree, degree + 1):
        value = special.sph_harm_y(degree, abs(order), polar, azimuth)
        real = value.real if order >= 0 else value.imag
        expected = real * (1.0 if order == 0 else math.sqrt(2.0))
        np.testing.assert_allclose(basis[:, degree * degree + degree + order], expected, atol=1e-12)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_shading_is_gsplats_plus_a_half_clamped_at_zero(degree: int) -> None:
    gsplat = pytest.importorskip("gsplat.cuda._torch_impl", reason="gsplat is not installed")
    directions = torch.randn(30, 3, dtype=torch.float64) * 4.0  # of any length
    sh = torch.randn(30, 16, 3, dtype=torch.float64)
    colour = shade(sh, directions, degree)
    expected = (gsplat._spherical_harmonics(degree, directions, sh) + 0.5).clamp_min(0.0)
    torch.testing.assert_close(colour, expected, rtol=0, atol=1e-12)
    assert float(colour.min()) == 0.0


def test_degree_zero_does_not_depend_on_the_direction() -> None:
    sh = torch.full((2, 1, 3), 0.7, dtype=torch.float64)
    colour = shade(sh, torch.tensor([[1.0, 0, 0], [0, -2.0, 1.0]], dtype=torch.float64), 0)
    torch.testing.assert_close(colour, torch.full((2, 3), 0.5 + 0.7 * SH_C0, dtype=torch.float64))
