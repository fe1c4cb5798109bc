"""Splat parameters: what their fields mean, checked by hand and against scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from prepare.camera import Camera
from recon.gaussians import (
    FIELD_NAMES,
    THIN,
    Gaussians,
    gaussians_from_points,
    quats_onto,
    rotation_matrices,
)
from recon.harmonics import shade
from recon.rasterize import rasterize


def _splats(n: int = 6, degree: int = 1) -> Gaussians:
    return Gaussians(
        torch.randn(n, 3),
        torch.randn(n, 4),
        torch.randn(n, 3),
        torch.randn(n),
        torch.randn(n, (degree + 1) ** 2, 3),
    )


def test_rotation_matrices_are_scipys_for_wxyz_quaternions_of_any_length() -> None:
    transform = pytest.importorskip("scipy.spatial.transform")
    quats = torch.randn(20, 4, dtype=torch.float64) * 3.0
    expected = transform.Rotation.from_quat(quats[:, [1, 2, 3, 0]].numpy()).as_matrix()  # scipy: xyzw
    np.testing.assert_allclose(rotation_matrices(quats).numpy(), expected, atol=1e-12)


def test_a_quarter_turn_about_z_takes_x_to_y() -> None:
    half = torch.tensor(np.pi / 4)
    turn = rotation_matrices(torch.stack([half.cos(), torch.zeros(()), torch.zeros(()), half.sin()])[None])[0]
    torch.testing.assert_close(turn @ torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0]))


def test_splats_from_points_are_round_and_show_the_given_colour_and_opacity() -> None:
    colour = torch.tensor([[0.9, 0.2, 0.4]])
    splats = gaussians_from_points(
        torch.tensor([[0.0, 0.0, 3.0]]), colour, torch.tensor([0.4]), opacity=0.8, sh_degree=2
    )
    assert splats.sh_degree == 2
    torch.testing.assert_close(splats.log_scales.exp(), torch.full((1, 3), 0.4))
    torch.testing.assert_close(torch.sigmoid(splats.logit_opacities), torch.tensor([0.8]))
    camera = Camera(torch.eye(4), 10.0, 10.0, 4.5, 4.5, 9, 9)  # the splat's centre is the middle pixel's
    render = rasterize(splats, camera, backend="reference")
    torch.testing.assert_close(render.alpha[4, 4], torch.tensor(0.8))
    torch.testing.assert_close(render.rgb[4, 4], 0.8 * colour[0])


def test_the_third_axis_of_a_turned_splat_is_the_normal_or_its_opposite() -> None:
    normals = torch.nn.functional.normalize(torch.randn(50, 3, dtype=torch.float64), dim=1)
    normals[0], normals[1], normals[2] = (
        torch.eye(3).double()[2],
        -torch.eye(3).double()[2],
        torch.eye(3).double()[0],
    )
    axes = rotation_matrices(quats_onto(normals))[:, :, 2]
    torch.testing.assert_close((axes * normals).sum(1).abs(), torch.ones(50, dtype=torch.float64))


def test_splats_on_a_surface_are_flat_along_its_normal() -> None:
    normal = torch.nn.functional.normalize(torch.tensor([[1.0, -2.0, 0.5]]), dim=1)
    splats = gaussians_from_points(torch.zeros(1, 3), torch.rand(1, 3), torch.tensor([0.2]), normals=normal)
    turn = rotation_matrices(splats.quats)[0]
    covariance = turn @ torch.diag((2 * splats.log_scales[0]).exp()) @ turn.T
    along = float(normal[0] @ covariance @ normal[0])
    assert along == pytest.approx((THIN * 0.2) ** 2, rel=1e-4)
    assert float(covariance.trace()) - along == pytest.approx(2 * 0.2**2, rel=1e-4)


def test_a_splat_under_a_headlight_shows_the_cosine_from_every_side_that_sees_it() -> None:
    normals = torch.nn.functional.normalize(torch.randn(40, 3), dim=1)
    colours, headlight = torch.full((40, 3), 0.5), torch.rand(40, 3) * 0.3
    splats = gaussians_from_points(
        torch.zeros(40, 3), colours, torch.ones(40), sh_degree=2, normals=normals, headlight=headlight
    )
    towards_camera = torch.nn.functional.normalize(torch.randn(40, 3), dim=1)
    cosine = (towards_camera * normals).sum(dim=1, keepdim=True)
    torch.testing.assert_close(
        shade(splats.sh, -towards_camera, 2), (colours + headlight * (cosine - 2 / 3)).clamp_min(0)
    )


def test_a_spacing_of_zero_is_a_tiny_splat_not_minus_infinity() -> None:
    splats = gaussians_from_points(torch.zeros(1, 3), torch.rand(1, 3), torch.zeros(1))
    assert torch.isfinite(splats.log_scales).all()


def test_degree_is_cut_and_padded_with_zeros() -> None:
    splats = _splats(degree=2)
    assert [splats.with_degree(d).sh_degree for d in (0, 1, 2, 3)] == [0, 1, 2, 3]
    assert torch.equal(splats.with_degree(1).sh, splats.sh[:, :4])
    wider = splats.with_degree(3)
    assert torch.equal(wider.sh[:, :9], splats.sh)
    assert wider.sh[:, 9:].abs().max() == 0
    assert torch.equal(wider.means, splats.means)


def test_select_takes_numbers_or_a_mask_in_every_field() -> None:
    splats = _splats()
    by_number = splats.select(torch.tensor([4, 1]))
    for name, tensor in splats.tensors().items():
        assert torch.equal(by_number.tensors()[name], tensor[[4, 1]]), name
    mask = torch.tensor([False, True, False, False, True, False])
    assert torch.equal(splats.select(mask).sh, splats.sh[[1, 4]])
    assert len(splats.select(mask)) == 2


def test_field_names_are_the_fields_in_order_and_detached_cuts_the_graph() -> None:
    splats = _splats()
    assert tuple(splats.tensors()) == FIELD_NAMES
    tracked = Gaussians(**{name: tensor.requires_grad_() for name, tensor in splats.tensors().items()})
    assert not any(tensor.requires_grad for tensor in tracked.detached().tensors().values())
    assert torch.equal(tracked.to("cpu").means, splats.means)
